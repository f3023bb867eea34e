"""Settings of the labels of variations: the group `labels` of the configuration."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

REQUIRED: Any = "???"  # what OmegaConf takes for a value that must be given


class NewObjects(StrEnum):
    """What is done with a variation that shows objects which its source lacks."""

    refuse = "refuse"
    label = "label"
    ignore = "ignore"


class Confirmed(StrEnum):
    """Which images of a label file count as confirmed by a person."""

    marked = "marked"
    all = "all"


@dataclass
class LabelOptions:
    """Settings of all ways to label; each uses some of them (`boxtwin.labels.method`)."""

    name: str = REQUIRED
    _target_: str = REQUIRED  # the class, a `LabelMethod`
    detectors: int = 0  # trained on real images, with seeds from 0, to detect objects in variations
    new_objects: NewObjects = NewObjects.refuse  # of carry
    agree: int = 2  # of pseudo
    file: str | None = None  # of manual, as the next
    confirmed: Confirmed = Confirmed.marked
    more: dict[str, Any] = field(default_factory=dict)  # settings of a way to label that is none of the above

    def __post_init__(self) -> None:
        if self.detectors < 0:
            raise ValueError(f"labels.detectors={self.detectors} must not be negative")
