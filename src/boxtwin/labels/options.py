"""Settings of the labels of variations: the group `labels` of the configuration."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

REQUIRED: Any = "???"  # what OmegaConf takes for a value that must be given


class NewObjects(Enum):
    """What is done with a variation that shows objects which its source lacks."""

    refuse = "refuse"
    label = "label"
    ignore = "ignore"


class Confirmed(Enum):
    """Which images of a label file count as confirmed by a person."""

    marked = "marked"
    all = "all"


@dataclass
class LabelOptions:
    """Settings of all ways to label; each uses some of them (`boxtwin.labels.method`).

    Raises:
        ValueError: a value is out of its range.
    """

    name: str = REQUIRED
    _target_: str = REQUIRED  # the class, a `LabelMethod`
    detectors: int = 0  # trained on real images, with seeds from 0, to detect objects in variations
    steps: int | None = None
    # carry
    new_objects: NewObjects = NewObjects.refuse
    present_response: float = 0.6
    absent_response: float = 0.3
    shift_correlation: float = 0.5
    shift_gain: float = 0.15
    search_radius: int = 12
    # pseudo
    agree: int = 2
    iou: float = 0.5
    tolerance: float = 0.25
    # manual
    file: str | None = None
    confirmed: Confirmed = Confirmed.marked
    more: dict[str, Any] = field(default_factory=dict)  # settings of a way to label that is none of the above

    def __post_init__(self) -> None:
        for name in ("detectors", "search_radius", "tolerance"):
            if getattr(self, name) < 0:
                raise ValueError(f"labels.{name}={getattr(self, name)} must not be negative")
        if not 0 <= self.absent_response <= self.present_response:
            raise ValueError(
                f"labels.absent_response={self.absent_response} must lie between 0 and "
                f"labels.present_response={self.present_response}"
            )
        if not 0 < self.iou <= 1:
            raise ValueError(f"labels.iou={self.iou} must lie between 0 and 1")
