"""Schemas of the configuration.

Hydra checks every key and type against these classes; the files under conf/ hold the values. Nothing here imports
torch, so that ``--help`` and shell completion answer at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from omegaconf import MISSING


class OnBadBox(Enum):
    """What to do with boxes that are empty, not finite or reach outside their image."""

    error = "error"
    clip = "clip"
    drop = "drop"


class Crowds(Enum):
    """What annotations with iscrowd 1 are: crowds, neither learnt nor counted, or objects that were drawn as masks."""

    ignore = "ignore"
    objects = "objects"


class OnDuplicateBox(Enum):
    """What to do with boxes that repeat another one of the same class in their image."""

    warn = "warn"
    merge = "merge"
    error = "error"


class Orientation(Enum):
    """Whether images are turned as their orientation tag (EXIF) says, or read as they are stored."""

    apply = "apply"
    ignore = "ignore"


class Speckle(Enum):
    """What the pixel values of a radar's images stand for: received amplitude, or power, its square."""

    amplitude = "amplitude"
    intensity = "intensity"


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
class AugmentationConfig:
    """What is done at random to training images; see boxtwin.mixing.augment.Augmentation."""

    mosaic: float = 0.0
    zoom: float = 1.0
    unzoomed: float = 0.0
    translate: float = 0.0
    focus: float = 0.0
    flip_horizontal: bool = False
    flip_vertical: bool = False
    quarter_turns: bool = False
    gain: float = 0.0
    speckle: float = 0.0
    hue: float = 0.0
    saturation: float = 0.0


@dataclass
class DatasetConfig:
    """A COCO detection set on disk; ``build`` holds the parameters of one that is made here."""

    name: str = MISSING
    root: str = MISSING
    images: str = MISSING
    annotations: str = MISSING
    group_by: str | None = None
    on_bad_box: OnBadBox = OnBadBox.error
    crowds: Crowds = Crowds.ignore
    on_duplicate_box: OnDuplicateBox = OnDuplicateBox.warn
    orientation: Orientation = Orientation.apply
    page: int | None = None
    channels: list[int] | None = None
    max_pixels: int = 100_000_000
    image_size: int = MISSING
    speckle: Speckle | None = None
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    build: dict[str, int] | None = None


@dataclass
class SplitConfig:
    """Numbers of real images per side; ``file`` names a predefined split instead.

    ``train_size`` keeps the first so many of the training images, nested; null, or all of them, is the whole split.
    """

    name: str = MISSING
    train: int = MISSING
    val: int = MISSING
    test: int = MISSING
    train_pool: int = MISSING
    train_size: int | None = None
    seed: int = 0
    group_by: str | None = "${dataset.group_by}"
    file: str | None = None


@dataclass
class VariationsConfig:
    """How many variations of each real training and validation image are mixed in."""

    per_image: int = MISSING
    synthetic_fraction: float | None = None
    seed: int = 0


class NewObjects(Enum):
    """What becomes of a variation with objects that its source has not."""

    refuse = "refuse"
    label = "label"
    ignore = "ignore"


class Confirmed(Enum):
    """Which images of a file of labels a person stands up for."""

    marked = "marked"
    all = "all"


@dataclass
class LabelsConfig:
    """How variations get their boxes; see boxtwin.labels. Each option has its part of these."""

    name: str = MISSING
    detectors: int = 0  # how many are trained on real images to look at variations, with seeds from 0
    steps: int | None = None
    # carry
    new_objects: NewObjects = NewObjects.refuse
    sure: float = 0.6
    gone: float = 0.3
    match: float = 0.5
    better: float = 0.15
    search: int = 12
    # pseudo
    agree: int = 2
    iou: float = 0.5
    tolerance: float = 0.25
    # manual
    file: str | None = None
    confirmed: Confirmed = Confirmed.marked


@dataclass
class DetectorConfig:
    """Network, loss and optimiser; see boxtwin.detector.module.DetectorModule."""

    name: str = MISSING
    architecture: Architecture = MISSING
    weights: str | None = None
    image_size: int = "${dataset.image_size}"  # type: ignore[assignment]
    crop: int | None = None
    tile: int | None = None
    anchors: Anchors = Anchors.kmeans
    box_loss: BoxLoss = BoxLoss.ciou
    optimizer: Optimizer = Optimizer.adamw
    learning_rate: float = MISSING
    weight_decay: float = MISSING
    warmup_steps: int = MISSING
    freeze: int = 0
    objectness_target: ObjectnessTarget = ObjectnessTarget.one
    anchors_per_object: AnchorsPerObject = AnchorsPerObject.iou_above
    cells_per_object: int = 1
    scale_xy: float = 1.0
    focal_gamma: float = 0.0
    box_weight: float = 5.0
    objectness_weight: float = 1.0
    class_weight: float = 1.0
    ignore_iou: float = MISSING
    nms_iou: float = MISSING


@dataclass
class TrainerConfig:
    """Steps, and the machine. The machine's part does not define a cell."""

    steps: int = MISSING
    batch_size: int = MISSING
    validations: int = MISSING
    ema_span: float = MISSING
    gradient_clip: float = MISSING
    precision: Precision = Precision.auto
    accelerator: str = "auto"
    threads: int | None = None
    workers: int = 0
    cache: bool = True
    devices: int = 1
    compile: bool = False
    coco_evaluator: CocoEvaluator = CocoEvaluator.faster


@dataclass
class TrackingConfig:
    """Where runs are kept: a server's address, or sqlite in ``folder``."""

    uri: str | None = None
    folder: str = "mlruns"


@dataclass
class BoxtwinConfig:
    """Everything. ``generator`` is built by its ``_target_`` and checked there.

    The nodes are types only, which the files under conf/ fill: Hydra copies every registered schema for each of the
    many groups that ``--help`` lists, and whole nodes made that a third longer.
    """

    dataset: DatasetConfig = MISSING
    split: SplitConfig = MISSING
    variations: VariationsConfig = MISSING
    generator: dict[str, Any] = MISSING
    labels: LabelsConfig = MISSING
    detector: DetectorConfig = MISSING
    trainer: TrainerConfig = MISSING
    tracking: TrackingConfig = MISSING
    study: str = MISSING
    seed: int = MISSING
    rerun: bool = MISSING
    quality: bool = MISSING
    data: str = MISSING


@dataclass
class GenerateConfig(BoxtwinConfig):
    """What generate.py takes beyond a cell's own settings. None of it defines a cell."""

    confirm: bool = False
    budget: float | None = None
    regenerate: str | None = None


@dataclass
class CompareConfig:
    """What compare.py takes."""

    study: str | None = None
    cells: str | None = None
    folder: str = "reports"
    plan: bool = False
    tracking: TrackingConfig = field(default_factory=TrackingConfig)


@dataclass
class ExportConfig:
    """What export.py takes."""

    cell: str = MISSING
    formats: Any = MISSING  # one name or a list of them
    to: str | None = None
    register: str | None = None
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
