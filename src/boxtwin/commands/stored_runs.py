"""The runs of a study as MLflow has them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from boxtwin.errors import InputError
from boxtwin.evaluation.resampled_ap import MATCHES_FILE
from boxtwin.studies.conditions import condition_table
from boxtwin.studies.evidence import Evidence
from boxtwin.studies.runs import BROKEN, FINISHED, SHOWN_FILES, StudyRun, find_file, in_order, run_from
from boxtwin.tracking.mlflow_runs import IDENTITY_TAG, Store
from boxtwin.tracking.run_folders import RESULT_FILE, RunResult, find_folder, read_result

log = logging.getLogger(__name__)

STORE_TAG = "boxtwin.store"  # key of the variation store of a run
EVIDENCE_FILES = (MATCHES_FILE, RESULT_FILE)


def last_study(store: Store) -> str:
    """The study whose newest run is the newest of all; raises `InputError` if the store has no runs."""
    for experiment in store.studies():
        if store.runs(experiment.name):
            return str(experiment.name)
    raise InputError(f"{store.uri} has no runs yet; make some: python train.py -m split=s1,s2 variations=0,2,10")


def collect_runs(store: Store, study: str, tracking: Path, temporary: Path) -> list[StudyRun]:
    """The runs of a study, whatever their state; runs that never got to their parameters are left out.

    The folders of runs lie beside ``tracking``, that of the store; copies of what is gone there go to ``temporary``.

    Raises:
        InputError: the study has none.
    """
    runs = []
    for run in store.runs(study):
        try:
            runs += [_run(study, run, store, tracking, temporary)] if "split" in run.data.params else []
        except BROKEN as error:
            log.warning(
                "run %s (%s) is damaged and left out: %s: %s",
                *(run.info.run_id, run.info.run_name, type(error).__name__, error),
            )
    if not runs:
        names = ", ".join(experiment.name for experiment in store.studies()) or "none"
        raise InputError(f"no runs of a study called {study} in {store.uri}; studies there: {names}")
    return in_order(runs)


def copies_of(store: Store, runs: Sequence[StudyRun], temporary: Path) -> dict[str, Path]:
    """What MLflow keeps of finished runs whose folders may be on another machine."""
    shown, copies = {row.runs[0] for row in condition_table(runs)}, {}
    for run in (run for run in runs if run.status == FINISHED):
        names = EVIDENCE_FILES + (SHOWN_FILES if run.run_id in shown else ())
        missing = [name for name in names if find_file(run, name) is None]
        if missing:
            copies[run.run_id] = temporary / run.run_id
            store.fetch_files(run.run_id, [*missing, *(f"store/{name}" for name in missing)], copies[run.run_id])
    return copies


def bring_back(store: Store, temporary: Path, run: StudyRun) -> Evidence | None:
    """The evidence of a run as MLflow has it, put in the place of the damaged files; None if it has none."""
    from boxtwin.commands.reuse import mend  # late: it reads detectors, and comparing needs no torch otherwise

    copy, folder = temporary / run.run_id, Path(run.output_dir)
    try:
        store.fetch_files(run.run_id, EVIDENCE_FILES, copy)
        kept = Evidence.load(copy)
        if kept is not None and run.output_dir:
            result = read_result(folder)
            mend(store, run.run_id, folder, [result.identity if result else ""])
    except (OSError, MlflowException) as error:  # MLflow has lost it, or the folder is read-only
        log.warning("%s: not mended from MLflow: %s", run.output_dir or run.name, error)
        return Evidence.load(copy)
    return kept


def _run(study: str, run: Run, store: Store, tracking: Path, temporary: Path) -> StudyRun:
    params, tags, finished = run.data.params, run.data.tags, run.info.status == FINISHED
    folder, result = None, RunResult()
    if finished:
        # The folder counts if what lies there is this very run's: another run may have written to the same place.
        folder = find_folder(tags.get("boxtwin.output_dir", ""), tracking, tags.get(IDENTITY_TAG, ""))
        if folder is None:
            store.fetch_files(run.info.run_id, [RESULT_FILE], temporary / run.info.run_id)
        recorded = read_result(folder or temporary / run.info.run_id)
        if recorded is None:  # then nothing says what defines it
            raise ValueError(f"its {RESULT_FILE} is gone or damaged, here and in MLflow")
        result = recorded
    # Whether training went on long enough is asked of runs without variations alone.
    asked = int(params["variations"]) == 0 and finished
    result = replace(
        result,
        study=study,
        params=params,
        metrics=dict(run.data.metrics),
        setting=tags.get("boxtwin.setting", ""),
        overrides=tags.get("boxtwin.overrides", ""),
        data={**result.data, "store": f"{params['generator']}-{tags[STORE_TAG]}" if STORE_TAG in tags else None},
        validation=store.history(run.info.run_id, "val/map") if asked else (),
    )
    return run_from(result, run_id=run.info.run_id, status=run.info.status, output_dir=str(folder or ""))
