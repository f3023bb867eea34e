"""The last study, names that are misspelt, and that nothing slow is imported before a wrong name is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from boxtwin.counting.detectors import find_detectors
from boxtwin.errors import InputError
from boxtwin.tracking.mlflow_runs import Store
from boxtwin.tracking.study_names import IDENTITY_TAG, find_study, study_names

ROOT = Path(__file__).parents[2]
SLOW = {"torch", "pytorch_lightning", "mlflow", "diffusers"}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of three studies in MLflow; ``planes`` ran last, and ``ships`` was compared after it."""
    folder = tmp_path_factory.mktemp("project")
    store = Store(uri=None, folder=folder / "mlruns")
    for study, started in (("ships", 1), ("planes", 3), ("cars", 2)):
        store.client.create_run(store.experiment(study), start_time=started, tags={IDENTITY_TAG: study})
    store.begin_comparison(study="ships")
    store.client.create_run(store.experiment("compared alone"), start_time=4)
    gone = store.experiment("deleted")
    store.client.create_run(gone, start_time=5, tags={IDENTITY_TAG: "deleted"})
    store.client.delete_experiment(gone)
    removed = store.client.create_run(store.experiment("ships"), start_time=6, tags={IDENTITY_TAG: "removed"})
    store.client.delete_run(removed.info.run_id)
    for name in ("s1-x0-none-yolov3_tiny-seed0", "s1-x2-repeat-yolov3_tiny-seed0"):
        run = folder / "multirun" / "planes" / name
        run.mkdir(parents=True)
        (run / "detector.safetensors").touch()
        (run / "result.json").write_text('{"metrics": {"val_real/map": 0.5}}')
    (folder / "multirun" / "ships").mkdir()  # newer on disk
    return folder


def test_the_last_study_is_the_one_of_which_a_run_was_started_last(project: Path) -> None:
    store = Store(uri=None, folder=project / "mlruns")
    assert study_names(None, project / "mlruns") == ["planes", "cars", "ships"]
    assert [experiment.name for experiment in store.studies()] == ["planes", "cars", "ships"]
    assert study_names(store.uri, project / "mlruns") == ["planes", "cars", "ships"]  # as of a server
    assert find_study(None, None, project / "mlruns") == "planes"
    assert find_study("ships", None, project / "mlruns") == "ships"


def test_counting_takes_detectors_of_the_last_study(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    (found,) = find_detectors("best", None)
    assert found.parent == Path("multirun/planes/s1-x0-none-yolov3_tiny-seed0")


def test_runs_in_folders_are_named_where_their_store_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for study in ("cars", "blue planes"):
        file = tmp_path / "multirun" / study / "s1-x0" / "result.json"
        file.parent.mkdir(parents=True)
        file.write_text("{}")
    with pytest.raises(InputError) as caught:
        find_study(None, None, tmp_path / "mlruns")
    assert str(caught.value).endswith(
        """finished runs lie in folders: python compare.py "runs='multirun/blue planes'" or """
        "python compare.py runs=multirun/cars"
    )


def test_a_store_without_runs_or_that_is_broken_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert study_names(None, tmp_path / "mlruns") == []
    with pytest.raises(InputError, match=rf"there are no runs in {tmp_path}; make some: python train\.py"):
        find_study(None, None, tmp_path)
    (tmp_path / "mlflow.db").write_bytes(b"no database at all" * 100)
    with pytest.raises(InputError, match=r"the MLflow store .*mlflow\.db cannot be used: .*move it away"):
        find_study(None, None, tmp_path)


def test_the_nearest_names_are_shown(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    with pytest.raises(InputError, match=r"no runs of a study called plans in .*mlruns; did you mean planes\?"):
        find_study("plans", None, project / "mlruns")
    with pytest.raises(InputError, match=r"called x in .*mlruns; studies there: planes, cars, ships"):
        find_study("x", None, project / "mlruns")
    condition, run = "s1-x0-none-yolov3_tiny", "s1-x0-none-yolov3_tiny-seed0"
    for asked, study, hint in (
        ("bst", None, r"; did you mean best\?"),
        ("s1-x0-non-yolov3_tiny", "planes", rf"; did you mean {condition} or s1-.* or s1-.*\?"),
        (f"multirun/planes/{run[:-1]}1", None, rf"multirun/planes; did you mean {run} or "),
        ("zzz", "planes", rf"multirun/planes; its runs:\n  run=multirun/planes/{run}"),
        ("best", "plans", r"study=plans: there is no folder multirun/plans; did you mean planes\?"),
    ):
        with pytest.raises(InputError, match=hint):
            find_detectors(asked, study)


@pytest.mark.parametrize(
    "command",
    [
        "count.py study=plans images=.",
        "count.py run=bst images=.",
        "review.py next=. study=plans",
        "review.py suspects=plans",
        "train.py final=plans",
        "compare.py study=plans",
    ],
)
def test_a_wrong_name_is_refused_before_slow_libraries_are_imported(project: Path, command: str) -> None:
    (project / "image.png").touch()
    script, *words = command.split()
    done = subprocess.run(
        [sys.executable, "-X", "importtime", ROOT / script, *words],
        cwd=project,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "did you mean" in done.stdout
    modules = {line.split("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "hydra" in modules  # so the list is one of modules
    assert not modules & SLOW
