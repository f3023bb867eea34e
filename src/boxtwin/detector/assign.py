"""Assign ground-truth boxes to predictions; mark predictions to ignore.

YOLOv3 (arXiv:1804.02767), section 2.1: an object is assigned to the anchor whose shape overlaps it best, at the cell of
its centre. Predictions that overlap an object by more than a threshold without being assigned to it have no objectness
loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from boxtwin.boxes import area_xyxy, xyxy_to_cxcywh
from boxtwin.detector.network import Anchors
from boxtwin.detector.options import AnchorsPerObject

# `iou_thresh` in Darknet's yolov4.cfg: further anchors that fit an object's shape this well answer for it too.
SHAPE_IOU_ENOUGH = 0.213


class Assignment(NamedTuple):
    """``positives`` pairs of a place and the object assigned to it; no place twice."""

    image: Int[Tensor, " positives"]
    place: Int[Tensor, " positives"]  # index into `boxtwin.detector.decode.Grid`
    object: Int[Tensor, " positives"]  # index into the batch's boxes


def assign(
    boxes: Float[Tensor, "objects 4"],
    box_image: Int[Tensor, " objects"],
    shapes: Sequence[tuple[int, int]],
    anchors: Anchors,
    strides: Sequence[int],
    *,
    anchors_per_object: AnchorsPerObject,
    cells_per_object: int,
) -> Assignment:
    """Assign the objects of a batch to places.

    Args:
        boxes: xyxy, pixels of the network input, all images in one list.
        box_image: the image of the batch each belongs to.
        shapes: rows and columns of each head's map, coarsest first.
        anchors, strides: of the network.
        anchors_per_object, cells_per_object: see `LossOptions`.

    Of two objects with the same place, one that has its centre there comes first, then one that has the place's anchor
    as its best, then the later one, as in Darknet.
    """
    device = boxes.device
    count = len(boxes)
    # 1. Shape IoU of every object with every anchor of every head.
    anchor_sizes = torch.tensor([anchor for group in anchors for anchor in group], device=device)
    cxcywh = xyxy_to_cxcywh(boxes.float())
    intersection = torch.minimum(cxcywh[:, None, 2:], anchor_sizes).prod(dim=-1)
    union = cxcywh[:, 2:].prod(dim=-1)[:, None] + anchor_sizes.prod(dim=-1) - intersection
    overlap = intersection / union.clamp(min=1e-12)
    best = torch.zeros_like(overlap, dtype=torch.bool)
    best.scatter_(1, overlap.argmax(dim=1, keepdim=True), True)
    wanted = best | (overlap > SHAPE_IOU_ENOUGH) if anchors_per_object is AnchorsPerObject.iou_above else best
    owner, anchor = wanted.nonzero(as_tuple=True)

    # 2. Of each anchor: its head's stride, rows and columns, and where its places begin in the grid.
    table = []
    start = 0
    for (height, width), group, step in zip(shapes, anchors, strides, strict=True):
        for _ in group:
            table.append((step, height, width, start))
            start += height * width
    stride, rows, columns, first = torch.tensor(table, device=device)[anchor].unbind(dim=1)
    x, y = cxcywh[owner, 0] / stride, cxcywh[owner, 1] / stride
    # A centre on the right or lower border of the image belongs to the last cell.
    column, row = x.floor().long().clamp(min=0).minimum(columns - 1), y.floor().long().clamp(min=0).minimum(rows - 1)
    rank = owner + len(boxes) * best[owner, anchor]
    places, owners, ranks = [first + row * columns + column], [owner], [rank + 2 * len(boxes)]
    if cells_per_object == 3:
        beside = column + torch.where(x - column < 0.5, -1, 1)
        over = row + torch.where(y - row < 0.5, -1, 1)
        for near_column, near_row in ((beside, row), (column, over)):
            exists = (near_column >= 0) & (near_column < columns) & (near_row >= 0) & (near_row < rows)
            places.append((first + near_row * columns + near_column)[exists])
            owners.append(owner[exists])
            ranks.append(rank[exists])
    place, owner, rank = torch.cat(places), torch.cat(owners), torch.cat(ranks)

    # 3. One object per place: the highest rank wins.
    key = box_image[owner] * start + place
    images = int(box_image.max()) + 1 if count else 0
    winner = torch.full((images * start,), -1, dtype=torch.long, device=device)
    winner.scatter_reduce_(0, key, rank, reduce="amax")
    keys = (winner >= 0).nonzero().squeeze(1)
    return Assignment(image=keys // max(start, 1), place=keys % max(start, 1), object=winner[keys] % max(count, 1))


def ignored(
    predicted: Float[Tensor, "batch places 4"],
    boxes: Float[Tensor, "objects 4"],
    box_image: Int[Tensor, " objects"],
    *,
    ignore_iou: float,
) -> Bool[Tensor, "batch places"]:
    """Predictions (xyxy) that overlap some object of their image by more than ``ignore_iou``."""
    # Every object with the predictions of its own image only: objects * places, no padding to the fullest image.
    # Coordinate by coordinate, each in one piece of memory: there are millions of pairs in a batch of many objects.
    x1, y1, x2, y2 = predicted.movedim(-1, 0).contiguous()[:, box_image]
    left, top, right, bottom = boxes.T[:, :, None]
    width = (torch.minimum(x2, right) - torch.maximum(x1, left)).clamp(min=0)
    height = (torch.minimum(y2, bottom) - torch.maximum(y1, top)).clamp(min=0)
    intersection = width * height
    union = area_xyxy(predicted)[box_image] + area_xyxy(boxes)[:, None] - intersection
    best = predicted.new_zeros(predicted.shape[:2])
    overlap = intersection / union.clamp(min=1e-12)
    best.scatter_reduce_(0, box_image[:, None].expand_as(overlap), overlap, reduce="amax")
    return best > ignore_iou
