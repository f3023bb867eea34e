"""Out in each format and in again: the same boxes, classes, images and marks, whatever a tool did to file names."""

from __future__ import annotations

import json
import math
import re
import tempfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from labelled_stores import CLASSES, Boxes, write_store

from boxtwin.errors import InputError
from boxtwin.labels.exchange import export_store, read_back
from boxtwin.labels.formats import FORMATS, LabelledBox, LabelledImage, format_of, get_format, write_labels
from boxtwin.labels.store_images import read_store

TOLERANCE = {"coco": 0.01, "label_studio": 0.01, "cvat": 0.01, "yolo": 0.01, "voc": 0.5}
names = st.text(st.characters(categories=("L", "N"), include_characters="-_ ,=()+%&#'.@"), min_size=1, max_size=12)
# As data sets have them; names of classes are stripped when they are read.
classes = st.lists(
    st.text(st.characters(categories=("L", "N", "P", "S"), include_characters=" "), min_size=1, max_size=15)
    .map(str.strip)
    .filter(lambda name: name and name.isprintable() and name != "not confirmed"),
    min_size=1,
    max_size=3,
    unique=True,
)


@st.composite
def labelled(draw: st.DrawFn) -> tuple[list[dict[str, Any]], list[str]]:
    """Images of all shapes, with boxes of at least a pixel, or none; what `images_of` takes, and class names."""
    known = draw(classes)
    images = []
    for number, name in enumerate(draw(st.lists(names, min_size=1, max_size=4))):
        width, height = draw(st.integers(2, 12_000)), draw(st.integers(2, 12_000))
        boxes = []
        for _ in range(draw(st.integers(0, 3))):
            x1, y1 = (draw(st.floats(0, side - 1)) for side in (width, height))
            x2, y2 = draw(st.floats(x1 + 1, width)), draw(st.floats(y1 + 1, height))
            boxes.append(((x1, y1, x2, y2), draw(st.sampled_from(known))))
        marks = {"confirmed": draw(st.sampled_from([None, True, False])), "pixels_sha256": f"{number}" * 64}
        file = f"{number}{name.rstrip('.')}_v01.png"
        images.append({"width": width, "height": height, "boxes": boxes, "file": file, **marks})
    return images, known


def images_of(drawn: list[dict[str, Any]]) -> list[LabelledImage]:
    boxes = [tuple(LabelledBox(*box) for box in each["boxes"]) for each in drawn]
    both = zip(drawn, boxes, strict=True)
    return [LabelledImage(f"images/{each['file']}", **each | {"boxes": ones}) for each, ones in both]


@pytest.mark.parametrize("name", FORMATS)
@given(labelled())
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_boxes_classes_images_and_marks_come_back(name: str, drawn: tuple[list[dict[str, Any]], list[str]]) -> None:
    images, known = images_of(drawn[0]), drawn[1]
    with tempfile.TemporaryDirectory() as folder:
        write_labels(name, images, known, Path(folder))
        assert format_of(Path(folder)) == name
        read = get_format(name).read(Path(folder))
    by_stem = {re.sub(r"^images/", "", Path(image.name).with_suffix("").as_posix()): image for image in read.images}
    assert len(read.images) == len(by_stem) == len(images)
    for image in images:
        width, height = image.size()
        back = by_stem[Path(image.file).with_suffix("").as_posix()].in_pixels(width, height)
        assert [each.name for each in back.boxes] == [each.name for each in image.boxes]
        got, meant = (np.array([each.box for each in one.boxes]).reshape(-1, 4) for one in (back, image))
        assert np.abs(got - meant).max(initial=0) <= TOLERANCE[name] + 1e-9
        if name == "coco":
            assert back.confirmed == image.confirmed
        else:  # a mark where something is known
            assert (back.confirmed is False) == (
                image.confirmed is False or (name == "label_studio" and not image.confirmed)
            )
    if name in ("coco", "cvat", "yolo"):
        assert list(read.classes) == known


BOXES: dict[str, Boxes] = {
    "images/a (1), b=2_v01.png": [(CLASSES[0], (3.25, 4.5, 10.125, 6)), (CLASSES[1], (0, 0, 80, 60))],
    "images/deep__c_v02.png": [(CLASSES[1], (50.5, 20.25, 20, 30.75))],
    "images/empty_v01.png": [],
    "images/refused_v01.png": [(CLASSES[0], (1, 2, 3, 4))],
}
MARKS = {"images/refused_v01.png": {"refused": "a new object", "confirmed": False}}


@pytest.mark.parametrize("name", FORMATS)
def test_a_store_goes_out_and_comes_back_with_the_same_labels(name: str, tmp_path: Path) -> None:
    folder = write_store(tmp_path / "copy_paste-1, (a)=b", BOXES, MARKS)
    store, out = read_store(folder), tmp_path / "out, (1)"
    export_store(store, name, out)
    assert {path.name for path in (out / "images").iterdir()} == {Path(file).name for file in BOXES}
    for file in BOXES:
        assert (out / "images" / Path(file).name).read_bytes() == (folder / file).read_bytes()
    content, remarks = read_back(out, store)
    assert not remarks
    before = json.loads((folder / "annotations.json").read_text())
    assert content["categories"] == before["categories"]
    assert [one["bbox"] for one in content["annotations"]] == [one["bbox"] for one in before["annotations"]]
    assert [one["category_id"] for one in content["annotations"]] == [
        one["category_id"] for one in before["annotations"]
    ]
    assert [image["file_name"] for image in content["images"]] == list(BOXES)
    confirmed = {image["file_name"]: image["confirmed"] for image in content["images"]}
    # Label Studio has predictions that nobody has looked at; elsewhere what is not marked was looked at.
    assert confirmed == {file: name != "label_studio" and "refused" not in file for file in BOXES}
    if name != "label_studio":
        assert content["info"]["changes"] == {"kept": 3, "moved": 0, "added": 0, "removed": 0}
    assert content["images"][3]["refused"] == "a new object"
    assert content["images"][0]["source"] == "images/a (1), b=2_v01.png.jpg"


def renamed_by_tools(name: str) -> list[str]:
    base = Path(name).name
    return [
        f"/data/upload/3/a1b2c3d4-{base}",
        f"/data/local-files/?d=somewhere/else/images/{base}",
        f"s3://bucket/images/{base}",
        f"https://example.org/x/{base.replace(' ', '%20')}",
    ]


@pytest.mark.parametrize("way", range(4))
def test_images_are_known_whatever_label_studio_did_to_their_names(way: int, tmp_path: Path) -> None:
    store = read_store(write_store(tmp_path / "store", BOXES, MARKS))
    export_store(store, "label_studio", tmp_path / "out")
    tasks = json.loads((tmp_path / "out" / "tasks.json").read_text())
    for task in tasks:
        task["annotations"] = task.pop("predictions")
        task["data"] = {"image": renamed_by_tools(task["data"]["store_path"])[way]}
    (tmp_path / "export.json").write_text(json.dumps(tasks))
    content, _ = read_back(tmp_path / "export.json", store)
    assert content["info"]["confirmed"] == 4
    assert content["info"]["changes"] == {"kept": 4, "moved": 0, "added": 0, "removed": 0}


@pytest.mark.parametrize("before", ["", "images/", "some/folder/", "C:\\data\\images\\"])
def test_images_are_known_whatever_folder_cvat_puts_before_them(before: str, tmp_path: Path) -> None:
    store = read_store(write_store(tmp_path / "store", BOXES, MARKS))
    export_store(store, "cvat", tmp_path / "out")
    root = ElementTree.parse(tmp_path / "out" / "annotations.xml")
    for image in root.iterfind("image"):
        image.set("name", before + image.attrib["name"])
    root.write(tmp_path / "back.xml", encoding="utf-8")
    content, _ = read_back(tmp_path / "back.xml", store)
    assert content["info"]["changes"]["kept"] == 3
    assert content["info"]["confirmed"] == 3


def test_cvat_file_follows_its_documented_schema(tmp_path: Path) -> None:
    """https://docs.cvat.ai/docs/dataset_management/formats/format-cvat/: elements, attributes and their order."""
    export_store(read_store(write_store(tmp_path / "store", BOXES, MARKS)), "cvat", tmp_path / "out")
    root = ElementTree.parse(tmp_path / "out" / "annotations.xml").getroot()
    assert root.tag == "annotations"
    assert [part.tag for part in root][:2] == ["version", "meta"]
    assert root.findtext("version") == "1.1"
    labels = root.findall("meta/task/labels/label")
    assert [label.findtext("name") for label in labels] == [*CLASSES, "not confirmed"]
    assert [label.findtext("type") for label in labels] == ["rectangle", "rectangle", "tag"]
    assert all(label.find("attributes") is not None for label in labels)
    for number, image in enumerate(root.findall("image")):
        assert list(image.attrib) == ["id", "name", "width", "height"]
        assert image.attrib["id"] == str(number)
        for shape in image:
            keys = ["label", "source", "occluded", "xtl", "ytl", "xbr", "ybr", "z_order"]
            assert list(shape.attrib) == (keys if shape.tag == "box" else ["label", "source"])
    raw = json.loads((tmp_path / "out" / "labels.json").read_text())
    assert [(label["name"], label["type"]) for label in raw] == [
        *((name, "rectangle") for name in CLASSES),
        ("not confirmed", "tag"),
    ]


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
        (tmp_path / name).write_text("images/a.png\n")
    (tmp_path / labels).write_text("0 0.5 0.5 0.1 0.1\n")
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


FILES = {
    "coco": "annotations.json",
    "label_studio": "tasks.json",
    "cvat": "annotations.xml",
    "yolo": "data.yaml",
    "voc": "Annotations/a (1), b=2_v01.xml",
}
PIECES = (
    "null",
    "true",
    "-1",
    "1e999",
    "[]",
    "{}",
    '""',
    "[1]",
    "nan",
    "x",
    "<a/>",
    "&#0;",
    "0.5",
    '"a": 1,',
    "\u0000",
    "9" * 400,
)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("exported")
    store = read_store(write_store(folder / "store", BOXES, MARKS))
    for name in FORMATS:
        export_store(store, name, folder / name)
    return {name: folder / name for name in FORMATS}


@pytest.mark.parametrize("name", FORMATS)
@given(data=st.data())
@settings(max_examples=80, deadline=None)
def test_damaged_files_are_read_or_explained(name: str, exported: dict[str, Path], data: st.DataObject) -> None:
    """Some value is replaced by another, or part of the file is missing: no other error comes of it."""
    file = exported[name] / FILES[name]
    text = file.read_text(encoding="utf-8")
    values = [match.span() for match in re.finditer(r"[\w.&<>-]+|\[\]|\"[^\"]*\"", text)]
    start, end = data.draw(st.sampled_from(values))
    end = data.draw(st.sampled_from((end, min(len(text), end + 40), len(text))))
    try:
        file.write_text(text[:start] + data.draw(st.sampled_from(PIECES)) + text[end:], encoding="utf-8")
        get_format(name).read(exported[name])
    except InputError:
        pass
    finally:
        file.write_text(text, encoding="utf-8")
