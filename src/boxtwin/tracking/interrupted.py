"""End the MLflow runs of processes that failed or were stopped.

A process can be stopped before it learns the id of its run, so runs are found by study and identity. The caller holds
the run's lock (`boxtwin.files.exclusive_lock`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlflow.tracking import MlflowClient

from boxtwin.errors import unanswered
from boxtwin.tracking.mlflow_runs import FAILURE_TAG, IDENTITY_TAG, SQLITE

log = logging.getLogger(__name__)


def end_running(uri: str, study: str, identity: str, status: str = "KILLED", reason: str = "killed") -> None:
    """End what MLflow shows as running of a run, in the store at ``uri``."""
    if uri.startswith(SQLITE) and not Path(uri.removeprefix(SQLITE)).exists():
        return  # MLflow would make a file
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(study)
    if experiment is None:
        return
    search = f"tags.`{IDENTITY_TAG}` = '{identity}' and attributes.status = 'RUNNING'"
    for run in client.search_runs([experiment.experiment_id], search):
        client.set_tag(run.info.run_id, FAILURE_TAG, reason[:5000])
        client.set_terminated(run.info.run_id, status)


@contextmanager
def ended_on_error(uri: str, study: str, identity: str) -> Iterator[None]:
    """End the run that the block begins as FAILED if it raises, or as KILLED if it is stopped.

    A tracking server that is known to be away is not asked again: MLflow would repeat the request for minutes.
    Lightning's SystemExit for a stop becomes a KeyboardInterrupt again.
    """
    try:
        yield
    except BaseException as error:
        status, reason = "KILLED", "stopped"
        if isinstance(error, Exception):
            status, reason = "FAILED", f"{type(error).__name__}: {error}"
        if unanswered(error) is None:
            try:
                end_running(uri, study, identity, status, reason)
            except Exception as refused:  # it must not hide the first error
                first, *_ = str(refused).splitlines() or [""]
                log.warning("MLflow does not take that a run of study %s is %s: %s", study, status, first)
        if isinstance(error, SystemExit):
            raise KeyboardInterrupt from error
        raise
