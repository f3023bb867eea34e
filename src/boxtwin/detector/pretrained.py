"""Initial weights from a Darknet file or from another cell's detector, such as one trained on simulated images."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from boxtwin.detector.darknet_weights import DarknetReport, convolution_of, read_darknet, tensors_of
from boxtwin.detector.trained import FILE, read_detector
from boxtwin.detector.yolov3 import Anchors, YOLOv3
from boxtwin.errors import InputError

ENDING = Path(FILE).suffix


def read_weights(network: YOLOv3, path: Path) -> DarknetReport:
    """Read initial weights into a network: a cell's ``detector.safetensors``, or Darknet's file.

    Predictions of other classes are left as they are. Grey and colour go over into each other: the first convolution
    is summed over its channels, or shared out to three equal ones, and grey images have the same outputs.

    Raises:
        InputError: the file cannot be read, or is of another architecture.
    """
    if path.suffix != ENDING:
        return read_darknet(network, path)
    source = read_detector(path).module.network
    if source.architecture != network.architecture:
        raise InputError(f"{path} holds a {source.architecture}; its weights do not fit a {network.architecture}")
    loaded, skipped = [], []
    with torch.no_grad():
        for index, (own, other) in enumerate(zip(network.layers(), source.layers(), strict=True)):
            if convolution_of(own).out_channels == convolution_of(other).out_channels:
                for tensor, value in zip(tensors_of(own), tensors_of(other), strict=True):
                    tensor.copy_(_in_channels(value, tensor) if tensor.ndim == 4 else value)
                loaded.append(index)
            else:
                skipped.append(index)
    return DarknetReport(tuple(loaded), tuple(skipped), 0)


def anchors_of(path: Path) -> Anchors:
    """The anchors of a cell's ``detector.safetensors``, in pixels as it was trained.

    Raises:
        InputError: it is another file; Darknet's weights hold no anchors.
    """
    if path.suffix != ENDING:
        raise InputError(f"{path} holds no anchors; only a {FILE} does. Choose detector.anchors=kmeans or published")
    return read_detector(path).module.network.anchors


def _in_channels(value: Tensor, like: Tensor) -> Tensor:
    if value.shape[1] == like.shape[1]:
        return value
    return value.sum(dim=1, keepdim=True) if like.shape[1] == 1 else value.expand_as(like) / like.shape[1]
