"""Settings of a detector and its training: the groups `detector` and `trainer` of the configuration."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

REQUIRED: Any = "???"  # what OmegaConf takes for a value that must be given


class Architecture(StrEnum):
    """The networks of `boxtwin.detector.network`."""

    yolov3 = "yolov3"
    yolov3_spp = "yolov3_spp"
    yolov3_tiny = "yolov3_tiny"
    yolov3_tiny_3l = "yolov3_tiny_3l"
    yolov3_nano = "yolov3_nano"


class Anchors(StrEnum):
    """Source of the anchors: k-means over the training boxes, published for COCO, or the initial weights."""

    kmeans = "kmeans"
    published = "published"
    weights = "weights"


class ObjectnessTarget(StrEnum):
    """Objectness target of a positive prediction: 1, or its IoU with the object."""

    one = "one"
    iou = "iou"


class Optimizer(StrEnum):
    """AdamW, or SGD with Nesterov momentum 0.9."""

    adamw = "adamw"
    sgd = "sgd"


class Precision(StrEnum):
    """Arithmetic of the network; auto takes bfloat16 where the hardware computes in it."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


@dataclass
class LossOptions:
    """The training loss; see `boxtwin.detector.loss.detection_loss`.

    Attributes:
        objectness_target: 1 as in the paper, or the IoU of a positive's box at the moment, so that well placed boxes
            come first (as the confidence of the first YOLO, arXiv:1506.02640, section 2).
        cells_per_object: 1 as in the paper; 3 adds the nearest cell left or right of the centre's, and the nearest
            above or below. Predicted centres reach that far only with a ``scale_xy`` of 2.
        scale_xy: how far centres reach beyond their grid cell; see `boxtwin.detector.decode`.
    """

    objectness_target: ObjectnessTarget = ObjectnessTarget.iou
    cells_per_object: int = 1
    scale_xy: float = 1.0

    def __post_init__(self) -> None:
        if self.cells_per_object not in (1, 3):
            raise ValueError(f"detector.cells_per_object={self.cells_per_object} must be 1 or 3")
        if self.scale_xy < 1 or (self.cells_per_object == 3 and self.scale_xy < 2):
            raise ValueError(
                f"detector.scale_xy={self.scale_xy} must be at least 1, and 2 with detector.cells_per_object=3"
            )


@dataclass
class OptimizerOptions:
    """The optimiser and its schedule; raises `ValueError` if the learning rate is not above 0."""

    learning_rate: float = REQUIRED  # at the end of the warm-up; then a cosine down to a hundredth of it
    warmup_steps: int = 50
    optimizer: Optimizer = Optimizer.adamw

    def __post_init__(self) -> None:
        if self.learning_rate <= 0:
            raise ValueError(f"detector.learning_rate={self.learning_rate} must be above 0")


@dataclass(frozen=True, kw_only=True)
class Postprocessing:
    """From scores to detections."""

    nms_iou: float = 0.45  # detections of one class that overlap by more are one; Darknet's detector.c
    score_floor: float = 0.001  # detections below are dropped; low, because AP counts the whole precision-recall curve
    max_detections: int = 300  # per image, unless training images hold more than half as many objects

    @property
    def always_kept(self) -> float:
        """The score from which detections are kept beyond ``max_detections``; none while no threshold is chosen."""
        return math.inf


@dataclass
class DetectorOptions(LossOptions, OptimizerOptions):
    """Network, loss, optimiser and postprocessing."""

    name: str = REQUIRED
    architecture: Architecture = REQUIRED
    weights: str | None = None
    image_size: int = "${dataset.image_size}"  # type: ignore[assignment]
    crop: int | None = 416
    tile: int | None = None
    anchors: Anchors = Anchors.kmeans
    nms_iou: float = Postprocessing.nms_iou

    def __post_init__(self) -> None:
        LossOptions.__post_init__(self)
        OptimizerOptions.__post_init__(self)


@dataclass
class TrainerOptions:
    """Steps, and the machine, which does not define a run.

    ``epochs`` stand in place of ``steps``: so many passes over all real images and variations that are asked for,
    rounded up to a multiple of ``validations``.
    """

    steps: int | None = "${unless:${.epochs},1200}"  # type: ignore[assignment]
    epochs: int | None = None
    batch_size: int = 8
    validations: int = 6
    gradient_clip: float = 10.0
    precision: Precision = Precision.auto
    accelerator: str = "auto"
    threads: int | None = None
    batch_threads: int | None = None
    cache: bool = True
    devices: int = 1
    compile: bool = False


class Redraw(StrEnum):
    """What simulated images are changed by, to look like training images; see `boxtwin.synthesis.redraw`."""

    none = "none"
    matched = "matched"
    diffusion = "diffusion"


@dataclass
class PretrainingOptions:
    """Training on other images first; none where ``name`` is ``none``.

    Attributes:
        steps: optimiser steps.
        batch_size: images a step.
        seed: of initial weights, order and augmentation; the run's own seed does not matter.
        per_image: variations of each image of the run's split, to train on alone; 0 to train on ``dataset``.
        share: of each batch of the training on real images, the share that shows images of ``dataset`` again.
        share_falls: that share falls linearly to 0 until the last step.
        fit: whether the simulator's ranges are those of the split's training images.
        redraw: whether simulated images are made to look like the split's training images.
        redraw_strength: time in (0, 1] to which diffusion noises them.
        model: settings of the diffusion model, as of the generator ``pixel_ddpm``.
    """

    name: str = "none"
    steps: int = 0
    batch_size: int = 16
    seed: int = 0
    per_image: int = 0
    share: float = 0.0
    share_falls: bool = False
    fit: bool = False
    redraw: Redraw = Redraw.none
    redraw_strength: float = 0.3
    model: dict[str, Any] = field(default_factory=dict)
