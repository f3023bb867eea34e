"""The MLflow store: open it safely, log a run, find runs again.

Several processes that open a missing sqlite store at once, or make the same experiment or run at once, break it; all
three happen under one file lock beside the store. A process that is killed while MLflow makes its tables leaves a file
that MLflow can neither use nor finish; so they are made under another name.
"""

from __future__ import annotations

import json
import math
import os
import sqlite3
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from filelock import FileLock
from mlflow.entities import Dataset as DatasetEntity
from mlflow.entities import DatasetInput, Experiment, InputTag, Metric, Param, Run, RunTag, ViewType
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from sqlalchemy.exc import SQLAlchemyError

from boxtwin.command_line import command_line
from boxtwin.errors import InputError
from boxtwin.files import atomic_path, remove_leftovers
from boxtwin.tracking.moved_store import ARTIFACTS, follow

IDENTITY_TAG = "boxtwin.identity"  # the same for two MLflow runs of one run
KIND_TAG = "boxtwin.kind"  # "run" ("cell" in stores of earlier versions), "condition" or "comparison"
REUSED_TAG = "boxtwin.reused_from"  # of a run whose result another study had
REUSED_TAGS = (REUSED_TAG, "boxtwin.taken_over_from")  # the second in stores of earlier versions
# A filter of MLflow for runs that train, whatever version made them: conditions and comparisons have no identity.
TRAINING_RUNS = f"tags.`{IDENTITY_TAG}` LIKE '%'"
CONDITION_TAG = "boxtwin.condition"  # what tells the conditions of a study apart
FAILURE_TAG = "boxtwin.failure"  # why a run has not finished
DATABASE = "mlflow.db"
SQLITE = "sqlite:///"  # how the address of such a file begins
MOST_METRICS = 1000  # of one call: MLflow's limit


def store_uri(uri: str | None, folder: Path) -> str:
    """The address of the store: the server's, or that of the sqlite file in ``folder``."""
    return uri or _sqlite(folder / DATABASE)


def _kind(kind: str) -> str:
    return f"tags.`{KIND_TAG}` = '{kind}'"


def _sqlite(file: Path) -> str:
    return f"{SQLITE}{file.resolve()}"


def _make(file: Path) -> None:
    """Make the tables of a sqlite store, if it is missing; the file appears with all of them or not at all."""
    if file.exists():
        return
    remove_leftovers(file.parent, file.name)
    with atomic_path(file) as unfinished:
        MlflowClient(tracking_uri=_sqlite(unfinished)).search_experiments(max_results=1)


@dataclass(frozen=True)
class CellRun:
    """One run of one cell."""

    run_id: str
    finished: bool  # by an earlier process: nothing is left to do
    metrics: dict[str, float]
    tags: dict[str, str]


@dataclass(frozen=True)
class Condition:
    """What a study says of one condition, all its seeds together."""

    key: str  # the same whenever the condition is the same
    name: str
    params: dict[str, object]
    metrics: dict[str, float]  # those that are not defined are left out
    tags: dict[str, str]


class Store:
    """An MLflow tracking store.

    Args:
        uri: address of a server; None for sqlite in ``folder``.
        folder: holds ``mlflow.db`` and ``artifacts`` (unless there is a server), and the lock.

    Raises:
        InputError: the store cannot be reached, or is no MLflow store.
    """

    def __init__(self, *, uri: str | None, folder: Path) -> None:
        self.uri, self.folder, self.is_server = store_uri(uri, folder), folder, uri is not None
        self._artifacts = None if uri else folder / ARTIFACTS
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(folder / ".lock")
        with self._lock:
            try:
                if not uri:
                    _make(folder / DATABASE)
                    follow(folder / DATABASE)
                self.client = MlflowClient(tracking_uri=self.uri)
                self.client.search_experiments(max_results=1)
            except (MlflowException, SQLAlchemyError, sqlite3.Error, OSError) as error:
                message = f"tracking.uri: the MLflow store {self.uri} does not answer: {str(error).splitlines()[0]}"
                if isinstance(error, SQLAlchemyError | sqlite3.Error):
                    message += "; if its file is broken, move it away: runs keep their results, and a new one is made"
                raise InputError(message) from error

    def experiment(self, study: str) -> str:
        """The id of the experiment of a study, made if it is missing."""
        with self._lock:
            found = self.client.get_experiment_by_name(study)
            if found is None:
                location = (self._artifacts / study).resolve().as_uri() if self._artifacts else None
                return str(self.client.create_experiment(study, artifact_location=location))
        if found.lifecycle_stage != "active":
            file = (self.folder if self.folder.is_absolute() else Path(os.path.relpath(self.folder))) / DATABASE
            address = self.uri if self.is_server else f"{SQLITE}{file}"
            words = ("experiments", "restore", "--experiment-id", str(found.experiment_id))
            raise InputError(
                f"study {study} was deleted in MLflow; choose another name (study=…), or bring it back:\n"
                + command_line("mlflow", words, MLFLOW_TRACKING_URI=str(address))
            )
        return str(found.experiment_id)

    def begin_cell(
        self,
        *,
        study: str,
        name: str,
        identity: str,
        earlier_identities: Sequence[str] = (),
        params: Mapping[str, object],
        tags: Mapping[str, str],
    ) -> CellRun:
        """Begin the MLflow run of a run, or go on with the one that an earlier process left.

        A run has one MLflow run in a study: a finished one is handed back as it is, any other is taken up again.

        Args:
            study: its name.
            name: of the run.
            identity: of the run.
            earlier_identities: that older versions gave to it.
            params: of the run.
            tags: of the run.
        """
        experiment_id = self.experiment(study)
        with self._lock:
            earlier = [
                run
                for each in (identity, *earlier_identities)
                for run in self.client.search_runs(
                    [experiment_id],
                    f"tags.`{IDENTITY_TAG}` = '{each}'",
                    run_view_type=ViewType.ACTIVE_ONLY,
                    order_by=["attributes.start_time DESC"],
                )
            ]
            finished = next((run for run in earlier if run.info.status == "FINISHED"), None)
            if finished is not None:
                return CellRun(finished.info.run_id, True, dict(finished.data.metrics), dict(finished.data.tags))
            if earlier:
                run = earlier[0]
                self.client.update_run(run.info.run_id, status="RUNNING")
            else:
                run = self.client.create_run(
                    experiment_id, run_name=name, tags={KIND_TAG: "run", IDENTITY_TAG: identity, **tags}
                )
        there = run.data.params
        self.client.log_batch(
            run.info.run_id,
            params=[Param(key, str(value)) for key, value in params.items() if key not in there],
            tags=[RunTag(key, value) for key, value in {KIND_TAG: "run", IDENTITY_TAG: identity, **tags}.items()],
        )
        return CellRun(run.info.run_id, False, {}, {})

    def finished_elsewhere(self, *identities: str) -> Run | None:
        """The oldest finished MLflow run of a run in any study that is not deleted; None if there is none."""
        experiments = [experiment.experiment_id for experiment in self.client.search_experiments()]
        for identity in identities:
            found = self.client.search_runs(
                experiments,
                f"tags.`{IDENTITY_TAG}` = '{identity}' and attributes.status = 'FINISHED'",
                order_by=["attributes.start_time ASC"],
                max_results=1,
            )
            if found:
                return found[0]
        return None

    def study_of(self, run: Run) -> str:
        """The name of the study that a run belongs to."""
        return str(self.client.get_experiment(run.info.experiment_id).name)

    def fetch_all(self, run: Run, to: Path) -> Path:
        """Copy all artifacts of a run below a folder; returns the folder that holds them, empty if they are gone."""
        return Path(self.client.download_artifacts(run.info.run_id, "", str(to)))

    def copy_run(self, source: Run, run_id: str, artifacts: Path) -> None:
        """Give a run the metrics with their history and the data sets of another, and a folder of artifacts."""
        history = [
            metric
            for name in source.data.metrics
            for metric in self.client.get_metric_history(source.info.run_id, name)
        ]
        for start in range(0, len(history), MOST_METRICS):
            self.client.log_batch(run_id, metrics=history[start : start + MOST_METRICS])
        if source.inputs is not None:
            self.client.log_inputs(run_id, source.inputs.dataset_inputs)
        self.client.log_artifacts(run_id, str(artifacts))

    def tag(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set tags of a run."""
        self.client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])

    def reopen(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Take up a finished MLflow run again, to do its run once more: as its own, with these tags."""
        for name in set(REUSED_TAGS) & set(self.client.get_run(run_id).data.tags):
            self.client.delete_tag(run_id, name)
        self.tag(run_id, tags)
        self.client.update_run(run_id, status="RUNNING")

    def begin_comparison(self, *, study: str) -> str:
        """Begin the run that holds the table and the report of a study, or take it up again: there is one."""
        experiment_id = self.experiment(study)
        with self._lock:
            earlier = self._search(experiment_id, _kind("comparison"))
            if earlier:
                run_id = str(earlier[0].info.run_id)
                self.client.update_run(run_id, status="RUNNING")
                return run_id
            run = self.client.create_run(experiment_id, run_name="comparison", tags={KIND_TAG: "comparison"})
        return str(run.info.run_id)

    def write_conditions(self, study: str, conditions: Sequence[Condition]) -> None:
        """One run for every condition of a study, finished, with the figures as they are now.

        Runs of earlier calls are brought up to date; those of conditions that are gone are deleted.
        """
        experiment_id = self.experiment(study)
        with self._lock:
            there: dict[str, list[Run]] = {}
            for run in self._search(experiment_id, _kind("condition")):
                there.setdefault(run.data.tags[CONDITION_TAG], []).append(run)
            for condition in conditions:
                finite = {name: value for name, value in condition.metrics.items() if math.isfinite(value)}
                runs = there.pop(condition.key, [])
                # A logged figure stays in MLflow, so a run that has one too many makes way for a new one.
                kept = next((run for run in runs if set(run.data.metrics) <= set(finite)), None)
                self._delete(run for run in runs if run is not kept)
                if kept is None:
                    kept = self.client.create_run(
                        experiment_id,
                        run_name=condition.name,
                        tags={KIND_TAG: "condition", CONDITION_TAG: condition.key},
                    )
                    params = [Param(key, str(value)) for key, value in condition.params.items()]
                    self.client.log_batch(kept.info.run_id, params=params)
                self.tag(kept.info.run_id, condition.tags)
                changed = {name: value for name, value in finite.items() if kept.data.metrics.get(name) != value}
                self.log_metrics(kept.info.run_id, changed)
                self.client.set_terminated(kept.info.run_id, "FINISHED")
            for runs in there.values():
                self._delete(runs)

    def _search(self, experiment_id: str, chosen: str) -> list[Run]:
        """All MLflow runs that a filter chooses, newest first."""
        runs: list[Run] = []
        token = None
        while True:
            page = self.client.search_runs(
                [experiment_id],
                chosen,
                order_by=["attributes.start_time DESC"],
                max_results=1000,
                page_token=token,
            )
            runs += page
            token = page.token
            if not token:
                return runs

    def _delete(self, runs: Iterable[Run]) -> None:
        for run in runs:
            self.client.delete_run(run.info.run_id)

    def log_metrics(self, run_id: str, metrics: Mapping[str, float]) -> None:
        """Log figures; those that are not defined (no large objects, say) are left out."""
        now = int(time.time() * 1000)
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        logged = [Metric(name, value, now, 0) for name, value in finite.items()]
        for start in range(0, len(logged), MOST_METRICS):
            self.client.log_batch(run_id, metrics=logged[start : start + MOST_METRICS])

    def history(self, run_id: str, metric: str) -> list[tuple[int, float]]:
        """A figure's value at each step, the newest where a step was done twice; steps where it is not finite are out.

        A run that was broken off did some steps again; one that was done once more has both runs' values.
        """
        logged = sorted(self.client.get_metric_history(run_id, metric), key=lambda entry: entry.timestamp)
        by_step = {int(entry.step): float(entry.value) for entry in logged}
        return [(step, by_step[step]) for step in sorted(by_step) if math.isfinite(by_step[step])]

    def log_files(self, run_id: str, paths: Sequence[Path], folder: str | None = None) -> None:
        """Log files as artifacts, in a folder of the run's if one is named."""
        for path in paths:
            self.client.log_artifact(run_id, str(path), folder)

    def fetch_files(self, run_id: str, names: Sequence[str], to: Path) -> None:
        """Copy artifacts, named by their paths, into a folder; those that the run does not have are left out."""
        parents = {str(parent) if parent.name else None for parent in (PurePosixPath(name).parent for name in names)}
        there = {entry.path for parent in parents for entry in self.client.list_artifacts(run_id, parent)}
        for name in names:
            if name in there:
                place = to / name
                place.parent.mkdir(parents=True, exist_ok=True)
                # Some kinds of store make the folders of a path below the place they are given, others do not.
                Path(self.client.download_artifacts(run_id, name, str(place.parent))).replace(place)

    def file_sizes(self, run_id: str) -> dict[str, int | None]:
        """Bytes of each artifact of a run that lies in no folder; None where the store does not say."""
        return {entry.path: entry.file_size for entry in self.client.list_artifacts(run_id) if not entry.is_dir}

    def log_data(self, run_id: str, *, name: str, digest: str, source: str, side: str, images: int) -> None:
        """Log a set of images as a data-set input of a run. MLflow keeps 36 characters of a digest."""
        entity = DatasetEntity(
            name=name,
            digest=digest[:36],
            source_type="local",
            source=json.dumps({"uri": source}),
            profile=json.dumps({"images": images}),
        )
        self.client.log_inputs(run_id, [DatasetInput(entity, [InputTag("mlflow.data.context", side)])])

    def end(self, run_id: str, status: str, reason: str = "") -> None:
        """End a run as FINISHED, FAILED or KILLED, with the reason if it is not the first."""
        if reason:
            self.client.set_tag(run_id, FAILURE_TAG, reason[:5000])
        elif status == "FINISHED" and FAILURE_TAG in self.client.get_run(run_id).data.tags:
            self.client.delete_tag(run_id, FAILURE_TAG)
        self.client.set_terminated(run_id, status)

    def register_model(self, folder: Path, *, name: str, study: str, identity: str | None) -> int:
        """Put an MLflow model folder into the store and register it as a new version of ``name``; returns the version.

        It appears among the models of the study, and as a product of its MLflow run where the store has that.
        """
        experiment_id = self.experiment(study)
        runs: Sequence[Run] = []
        if identity is not None:
            runs = self.client.search_runs(
                [experiment_id], f"tags.`{IDENTITY_TAG}` = '{identity}'", order_by=["attributes.start_time DESC"]
            )
        run_id = runs[0].info.run_id if runs else None
        model = self.client.create_logged_model(experiment_id, name, source_run_id=run_id)
        try:
            self.client.log_model_artifacts(model.model_id, str(folder))
        except BaseException:
            self.client.finalize_logged_model(model.model_id, "FAILED")
            raise
        model = self.client.finalize_logged_model(model.model_id, "READY")
        with self._lock:
            if not self.client.search_registered_models(f"name = '{name}'"):
                self.client.create_registered_model(name)
        version = self.client.create_model_version(
            name,
            model.artifact_location,
            run_id=run_id,
            # Given a model without a run, MLflow 3.17 looks for one in another store, that of the environment.
            model_id=model.model_id if run_id is not None else None,
        )
        return int(version.version)

    def studies(self) -> list[Experiment]:
        """All studies, the one with the newest run first; experiments without runs are left out."""
        newest = []
        for experiment in self.client.search_experiments():
            runs = self.client.search_runs(
                [experiment.experiment_id], order_by=["attributes.start_time DESC"], max_results=1
            )
            if runs:
                newest.append((runs[0].info.start_time, experiment))
        return [experiment for _, experiment in sorted(newest, key=lambda pair: pair[0], reverse=True)]

    def cells(self, study: str) -> list[Run]:
        """The MLflow runs of a study's runs, whatever their state."""
        experiment = self.client.get_experiment_by_name(study)
        return [] if experiment is None else self._search(experiment.experiment_id, TRAINING_RUNS)
