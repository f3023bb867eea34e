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

from boxtwin.detector.network import Convolution, Head, PyramidPool, Residual, SamePool, YOLOv3
from boxtwin.errors import InputError
from boxtwin.files import write_bytes_atomically


class DarknetReport(NamedTuple):
    """The convolutions that reading a weights file changed, counted from 0 in the file's order."""

    loaded: tuple[int, ...]
    skipped: tuple[int, ...]  # convolutions that keep the values they had
    seen: int  # images the file's network was trained on

    def __str__(self) -> str:
        return f"{len(self.loaded)} convolutions read, {len(self.skipped)} left as they were"


def read_darknet(model: YOLOv3, path: Path | str) -> DarknetReport:
    """Read a Darknet weights file into ``model``.

    A network of one channel gets a colour file's first convolution summed over its channels: grey images have the same
    outputs. Prediction layers with another number of outputs (other classes) are left as they are, and so are all
    layers behind the end of a file that was cut after a whole layer, such as ``darknet53.conv.74``.

    Raises:
        InputError: the file cannot be read, holds non-finite values or does not fit the architecture.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"Darknet weights {path} cannot be read: {error.strerror}") from error
    if len(content) < 16:
        raise InputError(f"{path} is no Darknet weights file: it has {len(content)} bytes, its header alone needs 16")
    major, minor = struct.unpack_from("<2i", content)
    seen_format = "<q" if major * 10 + minor >= 2 and major < 1000 and minor < 1000 else "<i"
    (seen,) = struct.unpack_from(seen_format, content.ljust(20, b"\0"), 12)
    header = 12 + struct.calcsize(seen_format)
    layers = list(model.layers())
    size = len(content) - header
    channels, outputs = _file_shape(layers, size, path, model.architecture, header)

    values = torch.from_numpy(np.frombuffer(content, dtype="<f4", offset=header).astype(np.float32))
    if not bool(torch.isfinite(values).all()):
        raise InputError(f"Darknet weights {path} hold {int((~torch.isfinite(values)).sum())} non-finite values")
    loaded, skipped, start = [], [], 0
    with torch.no_grad():
        for index, (layer, layer_outputs) in enumerate(zip(layers, outputs, strict=True)):
            if start == len(values):
                skipped.append(index)
            elif layer_outputs == convolution_of(layer).out_channels:
                for tensor in tensors_of(layer):
                    # Three equal channels in, or their weights' sum over one: the same outputs.
                    summed = channels // tensor.shape[1] if index == 0 and tensor.ndim == 4 else 1
                    end = start + tensor.numel() * summed
                    tensor.copy_(values[start:end].view(tensor.shape[0], summed, *tensor.shape[1:]).sum(dim=1))
                    start = end
                loaded.append(index)
            else:
                start += layer_outputs * (1 + convolution_of(layer).weight[0].numel())
                skipped.append(index)
    return DarknetReport(tuple(loaded), tuple(skipped), seen)


def write_darknet(model: YOLOv3, path: Path | str, *, seen: int) -> None:
    """Write ``model`` as a Darknet weights file, version 0.2.0; ``seen`` is the number of images it was trained on."""
    parts = [struct.pack("<3iq", 0, 2, 0, seen)]
    for layer in model.layers():
        parts += [tensor.detach().float().cpu().numpy().astype("<f4").tobytes() for tensor in tensors_of(layer)]
    write_bytes_atomically(Path(path), b"".join(parts))


def convolution_of(layer: Convolution | nn.Conv2d) -> nn.Conv2d:
    """The convolution of one of `YOLOv3.layers`."""
    return layer.conv if isinstance(layer, Convolution) else layer


def tensors_of(layer: Convolution | nn.Conv2d) -> list[Tensor]:
    """The tensors of one of `YOLOv3.layers`, in the order of a Darknet file."""
    if isinstance(layer, Convolution):
        norm = layer.norm
        assert norm.running_mean is not None
        assert norm.running_var is not None
        return [norm.bias, norm.weight, norm.running_mean, norm.running_var, layer.conv.weight]
    assert layer.bias is not None
    return [layer.bias, layer.weight]


def _file_shape(
    layers: list[Convolution | nn.Conv2d], size: int, path: Path, architecture: str, header: int
) -> tuple[int, list[int]]:
    """Image channels and outputs of each layer in a file with ``size`` bytes of values.

    They can differ from the model's in two ways: predictions of other classes, and colour where the model takes grey.
    """
    outputs = [convolution_of(layer).out_channels for layer in layers]
    sizes = [4 * sum(tensor.numel() for tensor in tensors_of(layer)) for layer in layers]
    # All prediction layers of a Darknet configuration have the same outputs, anchors * (5 + classes).
    predictions = [index for index, layer in enumerate(layers) if isinstance(layer, nn.Conv2d)]
    first = convolution_of(layers[0])
    for channels in sorted({first.in_channels, 3}):
        ends = np.cumsum(sizes) + 4 * (channels - first.in_channels) * first.weight[:, 0].numel()
        if size > 0 and size in ends:
            return channels, outputs
        # Other classes: the whole network, or as many of its heads as the file has (yolov3-tiny is all of
        # yolov3-tiny_3l but its last head).
        for count in range(len(predictions), 0, -1):
            of_file = predictions[:count]
            fixed = int(ends[of_file[-1]]) - sum(sizes[index] for index in of_file)
            per_output = sum(sizes[index] // outputs[index] for index in of_file)
            other, rest = divmod(size - fixed, per_output)
            # Darknet predicts 4 offsets and the objectness of at least one anchor, and one class.
            if not rest and other >= 6:
                return channels, [other if index in of_file else count for index, count in enumerate(outputs)]
    fixed = int(ends[-1]) - sum(sizes[index] for index in predictions)
    per_output = sum(sizes[index] // outputs[index] for index in predictions)
    raise InputError(
        f"Darknet weights {path} do not fit {architecture}: expected {header + int(ends[-1]):,} bytes "
        f"(with other classes, {header + fixed:,} plus {per_output:,} for each output of a prediction layer), "
        f"got {header + size:,}. Is it the file of another network, or cut off?"
    )


def darknet_cfg(network: YOLOv3, side: int, scale_xy: float) -> str:
    """The text of a configuration for ``side`` x ``side`` images; ``scale_xy`` as in `boxtwin.detector.decode`.

    Its key ``scale_x_y`` is known to OpenCV and to A. Bochkovskiy's Darknet, not to the original, which takes 1.
    """
    sections = [f"[net]\nwidth={side}\nheight={side}\nchannels={network.channels}\n\n"]  # then one for each layer
    ends, branch = [], 0  # numbers of layers, from 0: the last ones of the stages, and where the next head branches off
    for stage in network.stages:
        sections += [section for layer in stage.children() for section in _sections(layer)]
        ends.append(len(sections) - 2)
    for number, (head, skip) in enumerate(zip(network.heads, reversed(ends), strict=True)):
        assert isinstance(head, Head)
        if head.lateral is not None:
            sections += [_route(branch - len(sections) + 1), *_sections(head.lateral), "[upsample]\nstride=2\n\n"]
            sections.append(_route(-1, skip))
        sections += [section for layer in head.neck for section in _sections(layer)]
        branch = len(sections) - (2 if head.branches_off_neck else 1)
        sections += [*_sections(head.out), *_prediction(network, number, scale_xy)]
    return "".join(sections)


def _sections(layer: nn.Module) -> list[str]:
    """One of the modules of a stage or a neck, as sections of a configuration."""
    match layer:
        case Convolution():
            size, stride = layer.conv.kernel_size[0], layer.conv.stride[0]
            return [
                f"[convolutional]\nbatch_normalize=1\nfilters={layer.conv.out_channels}\nsize={size}\nstride={stride}\n"
                "pad=1\nactivation=leaky\n\n"
            ]
        case Residual():
            shortcut = "[shortcut]\nfrom=-3\nactivation=linear\n\n"
            return [*_sections(layer.squeeze), *_sections(layer.expand), shortcut]
        case PyramidPool():
            return [_pool(5, 1), _route(-2), _pool(9, 1), _route(-4), _pool(13, 1), _route(-1, -3, -5, -6)]
    return [_pool(2, 1 if isinstance(layer, SamePool) else 2)]


def _pool(size: int, stride: int) -> str:
    return f"[maxpool]\nsize={size}\nstride={stride}\n\n"


def _route(*layers: int) -> str:
    return f"[route]\nlayers={','.join(map(str, layers))}\n\n"


def _prediction(network: YOLOv3, head: int, scale_xy: float) -> list[str]:
    groups, classes = network.anchors, network.num_classes
    finer = sum(len(group) for group in groups[head + 1 :])
    mask = ",".join(str(finer + place) for place in range(len(groups[head])))
    anchors = ", ".join(f"{width:.9g},{height:.9g}" for group in reversed(groups) for width, height in group)
    filters = len(groups[head]) * (5 + classes)
    return [
        f"[convolutional]\nsize=1\nstride=1\npad=1\nfilters={filters}\nactivation=linear\n\n",
        f"[yolo]\nmask={mask}\nanchors={anchors}\nclasses={classes}\nnum={sum(map(len, groups))}\n"
        f"scale_x_y={scale_xy:g}\n\n",
    ]
