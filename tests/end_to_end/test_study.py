"""The user's literal commands, from an empty folder to the comparison."""

from __future__ import annotations

import contextlib
import io
import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from commands import inputs_of, manifests, run, runs
from mlflow.tracking import MlflowClient
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from boxtwin.detector.checkpoint import read_detector
from boxtwin.evaluation.examples import load_examples

COSTS = {"time/store_fit", "time/store_vary", "data/cost_usd", "data/label_minutes"}
SWEEP = "train.py -m split=s1,s2 variations=0,2,10"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """The six runs on the embedded data, trained for a few steps, compared."""
    folder = tmp_path_factory.mktemp("study")
    printed = run(f"{SWEEP} experiment=tiny", folder, within=500)
    return folder, printed, run("compare.py", folder)


def test_six_runs_are_finished_and_named(study: tuple[Path, str, str]) -> None:
    folder, printed, _ = study
    found = {r.info.run_name: r for r in runs(folder)}
    expected = {
        f"{split}-{part}-yolov3_nano-seed0"
        for split in ("s1", "s2")
        for part in ("x0-none", "x2-pixel_ddpm", "x10-pixel_ddpm")
    }
    assert set(found) == expected
    assert {r.info.status for r in found.values()} == {"FINISHED"}
    for r in found.values():
        real = 80 if r.data.params["split"] == "s1" else 40
        assert r.data.metrics["data/real_images"] == real
        assert r.data.metrics["data/synthetic_images"] == real * int(r.data.params["variations"])
        assert {"test/map", "test/map_50", "test/map_75", "test/mar_100", "time/total"} <= set(r.data.metrics)
        assert {"test/count_mae", "test/count_rmse", "test/count_bias", "test/count_exact"} <= set(r.data.metrics)
        assert set(r.data.params) == set("dataset split variations generator labels detector seed steps".split())
        assert {"train", "val", "test"} <= {given.tags[0].value for given in inputs_of(r)}
    assert "Traceback" not in printed


def test_splits_are_nested_and_share_validation_and_test(study: tuple[Path, str, str]) -> None:
    folder, _, _ = study
    s1, s2 = (
        json.loads(next(folder.glob(f"multirun/*/{name}-x0*/split.json")).read_text())[name] for name in ("s1", "s2")
    )
    assert set(s2["train"]) < set(s1["train"])
    assert (s1["val"], s1["test"]) == (s2["val"], s2["test"])
    scenes = [{name.split("_")[0] for name in s1[side]} for side in ("train", "val", "test")]
    assert len(set.union(*scenes)) == sum(map(len, scenes))


def test_every_variation_was_made_once(study: tuple[Path, str, str]) -> None:
    folder, _, _ = study
    stores = manifests(folder)
    assert sorted(len(lines) for lines in stores) == [600, 1000]  # (40 + 20) x 10 and (80 + 20) x 10
    for lines in stores:
        assert max(Counter((line["source"], line["variation"]) for line in lines).values()) == 1


@pytest.mark.slow
def test_two_devices_share_a_run(tmp_path: Path) -> None:
    run("train.py variations=0 experiment=tiny trainer.devices=2 trainer.accelerator=cpu", tmp_path)
    (run_folder,) = runs(tmp_path)
    assert run_folder.info.status == "FINISHED"
    assert run_folder.data.metrics["time/train"] > 0
    assert {"train/loss", "val/map", "test/map"} <= set(run_folder.data.metrics)
    (result,) = tmp_path.glob("multirun/*/*/result.json")
    assert json.loads(result.read_text())["run"] == run_folder.info.run_name


def test_pycocotools_alone_gets_the_same_metrics_from_the_files(study: tuple[Path, str, str]) -> None:
    folder, _, _ = study
    for run_folder in folder.glob("multirun/*/*-x*/"):
        result = json.loads((run_folder / "result.json").read_text())
        detections = json.loads((run_folder / "detections.json").read_text())
        with contextlib.redirect_stdout(io.StringIO()):
            truth = COCO(str(folder / "data/sar_scenes/annotations.json"))
            split = json.loads((run_folder / "split.json").read_text())[result["params"]["split"]]
            by_name = {image["file_name"]: image["id"] for image in truth.dataset["images"]}
            if not detections:
                assert result["metrics"]["test/map"] == 0
                continue
            evaluation = COCOeval(truth, truth.loadRes(detections), "bbox")
            evaluation.params.imgIds = [by_name[name] for name in split["test"]]
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        assert result["metrics"]["test/map"] == pytest.approx(evaluation.stats[0], abs=1e-12)
        assert result["metrics"]["test/map_50"] == pytest.approx(evaluation.stats[1], abs=1e-12)
        assert result["metrics"]["test/mar_100"] == pytest.approx(evaluation.stats[8], abs=1e-12)
        errors = [abs(entry["true"] - entry["found"]) for entry in result["counts"]]
        assert result["metrics"]["test/count_mae"] == pytest.approx(sum(errors) / 100)


def test_a_run_leaves_its_pictures_and_a_detector_that_loads_by_itself(study: tuple[Path, str, str]) -> None:
    folder, _, _ = study
    for run_folder in folder.glob("multirun/*/*-x*/"):
        assert {"overlays.png", "precision_recall.png", "counts.png", "config.yaml"} <= {
            p.name for p in run_folder.iterdir()
        }
        assert not (run_folder / "checkpoints").exists()
        cards = {f"{card}.{ending}" for card in ("label_card", "quality_card") for ending in ("json", "png")}
        assert {path.name for path in run_folder.glob("*_card.*")} == (set() if "-x0-" in run_folder.name else cards)
        detector = read_detector(run_folder / "detector.safetensors")
        result = json.loads((run_folder / "result.json").read_text())
        assert detector.module.classes == ("ship",)
        assert detector.count_threshold == result["metrics"]["val_real/count_threshold"]
        assert detector.origin["identity"] == result["identity"]
        assert len(detector.module(torch.zeros(1, detector.spec.channels, 64, 64))) == 2
        assert all(entry["file_name"].startswith(entry["group"]) for entry in result["counts"])
        examples = load_examples(run_folder / "examples.json")
        assert examples is not None
        found = {entry["image_id"]: entry["found"] for entry in result["counts"] if entry["found"]}
        assert {image_id: len(each.boxes) for image_id, each in examples.found.items()} == found
        costs = {name for name in result["metrics"] if name in COSTS}
        assert costs == (set() if "-x0-" in run_folder.name else COSTS)
    assert len(list(folder.glob("data/synthetic/*/contact_sheet.png"))) == 2


def test_a_run_keeps_its_validation_curve(study: tuple[Path, str, str]) -> None:
    folder, _, compared = study
    client = MlflowClient(f"sqlite:///{folder / 'mlruns' / 'mlflow.db'}")
    for r in runs(folder):
        (result,) = folder.glob(f"multirun/*/{r.info.run_name}-*/result.json")
        curve = json.loads(result.read_text())["validation"]
        logged = sorted(client.get_metric_history(r.info.run_id, "val/map"), key=lambda entry: entry.step)
        assert curve == [[entry.step, entry.value] for entry in logged]
        assert len(curve) == 2
    assert "What to do: " in compared


def test_runs_log_the_quality_card_of_their_store(study: tuple[Path, str, str]) -> None:
    folder, _, _ = study
    client = MlflowClient(f"sqlite:///{folder / 'mlruns' / 'mlflow.db'}")
    for r in runs(folder):
        files = {file.path for file in client.list_artifacts(r.info.run_id, "store")}
        if r.data.params["variations"] == "0":
            assert not files
            assert not any(name.startswith("data/quality") for name in r.data.metrics)
        else:
            assert files == {"store/quality_card.json", "store/quality_card.png"}
            assert 0.2 < r.data.metrics["data/quality_fine_detail_ratio"] < 5
            assert {"data/quality_enl_ratio", "data/quality_copies"} <= set(r.data.metrics)
            assert r.data.metrics["data/quality_test_matches"] == 0
    for store in folder.glob("data/synthetic/*/manifest.jsonl"):
        card = json.loads((store.parent / "quality_card.json").read_text())
        assert card["images"]["variations"] == len(store.read_text().splitlines())


def test_runs_differ_in_one_thing(study: tuple[Path, str, str]) -> None:
    """Same seed, same initial weights, same steps: what is compared is the images."""
    folder, _, _ = study
    settings = {r.data.tags["boxtwin.setting"] for r in runs(folder)}
    assert len(settings) == 1
    assert {r.data.params["steps"] for r in runs(folder)} == {"4"}


def test_the_comparison_has_table_verdict_and_report(study: tuple[Path, str, str]) -> None:
    folder, _, compared = study
    assert "6 runs" in compared
    assert "not enough runs to tell" in compared
    (line,) = (line for line in compared.splitlines() if line.startswith("report: "))
    page = folder / line.removeprefix("report: ")
    assert "<html" in page.read_text()
    for words in (
        "Positive control, twice the real data",
        "By crowding",
        "By scene",
        "Test images under each condition",
        "The variations and their labels",
    ):
        assert words in page.read_text()
    assert "?viewStateShareKey=boxtwin" in compared
    assert {"comparison.csv", "curves.png"} <= {path.name for path in page.parent.iterdir()}
    comparison = runs(folder, "comparison")
    assert [r.info.status for r in comparison] == ["FINISHED"]


def test_conditions_are_runs_beside_the_runs_and_comparing_again_adds_none(study: tuple[Path, str, str]) -> None:
    folder, _, _ = study
    before = {r.info.run_name: r for r in runs(folder, "condition")}
    run_folders = {r.info.run_name.removesuffix("-seed0"): r.data.metrics for r in runs(folder)}
    assert set(before) == set(run_folders)
    for name, r in before.items():
        assert r.data.metrics["seeds"] == 1
        for metric in ("test/map", "test/map_50", "test/count_mae"):
            assert r.data.metrics[metric] == pytest.approx(run_folders[name][metric], abs=1e-12)
        assert ("vs_x0/map" in r.data.metrics) == ("-x0-" not in name)
    run("compare.py", folder)
    assert {r.info.run_name: r.info.run_id for r in runs(folder, "condition")} == {
        name: r.info.run_id for name, r in before.items()
    }
    assert len(runs(folder, "comparison")) == 1


def test_the_same_sweep_again_skips_everything(study: tuple[Path, str, str]) -> None:
    folder, _, _ = study
    before = {r.info.run_id: r.info.end_time for r in runs(folder)}
    printed = run(f"{SWEEP} experiment=tiny", folder, within=500)
    assert printed.count("skipped (rerun=true") == 6
    assert {r.info.run_id: r.info.end_time for r in runs(folder)} == before


def test_any_number_of_variations_works_and_uses_the_same_store(study: tuple[Path, str, str]) -> None:
    folder, _, _ = study
    stores = len(manifests(folder))
    run("train.py split=s2 variations=3 experiment=tiny study=other", folder)
    assert {r.data.params["variations"] for r in runs(folder)} == {"0", "2", "10", "3"}
    assert len(manifests(folder)) == stores


def test_another_study_reuses_what_is_there(study: tuple[Path, str, str]) -> None:
    folder, _, _ = study
    before = {r.info.run_name: r for r in runs(folder)}
    printed = run("train.py -m split=s2 variations=0,2 experiment=tiny study=second", folder)
    assert printed.count("from study sar_scenes") == 2
    assert "synthetic training images" not in printed  # what training begins with
    taken = [r for r in runs(folder) if "boxtwin.reused_from" in r.data.tags]
    assert {r.info.run_name for r in taken} == {"s2-x0-none-yolov3_nano-seed0", "s2-x2-pixel_ddpm-yolov3_nano-seed0"}
    client = MlflowClient(f"sqlite:///{folder / 'mlruns' / 'mlflow.db'}")
    for r in taken:
        source = before[r.info.run_name]
        assert r.data.tags["boxtwin.reused_from"] == f"sar_scenes/{source.info.run_id}"
        assert (r.info.status, r.data.metrics, r.data.params) == ("FINISHED", source.data.metrics, source.data.params)
        assert len(inputs_of(r)) == len(inputs_of(source))
        files, others = ({f.path for f in client.list_artifacts(x.info.run_id)} for x in (r, source))
        assert files == others
        here, there = (folder / x.data.tags["boxtwin.output_dir"] for x in (r, source))
        assert here.parent.name == "second"
        names = {path.name for path in there.iterdir() if path.is_file() and not path.name.startswith(".")}
        assert {path.name for path in here.iterdir() if path.is_file() and not path.name.startswith(".")} == names
        result, original = (json.loads((x / "result.json").read_text()) for x in (here, there))
        assert (result["study"], result["metrics"]) == ("second", original["metrics"])
        assert result["reused_from"] == {"study": "sar_scenes", "run_id": source.info.run_id}
        assert read_detector(here / "detector.safetensors").origin["identity"] == result["identity"]
    assert "study second: 2 runs" in run("compare.py study=second", folder)
    anew = run("train.py split=s2 variations=0 experiment=tiny study=third rerun=true", folder)
    assert "40 real + 0 synthetic training images" in anew


def test_generate_says_what_it_made_and_draws_it(tmp_path: Path) -> None:
    printed = run("generate.py experiment=tiny_control variations=2", tmp_path)
    assert "20 variations made, 0 were there already" in printed
    sheet = Path(printed.split("contact sheet: ")[1].splitlines()[0])
    assert (tmp_path / sheet).exists()
    assert "quality card: copy" in printed  # of the images themselves
    card = json.loads((tmp_path / sheet).with_name("quality_card.json").read_text())
    assert card["figures"]["nearest_real"]["copies"] == 1
    assert (tmp_path / sheet).with_name("quality_card.png").exists()
    again = run("generate.py experiment=tiny_control variations=2", tmp_path)
    assert "0 variations made, 20 were there already" in again


def test_a_detector_is_tested_on_other_data_as_it_is(
    study: tuple[Path, str, str], tmp_path: Path, hrsid200: Path
) -> None:
    """Trained on simulated images, no step on real ones."""
    folder, _, _ = study
    (weights,) = folder.glob("multirun/*/s1-x0*/detector.safetensors")
    printed = run(
        f"train.py experiment=tiny_hrsid dataset=hrsid dataset.root={hrsid200} detector.weights={weights} "
        "detector.anchors=weights trainer.steps=0",
        tmp_path,
    )
    assert "12 convolutions read, 0 left as they were" in printed
    (run_folder,) = tmp_path.glob("multirun/*/*")
    before, after = read_detector(weights).module, read_detector(run_folder / "detector.safetensors").module
    assert all(torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True))
    assert json.loads((run_folder / "result.json").read_text())["metrics"]["time/train"] == 0


@pytest.mark.slow
def test_hrsid_with_the_literal_command(tmp_path: Path, hrsid200: Path) -> None:
    run(f"train.py -m dataset=hrsid dataset.root={hrsid200} split=s1,s2 variations=0,1 experiment=tiny_hrsid", tmp_path)
    assert len(runs(tmp_path)) == 4
    assert {r.info.status for r in runs(tmp_path)} == {"FINISHED"}
