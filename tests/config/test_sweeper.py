"""Sweeps of jobs that take no time (`sweeping`): which are launched, which are tried again, what is said of them."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import pty
import re
import subprocess
import sys
import termios
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import requests
from commands import Command
from filelock import FileLock
from hydra import compose, initialize_config_dir

from boxtwin.config.arguments import quote_numbers
from boxtwin.config.compose import register
from boxtwin.config.notes import Note, names_of, time_left
from boxtwin.config.sweeper import end_killed, settings_key
from boxtwin.errors import InputError
from boxtwin.tracking.broken_off import run_ended_on_error
from boxtwin.tracking.mlflow_runs import Store, store_uri

ROOT = Path(__file__).parents[2]
Sweep = Callable[..., tuple[int, str, dict[str, int]]]
LAUNCHERS = {
    "basic": "",
    "joblib": "hydra/launcher=joblib hydra.launcher.n_jobs=2",
    "submitit": "hydra/launcher=submitit_local",
}


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    """Runs a sweep in a folder of its own; its exit status, what it printed, and the attempts at each run."""
    (tmp_path / "attempts").mkdir()

    def run(line: str, plan: dict[str, list[str]] | None = None) -> tuple[int, str, dict[str, int]]:
        (tmp_path / "plan.json").write_text(json.dumps(plan or {}))
        words = line.split() if "jobs=" in line else [*line.split(), "jobs=1"]
        command = Command([str(ROOT / "tests" / "sweeping.py"), "-m", *words], tmp_path)
        code = command.wait(300)
        attempts = Counter(file.name.split(".")[0] for file in (tmp_path / "attempts").iterdir())
        return code, command.text(), dict(attempts)

    return run


def runs(*parts: str) -> set[str]:
    return {f"{part.rsplit('-', 1)[0]}-yolov3_tiny_3l-{part.rsplit('-', 1)[1]}" for part in parts}


def test_the_command_of_a_study_has_every_run_once(sweep: Sweep) -> None:
    """Three generators and no variations are one run."""
    line = "experiment=study split.train_size=10,40 variations=0,2,10 generator=pixel_ddpm,repeat,copy_paste seed=0"
    code, printed, attempts = sweep(line)
    assert code == 0
    assert "18 combinations are 14 runs" in printed
    assert len(attempts) == 14
    assert set(attempts.values()) == {1}
    assert sum("-x0-none-" in name for name in attempts) == 2
    assert "14 of 14 runs of this sweep have ended" in printed
    code, printed, attempts = sweep("experiment=study variations=0 seed=0")
    assert (code, sorted(attempts.values())) == (0, [1] * 12 + [2] * 2)
    assert "left" not in printed  # all had a result before, so nothing is known of how long a run takes


@pytest.mark.parametrize("launcher", ["basic", pytest.param("joblib"), pytest.param("submitit")])
def test_what_breaks_down_is_tried_once_more_and_then_listed(sweep: Sweep, launcher: str) -> None:
    once, twice, refused = (f"s1-x0-none-yolov3_tiny_3l-seed{seed}" for seed in (0, 1, 2))
    plan = {once: ["crash"], twice: ["crash", "crash"], refused: ["refuse"]}
    code, printed, attempts = sweep(f"seed=0,1,2,3 {LAUNCHERS[launcher]}", plan)
    assert code == 1
    assert attempts == {once: 2, twice: 2, refused: 1, "s1-x0-none-yolov3_tiny_3l-seed3": 1}
    assert re.search(f"running again, after failures that no setting caused: {once}, {twice}$", printed, re.M)
    summary = printed[printed.index("2 run(s) of this sweep failed") :]
    assert once not in summary
    assert f"{twice}:\n    RuntimeError: the disk was full" in summary
    assert f"{refused}:\n    a value is wrong\n    set another" in summary


def test_several_jobs_at_once(sweep: Sweep, tmp_path: Path) -> None:
    """Each in one of so many processes and with one thread; what breaks down is tried again; nothing new is one job."""
    crashed = "s1-x0-none-yolov3_tiny_3l-seed1"
    code, printed, attempts = sweep("seed=range(6) jobs=2", {crashed: ["crash"]})
    assert code == 0, printed
    assert printed.count("2 runs at once on ") == 1
    assert (len(attempts), attempts[crashed]) == (6, 2)
    assert len({file.read_text() for file in (tmp_path / "attempts").iterdir()}) == 2
    overrides = [file.read_text() for file in tmp_path.glob("multirun/sar_scenes/*/.hydra/overrides.yaml")]
    assert len(overrides) == 6
    assert all("- trainer.threads=1\n" in text for text in overrides)
    code, printed, _ = sweep("seed=0,1 jobs=2 trainer.threads=3 study=own")
    assert (code, printed.count("at once")) == (0, 1)
    overrides = [file.read_text() for file in tmp_path.glob("multirun/own/*/.hydra/overrides.yaml")]
    assert ["trainer.threads=1" in text for text in overrides] == [False, False]


def test_wrong_numbers_of_jobs(sweep: Sweep) -> None:
    code, printed, attempts = sweep("seed=0,1 jobs=0")
    assert (code, attempts) == (1, {})
    assert "jobs=0 must be at least 1" in printed
    assert "Traceback" not in printed


def test_a_setting_that_names_another_is_no_failure(sweep: Sweep) -> None:
    code, printed, attempts = sweep("seed=0,1 study=of-${seed} data='\\${seed}'")
    assert (code, sorted(attempts.values())) == (0, [1, 1]), printed


def test_what_is_wrong_with_a_data_set_is_found_once(sweep: Sweep) -> None:
    plan = {f"s1-x0-none-yolov3_tiny_3l-seed{seed}": ["data"] * 4 for seed in range(2)}
    code, printed, attempts = sweep("seed=0,1 dataset.image_size=256,512 dataset.on_bad_box=error,clip", plan)
    assert code == 1
    # Once for each of the two ways to read it, not for each of the eight runs.
    assert sum(attempts.values()) == 2
    assert printed.count("FAILED: labels.json: boxes that are empty: 1") == 2
    assert "8 run(s) of this sweep failed" in printed
    assert printed.count("    a.png") == 1


@pytest.mark.parametrize("launcher", ["joblib", pytest.param("submitit", marks=pytest.mark.slow)])
def test_a_job_that_is_killed_costs_no_other_its_turn(sweep: Sweep, launcher: str) -> None:
    killed = "s1-x0-none-yolov3_tiny_3l-seed0"
    code, printed, attempts = sweep(f"seed=0,1,2 {LAUNCHERS[launcher]}", {killed: ["kill"]})
    assert code == 0, printed
    assert set(attempts) == {f"s1-x0-none-yolov3_tiny_3l-seed{seed}" for seed in (0, 1, 2)}
    assert attempts[killed] == 2
    assert "the launcher gave up" in printed


def test_the_time_that_is_left_is_told_and_no_notes_stay(sweep: Sweep, tmp_path: Path) -> None:
    _, printed, _ = sweep("seed=0,1")
    assert not list((tmp_path / "multirun" / ".sweeps").iterdir())
    assert re.search(r"^1 of 2 runs of this sweep have ended; about \d+ min left$", printed, re.M)
    assert re.search(r"^2 of 2 runs of this sweep have ended$", printed, re.M)


def test_jobs_side_by_side_have_one_bar_on_a_terminal(tmp_path: Path) -> None:
    """And what they say stands on lines of its own, above it."""
    names = [f"s1-x0-none-yolov3_tiny_3l-seed{seed}" for seed in range(4)]
    (tmp_path / "attempts").mkdir()
    (tmp_path / "plan.json").write_text(json.dumps({name: ["wait"] for name in names}))
    terminal, other = pty.openpty()
    termios.tcsetwinsize(other, (30, 100))
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "sweeping.py"), "-m", "seed=range(4)", "jobs=2"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT / 'tests'}"},
        stdout=other,
        stderr=other,
    )
    os.close(other)
    parts = []
    with contextlib.suppress(OSError):  # Linux ends the reading so
        while part := os.read(terminal, 65536):
            parts.append(part)
    os.close(terminal)
    text = b"".join(parts).decode()
    assert process.wait() == 0, text
    for name in names:
        assert f"\r\x1b[K{name} has waited\r\n" in text
    assert "have ended" not in text  # the bar says so
    bars = re.findall(r"runs of this sweep: +\d+%\|[^|]*\| (\d)/4 \[\d\d:\d\d(, [^]]*)?\]", text)
    assert ("0", ", 2 at work") in bars
    assert ("2", ", 2 at work, about 1 min left") in bars
    assert bars[-1] == ("4", "")


def test_runs_of_one_name_are_told_apart_by_what_differs() -> None:
    common = ("generator=img2img", "seed=0")
    same = [Note(run_name="a", words=(*common, f"generator.strength={each}")) for each in (0.3, 0.6)]
    assert names_of([*same, Note(run_name="b", words=common)]) == [
        "a (generator.strength=0.3)",
        "a (generator.strength=0.6)",
        "b",
    ]
    assert names_of(same[:1]) == names_of([Note(run_name="a")]) == ["a"]


def test_time_left_is_that_of_finished_runs_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 10_000.0)
    waiting, done = Note(new=True), Note(new=True, attempts=1, ended=True, reason=None)
    half = Note(new=True, attempts=1, begun=10_000.0 - 300, reason=None)
    finished = [replace(done, seconds=seconds) for seconds in (500.0, 700.0)]
    skipped, failed = replace(done, new=False, seconds=1.0), replace(done, seconds=1.0, reason="the disk was full")
    assert time_left([waiting, half, skipped, failed], 2) == ""  # nothing is known of how long a run takes
    assert time_left([*finished, skipped], 2) == ""
    assert time_left([*finished, skipped, failed, *[waiting] * 4], 1) == "about 40 min left"
    assert time_left([*finished, *[waiting] * 4], 2) == "about 20 min left"
    assert time_left([*finished, half, half, *[waiting] * 4], 2) == "about 25 min left"
    assert time_left([*finished, half], 2) == "about 5 min left"  # one run is not made by two
    assert time_left([*finished, *[waiting] * 10], 1) == "about 1 h 40 min left"


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
        runs[name] = store.begin_run(study="s", name=name, identity=name, params={}, tags={}).run_id
        # Noted before MLflow had the run: without its id.
        run = {"uri": store.uri, "study": "s", "identity": name, "lock": str(tmp_path / f"{name}.lock")}
        (tmp_path / "notes" / f"{name}.json").write_text(json.dumps({**note, "run": run}))
    other_study = store.begin_run(study="t", name="killed", identity="killed", params={}, tags={}).run_id
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
        with run_ended_on_error(uri, "s", "a"):
            store = Store(uri=None, folder=folder)
            run = store.begin_run(study="s", name="a", identity="a", params={}, tags={})
            if end is not None:
                store.end(run.run_id, end, "disk full")
            raise error

    with pytest.raises(KeyboardInterrupt), run_ended_on_error(uri, "s", "a"):
        raise KeyboardInterrupt
    assert not folder.exists()
    for end, error, state in [(None, KeyboardInterrupt(), "KILLED"), ("FAILED", RuntimeError(), "FAILED")]:
        with pytest.raises(type(error)):
            work(end, error)
        assert [run.info.status for run in Store(uri=None, folder=folder).runs("s")] == [state]


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
    with pytest.raises(InputError, match="does not answer"), run_ended_on_error(uri, "s", "a"):
        Store(uri=uri, folder=tmp_path)
    assert len(questions) == 1
