"""Files that come back and are not those of the store: another project's, renamed, of other sizes or classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import pytest
from labelled_stores import FOUR, pixels_of, write_store

from boxtwin.errors import InputError
from boxtwin.labels.exchange import export_store, read_back
from boxtwin.labels.formats import FORMATS
from boxtwin.labels.store_images import read_store


def error_of(store: Path, path: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_back(path, read_store(store))
    return str(caught.value)


@pytest.mark.parametrize("name", FORMATS)
def test_the_export_of_another_project_is_refused(name: str, tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", FOUR)
    other = {file.replace("_v01", "_v03"): ones for file, ones in FOUR.items()}
    pixels = {file: pixels_of(50 + number) for number, file in enumerate(other)}
    export_store(read_store(write_store(tmp_path / "other", other, images=pixels)), name, tmp_path / "out")
    message = error_of(store, tmp_path / "out")
    assert "4 of its 4 images are none of store's" in message
    assert "Is it the export of another store?" in message


def test_a_file_half_of_whose_names_match_nothing_is_refused(tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", FOUR)
    for renamed, refused in ((2, True), (1, False)):
        out = tmp_path / str(renamed)
        export_store(read_store(store), "cvat", out)
        text = (out / "annotations.xml").read_text()
        for name in "ab"[:renamed]:
            text = text.replace(f'"{name}_v01.png"', f'"other{name}.png"')
        (out / "annotations.xml").write_text(text)
        if refused:
            assert "2 of its 4 images are none of store's, such as othera.png, otherb.png" in error_of(store, out)
        else:
            content, remarks = read_back(out, read_store(store))
            assert remarks == ["1 images are none of the store's and are left out: othera.png"]
            assert content["info"]["confirmed"] == 3


def test_images_of_the_same_names_with_other_pixels_are_refused(tmp_path: Path) -> None:
    """As of a store with another seed."""
    store = write_store(tmp_path / "store", FOUR)
    others = {name: pixels_of(50 + number) for number, name in enumerate(FOUR)}
    export_store(read_store(write_store(tmp_path / "other", FOUR, images=others)), "yolo", tmp_path / "out")
    assert "4 of its 4 images are none of store's" in error_of(store, tmp_path / "out")


def test_images_of_stores_without_hashes_are_read_to_tell_them_from_others(tmp_path: Path) -> None:
    """As of what count.py wrote of a folder whose images were replaced since."""
    store = write_store(tmp_path / "store", FOUR, {name: {"pixels_sha256": None} for name in FOUR})
    export_store(read_store(store), "cvat", tmp_path / "out")
    assert read_back(tmp_path / "out", read_store(store))[0]["info"]["confirmed"] == 4
    cv2.imwrite(str(store / "images" / "a_v01.png"), pixels_of(77))
    content, remarks = read_back(tmp_path / "out", read_store(store))
    assert content["info"]["confirmed"] == 3
    assert "1 images are none of the store's" in remarks[0]


def test_a_name_with_a_dot_is_not_cut_off(tmp_path: Path) -> None:
    store = read_store(write_store(tmp_path / "store", {"images/a.png": [], "images/c.png": []}))
    (tmp_path / "set").mkdir()
    for name in ("a.v2", "c", "classes"):
        (tmp_path / "set" / f"{name}.txt").touch()
    with pytest.raises(InputError, match=r"1 of its 2 images are none of store's, such as a\.v2"):
        read_back(tmp_path / "set", store)


def test_bad_labels_are_refused(tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", FOUR)
    export_store(read_store(store), "coco", tmp_path / "out")
    whole = json.loads((tmp_path / "out" / "annotations.json").read_text())

    def message(**changes: Any) -> str:
        (tmp_path / "back.json").write_text(json.dumps(whole | changes))
        return error_of(store, tmp_path / "back.json")

    names = [whole["categories"][0] | {"name": "red blod cell"}, whole["categories"][1]]
    told = message(categories=names)
    number = sum(each["category_id"] == names[0]["id"] for each in whole["annotations"])
    assert f"red blod cell ({number} objects, the first in " in told
    assert "; did you mean red blood cell?): no class of the store, which has red blood cell, größe & <co>" in told
    twice = [whole["images"][0], {**whole["images"][0], "id": 9}, *whole["images"][1:]]
    assert "are both images/a_v01.png; keep one of them" in message(images=twice)
    smaller = [{**image, "width": 40} for image in whole["images"]]
    assert "is said to have 40 x 60 pixels, images/a_v01.png has 80 x 60" in message(images=smaller)
    marked = [{**image, "confirmed": "perhaps"} for image in whole["images"]]
    assert "confirmed is neither yes nor no, 'perhaps'" in message(images=marked)


def test_nothing_is_written_where_an_image_is_missing_or_another(tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", FOUR)
    cv2.imwrite(str(store / "images" / "c_v01.png"), pixels_of(77))
    for _ in range(2):
        with pytest.raises(InputError, match=r"c_v01\.png"):
            export_store(read_store(store), "yolo", tmp_path / "out")
        assert {path.name for path in tmp_path.iterdir()} == {"store"}
        (store / "images" / "c_v01.png").unlink(missing_ok=True)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").touch()
    with pytest.raises(InputError, match="out exists"):
        export_store(read_store(store), "yolo", tmp_path / "out")
    with pytest.raises(InputError, match=r"holds neither annotations\.json"):
        read_store(tmp_path / "out")
