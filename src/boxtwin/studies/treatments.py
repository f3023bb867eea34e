"""What one can do with few labelled images, as far as a study has tried it: what it brings, and what it costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from boxtwin.studies.comparison import Contrast, Kind
from boxtwin.studies.conditions import Estimate, Row, paired_seeds
from boxtwin.studies.study import costs

# Kinds of comparisons with a condition that lacks the treatment, and the seconds that all its runs share.
SHARED: dict[Kind, tuple[str, ...]] = {
    "variations": ("time/store_fit", "time/store_vary"),
    "pretraining": ("pretraining/seconds",),
    "unlabelled images": ("time/label_unlabelled",),
    "empty images": (),
    "positive control": (),  # more labels
}


@dataclass(frozen=True)
class Treatment:
    """A comparison, and what the new condition costs more than the old one; nan where it is not recorded."""

    contrast: Contrast
    machine_minutes: float  # of training one run, and of what its runs share
    label_minutes: float  # a person's, on labels of variations


def treatments(contrasts: Sequence[Contrast]) -> list[Treatment]:
    """The treatments of a study, the greatest gain in AP50 first, unknown ones last; none where it has one kind only.

    `repeat` is no treatment: it shows what others owe to steps.
    """
    tried = [each for each in contrasts if each.kind in SHARED and each.new.first.generator != "repeat"]
    if len({each.kind for each in tried}) < 2:
        return []
    tried.sort(key=lambda each: -mean if math.isfinite(mean := each.differences["map_50"].mean) else math.inf)
    return [_treatment(each) for each in tried]


def _treatment(contrast: Contrast) -> Treatment:
    (cost,) = costs([contrast.new])
    # As AP, over pairs: one run on a GPU among many on a CPU would make the treatment look cheap.
    seeds = paired_seeds(contrast.new, contrast.old)
    new, old = (
        Estimate.of((run.seed, run.metrics.get("time/train")) for run in row.runs if run.seed in seeds).mean
        for row in (contrast.new, contrast.old)
    )
    shared = sum(_recorded(contrast.new, metric) for metric in SHARED[contrast.kind])
    return Treatment(contrast, (new - old + shared) / 60, cost.label_minutes)


def _recorded(row: Row, metric: str) -> float:
    """The greatest value of a condition's runs: what they share is recorded by each, and mended by later ones."""
    return Estimate.of((run.seed, run.metrics.get(metric)) for run in row.runs).high
