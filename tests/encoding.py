"""From boxes to the outputs of a network, the inverse of decoding."""

from __future__ import annotations

import torch

from boxtwin.detector.decode import Grid


def encode(boxes: torch.Tensor, grid: Grid, *, scale_xy: float) -> torch.Tensor:
    """The inverse of `to_boxes`."""
    centres, sizes = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    fraction = (centres / grid.strides[:, None] - grid.cells + (scale_xy - 1) / 2) / scale_xy
    return torch.cat((torch.logit(fraction, eps=1e-6), torch.log(sizes / grid.anchors)), dim=-1)
