"""What decides which condition of a study is recommended."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from boxtwin.commands.recommended import primary_of
from boxtwin.studies.primary import PRIMARY_FILE
from boxtwin.tracking.mlflow_runs import Store

COMPARISONS = [
    {"name": name, "treatment": {"variations": number}, "control": {}} for number, name in ((2, "a"), (10, "b"))
]


def test_primary_comparisons_are_those_of_the_last_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = Store(uri=None, folder=tmp_path / "mlruns")
    assert primary_of(store, "ships", tmp_path / "first") == []
    # compare.py folder=elsewhere
    (tmp_path / PRIMARY_FILE).write_text(yaml.safe_dump({"comparisons": COMPARISONS[:1]}))
    run_id = store.begin_comparison(study="ships")
    store.log_files(run_id, [tmp_path / PRIMARY_FILE])
    store.end(run_id, "FINISHED")
    assert [each.name for each in primary_of(store, "ships", tmp_path / "second")] == ["a"]
    # compare.py
    report = tmp_path / "reports" / "ships"
    report.mkdir(parents=True)
    (report / PRIMARY_FILE).write_text(yaml.safe_dump({"comparisons": COMPARISONS}))
    assert [each.name for each in primary_of(store, "ships", tmp_path / "third")] == ["a", "b"]
