"""The recommended condition of a study in MLflow, and the settings of its runs."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from omegaconf import DictConfig

from boxtwin.command_line import command_line, setting
from boxtwin.commands.compare import kept_primary, of_store, stored_primary
from boxtwin.commands.stored_runs import bring_back, collect_runs, copies_of
from boxtwin.config.compose import read_config
from boxtwin.errors import InputError
from boxtwin.studies.conditions import Row
from boxtwin.studies.primary import PRIMARY_TAG, PrimaryComparison
from boxtwin.studies.report.recommendation import recommended
from boxtwin.studies.runs import with_evidence
from boxtwin.studies.study import Study
from boxtwin.tracking.mlflow_runs import Store
from boxtwin.tracking.run_folders import CONFIGURATION
from boxtwin.tracking.study_names import find_study


@dataclass(frozen=True)
class Recommended:
    """The condition of a study that its report advises, with the settings of the first of its runs."""

    study: str
    row: Row
    reason: str
    settings: DictConfig
    tracking: DictConfig  # the store that it is in


def final_command(study: str, tracking: DictConfig) -> str:
    """What trains detectors on all labelled images, and leaves out-of-fold detections of these."""
    return command_line("train.py", [setting("final", study), *of_store(tracking)])


def recommended_condition(config: DictConfig, study: str | None) -> Recommended:
    """Of a study in the store of ``config.tracking``; None for the last study.

    Raises:
        InputError: there is no such study or no finished run, or the settings of the runs are lost.
    """
    tracking = Path(config.tracking.folder)
    name = find_study(study, config.tracking.uri, tracking)
    store = Store(uri=config.tracking.uri, folder=tracking)
    with tempfile.TemporaryDirectory() as temporary:
        runs = collect_runs(store, name, tracking, Path(temporary))
        copies = copies_of(store, runs, Path(temporary))
        evidence = with_evidence(runs, copies, partial(bring_back, store, Path(temporary)))
        row, reason = recommended(Study.of(*evidence, copies, primary_of(store, name, Path(temporary))))
        file = Path(row.first.output_dir) / CONFIGURATION
        if not row.first.output_dir or not file.is_file():
            file = Path(temporary) / row.first.run_id / CONFIGURATION
            store.fetch_files(row.first.run_id, [CONFIGURATION], file.parent)
        if not file.is_file():
            raise InputError(f"study {name}: the {CONFIGURATION} of {row.first.name} is lost, here and in MLflow")
        settings = read_config(file)
    return Recommended(name, row, reason, settings, config.tracking)


def primary_of(store: Store, study: str, temporary: Path) -> list[PrimaryComparison]:
    """The primary comparisons of the last `compare.py` of a study, whose report may lie anywhere."""
    last = store.comparison(study)
    if last is None or PRIMARY_TAG not in last.data.tags:  # of an earlier version, or of no report
        return kept_primary(None, Path("reports") / study)
    file = stored_primary(store, last, temporary)
    return kept_primary(None, file.parent) if file else []
