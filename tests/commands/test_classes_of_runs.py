"""What classes, images full of objects and images of another depth change in a run before it starts."""

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import MakeCoco
from hydra import compose, initialize_config_dir

from boxtwin.config.compose import register, to_object
from boxtwin.config.identity import defining_values
from boxtwin.config.schema import BoxtwinConfig
from boxtwin.datasets.image_io import read_image
from boxtwin.errors import InputError
from boxtwin.run.build import Prepared, make_detector, prepare

ROOT = Path(__file__).parents[2]
Prepare = Callable[..., Prepared]


@pytest.fixture
def prepared(make_coco: MakeCoco, tmp_path: Path) -> Prepare:
    def prepare_set(*overrides: str, **changes: Any) -> Prepared:
        change = changes.pop("change", None)
        built = make_coco(images=10, sizes=[(96, 96)], seed=3, **changes)
        if change:
            change(built.content)
        built.write()
        register()
        sizes = ("split.train=4", "split.train_pool=4", "split.val=2", "split.test=4", "detector=yolov3_nano")
        place = (f"dataset.root={built.root}", "dataset.image_size=96", "detector.crop=96", f"data={tmp_path}")
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            typed = ["dataset=coco", "dataset.name=t", "variations.per_image=0", *sizes, *place, *overrides]
            return prepare(to_object(compose("config", typed), BoxtwinConfig))

    return prepare_set


def identity_of_the_first_version(run: Prepared) -> str:
    defining = {
        "values": defining_values(run.config),
        "dataset": run.dataset.digest,
        "split": run.split.digest,
        "store": None,
        "weights": None,
    }
    return hashlib.sha256(json.dumps(defining, sort_keys=True).encode()).hexdigest()


def test_sets_of_one_class_keep_their_identity_and_others_only_the_detectors(prepared: Prepare) -> None:
    one = prepared(folder="one")
    assert (one.identity,) == one.detector_identities == (identity_of_the_first_version(one),)
    assert "evaluation" not in one.condition
    two = prepared(classes=("a", "b"), folder="two")
    assert two.detector_identities == (identity_of_the_first_version(two),) != (two.identity,)
    assert two.condition["evaluation"] == 2


@pytest.mark.parametrize(("objects", "limit"), [(150, 300), (151, 302), (400, 800)])
def test_the_limit_of_detections_is_twice_the_fullest_training_image(
    prepared: Prepare, objects: int, limit: int
) -> None:
    run = prepared(objects=(objects,))
    assert make_detector(run).spec.max_detections == limit
    assert (run.identity == identity_of_the_first_version(run)) == (limit == 300)
    assert run.condition.get("max_detections", 300) == limit


def test_classes_are_counted_on_every_side_and_missing_ones_are_told(
    prepared: Prepare, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    names = [f"S{number:02d}_0.png" for number in range(10)]
    split = {"s1": {"train": names[:4], "val": names[4:6], "test": names[6:]}}
    (tmp_path / "split.json").write_text(json.dumps(split))

    def change(content: dict[str, Any]) -> None:
        usual, rare, common = (category["id"] for category in content["categories"][:3])
        for number, annotation in enumerate(content["annotations"]):
            in_test = annotation["image_id"] >= 106
            annotation["category_id"] = rare if in_test and number % 2 else (usual, common)[number % 2]

    with caplog.at_level(logging.INFO):
        prepared(f"split.file={tmp_path}/split.json", classes=("usual", "rare", "common", "never"), change=change)
    said = [(record.levelname, record.message) for record in caplog.records if "class " in record.message]
    assert (
        "INFO",
        "class usual: train 4 objects in 4 images, val 2 objects in 2 images, test 4 objects in 4 images",
    ) in said
    warned = [message for level, message in said if level == "WARNING"]
    assert [message.split("class ")[1].split()[0] for message in warned] == ["rare", "common"]
    assert "4 in test, none in train and val" in warned[0]
    assert "4 in train and 2 in val, none in test" in warned[1]
    assert not [message for _, message in said if "never" in message]


@pytest.mark.parametrize("side", ["train", "val", "test"])
def test_an_image_of_another_depth_on_any_side_is_refused_by_name(prepared: Prepare, tmp_path: Path, side: str) -> None:
    names = [f"S{number:02d}_0.png" for number in range(10)]
    split = {"train": names[:4], "val": names[4:6], "test": names[6:]}
    (tmp_path / "split.json").write_text(json.dumps({"s1": split}))
    odd = split[side][1]

    def change(_: dict[str, Any]) -> None:
        path = tmp_path / "coco" / "images" / odd
        pixels = read_image(path)
        cv2.imwrite(str(path), (pixels // 257).astype(np.uint8))

    with pytest.raises(InputError, match=rf"images must be 8 bit or 16 bit throughout.* 8 bit \({odd}\)"):
        prepared(f"split.file={tmp_path}/split.json", dtypes=(np.uint16,), change=change)


@pytest.mark.parametrize("channels", [(1,) * 9 + (3,), (3,) * 10, (1,) * 10])
def test_the_images_of_a_data_set_decide_whether_networks_see_colour(
    prepared: Prepare, caplog: pytest.LogCaptureFixture, channels: tuple[int, ...]
) -> None:
    """Not those that are trained on: sizes of a split would be compared with different networks."""
    names = [f"S{number:02d}_0.png" for number in range(10)]
    with caplog.at_level(logging.INFO):
        grey = prepared("split.train=4", "split.train_pool=4", "split.seed=1", channels=channels)
    coloured = sum(each == 3 for each in channels)
    expected = 3 if coloured else 1
    assert make_detector(grey).spec.channels == grey.dataset.channels == expected
    assert ("of 10 images have colour" in caplog.text) == (0 < coloured < len(names))
    in_training = any(sample.colour for sample in grey.split.train)
    changed = coloured > 0 and not in_training
    assert (grey.identity == identity_of_the_first_version(grey)) == (not changed)
    assert "channels" not in grey.condition  # of sizes that are compared


@pytest.mark.parametrize("coloured", [0, 1])
def test_grey_stored_as_colour_is_grey(prepared: Prepare, tmp_path: Path, coloured: int) -> None:
    """Such as the images of HRSID: a network must not do the same work three times."""

    def change(content: dict[str, Any]) -> None:
        for entry in content["images"][coloured:]:
            path = tmp_path / "coco" / "images" / entry["file_name"]
            cv2.imwrite(str(path), np.repeat(read_image(path)[:, :, None], 3, axis=2))

    channels = (3,) * coloured + (1,) * (10 - coloured)
    made = prepared("split.train=4", "split.train_pool=4", channels=channels, change=change)
    assert make_detector(made).spec.channels == made.dataset.channels == (3 if coloured else 1)
    assert sum(sample.colour for sample in made.dataset.samples) == coloured
