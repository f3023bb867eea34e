"""Primary comparisons of a study: named in a file before its first run, and the only ones that can be significant.

```
comparisons:
- treatment: {pretraining: sar_scenes, variations: 10, generator: copy_paste, steps: 1314}
  control: {steps: 804}
  real_images: 10
```

A side is a condition, given by settings as on the command line of ``train.py``; unless given, ``variations`` is 0,
``pretraining`` and ``pretraining.redraw`` are none, and ``pretraining.fit`` is false. ``steps`` is short for
``trainer.steps``, and ``real_images`` is the number of real training images. ``unlabelled_images`` and ``empty_images``
are numbers of images beside the data set, 0 unless given; where a study has several sets of as many, give the number
and hash that the report shows. What stands beside the two sides holds for
both. ``name`` is optional.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from boxtwin.config.identity import NO_PRETRAINING
from boxtwin.errors import InputError
from boxtwin.studies.condition_values import (
    COUNT,
    DEVICE,
    EPOCHS,
    EXTRA,
    FIT,
    OF_REDRAW,
    OF_TRAINING_IMAGES,
    PRETRAINING,
    REDRAW,
    Values,
    as_overrides,
    differences,
    flatten,
    part_of,
)
from boxtwin.studies.conditions import Row, paired_seeds

PRIMARY_TAG = "boxtwin.primary"  # of the MLflow run of a report: whether it has primary comparisons
PRIMARY_FILE = "primary.yaml"
REAL_IMAGES = "real_images"
STEPS = "trainer.steps"
GROUPS = ("dataset", "split", "generator", "labels", "detector", "pretraining")
SHORT = {
    "variations": COUNT,
    "steps": STEPS,
    **{name: name for name in (REAL_IMAGES, *EXTRA)},
    **{name: f"{name}.name" for name in GROUPS},
}
UNSAID = {COUNT: "0", PRETRAINING: NO_PRETRAINING, REDRAW: "none", FIT: "false", **dict.fromkeys(EXTRA, "0")}
EXAMPLE = "comparisons: [{treatment: {variations: 10, generator: repeat}, control: {variations: 0}, real_images: 40}]"


@dataclass(frozen=True)
class PrimaryComparison:
    """Settings of the two conditions of a comparison, by their full names."""

    name: str
    treatment: Values
    control: Values
    treatment_in_words: str = ""  # what distinguishes the treatment, whatever the name


def primary_comparisons(content: object, file: str) -> list[PrimaryComparison]:
    """The comparisons of a file with this content; raises `InputError` if it is not in the form shown above."""
    entries = content.get("comparisons") if isinstance(content, dict) and len(content) == 1 else None
    if not isinstance(entries, list) or not entries:
        raise InputError(f"{file} must have the single key comparisons with a list that is not empty, as in {EXAMPLE}")
    found = [_comparison(entry, f"{file}, comparison {place}") for place, entry in enumerate(entries, start=1)]
    if len({each.name for each in found}) < len(found):
        raise InputError(f"{file} has two comparisons of the same name or settings; remove one of them")
    return found


def _comparison(entry: object, where: str) -> PrimaryComparison:
    sides = [entry.get(side) for side in ("treatment", "control")] if isinstance(entry, dict) else []
    if not isinstance(entry, dict) or not all(isinstance(side, dict) for side in sides):
        raise InputError(f"{where} needs the settings of a treatment and a control, as in {EXAMPLE}")
    both = {key: value for key, value in entry.items() if key not in ("name", "treatment", "control")}
    shared, *of_sides = (flatten(each or {}) for each in (both, *sides))
    if unknown := [key for key in {**shared, **of_sides[0], **of_sides[1]} if key not in SHORT and "." not in key]:
        raise InputError(f"{where}: {unknown[0]} is none of {', '.join(SHORT)}; write other settings in full")
    treatment, control = ({SHORT.get(key, key): value for key, value in (shared | side).items()} for side in of_sides)
    if UNSAID | treatment == UNSAID | control:
        raise InputError(f"{where}: treatment and control are the same condition")
    texts = [as_overrides(each) for each in (*of_sides, shared)]
    name = f"{texts[0] or 'none'} against {texts[1] or 'none'}" + (f" ({texts[2]})" if texts[2] else "")
    return PrimaryComparison(str(entry.get("name", name)), UNSAID | treatment, UNSAID | control, texts[0] or "none")


def find_rows(rows: Sequence[Row], comparison: PrimaryComparison) -> tuple[Row | None, Row | None]:
    """The conditions of treatment and control; None for one that has no finished run.

    Of a table with several kinds of device (`DEVICE`), both on the kind on which they have the most seeds in common, of
    several such kinds the first by name.

    Raises:
        InputError: several conditions fit a side, or the two differ in settings that the comparison does not name.
    """
    devices = sorted({row.values.get(DEVICE, "") for row in rows})
    on_one = [[row for row in rows if row.values.get(DEVICE, "") == device] for device in devices]
    treated, control = (
        [_find(part, side, comparison.name) for part in on_one] for side in (comparison.treatment, comparison.control)
    )
    pairs = [(new, old) for new, old in zip(treated, control, strict=True) if new and old]
    new, old = (next((row for row in side if row), None) for side in (treated, control))
    if pairs:
        new, old = max(pairs, key=lambda pair: len(paired_seeds(*pair)))
    if new and old and (unnamed := _unnamed(new, old, comparison)):
        also = ", ".join(f"{key} ({_value(new, key)} against {_value(old, key)})" for key in unnamed[:4])
        raise InputError(
            f"primary comparison {comparison.name}: its conditions also differ in {also}; name these settings "
            f"of both sides in {PRIMARY_FILE}, or leave the runs out"
        )
    return new, old


def _find(rows: Sequence[Row], side: Values, name: str) -> Row | None:
    found = [row for row in rows if all(value in _values(row, key) for key, value in side.items())]
    if len(found) > 1:
        apart = sorted({key for each in differences([row.values for row in found]) for key in each})
        raise InputError(
            f"primary comparison {name}: {len(found)} conditions fit {as_overrides(side)}: "
            f"{'; '.join(row.name for row in found[:4])}; name more settings in {PRIMARY_FILE}: {', '.join(apart)}"
        )
    return found[0] if found else None


def _value(row: Row, key: str) -> str:
    return f"{row.real_images:g}" if key == REAL_IMAGES else row.values.get(key, UNSAID.get(key, "null"))


def _values(row: Row, key: str) -> tuple[str, ...]:
    """What a side may give for the value of a row: of images beside the data set, which have a hash, the number."""
    value = _value(row, key)
    return (value, value.partition("-")[0]) if key in EXTRA else (value,)


def _unnamed(new: Row, old: Row, comparison: PrimaryComparison) -> list[str]:
    """Settings in which two conditions differ, without those that are named and what follows from them.

    Numbers of optimiser steps may differ, since each treatment has a number that is best for it; then each side names
    its own, so that nobody chooses it by the results.
    """
    sides = (comparison.treatment, comparison.control)
    named = {key for side in sides for key in side if _value(new, key) != _value(old, key)}
    if any(STEPS in row.values and STEPS not in side for row, side in zip((new, old), sides, strict=True)):
        named -= {STEPS}
    groups = {key.removesuffix(".name") for key in named if key.endswith(".name")}
    if ("generator.name" in new.values) != ("generator.name" in old.values):  # one trains on no variations at all
        groups |= {"variations", "generator", "labels"}
    if (_value(new, COUNT) == "0") != (_value(old, COUNT) == "0"):
        named |= {"variations.synthetic_fraction"}
    if "pretraining" in groups:
        groups |= {"pretraining_images"}
    if named & {REDRAW, FIT}:
        named |= set(OF_REDRAW)
    parts = {"split"} if "dataset" in groups else set()
    by_size = "split" in groups or REAL_IMAGES in named
    follow = {"setting", "store", DEVICE} | ({STEPS} if EPOCHS in new.values and EPOCHS in old.values else set())
    return sorted(
        key
        for key in {*new.values, *old.values} - named - follow
        if new.values.get(key) != old.values.get(key)
        and key.split(".")[0] not in groups - {"split"}
        and part_of(key) not in parts
        and not (by_size and (key in OF_TRAINING_IMAGES or key.startswith(("split.name", "split.train"))))
    )
