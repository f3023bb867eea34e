"""Labels in formats of annotation tools become data sets, or join one."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from labelled_stores import CLASSES, FOUR, boxes_in, pixels_of, write_store
from PIL import Image

from boxtwin.datasets.image_io import read_image
from boxtwin.datasets.reading import ORIENTATION_TAG
from boxtwin.errors import InputError
from boxtwin.labels.convert import convert
from boxtwin.labels.exchange import export_store, new_version, read_back
from boxtwin.labels.store_images import read_store


@pytest.mark.parametrize("name", ["yolo", "voc", "cvat", "coco"])
def test_data_sets_of_other_formats_become_coco(name: str, tmp_path: Path) -> None:
    named = {**FOUR, "images/empty_v01.png": []}
    export_store(read_store(write_store(tmp_path / "store", named)), name, tmp_path / "set")
    described, remarks = convert([tmp_path / "set"], tmp_path / "converted")
    assert not remarks
    assert "5 images, 4 boxes" in described
    content = json.loads((tmp_path / "converted" / "annotations.json").read_text())
    found = {Path(file).name: ones for file, ones in boxes_in(content).items()}
    for file, ones in named.items():
        assert [label for label, _ in found[Path(file).name]] == [label for label, _ in ones]
        np.testing.assert_allclose([box for _, box in found[Path(file).name]], [box for _, box in ones], atol=0.01)
    for image in content["images"]:
        assert (tmp_path / "converted" / "images" / image["file_name"]).is_file()
    names = [category["name"] for category in content["categories"]]
    assert names == [CLASSES[0]] if name == "voc" else names == list(CLASSES)  # VOC lists no classes
    with pytest.raises(InputError, match="converted exists"):
        convert([tmp_path / "set"], tmp_path / "converted")


def test_corrected_images_join_a_data_set(tmp_path: Path) -> None:
    """A data set, and labels of new images, of which some have the names of its images, or are the same."""
    first = write_store(tmp_path / "first", FOUR)
    new = {"images/a_v01.png": [(CLASSES[0], (1, 2, 3, 4))], "images/e.png": [], "images/f.png": []}
    pixels = {"images/a_v01.png": pixels_of(70), "images/e.png": pixels_of(71), "images/f.png": pixels_of(72)}
    new["images/d_v01.png"] = [(CLASSES[1], (5, 6, 7, 8))]
    pixels["images/d_v01.png"] = pixels_of(4)  # as in the first
    marks = {"images/f.png": {"confirmed": False}}
    store = read_store(write_store(tmp_path / "new", new, marks, classes=CLASSES[::-1], images=pixels))
    export_store(store, "cvat", tmp_path / "out")
    file, _ = new_version(read_back(tmp_path / "out", store)[0], tmp_path)
    split = tmp_path / "split.json"
    names = [f"images/{name}_v01.png" for name in "abcd"]
    split.write_text(json.dumps({"s1": {"train": names[:2], "val": names[2:3], "test": names[3:]}}))
    described, remarks = convert([first, file], tmp_path / "both", split)
    sides = json.loads((tmp_path / "both" / "split.json").read_text())["s1"]
    assert (sides["val"], sides["test"]) == (names[2:3], names[3:])
    assert sides["train"] == [*names[:2], "images/e.png", "labels-1/images/a_v01.png"]
    split.write_text(json.dumps({"s1": {"train": ["x.png"], "val": [], "test": []}}))
    with pytest.raises(InputError, match=r"1 of its images are not in the first data set: x\.png"):
        convert([first, file], tmp_path / "lost", split)
    assert not (tmp_path / "lost").exists()
    assert remarks == ["1 images are not confirmed and are left out"]
    assert described == f"6 images, 5 boxes, classes: {', '.join(CLASSES)}"
    content = json.loads((tmp_path / "both" / "annotations.json").read_text())
    assert boxes_in(content) == {
        **{f"images/{name}_v01.png": [(CLASSES[0], [10, 20, 8, 9])] for name in "abc"},
        "images/d_v01.png": [(CLASSES[1], [5, 6, 7, 8])],
        "images/e.png": [],
        "labels-1/images/a_v01.png": [(CLASSES[0], [1, 2, 3, 4])],
    }
    for name, number in (("images/a_v01.png", 1), ("labels-1/images/a_v01.png", 70), ("images/e.png", 71)):
        np.testing.assert_array_equal(read_image(tmp_path / "both" / "images" / name), pixels_of(number))


def test_our_exports_are_of_the_images_that_they_were_made_of(tmp_path: Path) -> None:
    """Label Studio gives back annotated tasks alone, by the names in the store: sub/1.png went out as sub__1.png."""
    named = {"1.png": [], "sub/1.png": [(CLASSES[0], (3, 4, 10, 12))]}
    pixels = {name: pixels_of(number) for number, name in enumerate(named, start=60)}
    export_store(read_store(write_store(tmp_path / "store", named, images=pixels)), "label_studio", tmp_path / "out")
    tasks = json.loads((tmp_path / "out" / "tasks.json").read_text())
    (task,) = (each for each in tasks if each["data"]["store_path"] == "sub/1.png")
    task["annotations"] = [{"result": task["predictions"][0]["result"]}]
    (tmp_path / "out" / "project-1.json").write_text(json.dumps([task]))
    convert([tmp_path / "out" / "project-1.json"], tmp_path / "converted")
    (image,) = json.loads((tmp_path / "converted" / "annotations.json").read_text())["images"]
    converted = read_image(tmp_path / "converted" / "images" / image["file_name"])
    np.testing.assert_array_equal(converted, pixels["sub/1.png"])


@pytest.mark.parametrize("name", ["yolo", "voc", "coco"])
def test_linked_folders_are_read_as_others(name: str, tmp_path: Path) -> None:
    named = {f"{number}.png": [(CLASSES[0], (3, 4, 10, 12))] for number in range(3)}
    pixels = {file: pixels_of(number) for number, file in enumerate(named, start=60)}
    export_store(read_store(write_store(tmp_path / "store", named, images=pixels)), name, tmp_path / "out")
    for folder in ("images", "labels", "Annotations"):
        if (tmp_path / "out" / folder).is_dir():
            (tmp_path / "out" / folder).rename(tmp_path / f"elsewhere_{folder}")
            (tmp_path / "out" / folder).symlink_to(tmp_path / f"elsewhere_{folder}")
    if name == "coco":  # found whatever its capitals
        file = tmp_path / "out" / "annotations.json"
        file.write_text(file.read_text().replace(".png", ".PNG"))
    described, remarks = convert([tmp_path / "out"], tmp_path / "converted")
    assert described.startswith("3 images, 3 boxes")
    assert remarks == []


def test_names_of_classes_are_equal_however_their_letters_are_composed(tmp_path: Path) -> None:
    for folder, name, number in (("one", "caf\u00e9", 60), ("two", "cafe\u0301", 61)):
        named = {f"images/{folder}.png": [(name, (1, 2, 3, 4))]}
        images = {f"images/{folder}.png": pixels_of(number)}
        write_store(tmp_path / folder, named, classes=(name,), images=images)
    described, _ = convert([tmp_path / "one", tmp_path / "two"], tmp_path / "both")
    assert described == "2 images, 2 boxes, classes: caf\u00e9"


@pytest.mark.parametrize("names", [["a.png", "a.bmp"], []])
def test_labels_that_fit_several_images_or_none_are_told_apart(names: list[str], tmp_path: Path) -> None:
    for name in ["b.png", *names]:
        (tmp_path / "set" / "images").mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(tmp_path / "set" / "images" / name), pixels_of(60))
    (tmp_path / "set" / "labels").mkdir()
    for name in "ab":
        (tmp_path / "set" / "labels" / f"{name}.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    (tmp_path / "set" / "classes.txt").write_text("ship\n")
    said = (
        r"1 labels fit several image files: a \(.*a\.bmp, .*a\.png\)"
        if names
        else r"no image file below .*: a; restore"
    )
    with pytest.raises(InputError, match=said):
        convert([tmp_path / "set"], tmp_path / "converted")


@pytest.mark.parametrize("orientation", ["ignore", None])
def test_labels_of_an_image_as_it_is_stored_are_read_where_they_say_so(orientation: str | None, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = 6
    Image.fromarray(pixels_of(60)).save(tmp_path / "images" / "a.jpg", exif=exif)
    entry = {"id": 1, "file_name": "a.jpg", "width": 80, "height": 60, "confirmed": True}
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]}
    content = {"images": [entry], "annotations": [box], "categories": [{"id": 1, "name": "ship"}]}
    (tmp_path / "new.json").write_text(json.dumps(content))
    with pytest.raises(
        InputError, match=r'a\.jpg is said to have 80 x 60 pixels, .* has 60 x 80; .*"orientation": "ignore"'
    ):
        convert([tmp_path / "new.json"], tmp_path / "converted")
    if orientation:
        entry["orientation"] = orientation
        (tmp_path / "new.json").write_text(json.dumps(content))
        assert convert([tmp_path / "new.json"], tmp_path / "converted")[0].startswith("1 images, 1 boxes")


def test_labels_without_images_are_named(tmp_path: Path) -> None:
    export_store(read_store(write_store(tmp_path / "store", FOUR)), "voc", tmp_path / "set")
    (tmp_path / "set" / "images" / "b_v01.png").unlink()
    with pytest.raises(InputError, match=r"1 labelled images have no image file below .*: b_v01\.png"):
        convert([tmp_path / "set"], tmp_path / "converted")
    assert not (tmp_path / "converted").exists()


def test_a_class_that_the_data_set_lacks_is_refused_or_allowed_by_name(tmp_path: Path) -> None:
    first = write_store(tmp_path / "first", {"images/a.png": [("ship", (1, 2, 3, 4))]}, classes=("ship", "buoy"))
    new = {"images/b.png": [("ships", (1, 2, 3, 4)), ("ship", (5, 6, 7, 8))], "images/c.png": [("crane", (5, 6, 7, 8))]}
    marks = {"images/c.png": {"confirmed": False}}
    pixels = {name: pixels_of(number) for number, name in enumerate(new, start=70)}
    classes = ("ships", "ship", "crane")
    second = write_store(tmp_path / "second", new, marks, classes=classes, images=pixels)
    said = (
        r"second: ships \(1 object, the first in [^;]*; did you mean ship\?\): no class of .*first, "
        r"which has ship, buoy\. .*new_classes"
    )
    with pytest.raises(InputError, match=said):
        convert([first, second], tmp_path / "both")
    assert not (tmp_path / "both").exists()
    described, _ = convert([first, second], tmp_path / "both", new_classes=True)
    assert described == "2 images, 3 boxes, classes: ship, buoy, ships, crane"
    # A class without objects becomes none.
    third = write_store(
        tmp_path / "third", {"images/d.png": []}, classes=("ships",), images={"images/d.png": pixels_of(9)}
    )
    described, _ = convert([first, third], tmp_path / "more")
    assert described == "2 images, 1 boxes, classes: ship, buoy"
