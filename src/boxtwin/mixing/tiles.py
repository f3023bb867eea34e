"""Large images in overlapping tiles, each of which answers for its own part of the image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from boxtwin.mixing.augment import Labelled, Letterbox, Part, canvas_like, letterbox, placed

# Neighbouring tiles share at least this part of their side. An object up to half of that is whole in the tile that its
# centre belongs to, however the tiles fall.
OVERLAP = 0.25


class Tile(NamedTuple):
    """One tile: the file's pixels from ``corner`` (x, y) on, scaled by ``scale``; it answers for ``own`` (xyxy)."""

    corner: tuple[int, int]
    scale: float
    own: tuple[float, float, float, float]


def tiles(width: int, height: int, *, size: int, tile: int) -> list[Tile]:
    """Tiles of ``tile`` x ``tile`` pixels over a file of ``width`` x ``height`` pixels scaled to ``size``.

    Row by row, evenly spaced. The parts that they answer for meet in the middle of the overlaps; the outermost reach to
    infinity, so that no object is nobody's.
    """
    scale = size / max(width, height)
    columns, rows = _starts(width, scale, tile), _starts(height, scale, tile)
    return [
        Tile((left, top), scale, (x1, y1, x2, y2))
        for top, y1, y2 in zip(rows, *_own(rows, tile / scale), strict=True)
        for left, x1, x2 in zip(columns, *_own(columns, tile / scale), strict=True)
    ]


def cut_tile(image: Labelled, tile: Tile, side: int, white: int) -> tuple[Labelled, Letterbox]:
    """The pixels of a tile, filled up with mid grey where the image ends, and the objects in it."""
    canvas = canvas_like(image.pixels, side, white)
    part = Part(image, tile.scale, tile.corner, (0, 0), (0, 0, side, side))
    return placed([part], canvas), Letterbox(tile.scale, *part.offset, own=tile.own)


def views(width: int, height: int, *, size: int, tile: int | None) -> Sequence[Tile | None]:
    """How a file of ``width`` x ``height`` pixels is looked at: in `tiles`, or whole (None) where ``tile`` is None."""
    return [None] if tile is None else tiles(width, height, size=size, tile=tile)


def take_view(
    image: Labelled, view: Tile | None, *, size: int, tile: int | None, white: int
) -> tuple[Labelled, Letterbox]:
    """One of the `views` of an image: a tile, or all of it letterboxed to ``size``."""
    if view is None or tile is None:
        return letterbox(image, size, white)
    return cut_tile(image, view, tile, white)


def _starts(length: int, scale: float, tile: int) -> list[int]:
    """First file pixel of each tile along an axis."""
    shown = tile / scale
    if length <= shown:
        return [0]
    count = math.ceil((length - shown) / (shown * (1 - OVERLAP))) + 1
    # A tile of less than half a pixel of the file must not begin behind the last.
    return [min(round(start), length - 1) for start in np.linspace(0, length - shown, count)]


def _own(starts: list[int], shown: float) -> tuple[list[float], list[float]]:
    middles = [(after + before + shown) / 2 for before, after in pairwise(starts)]
    return [-math.inf, *middles], [*middles, math.inf]
