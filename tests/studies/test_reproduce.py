"""The part of the page that says how to make a study again."""

from __future__ import annotations

import html
import re
import shlex
from pathlib import Path

import pytest
from study_cells import finished_cell

from boxtwin.studies.report.page import write_report
from boxtwin.studies.report.summary import Summary
from boxtwin.studies.study import Study

METRICS = {"test/map": 0.4, "test/map_50": 0.7, "test/count_mae": 1.0}


def test_only_finished_runs_are_made_again_and_no_absolute_path_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    evil = "dataset.name='x; touch PWNED'"
    typed = ["--config-dir=mine", f"dataset.root='{tmp_path}/my data'", evil, "variations=0"]
    cells = [
        finished_cell(
            f"run{seed}",
            0,
            seed,
            metrics=METRICS,
            status=status,
            output_dir=str(tmp_path / "multirun" / f"run{seed}"),
            overrides=shlex.join([*typed, f"seed={seed}"]),
        )
        for seed, status in enumerate(("FINISHED", "FAILED", "KILLED"))
    ]
    study = Study.of(cells)
    page = write_report(study, Summary.of(study), tmp_path / "report").read_text()
    assert str(tmp_path) not in page
    assert "multirun/run0" in page
    commands = [
        shlex.split(html.unescape(line))
        for line in re.findall(r"python (?:train|compare)\.py [^<\n]*", page.partition('id="reproduce"')[2])
    ]
    made = ["--config-dir=mine", "dataset.root='my data'", evil, "variations=0", "seed=0"]
    assert commands == [["python", "train.py", *made], ["python", "compare.py", "study=demo"]]
