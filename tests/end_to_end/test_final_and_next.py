"""What follows a study: `train.py final=` on all labelled images, and `review.py next=`, which images to label."""

from __future__ import annotations

import csv
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from commands import run, runs
from mlflow.tracking import MlflowClient
from omegaconf import OmegaConf

from boxtwin.command_line import setting
from boxtwin.datasets.coco import read_coco
from boxtwin.datasets.image_io import encode, read_image, write_png
from boxtwin.datasets.simulated_sar.scenes import build
from boxtwin.detector.checkpoint import read_detector, write_detector
from boxtwin.studies.runs import runs_in

FINAL = "train.py final=sar_scenes final_seeds=2 final_folds=3"
LOW = 0.001  # a threshold above which a detector of eight steps finds something


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A study of two conditions, and its final detectors."""
    folder = tmp_path_factory.mktemp("final")
    run("train.py -m experiment=tiny_control variations=0,1 quality=false", folder)
    return folder, run(FINAL, folder)


def test_they_are_trained_on_all_labelled_images(trained: tuple[Path, str]) -> None:
    folder, printed = trained
    final = folder / "multirun" / "sar_scenes" / "final"
    result = json.loads((final / "result.json").read_text())
    labelled = json.loads(next(folder.glob("data/*/annotations.json")).read_text())["images"]
    assert len(labelled) == 24  # of which 18 are on a side of the split
    assert (result["kind"], result["data"]["images"]) == ("final", 24)
    assert "test" not in "".join(result["metrics"])
    assert {"out_of_fold/map_50", "out_of_fold/count_mae"} <= set(result["metrics"])
    assert "no test metrics" in result["data"]["note"]
    config = OmegaConf.load(final / "config.yaml")
    assert (config.trainer.steps, config.detector.name, config.trainer.threads) == (8, "yolov3_nano", None)
    assert "no test metrics: every labelled image was trained on" in printed
    files = sorted(final.parent.glob("final*/detector.safetensors"))
    assert [file.parent.name for file in files] == ["final-seed0", "final-seed1"]
    first, second = (read_detector(file) for file in files)
    weights = second.module.state_dict()
    assert any(not np.array_equal(value, weights[name]) for name, value in first.module.state_dict().items())
    assert first.class_thresholds == second.class_thresholds
    assert first.class_thresholds[0] == result["classes"][0]["count_threshold"]


def test_how_much_is_trained_is_said_before(trained: tuple[Path, str]) -> None:
    folder, printed = trained
    said = r"5 trainings of 8 steps, 40 in all: 2 on all labelled images \(24 images .*\), and 3 on all but one "
    found = re.search(said + r"of as many parts; about .* minutes?, as a run of the study took (.*)\n", printed)
    assert found is not None
    assert printed.index(found[0]) < printed.index("final fold1of3: ")
    results = [json.loads(file.read_text()) for file in folder.glob("multirun/sar_scenes/s1-x0-*/result.json")]
    assert found[1] == f"{np.mean([result['metrics']['time/total'] for result in results]) / 60:.1f}"


def test_files_of_other_trainings_are_not_taken(trained: tuple[Path, str], tmp_path: Path) -> None:
    """The settings of another condition, and a detector that has learnt from what it is to be tested on."""
    folder = tmp_path / "study"
    shutil.copytree(trained[0], folder, symlinks=True)
    study, kept = folder / "multirun" / "sar_scenes", sorted(folder.glob("data/detectors/*.safetensors"))
    before = json.loads((study / "final" / "result.json").read_text())
    for place in study.glob("final*"):
        shutil.rmtree(place)
    swapped = [file for file in kept if not read_detector(file).origin["run"].startswith("s1-")]
    assert len(swapped) == 5
    for file in swapped[1:]:
        file.unlink()
        shutil.copyfile(swapped[0], file)
    plain, varied = (next(study.glob(f"s1-x{number}-*/config.yaml")) for number in (0, 1))
    recommended = plain if before["params"]["variations"] == 0 else varied
    shutil.copyfile(varied if recommended is plain else plain, recommended)
    printed = run(FINAL, folder)
    assert printed.count("is the detector of another training; it is trained again") == 4
    assert f"{recommended.relative_to(folder)} does not have the settings of its run (variations.per_image" in printed
    after = json.loads((study / "final" / "result.json").read_text())
    assert after["params"] == before["params"]
    assert after["metrics"] == before["metrics"]


def test_labels_of_all_images_can_be_suspected(trained: tuple[Path, str], tmp_path: Path) -> None:
    """By what a run and a fold's detector find, here one object each; also where images have other ids since."""
    folder = tmp_path / "study"
    shutil.copytree(trained[0], folder, symlinks=True)
    study = folder / "multirun" / "sar_scenes"
    sides: dict[str, str] = {}
    for place in [*study.glob("s1-*/"), study / "final"]:
        result = json.loads((place / "result.json").read_text())
        sides |= {entry["file_name"]: "validation" for entry in result.get("validation_images", ())}
        side = "training" if place.name == "final" else "test"
        new = [entry for entry in result["counts"] if sides.setdefault(entry["file_name"], side) == side]
        detection = {"image_id": new[0]["image_id"], "category_id": 1, "bbox": [0, 0, 5, 5], "score": 0.9}
        (place / "detections.json").write_text(json.dumps([detection]))
        if place.name != "final":
            (place / "validation_detections.json").write_text("[]")
    (file,) = folder.glob("data/*/annotations.json")
    content = json.loads(file.read_text())
    content["annotations"] = [entry for entry in content["annotations"] if min(entry["bbox"][:2]) > 10]
    found = []
    for shift in (0, 1000):
        for entry in content["images"]:
            entry["id"] += shift
        for entry in content["annotations"]:
            entry["image_id"] += shift
        file.write_text(json.dumps(content))
        run("review.py suspects=sar_scenes", folder)
        lines = csv.DictReader(
            (folder / "reports" / "sar_scenes" / "suspects" / "suspects.csv").read_text().splitlines()
        )
        found.append([(line["kind"], line["file_name"], line["side"], line["score"], line["runs"]) for line in lines])
    assert found[0] == found[1]
    assert {side for kind, _, side, _, _ in found[0] if kind == "missing"} == {"training", "test"}
    assert all(sides[name] == side for _, name, side, _, _ in found[0])
    assert all((score, number) == ("0.9", "1") for kind, _, _, score, number in found[0] if kind == "missing")


def test_thresholds_are_chosen_on_images_that_a_detector_has_not_seen(trained: tuple[Path, str]) -> None:
    folder, _ = trained
    final = folder / "multirun" / "sar_scenes" / "final"
    parts = json.loads((final / "folds.json").read_text())
    names = [name for part in parts.values() for name in part]
    assert len(parts) == 3
    assert len(names) == len(set(names)) == 24
    scenes = [{name.split("_")[0] for name in part} for part in parts.values()]
    assert len(set.union(*scenes)) == sum(map(len, scenes))
    counts = json.loads((final / "result.json").read_text())["counts"]
    assert sorted(each["file_name"] for each in counts) == sorted(names)
    # Counted from the out-of-fold detections, at the threshold that the detectors have.
    threshold = read_detector(final.with_name("final-seed0") / "detector.safetensors").class_thresholds[0]
    found = [each for each in json.loads((final / "detections.json").read_text()) if each["score"] >= threshold]
    assert len(found) == sum(each["found"] for each in counts)


def test_intervals_rest_on_thresholds_chosen_without_the_image(trained: tuple[Path, str]) -> None:
    folder, _ = trained
    final = folder / "multirun" / "sar_scenes" / "final"
    calibration = read_detector(final.with_name("final-seed0") / "detector.safetensors").calibration
    assert calibration is not None
    parts = list(json.loads((final / "folds.json").read_text()).values())
    assert [name for part in parts for name in part] == list(calibration.images)
    entries = {each["file_name"]: each for each in json.loads((final / "result.json").read_text())["counts"]}
    scores: dict[int, list[float]] = {each["image_id"]: [] for each in entries.values()}
    for each in json.loads((final / "detections.json").read_text()):
        scores[each["image_id"]].append(each["score"])
    start = 0
    for part in parts:
        rows = calibration.thresholds[start : start + len(part)]
        assert len(np.unique(rows)) == 1  # one for the whole part
        threshold = float(rows[0, 0])
        others = [(each["true"], scores[each["image_id"]]) for name, each in entries.items() if name not in part]
        errors = [
            sum(abs(true - sum(score >= factor * threshold for score in found)) for true, found in others)
            for factor in (1, 0.9, 1.1)
        ]
        assert errors[0] == min(errors)
        for name, residual in zip(part, calibration.residuals[start : start + len(part), 0], strict=True):
            found = sum(score >= threshold for score in scores[entries[name]["image_id"]])
            assert entries[name]["true"] - found == residual
        start += len(part)


def learnt_from(folder: Path, run_folder: str | Path, **settings: str | Path) -> tuple[dict[str, str], str]:
    """The column of that name in what `count.py` writes, by file, and what it prints."""
    words = [f"{key}={value}" for key, value in {"run": run_folder, "folder": "counts", **settings}.items()]
    printed = run(["count.py", *words, "threads=1"], folder)
    with (folder / "counts" / "counts.csv").open(newline="") as file:
        return {row["file"]: row["learnt_from"] for row in csv.DictReader(file)}, printed


def test_labelled_images_are_not_new_to_them(trained: tuple[Path, str]) -> None:
    folder, _ = trained
    found, printed = learnt_from(folder, "final", study="sar_scenes", images="data/sar_scenes/images")
    assert list(found.values()) == ["training"] * 24
    assert "the detector was trained or validated on 24 of 24 images (24 training: " in printed
    assert (folder / "counts" / "index.html").read_text().count("training image of the detector") == 24


@pytest.mark.slow
def test_counted_images_that_a_run_learnt_from_are_marked(trained: tuple[Path, str], tmp_path: Path) -> None:
    """Under other names and written again as well; test images are new."""
    folder, _ = trained
    run_folder = next(folder.glob("multirun/sar_scenes/s1-x0-*"))
    (sides,) = json.loads((run_folder / "split.json").read_text()).values()
    images, new = folder / "data" / "sar_scenes" / "images", tmp_path / "new"
    new.mkdir()
    for name in (sides["train"][0], sides["val"][0], *sides["test"][:2]):
        shutil.copy(images / name, new)
    shutil.copy(images / sides["train"][1], new / "copy.png")
    (new / "again.jpg").write_bytes(encode(read_image(images / sides["train"][2]), "jpg", 90))
    # The folder of the data set is that seen from the folder that holds multirun/.
    found, printed = learnt_from(tmp_path, run_folder, images=new)
    expected = {sides["train"][0]: "training", "copy.png": "training", "again.jpg": "training"}
    expected |= {sides["val"][0]: "validation"} | dict.fromkeys(sides["test"][:2], "")
    assert found == expected
    assert "the detector was trained or validated on 4 of 6 images (3 training: " in printed
    assert f"again.jpg = {sides['train'][2]}" in printed
    assert f"; 1 validation: {sides['val'][0]}): their counts, intervals and AP say nothing about new im" in printed
    page = (tmp_path / "counts" / "index.html").read_text()
    assert (page.count("training image of the"), page.count("validation image of the")) == (3, 1)
    # Away from its run a detector does not know them, and says so.
    shutil.copy(run_folder / "detector.safetensors", tmp_path)
    found, printed = learnt_from(tmp_path, "detector.safetensors", images=new)
    assert set(found.values()) == {""}
    assert "its training images are not found, so that counted ones cannot be marked" in printed


def test_they_are_no_run_of_the_study(trained: tuple[Path, str]) -> None:
    folder, _ = trained
    assert len(runs(folder)) == 2
    (final,) = runs(folder, kind="final")
    assert final.info.run_name == "final-x0-none-yolov3_nano"
    assert final.info.status == "FINISHED"
    assert len(runs_in(folder / "multirun" / "sar_scenes")) == 2
    assert "study sar_scenes: 2 runs" in run("compare.py", folder)


def test_a_second_call_skips_what_is_finished(trained: tuple[Path, str]) -> None:
    folder, _ = trained
    assert "finished before, skipped" in run(f"{FINAL} trainer.threads=1", folder)
    # What is lost is made again, from trainings that are kept.
    file = folder / "multirun" / "sar_scenes" / "final-seed1" / "detector.safetensors"
    before = read_detector(file)
    file.unlink()
    assert "step/s" not in run(FINAL, folder)
    again = read_detector(file)
    assert again.class_thresholds == before.class_thresholds
    weights = again.module.state_dict()
    assert all(np.array_equal(value, weights[name]) for name, value in before.module.state_dict().items())
    # One of another training, as an interrupted call with other labels leaves it, is not counted with.
    shutil.copyfile(file.parents[1] / "final-seed0" / file.name, file)
    assert "skipped" not in run(FINAL, folder)
    assert read_detector(file).origin["run"] == before.origin["run"]


def test_what_mlflow_did_not_get_is_logged_by_the_next_call(trained: tuple[Path, str]) -> None:
    folder, _ = trained
    (final,) = runs(folder, kind="final")
    client = MlflowClient(f"sqlite:///{folder / 'mlruns' / 'mlflow.db'}")
    client.set_terminated(final.info.run_id, "RUNNING")  # as a process leaves it that is killed
    client.log_metric(final.info.run_id, "out_of_fold/map", -1.0)
    printed = run(FINAL, folder)
    assert "step/s" not in printed
    assert "skipped" not in printed
    (again,) = runs(folder, kind="final")
    assert (again.info.run_id, again.info.status) == (final.info.run_id, "FINISHED")
    assert again.data.metrics["out_of_fold/map"] == final.data.metrics["out_of_fold/map"]
    assert "skipped" in run(FINAL, folder)


def test_detectors_of_a_call_with_more_seeds_are_removed(trained: tuple[Path, str], tmp_path: Path) -> None:
    folder = tmp_path / "study"
    shutil.copytree(trained[0], folder, symlinks=True)
    study = folder / "multirun" / "sar_scenes"
    (study / "final-seed1" / "detector.onnx").touch()  # what users have put there stays
    run(FINAL.replace("final_seeds=2", "final_seeds=1"), folder)
    assert [file.parent.name for file in study.glob("final-seed*/*.safetensors")] == ["final-seed0"]
    assert (study / "final-seed1" / "detector.onnx").is_file()
    # An error is told to MLflow.
    (study / "final" / "folds.json").unlink()
    (study / "final" / "folds.json").mkdir()
    run(FINAL, folder, code=1)
    (final,) = runs(folder, kind="final")
    assert final.info.status == "FAILED"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("trainer.steps=80 detector=yolov3 dataset.root=data/x", "leave out trainer.steps, detector. Settings of the"),
        ("final_folds=13", "final_folds=13: 24 images of 12 scenes cannot be divided into 13 parts"),
        ("dataset.empty=data", "dataset.empty=data would train another condition than s1 x0, the one that study"),
        ("detector.weights=x.weights", "recommends: it has detector.weights=null. Leave detector.weights out"),
        ("final=nothing", "no runs of a study called nothing in "),
    ],
)
def test_bad_input_is_refused_before_work(trained: tuple[Path, str], words: str, message: str) -> None:
    folder, _ = trained
    printed = run(f"train.py {words if words.startswith('final=') else f'final=sar_scenes {words}'}", folder, code=1)
    assert message in printed
    assert "Traceback" not in printed
    assert "step/s" not in printed


@pytest.fixture(scope="module")
def unlabelled(trained: tuple[Path, str]) -> Path:
    """Ten images of other scenes, and two that are labelled: one as it is, one brighter."""
    folder, _ = trained
    build(folder / "other", images=10, image_size=64, chips_per_scene=2, seed=5)
    target = folder / "my images, new (2)"
    (target / "sub").mkdir(parents=True)
    for number, file in enumerate(sorted((folder / "other" / "images").iterdir())):
        shutil.copy(file, target / "sub" / f"new {number}.png")
    first, second = sorted(folder.glob("data/sar_scenes/images/*.png"))[:2]
    shutil.copy(first, target / "known.png")
    write_png(target / "brighter.png", np.clip(read_image(second).astype(int) + 3, 0, 255).astype(np.uint8))
    return target


def review(folder: Path, *settings: str, code: int = 0) -> str:
    """`review.py` with settings as a shell passes them."""
    printed = run(["review.py", *settings], folder, code=code)
    assert "Traceback" not in printed
    return printed


def test_images_to_label_next_are_listed_and_pre_labelled(trained: tuple[Path, str], unlabelled: Path) -> None:
    folder, _ = trained
    printed = review(folder, setting("next", unlabelled.name), "number=4", "study=sar_scenes")
    assert "2 images are left out" in printed
    assert "known.png = " in printed
    assert "brighter.png = " in printed
    assert "2 detectors of s1 x0, study sar_scenes" in printed
    chosen = folder / f"{unlabelled.name}-next"
    with (chosen / "next.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["rank"] for row in rows] == ["1", "2", "3", "4"]
    content = json.loads((chosen / "annotations.json").read_text())
    assert [image["file_name"] for image in content["images"]] == [row["file"] for row in rows]
    assert len({row["file"] for row in rows}) == 4
    assert ("disagree on none" in printed) == all(float(row["disagreement"]) == 0 for row in rows)
    assert all(row["file"].startswith("sub/new ") for row in rows)
    for row, image in zip(rows, content["images"], strict=True):
        boxes = [each for each in content["annotations"] if each["image_id"] == image["id"]]
        assert len(boxes) == int(row["pre_labelled"])
        assert all(0 <= each["score"] <= 1 for each in boxes)
        assert (chosen / "images" / row["file"]).read_bytes() == (unlabelled / row["file"]).read_bytes()
        assert image["confirmed"] is False  # no person has seen it
        assert image["orientation"] == "apply"  # as it was read
    page = (chosen / "index.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 4
    assert "images/sub/new%20" in page
    # It is a data set that boxtwin reads, once people have looked at the boxes.
    read = read_coco(name="next", images=chosen / "images", annotations=chosen / "annotations.json")
    assert len(read.samples) == 4


@pytest.mark.slow
@pytest.mark.parametrize("threshold", [LOW, 1.0])
def test_detectors_that_agree_everywhere_are_named(
    trained: tuple[Path, str], unlabelled: Path, tmp_path: Path, threshold: float
) -> None:
    """Two seeds with the same weights agree, and diversity alone ranks the images; unless one counts nothing."""
    folder = tmp_path / "study"
    shutil.copytree(trained[0], folder, symlinks=True)
    first, second = (folder / "multirun" / "sar_scenes" / f"final-seed{n}" / "detector.safetensors" for n in (0, 1))
    detector = read_detector(first)
    for file, least in ((first, LOW), (second, threshold)):
        write_detector(replace(detector, class_thresholds=(least,)), file)
    printed = review(folder, setting("next", unlabelled.name), "folder=chosen", "number=4")
    warning = "The 2 detectors disagree on none of these images, so the order follows from diversity alone."
    said = threshold == LOW
    assert (warning in printed, warning in (folder / "chosen" / "index.html").read_text()) == (said, said)
    with (folder / "chosen" / "next.csv").open(newline="") as table:
        rows = list(csv.DictReader(table))
    # What both detect is pre-labelled, and what one of two detects is doubtful.
    assert any(int(row["pre_labelled" if said else "doubtful"]) for row in rows)
    assert all(float(row["disagreement"]) == int(row["doubtful"]) for row in rows)
    assert not any(int(row["doubtful" if said else "pre_labelled"]) for row in rows)


def test_a_folder_with_labels_of_people_is_not_overwritten(trained: tuple[Path, str], unlabelled: Path) -> None:
    folder, _ = trained
    target = folder / "corrected"
    target.mkdir()
    (target / "annotations.json").write_text("{}")
    words = (setting("next", unlabelled.name), "folder=corrected")
    assert "exists, and may hold labels of people" in review(folder, *words, code=1)
    assert [file.name for file in target.iterdir()] == ["annotations.json"]


@pytest.mark.slow
def test_a_folder_may_hold_fewer_images_or_none_that_are_new(trained: tuple[Path, str], unlabelled: Path) -> None:
    folder, _ = trained
    known = folder / "known"
    known.mkdir()
    for file in sorted(folder.glob("data/sar_scenes/images/*.png"))[:3]:
        shutil.copy(file, known)
    assert "all 3 images are labelled already" in review(folder, "next=known", code=1)
    assert not (folder / "known-next").exists()
    shutil.copy(unlabelled / "sub" / "new 0.png", known)
    assert "next=known has 1 images without labels, fewer than number=20" in review(folder, "next=known")
    (folder / "empty").mkdir()
    assert "next=empty holds no images" in review(folder, "next=empty", code=1)


@pytest.mark.slow
def test_one_detector_cannot_disagree(tmp_path: Path) -> None:
    run("train.py experiment=tiny_control variations=0", tmp_path)
    (tmp_path / "new").mkdir()
    printed = review(tmp_path, "next=new", code=1)
    assert "study sar_scenes has 1 of s1. Train the study with more seeds (-m seed=0,1,2)" in printed
    assert "\npython train.py final=sar_scenes" in printed
