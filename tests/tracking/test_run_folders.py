"""Runs and their artifacts are found after the project's folder was moved or copied."""

import json
import shutil
import sqlite3
import subprocess
from dataclasses import asdict
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import pytest
import torch
from mlflow.tracking import MlflowClient

import boxtwin
from boxtwin.config.identity import RECIPE_VERSION
from boxtwin.tracking.mlflow_addresses import update_addresses
from boxtwin.tracking.mlflow_runs import Store
from boxtwin.tracking.provenance import code_of, code_tags, git_state, provenance, tags
from boxtwin.tracking.run_folders import RunResult, find_folder, read_result, recorded_path


def write_run(folder: Path, identity: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps({"identity": identity}))
    return folder


def test_a_folder_is_recorded_relative_to_its_project_and_absolute_outside(tmp_path: Path) -> None:
    tracking = tmp_path / "project" / "mlruns"
    assert recorded_path(tmp_path / "project/multirun/s/run", tracking) == "multirun/s/run"
    assert recorded_path(tmp_path / "elsewhere/run", tracking) == str(tmp_path / "elsewhere/run")


@pytest.mark.parametrize("old_form", [False, True])
def test_a_moved_or_copied_project_finds_its_own_folders(tmp_path: Path, old_form: bool) -> None:
    old = tmp_path / "old"
    run = write_run(old / "multirun/s/run", "a")
    recorded = str(run) if old_form else recorded_path(run, old / "mlruns")
    shutil.copytree(old, tmp_path / "new")
    # Both are there: each finds its own.
    for project in (old, tmp_path / "new"):
        assert find_folder(recorded, project / "mlruns", "a") == project / "multirun/s/run"
    shutil.rmtree(old)
    assert find_folder(recorded, tmp_path / "new/mlruns", "a") == tmp_path / "new/multirun/s/run"


@pytest.mark.parametrize("content", ['{"identity": "b"}', '{"identity": "a', "[]", None])
def test_a_folder_that_holds_another_run_or_a_damaged_one_is_not_taken(tmp_path: Path, content: str | None) -> None:
    run = write_run(tmp_path / "multirun/s/run", "a")
    (run / "result.json").unlink()
    if content is not None:
        (run / "result.json").write_text(content)
    assert find_folder("multirun/s/run", tmp_path / "mlruns", "a") is None
    assert find_folder("", tmp_path / "mlruns", "a") is None
    assert read_result(run) in (RunResult(identity="b"), None)


def begun(project: Path) -> tuple[Store, str]:
    store = Store(uri=None, folder=project / "mlruns")
    run = store.begin_run(study="a study", name="run", identity="a", params={}, tags={"boxtwin.recipe": "1"})
    return store, run.run_id


def test_artifacts_follow_a_moved_store_and_nothing_is_written_to_the_old_place(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new place"
    (tmp_path / "file.txt").write_text("content")
    store, run_id = begun(old)
    # As `log_files` does; MLflow remembers within a process where it wrote to.
    artifacts = Path(url2pathname(urlsplit(store.client.get_run(run_id).info.artifact_uri).path))
    artifacts.mkdir(parents=True)
    shutil.copy(tmp_path / "file.txt", artifacts)
    shutil.move(old, new)
    moved = Store(uri=None, folder=new / "mlruns")
    moved.log_files(run_id, [tmp_path / "file.txt"], "more")
    moved.fetch_files(run_id, ["file.txt", "more/file.txt"], tmp_path / "copy")
    assert (tmp_path / "copy/file.txt").read_text() == (tmp_path / "copy/more/file.txt").read_text() == "content"
    assert not old.exists()
    run = MlflowClient(moved.uri).get_run(run_id)
    assert run.info.artifact_uri.startswith((new / "mlruns/artifacts").as_uri())
    assert run.data.tags["boxtwin.recipe"] == "1"


def test_experiments_whose_artifacts_lie_elsewhere_are_left_alone(tmp_path: Path) -> None:
    store, _ = begun(tmp_path / "project")
    elsewhere = (tmp_path / "other/artifacts/theirs").as_uri()
    store.client.create_experiment("theirs", artifact_location=elsewhere)
    store.client.create_experiment("remote", artifact_location="s3://bucket/artifacts/remote")
    database = tmp_path / "project/mlruns/mlflow.db"
    before = sqlite3.connect(database).execute("select * from experiments").fetchall()
    update_addresses(database)
    assert sqlite3.connect(database).execute("select * from experiments").fetchall() == before


def test_a_result_is_read_as_it_was_written_and_from_other_versions(tmp_path: Path) -> None:
    written = RunResult(run="s1-x0", identity="a", params={"seed": 1}, metrics={"test/map": None}, counts=[{"true": 2}])
    assert asdict(read_result(written.write(tmp_path).parent) or RunResult()) == json.loads(json.dumps(asdict(written)))
    for key in ("cell", "run"):
        (tmp_path / "result.json").write_text(json.dumps({key: "s1-x0", "identity": "a", "of another version": 1}))
        assert read_result(tmp_path) == RunResult(run="s1-x0", identity="a")


def git(folder: Path, *arguments: str) -> None:
    who = ("-c", "user.name=n", "-c", "user.email=e@example.com")
    subprocess.run(("git", "-C", str(folder), *who, *arguments), check=True, capture_output=True)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package under src/ in a checkout of its own."""
    package = tmp_path / "src" / "boxtwin"
    package.mkdir(parents=True)
    (package / "code.py").write_text("x = 1\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "one")
    return package


def test_commit_and_changes_of_the_code_that_runs(package: Path) -> None:
    state = git_state.__wrapped__(package)
    head = subprocess.run(("git", "-C", str(package), "rev-parse", "HEAD"), capture_output=True, text=True, check=True)
    assert state == {"commit": head.stdout.strip(), "clean": True}
    (package / "code.py").write_text("x = 0\n")
    assert git_state.__wrapped__(package) == {**state, "clean": False}


def test_a_package_installed_into_another_checkout_has_no_commit(package: Path) -> None:
    installed = package.parents[1] / ".venv" / "lib" / "boxtwin"
    installed.mkdir(parents=True)
    assert git_state.__wrapped__(installed) == {"commit": None, "clean": None}


def test_a_record_survives_the_tags_of_a_run() -> None:
    record = provenance("cpu", "32-true", 3, recipe=RECIPE_VERSION)
    assert (record["device"], record["precision"], record["threads"]) == ("cpu", "32-true", 3)
    assert (record["torch"], record["boxtwin"], record["recipe"]) == (
        torch.__version__,
        boxtwin.__version__,
        RECIPE_VERSION,
    )
    record |= {"commit": "1234567890abcdef", "clean": False}
    written = tags(record)
    assert written["mlflow.source.git.commit"] == "1234567890abcdef"
    assert code_tags({**written, "boxtwin.identity": "a", "mlflow.user": "b"}) == written
    assert code_of(written) == f"commit 12345678 (changed), recipe {RECIPE_VERSION}"
    assert code_of(tags(record | {"clean": True})) == f"commit 12345678, recipe {RECIPE_VERSION}"
    assert "recipe 1" in code_of({})  # a run from before there was such a record
