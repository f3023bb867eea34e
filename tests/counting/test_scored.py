"""Counts scored on annotations that are not those of exactly the counted images."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from omegaconf import OmegaConf
from trained_detectors import make_trained

from boxtwin.commands.count import count_images
from boxtwin.config.schema import CountConfig
from boxtwin.counting.ensemble import ImageCount
from boxtwin.counting.scored import Annotated, score
from boxtwin.datasets.image_io import write_png
from boxtwin.datasets.sample import Detections, Sample
from boxtwin.detector.checkpoint import write_detector
from boxtwin.errors import InputError
from boxtwin.evaluation.count_intervals import CountInterval


@pytest.fixture(autouse=True)
def _detector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_detector(make_trained(), Path("detector.safetensors"))


def write_images(names: Sequence[str]) -> None:
    for seed, name in enumerate(names):
        pixels = np.random.default_rng(seed).integers(0, 256, (64, 64)).astype(np.uint8)
        write_png(Path("images") / name, pixels)


def annotate(names: Sequence[str]) -> str:
    """A file with one object in each image."""
    sides = {"width": 64, "height": 64}
    images = [{"id": number, "file_name": name, **sides} for number, name in enumerate(names, start=1)]
    boxes = [
        {"id": each["id"], "image_id": each["id"], "category_id": 1, "bbox": [9, 9, 20, 20], "area": 400, "iscrowd": 0}
        for each in images
    ]
    content = {
        "images": images,
        "annotations": boxes,
        "categories": [{"id": 1, "name": "ship"}, {"id": 2, "name": "buoy"}],
    }
    Path("annotations.json").write_text(json.dumps(content))
    return "annotations.json"


def count(annotations: str, images: str = "images") -> None:
    config = CountConfig(
        run="detector.safetensors", images=images, annotations=annotations, pictures=False, device="cpu"
    )
    count_images(OmegaConf.structured(config))


def test_annotated_images_that_are_not_counted_are_named_and_left_out(caplog: pytest.LogCaptureFixture) -> None:
    names = [f"{number}.png" for number in range(4)]
    write_images(names)
    Path("names.txt").write_text("images/0.png\nimages/1.png\n")
    with caplog.at_level("INFO"):
        count(annotate([*names, "elsewhere/5.png"]), "names.txt")  # one of them is no file here
    assert "on 2 annotated images: AP" in caplog.text
    assert "not counted: 3 of the 5 images in annotations.json" in caplog.text
    assert "not scored" not in caplog.text


def test_problems_of_images_that_are_not_counted_are_none(caplog: pytest.LogCaptureFixture) -> None:
    names = [f"{number}.png" for number in range(4)]
    write_images(names)
    Path("names.txt").write_text("images/0.png\nimages/1.png\n")
    file = Path(annotate(names))
    content = json.loads(file.read_text())
    content["images"][3]["width"] = "wide"
    content["annotations"][2] |= {"iscrowd": 7, "category_id": 5}
    file.write_text(json.dumps(content))
    with caplog.at_level("INFO"):
        count(str(file), "names.txt")
    assert "on 2 annotated images: AP" in caplog.text
    with pytest.raises(InputError, match="that are no whole numbers: 1; iscrowd is neither 0 nor 1: 1"):
        count(str(file))
    content["images"][2]["id"] = 1  # whose are the objects of image 1?
    file.write_text(json.dumps(content))
    with pytest.raises(InputError, match="duplicate ids in images: 1"):
        count(str(file), "names.txt")


def test_counted_images_that_are_not_annotated_are_counted_and_not_scored(caplog: pytest.LogCaptureFixture) -> None:
    write_images([f"{number}.png" for number in range(5)])
    with caplog.at_level("INFO"):
        count(annotate(["1.png"]))
    assert "in 5 images" in caplog.text
    assert "on 1 annotated image: AP" in caplog.text
    assert "not scored: 4 of the 5 counted files, which are not in annotations.json" in caplog.text
    assert "not counted" not in caplog.text


def test_labels_that_nobody_has_confirmed_are_not_scored(caplog: pytest.LogCaptureFixture) -> None:
    names = ["0.png", "1.png", "2.png"]
    write_images(names)
    file = Path(annotate(names))
    content = json.loads(file.read_text())
    for image in content["images"][1:]:
        image["confirmed"] = False
    file.write_text(json.dumps(content))
    with caplog.at_level("INFO"):
        count(str(file))
    assert "on 1 annotated image: AP" in caplog.text
    assert "not scored: 2 images whose labels no person has confirmed" in caplog.text
    content["images"][0]["confirmed"] = False
    file.write_text(json.dumps(content))
    with pytest.raises(InputError, match="no person has confirmed the labels of these images"):
        count(str(file))


def test_annotations_of_exactly_the_counted_images_need_no_remark(caplog: pytest.LogCaptureFixture) -> None:
    write_images(["0.png", "1.png"])
    with caplog.at_level("INFO"):
        count(annotate(["0.png", "1.png"]))
    assert "on 2 annotated images: AP" in caplog.text
    assert "annotations.json" not in caplog.text


@pytest.mark.parametrize("common", [0, 1])
def test_annotations_of_other_images_are_refused(common: int) -> None:
    """Half of the names or more match nothing on either side."""
    write_images(["0.png", "1.png"])
    file = annotate([*["0.png"] * common, "8.png", "9.png"])
    found = f"{common} of its {2 + common} images are among the 2 counted files"
    with pytest.raises(InputError, match=rf"annotations=annotations.json: {found}, whose names start in images, .*8"):
        count(file)
    assert not Path("counts").exists()


def test_labels_are_read_as_the_run_of_the_detector_read_them(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_images(["0.png", "1.png"])
    file = Path(annotate(["0.png", "1.png"]))
    content = json.loads(file.read_text())
    for box in content["annotations"]:
        box["iscrowd"] = 1  # as CVAT writes masks that were drawn
    file.write_text(json.dumps(content))
    with caplog.at_level("INFO"):
        count(str(file))
    assert "2 of 2 annotations are crowds (iscrowd 1)" in caplog.text
    assert "images: AP nan" in caplog.text
    caplog.clear()
    OmegaConf.save({"dataset": {"crowds": "objects", "root": "."}}, "config.yaml")
    shutil.rmtree("multirun", ignore_errors=True)
    with caplog.at_level("INFO"):
        count(str(file))
    assert "images: AP nan" not in caplog.text
    assert "taken for single objects" in caplog.text


def test_classes_that_the_annotations_do_not_list_are_named(caplog: pytest.LogCaptureFixture) -> None:
    write_images(["0.png"])
    file = Path(annotate(["0.png"]))
    content = json.loads(file.read_text())
    del content["categories"][1]
    file.write_text(json.dumps(content))
    with caplog.at_level("INFO"):
        count(str(file))
    assert "not scored: buoy, which annotations.json does not list" in caplog.text


def test_files_of_several_pages_have_no_annotations() -> None:
    write_images(["0.png"])
    tifffile.imwrite("images/stack.tif", np.zeros((3, 64, 64), np.uint8), photometric="minisblack")
    file = annotate(["0.png", "stack.tif"])
    with pytest.raises(InputError, match=r"annotations=.*several pages, such as stack\.tif, are counted page by page"):
        count(file)


def counted(total: int, found: Detections, intervals: tuple[CountInterval, ...] = ()) -> ImageCount:
    """The count of an image of one class, by detections that are all found."""
    return ImageCount(
        counts=np.array([total, total]),
        intervals=intervals,
        spread=np.zeros(2, np.int64),
        unlike=(),
        scale=1.0,
        near=0,
        found=found,
        every=found,
    )


def test_more_objects_than_coco_looks_at_are_told() -> None:
    boxes = np.array([[10 * x, 10 * y, 10 * x + 8, 10 * y + 8] for x in range(20) for y in range(15)], np.float32)
    labels = np.zeros(len(boxes), np.int64)
    about: dict[str, Any] = {"name": "a.png", "path": Path("a.png"), "width": 200, "height": 150, "image_id": 1}
    sample = Sample(**about, boxes=boxes, labels=labels, areas=np.full(len(boxes), 64.0), crowd=labels.astype(bool))
    found = Detections(boxes, np.linspace(0.9, 0.5, len(boxes)).astype(np.float32), labels)
    count = counted(300, found)
    (line,) = score(Annotated(("ship",), {sample.path: sample}, (0,)), {sample.path: count})
    assert "AP 0.337" in line
    assert "100 detections" in line
    assert line.endswith("AP 1.000, AP50 1.000")


@pytest.mark.parametrize("crowd", [False, True])
def test_intervals_of_images_with_crowds_are_not_held_against_the_truth(crowd: bool) -> None:
    """The interval of the second image is of its crowd's objects too, whose number nobody knows."""
    boxes = np.array([[0, 0, 9, 9], [20, 0, 60, 60]], dtype=np.float32)
    nothing = Detections(boxes[:0], np.zeros(0, np.float32), np.zeros(0, np.int64))
    samples, counts = {}, {}
    for number in range(2):
        flags = np.array([False, crowd and number == 1])
        about: dict[str, Any] = {
            "name": f"{number}.png",
            "path": Path(f"{number}.png"),
            "width": 64,
            "height": 64,
            "image_id": number,
        }
        areas = np.array([81.0, 2400.0])
        sample = Sample(**about, boxes=boxes, labels=np.zeros(2, np.int64), areas=areas, crowd=flags)
        samples[sample.path] = sample
        total = 2 if number == 0 else 20
        counts[sample.path] = counted(total, nothing, (CountInterval(total - 1, total + 1),) * 2)
    lines = score(Annotated(("ship",), samples, (0,)), counts)
    assert f"the interval holds the true count in 1 of {1 if crowd else 2} images" in "".join(lines)
