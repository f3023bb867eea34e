"""CPU-seconds an image of the quality card, side by side for numbers and sizes of images.

python benchmarks/quality_card.py
python benchmarks/quality_card.py --photos FOLDER      photos of one camera instead of made ones

Made images share a fixed pattern, as photos of one camera do. Take the ratios: an image should cost the same whatever
the number of images, and in proportion to its pixels.
"""

# ruff: noqa: E402

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import cv2
import numpy as np
from measuring import Clock, report

from boxtwin.datasets.image_io import read_image, write_png
from boxtwin.datasets.sample import Lineage, Sample
from boxtwin.quality.card import write_quality_card

CASES = (("640 x 480, colour", (480, 640, 3), np.uint8), ("800 x 800, grey", (800, 800), np.uint8),
         ("800 x 800, grey, 16 bit", (800, 800), np.uint16), ("400 x 400, grey", (400, 400), np.uint8))  # fmt: skip


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--photos", type=Path, help="a folder of images of one size")
    options.add_argument("--variations", type=int, nargs="+", default=[50, 100, 200], help="numbers of variations")
    arguments = options.parse_args()
    cv2.setNumThreads(1)
    rows: list[list[str | float]] = []
    for name, shape, depth in CASES if arguments.photos is None else [("photos", (), np.uint8)]:
        first = 0.0
        for count in arguments.variations:
            with tempfile.TemporaryDirectory() as folder:
                sides = _write(Path(folder), count, arguments.photos, shape, depth)
                images = sum(len(side) for side in sides)
                with Clock() as clock:
                    card = write_quality_card(Path(folder) / "store", *sides, speckle=None)
            first = first or clock.cpu / images
            rows.append([name, str(count), str(images), clock.cpu / images, clock.cpu / images / first,
                         card.summary["verdict"]])  # fmt: skip
            print(f"{name}, {count} variations: {clock.cpu:.1f} CPU-seconds", file=sys.stderr)
    report("Quality card", ("images", "variations", "all images", "CPU-s an image", "ratio", "verdict"), rows)


def _write(folder: Path, count: int, photos: Path | None, shape: tuple[int, ...], depth: type) -> list[list[Sample]]:
    """Variations, training, validation and test images: a variation for each training image, a test image as well."""
    pictures = _photos(photos) if photos else _made(shape, depth)
    half = count // 2
    training = [_sample(folder, f"train{number}.png", next(pictures)) for number in range(half)]
    test = [_sample(folder, f"test{number}.png", next(pictures)) for number in range(half)]
    variations = []
    for number in range(count):
        source = training[number % half]
        blurred = cv2.GaussianBlur(read_image(source.path), (0, 0), 1)
        lineage = Lineage(source.name, "blurred", 1 + number // half, 0)
        variations.append(_sample(folder, f"variation{number}.png", blurred, lineage))
    return [variations, training, [], test]


def _made(shape: tuple[int, ...], depth: type) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(0)
    pattern = rng.normal(0, 12, shape)
    while True:
        coarse = rng.uniform(60, 190, (12, 16, *shape[2:]))
        scene = cv2.resize(coarse, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC)
        pixels = np.clip(scene + pattern + rng.normal(0, 12, shape), 0, 255)
        yield (pixels * (np.iinfo(depth).max / 255)).astype(depth)


def _photos(folder: Path) -> Iterator[np.ndarray]:
    while True:  # over again, cut elsewhere, where there are too few
        for file in sorted(folder.iterdir()):
            yield read_image(file)


def _sample(folder: Path, name: str, pixels: np.ndarray, lineage: Lineage | None = None) -> Sample:
    write_png(folder / name, pixels)
    return Sample(
        name=name, path=folder / name, width=pixels.shape[1], height=pixels.shape[0], image_id=1,
        boxes=np.zeros((0, 4), np.float32), labels=np.zeros(0, np.int64), areas=np.zeros(0), crowd=np.zeros(0, bool),
        group="" if lineage else name, lineage=lineage, sha256=name,
    )  # fmt: skip


if __name__ == "__main__":
    main()
