"""Ranges of the numbers among the settings of a run, for those that no other check knows.

Every number is finite and not negative, and no whole number is larger than torch and numpy take for a seed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import fields, is_dataclass

from boxtwin.config.identity import NO_PRETRAINING
from boxtwin.config.schema import BoxtwinConfig
from boxtwin.errors import InputError

LARGEST = 2**63 - 1
# By the last two parts of a setting's name, as a pre-training has a data set of its own.
LEAST = {
    "dataset.image_size": 1,
    "dataset.max_pixels": 1,
    "build.images": 1,
    "build.image_size": 1,
    "build.chips_per_scene": 1,
    "trainer.batch_size": 1,
    "trainer.threads": 1,
    "labels.agree": 1,
    "final_seeds": 1,
    "final_folds": 1,
}
MOST = {"detector.nms_iou": 1, "pretraining.redraw_strength": 1}


def numbers_of(config: object, below: str = "") -> Iterator[tuple[str, int | float]]:
    """The names and values of all numbers in a dataclass and in the dataclasses that it holds."""
    for each in fields(config):  # type: ignore[arg-type]
        value = getattr(config, each.name)
        if is_dataclass(value):
            yield from numbers_of(value, f"{below}{each.name}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{below}{each.name}", value


def check_finite(config: object) -> None:
    """Raise `InputError` for infinity and for what is no number (nan), of which every comparison is false."""
    for name, value in numbers_of(config):
        if not math.isfinite(value):
            raise InputError(f"{name}={value} must be a finite number")


def check_ranges(config: BoxtwinConfig) -> None:
    """Raise `InputError` for a number out of its range. Settings of a pre-training that is not used are not checked."""
    pretraining, unused = config.pretraining, "\0"
    if pretraining.name == NO_PRETRAINING:
        unused = "pretraining."
    elif pretraining.per_image:  # on variations, not on a data set
        unused = "pretraining.dataset."
    for name, value in numbers_of(config):
        if name.startswith(unused):
            continue
        place = ".".join(name.split(".")[-2:])
        least, most = LEAST.get(place, 0), MOST.get(place, LARGEST)
        if value < least:
            raise InputError(f"{name}={value} must {f'be at least {least}' if least else 'not be negative'}")
        if value > most:
            raise InputError(f"{name}={value} must be at most {most}")
