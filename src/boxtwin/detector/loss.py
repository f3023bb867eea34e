"""The training loss: box regression, objectness and classes.

YOLOv3 (arXiv:1804.02767), sections 2.1 and 2.2, with binary cross-entropy for objectness and classes. For boxes CIoU
(Z. Zheng et al., "Distance-IoU Loss", AAAI 2020, arXiv:1911.08287) instead of the paper's squared error on t.

An object is assigned to the anchor whose shape overlaps it best, at the cell of its centre; here also to all anchors
whose shape IoU is above `SHAPE_IOU`, as more positives pay where images are few. Predictions that overlap an object by
more than `IGNORE_IOU` without being assigned to it have no objectness loss, nor do those that lie in a crowd by more
than that part of their area: which of its objects are found is not known. COCO's evaluation ignores the same ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from boxtwin.boxes import area_xyxy
from boxtwin.detector.decode import flatten, grid_of, to_boxes
from boxtwin.detector.network import Anchors, Raw
from boxtwin.detector.options import LossOptions, ObjectnessTarget

BOX_WEIGHT = 5.0  # YOLOX (arXiv:2107.08430), whose loss is a mean per positive too; objectness and classes weigh 1
SHAPE_IOU = 0.213  # `iou_thresh` in Darknet's yolov4.cfg
IGNORE_IOU = 0.5  # YOLOv3, section 2.1
EPS = 1e-7  # keeps quotients finite for boxes without area; far below a pixel


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
    cells_per_object: int,
) -> Assignment:
    """Assign the objects of a batch to places; arguments are those of `detection_loss`.

    ``shapes`` are rows and columns of each head's map, coarsest first. Of two objects with the same place, one that has
    its centre there comes first, then one that has the place's anchor as its best, then the later one, as in Darknet.
    """
    device, count = boxes.device, len(boxes)
    # 1. Shape IoU of every object with every anchor of every head.
    anchor_sizes = torch.tensor([anchor for group in anchors for anchor in group], device=device)
    centres, sizes = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    intersection = torch.minimum(sizes[:, None], anchor_sizes).prod(dim=-1)
    union = sizes.prod(dim=-1)[:, None] + anchor_sizes.prod(dim=-1) - intersection
    overlap = intersection / union.clamp(min=1e-12)
    best = torch.zeros_like(overlap, dtype=torch.bool)
    best.scatter_(1, overlap.argmax(dim=1, keepdim=True), True)
    owner, anchor = (best | (overlap > SHAPE_IOU)).nonzero(as_tuple=True)

    # 2. Of each anchor: its head's stride, rows and columns, and where its places begin in the grid.
    table, start = [], 0
    for (height, width), group, step in zip(shapes, anchors, strides, strict=True):
        for _ in group:
            table.append((step, height, width, start))
            start += height * width
    stride, rows, columns, first = torch.tensor(table, device=device)[anchor].unbind(dim=1)
    x, y = centres[owner, 0] / stride, centres[owner, 1] / stride
    # A centre on the right or lower border of the image belongs to the last cell.
    column, row = x.floor().long().clamp(min=0).minimum(columns - 1), y.floor().long().clamp(min=0).minimum(rows - 1)
    rank = owner + count * best[owner, anchor]
    places, owners, ranks = [first + row * columns + column], [owner], [rank + 2 * count]
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
    predicted: Float[Tensor, "batch places 4"], boxes: Float[Tensor, "objects 4"], box_image: Int[Tensor, " objects"]
) -> Bool[Tensor, "batch places"]:
    """Predictions (xyxy) that overlap some object of their image by more than `IGNORE_IOU`."""
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
    return best > IGNORE_IOU


class Crowds(NamedTuple):
    """Areas that hold objects without boxes of their own."""

    boxes: Float[Tensor, "crowds 4"]  # xyxy, pixels of the network input
    image: Int[Tensor, " crowds"]  # the image of the batch each belongs to


def in_crowds(predicted: Float[Tensor, "batch places 4"], crowds: Crowds) -> Bool[Tensor, "batch places"]:
    """Predictions (xyxy) of which more than `IGNORE_IOU` of the area lies in a crowd of their image."""
    result = torch.zeros(predicted.shape[:2], dtype=torch.bool, device=predicted.device)
    for (left, top, right, bottom), image in zip(crowds.boxes.float(), crowds.image, strict=True):
        x1, y1, x2, y2 = predicted[image].unbind(dim=-1)
        width = (torch.minimum(x2, right) - torch.maximum(x1, left)).clamp(min=0)
        height = (torch.minimum(y2, bottom) - torch.maximum(y1, top)).clamp(min=0)
        result[image] |= width * height > IGNORE_IOU * area_xyxy(predicted[image])
    return result


class Losses(NamedTuple):
    """The loss and its weighted terms, scalars: ``total = box + objectness + classes``."""

    total: Float[Tensor, ""]
    box: Float[Tensor, ""]
    objectness: Float[Tensor, ""]
    classes: Float[Tensor, ""]


def paired_iou(a: Float[Tensor, "n 4"], b: Float[Tensor, "n 4"]) -> Float[Tensor, " n"]:
    """IoU of boxes pair by pair, both xyxy."""
    low, high = torch.maximum(a[:, :2], b[:, :2]), torch.minimum(a[:, 2:], b[:, 2:])
    intersection = (high - low).clamp(min=0).prod(dim=1)
    return intersection / (area_xyxy(a) + area_xyxy(b) - intersection + EPS)


def complete_iou(a: Float[Tensor, "n 4"], b: Float[Tensor, "n 4"]) -> Float[Tensor, " n"]:
    """CIoU of boxes pair by pair, both xyxy (Zheng et al. 2020, equations 7 to 11): IoU - rho^2 / c^2 - alpha v."""
    iou = paired_iou(a, b)
    size_a, size_b = a[:, 2:] - a[:, :2], b[:, 2:] - b[:, :2]
    # rho^2: squared distance of the centres; c^2: squared diagonal of the smallest box around both.
    centre_distance = ((a[:, :2] + a[:, 2:] - b[:, :2] - b[:, 2:]) / 2).square().sum(dim=1)
    around = torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])
    diagonal = around.square().sum(dim=1) + EPS
    # v: difference of the aspect ratios' angles; alpha weighs it and carries no gradient (equation 11).
    angle_a = torch.atan(size_a[:, 0] / (size_a[:, 1] + EPS))
    angle_b = torch.atan(size_b[:, 0] / (size_b[:, 1] + EPS))
    v = 4 / math.pi**2 * (angle_a - angle_b).square()
    with torch.no_grad():
        alpha = v / (1 - iou + v + EPS)
    return iou - centre_distance / diagonal - alpha * v


def detection_loss(
    raw: Raw,
    boxes: Float[Tensor, "objects 4"],
    labels: Int[Tensor, " objects"],
    box_image: Int[Tensor, " objects"],
    anchors: Anchors,
    strides: Sequence[int],
    options: LossOptions,
    crowds: Crowds | None = None,
) -> Losses:
    """The loss of a batch, in float32 whatever the precision of ``raw``.

    Every term is a sum over its predictions, divided by the number of positives plus the number of images: a mean per
    object that stays calm in batches with few objects or none.

    Args:
        raw: maps of the network, coarsest head first.
        boxes: objects of all images, xyxy, pixels of the network input.
        labels: their classes.
        box_image: the image of the batch each belongs to.
        anchors, strides: of the network.
        crowds: areas that are neither objects nor background.
    """
    scale_xy = options.scale_xy
    shapes = [(level.shape[2], level.shape[3]) for level in raw]
    with torch.autocast(raw[0].device.type, enabled=False):
        values = flatten(raw)
        grid = grid_of(raw, anchors, strides)
        boxes = boxes.float()
        # 1. Assign objects to predictions; mark predictions to ignore.
        image, place, assigned = assign(
            boxes, box_image, shapes, anchors, strides, cells_per_object=options.cells_per_object
        )
        with torch.no_grad():
            predicted = to_boxes(values[..., :4], grid, scale_xy=scale_xy)
            counted = ~ignored(predicted, boxes, box_image)
            if crowds is not None:
                counted &= ~in_crowds(predicted, crowds)
            counted[image, place] = True
            target = torch.zeros_like(values[..., 4])
            follows_iou = options.objectness_target is ObjectnessTarget.iou
            target[image, place] = paired_iou(predicted[image, place], boxes[assigned]) if follows_iou else 1.0
        normaliser = len(assigned) + len(values)

        # 2. Objectness, over all predictions that are not ignored.
        objectness = F.binary_cross_entropy_with_logits(values[..., 4], target, reduction="none")
        objectness_term = (objectness * counted).sum() * (1 / normaliser)

        # 3. Boxes and classes, over the positives.
        positive = values[image, place]
        placed = to_boxes(positive[:, :4], grid.at(place), scale_xy=scale_xy)
        box_term = (1 - complete_iou(placed, boxes[assigned])).sum() * (BOX_WEIGHT / normaliser)
        class_target = F.one_hot(labels[assigned].long(), values.shape[-1] - 5).to(values.dtype)
        class_errors = F.binary_cross_entropy_with_logits(positive[:, 5:], class_target, reduction="sum")
        class_term = class_errors * (1 / normaliser)
    return Losses(box_term + objectness_term + class_term, box_term, objectness_term, class_term)
