"""How an object lies in its box: the box says how far it reaches, the pixels inside it which way it points.

A silhouette is a rectangle turned by its heading, in radians from x to y (down and to the right); lengths in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from jaxtyping import Float

from boxtwin.synthesis.arrays import Box, Boxes, Plane, covered_pixels, covered_slices, level_and_spread

# Above this ratio of breadth to length an object has no heading: it is taken to fill its box.
SQUARE = 0.7
# Ratio of breadth to length of oblong objects. A broader silhouette that fills its box says not how the object lies.
OBLONG = 0.5
# Hulls are four to ten times as long as broad; radar smears them to a little less.
SLENDER = 0.12
# Boxes lower or narrower than this hold too few pixels for a heading.
LEAST_SIDE = 5
ELLIPSE_POINTS = 32  # a multiple of 4, so that it touches the sides

Outline = Float[np.ndarray, "points 2"]  # corners of a polygon in order, xy, pixels


@dataclass(frozen=True)
class Silhouette:
    """A turned rectangle: its centre, heading, length along the heading and breadth across."""

    x: float
    y: float
    heading: float
    length: float
    breadth: float

    @property
    def has_heading(self) -> bool:
        """Whether it is known how the object lies. A round or shapeless one fills its box, in two directions alike."""
        return self.heading not in (0.0, math.pi / 2) or self.breadth <= OBLONG * self.length

    def box(self) -> Box:
        """The tight axis-aligned box around it, xyxy."""
        c, s = abs(math.cos(self.heading)), abs(math.sin(self.heading))
        half = np.array([self.length * c + self.breadth * s, self.length * s + self.breadth * c]) / 2
        centre = np.array([self.x, self.y])
        return np.concatenate([centre - half, centre + half])

    def moved(self, x: float, y: float, turn: float) -> Silhouette:
        """With its centre at ``x``, ``y`` and turned by ``turn`` radians."""
        return replace(self, x=x, y=y, heading=self.heading + turn)

    def grown(self, margin: float) -> Silhouette:
        """Longer and broader by ``margin`` pixels on every side."""
        return replace(self, length=self.length + 2 * margin, breadth=self.breadth + 2 * margin)

    def corners(self) -> Float[np.ndarray, "4 2"]:
        """Its corners in order, xy."""
        c, s = math.cos(self.heading), math.sin(self.heading)
        u = np.array([-0.5, 0.5, 0.5, -0.5]) * self.length
        v = np.array([-0.5, -0.5, 0.5, 0.5]) * self.breadth
        return np.stack([self.x + c * u - s * v, self.y + s * u + c * v], axis=1)


def silhouettes_of(values: Plane, boxes: Boxes) -> list[Silhouette]:
    """The silhouette of the object in every box (xyxy, pixels) of an image of brightness ``values``.

    1. Pixels belong to the object by how much they differ from the median of the box's surroundings, to either side.
    2. Their second moments say how slender the object is and which diagonal of the box it lies along.
    3. The turned rectangle of that slenderness that touches all four sides is taken: its box is the box it came from.
       Objects that are small, square or of no clear heading fill their box.
    """
    return [_silhouette(values, box) for box in boxes.astype(np.float64)]


def ellipse_in(box: Box) -> Outline:
    """The ellipse that touches all four sides of a box, as a polygon."""
    angles = np.arange(ELLIPSE_POINTS) * (2 * np.pi / ELLIPSE_POINTS)
    return (box[:2] + box[2:]) / 2 + np.stack([np.cos(angles), np.sin(angles)], axis=1) * (box[2:] - box[:2]) / 2


def _silhouette(values: Plane, box: Box) -> Silhouette:
    x1, y1, x2, y2 = (float(side) for side in box)
    centre_x, centre_y, width, height = (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1
    heading, length, breadth = (0.0, width, height) if width >= height else (math.pi / 2, height, width)
    filling = Silhouette(centre_x, centre_y, heading, length, breadth)
    rows, columns = covered_slices(box, *values.shape)
    inside = values[rows, columns].astype(np.float64)
    if min(width, height) < LEAST_SIDE or inside.size < LEAST_SIDE**2:
        return filling
    share = _weights(values, rows, columns, inside)
    if (total := float(share.sum())) <= 0:
        return filling
    share /= total
    y, x = np.mgrid[: share.shape[0], : share.shape[1]]
    x, y = x - (share * x).sum(), y - (share * y).sum()
    xx, yy, xy = float((share * x * x).sum()), float((share * y * y).sum()), float((share * x * y).sum())
    middle, reach = (xx + yy) / 2, math.hypot((xx - yy) / 2, xy)
    if middle + reach <= 0:
        return filling
    # No rectangle with a ratio of breadth to length above the box's own touches all four sides but the box itself.
    ratio = max(math.sqrt(max(middle - reach, 0) / (middle + reach)), SLENDER)
    if ratio > SQUARE or ratio >= 0.98 * (min(width, height) / max(width, height)):
        return filling
    angle = math.atan2(height - ratio * width, width - ratio * height)
    c, s = math.cos(angle), math.sin(angle)
    length = (width + height) / ((1 + ratio) * (c + s))
    return Silhouette(centre_x, centre_y, math.copysign(angle, xy), length, ratio * length)


def _weights(
    values: Plane, rows: slice, columns: slice, inside: Float[np.ndarray, "bh bw"]
) -> Float[np.ndarray, "bh bw"]:
    """How much every pixel of the box belongs to the object: its distance from the surroundings, noise left out."""
    margin = max(2, *(side // 4 for side in inside.shape))
    y, x = max(rows.start - margin, 0), max(columns.start - margin, 0)
    level, spread = level_and_spread(values[y : rows.stop + margin, x : columns.stop + margin], least=0.0)
    # One bright reflector must not outweigh the hull: distances count up to the upper tenth of them.
    distance = np.maximum(np.abs(cv2.blur(inside, (3, 3)) - level) - spread, 0)
    return np.minimum(distance, np.quantile(distance, 0.9))


def draw(silhouettes: Sequence[Silhouette], height: int, width: int) -> Float[np.ndarray, "{height} {width}"]:
    """Mask of the silhouettes: 1 inside, 0 outside, edges to a sixteenth of a pixel."""
    mask = np.zeros((height, width), dtype=np.float32)
    scale = 4
    for silhouette in silhouettes:
        x1, y1, x2, y2 = covered_pixels(silhouette.box(), height, width)
        if x1 >= x2 or y1 >= y2:
            continue
        fine = np.zeros(((y2 - y1) * scale, (x2 - x1) * scale), dtype=np.uint8)
        # OpenCV paints the pixels along the outline whole: half a fine pixel too much on every side.
        corners = (silhouette.grown(-0.5 / scale).corners() - [x1, y1]) * scale - 0.5
        cv2.fillConvexPoly(fine, np.rint(corners * 16).astype(np.int32), 1, shift=4)
        share = cv2.resize(fine.astype(np.float32), (x2 - x1, y2 - y1), interpolation=cv2.INTER_AREA)
        region = mask[y1:y2, x1:x2]
        np.maximum(region, share, out=region)
    return mask
