"""Runs that look finished: their files are checked, brought back from MLflow, or found wanting."""

from __future__ import annotations

import json
import os
import resource
import shutil
from functools import partial
from pathlib import Path

import pytest

from boxtwin.commands.reuse import _is_readable, mend, reuse_run
from boxtwin.commands.stored_runs import bring_back, collect_runs
from boxtwin.evaluation.matching import AREAS, match_detections
from boxtwin.evaluation.resampled_ap import MATCHES_FILE, save_matches
from boxtwin.studies.evidence import Evidence
from boxtwin.studies.runs import runs_in, with_evidence
from boxtwin.tracking.broken_off import FAILURE_TAG
from boxtwin.tracking.mlflow_runs import Store
from boxtwin.tracking.run_folders import own_folder, read_result

PARAMS = {
    **{"dataset": "d", "split": "s1", "variations": 0, "generator": "none", "labels": "none", "detector": "nano"},
    **{"seed": 0, "steps": 4},
}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(uri=None, folder=tmp_path / "mlruns")


def write_matches(path: Path) -> None:
    """Of a data set without images."""
    save_matches(path, match_detections([], {}, 1, AREAS))


def finished(store: Store, folder: Path, identity: str, **params: object) -> str:
    """A finished run with its files; returns its id."""
    run = store.begin_run(study="s", name=identity, identity=identity, params=PARAMS | params, tags={})
    folder.mkdir(parents=True)
    result = {"identity": identity, "study": "s", "params": PARAMS | params, "metrics": {}, "data": {}, "counts": []}
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "detections.json").write_text("[1, 2, 3]")
    write_matches(folder / MATCHES_FILE)
    store.log_files(run.run_id, sorted(folder.iterdir()))
    store.end(run.run_id, "FINISHED")
    return run.run_id


def another_studys(store: Store, folder: Path) -> tuple[str, dict[str, bytes]]:
    """A finished run with a metric; its id and files."""
    run_id = finished(store, folder, "a")
    store.tag(run_id, {"boxtwin.output_dir": str(folder)})
    store.log_metrics(run_id, {"test/map": 0.5})
    return run_id, {path.name: path.read_bytes() for path in folder.iterdir()}


def taken(store: Store, run_id: str, output: Path) -> str:
    """Take a run over into study "mine"; returns the id of the run there."""
    own = store.begin_run(study="mine", name="x", identity="a", params=PARAMS, tags={})
    output.mkdir()
    reuse_run(
        *(store, own.run_id, store.client.get_run(run_id), output),
        tracking=Path(store.folder),
        result={"identity": "a", "condition": {}, "study": "mine", "overrides": []},
        detector="detector.safetensors",
    )
    return own.run_id


@pytest.mark.parametrize("harm", ["cut", "flipped", "gone", "all gone", "another's"])
def test_files_of_a_finished_run_are_brought_back(store: Store, tmp_path: Path, harm: str) -> None:
    folder, other = tmp_path / "run", tmp_path / "other"
    run_id = finished(store, folder, "a")
    finished(store, other, "b")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    if harm == "cut":
        (folder / "result.json").write_bytes(before["result.json"][:9])
        (folder / MATCHES_FILE).write_bytes(b"")
    elif harm == "flipped":
        content = bytearray(before[MATCHES_FILE])
        content[content.index(b"all/objects.npy") + 50] ^= 4  # in the compressed array, behind the end of its header
        (folder / MATCHES_FILE).write_bytes(content)
    elif harm == "gone":
        (folder / "detections.json").unlink()
    elif harm == "all gone":
        shutil.rmtree(folder)
    else:
        shutil.copyfile(other / "result.json", folder / "result.json")
    assert mend(store, run_id, folder, ["a"]) == []
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_result_that_mlflow_lacks_too_is_told(store: Store, tmp_path: Path) -> None:
    run = store.begin_run(study="s", name="x", identity="x", params=PARAMS, tags={})
    store.end(run.run_id, "FINISHED")
    (lacking,) = mend(store, run.run_id, tmp_path / "run", ["x"])
    assert str(tmp_path / "run" / "result.json") in lacking


def test_matches_that_mlflow_has_damaged_too_are_told(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run_id = finished(store, folder, "a")
    (folder / MATCHES_FILE).write_bytes(b"PK")
    store.log_files(run_id, [folder / MATCHES_FILE])
    (lacking,) = mend(store, run_id, folder, ["a"])
    assert str(folder / MATCHES_FILE) in lacking


def test_a_comparison_takes_damaged_matches_from_mlflow_or_lists_the_run(store: Store, tmp_path: Path) -> None:
    whole, mended, cut = (tmp_path / "runs" / name for name in ("whole", "mended", "cut"))
    for seed, folder in enumerate((whole, mended, cut)):
        run_id = finished(store, folder, folder.name, seed=seed)
        store.tag(run_id, {"boxtwin.output_dir": str(folder)})
    before = (mended / MATCHES_FILE).read_bytes()
    (mended / MATCHES_FILE).write_bytes(before[:-30])
    (cut / MATCHES_FILE).write_bytes(b"")
    store.log_files(run_id, [cut / MATCHES_FILE])
    runs = collect_runs(store, "s", tmp_path / "mlruns", tmp_path / "copies")
    judged, evidence = with_evidence(runs, {}, partial(bring_back, store, tmp_path / "copies"))
    assert [run.status for run in judged] == ["FINISHED", "FINISHED", "DAMAGED"]
    assert set(evidence) == {run.run_id for run in judged[:2]}
    assert (mended / MATCHES_FILE).read_bytes() == before
    # From folders alone, there is nothing to mend with.
    (mended / MATCHES_FILE).write_bytes(before[:-30])
    judged, evidence = with_evidence(runs_in(tmp_path / "runs"), {})
    assert {run.run_id: run.status for run in judged} == {
        "whole": "FINISHED",
        "mended": "DAMAGED",
        "cut": "DAMAGED",
    }
    assert set(evidence) == {"whole"}


@pytest.mark.parametrize("harm", ["folder gone", "folder cut", "artifacts gone", "artifacts cut"])
def test_a_run_of_another_study_is_reused_from_what_is_whole(store: Store, tmp_path: Path, harm: str) -> None:
    folder, output = tmp_path / "run", tmp_path / "own"
    run_id, before = another_studys(store, folder)
    artifacts = next((tmp_path / "mlruns").rglob(MATCHES_FILE)).parent
    place, how = (folder if harm.startswith("folder") else artifacts), harm.split()[1]
    for name in (MATCHES_FILE, "detections.json") if how == "cut" else ():
        (place / name).write_bytes(before[name][: len(before[name]) // 2])
    if how == "gone":
        shutil.rmtree(place)
    own = taken(store, run_id, output)
    for kept in (output, store.fetch_all(store.client.get_run(own), tmp_path / "kept")):
        assert {name: (kept / name).read_bytes() for name in (MATCHES_FILE, "detections.json")} == {
            name: before[name] for name in (MATCHES_FILE, "detections.json")
        }
        assert json.loads((kept / "result.json").read_text())["study"] == "mine"
    assert store.client.get_run(own).data.metrics == {"test/map": 0.5}


@pytest.mark.parametrize("harm", ["result.json", "detections.json", MATCHES_FILE, "all", "another's"])
def test_of_a_run_that_is_lost_nothing_is_reused(store: Store, tmp_path: Path, harm: str) -> None:
    folder, output = tmp_path / "run", tmp_path / "own"
    run_id, before = another_studys(store, folder)
    artifacts = next((tmp_path / "mlruns").rglob(MATCHES_FILE)).parent
    for place in (folder, artifacts):
        if harm == "all":
            shutil.rmtree(place)
        elif harm == "another's":
            (place / "result.json").write_text('{"identity": "other"}')
        else:
            (place / harm).write_bytes(before[harm][:-5])
    with pytest.raises(FileNotFoundError, match=r"missing or damaged|another run's"):
        taken(store, run_id, output)
    assert not list(output.iterdir())
    (own,) = store.runs("mine")
    assert own.data.metrics == {}
    assert not store.file_sizes(own.info.run_id)


def test_a_run_that_finishes_loses_what_is_said_of_its_failure(store: Store) -> None:
    run = store.begin_run(study="s", name="x", identity="x", params={}, tags={})
    store.end(run.run_id, "FAILED", "the disk was full")
    assert store.client.get_run(run.run_id).data.tags[FAILURE_TAG] == "the disk was full"
    for _ in range(2):
        store.end(run.run_id, "FINISHED")
        assert FAILURE_TAG not in store.client.get_run(run.run_id).data.tags


def test_two_runs_with_one_folder_keep_their_files_apart(tmp_path: Path) -> None:
    folder = tmp_path / "seed0"
    assert own_folder(folder, "a" * 64) == folder
    assert own_folder(folder, "a" * 64) == folder
    beside = own_folder(folder, "b" * 64)
    assert beside.parent == tmp_path
    assert beside != folder
    assert own_folder(folder, "b" * 64) == beside
    assert own_folder(folder, "c" * 64, "a" * 64) == folder  # that older versions named otherwise
    # A folder of an older version says whose it is by its result.
    old = tmp_path / "old"
    old.mkdir()
    (old / "result.json").write_text('{"identity": "x"}')
    assert own_folder(old, "x") == old
    (old / ".identity").unlink()
    assert own_folder(old, "y" * 64) != old


def test_one_broken_run_does_not_end_a_comparison(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    finished(store, tmp_path / "runs" / "good", "a")
    finished(store, tmp_path / "runs" / "bad", "b", seed="no number")
    finished(store, tmp_path / "runs" / "cut", "c", seed=2)
    (tmp_path / "runs" / "cut" / "result.json").write_text('{"identity"')
    assert [run.run_id for run in runs_in(tmp_path / "runs")] == ["good"]
    assert all(str(tmp_path / "runs" / name / "result.json") in caplog.text for name in ("bad", "cut"))
    found = collect_runs(store, "s", tmp_path / "mlruns", tmp_path / "copies")
    assert [run.seed for run in found] == [0, 2]
    # Its matches are damaged: no intervals from them, and a word.
    caplog.clear()
    (tmp_path / "runs" / "good" / MATCHES_FILE).write_bytes(bytes(100))
    assert Evidence.load(tmp_path / "runs" / "good") is None
    assert str(tmp_path / "runs" / "good") in caplog.text
    assert read_result(tmp_path / "runs" / "cut") is None


def test_a_file_that_cannot_be_opened_now_is_not_taken_for_damaged(tmp_path: Path) -> None:
    """With no file descriptor left, a whole file must not be made again."""
    (tmp_path / "result.json").write_text("{}")
    assert _is_readable(tmp_path / "result.json")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)  # the limit is on the number of the next descriptor
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limits[1]))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            _is_readable(tmp_path / "result.json")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
