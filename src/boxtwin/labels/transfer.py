"""Carrying the boxes of a source over to its variation, with the evidence for each."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from boxtwin.datasets.images import Pixels
from boxtwin.datasets.sample import CarriedBox, Judgement

# The surroundings that an object is compared with: a frame as wide as half the box on every side.
FRAME = 0.5


@runtime_checkable
class Transfer(Protocol):
    """Decides what becomes of each box that a generator says is in its picture."""

    name: str

    def __call__(
        self, source: Pixels, pixels: Pixels, boxes: Float[np.ndarray, "n 4"], labels: Int[np.ndarray, " n"]
    ) -> Judgement:
        """Judge ``boxes`` (xyxy, pixels) of a variation against its pixels and those of the source."""


class Carry:
    """Keep every box where the generator says it is, and record how well the pixels bear it out.

    The evidence, per box: ``correlation``, Pearson's, of the pixels in the box before and after (1: the same object,
    around 0: nothing of it is left); ``contrast`` and ``contrast_source``, the mean inside the box less the mean of its
    surroundings in standard deviations of the surroundings, in the variation and in the source.
    """

    name = "carry"

    def __call__(
        self, source: Pixels, pixels: Pixels, boxes: Float[np.ndarray, "n 4"], labels: Int[np.ndarray, " n"]
    ) -> Judgement:
        """Keep all ``boxes`` (xyxy, pixels); see the class for the evidence.

        Raises:
            ValueError: source and variation differ in size.
        """
        if source.shape != pixels.shape:
            raise ValueError(f"a variation must be as large as its source: {source.shape} expected, {pixels.shape} got")
        before, after = _intensity(source), _intensity(pixels)
        carried = []
        for box, label in zip(boxes.tolist(), labels.tolist(), strict=True):
            evidence = {
                "correlation": _correlation(_cut(before, box), _cut(after, box)),
                "contrast": contrast(after, box),
                "contrast_source": contrast(before, box),
            }
            x1, y1, x2, y2 = box
            carried.append(CarriedBox((x1, y1, x2, y2), label, "kept", {k: round(v, 4) for k, v in evidence.items()}))
        return Judgement(tuple(carried))


def _intensity(pixels: Pixels) -> Float[np.ndarray, "h w"]:
    values = pixels.astype(np.float64)
    return values if values.ndim == 2 else values.mean(axis=2)


def _bounds(box: list[float], height: int, width: int) -> tuple[int, int, int, int]:
    """Whole pixels that a box touches, at least one."""
    x1, y1 = min(int(box[0]), width - 1), min(int(box[1]), height - 1)
    return (
        max(x1, 0),
        max(y1, 0),
        min(max(int(np.ceil(box[2])), x1 + 1), width),
        min(max(int(np.ceil(box[3])), y1 + 1), height),
    )


def _cut(values: Float[np.ndarray, "h w"], box: list[float]) -> Float[np.ndarray, "bh bw"]:
    x1, y1, x2, y2 = _bounds(box, *values.shape)
    return values[y1:y2, x1:x2]


def _correlation(a: Float[np.ndarray, "h w"], b: Float[np.ndarray, "h w"]) -> float:
    """Pearson's correlation; where one side is flat, 1 if both are the same and 0 otherwise."""
    deviation_a, deviation_b = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((deviation_a**2).sum() * (deviation_b**2).sum()))
    if scale == 0.0:
        return float(np.array_equal(a, b))
    return float((deviation_a * deviation_b).sum() / scale)


def contrast(values: Float[np.ndarray, "h w"], box: list[float]) -> float:
    """Mean inside a box (xyxy, pixels) less the mean of the frame around it, in standard deviations of the frame.

    0 where the box leaves no frame; the deviation counts as at least one grey level.
    """
    height, width = values.shape
    x1, y1, x2, y2 = _bounds(box, height, width)
    margin_x, margin_y = max(int(FRAME * (x2 - x1)), 2), max(int(FRAME * (y2 - y1)), 2)
    top, bottom = max(y1 - margin_y, 0), min(y2 + margin_y, height)
    left, right = max(x1 - margin_x, 0), min(x2 + margin_x, width)
    around = np.ones((bottom - top, right - left), dtype=bool)
    around[y1 - top : y2 - top, x1 - left : x2 - left] = False
    frame = values[top:bottom, left:right][around]
    if frame.size == 0:
        return 0.0
    return float((values[y1:y2, x1:x2].mean() - frame.mean()) / max(frame.std(), 1.0))
