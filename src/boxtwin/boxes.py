"""Box formats, clipping and overlap, for numpy arrays and torch tensors alike.

Formats, all with the last axis of length 4, in pixels unless said (continuous coordinates: a box that covers the first
pixel only is ``(0, 0, 1, 1)``):

* ``xyxy``: left, top, right, bottom;
* ``xywh``: left, top, width, height, as COCO files write them;
* ``cxcywh``: centre, width, height, as the YOLO papers write them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

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


def _library(array: Array) -> Any:
    """The module numpy or torch. The latter is imported late: reading and checking data needs no torch."""
    if isinstance(array, np.ndarray | np.generic):
        return np
    import torch

    return torch


def _stack(columns: tuple[Array, Array, Array, Array]) -> Array:
    stacked: Array = _library(columns[0]).stack(columns, -1)
    return stacked


def xyxy_to_xywh(boxes: Array) -> Array:
    """``(..., 4)`` left, top, right, bottom -> ``(..., 4)`` left, top, width, height."""
    x1, y1, x2, y2 = _columns(boxes)
    return _stack((x1, y1, x2 - x1, y2 - y1))


def xyxy_to_cxcywh(boxes: Array) -> Array:
    """``(..., 4)`` left, top, right, bottom -> ``(..., 4)`` centre x, centre y, width, height."""
    x1, y1, x2, y2 = _columns(boxes)
    return _stack(((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1))


def cxcywh_to_xyxy(boxes: Array) -> Array:
    """``(..., 4)`` centre x, centre y, width, height -> ``(..., 4)`` left, top, right, bottom."""
    cx, cy, w, h = _columns(boxes)
    return _stack((cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2))


def clip_xyxy(boxes: Array, width: float | int, height: float | int) -> Array:
    """Cut ``(..., 4)`` xyxy boxes off at the borders of a ``width`` x ``height`` image."""
    x1, y1, x2, y2 = _columns(boxes)
    return _stack((x1.clip(0, width), y1.clip(0, height), x2.clip(0, width), y2.clip(0, height)))


def area_xyxy(boxes: Array) -> Array:
    """Area of ``(..., 4)`` xyxy boxes, ``(...)``; 0 for a box of negative width or height."""
    x1, y1, x2, y2 = _columns(boxes)
    return (x2 - x1).clip(0, None) * (y2 - y1).clip(0, None)


def iou_matrix(a: Array, b: Array) -> Array:
    """Intersection over union of every box of ``a (n, 4)`` with every box of ``b (m, 4)``, both xyxy: ``(n, m)``.

    It is 0 for two boxes without area.
    """
    ax1, ay1, ax2, ay2 = _columns(a[:, None, :])
    bx1, by1, bx2, by2 = _columns(b[None, :, :])
    library = _library(a)
    width = (library.minimum(ax2, bx2) - library.maximum(ax1, bx1)).clip(0, None)
    height = (library.minimum(ay2, by2) - library.maximum(ay1, by1)).clip(0, None)
    intersection: Array = width * height
    union = area_xyxy(a)[:, None] + area_xyxy(b)[None, :] - intersection
    return intersection / union.clip(1e-12, None)
