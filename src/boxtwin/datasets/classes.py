"""How often each class occurs on each side of a split, and which classes a side lacks."""

from __future__ import annotations

import numpy as np

from boxtwin.datasets.splits import SIDES, Split

MOST_LISTED = 30  # classes with a line of their own


def class_counts(split: Split, label: int) -> dict[str, tuple[int, int]]:
    """Images with a class, and its objects in them, by side; crowds are left out."""
    counts = {}
    for side in SIDES:
        objects = [int(np.count_nonzero(sample.object_labels == label)) for sample in split.side(side)]
        counts[side] = (sum(number > 0 for number in objects), sum(objects))
    return counts


def describe_classes(split: Split, classes: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """A line for each class that occurs, and a warning for each that has objects on one side and none on another."""
    lines, warnings = [], []
    for label, name in enumerate(classes):
        counts = class_counts(split, label)
        missing = [side for side in SIDES if not counts[side][1]]
        if len(missing) == len(SIDES):
            continue
        told = ", ".join(f"{side} {objects} objects in {images} images" for side, (images, objects) in counts.items())
        lines.append(f"class {name}: {told}")
        if missing:
            there = " and ".join(f"{counts[side][1]} in {side}" for side in SIDES if counts[side][1])
            has = f"class {name} has objects on some sides only: {there}, none in {' and '.join(missing)}"
            warnings.append(has + _consequence(missing))
    if len(lines) > MOST_LISTED:
        lines[MOST_LISTED:] = [f"and {len(lines) - MOST_LISTED} more classes"]
    return lines, warnings


def _consequence(missing: list[str]) -> str:
    if "train" in missing:
        return "; it cannot be learnt, and its missed objects lower AP and counts"
    if "test" in missing:
        return "; there are no test figures of it"
    return "; its count threshold will be that of all classes"
