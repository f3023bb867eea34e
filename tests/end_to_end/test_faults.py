"""Kills, bad input, failures in the middle, two at once: nothing is lost, nothing made twice, everything is told."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from commands import manifests, run, runs, start
from kill_moments import kill_moments

SWEEP = "train.py -m experiment=tiny_control split=s1 variations=0,2,4 seed=0,1"
RUNS = 6


def check_finished(folder: Path) -> None:
    run_folders = runs(folder)
    assert len(run_folders) == RUNS
    assert {r.info.status for r in run_folders} == {"FINISHED"}
    assert len({r.info.run_name for r in run_folders}) == RUNS
    (lines,) = manifests(folder)
    assert max(Counter((line["source"], line["variation"]) for line in lines).values()) == 1
    assert len(lines) == 40  # (6 + 4) x 4
    assert len(list(folder.glob("data/synthetic/*/images/**/*.png"))) == 40
    assert not list(folder.rglob("*.part"))


def metrics(folder: Path) -> dict[str, float]:
    return {r.info.run_name: r.data.metrics["test/map"] for r in runs(folder)}


@pytest.mark.slow
def test_a_sweep_killed_at_any_moment_is_finished_by_the_same_command(tmp_path: Path) -> None:
    """Whatever was being written when SIGKILL came. The moments are drawn anew in every run of the test."""
    moments = kill_moments()
    for _ in range(3):
        process = start(SWEEP, tmp_path)
        # Up to this long: loading, building data, variations, training, testing and logging of several runs.
        time.sleep(moments.uniform(6, 22))
        process.kill()
        process.wait()
    printed = run(SWEEP, tmp_path)
    check_finished(tmp_path)
    assert "FAILED" not in printed


@pytest.mark.slow
def test_two_sweeps_at_once_share_the_work(tmp_path: Path) -> None:
    processes = [start(SWEEP, tmp_path) for _ in range(2)]
    assert [process.wait(400) for process in processes] == [0, 0]
    check_finished(tmp_path)


def test_two_studies_that_want_the_same_run_at_once_train_it_once(tmp_path: Path) -> None:
    """Whoever comes first trains it; the other waits and has it too."""
    processes = [start(f"train.py experiment=tiny_control study={name}", tmp_path) for name in ("one", "other")]
    assert [process.wait(400) for process in processes] == [0, 0]
    run_folders = runs(tmp_path)
    assert {r.info.status for r in run_folders} == {"FINISHED"}
    assert sorted("boxtwin.reused_from" in r.data.tags for r in run_folders) == [False, True]
    assert run_folders[0].data.metrics == run_folders[1].data.metrics
    assert len(list(tmp_path.glob("multirun/*/*/result.json"))) == 2


def test_resumed_training_ends_where_uninterrupted_training_ends(tmp_path: Path) -> None:
    """Killed after its first checkpoint, a run goes on from there and draws the same images in the same order."""
    command = "train.py experiment=tiny_control split=s1 variations=2 trainer.steps=40 trainer.validations=10"
    (tmp_path / "whole").mkdir()
    (tmp_path / "broken").mkdir()
    run(command, tmp_path / "whole")
    process = start(command, tmp_path / "broken")
    until = time.monotonic() + 120
    while not list((tmp_path / "broken").glob("multirun/*/*/checkpoints/*/last.ckpt")) and time.monotonic() < until:
        time.sleep(0.02)
    process.kill()
    process.wait()
    printed = run(command, tmp_path / "broken")
    assert "going on from" in printed
    assert metrics(tmp_path / "broken") == metrics(tmp_path / "whole")
    (resumed,) = runs(tmp_path / "broken")
    assert resumed.data.metrics["time/total"] > resumed.data.metrics["time/train"]  # both of all attempts


def test_a_sweep_with_wrong_settings_begins_no_run_and_names_them(tmp_path: Path) -> None:
    command = "train.py -m experiment=tiny_control variations=0 detector.warmup_steps=1,98,99 seed=0,1"
    (*_, first, one, other) = run(command, tmp_path, code=1).splitlines()
    assert first == "4 of 6 runs have wrong settings; none was begun:"
    for line, steps in ((one, 98), (other, 99)):
        start = f"  detector.warmup_steps={steps}: detector.warmup_steps={steps} must be below trainer.steps=8"
        assert line.startswith(start)
    assert not list(tmp_path.glob("m*/*/*"))
    printed = run("train.py -m experiment=tiny_control detector.weights=none.weights seed=0,1", tmp_path, code=1)
    assert printed.splitlines()[-1] == "  detector.weights=none.weights: there is no such file"
    assert not list(tmp_path.glob("m*/*/*"))


def test_a_run_that_fails_in_the_middle_ends_failed_and_is_taken_up_again(tmp_path: Path) -> None:
    """A generator that breaks after its second image."""
    command = "train.py experiment=tiny_control variations=1 generator._target_=failing.BreaksDown"
    printed = run(command, tmp_path, code=1)
    assert "RuntimeError: the generator broke down" in printed
    (failed,) = runs(tmp_path)
    assert failed.info.status == "FAILED"
    assert "the generator broke down" in failed.data.tags["boxtwin.failure"]
    assert [len(lines) for lines in manifests(tmp_path)] == [2]
    (tmp_path / "mended").touch()
    run(command, tmp_path)
    (finished,) = runs(tmp_path)
    assert (finished.info.run_id, finished.info.status) == (failed.info.run_id, "FINISHED")
    assert [len(lines) for lines in manifests(tmp_path)] == [10]


Content = dict[str, Any]


def write_coco(folder: Path) -> Content:
    """Twelve images with one bright object each."""
    noise = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    content: Content = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "pollen"}]}
    for number in range(1, 13):
        pixels = noise.integers(0, 60, (48, 64), dtype=np.uint8)
        pixels[10:22, 20:36] = 220
        cv2.imwrite(str(folder / "images" / f"{number:02d}.png"), pixels)
        content["images"].append({"id": number, "file_name": f"{number:02d}.png", "width": 64, "height": 48})
        content["annotations"].append(
            {"id": number, "image_id": number, "category_id": 1, "bbox": [20, 10, 16, 12], "area": 192, "iscrowd": 0}
        )
    return content


def missing(content: Content, folder: Path) -> None:
    (folder / "images" / "03.png").unlink()


def unreadable(content: Content, folder: Path) -> None:
    (folder / "images" / "03.png").write_bytes(b"no picture")


def duplicate_ids(content: Content, folder: Path) -> None:
    content["images"][3]["id"] = 1


def unknown_category(content: Content, folder: Path) -> None:
    content["annotations"][0]["category_id"] = 7


def empty_box(content: Content, folder: Path) -> None:
    content["annotations"][0]["bbox"] = [5, 5, 0, 4]


def infinite_box(content: Content, folder: Path) -> None:
    content["annotations"][0]["bbox"] = [5, 5, float("nan"), 4]


def outside_box(content: Content, folder: Path) -> None:
    content["annotations"][0]["bbox"] = [60, 5, 20, 4]


def outside_folder(content: Content, folder: Path) -> None:
    content["images"][0]["file_name"] = "../01.png"


FAULTS = {
    missing: "images missing from .*: 1\n.*03.png",
    unreadable: "images unreadable in .*: 1\n.*03.png",
    duplicate_ids: "duplicate ids in images: 1",
    unknown_category: "annotations of unknown categories: 1\n.*category_id 7",
    empty_box: "boxes that are empty: 1",
    infinite_box: r"boxes that are not four finite numbers .*: 1",
    outside_box: "boxes that reach outside their image: 1",
    outside_folder: "file names that point outside the image folder: 1",
}
COCO_RUN = (
    "train.py experiment=tiny_hrsid dataset=coco dataset.root=set split.train=6 split.val=2 split.test=4 "
    "split.train_pool=6 detector.architecture=yolov3_nano dataset.image_size=64"
)


def test_each_kind_of_bad_data_is_named(tmp_path: Path) -> None:
    """One sweep over as many bad data sets: every run fails with its own message, and nothing is made."""
    for fault in FAULTS:
        folder = tmp_path / fault.__name__
        content = write_coco(folder)
        fault(content, folder)
        (folder / "annotations.json").write_text(json.dumps(content))
    roots = ",".join(fault.__name__ for fault in FAULTS)
    command = COCO_RUN.replace("train.py", "train.py -m").replace("dataset.root=set", f"dataset.root={roots}")
    # Where data lies does not define a run; the name does, so that each has its own folder.
    printed = run(f"{command} dataset.name=${{dataset.root}}", tmp_path, code=1)
    for fault, message in FAULTS.items():
        first = f"{fault.__name__}/annotations.json: .*: 1. Nothing was used"
        assert len(re.findall(first, printed)) >= 1, (fault, printed)
        assert re.search(message, printed), (fault, printed)
    assert "Traceback" not in printed
    assert not (tmp_path / "mlruns").exists()
    assert not (tmp_path / "data").exists()
    assert not list(tmp_path.rglob("train.log"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("dataset.root=nowhere", "nowhere/annotations.json does not exist; set dataset.root"),
        ("dataset.images=pictures", "there is no folder set/pictures; set dataset.images"),
        (
            "dataset.annotations=train.json",
            "set/train.json does not exist; set dataset.annotations, and dataset.images if need be: set holds annotati",
        ),
        ("dataset.root=yolo", "convert them: python review.py read=yolo folder=CONVERTED"),
        (
            "dataset.images=empty",
            "none of the 12 images that set/annotations.json names is in set/empty; set dat",
        ),
        (
            "split.test=5",
            "needs 6 + 2 + 5 = 13 images (split.train_pool, split.val, split.test), but data set co",
        ),
        ("dataset.name=pollen dataset.on_bad_box=error", "boxes that reach outside their image: 1"),
        ("-m split=[s1,s2]", "split=[s1,s2]: a run has one option of split; -m split=s1,s2 takes one after the other"),
        ("generator=null", "generator=null names no option"),
        ("dataset.build.seed=1", "dataset.build.seed cannot be set: dataset.build is null"),
        (
            "-m variations=0,1 seed=0,1 generator=pixel_ddpm generator.strength=7",
            "2 of 4 runs have wrong settings; none was begun:\n  variations=1: pixel_ddpm: strength=",
        ),
        ("-m seed=0,1 dataset.images=none", "2 of 2 runs have wrong settings; none was begun:\n  there is no "),
    ],
)
def test_a_refused_command_leaves_nothing_behind(words: str, message: str, tmp_path: Path) -> None:
    content = write_coco(tmp_path / "set")
    outside_box(content, tmp_path / "set")
    (tmp_path / "set" / "empty").mkdir()
    (tmp_path / "set" / "annotations.json").write_text(json.dumps(content))
    (tmp_path / "yolo" / "labels").mkdir(parents=True)
    (tmp_path / "yolo" / "labels" / "0.txt").write_text("0 0.5 0.5 0.1 0.1")
    command = COCO_RUN.replace("train.py", "train.py -m") if "-m " in words else COCO_RUN
    printed = run(f"{command} {words.removeprefix('-m ')}", tmp_path, code=1)
    assert message in printed
    assert "Traceback" not in printed
    assert {path.name for path in tmp_path.iterdir()} == {"set", "yolo"}


def test_a_coco_set_trains_and_its_bad_boxes_are_the_users_choice(tmp_path: Path) -> None:
    content = write_coco(tmp_path / "set")
    outside_box(content, tmp_path / "set")
    (tmp_path / "set" / "annotations.json").write_text(json.dumps(content))
    printed = run(f"{COCO_RUN} dataset.on_bad_box=clip", tmp_path)
    assert [r.info.status for r in runs(tmp_path)] == ["FINISHED"]
    assert "dataset.on_bad_box=clip: 1 bad boxes clipped" in printed
    result = json.loads(next(tmp_path.glob("multirun/*/*/result.json")).read_text())
    assert result["data"]["bad_boxes"] == {"clipped": 1}


def test_bad_settings_give_one_error_before_anything_is_trained(tmp_path: Path) -> None:
    printed = run("train.py experiment=tiny_control trainer.steps=7", tmp_path, code=1)
    assert "trainer.steps=7 must be a multiple of trainer.validations=4" in printed
    assert "Traceback" not in printed
    assert not (tmp_path / "mlruns").exists()


def test_a_wrong_setting_of_a_generator_is_named_before_images_are_simulated(tmp_path: Path) -> None:
    words = "variations=1 generator=pixel_ddpm generator.object_strength=0.9"
    printed = run(f"train.py experiment=tiny_control {words}", tmp_path, code=1)
    assert "object_strength" in printed
    assert "Traceback" not in printed
    assert not list(tmp_path.iterdir())
