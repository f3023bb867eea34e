"""Box formats, clipping and overlap.

Formats, all with the last axis of length 4, in pixels unless said (continuous coordinates: a box that covers the first
pixel only is ``(0, 0, 1, 1)``):

* ``xyxy``: left, top, right, bottom;
* ``xywh``: left, top, width, height, as COCO files write them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    import torch

    Array = TypeVar("Array", np.ndarray, torch.Tensor)
else:
    Array = TypeVar("Array")

Box = tuple[float, float, float, float]  # one box, xyxy


def _columns(boxes: Array) -> tuple[Array, Array, Array, Array]:
    if boxes.shape[-1] != 4:
        raise ValueError(f"boxes need a last axis of length 4, got shape {tuple(boxes.shape)}")
    return boxes[..., 0], boxes[..., 1], boxes[..., 2], boxes[..., 3]


def xyxy_to_xywh(boxes: np.ndarray) -> np.ndarray:
    """``(..., 4)`` left, top, right, bottom -> ``(..., 4)`` left, top, width, height."""
    x1, y1, x2, y2 = _columns(boxes)
    return np.stack((x1, y1, x2 - x1, y2 - y1), axis=-1)


def clip_xyxy(boxes: np.ndarray, width: float | int, height: float | int) -> np.ndarray:
    """Cut ``(..., 4)`` xyxy boxes off at the borders of a ``width`` x ``height`` image."""
    x1, y1, x2, y2 = _columns(boxes)
    return np.stack((x1.clip(0, width), y1.clip(0, height), x2.clip(0, width), y2.clip(0, height)), axis=-1)


def area_xyxy(boxes: Array) -> Array:
    """Area of ``(..., 4)`` xyxy boxes, ``(...)``, of numpy or torch; 0 for a box of negative width or height."""
    x1, y1, x2, y2 = _columns(boxes)
    return (x2 - x1).clip(0, None) * (y2 - y1).clip(0, None)


def iou_matrix(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of every box of ``a (n, 4)`` with every box of ``b (m, 4)``, both xyxy: ``(n, m)``.

    It is 0 for two boxes without area.
    """
    ax1, ay1, ax2, ay2 = _columns(a[:, None, :])
    bx1, by1, bx2, by2 = _columns(b[None, :, :])
    width = (np.minimum(ax2, bx2) - np.maximum(ax1, bx1)).clip(0, None)
    height = (np.minimum(ay2, by2) - np.maximum(ay1, by1)).clip(0, None)
    intersection = width * height
    union = area_xyxy(a)[:, None] + area_xyxy(b)[None, :] - intersection
    return intersection / union.clip(1e-12, None)


def shares_inside(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The share of a box ``(4,)`` that lies inside each of ``others (n, 4)``, all xyxy: ``(n,)``.

    COCO uses it as the overlap with a crowd.
    """
    corners = np.concatenate([np.maximum(others[:, :2], box[:2]), np.minimum(others[:, 2:], box[2:])], axis=1)
    return area_xyxy(corners) / max(float(area_xyxy(box)), 1e-9)
