"""`train.py final=STUDY`: detectors on all labelled images, thresholds from images that none of them was trained on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from commands import run, runs

from boxtwin.detector.checkpoint import read_detector
from boxtwin.studies.runs import runs_in

FINAL = "train.py final=sar_scenes final_seeds=2 final_folds=3"


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
    assert not any(name.startswith("test/") for name in result["metrics"])
    assert {"out_of_fold/map_50", "out_of_fold/count_mae"} <= set(result["metrics"])
    assert "no test metrics" in result["data"]["note"]
    assert "no test metrics: every labelled image was trained on" in printed
    files = sorted(final.parent.glob("final*/detector.safetensors"))
    assert [file.parent.name for file in files] == ["final-seed0", "final-seed1"]
    first, second = (read_detector(file) for file in files)
    weights = second.module.state_dict()
    assert any(not np.array_equal(value, weights[name]) for name, value in first.module.state_dict().items())
    assert first.class_thresholds == second.class_thresholds
    assert first.class_thresholds[0] == result["classes"][0]["count_threshold"]


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
    before = file.read_bytes()
    file.unlink()
    printed = run(FINAL, folder)
    assert "step/s" not in printed
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("trainer.steps=80 detector=yolov3 dataset.root=data/x", "leave out trainer.steps, detector. Settings of the"),
        ("study=other", "leave out study="),
        ("final_folds=13", "final_folds=13: 24 images of 12 scenes cannot be divided into 13 parts"),
        ("final_seeds=0", "final_seeds=0 must be at least 1"),
        ("final=nothing", "no runs of a study called nothing in "),
    ],
)
def test_bad_input_is_refused_before_work(trained: tuple[Path, str], words: str, message: str) -> None:
    folder, _ = trained
    printed = run(f"train.py {words if words.startswith('final=') else f'final=sar_scenes {words}'}", folder, code=1)
    assert message in printed
    assert "Traceback" not in printed
    assert "step/s" not in printed
