"""Memory and time of counting in a large scene: a tiled GeoTIFF of calm sea with ships, written and read by windows.

python benchmarks/scene_memory.py --side 30000
"""

from __future__ import annotations

import argparse
import resource
import tempfile
from pathlib import Path

from measuring import Clock, report

import numpy as np  # isort: skip  (measuring sets the environment that torch reads)
import rasterio
from affine import Affine
from rasterio.windows import Window

from boxtwin.counting.detectors import Detector, find_detectors, open_detectors
from boxtwin.counting.ensemble import Counter
from boxtwin.counting.files import picture_of
from boxtwin.counting.images import list_images, read_all
from boxtwin.detector.predict import BoxesAndScores
from boxtwin.hardware import use_threads

BLOCK = 512


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    options.add_argument("--run", required=True, help="as run= of count.py")
    options.add_argument("--side", type=int, default=30_000, help="pixels of the scene's side")
    options.add_argument("--ships", type=int, default=5000)
    options.add_argument("--bands", type=int, default=1)
    options.add_argument("--scale", type=float, help="as scale= of count.py")
    options.add_argument(
        "--network",
        type=int,
        help="network outputs that are computed; the later tiles get those of the first, for time",
    )
    arguments = options.parse_args()
    use_threads(1)
    (detector,) = open_detectors(find_detectors(arguments.run, None), "cpu")
    computed, last = 0, None

    def compute(images: np.ndarray) -> BoxesAndScores:
        nonlocal computed, last
        if last is None or arguments.network is None or computed < arguments.network:
            last, computed = detector.compute(images), computed + 1
        return last[0][: len(images)], last[1][: len(images)]

    counter = Counter([Detector(detector.path, detector.spec, compute)], arguments.scale)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scene.tif"
        write_scene(path, arguments.side, arguments.ships, arguments.bands)
        before, clock = peak(), Clock()
        with clock:
            for _, read in read_all(list_images(str(path)), detector.spec):
                assert not isinstance(read, str), read
                count = counter(read[0])
                picture_of(read[0], detector.spec.levels)
    report(
        f"{arguments.side} x {arguments.side} pixels, {arguments.bands} band(s), {detector.spec.architecture}, "
        f"tiles of {detector.spec.side} at {count.scale:.3g}; network computed "
        + ("for every tile" if arguments.network is None else f"for {computed} batches of tiles"),
        ("objects", "peak memory before, GB", "peak memory, GB", "CPU s", "wall s"),
        [(float(count.counts[0]), before, peak(), clock.cpu, clock.wall)],
    )


def write_scene(path: Path, side: int, ships: int, bands: int) -> None:
    """Rows of blocks of dark noise, which repeats, with bright bars."""
    rng = np.random.default_rng(0)
    sea = rng.integers(10, 40, (BLOCK, side)).astype(np.uint8)
    profile = {"tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK, "compress": "deflate", "dtype": "uint8"}
    place = {"crs": "EPSG:32631", "transform": Affine(1, 0, 500_000, 0, -1, 5_000_000)}
    with rasterio.open(path, "w", "GTiff", side, side, bands, BIGTIFF="YES", ZLEVEL=1, **profile, **place) as file:
        for top in range(0, side, BLOCK):
            rows = sea[: min(BLOCK, side - top)].copy()
            for _ in range(round(ships * BLOCK / side)):
                x, y = rng.integers(0, side - 40), rng.integers(0, max(len(rows) - 12, 1))
                rows[y : y + 10, x : x + 30] = 220
            for band in range(1, bands + 1):
                file.write(rows, band, window=Window(0, top, side, len(rows)))


def peak() -> float:
    """The most memory that this process has held, GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


if __name__ == "__main__":
    main()
