"""Objects read from a mask that a model made: noisy, blurred, sure of some and torn about others."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float

from boxtwin.synthesis.silhouettes import Silhouette

# A mask is as noisy as the last denoising step leaves it. Hulls are several pixels broad and survive the blur.
BLUR = 3.0  # standard deviation in pixels
# From here on (-1: no object, 1: an object) something is taken to be there at all.
TORN = -0.6


@dataclass(frozen=True, eq=False)
class Reading:
    """A connected part of a mask.

    ``sure`` is the blurred mask's greatest value in it, ``pixels`` is the image's size.
    """

    pixels: Bool[np.ndarray, "h w"]
    box: tuple[int, int, int, int]  # xyxy, of the part
    silhouette: Silhouette
    sure: float


def read_mask(mask: Float[np.ndarray, "h w"], broadest: float, least_length: int) -> list[Reading]:
    """The objects in a mask (-1 to 1), as turned rectangles with the moments of what the mask shows.

    1. Blur, and take the connected parts in which the mask is above `TORN`.
    2. Heading, length and breadth are those of the rectangle with the part's second moments, the blur's taken off.
    3. Rectangles broader than ``broadest`` of their length are slimmed, with their length kept; those shorter than
       ``least_length`` pixels are no objects but noise.
    """
    smooth = cv2.GaussianBlur(mask, (0, 0), BLUR, borderType=cv2.BORDER_REFLECT)
    count, numbers, stats, _ = cv2.connectedComponentsWithStats((smooth > TORN).astype(np.uint8), connectivity=8)
    found = []
    for number in range(1, count):
        x, y, width, height, area = (int(value) for value in stats[number])
        if area < least_length:
            continue
        window = slice(y, y + height), slice(x, x + width)
        inside = numbers[window] == number
        silhouette = _rectangle(inside, x, y, broadest)
        if silhouette.length < least_length:
            continue
        found.append(
            Reading(
                pixels=numbers == number,
                box=(x, y, x + width, y + height),
                silhouette=silhouette,
                sure=float(smooth[window][inside].max()),
            )
        )
    return found


def _rectangle(inside: Bool[np.ndarray, "h w"], left: int, top: int, broadest: float) -> Silhouette:
    share = inside / inside.sum()
    rows, columns = np.mgrid[: inside.shape[0], : inside.shape[1]]
    x, y = float((share * columns).sum()), float((share * rows).sum())
    dx, dy = columns - x, rows - y
    # A pixel is a square of variance 1/12; what is narrower than the blur is a pixel broad.
    xx, yy, xy = (
        float((share * a).sum()) + extra for a, extra in ((dx * dx, 1 / 12), (dy * dy, 1 / 12), (dx * dy, 0.0))
    )
    middle, reach = (xx + yy) / 2, math.hypot((xx - yy) / 2, xy)
    long, short = (max(value - BLUR**2, 1 / 12) for value in (middle + reach, middle - reach))
    length, breadth = math.sqrt(12 * long), math.sqrt(12 * short)
    heading = 0.5 * math.atan2(2 * xy, xx - yy)
    return Silhouette(left + x + 0.5, top + y + 0.5, heading, length, min(breadth, broadest * length))
