"""Initial weights from a Darknet file or from another cell's detector, such as one trained on simulated images."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from torch import Tensor

from boxtwin.detector.checkpoint import ENTRY, FILE, read_detector
from boxtwin.detector.darknet_weights import DarknetReport, convolution_of, read_darknet, tensors_of
from boxtwin.detector.network import Anchors, YOLOv3
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


def weights_digest(path: Path) -> str:
    """Sha256 of what a file of initial weights gives to a network: the same detector made again has the same.

    Of a ``detector.safetensors`` tensors and anchors count, not the run that it comes from. Darknet's files hold
    nothing but weights.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"detector.weights={path} cannot be read: {error.strerror}") from None
    if path.suffix != ENDING:
        return hashlib.sha256(content).hexdigest()
    # https://huggingface.co/docs/safetensors: length of the header (8 bytes), header, tensors.
    try:
        end = 8 + int.from_bytes(content[:8], "little")
        header = json.loads(content[8:end])
        about = json.loads(header.pop("__metadata__")[ENTRY])["hyper_parameters"]
    except (ValueError, KeyError, TypeError):
        raise InputError(f"detector.weights={path} is no {FILE}, or is damaged") from None
    given = {"tensors": header, **{key: about.get(key) for key in ("architecture", "anchors")}}
    total = hashlib.sha256(json.dumps(given, sort_keys=True).encode())
    total.update(content[end:])
    return total.hexdigest()


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
