"""Images of any size through a model of one size, without resampling: squares that overlap, drawn and blended."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise, product
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from boxtwin.synthesis.blending import local_mean


class Tile(NamedTuple):
    """One square: its number, counted row by row, and what it shows."""

    number: int
    values: Float[np.ndarray, "side side c"]


# Makes of each square another one of the same side, in the same order; channels may differ.
Draw = Callable[[Sequence[Tile]], Sequence[np.ndarray]]


def draw_in_tiles(
    image: Float[np.ndarray, "h w c"], draw: Draw, *, side: int, overlap: int, batch_size: int = 1
) -> Float[np.ndarray, "h w d"]:
    """Cut ``image`` into squares, have them drawn, and put the results together.

    Neighbours share ``overlap`` pixels or more, and go over into each other in the middle ``overlap`` pixels of what
    they share, by raised-cosine weights that add up to 1. Where their detail disagrees, as two patterns of noise do,
    the mean is smoother than either; it is scaled up to the power that the two would have if they took turns.

    ``draw`` is called with up to ``batch_size`` squares of ``side`` pixels; ``overlap`` is at most half of ``side``. An
    image that is smaller than a square is continued by its mirror image.
    """
    if not 0 <= overlap <= side // 2:
        raise ValueError(f"overlap lies between 0 and half of the side, {side // 2}, got {overlap}")
    height, width = image.shape[:2]
    pad = [(0, max(side - size, 0)) for size in (height, width)]
    padded = np.pad(image, (*pad, (0, 0)), mode="symmetric")
    axes = []
    for size in padded.shape[:2]:
        starts = tile_starts(size, side, overlap)
        weights = tile_weights(starts, side, overlap, size)
        axes.append([(start, weight[start : start + side]) for start, weight in zip(starts, weights, strict=True)])
    places, squares = list(product(*axes)), list[np.ndarray]()
    for first in range(0, len(places), batch_size):
        batch = enumerate(places[first : first + batch_size], start=first)
        squares += draw([Tile(number, padded[y : y + side, x : x + side]) for number, ((y, _), (x, _)) in batch])
    # float64: weights of 16-bit values must add up to 1 to the last bit after rounding.
    sums = np.zeros((4, *padded.shape[:2], squares[0].shape[2]))
    squared_weights = np.zeros((*padded.shape[:2], 1))
    for ((y, down), (x, across)), drawn in zip(places, squares, strict=True):
        if drawn.shape[:2] != (side, side):
            raise ValueError(f"squares of {side} pixels were expected, {drawn.shape[:2]} came")
        weight = np.outer(down, across)[:, :, None]
        detail = drawn - local_mean(drawn)
        place = np.s_[y : y + side, x : x + side]
        for total, values in zip(sums, (drawn, drawn**2, detail, detail**2), strict=True):
            total[place] += weight * values
        squared_weights[place] += weight**2
    return _blended(sums, squared_weights)[:height, :width].astype(image.dtype)


def _blended(
    sums: Float[np.ndarray, "4 h w d"], squared_weights: Float[np.ndarray, "h w 1"]
) -> Float[np.ndarray, "h w d"]:
    """The mean of tiles without loss of power, from weighted sums of values, their squares, detail and its squares."""
    mean, square, detail, power = sums
    unlike = 1 - squared_weights
    if not unlike.any():
        return mean
    # 1. The power that detail has lost: the sum of w (d - mean d)^2. Squares that agree differ in the detail of
    #    their outermost pixels, which their neighbours are not part of, but not in their values.
    lost = np.minimum(power - detail**2, square - mean**2)
    # 2. Its local mean, shared out by the weights, because it rises and falls with them within a few pixels.
    lost = local_mean(np.maximum(lost, 0)) / np.maximum(local_mean(unlike), 1e-12) * unlike
    # 3. The gain from what is left to what it is to be, never above that of unrelated patterns of one power.
    wanted = np.maximum(local_mean(power), 0)
    gain = np.sqrt(wanted / np.maximum(wanted - np.minimum(lost, wanted), 1e-12))
    return mean + (np.clip(gain, 1, 1 / np.sqrt(squared_weights)) - 1) * detail


def tile_seed(seed: int, number: int) -> int:
    """The seed of a square, from that of its image and its number."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0])


def tile_starts(size: int, side: int, overlap: int) -> list[int]:
    """Where squares begin along one axis: as few as will do, evenly spread, the last one flush with the end.

    One at 0 where ``size`` is below ``side``.
    """
    count = 1 + math.ceil(max(size - side, 0) / (side - overlap))
    return [round(i * (size - side) / max(count - 1, 1)) for i in range(count)]


def tile_weights(starts: Sequence[int], side: int, overlap: int, size: int) -> list[Float[np.ndarray, "{size}"]]:
    """Weight of every square along one axis of ``size`` pixels; they add up to 1 everywhere.

    Square i fades in where the one before it fades out: its weight is ``in_i - in_(i+1)``.
    """
    centres = np.arange(size) + 0.5
    fades = [np.ones(size)]
    for before, start in pairwise(starts):
        middle = (before + side + start) / 2
        share = np.clip((centres - middle) / max(overlap, 1) + 0.5, 0, 1) if overlap else (centres > middle) * 1.0
        fades.append(0.5 * (1 - np.cos(np.pi * share)))
    fades.append(np.zeros(size))
    return [fade_in - fade_out for fade_in, fade_out in pairwise(fades)]
