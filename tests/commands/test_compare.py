"""Runs that are read from folders: one folder, several, single runs and archives."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from boxtwin.commands.compare import compare_study
from boxtwin.errors import InputError
from boxtwin.studies.archive import ARCHIVE, write_archive


def write_run(folder: Path, study: str, variations: int, seed: int, identity: str = "") -> Path:
    folder.mkdir(parents=True)
    names = {"dataset": "d", "split": "s1", "generator": "repeat" if variations else "none", "detector": "n"}
    condition: dict[str, Any] = {
        "variations": {"per_image": variations},
        "split": {"name": "s1"},
        "data": {"test": "5"},
    }
    condition["generator"] = {"name": "repeat"} if variations else {}
    metrics = {"test/map": 0.2, "test/map_50": 0.5 + variations / 100 + seed / 1000, "test/count_mae": 1.0}
    params = names | {"steps": 6, "variations": variations, "seed": seed}
    record = {"study": study, "params": params, "metrics": metrics, "condition": condition, "identity": identity}
    (folder / "result.json").write_text(json.dumps(record))
    return folder


def compared(tmp_path: Path, runs: object, study: str | None = None) -> str:
    settings = {"study": study, "runs": runs, "primary": None, "folder": str(tmp_path / "reports")}
    config: DictConfig = OmegaConf.create(settings | {"annotations": None, "plan": False, "brief": True})
    return compare_study(config).parent.name


def test_runs_of_several_folders_are_one_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run that one study reused from the other counts once; runs of equal names are told apart."""
    a, b = tmp_path / "a, b (1)", tmp_path / "k=v"
    for seed in (0, 1):
        write_run(a / f"run{seed}", "first", 0, seed, f"same{seed}")
        write_run(b / f"run{seed}", "second", 10, seed, f"other{seed}")
        write_run(b / f"reused{seed}", "second", 0, seed, f"same{seed}")
    assert compared(tmp_path, str(a)) == "first"
    assert compared(tmp_path, [str(a), str(b)]) == "first-and-second"
    assert "study first-and-second: 4 runs" in capsys.readouterr().out
    assert compared(tmp_path, [str(a / "run0"), str(b / "run0")], study="two") == "two"
    assert "On 0 real images" not in (text := capsys.readouterr().out)
    assert "10 variations of each by repeat change AP50 by +10.0 points (1 seed)" in text


def test_runs_that_count_once_are_equal_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Otherwise the order of the folders would decide the result."""
    folders = [write_run(tmp_path / name / "run", name, 0, 0, "same").parent for name in "ab"]
    with caplog.at_level("INFO"):
        compared(tmp_path, list(map(str, folders)))
    assert "runs that several folders hold, which count once: 1" in caplog.text
    file = folders[1] / "run" / "result.json"
    record = json.loads(file.read_text())
    changes = [("test/map_50", 0.7), ("time/total", 3.0), ("test/count_mae", None)]
    for name, value in changes:
        file.write_text(json.dumps(record | {"metrics": record["metrics"] | {name: value}}))
        if name == "time/total":
            compared(tmp_path, list(map(str, folders)))
        else:
            with pytest.raises(InputError, match=rf"a/run and .*b/run hold the same run .*{name} .* (nan|0\.7); move"):
                compared(tmp_path, list(map(str, folders)))


def test_archives_and_folders_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, variations in (("kept", 0), ("new", 10)):
        write_run(tmp_path / name / "run", name, variations, 0)
    content = (tmp_path / "kept" / "run" / "result.json").read_bytes()
    write_archive({"run/result.json": content}, tmp_path / "archived" / ARCHIVE)
    for path in (tmp_path / "archived", tmp_path / "archived" / ARCHIVE):
        assert compared(tmp_path, [str(path), str(tmp_path / "new")]) == "kept-and-new"
        assert "study kept-and-new: 2 runs" in capsys.readouterr().out


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    folders = [str(write_run(tmp_path / name / "run", name, 0, 0).parent) for name in "ab"]
    with pytest.raises(InputError, match=r"there is no such folder or archive; several .*: runs=\[FOLDER,FOLDER\]$"):
        compared(tmp_path, ",".join(folders))
    with pytest.raises(InputError, match=r"runs=/nowhere: there is no such folder or archive$"):
        compared(tmp_path, [folders[0], "/nowhere"])
    with pytest.raises(InputError, match="there is no such"):
        compared(tmp_path, [])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty holds no folder of a run"):
        compared(tmp_path, [folders[0], str(tmp_path / "empty")])


def test_commands_of_several_studies_name_these(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    write_run(a / "run", "first", 0, 0, "one")
    write_run(b / "run", "second", 10, 0, "two")
    for folder, typed in ((a, "study=first split=s1"), (b, "split=s1")):
        file = folder / "run" / "result.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"overrides": typed}))
    assert compared(tmp_path, [str(a), str(b)]) == "first-and-second"
    page = html.unescape((tmp_path / "reports" / "first-and-second" / "index.html").read_text())
    assert "first-and-second" not in "".join(re.findall(r"python (?:train|compare)\.py [^<]*", page))
    assert re.search(r"python train\.py split=s1 study=second", page)
    assert re.search(r"python compare\.py '?\"?runs=\[multirun/first,multirun/second\]", page)
