"""Showing an image of any size, depth and number of channels as the 8-bit RGB squares that a hosted model takes.

Objects may be small, so no image is reduced before it is sent:

- An image that fits into a square is enlarged until its longer side fills it. The answer is reduced again.
- A larger image is cut into squares at its own resolution. They overlap evenly, by the given number of pixels at least,
  and answers are blended over the overlaps. A model that moves objects does so differently on both sides of a seam.

Sides that are shorter than a square are padded with their mirror image. If the squares come back as they are, so do the
pixels of 8-bit images that were not enlarged.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from boxtwin.datasets.image_io import Pixels, as_grey
from boxtwin.synthesis.fitness import dark_and_bright
from boxtwin.synthesis.tiling import tile_starts

RGB8 = UInt8[np.ndarray, "_h _w 3"]


def count(height: int, width: int, size: int, overlap: int) -> int:
    """How many squares an image takes."""
    return len(_places(height, width, size, overlap))


def cut(pixels: Pixels, size: int, overlap: int) -> list[RGB8]:
    """The squares of an image, row by row; see the module for how."""
    shown = _as_rgb8(pixels)
    height, width = shown.shape[:2]
    if max(height, width) <= size:
        shown = cv2.resize(shown, _enlarged(height, width, size), interpolation=cv2.INTER_CUBIC)
        height, width = size, size
    padded = _pad(shown, size)
    places = _places(height, width, size, overlap)
    return [np.ascontiguousarray(padded[y : y + size, x : x + size]) for y, x in places]


def join(answers: Sequence[RGB8], source: Pixels, size: int, overlap: int) -> Pixels:
    """The answers to the squares of ``source`` as one image of its size, channels and bit depth."""
    height, width = source.shape[:2]
    if len(answers) != (expected := count(height, width, size, overlap)):
        raise ValueError(f"{expected} squares were expected, got {len(answers)}")
    if max(height, width) <= size:
        enlarged_width, enlarged_height = _enlarged(height, width, size)
        top, left = (size - enlarged_height) // 2, (size - enlarged_width) // 2
        inner = answers[0][top : top + enlarged_height, left : left + enlarged_width].astype(np.float32)
        return _like(source, cv2.resize(inner, (width, height), interpolation=cv2.INTER_AREA))
    total = np.zeros((max(height, size), max(width, size), 3), dtype=np.float32)
    weight = np.zeros((*total.shape[:2], 1), dtype=np.float32)
    # 1 inside, falling towards the edges over the overlap; never 0, so that image borders keep a weight.
    ramp = np.minimum(np.arange(1, size + 1), np.arange(size, 0, -1)).clip(max=max(overlap, 1)).astype(np.float32)
    window = np.outer(ramp, ramp)[:, :, None]
    for (y, x), answer in zip(_places(height, width, size, overlap), answers, strict=True):
        total[y : y + size, x : x + size] += window * answer
        weight[y : y + size, x : x + size] += window
    top, left = (total.shape[0] - height) // 2, (total.shape[1] - width) // 2
    return _like(source, (total / weight)[top : top + height, left : left + width])


class NotSquareError(ValueError):
    """A whole image of another shape than was asked for."""


def as_square(pixels: Pixels, size: int) -> RGB8:
    """An answer as an 8-bit RGB square of ``size``, whatever size it has; raises `NotSquareError` if it is none."""
    height, width = pixels.shape[:2]
    if height != width:
        raise NotSquareError(f"a square of {size} pixels was asked for, {width} x {height} came")
    answer = _as_rgb8(pixels if pixels.dtype == np.uint8 else (pixels >> 8).astype(np.uint8))
    if height == size:
        return answer
    resized: RGB8 = cv2.resize(answer, (size, size), interpolation=cv2.INTER_AREA if height > size else cv2.INTER_CUBIC)
    return resized


def _places(height: int, width: int, size: int, overlap: int) -> list[tuple[int, int]]:
    return list(product(tile_starts(height, size, overlap), tile_starts(width, size, overlap)))


def _enlarged(height: int, width: int, size: int) -> tuple[int, int]:
    """Width and height once the longer side is ``size``."""
    scale = size / max(height, width)
    return max(round(width * scale), 1), max(round(height * scale), 1)


def _pad(shown: RGB8, size: int) -> RGB8:
    """Mirrored outwards on sides that are shorter than ``size``, evenly at both ends."""
    missing = [max(size - length, 0) for length in shown.shape[:2]]
    margins = [(pixels // 2, pixels - pixels // 2) for pixels in missing]
    padded: RGB8 = np.pad(shown, (*margins, (0, 0)), mode="symmetric")
    return padded


def _ends(pixels: Pixels) -> tuple[float, float]:
    """What 0 and 255 stand for: 16-bit images rarely fill their range, so 0 and their own maximum do.

    A maximum of single hot pixels does not, and an offset of more than half the maximum is taken off.
    """
    if pixels.dtype == np.uint8:
        return 0.0, 255.0
    (darkest, brightest), largest = dark_and_bright(pixels), float(pixels.max())
    full_scale = max(largest if largest <= 2 * brightest else brightest, 1.0)
    return (darkest if full_scale > darkest > full_scale / 2 else 0.0), full_scale


def _as_rgb8(pixels: Pixels) -> RGB8:
    values = pixels if pixels.ndim == 3 else np.repeat(pixels[:, :, None], 3, axis=2)
    if values.dtype == np.uint8:
        return np.ascontiguousarray(values)
    black, full_scale = _ends(pixels)
    shown: RGB8 = np.rint((values - black) * (255.0 / (full_scale - black))).clip(0, 255).astype(np.uint8)
    return shown


def _like(source: Pixels, shown: Float[np.ndarray, "h w 3"]) -> Pixels:
    """Values from 0 to 255 in the depth and channels of ``source``; grey stays grey, also where stored as colour."""
    if as_grey(source).ndim == 2:
        mean = shown.mean(axis=2)
        shown = mean if source.ndim == 2 else np.repeat(mean[:, :, None], 3, axis=2)
    black, full_scale = _ends(source)
    values = np.rint(black + shown * ((full_scale - black) / 255.0)).clip(0, int(np.iinfo(source.dtype).max))
    result: Pixels = values.astype(source.dtype)
    return result
