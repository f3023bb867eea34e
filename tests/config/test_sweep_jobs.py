"""What a sweep launches, and what becomes of the runs of jobs that were killed."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from filelock import FileLock
from hydra import compose, initialize_config_dir

from boxtwin.config.compose import register
from boxtwin.config.launch import quote_numbers
from boxtwin.config.sweeper import end_killed, settings_key
from boxtwin.errors import InputError
from boxtwin.tracking.interrupted import ended_on_error
from boxtwin.tracking.mlflow_runs import Store, store_uri

ROOT = Path(__file__).parents[2]


@pytest.fixture
def key() -> Iterator[Callable[[str], str]]:
    register()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        yield lambda line: settings_key(compose("config", quote_numbers(line.split(), ROOT / "conf" / "variations")))


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
def test_what_is_asked_for(key: Callable[[str], str], one: str, other: str, same: bool) -> None:
    assert (key(one) == key(other)) == same


def test_runs_of_killed_jobs_do_not_stay_running(tmp_path: Path) -> None:
    """Those of this machine, that is: jobs elsewhere, and such as are at work, go on."""
    store = Store(uri=None, folder=tmp_path / "mlruns")
    here = platform.node()
    cases = {
        "killed": {"host": here, "ended": False},
        "alive": {"host": here, "ended": False},
        "elsewhere": {"host": "another", "ended": False},
        "ended": {"host": here, "ended": True},
    }
    runs = {}
    (tmp_path / "notes").mkdir()
    for name, note in cases.items():
        runs[name] = store.begin_cell(study="s", name=name, identity=name, params={}, tags={}).run_id
        # Noted before MLflow had the run: without its id.
        run = {"uri": store.uri, "study": "s", "identity": name, "lock": str(tmp_path / f"{name}.lock")}
        (tmp_path / "notes" / f"{name}.json").write_text(json.dumps({**note, "run": run}))
    other_study = store.begin_cell(study="t", name="killed", identity="killed", params={}, tags={}).run_id
    (tmp_path / "notes" / "early.json").write_text(json.dumps({"host": here, "ended": False}))
    with FileLock(tmp_path / "alive.lock"):
        end_killed(tmp_path / "notes", patience=0.1)
    states = {name: store.client.get_run(run_id).info.status for name, run_id in runs.items()}
    assert states == {"killed": "KILLED", "alive": "RUNNING", "elsewhere": "RUNNING", "ended": "RUNNING"}
    assert store.client.get_run(other_study).info.status == "RUNNING"


def test_a_run_that_is_stopped_does_not_stay_running(tmp_path: Path) -> None:
    """Ctrl-C when MLflow has the run and nobody knows its id yet; a run that has ended is left as it is."""
    folder = tmp_path / "mlruns"
    uri = store_uri(None, folder)

    def work(end: str | None, error: BaseException) -> None:
        with ended_on_error(uri, "s", "a"):
            store = Store(uri=None, folder=folder)
            run = store.begin_cell(study="s", name="a", identity="a", params={}, tags={})
            if end is not None:
                store.end(run.run_id, end, "disk full")
            raise error

    with pytest.raises(KeyboardInterrupt), ended_on_error(uri, "s", "a"):
        raise KeyboardInterrupt
    assert not folder.exists()
    for end, error, state in [(None, KeyboardInterrupt(), "KILLED"), ("FAILED", RuntimeError(), "FAILED")]:
        with pytest.raises(type(error)):
            work(end, error)
        assert [run.info.status for run in Store(uri=None, folder=folder).cells("s")] == [state]


def test_a_server_that_is_away_is_asked_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By default MLflow takes four minutes to give up each question."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    questions = []
    send = requests.Session.send

    def counted(*args: Any, **more: Any) -> requests.Response:
        questions.append(args)
        return send(*args, **more)

    monkeypatch.setattr(requests.Session, "send", counted)
    uri = "http://127.0.0.1:9"
    with pytest.raises(InputError, match="does not answer"), ended_on_error(uri, "s", "a"):
        Store(uri=uri, folder=tmp_path)
    assert len(questions) == 1
