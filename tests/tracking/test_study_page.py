"""Where MLflow's page opens, and what a run's own page says."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from boxtwin.tracking.mlflow_runs import Store
from boxtwin.tracking.mlflow_view import address, note


def begin(store: Store, study: str) -> str:
    return store.begin_cell(study=study, name="s1", identity=study, params={"seed": 0}, tags={}).run_id


def test_the_address_is_that_of_the_newest_studys_saved_view(tmp_path: Path) -> None:
    store = Store(uri=None, folder=tmp_path / "mlruns")
    begin(store, "older")
    begin(store, "newer")
    found = urlsplit(address(tmp_path / "mlruns", 4321))
    assert found.netloc == "127.0.0.1:4321"
    path, _, query = found.fragment.partition("?")
    (number,) = re.findall("^/experiments/([0-9]+)/runs$", path)
    experiment = store.client.get_experiment(number)
    assert experiment.name == "newer"
    (key,) = parse_qs(query)["viewStateShareKey"]
    assert "selectedColumns" in json.loads(experiment.tags[f"mlflow.sharedViewState.{key}"])


def test_a_folder_without_a_store_gets_one(tmp_path: Path) -> None:
    assert address(tmp_path / "mlruns", 5000) == "http://127.0.0.1:5000/#/experiments"
    assert (tmp_path / "mlruns" / "mlflow.db").exists()


@pytest.mark.parametrize(
    "folder",
    [
        "multirun/demo/s1-x2-repeat-seed0-0123abcd",
        "/over there/it's, 100 %/[a]=`b`",
        "multirun/größe/$HOME;x",
        r"a\b\'c",
    ],
)
def test_the_export_command_runs_as_printed(folder: str) -> None:
    """The shell and Hydra's parser make of it the folder that it was made of."""
    text = note(folder, "detector.safetensors")
    assert f"\n{folder}/detector.safetensors\n" in text
    (line,) = [line for line in text.splitlines() if line.startswith("python export.py")]
    printed = (
        subprocess.run(["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, check=True)
        .stdout.decode()
        .split("\0")[:-1]
    )
    assert printed[:2] == ["python", "export.py"]
    assert shlex.split(line) == printed
    (override,) = OverridesParser.create().parse_overrides(printed[2:])
    assert override.key_or_group == "run"
    assert Path(str(override.value())).resolve() == Path(folder).resolve()
