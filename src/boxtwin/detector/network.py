"""The YOLOv3 networks as plain modules: Darknet-53, with and without spatial pyramid pooling, tiny and nano.

J. Redmon, A. Farhadi, "YOLOv3: An Incremental Improvement", arXiv:1804.02767 (2018), sections 2.3 and 2.4; layer by
layer after the published configurations ``yolov3.cfg``, ``yolov3-spp.cfg``, ``yolov3-tiny.cfg`` and
``yolov3-tiny_3l.cfg`` of Darknet. Convolutions are registered in the order in which Darknet writes them to a weights
file.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from boxtwin.detector.options import Architecture

# One group per head, coarsest head first: (width, height), pixels.
Anchors = tuple[tuple[tuple[float, float], ...], ...]
Raw = tuple[Float[Tensor, "batch _ _ _ channels"], ...]

STRIDES: dict[str, tuple[int, ...]] = {
    "yolov3": (32, 16, 8),
    "yolov3_spp": (32, 16, 8),
    "yolov3_tiny": (32, 16),
    "yolov3_tiny_3l": (32, 16, 8),
    "yolov3_nano": (16, 8),
}

ANCHORS_PER_HEAD = 3  # YOLOv3, section 2.3

# k-means on COCO boxes (YOLOv3, section 2.3), pixels of a 416 x 416 input.
_NINE: Anchors = (
    ((116.0, 90.0), (156.0, 198.0), (373.0, 326.0)),
    ((30.0, 61.0), (62.0, 45.0), (59.0, 119.0)),
    ((10.0, 13.0), (16.0, 30.0), (33.0, 23.0)),
)
# yolov3.cfg, yolov3-spp.cfg and yolov3-tiny.cfg of Darknet.
PUBLISHED_ANCHORS: dict[str, Anchors] = {
    "yolov3": _NINE,
    "yolov3_spp": _NINE,
    "yolov3_tiny": (
        ((81.0, 82.0), (135.0, 169.0), (344.0, 319.0)),
        # The finer head of the published weights was trained with these, anchors 1, 2 and 3 of the list of six, though
        # its first configuration named 0, 1 and 2 (github.com/pjreddie/darknet, issue 851).
        ((23.0, 27.0), (37.0, 58.0), (81.0, 82.0)),
    ),
}

LEAKY_SLOPE = 0.1  # Darknet's "leaky" activation
NORM_EPS = 1e-6  # Darknet's normalize_cpu (src/blas.c) and OpenCV's Darknet reader
# Darknet follows its batch statistics with 0.01. A run of a few hundred steps ends before such averages have caught up;
# PyTorch's own 0.1 does, and the noise it lets through is taken out by averaging weights and buffers over steps.
NORM_MOMENTUM = 0.1
# Share of predictions that hold an object, the prior of T.-Y. Lin et al., "Focal Loss for Dense Object Detection",
# ICCV 2017, section 4.1 (their pi).
OBJECT_PRIOR = 0.01


class Convolution(nn.Module):
    """Convolution, batch normalisation, leaky ReLU: Darknet's ``[convolutional]`` block."""

    def __init__(self, inputs: int, outputs: int, size: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)
        self.norm = nn.BatchNorm2d(outputs, eps=NORM_EPS, momentum=NORM_MOMENTUM)
        nn.init.kaiming_normal_(self.conv.weight, a=LEAKY_SLOPE, mode="fan_in", nonlinearity="leaky_relu")

    def forward(self, x: Float[Tensor, "batch _ _ _"]) -> Float[Tensor, "batch _ _ _"]:
        return F.leaky_relu(self.norm(self.conv(x)), LEAKY_SLOPE, inplace=True)


class Residual(nn.Module):
    """Darknet-53's block: 1 x 1 to half the channels, 3 x 3 back, and the shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.squeeze = Convolution(channels, channels // 2, 1)
        self.expand = Convolution(channels // 2, channels, 3)

    def forward(self, x: Float[Tensor, "batch c h w"]) -> Float[Tensor, "batch c h w"]:
        return x + self.expand(self.squeeze(x))


class SamePool(nn.Module):
    """Darknet's max pooling of size 2 and stride 1: a row and a column are added at the bottom and the right."""

    def forward(self, x: Float[Tensor, "batch c h w"]) -> Float[Tensor, "batch c h w"]:
        # The last row and column again, not -inf as in Darknet: the same maxima, and replication is quick everywhere.
        return F.max_pool2d(F.pad(x, (0, 1, 0, 1), mode="replicate"), 2, stride=1)


class PyramidPool(nn.Module):
    """Spatial pyramid pooling as in ``yolov3-spp.cfg``: maxima over 13, 9 and 5 pixels, and the input, side by side."""

    SIZES = (13, 9, 5)

    def forward(self, x: Float[Tensor, "batch c h w"]) -> Float[Tensor, "batch _ h w"]:
        return torch.cat([*(F.max_pool2d(x, size, stride=1, padding=size // 2) for size in self.SIZES), x], dim=1)


class HeadPlan(NamedTuple):
    """The convolutions of one detection head. The next head branches off behind ``neck`` or behind ``out``."""

    lateral: int  # channels that the coarser head's features are brought to; 0 for the coarsest head
    neck: str  # convolutions before the last one, as in `BACKBONES`
    out: int  # channels of the 3 x 3 convolution before the prediction
    branch: Literal["neck", "out"] = "neck"


# The stages of each backbone, finest first; one head branches off at the end of each. A number is a 3 x 3 `Convolution`
# of so many channels, "512x1" a 1 x 1 convolution, "64/2" one of stride 2. "8R" are eight `Residual` blocks, "P" is max
# pooling, "S" `SamePool`, "SPP" `PyramidPool`.
_DARKNET53 = ("32 64/2 1R 128/2 2R 256/2 8R", "512/2 8R", "1024/2 4R")  # YOLOv3, table 1, without the classifier
BACKBONES = {
    Architecture.yolov3: _DARKNET53,
    Architecture.yolov3_spp: _DARKNET53,
    Architecture.yolov3_tiny: ("16 P 32 P 64 P 128 P 256", "P 512 S 1024"),
    Architecture.yolov3_tiny_3l: ("16 P 32 P 64 P 128", "P 256", "P 512 S 1024"),
    # A tiny of a quarter to half the width, with heads at strides 16 and 8: objects of 10 to 30 pixels would share the
    # cells of stride 32. The first convolutions stride instead of pooling, because at full resolution their activations
    # alone would take most of a training step.
    Architecture.yolov3_nano: ("16/2 32/2 48 P 96", "P 160 192"),
}
_FINER = (HeadPlan(256, "256x1 512 256x1 512 256x1", 512), HeadPlan(128, "128x1 256 128x1 256 128x1", 256))
# The heads of each architecture, coarsest first.
HEADS = {
    Architecture.yolov3: (HeadPlan(0, "512x1 1024 512x1 1024 512x1", 1024), *_FINER),
    Architecture.yolov3_spp: (HeadPlan(0, "512x1 1024 512x1 SPP 512x1 1024 512x1", 1024), *_FINER),
    Architecture.yolov3_tiny: (HeadPlan(0, "256x1", 512), HeadPlan(128, "", 256)),
    Architecture.yolov3_tiny_3l: (HeadPlan(0, "256x1", 512), HeadPlan(128, "", 256, "out"), HeadPlan(128, "", 128)),
    Architecture.yolov3_nano: (HeadPlan(0, "96x1", 192), HeadPlan(48, "", 96)),
}


def _sequence(layers: str, channels: int) -> tuple[nn.Sequential, int]:
    """The modules of layers written as in `BACKBONES`, for ``channels`` inputs, and their number of outputs."""
    sequence = nn.Sequential()
    for layer in layers.split():
        if layer == "P":
            sequence.append(nn.MaxPool2d(2))
        elif layer == "S":
            sequence.append(SamePool())
        elif layer == "SPP":
            sequence.append(PyramidPool())
            channels *= 1 + len(PyramidPool.SIZES)
        elif layer.endswith("R"):
            sequence.extend(nn.Sequential(*(Residual(channels) for _ in range(int(layer[:-1])))))
        else:
            outputs, stride = layer.removesuffix("x1").removesuffix("/2"), 2 if layer.endswith("/2") else 1
            sequence.append(Convolution(channels, int(outputs), 1 if layer.endswith("x1") else 3, stride))
            channels = int(outputs)
    return sequence, channels


class Head(nn.Module):
    """One detection head: mixes in the coarser head's features (except for the first), then predicts.

    ``coarser`` are channels of that head's features, 0 for the coarsest; ``predictions`` are anchors * (5 + classes).
    """

    def __init__(self, plan: HeadPlan, inputs: int, coarser: int, predictions: int) -> None:
        super().__init__()
        self.lateral = Convolution(coarser, plan.lateral, 1) if plan.lateral else None
        self.neck, channels = _sequence(plan.neck, inputs + plan.lateral)
        self.out = Convolution(channels, plan.out, 3)
        self.predict = nn.Conv2d(plan.out, predictions, 1)
        self.branches_off_neck = plan.branch == "neck"
        self.features = channels if self.branches_off_neck else plan.out

    def forward(
        self, skip: Float[Tensor, "batch _ h w"], coarser: Float[Tensor, "batch _ _ _"] | None
    ) -> tuple[Float[Tensor, "batch _ h w"], Float[Tensor, "batch _ h w"]]:
        if self.lateral is not None and coarser is not None:
            skip = torch.cat((F.interpolate(self.lateral(coarser), scale_factor=2.0, mode="nearest"), skip), dim=1)
        neck = self.neck(skip)
        out = self.out(neck)
        # Offsets of a fraction of a pixel need more than bfloat16's 8 bits; the last layer costs next to nothing.
        with torch.autocast(out.device.type, enabled=False):
            raw = self.predict(out.to(self.predict.weight.dtype))
        return raw, neck if self.branches_off_neck else out


class YOLOv3(nn.Module):
    """A YOLOv3 network: images in, raw maps out, coarsest head first as in Darknet.

    Args:
        architecture: see `STRIDES` for its heads.
        num_classes: C, at least 1.
        anchors: for each head, coarsest first, its anchors (width, height) in pixels at the network's input size.
        channels: 3 for colour, 1 for grey images.

    Raises:
        ValueError: unknown architecture, no class, or not one group of anchors per head.
    """

    def __init__(
        self,
        architecture: Architecture | str,
        num_classes: int,
        anchors: Sequence[Sequence[Sequence[int | float]]],
        channels: int = 3,
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"a detector needs at least one class, got {num_classes}")
        if channels not in (1, 3):
            raise ValueError(f"images have 1 channel or 3, got {channels}")
        self.architecture = Architecture(architecture)
        self.num_classes = num_classes
        self.strides = STRIDES[self.architecture]
        self.anchors = checked_anchors(anchors, heads=len(self.strides))
        self.channels = channels
        self.stages, self.heads = nn.ModuleList(), nn.ModuleList()
        widths = [channels]
        for layers in BACKBONES[self.architecture]:
            stage, width = _sequence(layers, widths[-1])
            self.stages.append(stage)
            widths.append(width)
        coarser = 0
        for plan, width, group in zip(HEADS[self.architecture], reversed(widths[1:]), self.anchors, strict=True):
            head = Head(plan, width, coarser, len(group) * (5 + num_classes))
            self.heads.append(head)
            coarser = head.features
        # The first predictions are the priors: anchors as they are, objects rare, classes equally likely (a class's
        # share of the objects is held off 1, where the logit is infinite).
        share = min(1 / num_classes, 1 - OBJECT_PRIOR)
        for module in self.heads:
            assert isinstance(module, Head)
            nn.init.normal_(module.predict.weight, std=0.01)  # as in the focal loss paper, section 4.1
            bias = torch.zeros(module.predict.out_channels).view(-1, 5 + num_classes)
            bias[:, 4] = math.log(OBJECT_PRIOR / (1 - OBJECT_PRIOR))
            bias[:, 5:] = math.log(share / (1 - share))
            module.predict.bias = nn.Parameter(bias.flatten())

    def forward(self, images: Float[Tensor, "batch _channels height width"]) -> Raw:
        """Images in [0, 1] -> for each head ``(batch, anchors, rows, columns, 5 + classes)``.

        The last axis holds t_x, t_y, t_w, t_h, objectness and class logits, as in the paper. An image size that is no
        multiple of the coarsest stride raises `ValueError`.
        """
        height, width = images.shape[-2:]
        if height % self.strides[0] or width % self.strides[0]:
            raise ValueError(f"image size must be a multiple of {self.strides[0]}, got {width} x {height}")
        features = [images]
        for stage in self.stages:
            features.append(stage(features[-1]))
        raw: list[Tensor] = []
        coarser: Tensor | None = None
        for head, skip in zip(self.heads, reversed(features[1:]), strict=True):
            prediction, coarser = head(skip, coarser)
            batch, channels, rows, columns = prediction.shape
            anchors = channels // (5 + self.num_classes)
            raw.append(prediction.view(batch, anchors, -1, rows, columns).permute(0, 1, 3, 4, 2))
        return tuple(raw)

    def layers(self) -> Iterator[Convolution | nn.Conv2d]:
        """All convolutions in the order of a Darknet weights file; plain ``nn.Conv2d`` are the predictions."""
        for name, module in self.named_modules():
            if isinstance(module, Convolution) or (isinstance(module, nn.Conv2d) and name.endswith(".predict")):
                yield module


def folded(network: YOLOv3) -> YOLOv3:
    """A copy for prediction with each batch normalisation folded into the convolution before it: the same outputs up to
    rounding, and one pass less over every feature map.
    """
    copied = copy.deepcopy(network).eval()
    for layer in copied.layers():
        if isinstance(layer, Convolution):
            layer.conv = fuse_conv_bn_eval(layer.conv, layer.norm)
            layer.norm = nn.Identity()  # type: ignore[assignment]
    return copied.requires_grad_(False)


def checked_anchors(anchors: Sequence[Sequence[Sequence[int | float]]], heads: int) -> Anchors:
    """Anchors as tuples of floats; raises `ValueError` if a head has none, or one is no pair of positive numbers."""
    if len(anchors) != heads or not all(len(group) for group in anchors):
        raise ValueError(f"expected {heads} groups of anchors, one per head and none empty, got {anchors}")
    for group in anchors:
        for anchor in group:
            if len(anchor) != 2 or not all(math.isfinite(side) and side > 0 for side in anchor):
                raise ValueError(f"an anchor is (width, height) in pixels, both above 0; got {tuple(anchor)}")
    return tuple(tuple((float(anchor[0]), float(anchor[1])) for anchor in group) for group in anchors)
