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
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

Architecture = Literal["yolov3", "yolov3_spp", "yolov3_tiny", "yolov3_tiny_3l", "yolov3_nano"]
Anchors = tuple[
    tuple[tuple[float, float], ...], ...
]  # one group per head, coarsest head first: (width, height), pixels
Raw = tuple[Float[Tensor, "batch _ _ _ channels"], ...]

STRIDES: dict[str, tuple[int, ...]] = {
    "yolov3": (32, 16, 8),
    "yolov3_spp": (32, 16, 8),
    "yolov3_tiny": (32, 16),
    "yolov3_tiny_3l": (32, 16, 8),
    "yolov3_nano": (16, 8),
}

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
    """The convolutions of one detection head.

    ``lateral`` is the channels that the coarser head's features are brought to (0 for the coarsest head); ``neck`` the
    convolutions before the last one, as (channels, size), or "pool" for `PyramidPool`; ``out`` the channels of the
    3 x 3 convolution before the prediction. The next head branches off before that convolution, or behind it.
    """

    lateral: int
    neck: tuple[tuple[int, int] | Literal["pool"], ...]
    out: int
    branch: Literal["neck", "out"] = "neck"


class Head(nn.Module):
    """One detection head: mixes in the coarser head's features (except for the first), then predicts.

    Args:
        plan: its convolutions.
        inputs: channels of the backbone's feature map.
        coarser: channels of the coarser head's features; 0 for the coarsest.
        predictions: channels of the prediction, anchors * (5 + classes).
    """

    def __init__(self, plan: HeadPlan, inputs: int, coarser: int, predictions: int) -> None:
        super().__init__()
        self.lateral = Convolution(coarser, plan.lateral, 1) if plan.lateral else None
        channels = inputs + plan.lateral
        self.neck = nn.Sequential()
        for part in plan.neck:
            if part == "pool":
                self.neck.append(PyramidPool())
                channels *= 1 + len(PyramidPool.SIZES)
            else:
                self.neck.append(Convolution(channels, *part))
                channels = part[0]
        self.out = Convolution(channels, plan.out, 3)
        self.predict = nn.Conv2d(plan.out, predictions, 1)
        self.branches_off_neck = plan.branch == "neck"
        self.features = channels if self.branches_off_neck else plan.out

    def forward(
        self, skip: Float[Tensor, "batch _ h w"], coarser: Float[Tensor, "batch _ _ _"] | None
    ) -> tuple[Float[Tensor, "batch _ h w"], Float[Tensor, "batch _ h w"]]:
        if self.lateral is not None:
            if coarser is None:
                raise ValueError("a head with a lateral convolution needs the coarser head's features")
            skip = torch.cat((F.interpolate(self.lateral(coarser), scale_factor=2.0, mode="nearest"), skip), dim=1)
        neck = self.neck(skip)
        out = self.out(neck)
        # Offsets of a fraction of a pixel need more than bfloat16's 8 bits; the last layer costs next to nothing.
        with torch.autocast(out.device.type, enabled=False):
            raw = self.predict(out.to(self.predict.weight.dtype))
        return raw, neck if self.branches_off_neck else out


class Backbone(NamedTuple):
    """Stages, one for each head and the finest first, and the channels that each ends with."""

    stages: list[nn.Sequential]
    widths: list[int]


def _darknet53(channels_in: int) -> Backbone:
    """Darknet-53 without its classifier (YOLOv3, table 1) in three stages that end at strides 8, 16 and 32."""
    stages: list[nn.Sequential] = [nn.Sequential(Convolution(channels_in, 32, 3))]
    widths = []
    for channels, repeats, new_stage in (
        (64, 1, False),
        (128, 2, False),
        (256, 8, False),
        (512, 8, True),
        (1024, 4, True),
    ):
        if new_stage:
            stages.append(nn.Sequential())
        stages[-1].append(Convolution(channels // 2, channels, 3, stride=2))
        stages[-1].extend(nn.Sequential(*(Residual(channels) for _ in range(repeats))))
        if channels >= 256:
            widths.append(channels)
    return Backbone(stages, widths)


def _tiny(channels_in: int, heads: int) -> Backbone:
    """The backbone of yolov3-tiny.cfg in stages that end at strides 16 and 32, or with three heads 8, 16 and 32."""
    stages = [nn.Sequential(Convolution(channels_in, 16, 3))]
    widths = []
    for inputs, outputs in ((16, 32), (32, 64), (64, 128), (128, 256)):
        if outputs == 256 and heads == 3:
            widths.append(inputs)
            stages.append(nn.Sequential())
        stages[-1].extend([nn.MaxPool2d(2), Convolution(inputs, outputs, 3)])
    last = nn.Sequential(nn.MaxPool2d(2), Convolution(256, 512, 3), SamePool(), Convolution(512, 1024, 3))
    return Backbone([*stages, last], [*widths, 256, 1024])


def _nano(channels_in: int) -> Backbone:
    """A tiny of a quarter to half the width whose stages end at strides 8 and 16.

    Objects of 10 to 30 pixels in a 256-pixel input would share the cells of stride 32 and vanish in the features of
    stride 16, so the heads stand at strides 16 and 8. The first convolutions stride instead of pooling, because at full
    resolution their activations alone would take most of a training step.
    """
    first = nn.Sequential(
        Convolution(channels_in, 16, 3, stride=2),
        Convolution(16, 32, 3, stride=2),
        Convolution(32, 48, 3),
        nn.MaxPool2d(2),
        Convolution(48, 96, 3),
    )
    second = nn.Sequential(nn.MaxPool2d(2), Convolution(96, 160, 3), Convolution(160, 192, 3))
    return Backbone([first, second], [96, 192])


def _parts(architecture: str, channels_in: int) -> tuple[Backbone, list[HeadPlan]]:
    """Backbone and heads, the coarsest head first."""
    match architecture:
        case "yolov3" | "yolov3_spp":
            plans: list[HeadPlan] = []
            for narrow in (512, 256, 128):
                neck: list[tuple[int, int] | Literal["pool"]] = [(narrow, 1), (2 * narrow, 3)] * 2
                if architecture == "yolov3_spp" and not plans:
                    neck[3:3] = ["pool", (narrow, 1)]
                plans.append(HeadPlan(narrow if plans else 0, (*neck, (narrow, 1)), 2 * narrow))
            return _darknet53(channels_in), plans
        case "yolov3_tiny":
            return _tiny(channels_in, heads=2), [HeadPlan(0, ((256, 1),), 512), HeadPlan(128, (), 256)]
        case "yolov3_tiny_3l":
            return _tiny(channels_in, heads=3), [
                HeadPlan(0, ((256, 1),), 512),
                HeadPlan(128, (), 256, branch="out"),
                HeadPlan(128, (), 128),
            ]
        case _:
            return _nano(channels_in), [HeadPlan(0, ((96, 1),), 192), HeadPlan(48, (), 96)]


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
        architecture: Architecture,
        num_classes: int,
        anchors: Sequence[Sequence[Sequence[int | float]]],
        channels: int = 3,
    ) -> None:
        super().__init__()
        if architecture not in get_args(Architecture):
            raise ValueError(f"architecture is one of {get_args(Architecture)}, got {architecture!r}")
        if num_classes < 1:
            raise ValueError(f"a detector needs at least one class, got {num_classes}")
        if channels not in (1, 3):
            raise ValueError(f"images have 1 channel or 3, got {channels}")
        self.architecture = architecture
        self.num_classes = num_classes
        self.strides = STRIDES[architecture]
        self.anchors = checked_anchors(anchors, heads=len(self.strides))
        self.channels = channels
        self._frozen = 0
        backbone, plans = _parts(architecture, channels)
        self.stages = nn.ModuleList(backbone.stages)
        heads: list[Head] = []
        for plan, inputs, group in zip(plans, reversed(backbone.widths), self.anchors, strict=True):
            coarser = heads[-1].features if heads else 0
            heads.append(Head(plan, inputs, coarser, len(group) * (5 + num_classes)))
        self.heads = nn.ModuleList(heads)
        self._start_predictions()

    def _start_predictions(self) -> None:
        """Let the first predictions be the priors: anchors as they are, objects rare, classes equally likely."""
        # Class biases: the share of a class among objects, held off 0 and 1 where the logit is infinite.
        share = min(1 / self.num_classes, 1 - OBJECT_PRIOR)
        for head in self.heads:
            assert isinstance(head, Head)
            nn.init.normal_(head.predict.weight, std=0.01)  # as in the focal loss paper, section 4.1
            bias = torch.zeros(head.predict.out_channels).view(-1, 5 + self.num_classes)
            bias[:, 4] = math.log(OBJECT_PRIOR / (1 - OBJECT_PRIOR))
            bias[:, 5:] = math.log(share / (1 - share))
            head.predict.bias = nn.Parameter(bias.flatten())

    def forward(self, images: Float[Tensor, "batch _channels height width"]) -> Raw:
        """Images in [0, 1] -> for each head ``(batch, anchors, rows, columns, 5 + classes)``.

        The last axis holds t_x, t_y, t_w, t_h, objectness and class logits, as in the paper.

        Raises:
            ValueError: the image size is no multiple of the coarsest stride.
        """
        height, width = images.shape[-2:]
        if height % self.strides[0] or width % self.strides[0]:
            raise ValueError(f"image size must be a multiple of {self.strides[0]}, got {width} x {height}")
        features = []
        x = images
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        raw: list[Tensor] = []
        coarser: Tensor | None = None
        for head, skip in zip(self.heads, reversed(features[-len(self.heads) :]), strict=True):
            prediction, coarser = head(skip, coarser)
            batch, channels, rows, columns = prediction.shape
            anchors = channels // (5 + self.num_classes)
            raw.append(prediction.view(batch, anchors, -1, rows, columns).permute(0, 1, 3, 4, 2))
        return tuple(raw)

    def layers(self) -> Iterator[Convolution | nn.Conv2d]:
        """All convolutions in the order of a Darknet weights file; plain ``nn.Conv2d`` are the predictions."""
        yield from (
            module
            for name, module in self.named_modules()
            if isinstance(module, Convolution) or (isinstance(module, nn.Conv2d) and name.endswith(".predict"))
        )

    def freeze(self, count: int) -> None:
        """Fix the first ``count`` convolutions with their batch statistics, whatever `train` is called with later.

        Raises:
            ValueError: the network has fewer convolutions.
        """
        layers = list(self.layers())
        if not 0 <= count <= len(layers):
            raise ValueError(f"{self.architecture} has {len(layers)} convolutions, cannot freeze {count}")
        self._frozen = count
        for layer in layers[:count]:
            layer.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> YOLOv3:
        """As ``nn.Module.train``, except that frozen convolutions stay in evaluation mode."""
        super().train(mode)
        for index, layer in enumerate(self.layers()):
            if index < self._frozen:
                layer.eval()
        return self


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
    """Anchors as plain tuples of floats, coarsest head first.

    Raises:
        ValueError: not one non-empty group per head, or an anchor that is no pair of positive numbers.
    """
    if len(anchors) != heads or not all(len(group) for group in anchors):
        raise ValueError(f"expected {heads} groups of anchors, one per head and none empty, got {anchors}")
    for group in anchors:
        for anchor in group:
            if len(anchor) != 2 or not all(math.isfinite(side) and side > 0 for side in anchor):
                raise ValueError(f"an anchor is (width, height) in pixels, both above 0; got {tuple(anchor)}")
    return tuple(tuple((float(anchor[0]), float(anchor[1])) for anchor in group) for group in anchors)
