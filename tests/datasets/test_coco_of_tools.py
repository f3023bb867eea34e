"""COCO files as tools of all kinds write them: what is taken, and what a user is told of before training."""

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coco_reference import coco_metrics
from conftest import MakeCoco

from boxtwin.datasets.coco import read_coco
from boxtwin.datasets.coco_json import load_json
from boxtwin.datasets.options import OnDuplicateBox
from boxtwin.datasets.sample import Dataset, Detections
from boxtwin.errors import InputError
from boxtwin.evaluation.coco_metrics import coco_results


def refusal(built: Any, **settings: Any) -> str:
    with pytest.raises(InputError) as caught:
        built.read(**settings)
    return str(caught.value)


def rename(built: Any, names: list[str], told: Callable[[str], str] = str) -> None:
    """Call the images ``names`` on disk, and ``told(name)`` in the file."""
    for image, name in zip(built.content["images"], names, strict=True):
        (built.images / name).parent.mkdir(exist_ok=True)
        (built.images / image["file_name"]).rename(built.images / name)
        image["file_name"] = told(name)


def found_as_labelled(dataset: Dataset) -> dict[int, Detections]:
    return {
        sample.image_id: Detections(sample.object_boxes, np.ones(len(sample.object_boxes)), sample.object_labels)
        for sample in dataset.samples
    }


def test_an_export_of_label_studio(make_coco: MakeCoco) -> None:
    """``result.json`` beside ``images/``, which stands in the names too; all numbers from 0, fields of its own."""
    built = make_coco(images=3)
    plain = built.read()
    rename(built, [f"{n * 2654435761 % 2**32:08x}-a{n}.png" for n in range(3)], "images/{}".format)
    for image in built.content["images"]:
        image["id"] -= 100
    for number, annotation in enumerate(built.content["annotations"]):
        annotation |= {"id": number, "image_id": annotation["image_id"] - 100, "category_id": 0}
        annotation |= {"segmentation": [], "ignore": 0}
    built.content["categories"] = [{"id": 0, "name": "ship"}]
    result = built.root / "result.json"
    result.write_text(json.dumps({**built.content, "info": {"contributor": "Label Studio"}}))
    dataset = read_coco(name="t", images=built.root / ".", annotations=result)
    assert (dataset.classes, dataset.category_ids, dataset.remarks) == (("ship",), (0,), ())
    by_id = {sample.image_id: sample for sample in dataset.samples}
    for sample in plain.samples:
        np.testing.assert_array_equal(by_id[sample.image_id - 100].boxes, sample.boxes)


def test_numbers_from_0_with_gaps_and_points(make_coco: MakeCoco) -> None:
    built = make_coco(images=4, classes=("small", "large", "never"), objects=(0, 3))
    numbers: dict[int, Any] = {3: 0, 13: 4.0, 23: 90}
    for category in built.content["categories"]:
        category |= {"id": numbers[category["id"]], "supercategory": None}
    for image in built.content["images"]:
        image |= {"id": float(image["id"] - 100), "license": None}
    for number, annotation in enumerate(built.content["annotations"]):
        annotation |= {"id": number, "image_id": annotation["image_id"] - 100}
        annotation |= {"category_id": [0, 4.0][number % 2], "iscrowd": None if number % 2 else 0}
        annotation |= {"area": None} if number % 3 else {}
    dataset = built.read()
    assert dataset.category_ids == (0, 4, 90)
    found = found_as_labelled(dataset)
    assert coco_metrics(dataset.samples, found, dataset.category_ids)["map"] == 1.0
    told = [(annotation["image_id"], annotation["category_id"]) for annotation in built.content["annotations"]]
    results = coco_results(found, dataset.category_ids)
    assert sorted((one["image_id"], one["category_id"]) for one in results) == sorted(told)


def test_a_root_category_does_no_harm(make_coco: MakeCoco) -> None:
    """As Roboflow writes it: number 0, without objects, and the ``supercategory`` of the others."""
    built = make_coco(images=3, classes=("rbc", "wbc"))
    for category in built.content["categories"]:
        category["supercategory"] = "cells"
    built.content["categories"].insert(0, {"id": 0, "name": "cells", "supercategory": "none"})
    dataset = built.read()
    assert (dataset.classes, dataset.category_ids, dataset.remarks) == (("cells", "rbc", "wbc"), (0, 3, 13), ())
    labels = np.concatenate([sample.labels for sample in dataset.samples])
    assert set(labels.tolist()) <= {1, 2}
    assert coco_metrics(dataset.samples, found_as_labelled(dataset), dataset.category_ids)["map"] == 1.0


NAMES = ["粒子 $x_1$", "Zelle ü", "a,b=c", "100%", "#1 (neu)", "it's", "русский", "naïve  two", "very" * 40]


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_names_in_all_scripts(make_coco: MakeCoco, form: Any) -> None:
    built = make_coco(images=len(NAMES), classes=('船 $a_b$ / "Schiff"', "粒子, %s {x}"))
    names = [f"{name}.png" for name in NAMES]
    rename(built, names, lambda name: unicodedata.normalize(form, name))
    dataset = built.read()
    assert dataset.classes == ('船 $a_b$ / "Schiff"', "粒子, %s {x}")
    assert sorted(sample.path.name for sample in dataset.samples) == sorted(names)


@pytest.mark.parametrize(
    "told",
    [
        lambda name: name.upper(),
        lambda name: name.replace(" ", "%20").replace("Ä", "%C3%84"),
        lambda name: name.replace("/", "\\").lower(),
    ],
)
def test_names_of_systems_that_know_no_case_and_of_addresses(make_coco: MakeCoco, told: Callable[[str], str]) -> None:
    built = make_coco(images=3)
    names = ["Sub/my image.png", "Sub/b Ä.PNG", "100%25.png"]
    rename(built, names, told)
    found = {sample.name: sample.path for sample in built.read().samples}
    assert found == {told(name): built.images / name for name in names}


def test_a_name_that_may_mean_two_files_means_none(make_coco: MakeCoco) -> None:
    built = make_coco(images=2)
    rename(built, ["a.png", "A.png"])
    assert [sample.path.name for sample in built.read().samples] == ["A.png", "a.png"]
    built.content["images"][0]["file_name"] = "A.PNG"
    assert "images missing" in refusal(built).splitlines()[0]


def test_one_file_under_two_names_is_used_twice(make_coco: MakeCoco) -> None:
    built = make_coco(images=3)
    built.content["images"][2]["file_name"] = "s00_0.PNG"
    assert "file names used twice: 1" in refusal(built).splitlines()[0]


def test_classes_that_differ_in_case_alone_are_named(make_coco: MakeCoco) -> None:
    built = make_coco(images=3)
    built.content["categories"].append({"id": 5, "name": "Ship"})
    assert built.read().remarks == ()  # nothing is of that class
    built.content["annotations"][0]["category_id"] = 5
    dataset = built.read()
    assert dataset.classes == ("ship", "Ship")
    (remark,) = dataset.remarks
    assert "'ship' (3), 'Ship' (5)" in remark


@pytest.mark.parametrize("name", [None, "", "  ", ["a"], {"a": 1}, True])
def test_names_of_categories_that_are_no_text(make_coco: MakeCoco, name: Any) -> None:
    built = make_coco()
    built.content["categories"][0]["name"] = name
    message = refusal(built)
    assert "names of categories that are no text: 1" in message.splitlines()[0]
    assert f"    3: {name!r}" in message


def with_polygons(built: Any, polygon: Callable[[float, float, float, float], list[float]]) -> Any:
    for annotation in built.content["annotations"]:
        x, y, w, h = annotation["bbox"]
        annotation["segmentation"] = [polygon(x, y, x + w, y + h)]
    return built


def outline(x1: float, y1: float, x2: float, y2: float) -> list[float]:
    return [x1, y1, x2, y1, x2, y2, x1, y2]


def test_boxes_that_are_not_those_of_their_outlines_are_named(make_coco: MakeCoco) -> None:
    built = with_polygons(make_coco(images=4), outline)
    digest = built.read().digest
    assert built.read().remarks == ()
    # In two parts, an empty outline, and run lengths, of which nothing can be said here.
    x, y, w, h = built.content["annotations"][0]["bbox"]
    built.content["annotations"][0]["segmentation"] = [outline(x, y, x + 2, y + 2), outline(x + 2, y + 2, x + w, y + h)]
    built.content["annotations"][1]["segmentation"] = []
    built.content["annotations"][2]["segmentation"] = {"counts": [0, 5], "size": [64, 80]}
    assert built.read().remarks == ()
    with_polygons(built, lambda *box: [value * 2 for value in outline(*box)])  # of images of another size
    dataset = built.read()
    (remark,) = dataset.remarks
    assert "8 of 8 boxes" in remark
    assert "S00_0.png" in remark
    assert dataset.digest == digest
    with_polygons(built, lambda *box: outline(*box)[:2] * 4)  # of no extent
    assert "8 of 8 boxes" in built.read().remarks[0]


@pytest.mark.parametrize("missing", [{}, {"bbox": None}, {"bbox": []}])
def test_boxes_that_are_not_there_are_those_around_polygons(make_coco: MakeCoco, missing: dict[str, Any]) -> None:
    built = with_polygons(make_coco(images=4), outline)
    whole = built.read()
    for annotation in built.content["annotations"][1:]:
        del annotation["bbox"]
        annotation |= missing
    dataset = built.read()
    assert dataset.digest == whole.digest
    (remark,) = dataset.remarks
    assert remark.startswith("7 annotations have no bbox, in S00_0.png, ")
    # Run lengths are not decoded.
    built.content["annotations"][1]["segmentation"] = {"counts": [0, 5], "size": [64, 80]}
    with pytest.raises(InputError, match="boxes that are not four finite numbers"):
        built.read()


@pytest.mark.parametrize(
    "segmentation", ["none", [1, 2, 3], [[1, 2, "a", 4, 5, 6]], [["x"]], [[1, 2]], [None], 5, [[float("nan")] * 6]]
)
def test_outlines_of_other_forms_do_no_harm(make_coco: MakeCoco, segmentation: Any) -> None:
    built = make_coco(images=1)
    built.content["annotations"][0]["segmentation"] = segmentation
    assert built.read().remarks == ()


@pytest.mark.parametrize("factor", [1 / 5120, 100])
def test_areas_that_are_not_those_of_the_boxes_are_named(make_coco: MakeCoco, factor: float) -> None:
    built = make_coco(images=4)
    for annotation in built.content["annotations"]:
        annotation["area"] *= factor
    (remark,) = built.read().remarks
    assert "small, medium and large" in remark
    for annotation in built.content["annotations"][:5]:
        annotation["area"] = 0.3 * annotation["bbox"][2] * annotation["bbox"][3]  # of a mask
    assert built.read().remarks == ()


def test_one_place_in_two_classes_is_named(make_coco: MakeCoco) -> None:
    built = make_coco(images=3, classes=("a", "b"))
    first = built.content["annotations"][0]
    other = {3: 13, 13: 3}[first["category_id"]]
    built.content["annotations"].append(first | {"id": 9, "category_id": other})
    dataset = built.read(on_duplicate_box=OnDuplicateBox.merge)
    assert len(dataset.samples[0].boxes) == 3  # nobody can tell which class is right
    (remark,) = dataset.remarks
    assert remark.startswith("1 boxes")
    assert "S00_0.png" in remark
    built.content["annotations"][-1]["iscrowd"] = 1  # a crowd may be of anything
    assert not any("other class" in remark for remark in built.read().remarks)


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252"])
def test_text_in_another_encoding_is_named(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes('{"name": "Zelle ü"}'.encode(encoding))
    with pytest.raises(InputError, match=r"a\.json is not valid JSON: .* not UTF-8, .*byte 16") as caught:
        load_json(path)
    assert "codec" not in str(caught.value)


def test_a_list_that_stands_there_twice_is_refused(make_coco: MakeCoco) -> None:
    """JSON's readers keep the last one: half of two files that were joined by hand would be gone."""
    built = make_coco()
    text = json.dumps(built.content)
    built.annotations.write_text(f'{text[:-1]}, "annotations": []}}')
    built.by_hand = True
    assert "is not valid JSON: the key 'annotations' occurs twice" in refusal(built)
