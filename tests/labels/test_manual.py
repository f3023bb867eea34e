import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boxtwin.datasets.image_io import pixels_sha256, write_png
from boxtwin.datasets.sample import Dataset, Sample
from boxtwin.errors import InputError
from boxtwin.labels.manual import ManualLabels
from boxtwin.labels.method import Variations
from boxtwin.labels.options import Confirmed, LabelOptions

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


def source(name: str) -> Sample:
    no_boxes, none = np.zeros((0, 4), dtype=np.float32), np.zeros(0)
    return Sample(name, Path(name), 80, 60, 1, no_boxes, none.astype(np.int64), none, none.astype(bool))


def judge_of(file: Path | None, **changes: Any) -> ManualLabels:
    settings: dict[str, Any] = {
        "samples": [source(f"{name}.png") for name in "abc"],
        "classes": ("ship", "buoy"),
        "category_ids": (3, 13),
    }
    settings |= changes
    confirmed = Confirmed.all if settings.pop("every_image", False) else Confirmed.marked
    dataset = Dataset("a", settings["classes"], settings["category_ids"], tuple(settings["samples"]), "")
    options = LabelOptions(file=None if file is None else str(file), confirmed=confirmed)
    return ManualLabels(options, Variations(dataset, "repeat", "exact"))


def manual(tmp_path: Path, changed: dict[str, Any], **changes: Any) -> ManualLabels:
    (tmp_path / "confirmed.json").write_text(json.dumps(changed))
    return judge_of(tmp_path / "confirmed.json", **changes)


def boxes_of(judge: ManualLabels, image: str, pixels: np.ndarray = PIXELS) -> list[tuple[Any, int]] | None:
    judged = judge(PIXELS, pixels, NO_BOXES, NO_LABELS, image)
    return None if judged.refused else [(box.box, box.label) for box in judged.boxes]


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
    unmarked = judge_of(tmp_path / "exported.json")
    judge = judge_of(tmp_path / "exported.json", every_image=True)
    for image in changed["images"]:
        name = image["file_name"]
        assert unmarked(PIXELS, PIXELS, NO_BOXES, NO_LABELS, name).refused == "not confirmed by a person"
        assert judge(PIXELS, PIXELS, NO_BOXES, NO_LABELS, name).refused is None
    assert judge(PIXELS, PIXELS, NO_BOXES, NO_LABELS, "images/c/v01.png").refused == "not confirmed by a person"
    # What is marked as not confirmed is not, whatever the rest is.
    changed["images"][0]["confirmed"] = False
    (tmp_path / "exported.json").write_text(json.dumps(changed))
    judge = judge_of(tmp_path / "exported.json", every_image=True)
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
        judge_of(None)
    with pytest.raises(InputError, match=r"none\.json cannot be read.*copy annotations\.json of their store"):
        judge_of(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("annotations", 0, "category_id"), 7, "category_id 7 is none of the data set's, ship \\(3\\), buoy \\(13\\)"),
        (("annotations", 0, "bbox"), [10, 20, 0, 6], r"annotation 1: bbox \[10, 20, 0, 6\] is no box"),
        (("annotations", 0, "bbox"), [float("nan"), 20, 5, 6], "is no box"),
        (("annotations", 0, "bbox"), "here", "annotation 1: bbox here is no box"),
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
        judge_of(tmp_path / "f.json")


def test_a_box_outside_its_image_is_an_error(tmp_path: Path) -> None:
    changed = content()
    changed["annotations"][0]["bbox"] = [78, 20, 5, 6]
    with pytest.raises(InputError, match=r"1 boxes reach outside .*\[78, 20, 83, 26\] in images/a/v01\.png of 80 x 60"):
        manual(tmp_path, changed)
    for image in changed["images"]:
        del image["width"], image["height"]
    judge = manual(tmp_path, changed)
    with pytest.raises(InputError, match=r"annotation 1, \[78, 20, 83, 26\] in images/a/v01\.png of 80 x 60"):
        judge(PIXELS, PIXELS, NO_BOXES, NO_LABELS, "images/a/v01.png")


BOX = ((10, 20, 15, 26), 1)  # of images/a/v01.png


def test_classes_are_matched_by_name(tmp_path: Path) -> None:
    changed = content()
    changed["categories"] = [{"id": 13, "name": "ship"}, {"id": 3, "name": "buoy"}, {"id": 5, "name": "unused"}]
    swapped = manual(tmp_path, changed)
    assert boxes_of(swapped, "images/a/v01.png") == [(BOX[0], 0)]
    assert not swapped.read_as_before
    assert manual(tmp_path, content()).read_as_before
    del changed["categories"]
    assert boxes_of(manual(tmp_path, changed), "images/a/v01.png") == [BOX]
    changed["categories"] = [{"id": 13, "name": "whale"}, {"id": 3, "name": "ship"}]
    with pytest.raises(InputError, match=r"annotation 1: class 'whale' \(category_id 13\)"):
        manual(tmp_path, changed)
    changed["annotations"] = []  # without boxes it does no harm
    assert boxes_of(manual(tmp_path, changed), "images/a/v01.png") == []


@pytest.mark.parametrize(
    "name",
    [
        "images/a_v01.png",
        "images/a/v01.png",
        "a_v01.png",
        "a_v01.jpg",
        "upload\\a_v01.png",
        "images_a_v01.png",
        "/data/images/a/v01.png",
        "1f0c9d3e-a_v01.png",
        "a_v01_png.rf.0123456789abcdef.jpg",
    ],
)
@pytest.mark.parametrize("stored", ["images/a_v01.png", "images/a/v01.png"])
def test_images_are_recognised_under_the_names_that_tools_give(tmp_path: Path, name: str, stored: str) -> None:
    changed = content()
    changed["images"][0]["file_name"] = name
    assert boxes_of(manual(tmp_path, changed), stored) == [BOX]


def test_images_under_other_names_are_recognised_by_their_pixels(tmp_path: Path) -> None:
    changed = content()
    changed["images"][0] |= {"file_name": "00017.png"}
    changed["images"][2] |= {"file_name": "00018.png", "pixels_sha256": pixels_sha256(PIXELS + 2)}
    write_png(tmp_path / "images" / "00017.png", PIXELS)
    judge = manual(tmp_path, changed)
    assert boxes_of(judge, "images/a_v01.png") == [BOX]
    assert boxes_of(judge, "images/b_v01.png", PIXELS + 2) == []
    assert boxes_of(judge, "images/b_v02.png", PIXELS + 3) is None
    assert not judge.read_as_before


def test_names_that_match_nothing_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    changed = content()
    changed["images"][2]["file_name"] = "holiday.png"
    assert boxes_of(manual(tmp_path, changed), "images/a_v01.png") == [BOX]
    assert "1 of 2 file names" in caplog.text
    assert "holiday.png" in caplog.text
    changed["images"][0]["file_name"] = "x_v01.png"
    with pytest.raises(InputError, match=r"2 of 2 file names .* x_v01\.png, holiday\.png"):
        manual(tmp_path, changed)


def test_one_base_name_in_two_folders_is_no_telling_one(tmp_path: Path) -> None:
    samples = [source("left/a.png"), source("right/a.png")]
    changed = content()
    changed["images"] = changed["images"][:1]
    changed["images"][0]["file_name"] = "a_v01.png"
    with pytest.raises(InputError, match="1 of 1 file names"):
        manual(tmp_path, changed, samples=samples)
    for name in ("left__a_v01.png", "images/left/a/v01.png", "left_a_v01.png"):
        changed["images"][0]["file_name"] = name
        judge = manual(tmp_path, changed, samples=samples)
        assert boxes_of(judge, "images/left__a_v01.png") == [BOX]
        assert boxes_of(judge, "images/right__a_v01.png") is None


def test_two_images_of_one_variation_are_refused(tmp_path: Path) -> None:
    changed = content()
    changed["images"][2]["file_name"] = "a_v01_png.rf.00ff.jpg"
    with pytest.raises(InputError, match=r"are both variation 1 of a\.png"):
        manual(tmp_path, changed)


def test_labels_of_images_of_another_size_are_refused(tmp_path: Path) -> None:
    changed = content()
    changed["images"][0] |= {"width": 40, "height": "30"}
    with pytest.raises(InputError, match=r"40 x 30 pixels, the image has 80 x 60"):
        manual(tmp_path, changed)
    del changed["images"][0]["width"]
    assert boxes_of(manual(tmp_path, changed), "images/a_v01.png") == [BOX]


def test_names_of_classes_may_be_written_in_other_ways(tmp_path: Path) -> None:
    changed = content()
    changed["categories"] = [{"id": 3, "name": " schi\u0308ff"}, {"id": 13, "name": "buoy\n"}]
    for name in ("sch\u00efff ", "schi\u0308ff"):
        judge = manual(tmp_path, changed, classes=(name, " buoy"))
        assert boxes_of(judge, "images/a_v01.png") == [BOX]


def test_what_is_wrong_is_said_alone(tmp_path: Path) -> None:
    changed = content()
    changed["annotations"][0]["category_id"] = 7
    with pytest.raises(InputError) as caught:
        manual(tmp_path, changed)
    assert "no COCO file" not in str(caught.value)


def test_sizes_and_names_of_other_kinds_are_explained(tmp_path: Path) -> None:
    changed = content()
    changed["images"][0]["width"] = float("inf")
    with pytest.raises(InputError, match="is no whole number: inf"):
        manual(tmp_path, changed)
    changed = content()
    changed["images"][0]["file_name"] = 17
    with pytest.raises(InputError, match="file_name must be text, not 17"):
        manual(tmp_path, changed)


def test_names_too_long_for_files_are_not_looked_up(tmp_path: Path) -> None:
    changed = content()
    changed["images"][2]["file_name"] = "x" * 300
    assert boxes_of(manual(tmp_path, changed), "images/a_v01.png") == [BOX]


@pytest.mark.parametrize(
    ("bbox", "kind"), [([0.2, 0.3, 0.1, 0.1], "look normalised"), ([50, 40, 70, 55], "look like corners")]
)
def test_boxes_written_in_other_ways_are_refused(tmp_path: Path, bbox: list[float], kind: str) -> None:
    changed = content()
    changed["annotations"] = [
        {"id": number, "image_id": 1, "category_id": 3, "bbox": [*bbox[:3], bbox[3] + number / 1000]}
        for number in range(6)
    ]
    with pytest.raises(
        InputError, match=rf"labels\.file=.*: boxes that {kind}.*COCO boxes are \[x, y, width, height\]"
    ):
        manual(tmp_path, changed)


STORED = "images/a_v01.png"


@pytest.mark.parametrize("image_id", ["1", 99, None, 1.5])
def test_boxes_of_no_image_of_the_file_are_not_lost_unsaid(
    tmp_path: Path, image_id: Any, caplog: pytest.LogCaptureFixture
) -> None:
    changed = content()
    changed["annotations"][0]["image_id"] = image_id
    if image_id == 99:  # images may have been taken out of a file, and their boxes forgotten
        assert boxes_of(manual(tmp_path, changed), STORED) == []
        assert "1 boxes are of images that the file lacks" in caplog.text
        changed["annotations"][1]["image_id"] = 98
    with pytest.raises(InputError, match=r"labels\.file=.*, annotation 1: image_id .* is of no image"):
        manual(tmp_path, changed)
    changed["annotations"][0]["image_id"] = 1.0
    changed["annotations"][1]["image_id"] = 2  # of an image that is not confirmed
    assert boxes_of(manual(tmp_path, changed), STORED) == [BOX]


@pytest.mark.parametrize("bbox", [None, [], [10, 20, 5], [10, 20, 5, 6, 30], {"x": 1}, "here", [[10, 20, 5, 6]]])
def test_what_is_no_box_is_named(tmp_path: Path, bbox: Any) -> None:
    changed = content()
    changed["annotations"][0]["bbox"] = bbox
    with pytest.raises(InputError, match=r"annotation 1: bbox .* is no box"):
        manual(tmp_path, changed)
    del changed["annotations"][0]["bbox"]
    with pytest.raises(InputError, match="annotation 1: bbox None is no box"):
        manual(tmp_path, changed)


@pytest.mark.parametrize(("mark", "confirmed"), [("true", True), (1, True), (1.0, True), ("no", False), (0, False)])
def test_a_mark_means_the_same_however_it_is_written(tmp_path: Path, mark: Any, confirmed: bool) -> None:
    changed = content()
    changed["images"][0]["confirmed"] = mark
    for every_image in (False, True):
        judge = manual(tmp_path, changed, every_image=every_image)
        assert boxes_of(judge, STORED) == ([BOX] if confirmed else None)
        # Versions that took the word true alone read another set of labels.
        assert judge.read_as_before == (not confirmed)
    changed["images"][0]["confirmed"] = "perhaps"
    with pytest.raises(InputError, match=r"images/a/v01\.png: confirmed is neither yes nor no, 'perhaps'"):
        manual(tmp_path, changed)


@pytest.mark.parametrize("size", ["", None, " ", "80", 80.0])
def test_sizes_are_read_as_those_of_data_sets(tmp_path: Path, size: Any) -> None:
    changed = content()
    changed["images"][0]["width"] = size
    assert boxes_of(manual(tmp_path, changed), STORED) == [BOX]
    for wrong in ("wide", 80.6, [80], True):
        changed["images"][0]["width"] = wrong
        with pytest.raises(InputError, match=r"images/a/v01\.png: width or height is no whole number"):
            manual(tmp_path, changed)


def test_suspicious_boxes_are_counted_aloud(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    changed = content()
    changed["annotations"] = [changed["annotations"][0] | {"id": number} for number in range(6)]
    for number, annotation in enumerate(changed["annotations"]):
        annotation["bbox"] = [10 * (number // 2), 20, 5, 6]  # each twice
    changed["annotations"][0]["iscrowd"] = "1"
    for annotation in changed["annotations"][:2]:
        annotation["attributes"] = {"rotation": 30.0}
    found = boxes_of(manual(tmp_path, changed), STORED)
    assert found is not None
    assert len(found) == 6
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [message.split(": ", 1)[1].split(",")[0] for message in said] == [
        "3 boxes stand there twice (same class",
        "1 boxes are crowds (iscrowd 1)",
        "2 boxes are of turned rectangles (attributes.rotation)",
    ]
    assert all("images/a/v01.png" in message for message in said)
    caplog.clear()
    judge_of(tmp_path / "confirmed.json", every_image=True)
    manual(tmp_path, content())
    assert len(caplog.records) == 3


def test_what_a_person_changed_is_kept_with_the_boxes(tmp_path: Path) -> None:
    changed = content()
    changed["annotations"] = [
        {"id": 1, "image_id": 1, "category_id": 13, "bbox": [10, 20, 5, 6], "change": "kept"},
        {"id": 2, "image_id": 1, "category_id": 3, "bbox": [1, 1, 9, 9], "change": "moved", "before": [3, 1, 7, 9.5]},
        {"id": 3, "image_id": 1, "category_id": 3, "bbox": [30, 1, 9, 9], "change": "added"},
    ]
    changed["images"][0]["removed"] = [{"bbox": [40, 40, 5, 5], "category_id": 3}, {"bbox": 1, "category_id": 3}]
    judged = manual(tmp_path, changed)(PIXELS, PIXELS, NO_BOXES, NO_LABELS, "images/a/v01.png")
    assert [(box.box, box.decision, box.evidence) for box in judged.boxes] == [
        ((10, 20, 15, 26), "kept", {}),
        ((1, 1, 10, 10), "shifted", {"moved": 2}),
        ((30, 1, 39, 10), "added", {}),
        ((40, 40, 45, 45), "dropped", {}),
    ]


def test_the_same_file_read_in_another_way_is_another_identity(tmp_path: Path) -> None:
    """A store keeps what it was told, so that names corrected in the data set, and files added, must make another."""
    changed = content()
    changed["categories"] = [{"id": 0, "name": "ship"}, {"id": 1, "name": "buoy"}]
    for annotation, number in zip(changed["annotations"], (1, 0), strict=True):
        annotation["category_id"] = number
    first = manual(tmp_path, changed)
    assert first.identity() == {"file": first.sha256, "matched": 2}  # as older versions, so that stores are found
    swapped = manual(tmp_path, changed, classes=("buoy", "ship"))
    assert boxes_of(swapped, "images/a/v01.png") == [((10, 20, 15, 26), 0)]
    assert swapped.identity() != first.identity()
    changed["images"][2]["file_name"] = "renamed.png"
    left_out = manual(tmp_path, changed)
    write_png(tmp_path / "renamed.png", PIXELS)
    beside = manual(tmp_path, changed)
    assert boxes_of(beside, "images/b/v01.png") == []
    assert beside.identity() != left_out.identity()
    assert manual(tmp_path, changed).identity() == beside.identity()
