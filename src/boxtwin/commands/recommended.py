"""The recommended condition of a study in MLflow, and the settings of its runs."""

from __future__ import annotations

import logging
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from omegaconf import DictConfig

from boxtwin.command_line import command_line, setting
from boxtwin.commands.compare import kept_primary, of_store, stored_primary
from boxtwin.commands.stored_runs import bring_back, collect_runs, copies_of
from boxtwin.config.compose import read_config, to_object
from boxtwin.config.identity import NO_PRETRAINING, condition_of
from boxtwin.config.schema import BoxtwinConfig
from boxtwin.errors import InputError
from boxtwin.studies.condition_values import COUNT, PRETRAINING, flatten
from boxtwin.studies.conditions import Row
from boxtwin.studies.primary import PRIMARY_TAG, PrimaryComparison
from boxtwin.studies.report.recommendation import recommended
from boxtwin.studies.runs import StudyRun, with_evidence
from boxtwin.studies.study import Study
from boxtwin.tracking.mlflow_runs import Store
from boxtwin.tracking.run_folders import CONFIGURATION
from boxtwin.tracking.study_names import find_study

log = logging.getLogger(__name__)

# Settings by which the configurations of two conditions are told apart, whatever version wrote them.
DEFINING = (
    *("dataset.name", "split.name", "split.train_size", COUNT, "variations.synthetic_fraction", "generator.name"),
    *("labels.name", "detector.name", PRETRAINING),
)


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
    """Find the recommended condition of ``study`` (None: the last one) in the store of ``config.tracking``.

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
        settings = _settings(row.first, store, Path(temporary) / row.first.run_id)
        if settings is None:
            raise InputError(
                f"study {name}: the {CONFIGURATION} of run {row.first.name} is missing or belongs to another run, both "
                "in its folder and in MLflow; repeat the command of this run with rerun=true"
            )
    return Recommended(name, row, reason, settings, config.tracking)


def _settings(run: StudyRun, store: Store, temporary: Path) -> DictConfig | None:
    """The settings of a run from its folder, else from MLflow; None if both are gone or another condition's."""
    in_folder = Path(run.output_dir) / CONFIGURATION
    if run.output_dir and in_folder.is_file():
        settings = read_config(in_folder)
        if not (others := _other_values(settings, run)):
            return settings
        text = "%s does not have the settings of its run (%s); the copy in MLflow is used"
        log.warning(text, in_folder, ", ".join(others))
    store.fetch_files(run.run_id, [CONFIGURATION], temporary)
    if not (temporary / CONFIGURATION).is_file():
        return None
    settings = read_config(temporary / CONFIGURATION)
    return None if _other_values(settings, run) else settings


def _other_values(settings: DictConfig, run: StudyRun) -> list[str]:
    """Settings that define a condition and have another value than the run recorded."""
    own = flatten(condition_of(to_object(settings, BoxtwinConfig), {}, weights=None))
    both = [{PRETRAINING: NO_PRETRAINING, **values} for values in (own, run.condition)]
    return [key for key in DEFINING if all(key in values for values in both) and both[0][key] != both[1][key]]


def primary_of(store: Store, study: str, temporary: Path) -> list[PrimaryComparison]:
    """The primary comparisons of the last `compare.py` of a study, whose report may lie anywhere."""
    last = store.comparison(study)
    if last is None or PRIMARY_TAG not in last.data.tags:  # of an earlier version, or of no report
        return kept_primary(None, Path("reports") / study)
    file = stored_primary(store, last, temporary)
    return kept_primary(None, file.parent) if file else []
