"""What every way to label variations is: the Protocol of the classes that `labels._target_` names."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from boxtwin.datasets.image_io import Pixels
from boxtwin.datasets.sample import Dataset, Judgement
from boxtwin.labels.ensemble import Member
from boxtwin.labels.options import LabelOptions


@runtime_checkable
class Transfer(Protocol):
    """Decides what becomes of each box that a generator says is in its picture."""

    name: str

    def __call__(
        self,
        source: Pixels,
        pixels: Pixels,
        boxes: Float[np.ndarray, "n 4"],
        labels: Int[np.ndarray, " n"],
        image: str = "",
    ) -> Judgement:
        """Judge ``boxes`` (xyxy, pixels) of a variation against its pixels and those of the source.

        ``image`` is the path of the variation in its store.
        """


class Variations(NamedTuple):
    """What is labelled: variations of a data set's images."""

    dataset: Dataset
    generator: str  # its name
    boxes: str  # what the generator knows of where objects are: "carried", "exact" or "none" (`Generator.boxes`)


@runtime_checkable
class LabelMethod(Protocol):
    """A way to label variations. It is cheap to build; what takes time happens in what `judge` returns.

    A new way takes a class and a file in conf/labels, which names the class (``_target_``) and holds its own settings
    under ``more``.
    """

    by_hand: bool  # whether a person does it: then reports add up the minutes
    asks_detectors: bool  # whether detectors, trained on real images alone, look at the variations

    def __init__(self, options: LabelOptions, variations: Variations) -> None:
        """Check the options.

        Raises:
            InputError: they do not suit the variations.
        """

    def identity(self) -> dict[str, Any]:
        """All that the labels follow from beside the detectors, as JSON; the store is keyed by it."""

    def judge(self, members: Sequence[Member]) -> Transfer:
        """What decides about each variation; ``members`` are the detectors, if it asks them."""


def settings_of(options: LabelOptions, *names: str) -> dict[str, Any]:
    """Some of the options as JSON."""
    values = {name: getattr(options, name) for name in names}
    return {name: value.name if isinstance(value, Enum) else value for name, value in values.items()}
