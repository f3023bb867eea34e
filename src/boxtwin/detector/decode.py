"""From raw maps to boxes.

Notation of YOLOv3 (arXiv:1804.02767), section 2.1: b_x = sigmoid(t_x) + c_x, b_w = p_w exp(t_w); here b_x is
multiplied by the head's stride and p_w is in pixels, so that boxes are too.

``scale_xy`` is Darknet's ``scale_x_y`` (A. Bochkovskiy et al., YOLOv4, arXiv:2004.10934, section 3.4, "eliminate grid
sensitivity"): b_x = s sigmoid(t_x) - (s - 1) / 2 + c_x. With 1, the paper's, a centre stays inside its cell; with 2 it
reaches half a cell into the neighbours, so that an object can be assigned to them too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from boxtwin.detector.network import Anchors, Raw

# Widths stay below 62.5 times the anchor's, as detectron2's box regression holds them (`_DEFAULT_SCALE_CLAMP`), so that
# exp cannot overflow in an early step.
MAX_LOG_SCALE = math.log(1000 / 16)


class Grid(NamedTuple):
    """The N places of all heads where a box can be predicted: head by head, anchor by anchor, row by row."""

    cells: Float[Tensor, "places 2"]  # c_x, c_y: column and row
    anchors: Float[Tensor, "places 2"]  # p_w, p_h, pixels
    strides: Float[Tensor, " places"]

    def at(self, places: Int[Tensor, " n"]) -> Grid:
        """Some of the places."""
        return Grid(*(values[places] for values in self))


def grid_of(raw: Raw, anchors: Anchors, strides: Sequence[int]) -> Grid:
    """The `Grid` that belongs to raw maps, coarsest head first."""
    cells, sizes, steps, device = [], [], [], raw[0].device
    for level, group, stride in zip(raw, anchors, strides, strict=True):
        rows, columns = level.shape[2:4]
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


def to_boxes(t: Float[Tensor, "*n 4"], grid: Grid, *, scale_xy: float) -> Float[Tensor, "*n 4"]:
    """t_x, t_y, t_w, t_h at the places of a grid -> boxes xyxy in pixels of the network input."""
    # b_x = s sigmoid(t_x) - (s - 1) / 2 + c_x
    centre = (scale_xy * torch.sigmoid(t[..., :2]) - (scale_xy - 1) / 2 + grid.cells) * grid.strides[..., None]
    size = grid.anchors * torch.exp(t[..., 2:].clamp(max=MAX_LOG_SCALE))  # b_w = p_w exp(t_w)
    return torch.cat((centre - size / 2, centre + size / 2), dim=-1)


def boxes_and_scores(
    raw: Raw, anchors: Anchors, strides: Sequence[int], *, scale_xy: float
) -> tuple[Float[Tensor, "batch places 4"], Float[Tensor, "batch places classes"]]:
    """Raw maps -> boxes (xyxy, pixels of the letterboxed image) and scores, objectness * class probability."""
    values = flatten(raw)
    boxes = to_boxes(values[..., :4], grid_of(raw, anchors, strides), scale_xy=scale_xy)
    return boxes, torch.sigmoid(values[..., 4:5]) * torch.sigmoid(values[..., 5:])
