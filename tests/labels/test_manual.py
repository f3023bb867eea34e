import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boxtwin.datasets.images import pixels_sha256
from boxtwin.errors import InputError
from boxtwin.labels.manual import Manual

PIXELS = np.arange(60 * 80, dtype=np.uint16).reshape(60, 80)
NO_BOXES, NO_LABELS = np.zeros((0, 4), dtype=np.float32), np.zeros(0, dtype=np.int64)


def content() -> dict[str, Any]:
    return {
        "images": [
            {"id": 1, "file_name": "images/a/v01.png", "width": 80, "height": 60, "confirmed": True},
            {"id": 2, "file_name": "images/a/v02.png", "width": 80, "height": 60},
            {"id": 3, "file_name": "images/b/v01.png", "width": 80, "height": 60, "confirmed": True},
        ],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 13, "bbox": [10, 20, 5, 6], "area": 30, "iscrowd": 0},
            {"id": 2, "image_id": 2, "category_id": 3, "bbox": [1, 1, 2, 2], "area": 4, "iscrowd": 0},
        ],
        "categories": [{"id": 3, "name": "ship"}, {"id": 13, "name": "buoy"}],
    }


def manual(tmp_path: Path, changed: dict[str, Any]) -> Manual:
    (tmp_path / "confirmed.json").write_text(json.dumps(changed))
    return Manual(file=tmp_path / "confirmed.json", category_ids=(3, 13))


def test_confirmed_images_get_their_boxes_and_the_others_are_refused(tmp_path: Path) -> None:
    judge = manual(tmp_path, content())
    judged = judge(PIXELS, PIXELS, NO_BOXES, NO_LABELS, "images/a/v01.png")
    assert judged.refused is None
    assert [(box.box, box.label, box.decision) for box in judged.boxes] == [((10, 20, 15, 26), 1, "kept")]
    for image in ("images/a/v02.png", "images/c/v01.png"):
        assert judge(PIXELS, PIXELS, NO_BOXES, NO_LABELS, image).refused == "not confirmed by a person"
    empty = judge(PIXELS, PIXELS, NO_BOXES, NO_LABELS, "images/b/v01.png")
    assert (empty.boxes, empty.refused) == ((), None)


def test_files_of_annotation_tools_know_no_marks(tmp_path: Path) -> None:
    changed = content()
    for image in changed["images"]:
        image.pop("confirmed", None)
    (tmp_path / "exported.json").write_text(json.dumps(changed))
    unmarked = Manual(file=tmp_path / "exported.json", category_ids=(3, 13))
    judge = Manual(file=tmp_path / "exported.json", category_ids=(3, 13), every_image=True)
    for image in changed["images"]:
        name = image["file_name"]
        assert unmarked(PIXELS, PIXELS, NO_BOXES, NO_LABELS, name).refused == "not confirmed by a person"
        assert judge(PIXELS, PIXELS, NO_BOXES, NO_LABELS, name).refused is None
    assert judge(PIXELS, PIXELS, NO_BOXES, NO_LABELS, "images/c/v01.png").refused == "not confirmed by a person"
    # What is marked as not confirmed is not, whatever the rest is.
    changed["images"][0]["confirmed"] = False
    (tmp_path / "exported.json").write_text(json.dumps(changed))
    judge = Manual(file=tmp_path / "exported.json", category_ids=(3, 13), every_image=True)
    assert judge(PIXELS, PIXELS, NO_BOXES, NO_LABELS, "images/a/v01.png").refused == "not confirmed by a person"


def test_an_image_may_say_how_long_its_labels_took(tmp_path: Path) -> None:
    changed = content()
    changed["images"][0]["minutes"] = 1.5
    judge = manual(tmp_path, changed)
    assert judge(PIXELS, PIXELS, NO_BOXES, NO_LABELS, "images/a/v01.png").minutes == 1.5
    assert judge(PIXELS, PIXELS, NO_BOXES, NO_LABELS, "images/b/v01.png").minutes is None
    for bad in (-1, "long", float("nan")):
        changed["images"][0]["minutes"] = bad
        with pytest.raises(InputError, match=r"labels.file"):
            manual(tmp_path, changed)


def test_labels_of_other_pixels_do_not_count(tmp_path: Path) -> None:
    changed = content()
    changed["images"][0]["pixels_sha256"] = pixels_sha256(PIXELS)
    judge = manual(tmp_path, changed)
    assert judge(PIXELS, PIXELS, NO_BOXES, NO_LABELS, "images/a/v01.png").refused is None
    refused = judge(PIXELS, PIXELS + 1, NO_BOXES, NO_LABELS, "images/a/v01.png").refused
    assert refused is not None
    assert "not the pixels" in refused


def test_a_changed_file_has_another_hash(tmp_path: Path) -> None:
    changed = content()
    first = manual(tmp_path, changed).sha256
    changed["annotations"][0]["bbox"][0] = 11
    assert manual(tmp_path, changed).sha256 != first


def test_a_missing_file_is_explained_with_the_way_to_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"say labels\.file=FILE; to get one, make the variations"):
        Manual(file=None, category_ids=(3,))
    with pytest.raises(InputError, match=r"none\.json cannot be read.*copy annotations\.json of their store"):
        Manual(file=tmp_path / "none.json", category_ids=(3,))


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("annotations", 0, "category_id"), 7, "category_id 7 is none of the data set's, 3, 13"),
        (("annotations", 0, "bbox"), [10, 20, 0, 6], r"annotation 1: bbox \[10, 20, 0, 6\] is no box"),
        (("annotations", 0, "bbox"), [float("nan"), 20, 5, 6], "is no box"),
        (("annotations", 0, "bbox"), "here", "is no COCO file"),
        (("images", 2, "file_name"), "images/a/v01.png", "share an id or a file_name"),
    ],
)
def test_bad_files_are_explained(tmp_path: Path, place: tuple[str, int, str], value: object, message: str) -> None:
    changed = content()
    kind, index, key = place
    changed[kind][index][key] = value
    with pytest.raises(InputError, match=message):
        manual(tmp_path, changed)


@pytest.mark.parametrize("text", ["", "[]", '{"images": []}', "null"])
def test_what_is_no_coco_file_is_said_to_be_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "f.json").write_text(text)
    with pytest.raises(InputError, match=r"labels\.file=.*f\.json is (no COCO file|not valid JSON)"):
        Manual(file=tmp_path / "f.json", category_ids=(3,))


def test_a_box_outside_its_image_is_an_error(tmp_path: Path) -> None:
    changed = content()
    changed["annotations"][0]["bbox"] = [78, 20, 5, 6]
    judge = manual(tmp_path, changed)
    with pytest.raises(InputError, match=r"reaches outside images/a/v01\.png, 80x60"):
        judge(PIXELS, PIXELS, NO_BOXES, NO_LABELS, "images/a/v01.png")
