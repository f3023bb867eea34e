"""Runs whose process was stopped: they are ended in MLflow by what that process, or the sweep above it, knows of them.

A process can be stopped while MLflow writes the very run that it begins, so that nobody has learnt the run's id yet.
Such runs are found by study and identity. A run holds a lock (`boxtwin.files.exclusive_lock`): a process that has the
lock, or finds it free, knows that no other process has the run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mlflow.tracking import MlflowClient

from boxtwin.errors import unanswered
from boxtwin.tracking.mlflow_runs import FAILURE_TAG, IDENTITY_TAG, SQLITE


def end_running(uri: str, study: str, identity: str) -> None:
    """End as KILLED what MLflow holds to be running of a run, in the store at ``uri``."""
    if uri.startswith(SQLITE) and not Path(uri.removeprefix(SQLITE)).exists():
        return  # MLflow would make a file
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(study)
    if experiment is None:
        return
    search = f"tags.`{IDENTITY_TAG}` = '{identity}' and attributes.status = 'RUNNING'"
    for run in client.search_runs([experiment.experiment_id], search):
        client.set_tag(run.info.run_id, FAILURE_TAG, "killed")
        client.set_terminated(run.info.run_id, "KILLED")


@contextmanager
def ended_if_stopped(uri: str, study: str, identity: str) -> Iterator[None]:
    """Begin, do and end a run inside of the block; it does not stay running if the block is broken off anywhere."""
    try:
        yield
    except BaseException as error:
        if unanswered(error) is None:  # MLflow would ask a server that is away again and again, for minutes
            with suppress(Exception):  # what goes wrong here must not hide why
                end_running(uri, study, identity)
        raise
