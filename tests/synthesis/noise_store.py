"""A generator of noise, and stores of its variations.

Run as a script, this file makes a store in a process of its own:
``python noise_store.py <data set> <stores> <per image> <variation to be killed at, or -1>``
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from boxtwin.datasets.coco import read_coco
from boxtwin.datasets.image_io import read_image
from boxtwin.datasets.sample import Dataset, Sample
from boxtwin.labels.carry import Carry
from boxtwin.synthesis.generator import Generator, Knowledge, Request, Variation
from boxtwin.synthesis.store import Library


class Noise(Generator):
    """New noise for every seed. Writes down each variation that it makes, and dies where it is told to."""

    name = "noise"
    boxes: ClassVar[Knowledge] = "carried"

    def __init__(
        self, log: Path, *, learns: bool = False, level: int = 50, dies_at: int = -1, killed: bool = False
    ) -> None:
        self.log, self.learns, self.level, self.dies_at, self.killed = log, learns, level, dies_at, killed
        self.shape: tuple[int, ...] | None = None
        self.dtype: Any = None

    def parameters(self) -> dict[str, Any]:
        return {"level": self.level}

    def fit(self, training: Sequence[Sample], folder: Path) -> None:
        self.seen = [sample.name for sample in training]
        assert folder.is_dir()

    def vary(self, requests: Sequence[Request]) -> Iterator[Variation]:
        for place, request in enumerate(requests):
            if place == self.dies_at:
                if self.killed:
                    os.kill(os.getpid(), signal.SIGKILL)
                raise RuntimeError("the card fell off the bus")
            source = request.source
            with self.log.open("a") as log:
                log.write(f"{source.name} v{request.variation}\n")
            original = read_image(source.path)
            noise = np.random.default_rng(request.seed).integers(0, self.level, size=self.shape or original.shape)
            yield Variation(request, noise.astype(self.dtype or original.dtype), source.boxes, source.labels)
        if self.dies_at == len(requests):
            raise RuntimeError("after the last one")

    def made(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []


def open_library(dataset: Dataset, stores: Path, generator: Any, **changes: Any) -> Library:
    settings: dict[str, Any] = {
        "judge": Carry(exact=True),  # noise holds no objects that could be found
        "labels": "carry",
        "dataset": dataset,
        "seed": 0,
        "training": dataset.samples,
    }
    return Library(stores, generator, **{**settings, **changes})


def assert_complete(library: Library, sources: Sequence[Sample], per_image: int) -> None:
    """One line for every variation, its image as recorded, and a COCO file that holds all of them."""
    wanted = {(source.name, number) for source in sources for number in range(1, per_image + 1)}
    assert sorted((line.source, line.variation) for line in library.lines()) == sorted(wanted)
    assert len(library.variations(sources, per_image)) == len(wanted)
    assert len(list((library.folder / "images").glob("*_v*.png"))) == len(wanted)
    content = json.loads((library.folder / "annotations.json").read_text())
    assert {(image["source"], image["variation"]) for image in content["images"]} == wanted


if __name__ == "__main__":
    root, stores = Path(sys.argv[1]), Path(sys.argv[2])
    read = read_coco(name="tiny", images=root / "images", annotations=root / "annotations.json")
    deadly = Noise(stores / "made.log", dies_at=int(sys.argv[4]), killed=True)
    open_library(read, stores, deadly).make(read.samples, int(sys.argv[3]))
