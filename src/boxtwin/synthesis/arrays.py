"""Images, boxes and masks as arrays: planes for networks, and the pixels that boxes cover."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from boxtwin.datasets.image_io import Pixels, as_grey

Box = Float[np.ndarray, " 4"]  # xyxy, pixels
Boxes = Float[np.ndarray, "n 4"]  # the same
Plane = Float[np.ndarray, "h w"]
Planes = Float[np.ndarray, "c h w"]
Mask = Bool[np.ndarray, "h w"]


def covered_pixels(box: Box, height: int, width: int) -> tuple[int, int, int, int]:
    """The pixels of an image that a box touches, if only with a fraction of them: left, top, right and bottom."""
    (x1, y1), (x2, y2) = np.floor(box[:2]), np.ceil(box[2:])
    return max(int(x1), 0), max(int(y1), 0), min(int(x2), width), min(int(y2), height)


def covered_slices(box: Box, height: int, width: int) -> tuple[slice, slice]:
    """Rows and columns of `covered_pixels`; empty for a box outside of the image."""
    x1, y1, x2, y2 = covered_pixels(box, height, width)
    return slice(y1, max(y2, y1)), slice(x1, max(x2, x1))


def overlaps_any(box: tuple[int, int, int, int] | Box, others: Sequence[Box] | Boxes) -> bool:
    """Whether a box has area in common with one of the others; all xyxy."""
    left, top, right, bottom = box
    return any(left < x2 and x1 < right and top < y2 and y1 < bottom for x1, y1, x2, y2 in others)


def grown(boxes: Float[np.ndarray, "*n 4"], margin: int) -> Float[np.ndarray, "*n 4"]:
    """Boxes (xyxy) larger by ``margin`` on every side."""
    return boxes + np.array([-margin, -margin, margin, margin], dtype=boxes.dtype)


def lies_inside(box: Box, shape: tuple[int, ...], margin: int = 0) -> bool:
    """Whether a box lies in an image of that shape, ``margin`` pixels from its border or more."""
    (x1, y1, x2, y2), (height, width) = box, shape
    return bool(x1 >= margin and y1 >= margin and x2 <= width - margin and y2 <= height - margin)


def box_pixels(boxes: Boxes, height: int, width: int) -> Bool[np.ndarray, "{height} {width}"]:
    """Mask of the pixels that boxes touch, if only with a fraction of them."""
    touched = np.zeros((height, width), dtype=bool)
    for box in boxes:
        touched[covered_slices(box, height, width)] = True
    return touched


def object_mask(boxes: Boxes, height: int, width: int) -> Float[np.ndarray, "{height} {width}"]:
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


def planes_of(pixels: Pixels, channels: int) -> Float[np.ndarray, "{channels} h w"]:
    """Pixels as shares of full scale, channels first; grey is repeated if three channels are asked for."""
    values = pixels.astype(np.float32) / np.float32(np.iinfo(pixels.dtype).max)
    if channels == 1 and values.ndim == 3:
        values = values[:, :, 0]
    return np.repeat(values[None], channels, axis=0) if values.ndim == 2 else values.transpose(2, 0, 1)


def is_grey(pixels: Pixels) -> bool:
    """Whether an image has one channel, or three equal ones, as many grey JPEG files have."""
    return as_grey(pixels).ndim == 2


def as_pixels(values: Float[np.ndarray, "h w _channels"], like: Pixels) -> Pixels:
    """Shares of full scale as pixels of the depth and channels of ``like``; grey stays grey."""
    if is_grey(like):
        values = values.mean(axis=2, keepdims=True)
    stored = np.rint(np.clip(values, 0, 1) * np.iinfo(like.dtype).max).astype(like.dtype)
    return np.ascontiguousarray(stored[:, :, 0] if like.ndim == 2 else np.broadcast_to(stored, like.shape))


def padded_to(planes: Planes, side: int) -> Float[np.ndarray, "c H W"]:
    """Planes continued by their mirror image to the right and below up to ``side`` pixels, if they are smaller."""
    pad = ((0, 0), *((0, max(side - size, 0)) for size in planes.shape[1:]))
    return np.pad(planes, pad, mode="symmetric")
