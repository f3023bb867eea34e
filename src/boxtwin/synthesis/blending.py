"""New surroundings for objects that stay as they are: one image inside the boxes, another one away from them."""

from __future__ import annotations

import cv2
import numpy as np
from jaxtyping import Float

from boxtwin.datasets.image_io import Pixels
from boxtwin.synthesis.arrays import Boxes, Mask, Plane, box_pixels


def blend_outside_boxes(source: Pixels, painted: Pixels, boxes: Boxes, margin: int) -> Pixels:
    """``source`` in every pixel that a box touches, ``painted`` from ``margin`` pixels away on, a mixture in between.

    The weight of ``source`` falls as a raised cosine of the distance to the nearest box. The mean of two unrelated
    textures is smoother than either, and a smooth rim would tell a detector where an object is. So the detail of the
    mixture is scaled up to the power that it would have if the two took turns, measured around every pixel, outside
    the boxes: noise goes over into noise, and where both images agree nothing is scaled.

    Both images have one size, channels and bit depth. ``boxes`` (xyxy, pixels) may reach outside; 0 cuts hard.
    """
    kinds = [f"{image.shape} of {image.dtype}" for image in (source, painted)]
    if kinds[0] != kinds[1]:
        raise ValueError(f"two images of one kind are blended, got {' and '.join(kinds)}")
    if margin < 0:
        raise ValueError(f"margin is not negative, got {margin}")
    height, width = source.shape[:2]
    inside = box_pixels(boxes, height, width)
    if not inside.any():
        return painted.copy()
    weight = _weight(inside, margin)
    mixed = (weight > 0) & (weight < 1)
    planes = [image.reshape(height, width, -1) for image in (source, painted)]
    result = np.where(inside[:, :, None], *planes)
    if mixed.any():
        blend = _blend(planes[0].astype(np.float32), planes[1].astype(np.float32), weight, inside)
        top = np.iinfo(source.dtype).max
        result[mixed] = np.rint(np.clip(blend[mixed], 0, top)).astype(source.dtype)
    return np.ascontiguousarray(result.reshape(source.shape))


def _weight(inside: Mask, margin: int) -> Plane:
    """Of the source: 1 in the boxes, 0 from ``margin`` pixels away on."""
    if margin == 0:
        return inside.astype(np.float32)
    distance = cv2.distanceTransform((~inside).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    # Distances are between pixel centres: the neighbour of a box has 1, and ``margin`` of them are mixed.
    share = np.minimum(distance / np.float32(margin + 1), 1)
    weight: Plane = (0.5 * (1 + np.cos(np.pi * share))).astype(np.float32)
    weight[share >= 1] = 0
    return weight


def _blend(
    source: Float[np.ndarray, "h w c"], painted: Float[np.ndarray, "h w c"], weight: Plane, inside: Mask
) -> Float[np.ndarray, "h w c"]:
    # 1. Split both into the level around every pixel and the detail upon it, objects left out.
    outside = (~inside).astype(np.float32)
    share = np.maximum(local_mean(outside), 1e-6)

    def around(values: Float[np.ndarray, "h w c"]) -> Float[np.ndarray, "h w c"]:
        return local_mean(values * outside[:, :, None]) / share[:, :, None]

    level_s, level_p = around(source), around(painted)
    detail_s, detail_p = source - level_s, painted - level_p
    # 2. The power that the mixed detail has, and the power that it is to have.
    w = weight[:, :, None]
    power_s, power_p, common = around(detail_s**2), around(detail_p**2), around(detail_s * detail_p)
    has = w**2 * power_s + (1 - w) ** 2 * power_p + 2 * w * (1 - w) * common
    wanted = w * power_s + (1 - w) * power_p
    # 3. Its gain. Never under 1 (the square is convex), and never above that of unrelated textures of one power.
    most = 1 / np.sqrt(w**2 + (1 - w) ** 2)
    gain = np.clip(np.sqrt((wanted + 1e-6) / (np.maximum(has, 0) + 1e-6)), 1, most)
    return w * level_s + (1 - w) * level_p + gain * (w * detail_s + (1 - w) * detail_p)


def local_mean(values: np.ndarray) -> np.ndarray:
    """Mean over 9 x 9 pixels: enough for an estimate of the power of speckle, small enough to follow the sea."""
    return cv2.blur(values, (9, 9), borderType=cv2.BORDER_REFLECT).reshape(values.shape)
