"""From raw maps to boxes and back, and to detections in pixels of the image file.

Notation of YOLOv3 (arXiv:1804.02767), section 2.1: b_x = sigmoid(t_x) + c_x, b_w = p_w exp(t_w); here b_x is
multiplied by the head's stride and p_w is in pixels, so that boxes are too.

``scale_xy`` is Darknet's ``scale_x_y`` (A. Bochkovskiy et al., YOLOv4, arXiv:2004.10934, section 3.4, "eliminate grid
sensitivity"): b_x = s sigmoid(t_x) - (s - 1) / 2 + c_x. With 1, the paper's, a centre stays inside its cell; with 2 it
reaches half a cell into the neighbours, so that they can answer for an object too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, cast

import cv2
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from boxtwin.boxes import clip_xyxy, cxcywh_to_xyxy, xyxy_to_cxcywh
from boxtwin.datasets.sample import Detections
from boxtwin.detector.yolov3 import Anchors, Raw

# Widths stay below 62.5 times the anchor's, as detectron2's box regression holds them (`_DEFAULT_SCALE_CLAMP`), so that
# exp cannot overflow in an early step.
MAX_LOG_SCALE = math.log(1000 / 16)
# A centre on the border of its cell has an infinite t_x; this far inside (in cells) it has not.
CELL_MARGIN = 1e-6
# Candidates that NMS looks at per image; RetinaNet and detectron2 keep 1,000 per level.
MAX_CANDIDATES = 3000


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


def non_maximum_suppression(
    boxes: Float[np.ndarray, "n 4"],
    scores: Float[np.ndarray, " n"],
    labels: Int[np.ndarray, " n"],
    nms_iou: float,
    max_detections: int,
) -> Int[np.ndarray, " kept"]:
    """Indices of the boxes (xyxy) that stay when no two of a class overlap by more than ``nms_iou``, best first."""
    if len(boxes) == 0:
        return np.zeros(0, dtype=np.int64)
    # OpenCV keeps classes apart by shifting their boxes, which works for boxes that begin at 0 or later.
    low = boxes[:, :2].min(axis=0)
    xywh = np.concatenate((boxes[:, :2] - low, boxes[:, 2:] - boxes[:, :2]), axis=1).astype(np.float64)
    # The type stubs ask for lists; OpenCV takes arrays, and faster.
    found: Any = cv2.dnn.NMSBoxesBatched(
        cast(Any, xywh), cast(Any, scores.astype(np.float32)), cast(Any, labels.astype(np.int32)), 0.0, nms_iou
    )
    kept = np.asarray(found, dtype=np.int64).reshape(-1)
    return kept[np.argsort(-scores[kept], kind="stable")][:max_detections]


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
    boxes, objectness, classes = decode(raw, anchors, strides, scale_xy=scale_xy)
    all_scores = (objectness[..., None] * classes).cpu()
    all_boxes = boxes.cpu()
    geometry, sizes = letterbox.cpu().float(), file_size.cpu()
    found = []
    for index, image_scores in enumerate(all_scores):
        flat = image_scores.flatten()
        candidates = torch.nonzero(flat >= score_floor).squeeze(1)
        if len(candidates) > MAX_CANDIDATES:
            candidates = candidates[torch.topk(flat[candidates], MAX_CANDIDATES).indices]
        places = candidates // image_scores.shape[1]
        scale, pad_x, pad_y = geometry[index].tolist()
        offset = torch.tensor([pad_x, pad_y, pad_x, pad_y])
        in_file = (all_boxes[index, places] - offset) / scale
        left, top, right, bottom = own[index].tolist()
        x, y = (in_file[:, :2] + in_file[:, 2:]).div(2).unbind(dim=1)
        is_own = (x >= left) & (x < right) & (y >= top) & (y < bottom)
        in_file = clip_xyxy(in_file, float(sizes[index, 0]), float(sizes[index, 1]))
        # What lies in the letterbox's borders alone is no object of the image.
        visible = ((in_file[:, 2:] - in_file[:, :2]) > 0).all(dim=1) & is_own
        file_boxes = in_file[visible].numpy().astype(np.float64)
        scores = flat[candidates[visible]].numpy().astype(np.float64)
        labels = (candidates[visible] % image_scores.shape[1]).numpy()
        kept = non_maximum_suppression(file_boxes, scores, labels, nms_iou, max_detections)
        found.append(Detections(boxes=file_boxes[kept], scores=scores[kept], labels=labels[kept]))
    return found


def merge_tiles(
    found: Iterable[tuple[int, Detections]], *, nms_iou: float, max_detections: int
) -> dict[int, Detections]:
    """Detections by image id, those of an image's tiles in one.

    Tiles answer for parts that do not overlap (`Batch.own`); what is found twice is an object whose centre lies so near
    to the border of two parts that both tiles see it on their side.
    """
    by_image: dict[int, list[Detections]] = {}
    for image_id, detections in found:
        by_image.setdefault(image_id, []).append(detections)
    merged = {}
    for image_id, parts in by_image.items():
        if len(parts) == 1:
            merged[image_id] = parts[0]
            continue
        boxes, scores, labels = (np.concatenate(values) for values in zip(*parts, strict=True))
        kept = non_maximum_suppression(boxes, scores, labels, nms_iou, max_detections)
        merged[image_id] = Detections(boxes=boxes[kept], scores=scores[kept], labels=labels[kept])
    return merged
