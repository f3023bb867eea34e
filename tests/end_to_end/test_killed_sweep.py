"""A sweep that was killed, or makes several runs at once, gives what the usual one gives, to the last bit."""

from __future__ import annotations

import csv
import re
import time
from pathlib import Path

import pytest
from commands import manifests, run, run_folders, runs, start
from kill_moments import kill_moments

SWEEP = "train.py -m experiment=tiny_killed split=s2 variations=0,1,2 seed=0,1"
RUNS = 6
KILLS = 10


def table(folder: Path) -> list[dict[str, str]]:
    """The comparison's table without what a clock measured."""
    run("compare.py", folder)
    (file,) = folder.glob("reports/*/comparison.csv")
    return [{k: v for k, v in row.items() if k != "minutes"} for row in csv.DictReader(file.read_text().splitlines())]


@pytest.mark.slow
def test_runs_at_once_are_those_made_one_after_the_other(tmp_path: Path) -> None:
    sweep = "train.py -m experiment=tiny_control split=s2 variations=0,2 seed=0,1"
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        printed = run(f"{sweep} jobs={1 + (name == 'two')}", tmp_path / name)
        assert ("2 runs at once" in printed, "step/s" in printed) == ((False, True) if name == "one" else (True, False))
        # In place of bars, at most ten lines for each run.
        lines = re.findall(r"^s2-x\d-\w+-yolov3_nano-seed\d: step (\d) of 8, \d\d:\d\d left$", printed, re.M)
        assert sorted(lines) == ([] if name == "one" else sorted("1234567" * 4))
    assert len(run_folders(tmp_path / "one")) == 4
    assert run_folders(tmp_path / "one") == run_folders(tmp_path / "two")
    assert table(tmp_path / "one") == table(tmp_path / "two")
    assert {r.info.status for r in runs(tmp_path / "two")} == {"FINISHED"}


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_ten_kills_leave_the_table_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    began = time.monotonic()
    run(SWEEP, tmp_path / "whole", within=1200)
    whole = time.monotonic() - began
    printed = run(SWEEP, tmp_path / "whole", within=1200)
    assert printed.count("skipped (rerun=true") == RUNS
    skipping = time.monotonic() - began - whole
    # From the first imports to a few steps further each time, so that ten kills find something to kill.
    moments, latest = kill_moments(), skipping + 0.2 * max(whole - skipping, 0)
    kills = 0
    while kills < KILLS:  # one that is over already on a machine that has become faster does not count
        process = start(SWEEP, tmp_path / "killed")
        time.sleep(moments.uniform(0.2 * skipping, latest))
        if process.poll() is None:
            process.kill()
            kills += 1
        process.wait()
    printed = run(SWEEP, tmp_path / "killed", within=1200)
    assert "FAILED" not in printed
    found, expected = run_folders(tmp_path / "killed"), run_folders(tmp_path / "whole")
    assert len(expected) == RUNS
    assert found == expected
    assert table(tmp_path / "killed") == table(tmp_path / "whole")
    assert {r.info.status for r in runs(tmp_path / "killed")} == {"FINISHED"}
    assert len(runs(tmp_path / "killed")) == RUNS
    pixels = [{line["image"]: line["image_sha256"] for line in lines} for lines in manifests(tmp_path / "killed")]
    assert pixels == [
        {line["image"]: line["image_sha256"] for line in lines} for lines in manifests(tmp_path / "whole")
    ]
