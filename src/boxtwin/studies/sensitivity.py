"""What a study could have detected: the smallest gain in reach, and whether training went on long enough."""

from __future__ import annotations

import math
import re
import shlex
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from boxtwin.studies.comparison import Contrast
from boxtwin.studies.condition_values import DEVICE
from boxtwin.studies.inference import NORMAL_QUANTILE, Interval, mean_interval
from boxtwin.studies.runs import StudyRun

METRIC = "map_50"
POWER = 0.8  # the usual chance at which a gain is called detectable (Cohen 1988, section 2.4)
# A training is over when the last third of its validations surely lies by less than this above the third before: a
# point of AP, as in the ratio.
STILL = 0.01
# Overrides that a study's table varies, or that the machine decides: what is left is the recipe.
VARIED = re.compile(
    r"--|(seed|study|rerun|jobs|data|split|variations|generator|labels|tracking|quality|hydra)(\.|$)|trainer\."
    r"(steps|validations|precision|accelerator|devices|threads|batch_threads|workers|cache|compile|coco_evaluator)$"
)


def detectable(interval: Interval) -> float:
    """The true gain that four of five such studies would detect (minimal detectable difference)."""
    return interval.half_width * (1 + float(stats.norm.ppf(POWER)) / NORMAL_QUANTILE)


def recipe(run: StudyRun) -> tuple[str, ...] | None:
    """What was configured, apart from a table's axes, steps and machine; None where that is not recorded."""
    if not run.overrides:
        return None
    words = shlex.split(run.overrides)
    kept = [word for word in words if not VARIED.match(word.lstrip("+~").partition("=")[0])]
    return (run.dataset, run.detector, *sorted(kept))


@dataclass(frozen=True)
class LateRise:
    """How much AP on validation still rose, between the second and the last third of the validations."""

    rise: float  # mean over seeds
    low: float  # its 95 % interval; nan with one seed
    high: float
    seeds: int

    @property
    def state(self) -> Literal["rising", "stopped", "unknown"]:
        if self.high < STILL:
            return "stopped"
        return "rising" if self.low > 0 else "unknown"


def late_rise(curves: Sequence[Sequence[tuple[int, float]]]) -> LateRise | None:
    """From the validation curve of each seed; None if none has three validations at least."""
    rises = []
    for curve in curves:
        values = [value for _, value in sorted(curve)]
        third = len(values) // 3
        if third:
            rises.append(float(np.mean(values[-third:]) - np.mean(values[-2 * third : -third])))
    if not rises:
        return None
    low, high = mean_interval(rises) or (math.nan, math.nan)
    return LateRise(math.fsum(rises) / len(rises), low, high, len(rises))


Series = list[tuple[int, Contrast]]


def gains_by_steps(contrasts: Sequence[Contrast]) -> list[Series]:
    """Contrasts that differ in their steps alone, by steps."""
    series: dict[tuple[object, ...], dict[int, Contrast]] = defaultdict(dict)
    for contrast in contrasts:
        new, old = contrast.new, contrast.old
        shared = recipe(new.first)
        if contrast.kind in ("variations", "positive control") and shared is not None:
            alike = (contrast.kind, shared, new.split, old.split, new.generator, new.variations, new.values.get(DEVICE))
            series[alike][new.first.steps] = contrast
    return [sorted(by_steps.items()) for by_steps in series.values() if len(by_steps) > 1]
