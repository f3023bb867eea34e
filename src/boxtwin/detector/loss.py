"""The training loss: box regression, objectness and classes.

YOLOv3 (arXiv:1804.02767), sections 2.1 and 2.2, with binary cross-entropy for objectness and classes. For boxes CIoU
(Z. Zheng et al., "Distance-IoU Loss", AAAI 2020, arXiv:1911.08287) instead of the paper's squared error on t.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from boxtwin.boxes import area_xyxy
from boxtwin.detector.assign import assign, ignored
from boxtwin.detector.decode import flatten, grid_of, to_boxes
from boxtwin.detector.network import Anchors, Raw
from boxtwin.detector.options import LossOptions, ObjectnessTarget

BOX_WEIGHT = 5.0  # YOLOX (arXiv:2107.08430), whose loss is a mean per positive too; objectness and classes weigh 1
IGNORE_IOU = 0.5  # YOLOv3, section 2.1
EPS = 1e-7  # keeps quotients finite for boxes without area; far below a pixel


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
) -> Losses:
    """The loss of a batch, in float32 whatever the precision of ``raw``.

    Every term is a sum over its predictions, divided by the number of positives plus the number of images: a mean per
    object that stays calm in batches with few objects or none.

    Args:
        raw: what the network gave, coarsest head first.
        boxes: objects of all images, xyxy, pixels of the network input.
        labels: their classes.
        box_image: the image of the batch each belongs to.
        anchors, strides: of the network.
        options: targets of objectness, and how objects are assigned.
    """
    scale_xy = options.scale_xy
    with torch.autocast(raw[0].device.type, enabled=False):
        values = flatten(raw)
        grid = grid_of(raw, anchors, strides)
        shapes = [(level.shape[2], level.shape[3]) for level in raw]
        boxes = boxes.float()
        # 1. Assign objects to predictions; mark predictions to ignore.
        image, place, assigned = assign(
            boxes,
            box_image,
            shapes,
            anchors,
            strides,
            anchors_per_object=options.anchors_per_object,
            cells_per_object=options.cells_per_object,
        )
        with torch.no_grad():
            predicted = to_boxes(values[..., :4], grid, scale_xy=scale_xy)
            counted = ~ignored(predicted, boxes, box_image, ignore_iou=IGNORE_IOU)
            counted[image, place] = True
            target = torch.zeros_like(values[..., 4])
            if options.objectness_target is ObjectnessTarget.iou:
                target[image, place] = paired_iou(predicted[image, place], boxes[assigned])
            else:
                target[image, place] = 1.0
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
