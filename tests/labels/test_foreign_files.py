"""Files as annotation tools write them: turned rectangles, several annotations, and what cannot be read."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from labelled_stores import CLASSES, Boxes, write_store

from boxtwin.errors import InputError
from boxtwin.labels.convert import convert
from boxtwin.labels.exchange import export_store, read_back
from boxtwin.labels.formats import format_of, get_format
from boxtwin.labels.store_images import read_store


def task(**changes: Any) -> dict[str, Any]:
    result = {
        "type": "rectanglelabels",
        "original_width": 80,
        "original_height": 60,
        "value": {"x": 25, "y": 50, "width": 10, "height": 5, "rotation": 0, "rectanglelabels": ["ship"]},
    }
    return {
        "id": 1,
        "data": {"image": "/data/upload/1/aaaaaaaa-a.png"},
        "annotations": [{"result": [result]}],
        **changes,
    }


def read_tasks(tmp_path: Path, *tasks: Any) -> Any:
    (tmp_path / "export.json").write_text(json.dumps(tasks))
    return get_format("label_studio").read(tmp_path / "export.json")


def test_turned_rectangles_of_label_studio(tmp_path: Path) -> None:
    turned = task()
    # About the left upper corner (20, 30), clockwise by a right angle: 8 x 3 pixels become 3 x 8, to its left.
    turned["annotations"][0]["result"][0]["value"]["rotation"] = 90
    read = read_tasks(tmp_path, turned)
    (box,) = read.images[0].in_pixels(80, 60).boxes
    assert box.box == pytest.approx((17, 30, 20, 38))
    assert "1 rectangles are turned" in read.remarks[0]


def test_turned_rectangles_of_cvat(tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_text(
        '<annotations><version>1.1</version><image id="0" name="a.png" width="80" height="60">'
        '<box label="ship" xtl="20" ytl="30" xbr="28" ybr="33" rotation="90.00"/><polygon label="ship" points="0,0"/>'
        "</image></annotations>"
    )
    read = get_format("cvat").read(tmp_path / "a.xml")
    assert read.images[0].boxes[0].box == pytest.approx((22.5, 27.5, 25.5, 35.5))  # about its centre
    assert len(read.remarks) == 2
    assert read.images[0].confirmed is None


def test_of_label_studios_annotations_the_newest_counts_and_times_are_added_up(tmp_path: Path) -> None:
    (first,) = task()["annotations"]
    newest = {"result": [], "updated_at": "2026-02-01T00:00:00Z", "lead_time": 30}
    both = task(annotations=[newest, {**first, "updated_at": "2026-01-01T00:00:00Z", "lead_time": 60}])
    skipped = task(annotations=[{**first, "was_cancelled": True}])
    untouched = task(annotations=[], predictions=task()["annotations"])
    images = read_tasks(tmp_path, both, skipped, untouched).images
    assert [(len(image.boxes), image.confirmed, image.minutes) for image in images] == [
        (0, True, 1.5),
        (1, False, None),
        (1, False, None),
    ]
    assert images[1].refused == "skipped in Label Studio"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {}}, "task 1 names no image"),
        ({"annotations": [{"result": [{"type": "rectanglelabels"}]}]}, "task 1 is no task as Label Studio exports it"),
        ({"annotations": [{}]}, "task 1 is no task"),
        ({"annotations": 3}, "task 1 is no task"),
    ],
)
def test_tasks_that_are_none_are_named(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        read_tasks(tmp_path, task(**changes))


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("a.xml", '<!DOCTYPE x [<!ENTITY a "b">]><annotations/>', "declares a document type"),
        ("a.xml", "<annotations>", "is no valid XML"),
        ("a.xml", "<annotation/>", "is one file of several; give its folder"),
        ("a.xml", "<html/>", "begins with <html>"),
        ("a.xml", '<annotations><image name="a" width="x" height="2"/></annotations>', "needs a number as width"),
        ("a.xml", '<annotations><track id="0"/></annotations>', "CVAT for video"),
        ("a.json", '[{"image": "a.png", "label": []}]', "JSON-MIN"),
        ("a.json", '{"a": 1}', "neither COCO"),
        ("a.json", "{", "not valid JSON"),
        ("a.zip", "", "unpack it first"),
        ("a.csv", "", "give a .json or .xml file, or a folder"),
        ("f/labels/a.txt", "0 0.5 0.5 0.1 0.1\n", "has no class names"),
        ("f/notes.md", "", "holds no labels"),
        ("f/a.xml", "<annotation><object><name>a</name></object></annotation>", "without bndbox"),
    ],
)
def test_files_that_cannot_be_read_are_explained(file: str, text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(text)
    path = tmp_path / file.split("/")[0]
    with pytest.raises(InputError, match=message):
        get_format(format_of(path)).read(path)


@pytest.mark.parametrize(
    "line", ["0 0.5 0.5 0.1", "2 0.5 0.5 0.1 0.1", "x 0.5 0.5 0.1 0.1", "0 50 40 10 10", "0 nan 0 0 0"]
)
def test_lines_that_are_no_boxes_are_named(line: str, tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("ship\n")
    (tmp_path / "a.txt").write_text(f"\n{line}\n")
    with pytest.raises(InputError, match=r"a\.txt, line 2"):
        get_format("yolo").read(tmp_path)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("data.yaml", "names: [a, [b]]"),
        ("data.yaml", "names: {1: a}"),
        ("data.yaml", "[a"),
        ("data.yaml", "a"),
        ("classes.txt", "a\n\nb"),
        ("classes.txt", "\na\nb"),
    ],
)
def test_class_names_that_are_none_are_refused(file: str, text: str, tmp_path: Path) -> None:
    (tmp_path / file).write_text(text)
    (tmp_path / "a.txt").touch()
    with pytest.raises(InputError, match=re.escape(file)):
        get_format("yolo").read(tmp_path)


@pytest.mark.parametrize(
    ("files", "names"),
    [
        ({"data.yaml": "names: [no, 010, yes]"}, ["no", "010", "yes"]),  # of which YAML makes False, 8 and True
        ({"data.yaml": "names: {0: ship, 1: 1.0}"}, ["ship", "1.0"]),
        (
            {"data.yaml": "names: [ship, car]", "classes.txt": "ship\ncar\n", "labels/classes.txt": "ship"},
            ["ship", "car"],
        ),
        ({"data.yaml": "names: [car, ship]", "classes.txt": "ship\ncar\n"}, None),
        ({"classes.txt": "car\nship", "labels/classes.txt": "ship\ncar\n"}, None),
        ({"data.yaml": "names: ship"}, None),
        ({"data.yaml": "names:\n- ship\n-"}, None),
        ({"data.yaml": "names: [ship, ~]"}, None),
        (
            {"data.yaml": "names: [ship]\nshape: !!python/tuple [1]", "dataset.yaml": "path: .", "obj.names": "a\n\nb"},
            ["ship"],
        ),
        ({"CLASSES.TXT": "ship\ncar\n", "TRAIN.TXT": "images/a.png"}, ["ship", "car"]),
    ],
)
def test_names_of_classes_are_as_written_and_files_agree(
    files: dict[str, str], names: list[str] | None, tmp_path: Path
) -> None:
    (tmp_path / "labels").mkdir()
    for file, text in files.items():
        (tmp_path / file).write_text(text)
    (tmp_path / "labels" / "a.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    if names is None:
        with pytest.raises(InputError, match=r"name the classes differently|no class names"):
            get_format("yolo").read(tmp_path)
    else:
        assert get_format("yolo").read(tmp_path).classes == names


@pytest.mark.parametrize("name", ["yolo", "voc"])
def test_images_without_a_label_file_are_told(name: str, tmp_path: Path) -> None:
    boxes: dict[str, Boxes] = {f"images/{name}.png": [(CLASSES[0], (1, 2, 3, 4))] for name in "abcd"}
    export_store(read_store(write_store(tmp_path / "store", boxes)), name, tmp_path / "set")
    ending = {"yolo": ".txt", "voc": ".xml"}[name]
    folder = tmp_path / "set" / {"yolo": "labels", "voc": "Annotations"}[name]
    (folder / f"b{ending}").rename(folder / f"b{ending.upper()}")
    (folder / f"c{ending}").unlink()
    (folder / f"._a{ending}").write_bytes(b"\0\5\x16\7")  # as macOS leaves them in archives
    described, remarks = convert([tmp_path / "set"], tmp_path / "converted")
    assert "4 images, 3 boxes" in described
    (remark,) = remarks
    assert "1 images have no label file" in remark
    assert "c" in remark.rpartition(": ")[2]


def test_a_voc_file_may_have_dots_in_its_name(tmp_path: Path) -> None:
    (tmp_path / "a.1.png").write_bytes(b"")
    (tmp_path / "a.1.xml").write_text("<annotation><filename>a.1</filename></annotation>")
    (tmp_path / "not_confirmed.txt").write_text("a.1.png\n")
    (image,) = get_format("voc").read(tmp_path).images
    assert image.confirmed is False


def test_images_may_be_called_as_lists_of_other_tools_are(tmp_path: Path) -> None:
    boxes: dict[str, Boxes] = {
        f"images/{name}.png": [(CLASSES[0], (1, 2, 3, 4))] for name in ("train", "classes", "test")
    }
    store = read_store(write_store(tmp_path / "store", boxes))
    export_store(store, "yolo", tmp_path / "out")
    assert read_back(tmp_path / "out", store)[0]["info"]["changes"]["kept"] == 3


@pytest.mark.parametrize(
    ("labels", "images", "lists"),
    [
        ("test.txt", "test.png", []),
        ("labels/val/test.txt", "images/val/test.png", ["test.txt", "val.txt"]),
        ("labels/test.txt", "images/test.png", ["labels/classes.txt", "notes.txt"]),
        ("set/classes.txt", "set/classes.png", ["test.txt"]),
    ],
)
def test_labels_are_told_from_lists_of_the_same_names(
    labels: str, images: str, lists: list[str], tmp_path: Path
) -> None:
    (tmp_path / "data.yaml").write_text("names: [ship]")
    for name in (labels, images, *lists):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("ship\n" if Path(name).name == "classes.txt" else "images/a.png\n")
    (tmp_path / labels).write_text("0 0.5 0.5 0.1 0.1\n")
    (image,) = get_format("yolo").read(tmp_path).images
    assert len(image.boxes) == 1


@pytest.mark.parametrize("shape", ["[4, 3]", "[17, 2]", "[1, 2]", "[17, 3]"])
def test_keypoints_behind_a_box_are_no_polygon(shape: str, tmp_path: Path) -> None:
    (tmp_path / "data.yaml").write_text(f"names: [ship]\nkpt_shape: {shape}\n")
    points, dimensions = json.loads(shape)
    keypoints = " ".join(["0.48"] * points * dimensions)
    (tmp_path / "a.txt").write_text(f"0 0.5 0.5 0.2 0.1 {keypoints}\n0 0.5 0.5 0.2 0.1\n")
    boxes = get_format("yolo").read(tmp_path).images[0].in_pixels(100, 100).boxes
    np.testing.assert_allclose([box.box for box in boxes], [(40, 45, 60, 55)] * 2)


@pytest.mark.parametrize("folder", ["JPEGImages", "img", "train/Images", "."])
def test_folders_of_images_may_have_any_name(folder: str, tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("ship\n")
    for name in ("1.jpg", "empty.jpg"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / name).touch()
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "1.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    assert sorted(len(image.boxes) for image in get_format("yolo").read(tmp_path).images) == [0, 1]


def test_images_of_one_name_in_several_folders_are_several(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("ship\n")
    for folder in ("images/a", "images/b", "labels/a"):
        (tmp_path / folder).mkdir(parents=True)
    for folder in ("a", "b"):
        (tmp_path / "images" / folder / "1.jpg").touch()
    (tmp_path / "labels" / "a" / "1.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    found = {image.name: len(image.boxes) for image in get_format("yolo").read(tmp_path).images}
    assert found == {"a/1": 1, "b/1": 0}


@pytest.mark.parametrize("place", ["labels", "."])
def test_texts_of_a_person_beside_the_labels_are_no_labels(place: str, tmp_path: Path) -> None:
    (tmp_path / "data.yaml").write_text("names: [ship]")
    (tmp_path / place).mkdir(exist_ok=True)
    (tmp_path / place / "a.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    for name in ("README.dataset.txt", "README.roboflow.txt", *(["licence.txt"] if place == "labels" else [])):
        (tmp_path / name).write_text("Cells, version 3\n")
    (image,) = get_format("yolo").read(tmp_path).images
    assert len(image.boxes) == 1


def test_empty_lines_behind_the_names_of_classes_do_not_count(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("ship\nbuoy\n\n \n")
    (tmp_path / "a.txt").write_text("1 0.5 0.5 0.1 0.1\n")
    assert get_format("yolo").read(tmp_path).images[0].boxes[0].name == "buoy"


def test_yolo_folders_of_other_tools(tmp_path: Path) -> None:
    (tmp_path / "dataset.yaml").write_text("names: {0: ship, 1: 'a: b'}\nnc: 2\n")
    (tmp_path / "labels" / "train").mkdir(parents=True)
    # Six digits, a score, a polygon.
    lines = "1 0.500000 0.500000 0.200000 0.100000\n0 0.5 0.5 0.2 0.1 0.87\n0 0.1 0.1 0.3 0.1 0.3 0.2\n"
    (tmp_path / "labels" / "train" / "a.txt").write_text(lines)
    read = get_format("yolo").read(tmp_path)
    assert list(read.classes) == ["ship", "a: b"]
    boxes = read.images[0].in_pixels(100, 100).boxes
    np.testing.assert_allclose([box.box for box in boxes], [(40, 45, 60, 55), (40, 45, 60, 55), (10, 10, 30, 20)])
    assert [(box.name, box.score) for box in boxes] == [("a: b", None), ("ship", 0.87), ("ship", None)]
    assert math.isclose(boxes[1].score or 0, 0.87)
