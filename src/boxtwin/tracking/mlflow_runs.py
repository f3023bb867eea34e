"""The MLflow store: open it safely, log runs, find them again.

Processes that open a missing sqlite store, or create the same experiment or run, at the same time break it; so these
happen under one file lock beside the store. A process that is killed while MLflow creates its tables leaves a file that
MLflow can neither use nor finish; so they are created under another name.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import shutil
import sqlite3
import tempfile
import time
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path, PurePosixPath

from filelock import FileLock
from mlflow.entities import Dataset as DatasetEntity
from mlflow.entities import DatasetInput, Experiment, InputTag, Metric, Param, Run, RunInfo, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from sqlalchemy.exc import SQLAlchemyError

from boxtwin.command_line import command_line
from boxtwin.errors import InputError, unanswered
from boxtwin.files import atomic_path, remove_leftovers, write_error
from boxtwin.tracking.broken_off import FAILURE_TAG, MOST_CHARACTERS, ended_on_error
from boxtwin.tracking.mlflow_addresses import ARTIFACTS, update_addresses
from boxtwin.tracking.study_names import DATABASE, IDENTITY_TAG, SQLITE

log = logging.getLogger(__name__)

KIND_TAG = "boxtwin.kind"  # "run" (another word in stores of earlier versions), "condition", "comparison", "final"
REUSED_TAG = "boxtwin.reused_from"  # of a run whose result another study had
REUSED_TAGS = (REUSED_TAG, "boxtwin.taken_over_from")  # the second in stores of earlier versions
# A filter of MLflow for runs that train, of any version: conditions and comparisons have no identity.
TRAINING_RUNS = f"tags.`{IDENTITY_TAG}` LIKE '%'"
CONDITION_TAG = "boxtwin.condition"  # distinguishes the conditions of a study
ALLOWED_HOSTS = "mlflow server --allowed-hosts 'HOST:*,localhost:*'"  # by default it answers to addresses alone
MOST_METRICS = 1000  # of one call: MLflow's limit


def _tagged(tag: str, value: str | None) -> str:
    """A filter of MLflow for runs with this value of a tag."""
    return f"tags.`{tag}` = '{value}'"


@cache
def _warn_of_variable(variable: str | None, uri: str) -> None:
    """Say once that MLflow's own variable does not choose the store, where it names another one."""
    if variable and variable.rstrip("/") != uri.rstrip("/"):
        shown = re.sub(r"//[^/@]*@", "//", variable)  # without a password
        text = "MLFLOW_TRACKING_URI=%s is not used: runs are recorded in %s; tracking.uri=%s chooses that store"
        log.warning(text, shown, uri, shown)


def store_uri(uri: str | None, folder: Path) -> str:
    """The address of the store: the server's, or that of the sqlite file in ``folder``."""
    return uri or f"{SQLITE}{(folder / DATABASE).resolve()}"


@dataclass(frozen=True)
class Condition:
    """Results of one condition of a study, all its seeds together."""

    key: str  # the same whenever the condition is the same
    name: str
    params: dict[str, object]
    metrics: dict[str, float]  # those that are not defined are left out
    tags: dict[str, str]


class Store:
    """The MLflow tracking store of a server at ``uri``, or for None of ``mlflow.db`` and ``artifacts`` in ``folder``.

    The lock lies in ``folder`` in either case. Raises `InputError` if it is no MLflow store, or cannot be reached.
    """

    def __init__(self, *, uri: str | None, folder: Path) -> None:
        self.uri, self.folder, self.is_server = store_uri(uri, folder), folder, bool(uri)
        _warn_of_variable(os.environ.get("MLFLOW_TRACKING_URI"), self.uri)
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(folder / ".lock")
        with self._lock:
            try:
                if not self.is_server:
                    database = folder / DATABASE
                    if not database.exists():  # it appears with all its tables or not at all
                        remove_leftovers(folder, DATABASE)
                        with atomic_path(database) as unfinished:
                            address = f"{SQLITE}{unfinished.resolve()}"
                            MlflowClient(tracking_uri=address).search_experiments(max_results=1)
                    update_addresses(database)
                self.client = MlflowClient(tracking_uri=self.uri)
                self.client.search_experiments(max_results=1)
            except (MlflowException, SQLAlchemyError, sqlite3.Error, OSError) as error:
                is_sql = isinstance(error, SQLAlchemyError | sqlite3.Error)
                if is_sql and (unwritten := write_error(error, folder / DATABASE)) is not None:
                    raise unwritten from error
                what = "tracking.uri: the MLflow server" if self.is_server else "the MLflow store"
                fault = "does not answer" if unanswered(error) is not None else "cannot be used"
                message = f"{what} {self.uri} {fault}: {str(error).splitlines()[0]}"
                if "Invalid Host header" in message:
                    message += f". Start it with {ALLOWED_HOSTS}, with the name of its host"
                if is_sql:
                    message += (
                        "; if its file is broken, move it away: compare.py runs=FOLDER still reads runs in their "
                    )
                    message += "folders, but train.py knows nothing of them and trains again"
                raise InputError(message) from error

    def experiment(self, study: str) -> str:
        """The id of the experiment of a study, created if it is missing; raises `InputError` if it was deleted."""
        with self._lock:
            experiment = self.client.get_experiment_by_name(study)
            if experiment is None:
                location = None if self.is_server else (self.folder / ARTIFACTS / study).resolve().as_uri()
                return str(self.client.create_experiment(study, artifact_location=location))
        if experiment.lifecycle_stage != "active":
            address = self.uri if self.is_server else f"{SQLITE}{self.folder / DATABASE}"
            words = ("experiments", "restore", "--experiment-id", str(experiment.experiment_id))
            raise InputError(
                f"study {study} was deleted in MLflow; choose another name (study=…), or bring it back:\n"
                + command_line("mlflow", words, MLFLOW_TRACKING_URI=address)
            )
        return str(experiment.experiment_id)

    def _search(self, experiments: list[str], search: str = "", order: str = "DESC", most: int = 50_000) -> list[Run]:
        """Runs that are not deleted, by default the newest first, and as many as MLflow gives."""
        by_time = [f"attributes.start_time {order}"]
        return list(self.client.search_runs(experiments, search, max_results=most, order_by=by_time))

    def begin_run(
        self,
        *,
        study: str,
        name: str,
        identity: str,
        earlier_identities: Sequence[str] = (),
        params: Mapping[str, object],
        tags: Mapping[str, str],
    ) -> RunInfo:
        """Begin the MLflow run of a run, or continue the one that an earlier process left.

        A run has one MLflow run in a study: one with status FINISHED is returned as it is, any other is set to running.
        Older versions may have given it ``earlier_identities``.
        """
        experiment_id, kind = self.experiment(study), {KIND_TAG: "run", IDENTITY_TAG: identity}
        with self._lock:
            filters = [_tagged(IDENTITY_TAG, each) for each in (identity, *earlier_identities)]
            earlier = [run for each in filters for run in self._search([experiment_id], each)]
            finished = next((run for run in earlier if run.info.status == "FINISHED"), None)
            if finished is not None:
                return finished.info
            if earlier:
                run = earlier[0]
                self.client.update_run(run.info.run_id, status="RUNNING")
            else:
                run = self.client.create_run(experiment_id, run_name=name, tags=kind)
        self.client.log_batch(
            run.info.run_id,
            params=[Param(key, str(value)) for key, value in params.items() if key not in run.data.params],
            tags=[RunTag(key, value) for key, value in {**kind, **tags}.items()],
        )
        return run.info

    def finished_elsewhere(self, *identities: str) -> Run | None:
        """The oldest finished MLflow run of a run in any study that is not deleted; None if there is none."""
        experiments = [experiment.experiment_id for experiment in self.client.search_experiments()]
        for identity in identities:
            search = f"{_tagged(IDENTITY_TAG, identity)} and attributes.status = 'FINISHED'"
            if runs := self._search(experiments, search, "ASC", most=1):
                return runs[0]
        return None

    def study_of(self, run: Run) -> str:
        """The name of the study that a run belongs to."""
        return str(self.client.get_experiment(run.info.experiment_id).name)

    def fetch_all(self, run: Run, to: Path) -> Path:
        """Copy all artifacts of a run below a folder; returns the folder that holds them, empty if they are gone."""
        return Path(self.client.download_artifacts(run.info.run_id, "", str(to)))

    def copy_run(self, source: Run, run_id: str, artifacts: Path) -> None:
        """Copy the data sets and the metrics, with their history, of a run to another; log a folder of artifacts."""
        histories = [self.client.get_metric_history(source.info.run_id, name) for name in source.data.metrics]
        self._log(run_id, [metric for history in histories for metric in history])
        if source.inputs is not None:
            self.client.log_inputs(run_id, source.inputs.dataset_inputs)
        self.client.log_artifacts(run_id, str(artifacts))

    def tag(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set tags of a run."""
        self.client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])

    def reopen(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set a finished MLflow run to running with these tags, to do its run once more."""
        for name in set(REUSED_TAGS) & set(self.client.get_run(run_id).data.tags):
            self.client.delete_tag(run_id, name)
        self.tag(run_id, tags)
        self.client.update_run(run_id, status="RUNNING")

    def begin_comparison(self, *, study: str, kind: str = "comparison", name: str = "comparison") -> str:
        """Begin, or continue, the one MLflow run that holds the table and the report of a study.

        Another ``kind`` is of what else a study has once, such as its final detectors; no kind is taken for a run.
        """
        experiment_id = self.experiment(study)
        with self._lock:
            earlier = self._search([experiment_id], _tagged(KIND_TAG, kind))
            if not earlier:
                earlier = [self.client.create_run(experiment_id, run_name=name, tags={KIND_TAG: kind})]
            # What a study has once may be of another condition now.
            self.client.update_run(earlier[0].info.run_id, status="RUNNING", name=name)
        return str(earlier[0].info.run_id)

    def without_other_metrics(self, run_id: str, metrics: Collection[str]) -> str:
        """A run, or one of its kind and name in its place if it has other metrics: MLflow keeps what is logged."""
        run = self.client.get_run(run_id)
        if set(run.data.metrics) <= {*metrics}:
            return run_id
        kind = {KIND_TAG: run.data.tags[KIND_TAG]}
        new = self.client.create_run(run.info.experiment_id, run_name=run.info.run_name, tags=kind)
        self.client.delete_run(run_id)
        return str(new.info.run_id)

    def has_finished(self, study: str, kind: str) -> bool:
        """Whether the MLflow run of `begin_comparison` is there and finished."""
        runs = self._search([self.experiment(study)], _tagged(KIND_TAG, kind))
        return any(run.info.status == "FINISHED" for run in runs)

    def comparison(self, study: str) -> Run | None:
        """The MLflow run that holds the table and the report of a study, if it has one."""
        return next(iter(self._search([self.experiment(study)], _tagged(KIND_TAG, "comparison"), most=1)), None)

    def write_conditions(self, study: str, conditions: Sequence[Condition]) -> None:
        """Write one finished MLflow run for each condition of a study, with the current metrics.

        Runs of earlier calls are updated; those of conditions that no longer exist are deleted.
        """
        experiment_id = self.experiment(study)
        with self._lock:
            earlier: dict[str, list[Run]] = defaultdict(list)
            for run in self._search([experiment_id], _tagged(KIND_TAG, "condition")):
                earlier[run.data.tags[CONDITION_TAG]].append(run)
            for condition in conditions:
                finite = {name: value for name, value in condition.metrics.items() if math.isfinite(value)}
                runs = earlier[condition.key]
                # MLflow keeps a logged metric, so a run with a metric too many is replaced.
                existing = next((run for run in runs if set(run.data.metrics) <= set(finite)), None)
                if existing is not None:
                    runs.remove(existing)
                else:
                    tags = {KIND_TAG: "condition", CONDITION_TAG: condition.key}
                    existing = self.client.create_run(experiment_id, run_name=condition.name, tags=tags)
                logged = existing.data  # all but what a killed call had still to log
                run_id = str(existing.info.run_id)
                with ended_on_error(partial(self.end, run_id), f"condition {condition.name}"):
                    params = [Param(k, str(v)) for k, v in condition.params.items() if k not in logged.params]
                    self.client.log_batch(run_id, params=params)
                    self.tag(run_id, condition.tags)
                    changed = {name: value for name, value in finite.items() if logged.metrics.get(name) != value}
                    self.log_metrics(run_id, changed)
                self.end(run_id, "FINISHED")
            for outdated in (run for runs in earlier.values() for run in runs):
                self.client.delete_run(outdated.info.run_id)

    def log_metrics(self, run_id: str, metrics: Mapping[str, float]) -> None:
        """Log metrics; those that are not defined (of large objects without any, say) are left out."""
        now = int(time.time() * 1000)
        self._log(run_id, [Metric(name, value, now, 0) for name, value in metrics.items() if math.isfinite(value)])

    def _log(self, run_id: str, metrics: Sequence[Metric]) -> None:
        for start in range(0, len(metrics), MOST_METRICS):
            self.client.log_batch(run_id, metrics=metrics[start : start + MOST_METRICS])

    def history(self, run_id: str, metric: str) -> list[tuple[int, float]]:
        """A metric's finite value at each step; the newest, where an interrupted or repeated run did a step twice."""
        logged = sorted(self.client.get_metric_history(run_id, metric), key=lambda entry: entry.timestamp)
        by_step = {int(entry.step): float(entry.value) for entry in logged}
        return [(step, by_step[step]) for step in sorted(by_step) if math.isfinite(by_step[step])]

    def log_files(self, run_id: str, paths: Sequence[Path], folder: str | None = None) -> None:
        """Log files as artifacts, in ``folder`` of the run if it is given."""
        for path in paths:
            self.client.log_artifact(run_id, str(path), folder)

    def fetch_files(self, run_id: str, names: Sequence[str], to: Path) -> None:
        """Copy artifacts, named by their paths, into a folder; those that the run does not have are left out."""
        parents = {str(parent) if parent.name else None for parent in (PurePosixPath(name).parent for name in names)}
        existing = {entry.path for parent in parents for entry in self.client.list_artifacts(run_id, parent)}
        for name in names:
            if name in existing:
                # Some kinds of store create the folders of ``name`` below the given one, others do not.
                with atomic_path(to / name) as temporary, tempfile.TemporaryDirectory() as downloads:
                    shutil.move(self.client.download_artifacts(run_id, name, downloads), temporary)

    def file_sizes(self, run_id: str) -> dict[str, int | None]:
        """Bytes of each artifact of a run outside folders; None if the store does not tell."""
        return {entry.path: entry.file_size for entry in self.client.list_artifacts(run_id) if not entry.is_dir}

    def log_data(self, run_id: str, *, name: str, digest: str, source: str, side: str, images: int) -> None:
        """Log a set of images as a data-set input of a run. MLflow keeps 36 characters of a digest."""
        address, profile = json.dumps({"uri": source}), json.dumps({"images": images})
        entity = DatasetEntity(name, digest[:36], source_type="local", source=address, profile=profile)
        self.client.log_inputs(run_id, [DatasetInput(entity, [InputTag("mlflow.data.context", side)])])

    def end(self, run_id: str, status: str, reason: str = "") -> None:
        """End a run as FINISHED, FAILED or KILLED, with the reason of the latter two."""
        if reason:
            self.client.set_tag(run_id, FAILURE_TAG, reason[:MOST_CHARACTERS])
        elif status == "FINISHED" and FAILURE_TAG in self.client.get_run(run_id).data.tags:
            self.client.delete_tag(run_id, FAILURE_TAG)
        self.client.set_terminated(run_id, status)

    def register_model(self, folder: Path, *, name: str, study: str, identity: str | None) -> int:
        """Register an MLflow model folder as a new version of ``name``; returns the version.

        It appears among the models of the study, and in its MLflow run if the store has that.
        """
        experiment_id = self.experiment(study)
        runs = self._search([experiment_id], _tagged(IDENTITY_TAG, identity)) if identity is not None else []
        run_id = runs[0].info.run_id if runs else None
        model = self.client.create_logged_model(experiment_id, name, source_run_id=run_id)
        try:
            self.client.log_model_artifacts(model.model_id, str(folder))
        except BaseException as error:
            if unanswered(error) is None:  # a server that is away is not asked again
                self.client.finalize_logged_model(model.model_id, "FAILED")
            raise
        model = self.client.finalize_logged_model(model.model_id, "READY")
        with self._lock:
            if not self.client.search_registered_models(f"name = '{name}'"):
                self.client.create_registered_model(name)
        # For a model without a run, MLflow 3.17 looks in another store, that of the environment.
        model_id = None if run_id is None else model.model_id
        version = self.client.create_model_version(name, model.artifact_location, run_id=run_id, model_id=model_id)
        return int(version.version)

    def studies(self) -> list[Experiment]:
        """All studies with runs, the one of which a run was started last first."""
        experiments = {experiment.experiment_id: experiment for experiment in self.client.search_experiments()}
        newest = [run for number in experiments for run in self._search([number], TRAINING_RUNS, most=1)]
        newest.sort(key=lambda run: run.info.start_time, reverse=True)
        return [experiments[run.info.experiment_id] for run in newest]

    def runs(self, study: str) -> list[Run]:
        """The MLflow runs of a study's runs, whatever their state."""
        experiment = self.client.get_experiment_by_name(study)
        return [] if experiment is None else self._search([experiment.experiment_id], TRAINING_RUNS)
