"""Training on other images first: which images, the detector that is kept, and what defines a run."""

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_study import Compose, composing

from boxtwin.commands.generate import make_variations
from boxtwin.commands.train import Pretrained, pretrained
from boxtwin.config.identity import defining_values, run_name
from boxtwin.datasets.sample import Sample
from boxtwin.datasets.simulated_sar import scenes as sar_scenes
from boxtwin.datasets.splits import SIDES, Split
from boxtwin.detector.checkpoint import read_detector
from boxtwin.errors import InputError
from boxtwin.mixing.datamodule import PrefetchLoader
from boxtwin.mixing.plan import make_plan
from boxtwin.run.build import detector_file, labelling_runs, load_dataset, make_data, make_detector, prepare, train
from boxtwin.run.pretraining import check_other_images, hold_out, in_order_of, pretraining_run

SHORT = (
    "detector.warmup_steps=2",
    "trainer.steps=6",
    "trainer.threads=1",
    "labels.detectors=1",
)
DIFFUSION = "pretraining.redraw=diffusion"
LABELLED = ("pretraining=labelled_images", "pretraining.dataset.name=a", "pretraining.dataset.root=b")
SCENES = (
    "pretraining=sar_scenes",
    "pretraining.steps=6",
    "pretraining.dataset.image_size=64",
    "pretraining.dataset.build.images=6",
    "pretraining.dataset.build.image_size=64",
    "pretraining.dataset.build.chips_per_scene=2",
    "pretraining.model.train_steps=2",
    "pretraining.model.channels=[8,16]",
    "pretraining.model.batch_size=2",
    "pretraining.model.device=cpu",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two simulated sets of different scenes: that of the study, and another."""
    folder = tmp_path_factory.mktemp("data")
    for seed, name in enumerate(("sar_scenes", "other")):
        sar_scenes.build(folder / name, images=24, image_size=64, chips_per_scene=2, seed=seed)
    return folder


@pytest.fixture
def composed(tmp_path: Path, data: Path) -> Iterator[Compose]:
    with composing(data / "sar_scenes", tmp_path, *SHORT) as composed:
        yield composed


@pytest.fixture
def others(data: Path) -> tuple[str, ...]:
    """Overrides of a short pre-training on the other data set."""
    return (
        "pretraining=labelled_images",
        "pretraining.dataset.name=other",
        f"pretraining.dataset.root={data}/other",
        "pretraining.dataset.image_size=64",
        "pretraining.dataset.group_by='^([^_]+)_'",
        "pretraining.steps=6",
    )


def test_a_run_starts_from_the_detector_of_other_images(composed: Compose, others: tuple[str, ...]) -> None:
    prepared = prepare(composed(*others, "seed=3"))
    first_run = pretrained(prepared)
    file, metrics, images, _ = first_run
    assert file is not None
    first = read_detector(file)
    module = make_detector(prepared, file)
    state = module.network.state_dict()
    for name, tensor in first.module.network.state_dict().items():
        if tensor.is_floating_point():  # not the number of batches that a batch normalisation has seen
            torch.testing.assert_close(state[name], tensor, rtol=0, atol=0)
    assert module.network.anchors == first.module.network.anchors
    assert metrics["pretraining/seconds"] > 0
    assert 0 <= metrics["pretraining/map_50"] <= 1
    written = file.stat().st_mtime_ns
    assert images == ()
    assert pretrained(prepare(composed(*others, "seed=4"))) == first_run
    assert file.stat().st_mtime_ns == written


def test_splits_share_a_pretraining(composed: Compose, others: tuple[str, ...]) -> None:
    splits = (["seed=1"], ["split.seed=1"], ["split.train=5"], ["split.train_size=3"], ["split.test=7"])
    runs = [pretraining_run(prepare(composed(*others, *split))) for split in splits]
    assert len({run.detector_identities for run in runs if run is not None}) == 1


def test_images_of_the_pretraining_are_shown_again(composed: Compose, others: tuple[str, ...]) -> None:
    prepared = prepare(composed(*others, "pretraining.share=0.5"))
    run = pretraining_run(prepared)
    assert run is not None
    images = pretrained(prepared).images
    paths = {image.path for image in images}
    assert paths == {sample.path for sample in run.split.train}
    loader = make_data(prepared, make_plan(prepared.split, (), pretraining=images)).train_dataloader()
    assert isinstance(loader, PrefetchLoader)
    draws = loader.images
    shown = [draws[place][2].path in paths for place in range(4 * prepared.config.trainer.batch_size)]
    assert sum(shown) == len(shown) / 2


def test_a_pretraining_alone_is_tested_without_steps(composed: Compose, others: tuple[str, ...]) -> None:
    prepared = prepare(composed(*others, "trainer.steps=0", "pretraining.share=0.5"))
    file, _, images, levels = pretrained(prepared)
    assert file is not None
    data = make_data(prepared, make_plan(prepared.split, (), pretraining=images), levels)
    trained = train(prepared, data, make_detector(prepared, file), file.parent / "checkpoints", "", logger=None)
    for name, tensor in read_detector(file).module.network.state_dict().items():
        if tensor.is_floating_point():
            torch.testing.assert_close(trained.best.network.state_dict()[name], tensor, rtol=0, atol=0)
    variations = ("pretraining=variations", "pretraining.per_image=1", "trainer.steps=0", "labels.agree=1")
    prepare(composed(*variations))
    with pytest.raises(InputError, match="they would be random"):
        prepare(composed(*variations, "labels=pseudo"))


def test_no_pretraining_by_default(composed: Compose) -> None:
    assert pretrained(prepare(composed())) == Pretrained(None, {})


def test_variations_alone_come_first(composed: Compose) -> None:
    prepared = prepare(composed("pretraining=variations", "pretraining.per_image=2", "pretraining.steps=6"))
    run = pretraining_run(prepared)
    assert run is not None
    assert run.library is not None
    assert (run.per_image, run.config.variations.synthetic_fraction) == (2, 1.0)
    assert run.split == prepared.split
    assert prepared.library is None
    file, metrics, *_ = pretrained(prepared)
    assert file is not None
    assert file.exists()
    assert set(metrics) >= {"pretraining/map", "pretraining/map_50", "pretraining/seconds"}


def test_variations_of_a_pretraining_are_those_of_the_run(composed: Compose, tmp_path: Path) -> None:
    """They are labelled by the detectors of the run, not by those of its pre-training's steps and batches."""
    labels = ("labels=pseudo", "labels.agree=1", "labels.detectors=1")
    made = prepare(composed("variations=2", *labels))
    make_variations(made)
    written = made.store.manifest.read_bytes()
    first = ("pretraining=variations", "pretraining.per_image=2", "pretraining.steps=12")
    prepared = prepare(composed(*first, *labels))
    run = pretrained(prepared)
    assert prepared.condition["pretraining_images"] == made.store.key
    assert [store.parent for store in tmp_path.glob("synthetic/*/manifest.jsonl")] == [made.store.folder]
    assert made.store.manifest.read_bytes() == written
    (labelling,) = labelling_runs(made.config, made.dataset, made.split)
    assert set(tmp_path.glob("detectors/*.safetensors")) == {run.file, detector_file(labelling)}


def test_scenes_are_held_out_whole(composed: Compose, others: tuple[str, ...]) -> None:
    run = pretraining_run(prepare(composed(*others)))
    assert run is not None
    sides = [{sample.group for sample in run.split.side(side)} for side in ("train", "val", "test")]
    assert all(sides)
    assert sum(map(len, sides)) == len(set.union(*sides))
    assert sum(len(run.split.side(side)) for side in ("train", "val", "test")) == 24


def test_scenes_of_the_study_are_not_looked_for_in_other_names(
    composed: Compose, others: tuple[str, ...], data: Path, tmp_path: Path
) -> None:
    """The names of the other set have no scene as the study finds it: the set is read with its own group_by."""
    root = Path(shutil.copytree(data / "other", tmp_path / "other"))
    annotations = root / "annotations.json"
    content = json.loads(annotations.read_text())
    for image in content["images"]:
        renamed = image["file_name"].replace("_", "-")
        (root / "images" / image["file_name"]).rename(root / "images" / renamed)
        image["file_name"] = renamed
    annotations.write_text(json.dumps(content))
    scenes = ("dataset.group_by='^([^_]+)_'", "pretraining.dataset.group_by='^([^-]+)-'")
    prepared = prepare(composed(*others, *scenes, f"pretraining.dataset.root={root}"))
    run = pretraining_run(prepared)
    assert run is not None
    assert prepared.condition["pretraining_images"] == run.dataset.digest


def test_each_side_of_a_pretraining_has_objects(composed: Compose) -> None:
    dataset = load_dataset(composed())
    usual = hold_out(dataset)

    def rare(shown: Sequence[Sample]) -> Split:
        names = {sample.name for sample in shown}
        none: dict[str, Any] = {"boxes": np.zeros((0, 4), np.float32), "labels": np.zeros(0, np.int64)}
        none |= {"areas": np.zeros(0), "crowd": np.zeros(0, dtype=bool), "annotations": ()}
        samples = tuple(each if each.name in names else replace(each, **none) for each in dataset.samples)
        return hold_out(replace(dataset, samples=samples))

    with_objects = [sample for sample in usual.train if len(sample.object_boxes)]
    for shown in (with_objects[:3], [*usual.val, *with_objects[:2]], [*usual.val, *usual.test, with_objects[0]]):
        split = rare(shown)
        assert all(any(len(each.object_boxes) for each in split.side(side)) for side in SIDES)
        assert sorted(each.name for side in SIDES for each in split.side(side)) == sorted(
            each.name for each in dataset.samples
        )
    with pytest.raises(InputError, match="has 24 scenes, 2 of them with objects"):
        rare(with_objects[:2])


def test_two_scenes_are_too_few(composed: Compose) -> None:
    dataset = load_dataset(composed())
    names = sorted({str(sample.group or sample.name) for sample in dataset.samples})[:2]
    few = tuple(sample for sample in dataset.samples if (sample.group or sample.name) in names)
    with pytest.raises(InputError, match="has 2 scenes"):
        hold_out(replace(dataset, samples=few))


def test_images_of_the_test_are_refused(composed: Compose, data: Path) -> None:
    same = (
        "pretraining=labelled_images",
        "pretraining.dataset.name=same",
        f"pretraining.dataset.root={data}/sar_scenes",
    )
    prepared = prepare(composed(*same))
    with pytest.raises(InputError, match=r"same holds .* copies of 12 validation or test images of split s1"):
        pretrained(prepared)
    # Training images may come twice.
    of_training = replace(prepared.dataset, samples=prepared.split.train)
    check_other_images(of_training, prepared.dataset, prepared.split, None)


def test_scenes_of_the_test_are_refused(composed: Compose, others: tuple[str, ...]) -> None:
    """Other pixels under names of the study's scenes; of simulated ones, names say nothing."""
    scenes = "dataset.group_by='^([^_]+)_'"
    prepared = prepare(composed(*others, scenes))
    held_out = {sample.group for sample in (*prepared.split.val, *prepared.split.test)}
    number = sum(sample.group in held_out for sample in load_dataset(composed(scenes)).samples)
    with pytest.raises(InputError, match=f"by their names, {number} images of other show scenes of validation or test"):
        pretraining_run(prepared)
    simulated = [f"pretraining.dataset.{name}" for name in ("build.images=24", "build.image_size=64", "image_size=64")]
    assert pretraining_run(prepare(composed("pretraining=sar_scenes", *simulated, scenes))) is not None


def test_classes_in_another_order_are_put_in_order(composed: Compose) -> None:
    samples = prepare(composed()).split.train[:2]
    labels = [np.arange(len(sample.boxes)) % 3 for sample in samples]
    marked = tuple(replace(sample, labels=each) for sample, each in zip(samples, labels, strict=True))
    other = replace(prepare(composed()).dataset, samples=marked, classes=("a", "b", "c"), category_ids=(1, 2, 3))
    ordered = in_order_of(other, ("b", "c", "a"))
    assert (ordered.classes, ordered.category_ids) == (("b", "c", "a"), (2, 3, 1))
    for before, after in zip(marked, ordered.samples, strict=True):
        assert [other.classes[at] for at in before.labels] == [ordered.classes[at] for at in after.labels]
    assert in_order_of(other, ("a", "b")) is other


def test_classes_must_have_the_same_names_unless_there_is_one(composed: Compose) -> None:
    prepared = prepare(composed())
    other = replace(prepared.dataset, samples=prepared.split.train, classes=("vessel",))
    check_other_images(other, prepared.dataset, prepared.split, None)
    with pytest.raises(InputError, match="has the classes vessel, buoy"):
        check_other_images(replace(other, classes=("vessel", "buoy")), prepared.dataset, prepared.split, None)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["dataset=sar_scenes", "pretraining=sar_scenes"], "pretraining=none"),
        (["pretraining=sar_scenes", "pretraining.steps=7"], "multiple of trainer.validations=6"),
        (["pretraining=sar_scenes", "pretraining.steps=0"], "must be a positive multiple"),
        (
            ["pretraining=sar_scenes", "pretraining.steps=48", "detector.warmup_steps=50", "trainer.steps=54"],
            r"above detector\.warmup_steps=50: set pretraining\.steps=54 or",
        ),
        (["pretraining=variations", "pretraining.per_image=-1"], "must not be negative"),
        (["pretraining=sar_scenes", "pretraining.batch_size=0"], "at least 1"),
        (["pretraining=sar_scenes", "trainer.devices=4", "pretraining.batch_size=6"], "multiple of trainer.devices=4"),
        (["pretraining=sar_scenes", "pretraining.share=1"], "less than 1"),
        (["pretraining=variations", "pretraining.share=0.5"], "synthetic_fraction"),
        (["pretraining=variations", "pretraining.redraw=matched"], "pretraining=variations has none"),
        ([*LABELLED, DIFFUSION], "none"),
        (["pretraining=variations", "pretraining.fit=true"], "pretraining=variations has none"),
        (["pretraining=sar_scenes", DIFFUSION, "pretraining.redraw_strength=0"], "above 0 and at most 1"),
        ([*LABELLED, "pretraining.per_image=2"], "would not see its own images"),
        (["pretraining=sar_scenes", "pretraining.per_image=2", "pretraining.share=0"], "would not see its own images"),
        ([*LABELLED, "pretraining.dataset.empty=c"], r"pretraining\.dataset\.empty=c: a pre-training takes labelled"),
        ([*LABELLED, "pretraining.dataset.unlabelled=c"], r"pretraining\.dataset\.unlabelled=c: a pre-training takes"),
        ([*LABELLED, "pretraining.dataset.image_size=500"], "image_size=500 must be a multiple of 16"),
        ([*LABELLED, "pretraining.dataset.channels=[0,1]"], r"pretraining\.dataset\.channels .*one or three channels"),
        (["pretraining=sar_scenes", DIFFUSION, "pretraining.redraw_strength=0.9"], "train_strength"),
    ],
)
def test_settings_that_cannot_be(composed: Compose, overrides: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        prepare(composed(*overrides))


def test_what_defines_a_run(composed: Compose, others: tuple[str, ...]) -> None:
    plain, after = composed(), composed(*others)
    assert "pretraining" not in defining_values(plain)
    assert run_name(after) == run_name(plain).replace("-yolov3", "-after_labelled_images-yolov3")
    # Settings of a pre-training that does not take place define nothing; a place on disk does not either.
    assert defining_values(composed("pretraining.steps=600")) == defining_values(plain)
    moved = composed(*others, "pretraining.dataset.root=elsewhere")
    assert defining_values(moved) == defining_values(after)
    for more in ("pretraining.steps=12", "pretraining.seed=1", "pretraining.batch_size=4"):
        assert defining_values(composed(*others, more)) != defining_values(after)


def test_the_generator_defines_a_run_that_variations_precede(composed: Compose) -> None:
    first = composed("pretraining=variations")
    assert first.variations.per_image == 0
    assert defining_values(first)["generator"]["name"] == "repeat"
    assert "-x0-repeat-after_variations-" in run_name(first)
    assert defining_values(first) != defining_values(composed("pretraining=variations", "generator=copy_paste"))
    assert defining_values(first) != defining_values(composed("pretraining=variations", "pretraining.per_image=2"))
    # Identity of the whole run, with the store.
    runs = [prepare(composed("pretraining=variations", f"variations.seed={seed}")) for seed in (0, 1)]
    assert len({run.identity for run in runs}) == 2
    np.testing.assert_array_equal([run.library is None for run in runs], True)


def test_changed_scenes_are_made_once_beside_the_scenes(composed: Compose, tmp_path: Path) -> None:
    runs = {}
    for redraw in ("none", "matched", "diffusion"):
        run = pretraining_run(prepare(composed(*SCENES, f"pretraining.redraw={redraw}")))
        assert run is not None
        runs[redraw] = run
    assert len({run.detector_identities for run in runs.values()}) == 3
    assert len({run.dataset.digest for run in runs.values()}) == 3
    boxes = [[sample.boxes.tolist() for sample in run.dataset.samples] for run in runs.values()]
    assert boxes[0] == boxes[1] == boxes[2]
    raw, matched, redrawn = ([sample.read() for sample in run.dataset.samples] for run in runs.values())
    for several in zip(raw, matched, redrawn, strict=True):
        assert {image.shape for image in several} == {(64, 64)}
        assert len({image.tobytes() for image in several}) == 3
    (model,) = (tmp_path / "synthetic" / "models").glob("pixel_ddpm-*")
    assert (model / "weights.safetensors").exists()
    folders = sorted(tmp_path.glob("sar_scenes_pretraining-*"))
    assert len(folders) == 2
    files = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.png")}
    for redraw in runs:
        pretraining_run(prepare(composed(*SCENES, f"pretraining.redraw={redraw}")))
    assert files == {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.png")}
    # Made again from nothing, they are the same to the byte.
    content = {file: file.read_bytes() for file in folders[0].rglob("*.png")}
    shutil.rmtree(folders[0])
    for redraw in runs:
        pretraining_run(prepare(composed(*SCENES, f"pretraining.redraw={redraw}")))
    assert {file: file.read_bytes() for file in folders[0].rglob("*.png")} == content


def test_what_changed_the_scenes_defines_a_run(composed: Compose) -> None:
    plain = prepare(composed(*SCENES))
    assert plain.condition["pretraining_images"] == f"simulation {sar_scenes.SIMULATION}"
    # Settings of a change that does not take place define nothing.
    assert not {"redraw", "redraw_strength", "model"} & set(plain.condition["pretraining"])
    assert prepare(composed(*SCENES, "pretraining.redraw_strength=0.5")).identity == plain.identity
    matched, diffusion = "pretraining.redraw=matched", DIFFUSION
    changes = (
        ["pretraining.fit=true"],
        ["pretraining.fit=true", "split.train_size=5"],
        ["pretraining.fit=true", matched],
        [matched],
        [matched, "split.train_size=5"],
        [diffusion],
        [diffusion, "pretraining.redraw_strength=0.5"],
        [diffusion, "pretraining.model.steps=2"],
    )
    keys = [prepare(composed(*SCENES, *typed)).condition["pretraining_images"] for typed in changes]
    assert len({*keys, plain.condition["pretraining_images"]}) == len(keys) + 1


def test_two_splits_never_share_fitted_scenes(composed: Compose, tmp_path: Path) -> None:
    for size in (6, 5):
        run = pretraining_run(prepare(composed(*SCENES, "pretraining.fit=true", f"split.train_size={size}")))
        assert run is not None
        assert len(run.dataset.samples) == 6
    folders = sorted(tmp_path.glob("sar_scenes_pretraining-*"))
    fits = [json.loads((folder / "annotations.json").read_text())["info"]["parameters"]["fit"] for folder in folders]
    assert sorted(len(fit["sea_levels"]) for fit in fits) == [5, 6]
