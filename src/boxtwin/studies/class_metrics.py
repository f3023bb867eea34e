"""The metrics of a study by class: each condition's, and by how much it differs from no variations, pair by pair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

from boxtwin.studies.comparison import Difference, ResampledMetrics, changes
from boxtwin.studies.conditions import Estimate, Row
from boxtwin.studies.evidence import Evidence
from boxtwin.studies.runs import StudyRun

METRICS = ("map", "map_50", "count_mae", "count_bias", "count_threshold")
WITH_INTERVAL = ("map_50", "count_mae")
RESAMPLES = 400  # of the test images, as for the other parts of a table


@dataclass(frozen=True)
class ClassMetrics:
    """One class under one condition: `METRICS` over seeds, and their changes where there is a baseline."""

    row: Row
    estimates: Mapping[str, Estimate]
    changes: Mapping[str, Difference]


def class_metrics(
    rows: Sequence[Row], runs: Sequence[StudyRun], evidence: Mapping[str, Evidence]
) -> dict[str, list[ClassMetrics]]:
    """By the name of the class, in the order of the data set, each condition that has it; empty for one class alone."""
    classes = {run.run_id: run.classes for run in runs}
    names = list(dict.fromkeys(name for run in runs for name in run.classes))
    if len(names) < 2:
        return {}

    def estimate(row: Row, name: str, metric: str) -> Estimate:
        return Estimate.of((seed, classes[run].get(name, {}).get(metric)) for seed, run in row.run_of.items())

    keys = list(product(names, METRICS))
    of_classes = [replace(row, estimates={"/".join(key): estimate(row, *key) for key in keys}) for row in rows]
    resampled = ResampledMetrics(evidence, Evidence.metrics_by_class, RESAMPLES)
    by_class: dict[str, list[ClassMetrics]] = {name: [] for name in names}
    for row, of_class in zip(rows, of_classes, strict=True):
        changed = changes(of_classes, of_class, resampled)
        for name in (name for name in names if any(name in classes[run] for run in row.runs)):
            estimates = {metric: of_class.estimates[f"{name}/{metric}"] for metric in METRICS}
            differences = {metric: changed[f"{name}/{metric}"] for metric in METRICS if changed}
            by_class[name].append(ClassMetrics(row, estimates, differences))
    return by_class
