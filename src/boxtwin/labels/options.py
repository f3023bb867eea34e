"""Settings of the labels of variations: the group `labels` of the configuration."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

REQUIRED: Any = "???"  # what OmegaConf takes for a value that must be given


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
class LabelOptions:
    """How variations get their boxes; see boxtwin.labels. Each option has its part of these."""

    name: str = REQUIRED
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
