"""What a sweep launches, and what becomes of the runs of jobs that were killed."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from boxtwin.config.launch import quote_numbers
from boxtwin.config.schema import register
from boxtwin.config.sweeper import asked, end_killed
from boxtwin.tracking.mlflow_runs import Store

ROOT = Path(__file__).parents[2]


@pytest.fixture
def key():
    register()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        yield lambda line: asked(compose("config", quote_numbers(line.split(), ROOT / "conf" / "variations")))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("variations=0 generator=repeat", "variations=0 generator=copy_paste", True),
        ("variations=0 generator=repeat", "variations=0", True),
        ("variations=2 generator=repeat", "variations=2 generator=copy_paste", False),
        # Found by the content of files, these are in no folder's name.
        ("variations=0 detector.weights=a", "variations=0 detector.weights=b", False),
        ("variations=0 dataset.root=a", "variations=0 dataset.root=b", False),
        ("variations=0 study=a", "variations=0 study=b", False),
        ("variations=0 seed=0", "variations=0 seed=1", False),
    ],
)
def test_what_is_asked_for(key, one, other, same):
    assert (key(one) == key(other)) == same


def test_runs_of_killed_jobs_do_not_stay_running(tmp_path):
    """Those of this machine, that is: jobs elsewhere, and such as are at work, go on."""
    store = Store(uri=None, folder=tmp_path / "mlruns")
    dead = subprocess.Popen(["true"])
    dead.wait()
    cases = {
        "killed": {"pid": dead.pid, "host": platform.node(), "ended": False},
        "alive": {"pid": os.getppid(), "host": platform.node(), "ended": False},
        "elsewhere": {"pid": dead.pid, "host": "another", "ended": False},
        "ended": {"pid": dead.pid, "host": platform.node(), "ended": True},
    }
    runs = {}
    (tmp_path / "notes").mkdir()
    for name, note in cases.items():
        runs[name] = store.begin_cell(study="s", name=name, identity=name, params={}, tags={}).run_id
        content = note | {"run_id": runs[name], "uri": store.uri}
        (tmp_path / "notes" / f"{name}.json").write_text(json.dumps(content))
    (tmp_path / "notes" / "early.json").write_text(
        json.dumps({"pid": dead.pid, "host": platform.node(), "ended": False})
    )
    end_killed(tmp_path / "notes")
    states = {name: store.client.get_run(run_id).info.status for name, run_id in runs.items()}
    assert states == {"killed": "KILLED", "alive": "RUNNING", "elsewhere": "RUNNING", "ended": "RUNNING"}
