"""A study, computed once from its runs for table, sentences, page and MLflow; what its conditions cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from boxtwin.studies.comparison import Contrast, ResampledMetrics, contrasts
from boxtwin.studies.conditions import Estimate, Row, condition_table
from boxtwin.studies.evidence import Evidence
from boxtwin.studies.primary import PrimaryComparison
from boxtwin.studies.runs import FINISHED, NO_COPIES, StudyRun, find_file
from boxtwin.studies.slices import ClassMetrics, class_metrics


@dataclass(frozen=True, eq=False)
class Study:
    """Runs, the conditions they make up, and the comparisons of these."""

    runs: Sequence[StudyRun]
    evidence: Mapping[str, Evidence]  # by run id
    copies: Mapping[str, Path]  # by run id, a folder with those files of a run that its own folder lacks
    rows: list[Row]
    resampled: ResampledMetrics
    contrasts: list[Contrast]
    by_class: dict[str, list[ClassMetrics]]
    primary: Sequence[PrimaryComparison] = ()

    @classmethod
    def of(
        cls,
        runs: Sequence[StudyRun],
        evidence: Mapping[str, Evidence] = MappingProxyType({}),
        copies: Mapping[str, Path] = NO_COPIES,
        primary: Sequence[PrimaryComparison] = (),
    ) -> Study:
        """Compare the conditions of runs, whatever their state.

        Raises:
            InputError: runs are of the same condition and seed, were tested on different images, or do not fit the
                primary comparisons.
        """
        rows, resampled = condition_table(runs), ResampledMetrics(evidence)
        compared = contrasts(rows, resampled, primary)
        return cls(runs, evidence, copies, rows, resampled, compared, class_metrics(rows, evidence), primary)

    @property
    def name(self) -> str:
        return ", ".join(sorted({run.study for run in self.runs}))

    @property
    def unfinished(self) -> list[StudyRun]:
        return [run for run in self.runs if run.status != FINISHED]

    def file(self, row: Row, name: str) -> Path | None:
        """A file of a condition's first run; None if it keeps none of that name."""
        return find_file(row.first, name, self.copies)


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


def costs(rows: Sequence[Row]) -> list[Cost]:
    """What each condition cost."""

    def recorded(row: Row, metric: str) -> Estimate:
        return Estimate.of((run.seed, run.metrics.get(metric)) for run in row.runs)

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
