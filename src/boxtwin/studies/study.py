"""A study, computed once from its runs for table, sentences, page and MLflow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from boxtwin.studies.comparison import Contrast, ResampledMetrics, contrasts
from boxtwin.studies.conditions import Row, condition_table
from boxtwin.studies.evidence import Evidence
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

    @classmethod
    def of(
        cls,
        runs: Sequence[StudyRun],
        evidence: Mapping[str, Evidence] = MappingProxyType({}),
        copies: Mapping[str, Path] = NO_COPIES,
    ) -> Study:
        """Compare the conditions of runs, whatever their state.

        Raises:
            InputError: two finished runs are of the same condition and seed, or runs that are compared were tested on
                different images.
        """
        rows, resampled = condition_table(runs), ResampledMetrics(evidence)
        by_class = class_metrics(rows, runs, evidence)
        return cls(runs, evidence, copies, rows, resampled, contrasts(rows, resampled), by_class)

    @property
    def name(self) -> str:
        return ", ".join(sorted({run.study for run in self.runs}))

    @property
    def unfinished(self) -> list[StudyRun]:
        return [run for run in self.runs if run.status != FINISHED]

    def first_run(self, row: Row) -> StudyRun:
        """The run of a condition's first seed, which is shown for all."""
        return next(run for run in self.runs if run.run_id == row.runs[0])

    def file(self, row: Row, name: str) -> Path | None:
        """A file of that run; None if it keeps none of that name."""
        return find_file(self.first_run(row), name, self.copies)
