"""The figures of a study by class: each condition's, and by how much it differs from no variations, pair by pair."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from boxtwin.studies.comparison import RESAMPLING_SEED
from boxtwin.studies.conditions import Estimate, Row, baseline, paired_seeds
from boxtwin.studies.evidence import Evidence
from boxtwin.studies.inference import Interval, hierarchical_interval, image_counts
from boxtwin.studies.runs import Cell

FIGURES = ("map", "map_50", "count_mae", "count_bias", "count_threshold")
COMPARED = ("map_50", "count_mae")  # figures with an interval
RESAMPLES = 400  # of the test images, as for the other parts of a table
MOST_CLASSES = 30  # that a page and the terminal show; comparison.csv has all


@dataclass(frozen=True)
class ClassChange:
    """A figure of a class minus that of no variations; no interval with fewer than two pairs, or without matches."""

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
    rows: Sequence[Row], cells: Sequence[Cell], evidence: Mapping[str, Evidence]
) -> dict[str, list[ClassFigures]]:
    """By the name of the class, in the order of the data set, each condition that has it; empty for one class alone."""
    by_run = {cell.run_id: cell for cell in cells}
    names = list(dict.fromkeys(name for cell in cells for name in cell.classes))
    if len(names) < 2:
        return {}
    resampled = _Resampled(evidence)
    found: dict[str, list[ClassFigures]] = {}
    for name in names:
        for row in rows:
            runs = dict(zip(row.seeds, row.runs, strict=True))
            if not any(name in by_run[run].classes for run in row.runs):
                continue
            base = baseline(rows, row) if row.variations else None
            pairs = []
            if base is not None:
                base_runs = dict(zip(base.seeds, base.runs, strict=True))
                pairs = [(runs[seed], base_runs[seed]) for seed in paired_seeds(row, base)]
            changes = {figure: _change(figure, name, pairs, by_run, resampled) for figure in FIGURES} if pairs else {}
            estimates = {
                figure: Estimate(
                    tuple(
                        (seed, value)
                        for seed, run in runs.items()
                        if math.isfinite(value := _value(by_run[run], name, figure))
                    )
                )
                for figure in FIGURES
            }
            found.setdefault(name, []).append(ClassFigures(row, estimates, changes))
    return found


def class_columns(
    found: Mapping[str, Sequence[ClassFigures]],
) -> tuple[list[str], dict[tuple[str, ...], dict[str, float | None]]]:
    """Headings of comparison.csv, and by the runs of a row its entries: mean, least, greatest and change by class."""
    headings: list[str] = []
    entries: dict[tuple[str, ...], dict[str, float | None]] = {}
    for name, each in found.items():
        for figure in FIGURES:
            headings += [f"{name}/{figure}_{part}" for part in ("mean", "min", "max", "change", "change_pairs")]
        headings += [f"{name}/{figure}_change_{part}" for figure in COMPARED for part in ("low95", "high95")]
        for of_row in each:
            line = entries.setdefault(of_row.row.runs, {})
            for figure, estimate in of_row.estimates.items():
                values = zip(("mean", "min", "max"), (estimate.mean, estimate.low, estimate.high), strict=True)
                line |= {f"{name}/{figure}_{part}": value for part, value in values}
            for figure, change in of_row.changes.items():
                line |= {f"{name}/{figure}_change": change.mean, f"{name}/{figure}_change_pairs": change.pairs}
                if change.interval is not None:
                    line[f"{name}/{figure}_change_low95"] = change.interval.low
                    line[f"{name}/{figure}_change_high95"] = change.interval.high
    return headings, entries


class _Resampled:
    """AP50 and count MAE of each class of runs, on the test images first and then on resamples of them."""

    def __init__(self, evidence: Mapping[str, Evidence]) -> None:
        self._evidence = evidence
        self._known: dict[str, dict[str, Float[np.ndarray, "_classes _resamples"]]] = {}

    def of(self, run: str, name: str, figure: str) -> Float[np.ndarray, " resamples"] | None:
        """None where the run keeps no matches, or no counts by class."""
        kept = self._evidence.get(run)
        if kept is None or name not in kept.classes:
            return None
        if run not in self._known:
            images = len(kept.names)
            counts = np.concatenate([np.ones((1, images)), image_counts(images, RESAMPLES, RESAMPLING_SEED)])
            errors = np.abs(kept.found_by_class - kept.true_by_class).astype(np.float64)
            ap50 = kept.matches["all"].part(np.ones(images, dtype=bool), thresholds=1).by_class(counts)[:, :, 0]
            self._known[run] = {"map_50": ap50, "count_mae": (counts @ errors / counts.sum(axis=1, keepdims=True)).T}
        return self._known[run][figure][kept.classes.index(name)]

    def images(self, run: str) -> tuple[str, ...]:
        return self._evidence[run].names


def _change(
    figure: str,
    name: str,
    pairs: Sequence[tuple[str, str]],
    by_run: Mapping[str, Cell],
    resampled: _Resampled,
) -> ClassChange:
    values = [_value(by_run[new], name, figure) - _value(by_run[old], name, figure) for new, old in pairs]
    known = [value for value in values if math.isfinite(value)]
    mean = math.fsum(known) / len(known) if known else math.nan
    if figure not in COMPARED or len(known) < 2 or len(known) < len(values):
        return ClassChange(mean, len(known))
    drawn = [(resampled.of(new, name, figure), resampled.of(old, name, figure)) for new, old in pairs]
    differences = [new - old for new, old in drawn if new is not None and old is not None and new.shape == old.shape]
    if len(differences) < len(pairs) or len({resampled.images(run) for pair in pairs for run in pair}) > 1:
        return ClassChange(mean, len(known))
    together = np.stack(differences)
    if not np.isfinite(together).all():  # resamples without any object of the class
        return ClassChange(mean, len(known))
    images = len(resampled.images(pairs[0][0]))
    return ClassChange(mean, len(known), hierarchical_interval(together[:, 0], together[:, 1:], images=images))


def _value(cell: Cell, name: str, figure: str) -> float:
    return float(cell.classes.get(name, {}).get(figure, math.nan))
