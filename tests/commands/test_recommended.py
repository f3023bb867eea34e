"""What decides which condition of a study is recommended."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

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
