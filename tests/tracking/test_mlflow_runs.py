from __future__ import annotations

import json
import os
import re
import shlex
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from mlflow.entities import Metric, Run

from boxtwin.errors import InputError
from boxtwin.evaluation.coco_metrics import metric_names
from boxtwin.tracking.broken_off import FAILURE_TAG
from boxtwin.tracking.mlflow_runs import Condition, Store
from boxtwin.tracking.mlflow_view import address, note, save_view

RUN: dict[str, Any] = {
    "name": "s1-x0-none-nano-seed0",
    "params": {"split": "s1", "seed": 0},
    "tags": {"boxtwin.setting": "abc"},
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real MLflow server on loopback, in the light form of `make ui`."""
    folder = tmp_path_factory.mktemp("server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    store = ["--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}", "--artifacts-destination", str(folder / "a")]
    process = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", *arguments, *store],
        env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    address = f"http://127.0.0.1:{port}"
    for _ in range(240):
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=1):
                break
        except OSError:
            time.sleep(0.25)
    yield address
    os.killpg(process.pid, 9)
    process.wait()


@pytest.fixture(params=["sqlite", "server"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    uri = request.getfixturevalue("server") if request.param == "server" else None
    return Store(uri=uri, folder=tmp_path / "mlruns")


def test_metrics_of_many_classes_in_any_script_are_logged(tmp_path: Path) -> None:
    store = Store(uri=None, folder=tmp_path / "mlruns")
    run = store.begin_run(study="many", identity="i1", **RUN)
    names = metric_names([*(f"class {number}/船" for number in range(300)), "a$b", "a:b", "map"])
    metrics = {
        f"test/{name}/{metric}": 0.5 for name in names for metric in ("map", "map_50", "count_mae", "count_bias")
    }
    store.log_metrics(run.run_id, metrics)
    assert store.client.get_run(run.run_id).data.metrics == metrics


def test_a_run_has_one_run_whatever_happens(store: Store, tmp_path: Path) -> None:
    study = tmp_path.name
    first = store.begin_run(study=study, identity="i1", **RUN)
    store.end(first.run_id, "FAILED", "ran out of luck")
    again = store.begin_run(study=study, identity="i1", **RUN)
    assert again.run_id == first.run_id
    assert again.status != "FINISHED"
    assert store.client.get_run(again.run_id).info.status == "RUNNING"
    store.log_metrics(again.run_id, {"test/map": 0.25, "test/map_large": float("nan")})
    store.end(again.run_id, "FINISHED")
    done = store.begin_run(study=study, identity="i1", **RUN)
    assert (done.run_id, done.status) == (first.run_id, "FINISHED")
    assert store.client.get_run(done.run_id).data.metrics == {"test/map": 0.25}
    other = store.begin_run(study=study, identity="i2", **RUN)
    assert other.run_id != first.run_id
    assert {run.info.run_id for run in store.runs(study)} == {first.run_id, other.run_id}


def test_what_is_logged_can_be_read_back(store: Store, tmp_path: Path) -> None:
    study = tmp_path.name
    run = store.begin_run(study=study, identity="i1", **RUN)
    picture = tmp_path / "overlays.png"
    picture.write_bytes(b"a picture")
    store.log_files(run.run_id, [picture])
    store.log_data(run.run_id, name="set-train", digest="d" * 64, source="somewhere", side="train", images=80)
    found = store.runs(study)[0]
    assert found.data.params == {"split": "s1", "seed": "0"}
    assert found.data.tags["boxtwin.setting"] == "abc"
    assert [entry.path for entry in store.client.list_artifacts(run.run_id)] == ["overlays.png"]
    assert found.inputs is not None
    assert found.inputs.dataset_inputs[0].dataset.name == "set-train"
    assert store.studies()[0].name == study


def test_comparisons_are_no_runs(store: Store, tmp_path: Path) -> None:
    study = tmp_path.name
    store.begin_comparison(study=study)
    assert store.runs(study) == []
    assert store.runs("a study that nobody made") == []


def test_a_study_has_one_comparison_however_often_it_is_compared(store: Store, tmp_path: Path) -> None:
    study = tmp_path.name
    first = store.begin_comparison(study=study)
    store.end(first, "FINISHED")
    assert store.begin_comparison(study=study) == first


def test_what_a_study_has_once_gets_another_name_and_no_old_metrics(store: Store, tmp_path: Path) -> None:
    study = tmp_path.name
    first = store.begin_comparison(study=study, kind="final", name="final-x0")
    assert store.without_other_metrics(first, ["map", "map_small"]) == first
    store.log_metrics(first, {"map": 0.5, "map_small": 0.3})
    store.end(first, "FINISHED")
    again = store.begin_comparison(study=study, kind="final", name="final-x10")
    assert again == first
    assert store.client.get_run(again).info.run_name == "final-x10"
    assert store.without_other_metrics(again, ["map", "map_small", "map_large"]) == again
    other = store.without_other_metrics(again, ["map"])
    assert other != first
    store.log_metrics(other, {"map": 0.6})
    store.end(other, "FINISHED")
    run = store.client.get_run(other)
    assert (run.info.run_name, run.data.metrics) == ("final-x10", {"map": 0.6})
    assert store.begin_comparison(study=study, kind="final", name="final-x10") == other
    assert store.has_finished(study, "final") is False  # it has begun again


def condition(key: str, **metrics: float) -> Condition:
    return Condition(key, f"s1-{key}", {"split": "s1", "variations": 2}, metrics, {"boxtwin.seeds": "0 1"})


def test_conditions_are_brought_up_to_date_in_place_and_are_no_runs(store: Store, tmp_path: Path) -> None:
    study = tmp_path.name

    def there() -> dict[str, Run]:
        found = store.client.search_runs([store.experiment(study)], "tags.`boxtwin.kind` = 'condition'")
        return {run.info.run_name: run for run in found}

    store.write_conditions(study, [condition("x2", seeds=2.0, map=0.5), condition("x10", seeds=2.0, map=float("nan"))])
    first = there()
    assert {run.info.status for run in first.values()} == {"FINISHED"}
    assert first["s1-x2"].data.metrics == {"seeds": 2, "map": 0.5}
    assert first["s1-x2"].data.params == {"split": "s1", "variations": "2"}
    assert first["s1-x2"].data.tags["boxtwin.seeds"] == "0 1"
    assert first["s1-x10"].data.metrics == {"seeds": 2}
    assert store.runs(study) == []
    # A third seed, and a condition whose runs were deleted.
    store.write_conditions(study, [condition("x2", seeds=3.0, map=0.4, map_low=0.3)])
    second = there()
    assert set(second) == {"s1-x2"}
    assert second["s1-x2"].info.run_id == first["s1-x2"].info.run_id
    assert second["s1-x2"].data.metrics == {"seeds": 3, "map": 0.4, "map_low": 0.3}
    # An interval that is not known any more.
    store.write_conditions(study, [condition("x2", seeds=1.0, map=0.4)])
    (third,) = there().values()
    assert third.data.metrics == {"seeds": 1, "map": 0.4}


@pytest.mark.parametrize(
    ("killed", "error", "status"),
    [
        (True, KeyboardInterrupt, "RUNNING"),
        (False, KeyboardInterrupt, "KILLED"),
        (False, OSError, "FAILED"),
    ],
)
def test_a_condition_that_was_broken_off_is_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: bool, error: type[BaseException], status: str
) -> None:
    store = Store(uri=None, folder=tmp_path)
    written = condition("x2", seeds=2.0, map=0.5)

    def broken_off(*_: object, **__: object) -> None:
        raise error

    with monkeypatch.context() as patched:
        for call in ("log_batch", "set_tag", "set_terminated")[: 3 if killed else 1]:
            patched.setattr(store.client, call, broken_off)
        with pytest.raises(error):
            store.write_conditions("s", [written])

    def there() -> Run:
        (run,) = store.client.search_runs([store.experiment("s")], "tags.`boxtwin.kind` = 'condition'")
        return run

    assert there().info.status == status
    assert (FAILURE_TAG in there().data.tags) is not killed
    store.write_conditions("s", [written])
    run = there()
    assert run.data.params == {"split": "s1", "variations": "2"}
    assert run.data.metrics == {"seeds": 2, "map": 0.5}
    assert run.info.status == "FINISHED"
    assert FAILURE_TAG not in run.data.tags


def test_a_run_is_copied_with_history_data_and_files(store: Store, tmp_path: Path) -> None:
    study, other = f"{tmp_path.name}-a", f"{tmp_path.name}-b"
    identity = tmp_path.name
    assert store.finished_elsewhere(identity) is None
    source = store.begin_run(study=study, identity=identity, **RUN)
    store.client.log_metric(source.run_id, "val/map", 0.1, step=10)
    store.client.log_metric(source.run_id, "val/map", 0.2, step=20)
    store.log_data(source.run_id, name="set-train", digest="d" * 64, source="somewhere", side="train", images=80)
    (tmp_path / "result.json").write_text("{}")
    store.log_files(source.run_id, [tmp_path / "result.json"], "store")
    assert store.finished_elsewhere(identity) is None  # not finished yet
    store.end(source.run_id, "FINISHED")
    found = store.finished_elsewhere(identity)
    assert found is not None
    assert (found.info.run_id, store.study_of(found)) == (source.run_id, study)
    copy = store.begin_run(study=other, identity=identity, **RUN)
    assert copy.status == "RUNNING"
    for _ in range(2):  # killed in the middle, it is done again
        (tmp_path / "temporary").mkdir(exist_ok=True)
        artifacts = store.fetch_all(found, tmp_path / "temporary")
        store.copy_run(found, copy.run_id, artifacts)
    assert (artifacts / "store" / "result.json").exists()
    history = store.client.get_metric_history(copy.run_id, "val/map")
    assert [(point.step, point.value) for point in history] == [(10, 0.1), (20, 0.2)]
    (run,) = store.runs(other)
    assert run.inputs is not None
    assert [given.dataset.name for given in run.inputs.dataset_inputs] == ["set-train"]
    assert [entry.path for entry in store.client.list_artifacts(copy.run_id, "store")] == ["store/result.json"]


def test_artifacts_lie_beside_the_sqlite_store(tmp_path: Path) -> None:
    store = Store(uri=None, folder=tmp_path / "mlruns")
    run = store.begin_run(study="demo", identity="i1", **RUN)
    (tmp_path / "result.json").write_text("{}")
    store.log_files(run.run_id, [tmp_path / "result.json"])
    assert (tmp_path / "mlruns" / "mlflow.db").exists()
    assert list((tmp_path / "mlruns" / "artifacts").rglob("result.json"))


def test_a_deleted_study_is_explained(tmp_path: Path) -> None:
    store = Store(uri=None, folder=tmp_path / "mlruns")
    store.client.delete_experiment(store.experiment("gone"))
    with pytest.raises(InputError, match=r"(?s)gone was deleted in MLflow.*restore"):
        store.experiment("gone")


def test_the_command_that_brings_a_deleted_study_back_runs_as_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pasted into a shell in the project's folder, whose name a shell would take apart."""
    project = tmp_path / "my project's, 2"
    project.mkdir()
    monkeypatch.chdir(project)
    store = Store(uri=None, folder=Path("mlruns"))
    number = store.experiment("gone")
    store.client.delete_experiment(number)
    with pytest.raises(InputError) as caught:
        store.experiment("gone")
    command = str(caught.value).splitlines()[-1]
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    mlflow = f'mlflow() {{ {shlex.quote(sys.executable)} -m mlflow "$@"; }}; '
    subprocess.run(["bash", "-c", mlflow + command], check=True, env=environment, capture_output=True, timeout=120)
    assert store.experiment("gone") == number
    assert sorted(path.name for path in project.iterdir()) == ["mlruns"]


def test_files_come_back_from_folders_of_a_run_and_missing_ones_are_left_out(store: Store, tmp_path: Path) -> None:
    run = store.begin_run(study=tmp_path.name, identity="i1", **RUN)
    for name in ("a.json", "b.json"):
        (tmp_path / name).write_text(name)
    store.log_files(run.run_id, [tmp_path / "a.json"])
    store.log_files(run.run_id, [tmp_path / "b.json"], "store")
    store.fetch_files(
        run.run_id, ("a.json", "b.json", "store/b.json", "store/c.json", "none/d.json"), tmp_path / "back"
    )
    found = {
        path.relative_to(tmp_path / "back").as_posix() for path in (tmp_path / "back").rglob("*") if path.is_file()
    }
    assert found == {"a.json", "store/b.json"}


def test_a_file_that_did_not_come_whole_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(uri=None, folder=tmp_path)
    run = store.begin_run(study="s", identity="i1", **RUN)
    (tmp_path / "a.json").write_text("{}")
    store.log_files(run.run_id, [tmp_path / "a.json"])

    def broken_off(_: str, name: str, to: str) -> str:
        (Path(to) / name).touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(store.client, "download_artifacts", broken_off)
    with pytest.raises(KeyboardInterrupt):
        store.fetch_files(run.run_id, ["a.json"], tmp_path / "back")
    assert not list((tmp_path / "back").iterdir())


def test_the_view_of_a_study_is_saved_with_it(store: Store, tmp_path: Path) -> None:
    experiment = store.experiment(tmp_path.name)
    address = save_view(store.client, experiment)
    assert address == f"/#/experiments/{experiment}/runs?viewStateShareKey=boxtwin"
    saved = json.loads(store.client.get_experiment(experiment).tags["mlflow.sharedViewState.boxtwin"])
    run = store.begin_run(study=tmp_path.name, identity="i1", **RUN)
    store.begin_comparison(study=tmp_path.name)
    shown = store.client.search_runs([experiment], saved["searchFilter"])
    assert [each.info.run_id for each in shown] == [run.run_id]
    assert {"params.`split`", "metrics.`test/map_50`"} <= set(saved["selectedColumns"])


def test_the_history_of_a_metric_has_each_step_once(tmp_path: Path) -> None:
    store = Store(uri=None, folder=tmp_path)
    run = store.begin_run(study="s", identity="i", **RUN).run_id
    logged = [(2, 0.1, 1), (4, 0.2, 2), (4, 0.3, 5), (6, float("nan"), 6), (8, 0.5, 4)]
    store.client.log_batch(run, metrics=[Metric("val/map", value, time, step) for step, value, time in logged])
    assert store.history(run, "val/map") == [(2, 0.1), (4, 0.3), (8, 0.5)]
    assert store.history(run, "val/none") == []


def begin(store: Store, study: str) -> str:
    return store.begin_run(study=study, name="s1", identity=study, params={"seed": 0}, tags={}).run_id


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
