"""Boxes as they should be and as other tools write them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import MakeCoco
from hypothesis import given
from hypothesis import strategies as st

from boxtwin.boxes import xyxy_to_xywh
from boxtwin.datasets.coco_boxes import ROUNDING, check_box, is_turned, left_upper_part, other_format, repeats
from boxtwin.datasets.options import OnBadBox, OnDuplicateBox
from boxtwin.datasets.sample import Dataset, Sample
from boxtwin.datasets.variation_names import image_name
from boxtwin.errors import InputError
from boxtwin.labels.manual import ManualLabels
from boxtwin.labels.method import Variations
from boxtwin.labels.options import LabelOptions

SEEDS = st.integers(0, 2**32 - 1)
UNTOLD = float("nan")


def corners(seed: int, *, boxes: int = 60, smallest: float = 0.02, largest: float = 0.3) -> tuple[np.ndarray, ...]:
    """Corners of boxes anywhere in their images, and the sizes of these, all by chance."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(64, 2000, size=(boxes, 2)).astype(float)
    extent = rng.uniform(smallest, largest, size=(boxes, 2)) * sizes
    start = rng.random((boxes, 2)) * (sizes - extent)
    return np.concatenate([start, start + extent], axis=1).round(2), sizes


@given(SEEDS, st.booleans())
def test_boxes_as_they_should_be_are_not_taken_for_others(seed: int, with_areas: bool) -> None:
    boxes, sizes = corners(seed)
    boxes = xyxy_to_xywh(boxes)
    areas = boxes[:, 2] * boxes[:, 3] if with_areas else np.full(len(boxes), UNTOLD)
    assert other_format(boxes, sizes, areas) == ("", "")
    # One pixel more at the right and lower border, as VOC's tools write, and sloppy borders change nothing.
    assert other_format(boxes + np.array([0, 0, 1, 1]), sizes, areas) == ("", "")
    assert other_format(boxes + np.array([-3, -3, 9, 9]), sizes, areas) == ("", "")


@given(SEEDS)
def test_one_large_object_in_each_image_is_not_taken_for_corners(seed: int) -> None:
    boxes, sizes = corners(seed, smallest=0.6, largest=1.0)
    boxes = xyxy_to_xywh(boxes)
    areas = boxes[:, 2] * boxes[:, 3]
    assert other_format(boxes, sizes, areas) == ("", "")
    assert other_format(boxes + np.array([0, 0, 1, 1]), sizes, areas) == ("", "")


@given(SEEDS)
def test_corners_are_recognised(seed: int) -> None:
    boxes, sizes = corners(seed)
    untold = np.full(len(boxes), UNTOLD)
    assert "corners" in other_format(boxes, sizes, untold)[0]
    assert "x2 - x1" in other_format(boxes, sizes, untold)[1]
    # In the left upper part alone none leads out of its image, but their areas are told.
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    assert "corners" in other_format(boxes, 3 * sizes, areas)[0]
    assert other_format(boxes, 3 * sizes, untold) == ("", "")


@given(SEEDS)
def test_shares_are_recognised_as_corners_and_as_sizes(seed: int) -> None:
    boxes, sizes = corners(seed)
    for written in (boxes, xyxy_to_xywh(boxes)):
        kind, cure = other_format(written / np.tile(sizes, 2), sizes, np.full(len(boxes), UNTOLD))
        assert "normalised" in kind
        assert "pixels" in cure


def test_a_box_of_one_whole_pixel_in_the_corner_is_a_box() -> None:
    assert check_box([0, 0, 1, 1], 50, 50) == ("", (0, 0, 1, 1))
    assert "normalised" in check_box([0, 0, 0.5, 1], 50, 50)[0]
    boxes, sizes = np.array([[0.0, 0, 1, 1], [10, 10, 9, 9], [20, 3, 9, 9]]), np.full((3, 2), 50.0)
    assert other_format(boxes, sizes, boxes[:, 2] * boxes[:, 3]) == ("", "")
    # All of them, though, are shares of whole images.
    assert "normalised" in other_format(boxes[:1], sizes[:1], np.ones(1))[0]


@pytest.mark.parametrize("write", ["corners", "shares"])
@pytest.mark.parametrize("policy", ["error", "clip", "drop"])
def test_boxes_in_another_form_are_refused_whatever_is_done_with_bad_ones(
    make_coco: MakeCoco, write: str, policy: str
) -> None:
    built = make_coco(images=8, objects=(3,))
    for annotation in built.content["annotations"]:
        x, y, w, h = annotation["bbox"]
        annotation["bbox"] = [x, y, x + w, y + h] if write == "corners" else [x / 80, y / 64, w / 80, h / 64]
    with pytest.raises(InputError) as caught:
        built.read(on_bad_box=OnBadBox(policy))
    first, *others = str(caught.value).splitlines()
    assert f"look {'like corners' if write == 'corners' else 'normalised'}" in first
    assert ": 24." in first
    assert "clip" not in "".join(others)
    assert "S00_0.png" in others[1]


def test_centres_are_hinted_at(make_coco: MakeCoco) -> None:
    built = make_coco(images=20, objects=(3,))
    for annotation in built.content["annotations"]:
        x, y, w, h = annotation["bbox"]
        annotation["bbox"] = [x + w / 2, y + h / 2, w, h]
    with pytest.raises(InputError, match="reach outside") as caught:
        built.read()
    assert "centres" in str(caught.value).splitlines()[-1]


@given(SEEDS)
def test_labels_of_smaller_images_are_suspicious(seed: int) -> None:
    boxes, sizes = corners(seed)
    boxes = xyxy_to_xywh(boxes)
    assert left_upper_part(boxes, sizes) is None
    reach = left_upper_part(boxes, 2 * sizes)
    assert reach is not None
    assert max(reach) <= 0.5


OVERHANG = st.floats(0, 3 * ROUNDING, allow_nan=False)


@given(OVERHANG, OVERHANG, OVERHANG, OVERHANG)
def test_one_rounding_holds_for_every_side(left: float, top: float, right: float, bottom: float) -> None:
    fault, box = check_box([-left, -top, 80 + left + right, 64 + top + bottom], 80, 64)
    assert bool(fault) == (max(left, top, right, bottom) > ROUNDING + 1e-9) or max(left, top, right, bottom) > 0.0099
    assert box == pytest.approx((0, 0, 80, 64))


@pytest.mark.parametrize("overhang", [0.0003, 0.009, 0.02])
@pytest.mark.parametrize("side", range(4))
def test_labels_by_hand_and_data_sets_round_alike(
    make_coco: MakeCoco, tmp_path: Path, overhang: float, side: int
) -> None:
    bbox = [[-overhang, 5, 9, 9], [5, -overhang, 9, 9], [71, 5, 9 + overhang, 9], [5, 55, 9, 9 + overhang]][side]
    built = make_coco(images=1, objects=(1,))
    built.content["annotations"][0] |= {"bbox": bbox, "area": 81}
    file = tmp_path / "labels.json"
    image = {**built.content["images"][0], "confirmed": True, "file_name": image_name("S00_0.png", 1)}
    file.write_text(json.dumps({**built.content, "images": [image]}))
    (kind,) = built.content["categories"]
    pixels, none = np.zeros((64, 80), np.uint8), np.zeros(0, np.int64)

    def by_hand() -> Any:
        no_boxes, nothing = np.zeros((0, 4), np.float32), np.zeros(0)
        source = Sample("S00_0.png", tmp_path, 80, 64, 1, no_boxes, none, nothing, nothing.astype(bool))
        dataset = Dataset("a", (kind["name"],), (kind["id"],), (source,), "")
        manual = ManualLabels(LabelOptions(file=str(file)), Variations(dataset, "repeat", "exact"))
        (box,) = manual(pixels, pixels, no_boxes, none, image=image["file_name"]).boxes
        return box.box

    if overhang > ROUNDING:
        for read in (built.read, by_hand):
            with pytest.raises(InputError, match="reach"):
                read()
    else:
        np.testing.assert_allclose(by_hand(), built.read().samples[0].boxes[0], atol=1e-5)


@pytest.mark.parametrize(
    ("attributes", "turned"),
    [
        *(({"rotation": angle}, True) for angle in (12.5, "90.0", 270, -3)),
        *(({"rotation": angle}, False) for angle in (0.0, 180, None, "left", [3])),
        *((attributes, False) for attributes in (dict[str, Any](), None, [1])),
    ],
)
def test_turned_rectangles(make_coco: MakeCoco, attributes: Any, turned: bool) -> None:
    assert is_turned({"attributes": attributes}) is turned
    built = make_coco()
    built.content["annotations"][4]["attributes"] = attributes
    remarks = built.read().remarks
    assert len(remarks) == turned
    assert all("1 boxes of turned" in remark and "S02_0.png" in remark for remark in remarks)


@given(SEEDS)
def test_repeats_are_found_and_nothing_else(seed: int) -> None:
    rng = np.random.default_rng(seed)
    # Apart by construction: each in its own column.
    boxes = np.array([[20 * n, 5, 20 * n + 15, 20] for n in range(12)], dtype=float)
    kinds = rng.integers(0, 2, size=12)
    again = rng.choice(12, size=4, replace=False)
    moved = boxes[again] + rng.uniform(-0.15, 0.15, size=(4, 4))
    together, labels = np.concatenate([boxes, moved]), [*kinds.tolist(), *kinds[again].tolist()]
    assert repeats(together, labels) == [12, 13, 14, 15]
    assert repeats(together, [*kinds.tolist(), *(2 + kinds[again]).tolist()]) == []
    assert repeats(boxes[:0], []) == []
    # In an image with hundreds of boxes too.
    many = np.concatenate([together + np.array([0, 30 * n, 0, 30 * n]) for n in range(40)])
    assert repeats(many, labels * 40) == [16 * n + place for n in range(40) for place in (12, 13, 14, 15)]


def with_repeats(make_coco: MakeCoco) -> Any:
    built = make_coco(classes=("a", "b"))
    first, second = built.content["annotations"][:2]
    built.content["annotations"] += [
        first | {"id": 900},
        second | {"id": 901, "category_id": 16 - second["category_id"]},
    ]
    return built


def test_boxes_that_stand_there_twice(make_coco: MakeCoco) -> None:
    built = with_repeats(make_coco)
    plain = make_coco(classes=("a", "b"), folder="plain")
    warned, merged = built.read(), built.read(on_duplicate_box=OnDuplicateBox.merge)
    assert [len(dataset.samples[0].boxes) for dataset in (plain.read(), warned, merged)] == [2, 4, 3]
    assert warned.repairs == {}
    assert merged.repairs == {"merged": 1}
    for dataset in (warned, merged):
        remark, other = sorted(dataset.remarks, reverse=True)
        assert remark.startswith("1 boxes stand there twice")
        assert other.startswith("1 boxes lie on a box of another class")
        assert "S00_0.png" in remark
    with pytest.raises(InputError, match=r"boxes that stand there twice: 1\.") as caught:
        built.read(on_duplicate_box=OnDuplicateBox.error)
    assert "    S00_0.png: " in str(caught.value)
    assert plain.read().remarks == ()


@pytest.mark.parametrize("drop", [True, False])
def test_annotations_without_a_box_are_listed_and_told_what_a_box_is(make_coco: MakeCoco, drop: bool) -> None:
    built = make_coco()
    for annotation in built.content["annotations"][::3]:
        annotation["segmentation"] = {"counts": [0, 5], "size": [64, 80]}  # run lengths are not decoded
        annotation["bbox"] = []
        if drop:
            del annotation["bbox"]
    with pytest.raises(InputError) as caught:
        built.read()
    first = str(caught.value).splitlines()[0]
    assert "[x, y, width, height]: 3." in first
    assert built.read(on_bad_box=OnBadBox.drop).repairs == {"dropped": 3}


def test_what_is_done_with_bad_boxes_is_told_with_names(make_coco: MakeCoco) -> None:
    built = make_coco()
    built.content["annotations"][0]["bbox"] = [5, 5, 0, 9]
    built.content["annotations"][3]["bbox"] = [75, 5, 9, 9]
    remarks = built.read(on_bad_box=OnBadBox.clip).remarks
    assert any("1 bad boxes dropped, in S00_0.png" in remark for remark in remarks)
    assert any("1 bad boxes clipped, in S01_0.png" in remark for remark in remarks)


def test_placeholders_do_not_look_normalised() -> None:
    boxes = np.array([[0.0, 0, 0, 0]] * 3 + [[10, 20, 30, 40]])
    sizes, untold = np.full((4, 2), 100.0), np.full(4, UNTOLD)
    assert other_format(boxes, sizes, untold) == ("", "")
    assert other_format(boxes[:3], sizes[:3], untold[:3]) == ("", "")
    boxes[3] = [0.1, 0.2, 0.3, 0.4]
    assert "normalised" in other_format(boxes, sizes, untold)[0]
