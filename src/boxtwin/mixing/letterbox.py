"""Images as a network takes them: letterboxed whole or cut into tiles, scaled to [0, 1]; boxes move with pixels.

All geometry is scaling and shifting, so an object's box stays its tight box. Pixels keep the type of the file (8 or 16
bit), over its whole range, until a batch is made. Imports no torch, as every form of a network needs it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, Float32, Int

from boxtwin.boxes import area_xyxy, clip_xyxy
from boxtwin.datasets.image_io import Pixels

# What surrounds a letterboxed image: mid grey, as Darknet's letterbox_image (src/image.c) fills it.
PAD = 0.5
# An object of which less is left after cropping cannot be told from background; objects under 2 pixels cannot be found.
LEAST_VISIBLE = 0.3
LEAST_SIDE = 2.0
# Neighbouring tiles share at least this part of their side. An object up to half of that is whole in the tile that its
# centre belongs to, however the tiles fall.
OVERLAP = 0.25


@dataclass(frozen=True, eq=False)
class Labelled:
    """Pixels with the boxes (xyxy, pixels) and labels of the single objects in them, and the boxes of crowds."""

    pixels: Pixels
    boxes: Float[np.ndarray, "n 4"]
    labels: Int[np.ndarray, " n"]
    crowds: Float[np.ndarray, "m 4"] = field(default_factory=lambda: np.zeros((0, 4), dtype=np.float32))
    relative_size: float = 1.0  # as of `Sample`


class Letterbox(NamedTuple):
    """How an image file of ``width`` x ``height`` pixels lies in a square: ``x_square = x_file * scale + pad_x``."""

    width: int
    height: int
    scale: float
    pad_x: float
    pad_y: float
    # Detections with their centre there (xyxy, pixels of the file) are this square's, others an overlapping tile's.
    own: tuple[float, float, float, float] = (-math.inf, -math.inf, math.inf, math.inf)


class Part(NamedTuple):
    """A piece of an image, and where it lies on a canvas."""

    image: Labelled
    scale: float
    source: tuple[int, int]  # x, y: the first column and row of the image that are taken
    corner: tuple[int, int]  # x, y of the canvas where these lie
    window: tuple[int, int, int, int]  # xyxy of the canvas; nothing is seen beyond

    @property
    def offset(self) -> tuple[float, float]:
        """Where the image's own corner would lie on the canvas: ``x_canvas = x_image * scale + offset``."""
        return self.corner[0] - self.source[0] * self.scale, self.corner[1] - self.source[1] * self.scale


class Tile(NamedTuple):
    """A square of ``side`` pixels: the file from ``corner`` (x, y) on, scaled by ``scale``; see `Letterbox`."""

    corner: tuple[int, int]
    scale: float
    side: int
    own: tuple[float, float, float, float]


def tiles(width: int, height: int, *, size: int, tile: int) -> list[Tile]:
    """Tiles of ``tile`` x ``tile`` pixels over a file of ``width`` x ``height`` pixels scaled to ``size``.

    Row by row, evenly spaced. Their own parts meet in the middle of the overlaps; the outermost reach to infinity, so
    that every point belongs to one tile.
    """
    return tiles_at(width, height, scale=size / max(width, height), tile=tile)


def tiles_at(width: int, height: int, *, scale: float, tile: int) -> list[Tile]:
    """The `tiles` at a scale, in pixels of the network input for each pixel of the file."""
    columns, rows = (_along(side, tile / scale) for side in (width, height))
    return [Tile((left, top), scale, tile, (x1, y1, x2, y2)) for top, y1, y2 in rows for left, x1, x2 in columns]


def _along(length: int, side: float) -> list[tuple[int, float, float]]:
    """First pixel and own range of each tile along an axis, in pixels of the file."""
    count = math.ceil(max(length - side, 0) / (side * (1 - OVERLAP))) + 1
    # A tile of less than half a pixel of the file must not begin behind the last.
    starts = [min(round(start), length - 1) for start in np.linspace(0, max(length - side, 0), count)]
    middles = [(after + before + side) / 2 for before, after in pairwise(starts)]
    return list(zip(starts, [-math.inf, *middles], [*middles, math.inf], strict=True))


def views(width: int, height: int, *, size: int, tile: int | None) -> Sequence[Tile | None]:
    """The `tiles` of a file of ``width`` x ``height`` pixels; None for the whole file where ``tile`` is None."""
    return [None] if tile is None else tiles(width, height, size=size, tile=tile)


def take_view(image: Labelled, view: Tile | None, size: int) -> tuple[Labelled, Letterbox]:
    """One of the `views` of an image: a tile, filled up with mid grey beyond the image, or all of it letterboxed."""
    if view is None:
        return letterbox(image, size)
    height, width = image.pixels.shape[:2]
    part = Part(image, view.scale, view.corner, (0, 0), (0, 0, view.side, view.side))
    cut = placed([part], canvas_like(image.pixels, view.side))
    return cut, Letterbox(width, height, view.scale, *part.offset, own=view.own)


def letterbox(image: Labelled, size: int) -> tuple[Labelled, Letterbox]:
    """Fit an image into a ``size`` x ``size`` square, keeping its proportions, centred on mid grey."""
    height, width = image.pixels.shape[:2]
    scale = size / max(height, width)
    canvas = canvas_like(image.pixels, size)
    pad_x, pad_y = (size - round(width * scale)) // 2, (size - round(height * scale)) // 2
    _paste(canvas, Part(image, scale, (0, 0), (pad_x, pad_y), (0, 0, size, size)))
    # Sides are rounded to whole pixels; the boxes follow the exact scale, less than half a pixel off.
    pad = np.array([pad_x, pad_y, pad_x, pad_y], dtype=np.float32)
    boxes, crowds = (each * np.float32(scale) + pad for each in (image.boxes, image.crowds))
    return Labelled(canvas, boxes, image.labels, crowds), Letterbox(width, height, scale, float(pad_x), float(pad_y))


def placed(parts: list[Part], canvas: Pixels) -> Labelled:
    """Scale and paste parts of images, and move and clip their boxes alike; hardly visible objects are left out.

    Of a crowd, any part that is seen stays.
    """
    all_boxes, all_labels, all_crowds = [], [], []
    for part in parts:
        _paste(canvas, part)
        moved, clipped = _on_canvas(part.image.boxes, part)
        sides = clipped[:, 2:] - clipped[:, :2]
        is_seen = area_xyxy(clipped) >= LEAST_VISIBLE * area_xyxy(moved)
        kept = is_seen & (sides.min(axis=1, initial=np.inf) >= LEAST_SIDE)
        all_boxes.append(clipped[kept])
        all_labels.append(part.image.labels[kept])
        _, crowds = _on_canvas(part.image.crowds, part)
        all_crowds.append(crowds[area_xyxy(crowds) > 0])
    boxes, crowds = (np.concatenate(each).astype(np.float32) for each in (all_boxes, all_crowds))
    return Labelled(canvas, boxes, np.concatenate(all_labels), crowds)


def _on_canvas(boxes: np.ndarray, part: Part) -> tuple[np.ndarray, np.ndarray]:
    """Boxes of a part's image on the canvas, and what of them lies in the part's window, both ``(n, 4)`` xyxy."""
    x1, y1, x2, y2 = part.window
    moved = boxes * np.float32(part.scale) + np.array(part.offset * 2, dtype=np.float32)
    origin = np.array([x1, y1, x1, y1], dtype=np.float32)
    return moved, clip_xyxy(moved - origin, x2 - x1, y2 - y1) + origin


def canvas_like(like: Pixels, size: int) -> Pixels:
    """A ``size`` x ``size`` square of mid grey, of the type and channels of an image."""
    return np.full((size, size, *like.shape[2:]), round(PAD * full_scale(like)), dtype=like.dtype)


def full_scale(pixels: np.ndarray) -> int:
    """The largest value that pixels of this type can have, which means 1.0."""
    return int(np.iinfo(pixels.dtype).max)


def network_input(pixels: Sequence[Pixels], *, channels: int) -> Float32[np.ndarray, "batch {channels} _h _w"]:
    """Images of one size, grey or colour, as a batch in [0, 1] with 1 or 3 channels, as the network takes.

    Each is divided by the full scale of its own type: a batch may have images of 8 and of 16 bit.
    """
    scaled = np.empty((len(pixels), *pixels[0].shape[:2], channels), dtype=np.float32)
    for image, place in zip(pixels, scaled, strict=True):
        grey = image if image.ndim == 2 or channels == 3 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        shaped = grey if grey.ndim == 3 else grey[:, :, None]
        np.multiply(shaped, np.float32(1 / full_scale(image)), out=place, dtype=np.float32)
    # Stacked with channels last, which is how the convolutions take them.
    return scaled.transpose(0, 3, 1, 2)


def _resize(pixels: Pixels, scale: float) -> Pixels:
    height, width = (max(round(side * scale), 1) for side in pixels.shape[:2])
    # Averaging over areas when shrinking: anything else drops the small bright objects that are to be found.
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    # A turned image is a view that OpenCV would copy, pixel by pixel across memory. It is resized as it lies there, and
    # the smaller result is turned.
    is_turned = abs(pixels.strides[0]) < abs(pixels.strides[1])
    lying, sides = (pixels.swapaxes(0, 1), (height, width)) if is_turned else (pixels, (width, height))
    back = tuple(slice(None, None, -1 if step < 0 else 1) for step in lying.strides[:2])
    resized = cv2.resize(lying[back], sides, interpolation=method)[back]
    return resized.swapaxes(0, 1) if is_turned else resized


def _paste(canvas: Pixels, part: Part) -> None:
    """Lay a part of an image on a canvas, as far as it lies in its window."""
    (x, y), (left, top), window = part.source, part.corner, part.window
    # Only what will be seen is resized.
    columns, rows = math.ceil((window[2] - left) / part.scale), math.ceil((window[3] - top) / part.scale)
    if columns < 1 or rows < 1:
        return
    pixels = _resize(part.image.pixels[y : y + rows, x : x + columns], part.scale)
    if canvas.ndim != pixels.ndim:
        # A data set may mix grey and colour; the first image of a mosaic decides.
        pixels = cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB if canvas.ndim == 3 else cv2.COLOR_RGB2GRAY)
    x1, y1 = max(left, window[0]), max(top, window[1])
    x2, y2 = min(left + pixels.shape[1], window[2]), min(top + pixels.shape[0], window[3])
    if x1 < x2 and y1 < y2:
        canvas[y1:y2, x1:x2] = pixels[y1 - top : y2 - top, x1 - left : x2 - left]
