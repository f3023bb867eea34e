"""What decides which condition of a study is recommended."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from boxtwin.commands.compare import compare_study
from boxtwin.commands.recommended import primary_of
from boxtwin.errors import InputError
from boxtwin.studies.primary import PRIMARY_FILE, PRIMARY_TAG
from boxtwin.tracking.mlflow_runs import Store

COMPARISONS = [
    {"name": name, "treatment": {"variations": number}, "control": {}} for number, name in ((2, "a"), (10, "b"))
]


def test_primary_comparisons_are_those_of_the_last_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = Store(uri=None, folder=tmp_path / "mlruns")

    def names(folder: str) -> list[str]:
        return [each.name for each in primary_of(store, "ships", tmp_path / folder)]

    assert names("first") == []
    # A report of an earlier version.
    report = tmp_path / "reports" / "ships"
    report.mkdir(parents=True)
    (report / PRIMARY_FILE).write_text(yaml.safe_dump({"comparisons": COMPARISONS}))
    assert names("second") == ["a", "b"]
    # compare.py folder=elsewhere, with other primary comparisons; then without any.
    (tmp_path / PRIMARY_FILE).write_text(yaml.safe_dump({"comparisons": COMPARISONS[:1]}))
    run_id = store.begin_comparison(study="ships")
    store.tag(run_id, {PRIMARY_TAG: "true"})
    store.log_files(run_id, [tmp_path / PRIMARY_FILE])
    assert names("third") == ["a"]
    lost = store.begin_comparison(study="lost")
    store.tag(lost, {PRIMARY_TAG: "true"})
    with pytest.raises(InputError, match="lost the primary comparisons"):
        primary_of(store, "lost", tmp_path / "lost")
    store.tag(run_id, {PRIMARY_TAG: "false"})
    assert names("fourth") == []


def test_a_report_that_lies_elsewhere_keeps_the_primary_comparisons(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    store = Store(uri=None, folder=tmp_path / "mlruns")
    for variations, seed in itertools.product((0, 2), range(2)):
        name = f"s1-x{variations}-seed{seed}"
        params: dict[str, Any] = {
            "dataset": "d",
            "split": "s1",
            "generator": "repeat" if variations else "none",
            "detector": "n",
        }
        params |= {"variations": variations, "seed": seed, "steps": 6}
        run = store.begin_run(study="ships", name=name, identity=name, params=params, tags={})
        metrics = {"test/map": 0.2, "test/map_50": 0.5 + variations / 100, "test/count_mae": 1.0, "time/total": 60.0}
        store.log_metrics(run.run_id, metrics)
        condition = {"split": {"name": "s1"}, "variations": {"per_image": variations}}
        (tmp_path / "result.json").write_text(json.dumps({"params": params, "condition": condition}))
        store.log_files(run.run_id, [tmp_path / "result.json"])
        store.end(run.run_id, "FINISHED")
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"comparisons": COMPARISONS[:1]}))
    settings: dict[str, Any] = {"study": "ships", "runs": None, "annotations": None, "plan": False, "brief": False}
    settings |= {"tracking": {"uri": None, "folder": "mlruns"}, "primary": "mine.yaml", "folder": "here"}
    compare_study(OmegaConf.create(settings))
    compare_study(OmegaConf.create(settings | {"primary": None, "folder": "elsewhere"}))
    assert capsys.readouterr().out.count("Primary comparison 1 of 1, a: ") == 2
    assert (tmp_path / "elsewhere" / "ships" / PRIMARY_FILE).is_file()
    assert [each.name for each in primary_of(store, "ships", tmp_path / "again")] == ["a"]
    # They are withdrawn by name only, and come back from MLflow in a report that lies elsewhere until then.
    compare_study(OmegaConf.create(settings | {"primary": "none", "folder": "elsewhere"}))
    compare_study(OmegaConf.create(settings | {"primary": None, "folder": "elsewhere"}))
    assert "Primary comparison" not in capsys.readouterr().out
    assert primary_of(store, "ships", tmp_path / "withdrawn") == []
