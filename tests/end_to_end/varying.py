"""Generators for tests of labels, quick and honest about what they know of boxes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from boxtwin.datasets.image_io import read_image
from boxtwin.datasets.sample import Sample
from boxtwin.synthesis.generator import Knowledge, Request, Variation


class Speckled:
    """The source in new, weak speckle. Of every source's second variation the first object is wiped out."""

    name = "speckled"
    learns = False
    boxes: Knowledge = "carried"
    remote = False

    def version(self, training: Sequence[Sample]) -> int:  # noqa: ARG002
        return 1

    def parameters(self) -> dict[str, Any]:
        return {}

    def model(self) -> None: ...

    def match(self, samples: Sequence[Sample]) -> None: ...

    def price_usd(self, source: Sample) -> float:  # noqa: ARG002
        return 0.0

    def fit(self, training: Sequence[Sample], folder: Path) -> None: ...

    def vary(self, requests: Sequence[Request]) -> Iterator[Variation]:
        for request in requests:
            rng, source = np.random.default_rng(request.seed), request.source
            pixels = read_image(source.path).astype(float)
            if request.variation == 2 and len(source.boxes):
                x1, y1, x2, y2 = source.boxes[0].astype(int)
                pixels[max(y1 - 3, 0) : y2 + 3, max(x1 - 3, 0) : x2 + 3] = np.median(pixels)
            pixels *= rng.uniform(0.9, 1.1, pixels.shape)
            made = np.clip(pixels, 0, 255).astype(np.uint8)
            yield Variation(request, made, source.object_boxes, source.object_labels)


class Moves(Speckled):
    """The source, rolled around by a quarter: it cannot tell where things went."""

    name = "moves"
    boxes: Knowledge = "none"

    def vary(self, requests: Sequence[Request]) -> Iterator[Variation]:
        for request in requests:
            pixels = read_image(request.source.path)
            moved = np.roll(pixels, pixels.shape[1] // 4, axis=1)
            yield Variation(request, moved, np.zeros((0, 4), np.float32), np.zeros(0, np.int64))
