"""The metrics of a study by class: each condition's, and by how much it differs from no variations, pair by pair."""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from jaxtyping import Float

from boxtwin.studies.comparison import RESAMPLING_SEED
from boxtwin.studies.conditions import Estimate, Row, baseline, paired_seeds
from boxtwin.studies.evidence import Evidence
from boxtwin.studies.inference import Interval, bootstrap_counts, interval_of
from boxtwin.studies.runs import StudyRun

FIGURES = ("map", "map_50", "count_mae", "count_bias", "count_threshold")
COMPARED = ("map_50", "count_mae")  # metrics with an interval
RESAMPLES = 400  # of the test images, as for the other parts of a table


@dataclass(frozen=True)
class ClassChange:
    """A metric of a class minus that of no variations; no interval with fewer than two pairs, or without matches."""

    mean: float
    pairs: int
    interval: Interval | None = None


@dataclass(frozen=True)
class ClassFigures:
    """One class under one condition: `FIGURES` over seeds, and the changes of them where there is a baseline."""

    row: Row
    estimates: Mapping[str, Estimate]
    changes: Mapping[str, ClassChange]


def class_figures(
    rows: Sequence[Row], runs: Sequence[StudyRun], evidence: Mapping[str, Evidence]
) -> dict[str, list[ClassFigures]]:
    """By the name of the class, in the order of the data set, each condition that has it; empty for one class alone."""
    classes = {this_run.run_id: this_run.classes for this_run in runs}
    names = list(dict.fromkeys(name for this_run in runs for name in this_run.classes))
    if len(names) < 2:
        return {}

    @functools.cache
    def resampled(run: str) -> Mapping[str, Float[np.ndarray, "_classes _resamples"]]:
        kept = evidence[run]
        counts = bootstrap_counts(len(kept.names), RESAMPLES, RESAMPLING_SEED)
        errors = np.abs(kept.found_by_class - kept.true_by_class).astype(np.float64)
        ap50 = kept.matches["all"].part(np.ones(len(kept.names), dtype=bool), thresholds=1).by_class(counts)[:, :, 0]
        return {"map_50": ap50, "count_mae": (counts @ errors / counts.sum(axis=1, keepdims=True)).T}

    def estimates(name: str, row: Row) -> dict[str, Estimate]:
        by_seed = {seed: classes[run].get(name, {}) for seed, run in row.run_of.items()}
        pairs = {figure: [(s, float(v.get(figure, math.nan))) for s, v in by_seed.items()] for figure in FIGURES}
        return {figure: Estimate(tuple(p for p in each if math.isfinite(p[1]))) for figure, each in pairs.items()}

    by_class: dict[str, list[ClassFigures]] = defaultdict(list)
    for name, row in product(names, rows):
        if any(name in classes[run] for run in row.runs):
            new, base, changes = estimates(name, row), baseline(rows, row), {}
            if base is not None and (seeds := paired_seeds(row, base)):
                old = estimates(name, base)
                pairs = [(row.run_of[seed], base.run_of[seed]) for seed in seeds]
                for figure in FIGURES:
                    after, before = dict(new[figure].by_seed), dict(old[figure].by_seed)
                    known = [after[seed] - before[seed] for seed in seeds if seed in after and seed in before]
                    complete = figure in COMPARED and len(known) == len(seeds)
                    interval = _interval(figure, name, pairs, evidence, resampled) if complete else None
                    mean = math.fsum(known) / len(known) if known else math.nan
                    changes[figure] = ClassChange(mean, len(known), interval)
            by_class[name].append(ClassFigures(row, new, changes))
    return dict(by_class)


def _interval(
    figure: str,
    name: str,
    pairs: Sequence[tuple[str, str]],
    evidence: Mapping[str, Evidence],
    resampled: Callable[[str], Mapping[str, Float[np.ndarray, "_classes _resamples"]]],
) -> Interval | None:
    """None where a run keeps no matches or no counts by class, or runs were tested on different images."""
    runs = [run for pair in pairs for run in pair]
    if any(run not in evidence or name not in evidence[run].classes for run in runs):
        return None
    if len({evidence[run].names for run in runs}) > 1:
        return None
    values = {run: resampled(run)[figure][evidence[run].classes.index(name)] for run in runs}
    return interval_of(np.stack([values[new] - values[old] for new, old in pairs]), len(evidence[runs[0]].names))


def class_columns(by_class: Mapping[str, Sequence[ClassFigures]], row: Row) -> dict[str, float | None]:
    """The columns of comparison.csv by class, and a row's entries: means, extremes and changes; None: not known."""
    columns: dict[str, float | None] = {}
    for name, conditions in by_class.items():
        of_row = next((each for each in conditions if each.row.runs == row.runs), None)
        for figure in FIGURES:
            estimate = of_row.estimates[figure] if of_row else None
            change = of_row.changes.get(figure) if of_row else None
            for part, field in {"mean": "mean", "min": "low", "max": "high"}.items():
                columns[f"{name}/{figure}_{part}"] = getattr(estimate, field, None)
            columns[f"{name}/{figure}_change"] = getattr(change, "mean", None)
            columns[f"{name}/{figure}_change_pairs"] = getattr(change, "pairs", None)
        for figure in COMPARED:
            change = of_row.changes.get(figure) if of_row else None
            for end in ("low", "high"):
                columns[f"{name}/{figure}_change_{end}95"] = getattr(change and change.interval, end, None)
    return columns
