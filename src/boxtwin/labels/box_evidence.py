"""Measures of whether an object of a source image is present in a variation: contrast, correlation, matched filter.

All are taken on one channel in grey levels as they are in the file, so that 8 and 16 bit images, bright and dark
objects are treated alike. Boxes are xyxy in pixels of the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float

from boxtwin.boxes import Box
from boxtwin.datasets.image_io import Pixels, as_grey

Values = Float[np.ndarray, "_h _w"]

# The surroundings of an object: a frame as wide as half the box on every side. It is at least so wide that a box of 4
# pixels has some fifty neighbours, and at most so wide that the ground near the object is measured.
FRAME, LEAST_FRAME, MOST_FRAME = 0.5, 3, 32
MATCH_MARGIN = 3  # pixels around the box that are matched with it: an object's edges lie on the box


class Match(NamedTuple):
    """Where the source's object matches best around its place."""

    score: float  # normalised cross-correlation
    shift: tuple[int, int]  # x, y in pixels
    here: float  # the score without any shift


def channels(source: Pixels, pixels: Pixels) -> list[tuple[Values, Values]]:
    """Source and variation as pairs of one-channel images: grey, or the mean of the channels and each by itself.

    Objects may stand out in one channel only.
    """
    before, after = as_grey(source).astype(np.float64), as_grey(pixels).astype(np.float64)
    if before.ndim == after.ndim == 2:  # a grey sensor's images are often in colour files
        return [(before, after)]
    before, after = source.astype(np.float64), pixels.astype(np.float64)
    return [(before.mean(axis=2), after.mean(axis=2)), *((before[..., c], after[..., c]) for c in range(3))]


def bounds(box: Box, height: int, width: int) -> tuple[int, int, int, int]:
    """Whole pixels that a box touches, at least one."""
    x1, y1 = min(int(box[0]), width - 1), min(int(box[1]), height - 1)
    x2, y2 = max(int(np.ceil(box[2])), x1 + 1), max(int(np.ceil(box[3])), y1 + 1)
    return max(x1, 0), max(y1, 0), min(x2, width), min(y2, height)


def cut(values: Values, box: Box) -> Values:
    """The pixels that a box touches."""
    x1, y1, x2, y2 = bounds(box, *values.shape)
    return values[y1:y2, x1:x2]


def correlation(a: Values, b: Values) -> float:
    """Pearson's correlation; where one side is flat, 1 if both are the same and 0 otherwise."""
    deviation_a, deviation_b = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((deviation_a**2).sum() * (deviation_b**2).sum()))
    if scale == 0.0:
        return float(np.array_equal(a, b))
    return float((deviation_a * deviation_b).sum() / scale)


def surroundings(values: Values, box: Box, others: Sequence[Box] = ()) -> Float[np.ndarray, " n"]:
    """The pixels of the frame around a box, those of other boxes left out; none where the box leaves no frame."""
    height, width = values.shape
    x1, y1, x2, y2 = bounds(box, height, width)
    margin_x, margin_y = (int(np.clip(FRAME * side, LEAST_FRAME, MOST_FRAME)) for side in (x2 - x1, y2 - y1))
    top, bottom = max(y1 - margin_y, 0), min(y2 + margin_y, height)
    left, right = max(x1 - margin_x, 0), min(x2 + margin_x, width)
    around: Bool[np.ndarray, "_h _w"] = np.ones((bottom - top, right - left), dtype=bool)
    for other in (box, *others):
        ox1, oy1, ox2, oy2 = bounds(other, height, width)
        around[max(oy1 - top, 0) : max(oy2 - top, 0), max(ox1 - left, 0) : max(ox2 - left, 0)] = False
    return values[top:bottom, left:right][around]


def contrast(values: Values, box: Box, others: Sequence[Box] = ()) -> float:
    """Mean inside a box less the mean of its `surroundings`, in standard deviations of these.

    0 where the box leaves no surroundings; the deviation counts as at least one grey level.
    """
    frame = surroundings(values, box, others)
    if frame.size == 0:
        return 0.0
    return float((cut(values, box).mean() - frame.mean()) / max(frame.std(), 1.0))


def strongest_contrast(pairs: Sequence[tuple[Values, Values]], box: Box, others: Sequence[Box] = ()) -> float:
    """`contrast` in the variation, in the channel where it is greatest; ``pairs`` as `channels` gives them."""
    return max((contrast(values, box, others) for _, values in pairs), key=abs)


def response(source: Values, values: Values, box: Box, place: Box, others: Sequence[Box] = ()) -> float:
    """Share of the source's object in ``box`` that is at ``place`` of the variation: about 1 all of it, 0 nothing.

    A matched filter, which measures shape and brightness at once. With both images relative to the median of the
    surroundings, in which side lobes and wakes may lie,

        response = sum(before * after) / sum(before^2)

    ``place`` is ``box`` moved by whole pixels; ``others``, boxes of the source, are left out of the surroundings.
    """
    by_x, by_y = round(place[0] - box[0]), round(place[1] - box[1])
    height, width = source.shape
    x1, y1, x2, y2 = bounds(box, height, width)
    # The part of the object that is inside the image at both places.
    x1, x2 = max(x1, -by_x, 0), min(x2, width - by_x, width)
    y1, y2 = max(y1, -by_y, 0), min(y2, height - by_y, height)
    if x1 >= x2 or y1 >= y2:
        return 0.0
    before = source[y1:y2, x1:x2] - _background(source, box, others)
    after = values[y1 + by_y : y2 + by_y, x1 + by_x : x2 + by_x] - _background(values, place, others)
    power = float((before**2).sum())
    if power == 0.0:  # nothing that could be recognised
        return float((after == 0).all())
    return float((before * after).sum() / power)


def best_match(source: Values, values: Values, box: Box, radius: int) -> Match:
    """Search the source's object, with `MATCH_MARGIN` pixels around it, within ``radius`` pixels of its place.

    A template without texture matches nothing: score 0, no shift.
    """
    height, width = source.shape
    x1, y1, x2, y2 = bounds(box, height, width)
    x1, y1, x2, y2 = max(x1 - MATCH_MARGIN, 0), max(y1 - MATCH_MARGIN, 0), x2 + MATCH_MARGIN, y2 + MATCH_MARGIN
    template = source[y1:y2, x1:x2].astype(np.float32)
    left, top = max(x1 - radius, 0), max(y1 - radius, 0)
    searched = values[top : y2 + radius, left : x2 + radius].astype(np.float32)
    if np.ptp(template) == 0 or np.ptp(searched) == 0:
        return Match(0.0, (0, 0), 0.0)
    scores = cv2.matchTemplate(searched, template, cv2.TM_CCOEFF_NORMED)
    # Flat places have no correlation; OpenCV may call them anything.
    scores = np.nan_to_num(np.where(np.abs(scores) > 1.001, 0.0, scores), posinf=0.0, neginf=0.0)
    row, column = (int(value) for value in np.unravel_index(int(scores.argmax()), scores.shape))
    here = float(scores[y1 - top, x1 - left])
    return Match(float(scores[row, column]), (column - (x1 - left), row - (y1 - top)), here)


def _background(values: Values, box: Box, others: Sequence[Box]) -> float:
    """Median of the surroundings, those of other boxes included where these leave none; of an image that has none."""
    frames = (surroundings(values, box, others), surroundings(values, box), values)
    return float(np.median(next(frame for frame in frames if frame.size)))
