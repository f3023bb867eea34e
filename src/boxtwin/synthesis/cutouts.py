"""Objects cut out of their images with the pixels around them, to be posed and pasted elsewhere."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import cv2
import numpy as np
from jaxtyping import Float

from boxtwin.synthesis.arrays import Box, Mask, covered_slices
from boxtwin.synthesis.silhouettes import Outline


@dataclass(frozen=True, eq=False)
class Cutout:
    """An object with the ``feather`` pixels around it; ``box`` is xyxy in pixels of the patch."""

    patch: Float[np.ndarray, "h w c"]
    box: Box
    label: int
    dtype: np.dtype
    feather: int
    outline: Outline | None = None  # None: the box is pasted whole
    known: Mask | None = None  # where the patch shows pixels of the image; None: everywhere

    def mirrored(self) -> Cutout:
        """Flipped left to right."""
        x1, y1, x2, y2 = self.box
        width = self.patch.shape[1]
        outline = None if self.outline is None else np.array([width, 0]) + self.outline * [-1, 1]
        return replace(self, patch=self.patch[:, ::-1], box=np.array([width - x2, y1, width - x1, y2]), outline=outline)

    def turned(self) -> Cutout:
        """Turned by 90 degrees counterclockwise."""
        x1, y1, x2, y2 = self.box
        width = self.patch.shape[1]
        outline = None if self.outline is None else np.array([0, width]) + self.outline[:, ::-1] * [1, -1]
        return replace(
            self, patch=np.rot90(self.patch), box=np.array([y1, width - x2, y2, width - x1]), outline=outline
        )

    def warped(self, turn: float, stretch: float) -> Cutout:
        """Made longer by a factor and turned by ``turn`` radians (from x to y); the box is that of the new outline."""
        assert self.outline is not None, "without an outline, the box of a turned object is not known"
        centre = (self.box[:2] + self.box[2:]) / 2
        points = self.outline - centre
        along = np.linalg.eigh(points.T @ points)[1][:, 1]
        c, s = math.cos(turn), math.sin(turn)
        matrix = np.array([[c, -s], [s, c]]) @ (np.eye(2) + (stretch - 1) * np.outer(along, along))
        points = points @ matrix.T
        offset = self.feather - np.floor(points.min(axis=0))
        outline = points + offset
        width, height = (int(value) for value in np.ceil(outline.max(axis=0)) + self.feather)
        # OpenCV counts from the centre of the first pixel.
        affine = np.column_stack([matrix, offset - 0.5 - matrix @ (centre - 0.5)])
        patch = cv2.warpAffine(
            self.patch, affine, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE
        )
        known = cv2.warpAffine(np.ones(self.patch.shape[:2], np.float32), affine, (width, height)) > 0.99
        box = np.concatenate([outline.min(axis=0), outline.max(axis=0)])
        return replace(self, patch=patch.reshape(height, width, -1), box=box, outline=outline, known=known)

    def brighter(self, factor: float) -> Cutout:
        """With ``factor`` times the contrast to what is around it."""
        level = self.patch[self.ring()].mean(axis=0)
        return replace(self, patch=self.patch + (factor - 1) * self.alpha() * (self.patch - level))

    def ring(self) -> Mask:
        """The pixels around the object; the nearest to an outline may still show it."""
        if self.outline is not None:
            around = self._distance() > self.feather / 4
            return around if self.known is None else around & self.known
        ring = np.ones(self.patch.shape[:2], dtype=bool)
        ring[covered_slices(self.box, *self.patch.shape[:2])] = False
        return ring

    def alpha(self) -> Float[np.ndarray, "h w 1"]:
        """1 in the object, falling to 0 along a cosine over ``feather`` pixels outside of it."""
        alpha = 0.5 * (1 + np.cos(np.pi * np.minimum(self._distance() / self.feather, 1)))
        return (alpha if self.known is None else alpha * self.known)[:, :, None]

    def _distance(self) -> Float[np.ndarray, "h w"]:
        """Of every pixel from the box or the outline; 0 inside."""
        height, width = self.patch.shape[:2]
        if self.outline is not None:
            outside = np.ones((height, width), dtype=np.uint8)
            cv2.fillConvexPoly(outside, np.rint((self.outline - 0.5) * 16).astype(np.int32), 0, shift=4)
            return cv2.distanceTransform(outside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        x1, y1, x2, y2 = self.box
        x, y = np.arange(width) + 0.5, np.arange(height) + 0.5
        across = np.maximum(np.maximum(x1 - x, x - x2), 0)
        down = np.maximum(np.maximum(y1 - y, y - y2), 0)
        return np.hypot(down[:, None], across[None, :])
