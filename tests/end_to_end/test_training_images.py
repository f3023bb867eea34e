"""Which images a run trains on, and how long: the user's commands on 24 simulated chips."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from commands import manifests, run

from boxtwin.datasets.simulated_sar import scenes as sar_scenes


def results(folder: Path, name: str) -> list[dict[str, Any]]:
    """The result.json of every study's run of this name, in the order of the studies."""
    return [json.loads(file.read_text()) for file in sorted(folder.glob(f"multirun/*/{name}-*/result.json"))]


@pytest.mark.slow
def test_variations_of_validation_images_change_one_metric_only(tmp_path: Path) -> None:
    command = "train.py experiment=tiny_control variations=1 rerun=true study="
    run(f"{command}a variations.validation=false", tmp_path)
    (lines,) = manifests(tmp_path)
    split = json.loads(next(tmp_path.glob("multirun/a/*/split.json")).read_text())["s1"]
    assert {line["source"] for line in lines} == set(split["train"])
    run(f"{command}b", tmp_path)
    (lines,) = manifests(tmp_path)
    assert {line["source"] for line in lines} == {*split["train"], *split["val"]}
    without, with_them = results(tmp_path, "s1-x1-repeat-yolov3_nano-seed0")
    assert without["identity"] == with_them["identity"]
    assert without["validation"] == with_them["validation"]
    assert without["counts"] == with_them["counts"]
    alike = [{k: v for k, v in each["metrics"].items() if k[:5] in ("test/", "val_r")} for each in (without, with_them)]
    assert alike[0] == alike[1]
    assert "test/map" in alike[0]
    more = {name.split("/")[0] for name in with_them["metrics"].keys() - without["metrics"].keys()}
    assert more == {"val_synthetic"}
    assert "finished before" in run("train.py experiment=tiny_control variations=1 study=a", tmp_path)


@pytest.mark.slow
def test_a_study_of_equal_epochs_takes_the_gain_apart(tmp_path: Path) -> None:
    study = "trainer.steps=null trainer.epochs=4 study=epochs experiment=tiny_control trainer.validations=2"
    run(f"train.py -m {study} variations=0,2 generator=copy_paste", tmp_path)
    run(f"train.py {study} variations=2 generator=repeat", tmp_path)
    names = ("s1-x0-none", "s1-x2-copy_paste", "s1-x2-repeat")
    steps = [result["params"]["steps"] for name in names for result in results(tmp_path, name)]
    assert steps == [6, 18, 18]  # 4 epochs of 6 and of 18 images, 4 in a step
    said = run("compare.py study=epochs", tmp_path)
    assert "At equal epochs this takes 18 instead of 6 steps. Of the change in AP50, steps bring" in said
    assert "finished before" in run(f"train.py {study} variations=2 generator=repeat", tmp_path)


def test_unlabelled_and_empty_images_join_the_training(tmp_path: Path) -> None:
    run("train.py experiment=tiny_control variations=0", tmp_path)
    sar_scenes.build(tmp_path / "other", images=8, image_size=64, chips_per_scene=2, seed=1)
    for file in list((tmp_path / "other" / "images").iterdir()):
        file.rename(file.with_name(f"U{file.name}"))  # a scene is known by the name
    more = "experiment=tiny_control variations=0 dataset.unlabelled=other/images"
    printed = run(f"train.py {more}", tmp_path)
    assert "unlabelled images are used" in printed
    unlabelled, plain = results(tmp_path, "s1-x0-none")  # in the order of names: with_unlabelled comes first
    assert "unlabelled_images" not in plain["condition"]
    found = unlabelled["metrics"]
    assert found["data/unlabelled_images"] + found["data/unlabelled_refused"] == 8
    assert found["data/real_images"] == plain["metrics"]["data/real_images"] == 6
    # The detector of the first run is one of the three that label.
    assert len(list((tmp_path / "data" / "detectors").glob("*.safetensors"))) == 3
    assert "labels: detector 1 of 3: s1-x0-none" not in printed
    assert "labels: detector 2 of 3: s1-x0-none" in printed
    both = run(f"train.py -m {more} dataset.empty=other/images seed=0,1", tmp_path)
    assert "unlabelled images are used" in both
    (made, _) = results(tmp_path, "s1-x0-none-with_unlabelled_empty")
    assert made["metrics"]["data/empty_images"] == 8
    assert "the unlabelled images change AP50 by" in run("compare.py", tmp_path)
