import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import MakeCoco
from pycocotools.coco import COCO

from boxtwin.boxes import xyxy_to_xywh
from boxtwin.datasets.coco import read_coco
from boxtwin.datasets.image_io import read_image, write_png
from boxtwin.datasets.options import OnBadBox
from boxtwin.errors import InputError

NOT_FINITE = "boxes that are not four finite numbers [x, y, width, height]"
NAN, INFINITY = float("nan"), float("inf")


def refusal(built: Any, **settings: Any) -> str:
    with pytest.raises(InputError) as caught:
        built.read(**settings)
    return str(caught.value)


def add_box(built: Any, bbox: Any, **more: Any) -> None:
    annotations = built.content["annotations"]
    template = {"image_id": 100, "category_id": 3, "area": 25, "iscrowd": 0}
    annotations.append({"id": 500 + len(annotations), "bbox": bbox} | template | more)


def test_a_good_set_agrees_with_pycocotools(make_coco: MakeCoco, capsys: pytest.CaptureFixture[str]) -> None:
    built = make_coco(images=6, classes=("ship", "buoy", "quay"), objects=(0, 3, 5), sizes=((80, 64), (50, 70)))
    built.content["annotations"][2]["iscrowd"] = 1
    built.content["annotations"][3]["area"] = 17.5
    built.content["annotations"].reverse()
    built.content["images"].reverse()
    built.content["categories"].reverse()
    dataset = built.read()
    oracle = COCO(str(built.annotations))
    capsys.readouterr()
    assert dataset.category_ids == tuple(sorted(oracle.getCatIds()))
    assert dataset.classes == tuple(category["name"] for category in oracle.loadCats(dataset.category_ids))
    assert [sample.image_id for sample in dataset.samples] == sorted(oracle.getImgIds())
    assert dataset.repairs == {}
    for sample in dataset.samples:
        image = oracle.loadImgs(sample.image_id)[0]
        assert (sample.name, sample.width, sample.height) == (image["file_name"], image["width"], image["height"])
        assert sample.path == built.images / image["file_name"]
        assert sample.group == sample.name
        assert sample.lineage is None
        annotations = sorted(oracle.loadAnns(oracle.getAnnIds(sample.image_id)), key=lambda entry: entry["id"])
        told = np.array([entry["bbox"] for entry in annotations], dtype=float).reshape(-1, 4)
        np.testing.assert_allclose(xyxy_to_xywh(sample.boxes), told)
        assert [dataset.category_ids[label] for label in sample.labels] == [e["category_id"] for e in annotations]
        assert sample.areas.tolist() == [entry["area"] for entry in annotations]
        assert sample.crowd.tolist() == [bool(entry["iscrowd"]) for entry in annotations]
    assert sum(sample.crowd.sum() for sample in dataset.samples) == 1
    assert sum(len(sample.object_boxes) for sample in dataset.samples) == 15


@pytest.mark.parametrize("ending", [".png", ".jpg", ".tif"])
def test_sizes_may_go_untold_and_differ(make_coco: MakeCoco, ending: str) -> None:
    built = make_coco(sizes=((80, 64), (33, 21)), channels=(1, 3), ending=ending, objects=(1,))
    for image in built.content["images"]:
        del image["width"], image["height"]
    for annotation in built.content["annotations"]:
        del annotation["area"], annotation["iscrowd"]
    dataset = built.read()
    assert [(sample.width, sample.height) for sample in dataset.samples] == [(80, 64), (33, 21)] * 2
    for sample in dataset.samples:
        (x1, y1, x2, y2) = sample.boxes[0]
        assert sample.areas[0] == (x2 - x1) * (y2 - y1)
        assert not sample.crowd[0]


def test_missing_unreadable_and_truncated_images(make_coco: MakeCoco) -> None:
    built = make_coco(images=5)
    names = [image["file_name"] for image in built.content["images"]]
    (built.images / names[0]).unlink()
    whole = (built.images / names[1]).read_bytes()
    (built.images / names[1]).write_bytes(whole[: len(whole) // 2])
    (built.images / names[2]).write_bytes(b"")
    (built.images / names[3]).write_text("no image at all")
    message = refusal(built)
    assert f"images missing from {built.images}: 1\n    {names[0]}" in message
    assert message.splitlines()[0] == (
        f"{built.annotations}: images missing from {built.images}: 1; images unreadable in {built.images}: 3. "
        "Nothing was used."
    )
    assert all(f"{names[number]} cannot be decoded" in message for number in (1, 2, 3))
    assert names[4] not in message


@pytest.mark.parametrize("key", ["images", "annotations", "categories"])
def test_duplicate_ids(make_coco: MakeCoco, key: str) -> None:
    built = make_coco(classes=("a", "b"))
    built.content[key][1]["id"] = built.content[key][0]["id"]
    assert f"duplicate ids in {key}: 1\n    {built.content[key][0]['id']}" in refusal(built)


@pytest.mark.parametrize("key", ["images", "annotations", "categories"])
@pytest.mark.parametrize("wrong", ["one", None, [1], 1.5])
def test_ids_that_are_no_whole_numbers(make_coco: MakeCoco, key: str, wrong: Any) -> None:
    built = make_coco(classes=("a", "b"))
    built.content[key][0]["id"] = wrong
    message = refusal(built)
    assert re.search(rf"{key}.*whole number", message), message
    assert repr(wrong) in message


@pytest.mark.parametrize("wrong", [5, None, ["a.png"]])
def test_file_names_that_are_no_text(make_coco: MakeCoco, wrong: Any) -> None:
    built = make_coco()
    built.content["images"][1]["file_name"] = wrong
    assert f"images[1]: file_name must be text, not {wrong!r}" in refusal(built)


def test_ids_written_with_a_point_are_whole_numbers(make_coco: MakeCoco) -> None:
    built = make_coco()
    digest = built.read().digest
    for key in ("images", "annotations", "categories"):
        for entry in built.content[key]:
            entry |= {name: float(value) for name, value in entry.items() if name.endswith("id")}
    dataset = built.read()
    assert dataset.digest == digest
    assert dataset.samples[0].image_id == 100
    assert dataset.category_ids == (3,)


def test_a_file_name_used_twice(make_coco: MakeCoco) -> None:
    built = make_coco()
    built.content["images"][3]["file_name"] = "S00_0.png"
    assert "file names used twice: 1\n    S00_0.png" in refusal(built)


def test_a_file_named_in_two_ways_is_used_twice(make_coco: MakeCoco) -> None:
    built = make_coco()
    built.content["images"][3]["file_name"] = "./S00_0.png"
    assert "file names used twice: 1" in refusal(built)


def test_unknown_categories_and_images(make_coco: MakeCoco) -> None:
    built = make_coco()
    built.content["annotations"][0]["category_id"] = 77
    built.content["annotations"][1]["image_id"] = 9999
    message = refusal(built)
    assert "annotations of unknown categories: 1\n    S00_0.png: category_id 77 (annotation 500)" in message
    assert "annotations of unknown images: 1\n    annotation 501: image_id 9999" in message


@pytest.mark.parametrize(
    "outside",
    [
        "../secret.png",
        "a/../../secret.png",
        "/etc/secret.png",
        "..\\secret.png",
        "C:\\secret.png",
        "\\\\host\\a.png",
        "",
    ],
)
def test_file_names_outside_the_folder(make_coco: MakeCoco, outside: str) -> None:
    built = make_coco()
    (built.root / "secret.png").write_bytes((built.images / "S00_0.png").read_bytes())
    built.content["images"][0]["file_name"] = outside
    assert f"file names that point outside the image folder: 1\n    {outside}" in refusal(built)


def test_folders_and_dots_inside_are_fine(make_coco: MakeCoco) -> None:
    built = make_coco()
    (built.images / "sub").mkdir()
    (built.images / "S00_0.png").rename(built.images / "sub" / "a..b.png")
    built.content["images"][0]["file_name"] = "sub/a..b.png"
    assert "sub/a..b.png" in {sample.name for sample in built.read().samples}


@pytest.mark.parametrize(
    ("bbox", "kind"),
    [
        ([5, 5, 0, 4], "boxes that are empty"),
        ([5, 5, 4, -3], "boxes that are empty"),
        ([0.5, 0.4, 0.006, 0.008], "boxes that look normalised"),
        ([NAN, 5, 4, 4], NOT_FINITE),
        ([5, 5, INFINITY, 4], NOT_FINITE),
        ([-INFINITY, 5, 4, 4], NOT_FINITE),
        ([5, 5, 10**400, 4], NOT_FINITE),
        ([5, 5, 4], NOT_FINITE),
        (["5", 5, 4, 4], NOT_FINITE),
        ([True, 5, 4, 4], NOT_FINITE),
        (None, NOT_FINITE),
        ([80, 5, 4, 4], "boxes that lie outside their image"),
        ([5, -9, 4, 8], "boxes that lie outside their image"),
        ([1e308, 5, 1e308, 4], "boxes that lie outside their image"),
        ([-3, 5, 10, 4], "boxes that reach outside their image"),
        ([75, 60, 10, 4], "boxes that reach outside their image"),
        ([-10, -10, 200, 200], "boxes that reach outside their image"),
    ],
)
def test_bad_boxes(make_coco: MakeCoco, bbox: Any, kind: str) -> None:
    built = make_coco()
    add_box(built, bbox)
    message = refusal(built)
    assert f"{kind}: 1. Nothing was used.\n  {kind}: 1\n    S00_0.png: bbox" in message
    assert "(annotation 508)" in message
    assert ("on_bad_box=clip" in message) == ("normalised" not in kind)
    left = kind == "boxes that reach outside their image"
    clipped, dropped = built.read(on_bad_box=OnBadBox.clip), built.read(on_bad_box=OnBadBox.drop)
    assert clipped.repairs == ({"clipped": 1} if left else {"dropped": 1})
    assert dropped.repairs == {"dropped": 1}
    assert len(dropped.samples[0].boxes) == 2
    assert len(clipped.samples[0].boxes) == 2 + left
    for sample in clipped.samples:
        assert (sample.boxes >= 0).all()
        assert (sample.boxes <= [80, 64, 80, 64]).all()
        assert (sample.boxes[:, 2:] > sample.boxes[:, :2]).all()


def test_clipped_boxes_and_their_areas(make_coco: MakeCoco) -> None:
    built = make_coco()
    add_box(built, [70, 60, 20, 10], area=200)
    sample = built.read(on_bad_box=OnBadBox.clip).samples[0]
    np.testing.assert_array_equal(sample.boxes[-1], [70, 60, 80, 64])
    # COCO sorts objects by size with it: the area of what is no longer there must not count.
    assert sample.areas[-1] == 40


def test_rounding_is_no_error(make_coco: MakeCoco) -> None:
    built = make_coco()
    add_box(built, [70.004, 5, 10, 4])
    add_box(built, [-0.005, 5, 10, 4])
    dataset = built.read()
    assert dataset.repairs == {}
    assert dataset.samples[0].boxes.max() <= 80
    assert dataset.samples[0].boxes.min() >= 0


@pytest.mark.parametrize("area", [NAN, INFINITY, -4, "big", [1], pytest.param(10**400, id="overflow")])
def test_areas_that_are_no_areas(make_coco: MakeCoco, area: Any) -> None:
    built = make_coco()
    add_box(built, [5, 5, 5, 5], area=area)
    assert "areas that are not finite and positive: 1\n    S00_0.png: area" in refusal(built)


def test_crowds_are_apart_from_objects(make_coco: MakeCoco) -> None:
    built = make_coco(images=1)
    add_box(built, [5, 5, 20, 20], iscrowd=1)
    (sample,) = built.read().samples
    assert sample.crowd.tolist() == [False, False, True]
    assert len(sample.boxes) == 3
    assert len(sample.object_boxes) == len(sample.object_labels) == 2


def test_a_size_that_is_not_so(make_coco: MakeCoco) -> None:
    built = make_coco()
    built.content["images"][1]["width"] = 640
    assert "images of another size than stated: 1\n    S01_0.png: 640 x 64 stated, 80 x 64 in the file" in refusal(
        built
    )


@pytest.mark.parametrize("text", ["", "{", "images: none", '{"images": [}'])
def test_what_is_not_json(make_coco: MakeCoco, text: str) -> None:
    built = make_coco()
    built.annotations.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match="not valid JSON"):
        read_coco(name="x", images=built.images, annotations=built.annotations)


def test_files_that_cannot_be_read(make_coco: MakeCoco, tmp_path: Path) -> None:
    built = make_coco()
    with pytest.raises(InputError, match=r"missing\.json does not exist"):
        read_coco(name="x", images=built.images, annotations=tmp_path / "missing.json")
    with pytest.raises(InputError, match="cannot be read"):
        read_coco(name="x", images=built.images, annotations=built.images)
    (tmp_path / "latin.json").write_bytes(b'{"images": "\xff"}')
    with pytest.raises(InputError, match="not valid JSON"):
        read_coco(name="x", images=built.images, annotations=tmp_path / "latin.json")


@pytest.mark.parametrize("key", ["images", "annotations", "categories"])
def test_missing_lists(make_coco: MakeCoco, key: str) -> None:
    built = make_coco()
    built.content[key] = {"a": 1}
    assert f"needs a list under '{key}'" in refusal(built)
    del built.content[key]
    assert f"needs a list under '{key}'" in refusal(built)
    built.annotations.write_text("[1, 2]")
    built.by_hand = True
    assert "needs a list under 'images'" in refusal(built)


@pytest.mark.parametrize(
    ("key", "field"),
    [
        ("images", "file_name"),
        ("images", "id"),
        ("annotations", "category_id"),
        ("categories", "name"),
    ],
)
def test_missing_fields(make_coco: MakeCoco, key: str, field: str) -> None:
    built = make_coco(classes=("a", "b"))
    del built.content[key][1][field]
    assert f"{key}[1] lacks {field}" in refusal(built)
    built.content[key][1] = 5
    assert f"{key}[1] lacks" in refusal(built)


def test_nothing_there(make_coco: MakeCoco) -> None:
    built = make_coco()
    built.content = {"images": [], "annotations": [], "categories": []}
    message = refusal(built)
    assert "no categories" in message
    assert "no images" in message


def test_several_kinds_are_told_at_once_and_ten_offenders_of_each(make_coco: MakeCoco) -> None:
    built = make_coco(images=16)
    for image in built.content["images"][:12]:
        (built.images / image["file_name"]).unlink()
    built.content["annotations"][-1]["bbox"] = [0, 0, 0, 0]
    built.content["annotations"][-2]["category_id"] = 4
    built.content["images"][-1]["file_name"] = "../x.png"
    built.content["images"][-2]["id"] = built.content["images"][-3]["id"]
    built.content["annotations"][-3]["bbox"] = [0, 0, 1000, 5]
    message = refusal(built)
    listed = [line.strip() for line in message.split("\n") if line.startswith("    ")]
    assert sum(line.startswith("S") for line in listed) == 10
    assert "… and 2 more" in listed
    for kind in ("missing from", "unknown categories", "outside the image folder", "duplicate ids in images"):
        assert kind in message
    counts = [int(count) for count in re.findall(r"^  \S.*: (\d+)$", message, flags=re.MULTILINE)]
    first = message.splitlines()[0]
    assert f"and {len(counts) - 3} other kinds of problem" in first
    assert sorted(counts, reverse=True)[0] == 12


def test_digest(make_coco: MakeCoco) -> None:
    built = make_coco(classes=("a", "b"), objects=(3,))
    first = built.read().digest
    assert built.read().digest == first
    shuffled = json.loads(json.dumps(built.content))
    for key in ("images", "annotations", "categories"):
        shuffled[key] = [dict(reversed(entry.items())) for entry in reversed(shuffled[key])]
    original, built.content = built.content, shuffled
    assert built.read().digest == first

    def changed(path: list[Any], value: Any) -> str:
        built.content = json.loads(json.dumps(original))
        entry = built.content
        for step in path[:-1]:
            entry = entry[step]
        entry[path[-1]] = value
        return built.read().digest

    digests = {
        first,
        changed(["annotations", 0, "bbox", 2], 5),
        changed(["annotations", 0, "category_id"], 26 - original["annotations"][0]["category_id"] - 10),
        changed(["annotations", 0, "iscrowd"], 1),
        changed(["annotations", 0, "area"], 1.5),
        changed(["categories", 0, "name"], "c"),
    }
    built.content = original
    pixels = read_image(built.images / "S00_0.png")
    pixels[0, 0] += 1
    write_png(built.images / "S00_0.png", pixels)
    digests.add(built.read().digest)
    assert len(digests) == 7


def test_groups(make_coco: MakeCoco) -> None:
    built = make_coco(scenes=(3, 1, 2))
    dataset = built.read(group_by="^([^_]+)_")
    assert [sample.group for sample in dataset.samples] == ["S00"] * 3 + ["S01"] + ["S02"] * 2
    assert "group_by='(' is no regular expression" in refusal(built, group_by="(")
    assert "needs a group in brackets" in refusal(built, group_by="^S")
    message = refusal(built, group_by="^(S01)")
    assert "in which group_by='^(S01)' finds nothing: 5" in message
    assert "S00_0.png" in message
    # A group that takes no part in the match names no scene.
    assert "finds nothing: 6" in refusal(built, group_by="S(x)?")


def test_the_real_chips(hrsid200: Path) -> None:
    dataset = read_coco(
        name="hrsid",
        images=hrsid200 / "JPEGImages",
        annotations=hrsid200 / "annotations" / "train_test2017.json",
        group_by="^([^_]+)_",
    )
    assert len(dataset.samples) == 200
    assert sum(len(sample.boxes) for sample in dataset.samples) == 743
    assert len({sample.group for sample in dataset.samples}) == 94
    assert dataset.classes == ("ship",)
    assert {(sample.width, sample.height) for sample in dataset.samples} == {(800, 800)}
    assert dataset.repairs == {}
