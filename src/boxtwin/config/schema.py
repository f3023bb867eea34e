"""Schemas of the configuration: what the rooms declare in their ``options.py``, put together.

Hydra checks every key and type against these classes; the files under conf/ hold the values. Nothing here imports
torch, so that ``--help`` and shell completion answer at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from boxtwin.datasets.options import DatasetOptions, SplitOptions
from boxtwin.detector.options import DetectorOptions, TrainerOptions
from boxtwin.labels.options import LabelOptions
from boxtwin.mixing.options import AugmentationOptions, VariationsOptions


@dataclass
class DatasetConfig(DatasetOptions):
    """A data set, and what is done at random to its images in training."""

    augmentation: AugmentationOptions = field(default_factory=AugmentationOptions)


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
    split: SplitOptions = MISSING
    variations: VariationsOptions = MISSING
    generator: dict[str, Any] = MISSING
    labels: LabelOptions = MISSING
    detector: DetectorOptions = MISSING
    trainer: TrainerOptions = MISSING
    tracking: TrackingConfig = MISSING
    study: str = MISSING
    seed: int = MISSING
    rerun: bool = MISSING
    quality: bool = MISSING
    data: str = MISSING


@dataclass
class GenerateConfig(BoxtwinConfig):
    """What generate.py takes beyond a run's own settings. None of it defines a cell."""

    confirm: bool = False
    budget: float | None = None
    regenerate: str | None = None


@dataclass
class CompareConfig:
    """What compare.py takes."""

    study: str | None = None
    runs: str | None = None
    folder: str = "reports"
    plan: bool = False
    tracking: TrackingConfig = field(default_factory=TrackingConfig)


@dataclass
class ExportConfig:
    """What export.py takes."""

    run: str = MISSING
    formats: Any = MISSING  # one name or a list of them
    to: str | None = None
    register: str | None = None
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
