"""What each condition cost, beside what it gained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from boxtwin.studies.conditions import Estimate, Row
from boxtwin.studies.runs import FINISHED, StudyRun


@dataclass(frozen=True)
class Cost:
    """Of one condition; nan where runs do not record it.

    What variations cost is counted whole, whichever run or command paid for it, and once: seeds share them.
    """

    row: Row
    fit_seconds: float  # until the generator had learnt from the training images
    vary_seconds: float
    train_seconds: float  # mean over runs
    usd: float
    label_minutes: float  # a person's, on the labels of variations


def costs(rows: Sequence[Row], runs: Sequence[StudyRun]) -> list[Cost]:
    """What each condition cost."""
    metrics = {run.run_id: run.metrics for run in runs}

    def recorded(row: Row, metric: str) -> Estimate:
        return Estimate.of((seed, metrics[run].get(metric)) for seed, run in row.run_of.items())

    def of_store(row: Row, metric: str) -> float:
        # Runs of a condition record the same of its store, but for one that ran before the store's last mending.
        return recorded(row, metric).high if row.variations else 0.0

    return [
        Cost(
            row=row,
            fit_seconds=of_store(row, "time/store_fit"),
            vary_seconds=of_store(row, "time/store_vary"),
            train_seconds=recorded(row, "time/train").mean,
            usd=of_store(row, "data/cost_usd"),
            label_minutes=of_store(row, "data/label_minutes"),
        )
        for row in rows
    ]


def unattributed(runs: Sequence[StudyRun]) -> list[tuple[str, float]]:
    """Runs that made variations and do not record what those of their condition cost in all: name and seconds."""
    return [
        (run.name, run.metrics["time/generate"])
        for run in runs
        # Less than a second is a check of existing variations.
        if run.status == FINISHED and run.variations and run.metrics.get("time/generate", 0.0) >= 1
        if "time/store_vary" not in run.metrics
    ]
