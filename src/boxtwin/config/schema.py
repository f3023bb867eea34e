"""Schemas of the configuration, against which Hydra checks every key and type of the files under conf/.

They assemble the ``options.py`` of other packages. Nothing here imports torch: ``--help`` must answer at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from boxtwin.datasets.options import DatasetOptions, SplitOptions
from boxtwin.detector.options import DetectorOptions, PretrainingOptions, TrainerOptions
from boxtwin.labels.options import LabelOptions
from boxtwin.mixing.options import AugmentationOptions, VariationsOptions

# Settings of a run that are paths, and so need no quotes of Hydra's.
_OF_DATA = ("root", "images", "annotations", "unlabelled", "empty")
PATHS_OF_RUNS = (
    *(f"dataset.{place}" for place in _OF_DATA),
    *("detector.weights", "split.file", "labels.file", "generator.path", "data", "tracking.folder"),
)
# Settings of any script that are text, whatever number it looks like.
TEXTS = (
    *PATHS_OF_RUNS,
    *(f"pretraining.dataset.{place}" for place in (*_OF_DATA, "name")),
    *("study", "final", "dataset.name", "split.name", "register", "folder", "to", "run", "runs", "images"),
)


@dataclass
class DatasetConfig(DatasetOptions):
    """A data set and the augmentation of its training images."""

    augmentation: AugmentationOptions = field(default_factory=AugmentationOptions)


@dataclass
class PretrainingConfig(PretrainingOptions):
    """Training on other images first, and their data set.

    It starts from ``detector.weights``; training on the real images of a study starts from its weights and anchors.
    """

    dataset: DatasetConfig = MISSING

    @property
    def simulates(self) -> bool:
        """Whether the images of a pre-training are simulated, and not labelled ones or variations."""
        return not self.per_image and self.dataset.build is not None


@dataclass
class TrackingConfig:
    """The MLflow store: a server's address, or sqlite in ``folder``."""

    uri: str | None = None
    folder: str = "mlruns"


@dataclass
class BoxtwinConfig:
    """A run. ``generator`` is built by its ``_target_``, which checks its settings.

    The nodes have types and no defaults: Hydra copies each registered schema for every group that ``--help`` lists.
    """

    dataset: DatasetConfig = MISSING
    split: SplitOptions = MISSING
    variations: VariationsOptions = MISSING
    generator: dict[str, Any] = MISSING
    labels: LabelOptions = MISSING
    detector: DetectorOptions = MISSING
    trainer: TrainerOptions = MISSING
    pretraining: PretrainingConfig = MISSING
    tracking: TrackingConfig = MISSING
    study: str = MISSING
    seed: int = MISSING
    rerun: bool = MISSING
    quality: bool = MISSING
    jobs: int | None = None  # here, not in a file: configurations that a run kept before it existed are read too
    data: str = MISSING
    final: str | None = None  # as jobs; a study, whose recommended condition is trained on all labelled images
    final_seeds: int = 3
    final_folds: int = 5


@dataclass
class GenerateConfig(BoxtwinConfig):
    """Settings of generate.py beyond those of a run, none of which defines a run."""

    jobs: int | None = 1  # a sweep makes one store after the other
    confirm: bool = False
    budget: float | None = None
    dry_run: bool = False
    preview: bool = False
    regenerate: str | None = None


@dataclass
class CompareConfig:
    """Settings of compare.py."""

    study: str | None = None
    runs: Any = None  # a path or a list of them
    primary: str | None = None
    annotations: str | None = None
    folder: str = "reports"
    plan: bool = False
    brief: bool = False
    tracking: TrackingConfig = field(default_factory=TrackingConfig)


@dataclass
class ExportConfig:
    """Settings of export.py."""

    run: str = MISSING
    formats: Any = MISSING  # one name or a list of them
    to: str | None = None
    register: str | None = None
    tracking: TrackingConfig = field(default_factory=TrackingConfig)


@dataclass
class CountConfig:
    """Settings of count.py."""

    run: Any = "best"  # one or a list
    study: str | None = None
    images: Any = MISSING  # one or a list
    annotations: str | None = None
    folder: str | None = None
    formats: Any = field(default_factory=lambda: ["coco"])  # one name or a list of them
    pictures: bool = True
    scale: float | None = None
    device: str = "auto"
    threads: int | None = None
    tracking: TrackingConfig = field(default_factory=TrackingConfig)


@dataclass
class SplitFile:
    """A name of two parts, as in train.py: Hydra takes ``split=`` for a choice among the files of conf/split."""

    file: str | None = None


@dataclass
class ReviewConfig:
    """Settings of review.py: one of the first four says what to do."""

    export: str | None = None
    read: Any = None  # a path; several for a data set of all of them
    suspects: str | None = None
    next: str | None = None
    store: str | None = None
    folder: str | None = None
    split: SplitFile = field(default_factory=SplitFile)
    new_classes: bool = False
    study: str | None = None
    number: int = 20
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
