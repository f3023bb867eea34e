"""The conditions that show the effect of a pre-training: those without it, and those with more real steps instead.

A pre-trained detector has seen more images than one that was trained on real images alone. The control for that is
training without it for so many more steps that both have seen as many pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from boxtwin.config.identity import NO_PRETRAINING
from boxtwin.studies.condition_values import PRETRAINING, Values
from boxtwin.studies.conditions import Row

STEPS = "trainer.steps"


def pretraining_pairs(rows: Sequence[Row]) -> list[tuple[Literal["pretraining", "equal pixels"], Row, Row]]:
    """Each row with a pre-training beside the row without it, and beside the row that saw as many pixels instead.

    The two rows of a pair are equal in everything else.
    """
    pairs: list[tuple[Literal["pretraining", "equal pixels"], Row, Row]] = []
    for row in rows:
        if row.values.get(PRETRAINING, NO_PRETRAINING) == NO_PRETRAINING:
            continue
        own = _without_pretraining(row.values)
        steps = equal_pixel_steps(row.values)
        for other in rows:
            if other.values.get(PRETRAINING, NO_PRETRAINING) != NO_PRETRAINING:
                continue
            theirs = _without_pretraining(other.values)
            if theirs == own:
                pairs.append(("pretraining", row, other))
            if steps is not None and theirs == own | {STEPS: str(steps)}:
                pairs.append(("equal pixels", row, other))
    return pairs


def equal_pixel_steps(values: Values) -> int | None:
    """Steps on real images alone that show a detector as many pixels as a condition's pre-training and training.

    Optimiser steps x batch size x side of the squares that the network sees, squared; rounded up to a multiple of
    ``trainer.validations``. None where the condition does not record these settings.
    """
    try:
        size = int(values["dataset.image_size"])
        side = _crop(values, size)
        # Variations are shown in the size of the real images.
        other = _crop(values, int(values.get("pretraining.dataset.image_size", size)))
        before = int(values["pretraining.steps"]) * int(values["pretraining.batch_size"]) * other**2
        steps, validations = int(values[STEPS]), int(values["trainer.validations"])
        more = before / (int(values["trainer.batch_size"]) * side**2)
    except (KeyError, ValueError):
        return None
    return math.ceil((steps + more) / validations) * validations


def _crop(values: Values, size: int) -> int:
    crop = values.get("detector.crop", "null")
    return size if crop == "null" else min(int(crop), size)


def _without_pretraining(values: Values) -> dict[str, str]:
    """A condition without the settings of its pre-training.

    Without variations a condition records a generator only where the pre-training uses it.
    """
    mixed = values.get("variations.per_image", "0") != "0"
    left_out = ["pretraining", "pretraining_images"]
    if not mixed:
        left_out += ["generator", "labels", "variations.seed"]
    return {
        key: value
        for key, value in values.items()
        if not any(key == group or key.startswith(f"{group}.") for group in left_out)
    }
