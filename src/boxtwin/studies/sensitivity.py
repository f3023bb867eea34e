"""What a study could have seen: its yardstick, the smallest gain in reach, and whether training went on long enough."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from boxtwin.studies.comparison import Contrast
from boxtwin.studies.inference import LEVEL, Interval
from boxtwin.studies.runs import Cell

FIGURE = "map_50"
POWER = 0.8  # the usual chance at which a gain is called detectable (Cohen 1988, section 2.4)
# A training is over when the last third of its validations surely lies by less than this above the third before: a
# point of AP, as in the ratio.
STILL = 0.01
# Overrides that a study's table varies, or that the machine decides: what is left is the recipe.
VARIED = (
    *("seed", "study", "rerun", "data", "split", "variations", "generator", "labels", "tracking", "quality", "hydra"),
)
LENGTH = ("trainer.steps", "trainer.validations")
MACHINE = tuple(
    f"trainer.{name}"
    for name in ("precision", "accelerator", "threads", "workers", "cache", "compile", "coco_evaluator")
)

Told = Literal["on", "over", "unknown"]


def half_width(interval: Interval) -> float:
    """Half of an interval: a measured gain must exceed it to stand clear of 0."""
    return (interval.high - interval.low) / 2


def detectable(interval: Interval) -> float:
    """The true gain that four of five such studies would set apart from 0 (minimal detectable difference)."""
    return half_width(interval) * (1 + float(stats.norm.ppf(POWER)) / float(stats.norm.ppf((1 + LEVEL) / 2)))


def recipe(cell: Cell) -> tuple[str, ...] | None:
    """What a run was configured with, apart from a table's axes, steps and machine; None where it did not say."""
    if not cell.overrides:
        return None
    kept = []
    for override in shlex.split(cell.overrides):
        key = override.lstrip("+~").split("=")[0]
        if not key.startswith("--") and key.split(".")[0] not in VARIED and key not in (*LENGTH, *MACHINE):
            kept.append(override)
    return (cell.dataset, cell.detector, *sorted(kept))


@dataclass(frozen=True)
class Length:
    """How much AP on validation still rose, between the second and the last third of the validations."""

    rise: float  # mean over seeds
    low: float  # its 95 % interval; nan with one seed
    high: float
    seeds: int

    @property
    def told(self) -> Told:
        """Whether it was still rising, was over, or cannot be told."""
        if self.high < STILL:
            return "over"
        return "on" if self.low > 0 else "unknown"


def length_of(curves: Sequence[Sequence[tuple[int, float]]]) -> Length | None:
    """From the validation curve of each seed; None if none has three validations at least."""
    rises = []
    for curve in curves:
        values = [value for _, value in sorted(curve)]
        third = len(values) // 3
        if third:
            rises.append(float(np.mean(values[-third:]) - np.mean(values[-2 * third : -third])))
    if not rises:
        return None
    mean = math.fsum(rises) / len(rises)
    if len(rises) == 1:
        return Length(mean, math.nan, math.nan, 1)
    error = float(np.std(rises, ddof=1)) / math.sqrt(len(rises))
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(rises) - 1)) * error
    return Length(mean, mean - half, mean + half, len(rises))


Series = list[tuple[int, Contrast]]


def gains_by_steps(cells: Sequence[Cell], contrasts: Sequence[Contrast]) -> list[Series]:
    """Contrasts that differ in their steps alone, by steps."""
    recipes = {cell.run_id: recipe(cell) for cell in cells}
    found: dict[tuple[object, ...], dict[int, Contrast]] = {}
    for contrast in contrasts:
        own = recipes.get(contrast.new.runs[0])
        if contrast.kind == "control" or own is None:
            continue
        new, old = contrast.new, contrast.old
        key = (contrast.kind, own, new.split, old.split, new.generator, new.variations)
        found.setdefault(key, {})[new.steps] = contrast
    return [sorted(by_steps.items()) for by_steps in found.values() if len(by_steps) > 1]
