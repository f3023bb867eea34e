"""Darknet's files: weights, read and written, and the configuration that belongs to them.

Weights, from ``save_weights_upto`` and ``load_weights_upto`` in Darknet's ``parser.c``, little-endian: int32 major,
minor, revision; the number of training images seen (int64 from version 0.2 on, int32 before); then, for each
convolution in the order of the configuration, float32: biases, if it is batch-normalised then scales, rolling means and
rolling variances, and weights (outputs, inputs, rows, columns).

Configurations (``.cfg``), for Darknet and OpenCV: layer by layer as the published ``yolov3.cfg``, ``yolov3-spp.cfg``,
``yolov3-tiny.cfg`` and ``yolov3-tiny_3l.cfg``; yolov3_nano has none but this one. Anchors are listed finest head first.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from boxtwin.detector.network import (
    ANCHORS_PER_HEAD,
    STRIDES,
    Convolution,
    Head,
    PyramidPool,
    Residual,
    SamePool,
    YOLOv3,
)
from boxtwin.detector.options import Architecture
from boxtwin.errors import InputError
from boxtwin.files import write_bytes_atomically

MOST_CLASSES = 1000  # of a file that was cut behind its first predictions


class DarknetReport(NamedTuple):
    """The convolutions that reading a weights file changed, counted from 0 in the file's order."""

    loaded: tuple[int, ...]
    skipped: tuple[int, ...]  # convolutions that keep the values they had
    seen: int  # images the file's network was trained on
    partly: tuple[int, ...] = ()  # of ``loaded``: predictions of which some classes keep the values they had

    @property
    def whole(self) -> bool:
        """Whether every weight of the network was read."""
        return not self.skipped and not self.partly

    def __str__(self) -> str:
        partly = f", {len(self.partly)} of them for some classes only" if self.partly else ""
        return f"{len(self.loaded)} convolutions read{partly}, {len(self.skipped)} left as they were"


def read_darknet(model: YOLOv3, path: Path | str) -> DarknetReport:
    """Read a Darknet weights file into ``model``.

    A network of one channel gets a colour file's first convolution summed over its channels: grey images have the same
    outputs. Prediction layers with another number of outputs (other classes) are left as they are, and so are all
    layers behind the end of a file that was cut after a whole layer, such as ``darknet53.conv.74``. A file that cannot
    be read, holds non-finite values or does not fit the architecture raises `InputError`.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"Darknet weights {path} cannot be read: {error.strerror}") from error
    seen, header = _header(content, path)
    tensors = [tensors_of(layer) for layer in model.layers()]
    channels, outputs = _file_shape(tensors, len(content) - header, path, model.architecture, header)

    values = torch.from_numpy(np.frombuffer(content, dtype="<f4", offset=header).astype(np.float32))
    if not bool(torch.isfinite(values).all()):
        raise InputError(f"Darknet weights {path} hold {int((~torch.isfinite(values)).sum())} non-finite values")
    loaded, skipped, start = [], [], 0
    with torch.no_grad():
        for index, (of_layer, in_file) in enumerate(zip(tensors, outputs, strict=True)):
            if start == len(values):
                skipped.append(index)
            elif in_file == len(of_layer[0]):
                for tensor in of_layer:
                    # Three equal channels in, or their weights' sum over one: the same outputs.
                    summed = channels // tensor.shape[1] if index == 0 and tensor.ndim == 4 else 1
                    end = start + tensor.numel() * summed
                    tensor.copy_(values[start:end].view(tensor.shape[0], summed, *tensor.shape[1:]).sum(dim=1))
                    start = end
                loaded.append(index)
            else:
                start += in_file * (1 + of_layer[-1][0].numel())
                skipped.append(index)
    return DarknetReport(tuple(loaded), tuple(skipped), seen)


def check_darknet(path: Path, architecture: Architecture) -> None:
    """Raise `InputError` if a weights file is of no network of an architecture, whatever its classes and channels.

    The size tells it; nothing but the header is read.
    """
    with torch.device("meta"):
        anchors = [[(1.0, 1.0)] * ANCHORS_PER_HEAD for _ in STRIDES[architecture]]
        network = YOLOv3(architecture, 1, anchors, channels=1)
    try:
        with path.open("rb") as file:
            _, header = _header(file.read(20), path)
        size = path.stat().st_size - header
    except OSError as error:
        raise InputError(f"Darknet weights {path} cannot be read: {error.strerror}") from None
    tensors = [tensors_of(layer) for layer in network.layers()]
    if not _is_cut_behind_predictions(tensors, size):
        _file_shape(tensors, size, path, architecture, header)


def _is_cut_behind_predictions(tensors: list[list[Tensor]], size: int) -> bool:
    """Whether a grey or colour network of some number of classes has a layer that ends after ``size`` bytes of values.

    `_file_shape` knows this for the classes of its network alone.
    """
    sizes = np.array([4 * sum(tensor.numel() for tensor in of_layer) for of_layer in tensors])
    predictions = [index for index, of_layer in enumerate(tensors) if len(of_layer) == 2]
    per_output = sizes[predictions] // [len(tensors[index][0]) for index in predictions]
    first = tensors[0][-1]
    colour = 4 * (3 - first.shape[1]) * first[:, 0].numel()
    for classes in range(1, MOST_CLASSES + 1):
        sizes[predictions] = per_output * ANCHORS_PER_HEAD * (5 + classes)
        ends = np.cumsum(sizes)
        if size in ends or size in ends + colour:
            return True
    return False


def _header(content: bytes, path: Path) -> tuple[int, int]:
    """From the first bytes of a file: the number of images that were seen, and how many bytes the header has."""
    if len(content) < 16:
        raise InputError(f"{path} is no Darknet weights file: it has {len(content)} bytes, its header alone needs 16")
    major, minor = struct.unpack_from("<2i", content)
    seen_format = "<q" if major * 10 + minor >= 2 and major < 1000 and minor < 1000 else "<i"
    (seen,) = struct.unpack_from(seen_format, content.ljust(20, b"\0"), 12)
    return seen, 12 + struct.calcsize(seen_format)


def write_darknet(model: YOLOv3, path: Path | str, *, seen: int) -> None:
    """Write ``model`` as a Darknet weights file, version 0.2.0; ``seen`` is the number of images it was trained on."""
    parts = [struct.pack("<3iq", 0, 2, 0, seen)]
    for layer in model.layers():
        parts += [tensor.detach().float().cpu().numpy().astype("<f4").tobytes() for tensor in tensors_of(layer)]
    write_bytes_atomically(Path(path), b"".join(parts))


def tensors_of(layer: Convolution | nn.Conv2d) -> list[Tensor]:
    """The tensors of one of `YOLOv3.layers` in the order of a Darknet file: biases first, weights last."""
    if isinstance(layer, Convolution):
        norm = layer.norm
        assert norm.running_mean is not None
        assert norm.running_var is not None
        return [norm.bias, norm.weight, norm.running_mean, norm.running_var, layer.conv.weight]
    assert layer.bias is not None
    return [layer.bias, layer.weight]


def _file_shape(
    tensors: list[list[Tensor]], size: int, path: Path, architecture: str, header: int
) -> tuple[int, list[int]]:
    """Image channels and outputs of each layer in a file with ``size`` bytes of values.

    They can differ from the model's in two ways: predictions of other classes, and colour where the model takes grey.
    """
    outputs = np.array([len(of_layer[0]) for of_layer in tensors])
    sizes = np.array([4 * sum(tensor.numel() for tensor in of_layer) for of_layer in tensors])
    # All prediction layers of a Darknet configuration have the same outputs, anchors * (5 + classes).
    predictions = [index for index, of_layer in enumerate(tensors) if len(of_layer) == 2]
    first = tensors[0][-1]
    ends_of = {
        channels: np.cumsum(sizes) + 4 * (channels - first.shape[1]) * first[:, 0].numel()
        for channels in sorted({first.shape[1], 3})
    }
    for channels, ends in ends_of.items():
        if size > 0 and size in ends:
            return channels, outputs.tolist()
    # Other classes: the whole network, or as many of its heads as the file has (yolov3-tiny is all of yolov3-tiny_3l
    # but its last head). A colour file of the whole network may have the size of a grey one of fewer heads.
    for count in range(len(predictions), 0, -1):
        for channels, ends in ends_of.items():
            fixed, per_output = _bytes(sizes, ends, outputs, predictions[:count])
            other, rest = divmod(size - fixed, per_output)
            # Darknet predicts 4 offsets and the objectness of at least one anchor, and one class.
            if not rest and other >= 6:
                outputs[predictions[:count]] = other
                return channels, outputs.tolist()
    ends = ends_of[max(ends_of)]
    fixed, per_output = _bytes(sizes, ends, outputs, predictions)
    raise InputError(
        f"Darknet weights {path} do not fit {architecture}: expected {header + int(ends[-1]):,} bytes "
        f"(with other classes, {header + fixed:,} plus {per_output:,} for each output of a prediction layer), "
        f"got {header + size:,}. Is it the file of another network, or cut off?"
    )


def _bytes(sizes: np.ndarray, ends: np.ndarray, outputs: np.ndarray, predictions: list[int]) -> tuple[int, int]:
    """Bytes up to the last of some prediction layers: of all other layers, and of one output of each of these."""
    fixed = int(ends[predictions[-1]] - sizes[predictions].sum())
    return fixed, int((sizes[predictions] // outputs[predictions]).sum())


def darknet_cfg(network: YOLOv3, side: int, scale_xy: float) -> str:
    """The text of a configuration for ``side`` x ``side`` images; ``scale_xy`` as in `boxtwin.detector.decode`.

    Its key ``scale_x_y`` is known to OpenCV and to A. Bochkovskiy's Darknet, not to the original, which takes 1.
    """
    sections = [_section("net", width=side, height=side, channels=network.channels)]  # then one for each layer
    groups, classes = network.anchors, network.num_classes
    anchors = ", ".join(f"{width:.9g},{height:.9g}" for group in reversed(groups) for width, height in group)
    yolo = {"anchors": anchors, "classes": classes, "num": sum(map(len, groups)), "scale_x_y": f"{scale_xy:g}"}
    ends, branch = [], 0  # numbers of layers, from 0: the last ones of the stages, and where the next head branches off
    for stage in network.stages:
        sections += [section for layer in stage.children() for section in _sections(layer)]
        ends.append(len(sections) - 2)
    for number, (head, skip) in enumerate(zip(network.heads, reversed(ends), strict=True)):
        assert isinstance(head, Head)
        if head.lateral is not None:
            sections += [_section("route", layers=branch - len(sections) + 1), *_sections(head.lateral)]
            sections += [_section("upsample", stride=2), _section("route", layers=f"-1,{skip}")]
        sections += [section for layer in head.neck for section in _sections(layer)]
        branch = len(sections) - (2 if head.branches_off_neck else 1)
        filters, finer = len(groups[number]) * (5 + classes), sum(map(len, groups[number + 1 :]))
        mask = ",".join(str(finer + place) for place in range(len(groups[number])))
        sections += [
            *_sections(head.out),
            _section("convolutional", size=1, stride=1, pad=1, filters=filters, activation="linear"),
            _section("yolo", mask=mask, **yolo),
        ]
    return "".join(sections)


def _section(name: str, **values: object) -> str:
    return f"[{name}]\n" + "".join(f"{key}={value}\n" for key, value in values.items()) + "\n"


def _sections(layer: nn.Module) -> list[str]:
    """One of the modules of a stage or a neck, as sections of a configuration."""
    match layer:
        case Convolution():
            filters, size, stride = layer.conv.out_channels, layer.conv.kernel_size[0], layer.conv.stride[0]
            values = {"batch_normalize": 1, "filters": filters, "size": size, "stride": stride, "pad": 1}
            return [_section("convolutional", **values, activation="leaky")]
        case Residual():
            shortcut = _section("shortcut", **{"from": -3, "activation": "linear"})
            return [*_sections(layer.squeeze), *_sections(layer.expand), shortcut]
        case PyramidPool():
            return [
                section
                for size, route in ((5, "-2"), (9, "-4"), (13, "-1,-3,-5,-6"))
                for section in (_section("maxpool", size=size, stride=1), _section("route", layers=route))
            ]
    return [_section("maxpool", size=2, stride=1 if isinstance(layer, SamePool) else 2)]
