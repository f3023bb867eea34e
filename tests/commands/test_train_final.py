"""What the trainings of final detectors learn from: all labelled images, or all but those of a part and its scenes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_study import Compose, composing

from boxtwin.commands.train_final import check_files, prepare_final
from boxtwin.config.identity import run_name
from boxtwin.datasets.image_io import read_image, write_png
from boxtwin.datasets.simulated_sar import scenes
from boxtwin.detector.checkpoint import weights_digests
from boxtwin.errors import InputError
from boxtwin.run.build import labelling_runs, load_dataset, prepare


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 labelled images of 12 scenes, and a folder of others: new ones, one of a known scene, one that is labelled."""
    folder = tmp_path_factory.mktemp("data")
    for seed, name in enumerate(("labelled", "other")):
        scenes.build(folder / name, images=24, image_size=64, chips_per_scene=2, seed=seed)
    (folder / "unlabelled").mkdir()
    others = sorted((folder / "other" / "images").iterdir())
    for file in others[:3]:
        shutil.copy(file, folder / "unlabelled" / f"U{file.name}")
    known = sorted((folder / "labelled" / "images").iterdir())[0]
    scene = known.name.split("_")[0]
    shutil.copy(others[5], folder / "unlabelled" / f"{scene}_beside.png")
    shutil.copy(known, folder / "unlabelled" / "equal.png")
    (folder / "copies").mkdir()
    changed = read_image(known)
    changed[0, 0] += 1
    write_png(folder / "copies" / "copy.png", changed)
    shutil.copy(others[0], folder / "copies" / "new.png")
    return folder


@pytest.fixture(scope="module")
def composed(data: Path) -> Iterator[Compose]:
    with composing(data / "labelled", data / "made", "dataset.group_by='^([^_]+)_'") as composed:
        yield composed


def test_every_image_is_trained_on_and_detected_by_a_detector_that_has_not_seen_it(composed: Compose) -> None:
    config = composed("variations=2", "generator=copy_paste")
    dataset = load_dataset(config)
    work = prepare_final(config, dataset, seeds=3, parts=4)
    assert [each.config.seed for each in work.seeds] == [0, 1, 2]
    names = sorted(sample.name for sample in dataset.samples)
    assert all(sorted(sample.name for sample in each.split.train) == names for each in work.seeds)
    assert sorted(sample.name for each in work.folds for sample in each.split.test) == names
    for each in work.folds:
        train, test = ({sample.group for sample in side} for side in (each.split.train, each.split.test))
        assert not train & test
        assert len(each.split.train) + len(each.split.test) == len(names)
        # Variations are of training images alone, and a generator sees no others.
        assert {sample.name for sample in each.sources} == {sample.name for sample in each.split.train}
    # Seeds share a store; parts have one each.
    assert len({each.store.key for each in work.seeds}) == 1
    assert len({each.store.key for each in (*work.seeds, *work.folds)}) == 5
    # Steps are those of the condition, and no run of the study is taken for one of these.
    assert {each.steps for each in (*work.seeds, *work.folds)} == {config.trainer.steps}
    assert prepare(config).identity not in {each.identity for each in (*work.seeds, *work.folds)}
    assert run_name(work.seeds[0].config) == "final-x2-copy_paste-yolov3_nano-seed0"


def test_images_beside_the_data_set_show_no_scene_that_is_left_out(composed: Compose, data: Path) -> None:
    config = composed(f"dataset.unlabelled={data}/unlabelled")
    work = prepare_final(config, load_dataset(config), seeds=1, parts=3)
    new = {sample.name for sample in work.seeds[0].extra.unlabelled}
    assert "equal.png" not in new
    assert len(new) == 4
    beside = next(name for name in new if not name.startswith("U"))
    for each in work.folds:
        left_out = beside.split("_")[0] in {sample.group for sample in each.split.test}
        assert {sample.name for sample in each.extra.unlabelled} == (new - {beside} if left_out else new)


@pytest.mark.parametrize("side", ["unlabelled", "empty"])
def test_copies_of_a_part_are_not_seen_by_the_detector_without_it(composed: Compose, data: Path, side: str) -> None:
    """One pixel of copy.png is not that of a labelled image, and its name tells no scene."""
    config = composed(f"dataset.{side}={data}/copies")
    dataset = load_dataset(config)
    known = min(sample.name for sample in dataset.samples)
    work = prepare_final(config, dataset, seeds=1, parts=3)
    assert {sample.name for sample in getattr(work.seeds[0].extra, side)} == {"copy.png", "new.png"}
    for each in work.folds:
        left_out = known in {sample.name for sample in each.split.test}
        names = {sample.name for sample in getattr(each.extra, side)}
        assert names == ({"new.png"} if left_out else {"copy.png", "new.png"})


def test_a_pretraining_on_labelled_images_is_refused_before_work(composed: Compose, data: Path) -> None:
    """A run of the study may see them first, if they are its training images."""
    name, size = "pretraining.dataset.name=same", "pretraining.dataset.image_size=64"
    config = composed("pretraining=labelled_images", name, size, f"pretraining.dataset.root={data}/labelled")
    message = r"final=: thresholds are chosen .* pretraining: same .* 8 validation or test images of split fold1of3"
    with pytest.raises(InputError, match=message):
        prepare_final(config, load_dataset(config), seeds=1, parts=3)


def test_detectors_that_label_choose_their_checkpoint_on_images_of_the_part(composed: Compose) -> None:
    config = composed("variations=1", "labels=pseudo", "labels.detectors=2")
    work = prepare_final(config, load_dataset(config), seeds=1, parts=2)
    for each in (*work.seeds, *work.folds):
        for labelling in labelling_runs(each.config, each.dataset, each.split):
            assert labelling.split.val
            used = {sample.name for side in (labelling.split.train, labelling.split.val) for sample in side}
            assert used == {sample.name for sample in each.split.train}


def test_wrong_numbers_are_refused(composed: Compose) -> None:
    config = composed()
    dataset = load_dataset(config)
    with pytest.raises(InputError, match="final_seeds=0 must be at least 1"):
        prepare_final(config, dataset, seeds=0, parts=3)
    with pytest.raises(InputError, match=r"final_folds=1: 24 images of 12 scenes cannot be divided into 1 parts"):
        prepare_final(config, dataset, seeds=1, parts=1)


def test_it_is_a_setting_of_train_alone(composed: Compose) -> None:
    with pytest.raises(InputError, match=r"final=scenes is a setting of train\.py alone"):
        prepare(composed("final=scenes"))


def test_other_files_than_those_of_the_runs_are_refused(
    composed: Compose, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights, same, other = (tmp_path / f"{name}.weights" for name in ("of_the_runs", "same", "other"))
    for file, content in ((weights, b"1"), (same, b"1"), (other, b"2")):
        file.write_bytes(content)
    recorded = {"detector.weights": weights_digests(weights)[0], "unlabelled_images": "70-3f2a91bc0d12"}
    config = composed(f"detector.weights={same}")
    check_files(config, {"unlabelled_images": "70-3f2a91bc0d12"}, recorded, "s1 x0")
    check_files(config, {}, {}, "s1 x0, of an older version")
    assert not caplog.records
    with pytest.raises(InputError, match="these are not the weights that s1 x0 started from"):
        check_files(composed(f"detector.weights={other}"), {}, recorded, "s1 x0")
    check_files(config, {"unlabelled_images": "71-000000000000"}, recorded, "s1 x0")
    assert "the 71 unlabelled images are not the 70 that its runs had" in caplog.text
