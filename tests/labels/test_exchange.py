"""Stores out and back: what a person changed, and images that browsers do not show."""

from __future__ import annotations

import json
import multiprocessing
import re
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from labelled_stores import CLASSES, FOUR, Boxes, pixels_of, write_store
from PIL import Image

from boxtwin.datasets.image_io import pixels_sha256, read_image
from boxtwin.errors import InputError
from boxtwin.labels.changes import changes, tally
from boxtwin.labels.convert import convert
from boxtwin.labels.exchange import export_store, new_version, read_back, summary
from boxtwin.labels.formats import FORMATS, LabelledBox
from boxtwin.labels.store_images import read_store

corners = st.tuples(*[st.integers(0, 30)] * 2, *[st.integers(1, 15)] * 2)
boxes = st.lists(st.tuples(corners, st.sampled_from("ab")), max_size=5)


def labelled(drawn: list[Any]) -> list[LabelledBox]:
    return [LabelledBox((float(x), float(y), float(x + w), float(y + h)), name) for (x, y, w, h), name in drawn]


@given(boxes, boxes)
@settings(max_examples=60, deadline=None)
def test_every_box_is_counted_once_as_kept_moved_added_or_removed(old: list[Any], new: list[Any]) -> None:
    before, after = labelled(old), labelled(new)
    found = changes(before, after, 0.01, (80, 80))
    counts = tally(found)
    assert counts["kept"] + counts["moved"] + counts["added"] == len(after)
    assert counts["kept"] + counts["moved"] + counts["removed"] == len(before)
    assert [change.box for change in found if change.box is not None] == after
    assert all(change.box is None or change.before is None or change.box.name == change.before.name for change in found)
    same = changes(before, before[::-1], 0.01, (80, 80))
    assert tally(same) == {"kept": len(before), "moved": 0, "added": 0, "removed": 0}


def test_a_box_that_a_tool_has_rounded_is_the_one_that_was_there() -> None:
    before = labelled([((3, 4, 10, 10), "a"), ((4, 4, 10, 10), "a")])
    rounded = [box._replace(box=(box.box[0] + 0.004, *box.box[1:])) for box in before]
    assert [change.box for change in changes(before, rounded, 0.01, (80, 80))] == before
    assert tally(changes(before, rounded, 0.001, (80, 80)))["moved"] == 2
    other = [before[0]._replace(name="b")]
    assert tally(changes(before[:1], other, 0.01, (80, 80))) == {"kept": 0, "moved": 0, "added": 1, "removed": 1}


def test_boxes_narrower_than_a_pixel_are_kept_by_pascal_voc(tmp_path: Path) -> None:
    sides = [(20.5, 0.4), (20.9, 0.3), (20.5, 0.9), (0.0, 0.2), (79.7, 0.3), (20.2, 1.2)]
    named = {
        f"images/{number}.png": [(CLASSES[0], (start, 20.5, length, 0.4))]
        for number, (start, length) in enumerate(sides)
    }
    pixels = {name: pixels_of(number) for number, name in enumerate(named, start=60)}
    store = read_store(write_store(tmp_path / "store", named, images=pixels))
    export_store(store, "voc", tmp_path / "out")
    content, _ = read_back(tmp_path / "out", store)
    assert content["info"]["changes"] == {"kept": len(sides), "moved": 0, "added": 0, "removed": 0}


def test_without_marks_all_that_came_back_is_confirmed_but_what_was_refused(tmp_path: Path) -> None:
    """Tools lose the marks; images that were only pre-labelled have been looked at by then, bad ones stay bad."""
    refused: dict[str, Any] = {"confirmed": False, "refused": "blurred"}
    marks: dict[str, dict[str, Any]] = {"images/a_v01.png": refused, "images/b_v01.png": {"confirmed": False}}
    store = read_store(write_store(tmp_path / "store", FOUR, marks))
    for name in ("coco", "yolo", "voc"):
        out = tmp_path / name
        export_store(store, name, out)
        if name == "coco":
            content = coco_of(out)
            kept = ("id", "file_name", "width", "height")
            content["images"] = [{key: image[key] for key in kept} for image in content["images"]]
            (out / "annotations.json").write_text(json.dumps(content))
        else:
            assert (out / "not_confirmed.txt").read_text() == "a_v01.png\nb_v01.png\n"
            (out / "not_confirmed.txt").unlink()
        images = read_back(out, store)[0]["images"]
        assert [image["confirmed"] for image in images] == [False, True, True, True]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("marks", [{"variation": 1}, {"path": "images/a_v01.png", "confirmed": False}])
def test_labels_that_nobody_has_seen_come_back_as_not_confirmed(
    name: str, marks: dict[str, Any], tmp_path: Path
) -> None:
    """Of variations as stores write them, and of images as count.py does; the export is not touched."""
    store = read_store(write_store(tmp_path / "store", FOUR, dict.fromkeys(FOUR, marks)))
    export_store(store, name, tmp_path / "out")
    content, remarks = read_back(tmp_path / "out", store)
    assert not remarks
    assert summary(content).startswith("0 of 4 images confirmed")
    file, _ = new_version(content, tmp_path)
    with pytest.raises(InputError, match="no image is confirmed"):
        convert([file], tmp_path / "set")
    unconfirmed = file
    content["images"][2]["confirmed"] = True
    file, _ = new_version(content, tmp_path)
    if "variation" in marks:
        # In a data set, a split could put them on another side than their sources
        with pytest.raises(InputError, match=r"1 images are variations.* labels=manual"):
            convert([file], tmp_path / "set")
        assert not (tmp_path / "set").exists()
        return
    assert "1 images, 1 boxes" in convert([file], tmp_path / "set")[0]
    with pytest.raises(InputError, match=f"read={re.escape(str(unconfirmed))}: no image is confirmed"):
        convert([tmp_path / "set", unconfirmed], tmp_path / "both")  # it would be the first set alone
    assert not (tmp_path / "both").exists()


@pytest.mark.parametrize("name", FORMATS)
def test_crowds_and_areas_of_masks_are_kept(name: str, tmp_path: Path) -> None:
    folder = write_store(tmp_path / "store", FOUR)
    content = coco_of(folder)
    crowd, masked, *_ = content["annotations"]
    crowd |= {"iscrowd": 1, "area": 30}
    masked["area"] = 41.5
    (folder / "annotations.json").write_text(json.dumps(content))
    store = read_store(folder)
    export_store(store, name, tmp_path / "out")
    back, _ = read_back(tmp_path / "out", store)
    expected = [(1, 30), (0, 41.5), (0, 72), (0, 72)]
    assert [(one["iscrowd"], one["area"]) for one in back["annotations"]] == expected
    convert([folder], tmp_path / "set")
    assert [(one["iscrowd"], one["area"]) for one in coco_of(tmp_path / "set")["annotations"]] == expected


def test_boxes_become_crowds_and_moved_ones_get_the_area_of_their_box(tmp_path: Path) -> None:
    store = read_store(write_store(tmp_path / "store", FOUR))
    export_store(store, "coco", tmp_path / "out")
    content = coco_of(tmp_path / "out")
    for one in content["annotations"]:
        one |= {"iscrowd": 1, "area": 60}
    content["annotations"][1]["bbox"] = [10, 20, 10, 9]
    (tmp_path / "out" / "annotations.json").write_text(json.dumps(content))
    back, _ = read_back(tmp_path / "out", store)
    found = [(one["change"], one["area"], one["iscrowd"]) for one in back["annotations"][:2]]
    assert found == [("kept", 72, 1), ("moved", 90, 1)]


def test_images_go_out_as_they_were_counted(tmp_path: Path) -> None:
    """With the orientation, page and channels that the detector's images were read with."""
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a right angle
    Image.fromarray(pixels_of(9)).save(tmp_path / "turned.png", exif=exif)
    channels = np.stack([pixels_of(number) for number in range(4, 9)], axis=-1)
    upright = tmp_path / "in a folder" / "upright.jpg"
    upright.parent.mkdir()
    Image.fromarray(pixels_of(3)).save(upright)
    with tifffile.TiffWriter(tmp_path / "five.tif") as pages:
        for page in (channels[::-1], channels):
            pages.write(page, photometric="minisblack", planarconfig="contig")
    read_so: list[dict[str, Any]] = [{"file_name": "turned.png", "orientation": "ignore"}]
    read_so += [{"file_name": "five.tif", "page": 1, "channels": [3], "orientation": "apply"}]
    read_so += [{"file_name": "in a folder/upright.jpg", "orientation": "ignore"}]
    entries = [{"width": 80, "height": 60, **entry, "id": number} for number, entry in enumerate(read_so, start=1)]
    one = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [60, 4, 10, 12], "score": 0.5}
    detections = {"images": entries, "annotations": [one], "categories": [{"id": 1, "name": "cell"}]}
    (tmp_path / "detections.json").write_text(json.dumps(detections))
    store = read_store(tmp_path)
    export_store(store, "yolo", tmp_path / "out")
    np.testing.assert_array_equal(read_image(tmp_path / "out" / "images" / "turned.png"), pixels_of(9))
    np.testing.assert_array_equal(read_image(tmp_path / "out" / "images" / "five.png"), channels[:, :, 3])
    content, _ = read_back(tmp_path / "out", store)
    assert [image["orientation"] for image in content["images"]] == ["ignore", "apply", "ignore"]
    (tmp_path / "labels.json").write_text(json.dumps(content))
    convert([tmp_path / "labels.json"], tmp_path / "set")
    assert (tmp_path / "set" / "images" / "in a folder" / "upright.jpg").read_bytes() == upright.read_bytes()
    np.testing.assert_array_equal(read_image(tmp_path / "set" / "images" / "turned.png"), pixels_of(9))
    detections["images"][1]["orientation"] = "upright"
    (tmp_path / "detections.json").write_text(json.dumps(detections))
    with pytest.raises(InputError, match=r"five\.tif: page, channels or orientation .* 'upright'"):
        read_store(tmp_path)


def test_labels_of_an_image_in_another_folder_are_not_taken(tmp_path: Path) -> None:
    store = read_store(write_store(tmp_path / "store", {"a/1.png": [], "b/2.png": []}))
    content = {"annotations": [], "categories": [{"id": 1, "name": CLASSES[0]}]}
    images = [{"id": n, "file_name": name} for n, name in enumerate(("set/a/1.png", "2.png", "c/1.png"), start=1)]
    (tmp_path / "back.json").write_text(json.dumps({"images": images, **content}))
    back, remarks = read_back(tmp_path / "back.json", store)
    assert back["info"]["confirmed"] == 2
    assert remarks == ["1 images are none of the store's and are left out: c/1.png"]


def coco_of(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / "annotations.json").read_text())
    return content


def test_what_a_person_changed_is_recorded_and_makes_a_version(tmp_path: Path) -> None:
    store = read_store(write_store(tmp_path / "store", FOUR, {"images/d_v01.png": {"confirmed": False}}))
    export_store(store, "coco", tmp_path / "out")
    changed = coco_of(tmp_path / "out")
    kept, moved, removed, _ = changed["annotations"]
    moved["bbox"] = [12, 20, 8, 9]
    changed["annotations"] = [kept, moved, {**removed, "bbox": [40, 40, 60, 50], "category_id": 2}]
    changed["images"] = changed["images"][:3]
    changed["images"][1]["minutes"] = 2
    (tmp_path / "back.json").write_text(json.dumps(changed))
    content, remarks = read_back(tmp_path / "back.json", store)
    assert not remarks
    assert summary(content) == "3 of 4 images confirmed; boxes 1 kept, 1 moved, 1 added, 1 removed; 2.0 minutes of work"
    assert [image["confirmed"] for image in content["images"]] == [True, True, True, False]
    assert content["images"][2]["removed"] == [{"bbox": [10, 20, 8, 9], "category_id": 3}]
    assert [(one["bbox"], one.get("change"), one.get("before")) for one in content["annotations"]] == [
        ([10, 20, 8, 9], "kept", None),
        ([12, 20, 8, 9], "moved", [10, 20, 8, 9]),
        ([40, 40, 40, 20], "added", None),  # cut off at the border of the image
        ([10, 20, 8, 9], None, None),  # of the image that did not come back
    ]
    assert new_version(content, tmp_path) == (tmp_path / "labels-1.json", True)
    assert new_version(content, tmp_path) == (tmp_path / "labels-1.json", False)
    content["info"]["minutes"] = 3
    assert new_version(content, tmp_path) == (tmp_path / "labels-2.json", True)
    # A version goes out again, and is what the next one is compared with.
    again = read_store(tmp_path / "labels-2.json")
    export_store(again, "yolo", tmp_path / "again")
    content, _ = read_back(tmp_path / "again", again)
    assert content["info"]["changes"] == {"kept": 3, "moved": 0, "added": 0, "removed": 0}


@pytest.mark.parametrize("name", FORMATS)
def test_what_browsers_do_not_show_goes_out_as_8_bit_png(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "counted"
    folder.mkdir()
    deep = pixels_of(1).astype(np.uint16) * 13 + 1000
    deep[0, 0] = 65535  # a hot pixel
    cv2.imwrite(str(folder / "deep.png"), deep)
    pages = np.stack([pixels_of(2), pixels_of(3)]).astype(np.uint16) * 3
    tifffile.imwrite(folder / "scan (1).tif", pages)
    channels = np.stack([pixels_of(number) for number in range(4, 9)], axis=-1)
    tifffile.imwrite(folder / "five.tif", channels, photometric="minisblack", planarconfig="contig")
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a right angle
    Image.fromarray(pixels_of(9)).save(folder / "turned.jpg", exif=exif)
    extra: list[dict[str, Any]] = [{"file_name": "scan (1).tif", "page": 1}, {"file_name": "five.tif", "channels": [2]}]
    files: list[dict[str, Any]] = [{"file_name": "deep.png"}, *extra]
    files.append({"file_name": "turned.jpg", "width": 60, "height": 80})
    entries = [{"width": 80, "height": 60, **entry, "id": number} for number, entry in enumerate(files, start=1)]
    ones = [{"id": n, "image_id": n, "category_id": 1, "bbox": [3.5, 4.25, 10, 12], "score": 0.5} for n in range(1, 5)]
    detections = {"images": entries, "annotations": ones, "categories": [{"id": 1, "name": "cell"}]}
    (folder / "detections.json").write_text(json.dumps(detections))
    store = read_store(folder)
    export_store(store, name, tmp_path / "out")
    shown = {path.name: read_image(path) for path in (tmp_path / "out" / "images").iterdir()}
    assert {path: (pixels.shape, str(pixels.dtype)) for path, pixels in shown.items()} == {
        "deep.png": ((60, 80), "uint8"),
        "scan (1).png": ((60, 80), "uint8"),
        "five.png": ((60, 80), "uint8"),
        "turned.png": ((80, 60), "uint8"),
    }
    record = {image["name"]: image for image in json.loads((tmp_path / "out" / "exported.json").read_text())["images"]}
    black, white = record["deep.png"]["black"], record["deep.png"]["white"]
    expected = np.rint(255 * ((deep.astype(float) - black) / (white - black)).clip(0, 1))
    np.testing.assert_allclose(shown["deep.png"], expected, atol=1)
    assert black == 1000
    assert white < 1000 + 13 * 256
    np.testing.assert_array_equal(shown["five.png"], channels[:, :, 2])
    assert np.corrcoef(shown["scan (1).png"].ravel(), pages[1].ravel())[0, 1] > 0.99
    assert record["deep.png"]["pixels_sha256"] == pixels_sha256(deep)
    content, remarks = read_back(tmp_path / "out", store)
    assert not remarks
    assert [image["file_name"] for image in content["images"]] == [entry["file_name"] for entry in entries]
    assert {tuple(one["bbox"]) for one in content["annotations"]} == {(3.5, 4.25, 10, 12)}
    assert content["images"][1]["page"] == 1


def test_images_in_folders_and_elsewhere_get_names_of_their_own(tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", {})
    names = ["x/1.png", "y/1.png", "y/1.jpg", str(tmp_path / "elsewhere" / "1.png")]
    for number, name in enumerate(names, start=1):
        path = store / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), pixels_of(number))
    entries = [{"id": n, "file_name": name, "width": 80, "height": 60} for n, name in enumerate(names, start=1)]
    content = {"images": entries, "annotations": [], "categories": [{"id": 1, "name": "cell"}]}
    (store / "annotations.json").write_text(json.dumps(content))
    images = read_store(store).images
    assert len({Path(image.labels.file).stem for image in images}) == 4
    assert [image.labels.file for image in images][:3] == ["x__1.png", "y__1.png", "y__1_2.jpg"]
    for name in FORMATS:
        export_store(read_store(store), name, tmp_path / name)
        back, _ = read_back(tmp_path / name, read_store(store))
        assert len(back["images"]) == 4
        confirmed = [image["file_name"] for image in back["images"] if image["confirmed"]]
        assert confirmed == ([] if name == "label_studio" else names), name


@pytest.mark.parametrize("name", FORMATS)
def test_real_chips_go_out_and_come_back(name: str, hrsid200: Path, tmp_path: Path) -> None:
    content = json.loads((hrsid200 / "annotations" / "train_test2017.json").read_text())
    content["images"] = content["images"][:12]
    known = {image["id"] for image in content["images"]}
    content["annotations"] = [one for one in content["annotations"] if one["image_id"] in known]
    for image in content["images"]:
        image["path"] = str(hrsid200 / "JPEGImages" / image["file_name"])
    (tmp_path / "chips.json").write_text(json.dumps(content))
    store = read_store(tmp_path / "chips.json")
    export_store(store, name, tmp_path / "out")
    back, remarks = read_back(tmp_path / "out", store)
    assert not remarks
    assert [one["bbox"] for one in back["annotations"]] == [
        pytest.approx(one["bbox"])
        for image in content["images"]
        for one in content["annotations"]
        if one["image_id"] == image["id"]
    ]
    if name != "label_studio":  # whose predictions nobody has looked at
        assert back["info"]["changes"]["kept"] == len(content["annotations"]) > 20


@pytest.mark.parametrize("name", FORMATS)
def test_boxes_that_overhang_the_border_are_kept(name: str, tmp_path: Path) -> None:
    boxes: dict[str, Boxes] = {"images/a.png": [(CLASSES[0], (-2, 10, 8, 9)), (CLASSES[1], (70, 50, 20, 30))]}
    store = read_store(write_store(tmp_path / "store", boxes))
    export_store(store, name, tmp_path / "out")
    content, _ = read_back(tmp_path / "out", store)
    assert content["images"][0]["changes"] == {"kept": 2, "moved": 0, "added": 0, "removed": 0}
    assert [annotation["bbox"] for annotation in content["annotations"]] == [[-2, 10, 8, 9], [70, 50, 20, 30]]


def test_confirmations_that_a_version_takes_back_are_told(tmp_path: Path) -> None:
    store = read_store(write_store(tmp_path / "store", FOUR))
    for name in ("a", "b"):  # two people share the images
        export_store(store, "voc", tmp_path / name)
        for file in (tmp_path / name / "Annotations").iterdir():
            if not file.name.startswith(name):
                file.unlink()
        shutil.rmtree(tmp_path / name / "images")
    first, _ = new_version(read_back(tmp_path / "a", store)[0], tmp_path / "store")
    content, remarks = read_back(tmp_path / "b", read_store(first))
    assert [image["confirmed"] for image in content["images"]] == [False, True, False, False]
    assert remarks == [
        "1 images that labels-1.json confirms did not come back and are not confirmed in the new version: "
        "images/a_v01.png"
    ]


def _write_version(start: Any, number: int, folder: Path) -> None:
    start.wait(60)
    new_version({"number": number}, folder)


def test_versions_that_are_written_at_once_have_files_of_their_own(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(4)
    processes = [
        context.Process(target=_write_version, args=(start, number, tmp_path), daemon=True) for number in range(4)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert {json.loads(file.read_text())["number"] for file in tmp_path.glob("labels-*.json")} == set(range(4))


def test_what_is_left_out_in_reading_a_coco_file_is_told(tmp_path: Path) -> None:
    folder = write_store(tmp_path / "store", FOUR)
    content = json.loads((folder / "annotations.json").read_text())
    content["annotations"][0]["attributes"] = {"rotation": 90.0}
    (folder / "annotations.json").write_text(json.dumps(content))
    (remark,) = read_store(folder).remarks
    assert "turned" in remark
    assert convert([folder], tmp_path / "set")[1] == [remark]


@pytest.mark.parametrize("name", ["coco", "yolo", "voc"])
def test_exported_variations_join_no_data_set(name: str, tmp_path: Path) -> None:
    """Whatever the format keeps of what they are."""
    store = read_store(write_store(tmp_path / "store", FOUR, {key: {"variation": 1} for key in FOUR}))
    export_store(store, name, tmp_path / "out")
    if name == "coco":
        file = tmp_path / "out" / "annotations.json"
        file.write_text(file.read_text().replace('"confirmed": false', '"confirmed": true'))
    else:
        (tmp_path / "out" / "not_confirmed.txt").unlink()
    with pytest.raises(InputError, match="4 images are variations"):
        convert([tmp_path / "out"], tmp_path / "set")


@pytest.mark.parametrize("content", [[], {}, {"images": 3}, {"images": [{"file_name": "a.png"}]}, {"images": ["a"]}])
def test_a_record_of_another_origin_is_refused(content: Any, tmp_path: Path) -> None:
    store = read_store(write_store(tmp_path / "store", FOUR))
    export_store(store, "coco", tmp_path / "out")
    (tmp_path / "out" / "exported.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"exported\.json is not the record"):
        read_back(tmp_path / "out", store)
    with pytest.raises(InputError, match=r"exported\.json is not the record"):
        convert([tmp_path / "out"], tmp_path / "set")
