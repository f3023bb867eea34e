"""Jobs that Hydra's launchers for submitit have sent, so that a sweep can wait for all of them."""

from __future__ import annotations

import contextlib
import importlib.util
import time
from collections.abc import Iterator, Sequence
from typing import Any

PAUSE = 5.0  # seconds between two questions to the queue


@contextlib.contextmanager
def submitted_jobs() -> Iterator[list[Any]]:
    """A list that fills with the jobs that are submitted meanwhile.

    ``hydra-submitit-launcher`` 1.2.0 keeps none: it raises an error at the first job that was killed, while others are
    in the queue or run.
    """
    if importlib.util.find_spec("submitit") is None:
        yield []
        return
    import submitit

    jobs: list[Any] = []
    usual = submitit.AutoExecutor

    class Executor(usual):  # type: ignore[misc, valid-type]
        def map_array(self, *args: Any, **more: Any) -> list[Any]:
            sent: list[Any] = super().map_array(*args, **more)
            jobs.extend(sent)
            return sent

    submitit.AutoExecutor = Executor  # type: ignore[misc]
    try:
        yield jobs
    finally:
        submitit.AutoExecutor = usual  # type: ignore[misc]


def wait_for(jobs: Sequence[Any]) -> None:
    """Return when all ``jobs`` have ended, however they did."""
    for job in jobs:
        while not job.done(force_check=True):
            time.sleep(PAUSE)
