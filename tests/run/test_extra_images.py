"""Unlabelled and empty images beside the data set: which are taken, what they are labelled with, what they are not."""

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from coco_reference import coco_metrics
from small_study import Compose, composing

from boxtwin.boxes import iou_matrix
from boxtwin.commands.generate import make_variations
from boxtwin.config.identity import run_name
from boxtwin.datasets.image_io import read_image, write_png
from boxtwin.datasets.sample import Detections, Sample
from boxtwin.datasets.simulated_sar import scenes as sar_scenes
from boxtwin.detector.checkpoint import read_detector
from boxtwin.errors import InputError
from boxtwin.mixing.plan import make_plan
from boxtwin.run import build, label_detectors
from boxtwin.run.build import Prepared, labelling_runs, make_data, make_detector, prepare
from boxtwin.run.extra_images import DETECTORS, read_extra_images
from boxtwin.run.label_detectors import detect_all, make_members, prepare_labelling, trained_file
from boxtwin.run.pretraining import check_other_images, pretraining_run, variations_run
from boxtwin.run.unlabelled import label_unlabelled
from boxtwin.synthesis.controls import CopyPaste
from boxtwin.synthesis.regenerate import reproduce


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study's simulated images, and those of other scenes under other names in a folder without annotations."""
    folder = tmp_path_factory.mktemp("data")
    for seed, name in enumerate(("sar_scenes", "other")):
        sar_scenes.build(folder / name, images=24, image_size=64, chips_per_scene=2, seed=seed)
    (folder / "unlabelled").mkdir()
    for file in sorted((folder / "other" / "images").iterdir())[:8]:
        shutil.copy(file, folder / "unlabelled" / f"U{file.name}")
    return folder


@pytest.fixture(scope="module")
def composed(data: Path) -> Iterator[Compose]:
    scene = "dataset.group_by='^([^_]+)_'"
    short = ("detector.warmup_steps=2", "trainer.steps=96", "trainer.batch_size=4")
    with composing(data / "sar_scenes", data / "made", scene, *short) as composed:
        yield composed


@pytest.fixture
def folder(data: Path, tmp_path: Path) -> Path:
    """A copy of the unlabelled images, to add others to."""
    return Path(shutil.copytree(data / "unlabelled", tmp_path / "images"))


def test_none_by_default(composed: Compose) -> None:
    run = prepare(composed())
    assert (run.extra.number, run.extra.values, label_unlabelled(run)) == (0, {}, ((), {}))
    assert not {"unlabelled_images", "empty_images"} & set(run.condition)


def test_detectors_label_what_they_agree_on(composed: Compose, data: Path) -> None:
    run = prepare(composed(f"dataset.unlabelled={data}/unlabelled"))
    used, metrics = label_unlabelled(run)
    (kept,) = (data / "made" / "detectors").glob("unlabelled-*.json")
    content = json.loads(kept.read_text())
    refused = {entry["file_name"] for entry in content["images"] if "refused" in entry}
    assert {sample.name for sample in used} == {sample.name for sample in run.extra.unlabelled} - refused
    # As the rule says, from the detectors of runs on the labelled images alone.
    config = replace(run.config, labels=replace(run.config.labels, detectors=DETECTORS))
    plain = labelling_runs(config, run.dataset, run.split)
    assert [each.identity for each in plain] == [prepare(composed(f"seed={seed}")).identity for seed in range(3)]
    assert all(trained_file(each, "").exists() for each in plain)
    members = make_members(plain)
    boxes = 0
    for sample in run.extra.unlabelled:
        found = [member.detect(sample.read()) for member in members]
        sure = [int((one.scores >= member.thresholds[0]).sum()) for one, member in zip(found, members, strict=True)]
        labelled = [each for each in used if each.name == sample.name]
        if max(sure) == 0:  # nobody finds anything: an image without objects
            assert len(labelled[0].boxes) == 0
        for each in labelled:
            boxes += len(each.boxes)
            assert len(each.boxes) <= sum(sure)
            for box in each.boxes:  # at least two detectors have a box in the same place
                overlaps = [iou_matrix(box[None].astype(float), one.boxes.astype(float)).max() for one in found]
                assert sorted(overlaps)[1] > 0.5
    assert boxes > 0
    # Nothing is labelled twice.
    written = kept.stat().st_mtime_ns
    assert (metrics["data/unlabelled_images"], metrics["data/unlabelled_refused"]) == (len(used), len(refused))
    again, same = label_unlabelled(prepare(composed(f"dataset.unlabelled={data}/unlabelled", "seed=5")))
    assert same == metrics
    assert [sample.boxes.tolist() for sample in again] == [sample.boxes.tolist() for sample in used]
    assert kept.stat().st_mtime_ns == written


def test_labels_are_those_of_the_file_whatever_else_lies_in_the_folder(composed: Compose, data: Path) -> None:
    run = prepare(composed(f"dataset.unlabelled={data}/unlabelled"))
    used, metrics = label_unlabelled(run)
    moved = tuple(replace(sample, image_id=sample.image_id + 1) for sample in run.extra.unlabelled)
    again, same = label_unlabelled(replace(run, extra=replace(run.extra, unlabelled=moved)))
    assert same == metrics
    assert {one.name: one.boxes.tolist() for one in again} == {one.name: one.boxes.tolist() for one in used}


def test_they_join_the_training_as_images_of_their_own(composed: Compose, data: Path) -> None:
    plain = prepare(composed("variations=1"))
    run = prepare(composed("variations=1", f"dataset.empty={data}/unlabelled"))
    # Nothing that follows from the labelled images changes, and they get no variations.
    assert [sample.name for sample in run.sources] == [sample.name for sample in plain.sources]
    assert run.store.key == plain.store.key
    assert (run.levels, run.split.digest) == (plain.levels, plain.split.digest)
    assert make_detector(run).hparams == make_detector(plain).hparams
    plan = make_plan(run.split, (), run.extra.empty)
    assert (plan.real_train, plan.synthetic_train, len(plan.pool)) == (6, 0, 14)
    loader: Any = make_data(run, plan).train_dataloader()
    drawn = [loader.images[place] for place in range(14)]
    assert {sample.name for _, _, sample in drawn} == {sample.name for sample in plan.pool}


def test_what_defines_a_run(composed: Compose, data: Path, folder: Path) -> None:
    plain = prepare(composed())
    unlabelled, empty = (prepare(composed(f"dataset.{name}={folder}")) for name in ("unlabelled", "empty"))
    assert len({plain.identity, unlabelled.identity, empty.identity}) == 3
    assert prepare(composed(f"dataset.unlabelled={data}/unlabelled")).identity == unlabelled.identity
    values = {key: value for key, value in unlabelled.condition.items() if plain.condition.get(key) != value}
    assert values.keys() == {"unlabelled_images"}
    assert values["unlabelled_images"].startswith("8-")
    assert run_name(unlabelled.config) == run_name(plain.config).replace("-yolov3", "-with_unlabelled-yolov3")
    next(folder.iterdir()).unlink()
    assert prepare(composed(f"dataset.unlabelled={folder}")).identity != unlabelled.identity


def test_a_pretraining_does_not_see_them(composed: Compose, folder: Path) -> None:
    first = ("pretraining=variations", "pretraining.steps=6", "pretraining.per_image=1")
    runs = [pretraining_run(prepare(composed(*first, *more))) for more in ((), (f"dataset.unlabelled={folder}",))]
    assert len({run.identity for run in runs if run}) == 1


def test_an_epoch_has_them_too(composed: Compose, folder: Path) -> None:
    epochs = ("trainer.steps=null", "trainer.epochs=12")
    assert [prepare(composed(*epochs, *more)).steps for more in ((), (f"dataset.empty={folder}",))] == [18, 42]


def test_training_images_do_not_come_twice(composed: Compose, folder: Path) -> None:
    run = prepare(composed())
    for sample in run.split.train[:2]:
        shutil.copy(sample.path, folder / f"again_{sample.name}")
    more = prepare(composed(f"dataset.unlabelled={folder}")).extra
    assert (more.number, more.values["unlabelled_images"][:3]) == (8, "10-")


def test_images_of_another_size_are_shown_at_the_scale_of_the_data_set(
    composed: Compose, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = sorted(folder.iterdir())
    usual = prepare(composed(f"dataset.unlabelled={folder}"))
    assert {sample.relative_size for sample in usual.extra.unlabelled} == {1.0}
    assert "longer side" not in caplog.text
    # One twice as large, one of a quarter.
    pixels = [read_image(file) for file in files[:2]]
    write_png(files[0], np.pad(pixels[0], ((0, 64), (0, 64))))
    write_png(files[1], pixels[1][:16, :10])
    run = prepare(composed(f"dataset.unlabelled={folder}"))
    assert [sample.relative_size for sample in run.extra.unlabelled] == [2.0, 0.25, *[1.0] * 6]
    assert "2 of 8 images have a longer side of 16 to 128 pixels, and those of the data set 64" in caplog.text
    assert prepare(composed(f"dataset.empty={folder}")).extra.empty[0].relative_size == 2.0
    # Training shows the pixels of each at the scale of the data set, here as they are.
    plan = make_plan(run.split, (), run.extra.unlabelled)
    still = ("dataset.augmentation.zoom=1", "dataset.augmentation.mosaic=0", "dataset.augmentation.gain=0")
    unmoved = ("flip_horizontal=false", "flip_vertical=false", "quarter_turns=false", "speckle=0", "translate=0")
    shown = prepare(composed(f"dataset.unlabelled={folder}", *still, *(f"dataset.augmentation.{e}" for e in unmoved)))
    loader: Any = make_data(shown, plan).train_dataloader()
    drawn = {sample.name: image.pixels for image, _, sample in (loader.images[place] for place in range(14))}
    small = drawn[files[1].name]
    np.testing.assert_array_equal(small[24:40, 27:37], read_image(files[1]))
    large, window = read_image(files[0]), drawn[files[0].name]
    places = [(y, x) for y in range(65) for x in range(65) if (large[y : y + 64, x : x + 64] == window).all()]
    assert places
    # So do the detectors that label them: the corner of the large one is the image that it was.
    config = replace(run.config, labels=replace(run.config.labels, detectors=1))
    (member,) = make_members(labelling_runs(config, run.dataset, run.split))
    corner = []
    for one in (np.pad(pixels[0], ((0, 64), (0, 64))), pixels[0]):
        found = member.detect(one)
        inner = (found.boxes[:, :2] + found.boxes[:, 2:]).max(axis=1) / 2 < 40
        corner.append(np.c_[found.boxes, found.scores][inner][:10])
    assert len(corner[1]) == 10
    np.testing.assert_allclose(corner[0], corner[1], atol=0.01)


@pytest.mark.parametrize("setting", ["unlabelled", "empty"])
def test_images_of_validation_and_test_are_refused(composed: Compose, folder: Path, setting: str) -> None:
    split, refused = prepare(composed()).split, f"dataset.{setting}={folder}"
    message = rf"dataset\.{setting}=\S+: the folder holds .* copies of 1 validation or test images of split s1: "
    file = folder / "copy.png"
    shutil.copy(split.test[0].path, file)
    with pytest.raises(InputError, match=message + split.test[0].name):
        prepare(composed(refused))
    # The same pixels in another file, and nearly the same.
    file.unlink()
    pixels = read_image(split.val[0].path)
    cv2.imwrite(str(folder / "copy.bmp"), pixels)
    with pytest.raises(InputError, match=message + split.val[0].name):
        prepare(composed(refused))
    cv2.imwrite(str(folder / "copy.bmp"), np.clip(pixels.astype(int) + 2, 0, 255).astype(np.uint8))
    with pytest.raises(InputError, match=message + rf"{split.val[0].name} \(nearly copy\.bmp\)"):
        prepare(composed(refused))
    (folder / "copy.bmp").unlink()
    next(folder.iterdir()).rename(folder / f"{split.test[0].group}_9_9.png")
    with pytest.raises(InputError, match="1 images show scenes of validation or test images"):
        prepare(composed(refused))


def test_scenes_that_equal_images_have_joined_are_refused_by_each_name(composed: Compose, folder: Path) -> None:
    run = prepare(composed(f"dataset.unlabelled={folder}"))
    scene = run.split.test[0].group
    joined = replace(run.split, test=tuple(replace(sample, group="S") for sample in run.split.test))
    assert read_extra_images(run.config, run.dataset, joined).number == run.extra.number
    next(folder.iterdir()).rename(folder / f"{scene}_9_9.png")
    with pytest.raises(InputError, match="1 images show scenes of validation or test images"):
        read_extra_images(run.config, run.dataset, joined)
    first = run.split.train[0]
    other = replace(run.dataset, name="other", samples=(replace(first, name=f"{scene}_8_8.png"),))
    with pytest.raises(InputError, match="1 images of other show scenes of validation or test images"):
        check_other_images(other, run.dataset, joined, run.config.split.group_by)


def test_what_is_no_image_is_refused(composed: Compose, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"dataset\.empty=\S+: there is no such folder"):
        prepare(composed(f"dataset.empty={tmp_path}/nowhere"))
    (folder / "cut.png").write_bytes(next(folder.iterdir()).read_bytes()[:99])
    with pytest.raises(InputError, match=r"dataset\.unlabelled: 1 image\(s\) cannot be read: .*cut\.png"):
        prepare(composed(f"dataset.unlabelled={folder}"))
    write_png(folder / "cut.png", np.arange(64 * 64, dtype=np.uint16).reshape(64, 64))
    with pytest.raises(InputError, match="images must be 8 bit or 16 bit throughout"):
        prepare(composed(f"dataset.unlabelled={folder}"))


def test_generators_learn_from_them_where_asked(composed: Compose, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learning, fit = [], CopyPaste.fit

    def recorded(generator: CopyPaste, training: Sequence[Sample], place: Path) -> None:
        learning.append([sample.name for sample in training])
        fit(generator, training, place)

    monkeypatch.setattr(CopyPaste, "fit", recorded)
    unlabelled = (f"dataset.unlabelled={data}/unlabelled", "variations=1", "generator=copy_paste", "labels.detectors=0")
    learnt = (*unlabelled, "variations.learn_unlabelled=true")
    usual, run = prepare(composed(*unlabelled)), prepare(composed(*learnt))
    assert usual.store.key == prepare(composed(*unlabelled[1:])).store.key != run.store.key
    assert usual.identity != run.identity
    with pytest.raises(ValueError, match="the unlabelled images to learn from have not been set"):
        label_and_make(run)
    make_variations(usual)
    make_variations(run)
    assert run.store.more is not None
    used, _ = label_unlabelled(run)
    assert [sample.name for sample in run.store.more] == [sample.name for sample in used]
    training = [sample.name for sample in run.split.train]
    assert learning == [training, [*training, *(sample.name for sample in used)]]
    # They cannot be compared; lost images are made again by the same command.
    with pytest.raises(InputError, match="has learnt from unlabelled images too"):
        reproduce(run.store.folder, run.store.generator, run.dataset)
    images = sorted(run.store.folder.glob("images/*"))
    content = images[0].read_bytes()
    images[0].unlink()
    make_variations(prepare(composed(*learnt)))
    assert images[0].read_bytes() == content
    # Variations of a pre-training are made alike.
    before = ("pretraining=variations", "pretraining.per_image=1", "pretraining.steps=6", "variations=0")
    first = prepare(composed(*(each for each in learnt if each != "variations=1"), *before))
    assert first.condition["pretraining_images"] == run.store.key
    trained = pretraining_run(first)
    assert trained is not None
    assert trained.store.key == run.store.key
    make_variations(variations_run(first))
    assert len(trained.store.variations(trained.sources, 1)) == len(trained.sources)
    # Generators that learn nothing, and runs without variations, stay the same.
    assert prepare(composed(*learnt, "generator=repeat")).store.key == prepare(composed("variations=1")).store.key
    plain = (unlabelled[0], "variations=0")
    assert prepare(composed(*plain, learnt[-1])).identity == prepare(composed(*plain)).identity
    with pytest.raises(InputError, match=r"learn_unlabelled=true needs dataset\.unlabelled=FOLDER"):
        prepare(composed("variations.learn_unlabelled=true"))


def label_and_make(run: Prepared) -> None:
    """Make variations without the preparation that the generator needs."""
    prepare_labelling(run)
    run.store.make(run.sources, 1)


def test_detectors_that_have_learnt_little_are_named(
    composed: Compose, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO")
    run = prepare(composed("labels.detectors=1"))
    (alone,) = labelling_runs(run.config, run.dataset, run.split)
    found = detect_all(alone, read_detector(trained_file(alone, "")), run.split.val)
    truth = coco_metrics(run.split.val, found, run.dataset.category_ids)["map_50"]
    for least, warned in ((truth - 0.01, False), (truth + 0.01, True)):
        monkeypatch.setattr(label_detectors, "LEAST_AP50", least)
        caplog.clear()
        make_members([alone])
        assert any("has learnt little" in record.message for record in caplog.records) == warned
        assert f"AP50 {truth:.2f} on {len(run.split.val)} validation images" in caplog.text


def test_the_limit_of_detections_holds_before_a_threshold_is_chosen(
    composed: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "detection_limit", lambda _: 2)
    run = prepare(composed("labels.detectors=1"))
    (alone,) = labelling_runs(run.config, run.dataset, run.split)
    numbers: list[int] = []

    def counted(*arguments: Any) -> dict[int, Detections]:
        found = detect_all(*arguments)
        numbers.extend(len(each.scores) for each in found.values())
        return found

    monkeypatch.setattr(label_detectors, "detect_all", counted)
    trained_file(alone, "")
    assert len(numbers) == len(run.split.val)
    assert max(numbers) == 2
