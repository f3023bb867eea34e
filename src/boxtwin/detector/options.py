"""Settings of a detector and its training: the groups `detector` and `trainer` of the configuration."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

REQUIRED: Any = "???"  # what OmegaConf takes for a value that must be given


class Architecture(Enum):
    """The networks that there are, coarsest head first; see boxtwin.detector.network."""

    yolov3 = "yolov3"
    yolov3_spp = "yolov3_spp"
    yolov3_tiny = "yolov3_tiny"
    yolov3_tiny_3l = "yolov3_tiny_3l"
    yolov3_nano = "yolov3_nano"


class Anchors(Enum):
    """Where anchors come from: k-means over the training boxes, published for COCO, or with the initial weights."""

    kmeans = "kmeans"
    published = "published"
    weights = "weights"


class BoxLoss(Enum):
    """Regression loss of the boxes."""

    ciou = "ciou"
    mse = "mse"


class ObjectnessTarget(Enum):
    """What the objectness of a prediction that answers for an object is to be: 1, or its box's overlap."""

    one = "one"
    iou = "iou"


class AnchorsPerObject(Enum):
    """Which anchors answer for an object: the best, or also all that overlap its shape well."""

    best = "best"
    iou_above = "iou_above"


class Optimizer(Enum):
    """How the weights move."""

    adamw = "adamw"
    sgd = "sgd"


class Precision(Enum):
    """Arithmetic of the network; auto takes bfloat16 where the machine computes in it."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class CocoEvaluator(Enum):
    """What computes the COCO figures: faster-coco-eval, or pycocotools, the reference. Their figures are equal."""

    faster = "faster"
    pycocotools = "pycocotools"


@dataclass
class LossOptions:
    """The training loss; see `boxtwin.detector.loss.detection_loss`."""

    box_loss: BoxLoss = BoxLoss.ciou
    objectness_target: ObjectnessTarget = ObjectnessTarget.iou
    anchors_per_object: AnchorsPerObject = AnchorsPerObject.iou_above  # more positives pay where images are few
    cells_per_object: int = 1
    scale_xy: float = 1.0
    focal_gamma: float = 0.0
    box_weight: float = 5.0  # YOLOX (arXiv:2107.08430), whose loss is a mean per positive too
    objectness_weight: float = 1.0
    class_weight: float = 1.0
    ignore_iou: float = 0.5  # YOLOv3, section 2.1

    def __post_init__(self) -> None:
        if self.cells_per_object not in (1, 3):
            raise ValueError(f"detector.cells_per_object={self.cells_per_object} must be 1 or 3")
        if self.scale_xy < 1 or (self.cells_per_object == 3 and self.scale_xy < 2):
            raise ValueError(
                f"detector.scale_xy={self.scale_xy} must be at least 1, and 2 with detector.cells_per_object=3"
            )


@dataclass
class OptimizerOptions:
    """The optimiser and its schedule."""

    learning_rate: float = REQUIRED  # at the end of the warm-up; then a cosine down to a hundredth of it
    weight_decay: float = 0.05  # on convolution weights only
    warmup_steps: int = 50
    optimizer: Optimizer = Optimizer.adamw
    freeze: int = 0  # number of first convolutions that are not trained


@dataclass
class DetectorOptions(LossOptions, OptimizerOptions):
    """Network, loss, optimiser and postprocessing; see `boxtwin.detector.module.DetectorModule`."""

    name: str = REQUIRED
    architecture: Architecture = REQUIRED
    weights: str | None = None
    image_size: int = "${dataset.image_size}"  # type: ignore[assignment]
    crop: int | None = 416
    tile: int | None = None
    anchors: Anchors = Anchors.kmeans
    nms_iou: float = 0.45  # Darknet's detector.c


@dataclass
class TrainerOptions:
    """Steps, and the machine. The machine's part does not define a cell."""

    steps: int = 1200
    batch_size: int = 8
    validations: int = 6
    ema_span: float = 0.1
    gradient_clip: float = 10.0
    precision: Precision = Precision.auto
    accelerator: str = "auto"
    threads: int | None = None
    workers: int = 0
    cache: bool = True
    devices: int = 1
    compile: bool = False
    coco_evaluator: CocoEvaluator = CocoEvaluator.faster
