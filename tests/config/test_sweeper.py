"""Sweeps of jobs that take no time (`sweeping`): which are launched, which are tried again, what is said of them."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
Sweep = Callable[..., tuple[int, str, dict[str, int]]]
LAUNCHERS = {
    "basic": "",
    "joblib": "hydra/launcher=joblib hydra.launcher.n_jobs=2",
    "submitit": "hydra/launcher=submitit_local",
}


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    """Runs a sweep in a folder of its own; its exit status, what it printed, and the attempts at each cell."""
    (tmp_path / "attempts").mkdir()

    def run(line: str, plan: dict[str, list[str]] | None = None) -> tuple[int, str, dict[str, int]]:
        (tmp_path / "plan.json").write_text(json.dumps(plan or {}))
        process = subprocess.run(
            [sys.executable, str(ROOT / "tests" / "sweeping.py"), "-m", *line.split()],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT / 'tests'}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
            check=False,
        )
        attempts = Counter(file.name.split(".")[0] for file in (tmp_path / "attempts").iterdir())
        return process.returncode, process.stdout, dict(attempts)

    return run


def cells(*parts: str) -> set[str]:
    return {f"{part.rsplit('-', 1)[0]}-yolov3_tiny_3l-{part.rsplit('-', 1)[1]}" for part in parts}


def test_the_command_of_a_study_has_every_cell_once(sweep: Sweep) -> None:
    """Three generators and no variations are one cell."""
    line = "experiment=study split=s1,s2 variations=0,2,10 generator=pixel_ddpm,repeat,copy_paste seed=range(2)"
    code, printed, attempts = sweep(line)
    assert code == 0
    assert "36 combinations are 28 runs" in printed
    assert len(attempts) == 28
    assert set(attempts.values()) == {1}
    assert sum("-x0-none-" in name for name in attempts) == 4
    assert "28 of 28 runs of this sweep have ended" in printed
    again, printed, attempts = sweep(line)
    assert (again, set(attempts.values())) == (0, {2})
    assert "left" not in printed  # all had a result before, so nothing is known of how long a run takes


@pytest.mark.parametrize("launcher", ["basic", pytest.param("joblib"), pytest.param("submitit")])
def test_what_breaks_down_is_tried_once_more_and_then_listed(sweep: Sweep, launcher: str) -> None:
    once, twice, refused = (f"s1-x0-none-yolov3_tiny_3l-seed{seed}" for seed in (0, 1, 2))
    plan = {once: ["crash"], twice: ["crash", "crash"], refused: ["refuse"]}
    code, printed, attempts = sweep(f"seed=0,1,2,3 {LAUNCHERS[launcher]}", plan)
    assert code == 1
    assert attempts == {once: 2, twice: 2, refused: 1, "s1-x0-none-yolov3_tiny_3l-seed3": 1}
    assert re.search(f"once more, since they broke down: {once}, {twice}$", printed, re.M)
    summary = printed[printed.index("2 run(s) of this sweep failed") :]
    assert once not in summary
    assert f"{twice}:\n    RuntimeError: the disk was full" in summary
    assert f"{refused}:\n    a value is wrong\n    set another" in summary


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


@pytest.mark.parametrize("launcher", ["joblib", "submitit"])
def test_a_job_that_is_killed_costs_no_other_its_turn(sweep: Sweep, launcher: str) -> None:
    killed = "s1-x0-none-yolov3_tiny_3l-seed0"
    code, printed, attempts = sweep(f"seed=0,1,2 {LAUNCHERS[launcher]}", {killed: ["kill"]})
    assert code == 0, printed
    assert set(attempts) == {f"s1-x0-none-yolov3_tiny_3l-seed{seed}" for seed in (0, 1, 2)}
    assert attempts[killed] == 2
    assert "the launcher gave up" in printed


def test_the_time_that_is_left_is_told(sweep: Sweep) -> None:
    _, printed, _ = sweep("seed=0,1")
    assert re.search(r"^1 of 2 runs of this sweep have ended; about \d+ min left$", printed, re.M)
    assert re.search(r"^2 of 2 runs of this sweep have ended$", printed, re.M)


def test_a_sweep_leaves_no_notes(sweep: Sweep, tmp_path: Path) -> None:
    sweep("seed=0,1")
    assert not list((tmp_path / "multirun" / ".sweeps").iterdir())
