"""Ctrl-C of a sweep whose jobs are processes of their own: MLflow holds none of its runs to be running afterwards."""

from __future__ import annotations

import signal
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest
from commands import start

SWEEP = (
    "train.py -m experiment=tiny_control split=s1 variations=0 seed=0,1,2 trainer.steps=40000 trainer.validations=4 "
    "hydra/launcher=joblib hydra.launcher.n_jobs=2"
)


def asked(folder: Path, query: str) -> list[str]:
    """First column of what MLflow's database answers; without MLflow, which would lock it and so shift the moment."""
    try:
        with closing(sqlite3.connect(f"{(folder / 'mlruns' / 'mlflow.db').as_uri()}?mode=ro", uri=True)) as database:
            return [value for (value,) in database.execute(query)]
    except sqlite3.Error:  # not there yet
        return []


BEGUN = "select run_uuid from runs where status = 'RUNNING'"
TRAINING = "select distinct run_uuid from metrics"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", [BEGUN, TRAINING], ids=["begun", "training"])
def test_no_run_stays_running(tmp_path: Path, number: signal.Signals, moment: str) -> None:
    process = start(SWEEP, tmp_path)
    until = time.monotonic() + 240
    while len(asked(tmp_path, moment)) < 2 and process.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    assert process.poll() is None
    process.kill(number)
    assert process.wait(120) != 0
    assert asked(tmp_path, "select status from runs") == ["KILLED", "KILLED"]
