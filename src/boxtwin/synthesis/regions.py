"""Boxes on the grid of pixels: what they cover, what they touch, and how bright it is there."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

Box = Float[np.ndarray, " 4"]  # xyxy, pixels


def covered_pixels(box: Box, height: int, width: int) -> tuple[int, int, int, int]:
    """The pixels of an image that a box touches, if only with a fraction of them: left, top, right and bottom."""
    (x1, y1), (x2, y2) = np.floor(box[:2]), np.ceil(box[2:])
    return max(int(x1), 0), max(int(y1), 0), min(int(x2), width), min(int(y2), height)


def covered_slices(box: Box, height: int, width: int) -> tuple[slice, slice]:
    """Rows and columns of `covered_pixels`; empty for a box outside of the image."""
    x1, y1, x2, y2 = covered_pixels(box, height, width)
    return slice(y1, max(y2, y1)), slice(x1, max(x2, x1))


def overlaps_any(box: tuple[int, int, int, int] | Box, others: Sequence[Box] | Float[np.ndarray, "n 4"]) -> bool:
    """Whether a box has area in common with one of the others; all xyxy."""
    left, top, right, bottom = box
    return any(left < x2 and x1 < right and top < y2 and y1 < bottom for x1, y1, x2, y2 in others)


def box_pixels(boxes: Float[np.ndarray, "n 4"], height: int, width: int) -> Bool[np.ndarray, "{height} {width}"]:
    """Mask of the pixels that boxes touch, if only with a fraction of them."""
    touched = np.zeros((height, width), dtype=bool)
    for box in boxes:
        touched[covered_slices(box, height, width)] = True
    return touched


def object_mask(boxes: Float[np.ndarray, "n 4"], height: int, width: int) -> Float[np.ndarray, "{height} {width}"]:
    """The share of every pixel that lies in a box, so that boxes keep their fractional edges."""
    mask = np.zeros((height, width), dtype=np.float32)
    for box in boxes:
        rows, columns = covered_slices(box, height, width)
        left, top, right, bottom = box
        x, y = np.arange(columns.start, columns.stop), np.arange(rows.start, rows.stop)
        across = np.minimum(right, x + 1) - np.maximum(left, x)
        down = np.minimum(bottom, y + 1) - np.maximum(top, y)
        region = mask[rows, columns]
        np.maximum(region, np.outer(down, across).astype(np.float32), out=region)
    return mask


def level_and_spread(values: Float[np.ndarray, "..."], least: float = 1e-3) -> tuple[float, float]:
    """Median, and the standard deviation of a normal distribution with the same median deviation, from ``least`` on."""
    level = float(np.median(values))
    return level, max(1.4826 * float(np.median(np.abs(values - level))), least)
