"""Repainting parts of an image with the model, window by window: at the cost of the parts, not of the image."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float

from boxtwin.synthesis.ddpm.base import Canvas
from boxtwin.synthesis.ddpm.sampling import Image, Map, match_grain, match_level, sdedit

# Pixels around a part that the network sees besides: sea enough to go on with, and the objects nearby.
CONTEXT = 32
LEVEL = 41  # pixels over which the level of the ground is taken: wider than most objects, narrower than its changes
BRIGHT = 3.0  # standard deviations: what sticks out by more is no example of the ground's grain


@dataclass(frozen=True)
class Brush:
    """How parts are repainted: as of `PixelDDPM`; ``margin`` is the width over which new goes over into old."""

    steps: int
    rho: float
    eta: float
    margin: int


def soft_zone(core: Bool[np.ndarray, "h w"], margin: int) -> Float[np.ndarray, "h w"]:
    """1 in ``core``, falling to 0 over ``margin`` pixels around it."""
    distance = cv2.distanceTransform((~core).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return np.clip(1 - distance / np.float32(margin + 1), 0, 1).astype(np.float32)


def traces(
    values: Float[np.ndarray, "h w"], box: Float[np.ndarray, " 4"], reach: int, spare: Bool[np.ndarray, "h w"]
) -> Bool[np.ndarray, "h w"]:
    """The box and what hangs together with it and sticks out of the ground: side lobes, wake, bright water.

    ``spare`` is left out, with what lies around it; nothing beyond ``reach`` pixels counts.
    """
    height, width = values.shape
    x1, y1, x2, y2 = (int(side) for side in (*np.floor(box[:2]), *np.ceil(box[2:])))
    x1, y1, x2, y2 = max(x1, 0), max(y1, 0), min(x2, width), min(y2, height)
    top, left = max(y1 - reach, 0), max(x1 - reach, 0)
    window = values[top : y2 + reach, left : x2 + reach]
    level = np.median(window)
    spread = max(1.4826 * float(np.median(np.abs(window - level))), 1e-3)
    # Speckle averages out over a few pixels, lobes do not. Along each axis, as lobes run.
    sticking = np.zeros(window.shape, dtype=bool)
    for size in ((9, 1), (1, 9), (3, 3)):
        calm = spread / np.sqrt(size[0] * size[1])
        sticking |= cv2.blur(window.astype(np.float32), size) - level > 3.5 * calm
    sticking[y1 - top : y2 - top, x1 - left : x2 - left] = True
    _, numbers = cv2.connectedComponents(sticking.astype(np.uint8), connectivity=8)
    own = numbers == numbers[(y1 + y2) // 2 - top, (x1 + x2) // 2 - left]
    found = np.zeros(values.shape, dtype=bool)
    found[top : top + window.shape[0], left : left + window.shape[1]] = cv2.dilate(
        own.astype(np.uint8), np.ones((5, 5), np.uint8)
    ).astype(bool)
    return found & ~spare


def paint(
    canvas: Canvas,
    x: Image,
    mask: Float[np.ndarray, "h w"],
    strength: Float[np.ndarray, "h w"],
    brush: Brush,
    generator: torch.Generator,
) -> Image:
    """``x`` with the parts repainted in which ``strength`` is above 0, objects where ``mask`` says.

    Grain and level of the painted ground become those of the ground around it.
    """
    rows, columns = _window(canvas, strength, int(x.shape[2]), int(x.shape[3]))
    seen = x[:, :, rows, columns]
    condition, change = canvas.mask(mask)[:, :, rows, columns], canvas.mask(strength)[:, :, rows, columns]
    made = sdedit(
        canvas.model.given_mask(condition.contiguous()),
        seen,
        change,
        steps=brush.steps,
        rho=brush.rho,
        eta=brush.eta,
        generator=generator,
    )
    ground = _ground(seen, condition, change)
    zone = (change / change.max().clamp(min=1e-6)) * (condition < 0.05)
    # The level first: a step at the edge would count as grain.
    made = match_grain(match_level(made, zone, ground, LEVEL), zone, seen, ground)
    result = x.clone()
    result[:, :, rows, columns] = made
    return result


def _ground(seen: Image, condition: Map, change: Map) -> Map:
    """Where a window shows untouched ground, bright things left out."""
    values = seen.mean(dim=1, keepdim=True)
    free = (change == 0) & (condition == 0)
    if not bool(free.any()):
        return free.float()
    level = values[free].median()
    spread = 1.4826 * (values[free] - level).abs().median()
    return (free & ((values - level).abs() < BRIGHT * spread)).float()


def _window(canvas: Canvas, strength: Float[np.ndarray, "h w"], height: int, width: int) -> tuple[slice, slice]:
    """Rows and columns around all that is to be painted, of sizes that the network takes."""
    crop, multiple = canvas.model.settings["crop"], canvas.model.multiple
    slices = []
    for axis, size in ((1, height), (0, width)):
        touched = np.flatnonzero(strength.max(axis=axis) > 0)
        low, high = int(touched[0]) - CONTEXT, int(touched[-1]) + 1 + CONTEXT
        side = min(max(-(-(high - low) // multiple) * multiple, crop), size)
        start = min(max((low + high - side) // 2, 0), size - side)
        slices.append(slice(start, start + side))
    return slices[0], slices[1]
