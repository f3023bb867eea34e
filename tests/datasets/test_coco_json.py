"""COCO files as tools write them: what is one thing written in many ways, and what is refused in one line."""

import gzip
import json
import os
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from conftest import MakeCoco
from hypothesis import given
from hypothesis import strategies as st

from boxtwin.datasets.coco import read_coco, read_labels
from boxtwin.datasets.coco_json import fault_of_name, file_key, flag, load_json, whole
from boxtwin.datasets.image_io import write_png
from boxtwin.datasets.options import Crowds, OnDuplicateBox
from boxtwin.errors import InputError

Form = Literal["NFC", "NFD"]
SPACES = st.sampled_from(["", " ", "\t"])


@given(st.booleans(), st.sampled_from([bool, int, float, str, "{:d}".format, "{:.1f}".format]), SPACES)
def test_a_flag_means_the_same_however_it_is_written(value: bool, write: Callable[[bool], Any], space: str) -> None:
    written = write(value)
    if isinstance(written, str):
        written = f"{space}{written.swapcase()}{space}"
    assert flag(written) is value


@given(st.one_of(st.integers().filter(lambda n: n not in (0, 1)), st.text(min_size=3), st.lists(st.integers())))
def test_what_is_neither_yes_nor_no_is_no_flag(value: Any) -> None:
    known = isinstance(value, str) and value.strip().lower() in {
        "",
        "0",
        "1",
        "0.0",
        "1.0",
        "true",
        "false",
        "yes",
        "no",
    }
    assert (flag(value) is None) != known


@given(st.integers(-(2**70), 2**70))
def test_whole_numbers_are_kept_to_the_last_digit(number: int) -> None:
    assert whole(number) == number
    assert whole(float(number)) == int(float(number))
    assert whole(str(number)) is None


@pytest.mark.parametrize("value", [True, 1.5, float("inf"), float("nan"), None, "7", [7]])
def test_what_is_no_whole_number(value: Any) -> None:
    assert whole(value) is None


@given(st.lists(st.text(st.characters(exclude_characters="/\\\0", exclude_categories=["Cs"]), min_size=1), min_size=1))
def test_all_ways_to_write_a_file_name_have_one_key(parts: list[str]) -> None:
    composed, decomposed = (unicodedata.normalize(form, "/".join(parts)) for form in ("NFC", "NFD"))
    keys = {file_key(name) for name in (composed, decomposed, composed.replace("/", "\\"), f"./{decomposed}")}
    assert len(keys) == 1


def nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (nested(100_000), "nested"),
        (gzip.compress(b"{}", mtime=0), "gzip"),
        (b"PK\x03\x04....", "zip"),
        ('{"images": []}'.encode("utf-16"), "UTF-16"),
        ('{"images": []}'.encode("utf-16-le"), "UTF-16"),
        ('{"images": []}'.encode("utf-16-be"), "UTF-16"),
        (b"", "not valid JSON"),
        (b'{"a": "\xff"}', "not valid JSON"),
        (b'{"a": 1,}', "not valid JSON"),
    ],
)
def test_files_that_are_no_json_are_told_in_one_line(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=said) as caught:
        load_json(path, setting="some.file=")
    assert str(caught.value).startswith(f"some.file={path}")
    assert "\n" not in str(caught.value)


def test_a_byte_order_mark_is_no_part_of_the_text(make_coco: MakeCoco) -> None:
    built = make_coco()
    plain = built.read().digest
    built.annotations.write_text(json.dumps(built.content), encoding="utf-8-sig")
    built.by_hand = True
    assert built.read().digest == plain


def refusal(built: Any) -> list[str]:
    with pytest.raises(InputError) as caught:
        built.read()
    return str(caught.value).splitlines()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a\0b.png", "file names that no file can have"),
        ("x" * 300 + ".png", "file names that no file can have"),
        ("d/" * 3000 + "a.png", "file names that no file can have"),
        ("\ud800.png", "file names that are no valid text"),
    ],
)
def test_file_names_that_cannot_be(make_coco: MakeCoco, name: str, said: str) -> None:
    built = make_coco()
    built.content["images"][0]["file_name"] = name
    lines = refusal(built)
    assert f"{said}: 1" in lines[0]
    assert all(line.isprintable() and len(line) < 300 for line in lines)


def test_names_that_are_no_text_are_refused_without_images_too(make_coco: MakeCoco) -> None:
    built = make_coco()
    built.content["images"][0]["file_name"] = "\ud800.png"
    built.write()
    with pytest.raises(InputError, match="file names that are no valid text: 1") as caught:
        read_labels(built.annotations)
    assert str(caught.value).replace("\n", "").isprintable()
    built.content["images"][0]["file_name"] = "/of/a/tool/a.png"  # a place elsewhere is none of its business
    built.write()
    assert read_labels(built.annotations).samples[0].name == "/of/a/tool/a.png"


@pytest.mark.parametrize(("key", "field"), [("images", "id"), ("annotations", "bbox"), ("images", "width")])
def test_huge_numbers_are_told_with_their_place(make_coco: MakeCoco, key: str, field: str) -> None:
    built = make_coco()
    built.annotations.write_text(
        json.dumps(built.content).replace(f'"{field}": ', f'"{field}": {"9" * 10_000}, "other": ', 1)
    )
    built.by_hand = True
    lines = refusal(built)
    assert f"{key}[0]" in lines[0] or "S00_0.png" in "".join(lines)
    assert all(len(line) < 400 for line in lines)


@pytest.mark.parametrize("write", [str, float, "{}.0".format, " {} ".format])
def test_sizes_may_be_text(make_coco: MakeCoco, write: Callable[[int], Any]) -> None:
    built = make_coco()
    plain = built.read().digest
    for image in built.content["images"]:
        image |= {side: write(image[side]) for side in ("width", "height")}
    assert built.read().digest == plain
    built.content["images"][0]["width"] = write(81)
    assert "images of another size than stated: 1" in refusal(built)[0]


@pytest.mark.parametrize("value", [None, "", " ", float("nan")])
def test_sizes_that_go_untold(make_coco: MakeCoco, value: Any) -> None:
    built = make_coco()
    plain = built.read().digest
    built.content["images"][0] |= {"width": value, "height": value}
    built.content["images"][1] |= {"height": value}
    assert built.read().digest == plain


@pytest.mark.parametrize("value", ["wide", [80], 80.5, True])
def test_sizes_that_are_no_numbers(make_coco: MakeCoco, value: Any) -> None:
    built = make_coco()
    built.content["images"][2]["width"] = value
    assert refusal(built)[0].startswith(f"{built.annotations}: widths or heights that are no whole numbers: 1.")


@pytest.mark.parametrize(("on_disk", "told"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_names_with_decomposed_letters(make_coco: MakeCoco, on_disk: Form, told: Form) -> None:
    built = make_coco()
    (built.images / unicodedata.normalize(on_disk, "Prüfung")).mkdir()
    path = built.images / unicodedata.normalize(on_disk, "Prüfung/é.png")
    (built.images / "S00_0.png").rename(path)
    name = built.content["images"][0]["file_name"] = unicodedata.normalize(told, "Prüfung/é.png")
    found = {sample.name: sample.path for sample in built.read().samples}
    assert found[name].samefile(path)


def test_names_with_windows_separators(make_coco: MakeCoco) -> None:
    built = make_coco()
    (built.images / "sub").mkdir()
    (built.images / "S00_0.png").rename(built.images / "sub" / "a.png")
    built.content["images"][0]["file_name"] = "sub\\a.png"
    found = {sample.name: sample.path for sample in built.read().samples}
    assert found["sub\\a.png"] == built.images / "sub" / "a.png"
    built.content["images"][1]["file_name"] = "sub/a.png"
    assert "file names used twice: 1" in refusal(built)[0]


@pytest.mark.skipif(os.name == "nt", reason="a separator there")
def test_a_backslash_may_be_part_of_a_name(make_coco: MakeCoco) -> None:
    built = make_coco()
    path = (built.images / "S00_0.png").rename(built.images / "a\\b.png")
    built.content["images"][0]["file_name"] = "a\\b.png"
    assert path in {sample.path for sample in built.read().samples}


def test_a_folder_that_stands_twice_in_the_path(make_coco: MakeCoco) -> None:
    built = make_coco()
    for image in built.content["images"]:
        image["file_name"] = f"images/{image['file_name']}"
    lines = refusal(built)
    assert f"images missing from {built.images}: 4" in lines[0]
    assert "twice" in lines[-1]
    assert "dataset.images=." in lines[-1]
    built.content["images"][0]["file_name"] = "images/none.png"
    (built.root / "none.png").symlink_to(built.images / "S00_0.png")
    assert "twice" in refusal(built)[-1]


def test_ids_of_any_size_are_kept(make_coco: MakeCoco) -> None:
    built = make_coco(images=3)
    ids = [2**64 - 1, 20240115123456701, -5]
    for image, number in zip(built.content["images"], ids, strict=True):
        for annotation in built.content["annotations"]:
            if annotation["image_id"] == image["id"]:
                annotation |= {"image_id": number, "category_id": 2**63}
        image["id"] = number
    built.content["categories"][0]["id"] = 2**63
    dataset = built.read()
    assert [sample.image_id for sample in dataset.samples] == ids
    assert dataset.category_ids == (2**63,)


@pytest.mark.parametrize("name", ["a\0b", "c" * 300, "a\nb"])
def test_names_of_categories_that_cannot_be_shown(make_coco: MakeCoco, name: str) -> None:
    built = make_coco()
    built.content["categories"][0]["name"] = name
    assert "names of categories" in refusal(built)[0]


def test_duplicate_ids_are_told_with_file_names(make_coco: MakeCoco) -> None:
    built = make_coco()
    built.content["images"][1]["id"] = 100
    assert "    100: S00_0.png, S01_0.png" in refusal(built)


def test_an_image_of_one_value_is_read(make_coco: MakeCoco) -> None:
    built = make_coco(images=2)
    write_png(built.images / "S00_0.png", np.zeros((64, 80), np.uint8))
    assert built.read().samples[0].signature is None


@pytest.mark.parametrize(("name", "fits"), [("t10:20.png", True), ("C:/a.png", False), ("c:a.png", False)])
def test_colons_are_no_drives(name: str, fits: bool) -> None:
    assert (fault_of_name(name) == "") is fits


def with_crowds(make_coco: MakeCoco, value: Any = 1) -> Any:
    built = make_coco(images=3, objects=(2,))
    for annotation in built.content["annotations"][::2]:
        annotation["iscrowd"] = value
    return built


@pytest.mark.parametrize("value", [1, 1.0, True, "1", "true"])
def test_crowds_are_said(make_coco: MakeCoco, value: Any) -> None:
    dataset = with_crowds(make_coco, value).read()
    assert [len(sample.object_boxes) for sample in dataset.samples] == [1, 1, 1]
    (remark,) = dataset.remarks
    assert "3 of 6 annotations are crowds" in remark
    assert "S00_0.png" in remark
    assert "dataset.crowds=objects" in remark


@pytest.mark.parametrize("value", [0, 0.0, False, "0", "false", None, ""])
def test_what_is_no_crowd(make_coco: MakeCoco, value: Any) -> None:
    dataset = with_crowds(make_coco, value).read()
    assert [len(sample.object_boxes) for sample in dataset.samples] == [2, 2, 2]
    assert dataset.remarks == ()
    assert dataset.digest == with_crowds_digest(make_coco)


def with_crowds_digest(make_coco: MakeCoco) -> str:
    return str(make_coco(images=3, objects=(2,), folder="plain").read().digest)


@pytest.mark.parametrize("value", [2, -1, 0.5, "maybe", [1], {}])
def test_crowds_that_are_neither_yes_nor_no_are_refused(make_coco: MakeCoco, value: Any) -> None:
    built = with_crowds(make_coco, value)
    with pytest.raises(InputError, match=r"iscrowd is neither 0 nor 1: 3\.") as caught:
        built.read()
    assert "    S00_0.png: " in str(caught.value)


def test_crowds_may_be_objects(make_coco: MakeCoco) -> None:
    dataset = with_crowds(make_coco).read(crowds=Crowds.objects)
    assert [len(sample.object_boxes) for sample in dataset.samples] == [2, 2, 2]
    assert dataset.digest == with_crowds_digest(make_coco)
    (remark,) = dataset.remarks
    assert "single objects" in remark


def test_an_object_and_its_mask_are_one_where_crowds_are_objects(make_coco: MakeCoco) -> None:
    built = make_coco(images=1, objects=(1,))
    built.content["annotations"].append(built.content["annotations"][0] | {"id": 9, "iscrowd": 1})
    assert len(built.read(crowds=Crowds.objects, on_duplicate_box=OnDuplicateBox.merge).samples[0].boxes) == 1
    assert len(built.read(on_duplicate_box=OnDuplicateBox.merge).samples[0].boxes) == 2


def twice(make_coco: MakeCoco, **more: Any) -> Any:
    """A set with the categories 3, used by every other annotation, and 99, by the others."""
    built = make_coco(images=3, objects=(2,))
    built.content["categories"].append(built.content["categories"][0] | {"id": 99} | more)
    for annotation in built.content["annotations"][::2]:
        annotation["category_id"] = 99
    return built


@pytest.mark.parametrize("name", ["ship", " ship "])
def test_categories_of_one_name_are_one_class(make_coco: MakeCoco, name: str) -> None:
    dataset = twice(make_coco, name=name).read()
    plain = make_coco(images=3, objects=(2,), folder="plain").read()
    assert (dataset.classes, dataset.category_ids, dataset.digest) == (plain.classes, (3,), plain.digest)
    (remark,) = dataset.remarks
    assert "'ship'" in remark
    assert "3, 99" in remark


def test_a_root_category_of_the_same_name_gives_way_to_the_one_in_use(make_coco: MakeCoco) -> None:
    built = make_coco(images=2)
    built.content["categories"].append({"id": 0, "name": "ship", "supercategory": "none"})
    dataset = built.read()
    assert (dataset.classes, dataset.category_ids) == (("ship",), (3,))


def test_parts_of_different_things_with_one_name_are_refused(make_coco: MakeCoco) -> None:
    built = twice(make_coco, supercategory="harbour")
    with pytest.raises(InputError, match=r"different supercategories: 1\.") as caught:
        built.read()
    assert "'ship': ids 3, 99" in str(caught.value)


def test_labels_that_nobody_has_confirmed_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(3):
        write_png(tmp_path / f"{number}.png", np.zeros((8, 8), dtype=np.uint8))
    images = [{"id": n, "file_name": f"{n}.png", "width": 8, "height": 8, "confirmed": n == 0} for n in range(3)]
    content = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "ship"}]}
    (tmp_path / "labels.json").write_text(json.dumps(content))
    read_coco(name="x", images=tmp_path, annotations=tmp_path / "labels.json")
    assert "no person has confirmed the labels of 2 of its 3 images (1.png, 2.png)" in caplog.text
