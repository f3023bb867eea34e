"""Interface of the ways to label variations: the Protocol of the classes that `labels._target_` names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from boxtwin.datasets.sample import Dataset, Judge
from boxtwin.labels.ensemble import Member
from boxtwin.labels.options import LabelOptions


class Variations(NamedTuple):
    """What is labelled: variations of a data set's images."""

    dataset: Dataset
    generator: str  # its name
    boxes: str  # what the generator knows of objects' places: "carried", "exact" or "none" (`Generator.boxes`)


@runtime_checkable
class LabelMethod(Protocol):
    """A way to label variations. It is cheap to build; what takes time happens in the `Judge`.

    A new way takes a class and a file in conf/labels, which names the class (``_target_``) and holds its own settings
    under ``more``. The constructor raises `InputError` where the options do not suit the variations.
    """

    by_hand: bool  # whether a person does it: then reports add up the minutes
    asks_detectors: bool  # whether it needs detectors, trained on real images alone

    def __init__(self, options: LabelOptions, variations: Variations) -> None: ...

    def identity(self) -> dict[str, Any]:
        """All that the labels follow from beside the detectors, as JSON; the store is keyed by it."""

    def judge(self, members: Sequence[Member]) -> Judge:
        """What decides about each variation; ``members`` are the detectors, if it asks them."""


def by_detectors(dataset: Dataset) -> dict[str, str]:
    """What labels that detectors take part in follow from, beside what first versions knew, for `identity`.

    First versions had one threshold for all classes, and took objects in crowds for objects without a box.
    """
    more = {"thresholds": "by class"} if len(dataset.classes) > 1 else {}
    return more | ({"crowds": "left out"} if any(sample.crowd.any() for sample in dataset.samples) else {})
