"""Generators for tests of labels, quick and honest about what they know of boxes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from boxtwin.datasets.image_io import read_image
from boxtwin.synthesis.generator import Generator, Knowledge, Request, Variation


@dataclass(kw_only=True, eq=False)
class Speckled(Generator):
    """The source in new, weak speckle. Of every source's second variation the first object is wiped out."""

    name = "speckled"
    boxes: ClassVar[Knowledge] = "carried"

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
    boxes = "none"

    def vary(self, requests: Sequence[Request]) -> Iterator[Variation]:
        for request in requests:
            pixels = read_image(request.source.path)
            moved = np.roll(pixels, pixels.shape[1] // 4, axis=1)
            yield Variation(request, moved, np.zeros((0, 4), np.float32), np.zeros(0, np.int64))
