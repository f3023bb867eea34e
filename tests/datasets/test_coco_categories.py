"""Crowds and categories of COCO files: what is counted, and as what."""

from typing import Any

import pytest
from conftest import MakeCoco

from boxtwin.datasets.options import Crowds, OnDuplicateBox
from boxtwin.errors import InputError


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
