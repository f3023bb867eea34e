"""From raw maps to boxes and back, and to detections in pixels of the image file.

Notation of YOLOv3 (arXiv:1804.02767), section 2.1: b_x = sigmoid(t_x) + c_x, b_w = p_w exp(t_w); here b_x is
multiplied by the head's stride and p_w is in pixels, so that boxes are too.

``scale_xy`` is Darknet's ``scale_x_y`` (A. Bochkovskiy et al., YOLOv4, arXiv:2004.10934, section 3.4, "eliminate grid
sensitivity"): b_x = s sigmoid(t_x) - (s - 1) / 2 + c_x. With 1, the paper's, a centre stays inside its cell; with 2 it
reaches half a cell into the neighbours, so that they can answer for an object too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from boxtwin.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from boxtwin.datasets.sample import Detections
from boxtwin.detector.network import Anchors, Raw
from boxtwin.detector.nms import detections_in_file

# Widths stay below 62.5 times the anchor's, as detectron2's box regression holds them (`_DEFAULT_SCALE_CLAMP`), so that
# exp cannot overflow in an early step.
MAX_LOG_SCALE = math.log(1000 / 16)
# A centre on the border of its cell has an infinite t_x; this far inside (in cells) it has not.
CELL_MARGIN = 1e-6


class Grid(NamedTuple):
    """The N places of all heads where a box can be predicted: head by head, anchor by anchor, row by row."""

    cells: Float[Tensor, "places 2"]  # c_x, c_y: column and row
    anchors: Float[Tensor, "places 2"]  # p_w, p_h, pixels
    strides: Float[Tensor, " places"]


def make_grid(
    shapes: Sequence[tuple[int, int]], anchors: Anchors, strides: Sequence[int], device: torch.device
) -> Grid:
    """The grid of heads with ``shapes`` (rows, columns), coarsest first."""
    cells, sizes, steps = [], [], []
    for (rows, columns), group, stride in zip(shapes, anchors, strides, strict=True):
        row, column = torch.meshgrid(
            torch.arange(rows, device=device), torch.arange(columns, device=device), indexing="ij"
        )
        cells.append(torch.stack((column, row), dim=-1).view(-1, 2).float().repeat(len(group), 1))
        sizes.append(torch.tensor(group, device=device).repeat_interleave(rows * columns, dim=0))
        steps.append(torch.full((len(group) * rows * columns,), float(stride), device=device))
    return Grid(torch.cat(cells), torch.cat(sizes), torch.cat(steps))


def flatten(raw: Raw) -> Float[Tensor, "batch places channels"]:
    """All heads' maps in one, in the order of `Grid`, in float32."""
    return torch.cat([level.float().flatten(1, 3) for level in raw], dim=1)


def grid_of(raw: Raw, anchors: Anchors, strides: Sequence[int]) -> Grid:
    """The `Grid` that belongs to raw maps."""
    return make_grid([(level.shape[2], level.shape[3]) for level in raw], anchors, strides, raw[0].device)


def to_boxes(
    t: Float[Tensor, "*n 4"],
    cells: Float[Tensor, "*#n 2"],
    anchors: Float[Tensor, "*#n 2"],
    strides: Float[Tensor, "*#n"],
    *,
    scale_xy: float,
) -> Float[Tensor, "*n 4"]:
    """t_x, t_y, t_w, t_h -> boxes xyxy in pixels of the network input."""
    # b_x = s sigmoid(t_x) - (s - 1) / 2 + c_x
    centre = (scale_xy * torch.sigmoid(t[..., :2]) - (scale_xy - 1) / 2 + cells) * strides[..., None]
    size = anchors * torch.exp(t[..., 2:].clamp(max=MAX_LOG_SCALE))  # b_w = p_w exp(t_w)
    return cxcywh_to_xyxy(torch.cat((centre, size), dim=-1))


def encode(
    boxes: Float[Tensor, "n 4"],
    cells: Float[Tensor, "n 2"],
    anchors: Float[Tensor, "n 2"],
    strides: Float[Tensor, " n"],
    *,
    scale_xy: float,
) -> Float[Tensor, "n 4"]:
    """The inverse of `to_boxes`: boxes xyxy whose centres their ``cells`` can reach -> t_x, t_y, t_w, t_h."""
    cxcywh = xyxy_to_cxcywh(boxes)
    fraction = (cxcywh[:, :2] / strides[:, None] - cells + (scale_xy - 1) / 2) / scale_xy
    offset = torch.logit(fraction, eps=CELL_MARGIN)
    return torch.cat((offset, torch.log(cxcywh[:, 2:] / anchors)), dim=-1)


def decode(
    raw: Raw, anchors: Anchors, strides: Sequence[int], *, scale_xy: float
) -> tuple[Float[Tensor, "batch places 4"], Float[Tensor, "batch places"], Float[Tensor, "batch places classes"]]:
    """Raw maps -> boxes (xyxy, pixels of the letterboxed image), objectness and class probabilities."""
    values = flatten(raw)
    grid = grid_of(raw, anchors, strides)
    boxes = to_boxes(values[..., :4], grid.cells, grid.anchors, grid.strides, scale_xy=scale_xy)
    return boxes, torch.sigmoid(values[..., 4]), torch.sigmoid(values[..., 5:])


def boxes_and_scores(
    raw: Raw, anchors: Anchors, strides: Sequence[int], *, scale_xy: float
) -> tuple[Float[Tensor, "batch places 4"], Float[Tensor, "batch places classes"]]:
    """Raw maps -> boxes (xyxy, pixels of the letterboxed image) and scores, objectness * class probability."""
    boxes, objectness, classes = decode(raw, anchors, strides, scale_xy=scale_xy)
    return boxes, objectness[..., None] * classes


def detect(
    raw: Raw,
    anchors: Anchors,
    strides: Sequence[int],
    letterbox: Float[Tensor, "batch 3"],
    file_size: Int[Tensor, "batch 2"],
    own: Float[Tensor, "batch 4"],
    *,
    scale_xy: float,
    score_floor: float,
    nms_iou: float,
    max_detections: int,
) -> list[Detections]:
    """Raw maps of a batch -> its detections, image by image, in pixels of the image files.

    A detection's score is objectness * class probability; each class of a box counts by itself, as in Darknet.

    Args:
        letterbox: scale, pad x, pad y of each image (see `Batch`).
        file_size: width and height of each image file; boxes are clipped to it.
        own: part of the file (xyxy) that each image answers for; what has its centre elsewhere is left out.
        score_floor: detections below are left out before NMS.
        nms_iou: two detections of one class that overlap by more are one.
        max_detections: per image, the best are kept.
    """
    boxes, scores = (tensor.cpu().numpy() for tensor in boxes_and_scores(raw, anchors, strides, scale_xy=scale_xy))
    geometry, sizes, parts = (tensor.cpu().numpy() for tensor in (letterbox.float(), file_size, own))
    return [
        detections_in_file(
            boxes[index],
            scores[index],
            letterbox=geometry[index],
            file_size=sizes[index],
            own=parts[index],
            score_floor=score_floor,
            nms_iou=nms_iou,
            max_detections=max_detections,
        )
        for index in range(len(boxes))
    ]
