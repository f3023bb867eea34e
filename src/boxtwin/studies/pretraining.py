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

Pair = tuple[Literal["pretraining", "equal pixels"], Row, Row]


def pretraining_pairs(rows: Sequence[Row]) -> list[Pair]:
    """Each row with a pre-training, and the row without it, or the one that saw as many pixels of real images instead.

    The two rows of a pair are equal in everything else.
    """
    pairs: list[Pair] = []
    plain = [row for row in rows if row.values.get(PRETRAINING, NO_PRETRAINING) == NO_PRETRAINING]
    for row in (row for row in rows if row not in plain):
        shared, steps = _without_pretraining(row.values), equal_pixel_steps(row.values)
        for other in plain:
            if _without_pretraining(other.values) == shared:
                pairs.append(("pretraining", row, other))
            if steps and _without_pretraining(other.values) == shared | {STEPS: str(steps)}:
                pairs.append(("equal pixels", row, other))
    return pairs


def equal_pixel_steps(values: Values) -> int | None:
    """Steps on real images alone that show a detector as many pixels as a condition's pre-training and training.

    Optimiser steps x batch size x side of the squares that the network sees, squared; rounded up to a multiple of
    ``trainer.validations``. None where the condition does not record these settings.
    """
    try:
        size, crop = int(values.get("detector.image_size", values["dataset.image_size"])), values["detector.crop"]
        # Variations are shown in the size of the real images.
        sides = [size, int(values.get("pretraining.dataset.image_size", size))]
        side, other = sides if crop == "null" else (min(int(crop), each) for each in sides)
        before = int(values["pretraining.steps"]) * int(values["pretraining.batch_size"]) * other**2
        more = before / (int(values["trainer.batch_size"]) * side**2)
        validations = int(values["trainer.validations"])
        return math.ceil((int(values[STEPS]) + more) / validations) * validations
    except (KeyError, ValueError):
        return None


def _without_pretraining(values: Values) -> dict[str, str]:
    # Without variations, a generator is recorded only where the pre-training uses it.
    mixed = values.get("variations.per_image", "0") != "0"
    groups = {"pretraining", "pretraining_images"} | (set() if mixed else {"generator", "labels"})
    return {k: v for k, v in values.items() if k.split(".")[0] not in groups and (mixed or k != "variations.seed")}
