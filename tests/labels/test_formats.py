"""Out in each format and in again: the same boxes, classes, images and marks, whatever a tool did to file names."""

from __future__ import annotations

import json
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

from boxtwin.datasets.image_names import without_ending
from boxtwin.errors import InputError
from boxtwin.labels.exchange import export_store, read_back
from boxtwin.labels.formats import FORMATS, LabelledBox, LabelledImage, format_of, get_format, write_labels
from boxtwin.labels.formats.labelled_image import class_name
from boxtwin.labels.store_images import read_store

TOLERANCE = {"coco": 0.01, "label_studio": 0.01, "cvat": 0.01, "yolo": 0.01, "voc": 0.5}
names = st.text(st.characters(categories=("L", "N"), include_characters="-_ ,=()+%&#'.@"), min_size=1, max_size=12)
# As data sets have them; names of classes are stripped when they are read.
classes = st.lists(
    st.text(st.characters(categories=("L", "N", "P", "S"), include_characters=" "), min_size=1, max_size=15)
    .map(class_name)
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
    by_stem = {re.sub(r"^images/", "", without_ending(image.name)): image for image in read.images}
    assert len(read.images) == len(by_stem) == len(images)
    for image in images:
        width, height = image.size()
        back = by_stem[without_ending(image.file)].in_pixels(width, height)
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
