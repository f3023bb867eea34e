"""End the MLflow runs of work that raises, is stopped or was killed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from mlflow.tracking import MlflowClient

from boxtwin.errors import unanswered
from boxtwin.tracking.study_names import IDENTITY_TAG, SQLITE

log = logging.getLogger(__name__)

FAILURE_TAG = "boxtwin.failure"  # why a run has not finished
MOST_CHARACTERS = 5000  # of the reason of a failure: MLflow's limit for tags


@contextmanager
def ended_on_error(end: Callable[[str, str], None], what: str) -> Iterator[None]:
    """Call ``end`` with status and reason if the block raises: FAILED, or KILLED if it is stopped.

    A tracking server that is known to be away is not asked again: MLflow would repeat the request for minutes.

    Args:
        end: Ends an MLflow run. An error of its own is logged and does not hide the first one.
        what: What the log calls the run, such as ``a run of study pollen``.
    """
    try:
        yield
    except BaseException as error:
        failure = ("FAILED", f"{type(error).__name__}: {error}")
        status, reason = failure if isinstance(error, Exception) else ("KILLED", "stopped")
        if unanswered(error) is None:
            try:
                end(status, reason)
            except Exception as refused:
                line = str(refused).partition("\n")[0]
                log.warning("MLflow did not record that %s is %s: %s", what, status, line)
        raise


@contextmanager
def run_ended_on_error(uri: str, study: str, identity: str) -> Iterator[None]:
    """`ended_on_error` for the run that the block begins, which can be stopped before its MLflow id is known."""
    with ended_on_error(partial(end_running, uri, study, identity), f"a run of study {study}"):
        yield


def end_running(uri: str, study: str, identity: str, status: str = "KILLED", reason: str = "killed") -> None:
    """End what MLflow shows as running of a run, in the store at ``uri``; the caller holds the run's lock."""
    if uri.startswith(SQLITE) and not Path(uri.removeprefix(SQLITE)).exists():
        return  # MLflow would make a file
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(study)
    if experiment is None:
        return
    search = f"tags.`{IDENTITY_TAG}` = '{identity}' and attributes.status = 'RUNNING'"
    for run in client.search_runs([experiment.experiment_id], search):
        client.set_tag(run.info.run_id, FAILURE_TAG, reason[:MOST_CHARACTERS])
        client.set_terminated(run.info.run_id, status)
