"""Settings of the labels of variations: the group `labels` of the configuration."""

from __future__ import annotations

from dataclasses import dataclass, field
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
    """How variations get their boxes. Each way to label uses some of these settings; see `boxtwin.labels.method`.

    Raises:
        ValueError: a value is out of its range.
    """

    name: str = REQUIRED
    _target_: str = REQUIRED  # the class, a `LabelMethod`
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
    more: dict[str, Any] = field(default_factory=dict)  # settings of a way to label that is none of the above

    def __post_init__(self) -> None:
        for name in ("detectors", "search", "tolerance"):
            if getattr(self, name) < 0:
                raise ValueError(f"labels.{name}={getattr(self, name)} must not be negative")
        if not 0 <= self.gone <= self.sure:
            raise ValueError(f"labels.gone={self.gone} must lie between 0 and labels.sure={self.sure}")
        if not 0 < self.iou <= 1:
            raise ValueError(f"labels.iou={self.iou} must lie between 0 and 1")
