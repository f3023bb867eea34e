"""Training that is broken off, from checkpoints that may be damaged, and training that diverges."""

from __future__ import annotations

import shutil
import signal
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_lightning.loggers import Logger

from boxtwin.datasets.image_cache import DecodedImages
from boxtwin.datasets.image_io import write_png
from boxtwin.datasets.levels import Levels
from boxtwin.datasets.sample import Dataset, Sample
from boxtwin.datasets.splits import Split
from boxtwin.detector.module import DetectorModule
from boxtwin.detector.options import LossOptions, ObjectnessTarget, Optimizer, OptimizerOptions, TrainerOptions
from boxtwin.detector.spec import NetworkSpec
from boxtwin.detector.training import BEST, EARLIER, KEY, LAST, Trained, fit, start_from
from boxtwin.errors import InputError
from boxtwin.mixing.datamodule import StudyDataModule
from boxtwin.mixing.options import AugmentationOptions, BatchOptions, InputOptions
from boxtwin.mixing.plan import make_plan

STEPS, EVERY = 12, 3  # four validations


class StopError(Exception):
    """In place of a kill."""


class Curve(Logger):
    """Keeps what is logged, and breaks off where it is told to."""

    name, version = "curve", "0"

    def __init__(self, stop: Callable[[dict[str, float], int], bool] | None = None) -> None:
        super().__init__()
        self.validations: list[tuple[int, float]] = []
        self.losses: list[tuple[int, float]] = []
        self._stop = stop

    def log_hyperparams(self, *arguments: Any, **keywords: Any) -> None: ...

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        assert step is not None
        if self._stop and self._stop(metrics, step):
            raise StopError
        if "val/map" in metrics:
            self.validations.append((step, metrics["val/map"]))
        if "train/loss" in metrics:
            self.losses.append((step, metrics["train/loss"]))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Nine grey images of 64 pixels with one bright square each."""
    rng, samples = np.random.default_rng(0), []
    for number in range(9):
        pixels = rng.integers(0, 60, (64, 64)).astype(np.uint8)
        x, y = rng.integers(4, 40, 2).tolist()
        pixels[y : y + 16, x : x + 16] += 150
        path = tmp_path_factory.mktemp("images") / f"{number}.png"
        write_png(path, pixels)
        boxes = np.array([[x, y, x + 16, y + 16]], dtype=np.float32)
        one = np.zeros(1)
        samples.append(
            Sample(
                path.name,
                path,
                64,
                64,
                number,
                boxes,
                one.astype(int),
                one + 256,
                one.astype(bool),
                group=path.stem,
            )
        )
    return Dataset("squares", ("square",), (1,), tuple(samples), "")


def train(dataset: Dataset, checkpoints: Path, logger: Curve, **changes: Any) -> Trained:
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "validation": dataset.samples[4:8],
        "devices": 1,
        "learning_rate": 3e-3,
        "gradient_clip": 10.0,
        "optimizer": "adamw",
    } | changes
    split = Split("s", dataset.samples[:4], settings["validation"], dataset.samples[8:])
    module = DetectorModule(
        NetworkSpec(
            architecture="yolov3_nano",
            classes=dataset.classes,
            category_ids=dataset.category_ids,
            image_size=64,
            white=255,
            channels=1,
        ),
        [[[20, 20], [30, 30], [40, 40]], [[8, 8], [12, 12], [16, 16]]],
        loss=LossOptions(objectness_target=ObjectnessTarget.one),
        optimizer=OptimizerOptions(
            settings["learning_rate"], warmup_steps=1, optimizer=Optimizer(settings["optimizer"])
        ),
        steps=STEPS,
    )
    data = StudyDataModule(
        make_plan(split, ()),
        InputOptions(image_size=64, crop=64, tile=None, channels=1),
        BatchOptions(steps=STEPS, steps_per_epoch=EVERY, batch_size=2, seed=0),
        AugmentationOptions(),
        Levels(0, 255),
        DecodedImages(None),
    )
    return fit(
        module,
        data,
        TrainerOptions(steps=STEPS, gradient_clip=settings["gradient_clip"], devices=settings["devices"]),
        log_every=1,
        accelerator="cpu",
        precision="32-true",
        logger=logger,
        checkpoints=checkpoints,
        title="test",
    )


MACHINE = "cpu, 32-true"  # of `train`


def assert_same(one: Trained, other: Trained) -> None:
    weights = other.best.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in one.best.state_dict().items())


@pytest.fixture(scope="module")
def whole(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[Trained, Curve]:
    """A training that nothing broke off."""
    curve = Curve()
    return train(dataset, tmp_path_factory.mktemp("whole"), curve), curve


@pytest.mark.parametrize("key", ["train/loss", "val/map"])
def test_a_broken_off_training_has_the_curve_of_a_whole_one(
    whole: tuple[Trained, Curve], dataset: Dataset, tmp_path: Path, key: str
) -> None:
    """Wherever it is broken off, and however often: each validation once, at the same step, with the same value."""
    trained, expected = whole
    assert [step for step, _ in expected.validations] == [2, 5, 8, 11]
    assert [step for step, _ in expected.losses] == list(range(STEPS))
    validations: list[tuple[int, float]] = []
    losses: dict[int, float] = {}
    for at in (1, 4, 11) if key == "train/loss" else (2, 8):
        curve = Curve(lambda metrics, step, at=at: key in metrics and step >= at)  # type: ignore[misc]
        with pytest.raises(StopError):
            train(dataset, tmp_path / "broken", curve)
        validations += curve.validations
        losses |= dict(curve.losses)
    curve = Curve()
    resumed = train(dataset, tmp_path / "broken", curve)
    assert validations + curve.validations == expected.validations
    assert losses | dict(curve.losses) == dict(expected.losses)
    assert_same(resumed, trained)
    assert resumed.validation == tuple(expected.validations)
    # Killed after its end, nothing is done again.
    again = Curve()
    assert_same(train(dataset, tmp_path / "broken", again), trained)
    assert again.validations == again.losses == []


def test_a_stop_by_the_user_is_raised_as_one_and_can_be_continued(
    whole: tuple[Trained, Curve], dataset: Dataset, tmp_path: Path
) -> None:
    """Lightning ends with SystemExit and ignores further stops; commands tell how to go on after KeyboardInterrupt."""

    def stop(_: object, step: int) -> bool:
        if step >= 7:
            raise KeyboardInterrupt
        return False

    handler = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(KeyboardInterrupt):
            train(dataset, tmp_path, Curve(stop))
    finally:
        signal.signal(signal.SIGINT, handler)
    assert_same(train(dataset, tmp_path, Curve()), whole[0])


@pytest.fixture
def broken(dataset: Dataset, tmp_path: Path) -> Path:
    """Checkpoints of a training that was broken off after its third validation."""
    with pytest.raises(StopError):
        train(dataset, tmp_path / "broken", Curve(lambda _, step: step >= 10))
    return tmp_path / "broken"


def harm(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "flipped":
        content[len(content) // 2] ^= 0x10
    damaged: dict[str, bytes | bytearray] = {"cut": content[: len(content) // 2], "flipped": content, "empty": b""}
    path.write_bytes(damaged[how])


def test_a_damaged_checkpoint_is_named_and_not_gone_on_from(
    broken: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for names, expected in (((), LAST), ((LAST,), EARLIER), ((LAST, EARLIER), None), ((BEST,), None)):
        for how in ("cut", "flipped", "empty"):
            folder = tmp_path / f"{len(names)}{expected}{how}"
            shutil.copytree(broken, folder)
            for name in names:
                harm(folder / name, how)
            caplog.clear()
            assert start_from(folder, MACHINE) == (None if expected is None else folder / expected)
            assert all(str(folder / name) in caplog.text for name in names)
    (broken / LAST).unlink()  # killed between two renames
    assert start_from(broken, MACHINE) == broken / EARLIER
    (broken / EARLIER).unlink()
    assert start_from(broken, MACHINE) is None


def test_a_training_on_another_kind_of_machine_is_not_gone_on_with(
    whole: tuple[Trained, Curve], broken: Path, dataset: Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    for other in ("gpu, 32-true", "cpu, bf16-mixed"):
        assert start_from(broken, other) is None
        assert f"is of a training on {MACHINE}, and this one is on {other}" in caplog.text
    for name in (LAST, EARLIER, BEST):  # as older versions wrote them
        content = torch.load(broken / name, weights_only=True)
        del content["callbacks"][KEY]["machine"]
        torch.save(content, broken / name)
    assert start_from(broken, "gpu, 32-true") == broken / LAST
    for name in (LAST, EARLIER, BEST):
        content = torch.load(broken / name, weights_only=True)
        content["callbacks"][KEY]["machine"] = "gpu, 16-mixed"
        torch.save(content, broken / name)
    assert_same(train(dataset, broken, Curve()), whole[0])


def test_checkpoints_of_another_training_are_not_gone_on_with(broken: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert start_from(broken, MACHINE) == broken / LAST
    assert start_from(broken, MACHINE, "another") is None
    assert "is of another training" in caplog.text
    for name in (LAST, EARLIER, BEST):  # as older versions wrote them
        content = torch.load(broken / name, weights_only=True)
        del content["callbacks"][KEY]["identity"]
        torch.save(content, broken / name)
    assert start_from(broken, MACHINE, "another") == broken / LAST


def test_training_gets_over_a_checkpoint_that_was_cut(
    whole: tuple[Trained, Curve], broken: Path, dataset: Dataset
) -> None:
    harm(broken / LAST, "cut")
    curve = Curve()
    assert_same(train(dataset, broken, curve), whole[0])
    assert [step for step, _ in curve.validations] == [8, 11]


def test_checkpoints_stand_alone_and_leave_nothing_elsewhere(
    tmp_path: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint loads without what its training was configured with."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    train(dataset, tmp_path / "other", Curve())
    assert not list(scratch.iterdir())
    assert {path.name for path in (tmp_path / "other").iterdir()} == {BEST, LAST, EARLIER}
    for name in (BEST, LAST, EARLIER):
        content = torch.load(tmp_path / "other" / name, map_location="cpu", weights_only=True)
        loaded = DetectorModule.from_values(content["hyper_parameters"])
        loaded.load_state_dict(content["state_dict"])
        assert loaded.classes == dataset.classes


def test_training_that_diverges_is_told_and_not_kept(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"diverged: at step \d+ of 12 .* not finite.*learning_rate"):
        train(dataset, tmp_path / "nan", Curve(), learning_rate=1e12, optimizer="sgd", gradient_clip=0.0)
    for path in (tmp_path / "nan").glob("*.ckpt"):
        weights = torch.load(path, weights_only=True)["state_dict"]
        assert all(torch.isfinite(value).all() for value in weights.values())


def test_without_validation_images_the_last_weights_are_kept(
    whole: tuple[Trained, Curve], dataset: Dataset, tmp_path: Path
) -> None:
    curve = Curve()
    trained = train(dataset, tmp_path, curve, validation=())
    assert (trained.validation, curve.validations) == ((), [])
    assert curve.losses == whole[1].losses  # nothing else is another
    last = torch.load(tmp_path / LAST, weights_only=True)
    assert last["global_step"] == STEPS
    kept = trained.best.state_dict()
    assert all(torch.equal(kept[name], value) for name, value in last["state_dict"].items())
    # Averaged over the steps: not what the optimiser has at the end.
    current = last["current_model_state"]
    assert any(not torch.equal(kept[name], value) for name, value in current.items() if value.is_floating_point())


@pytest.mark.parametrize("objects", ["none", "not found"])
def test_where_ap_tells_nothing_the_last_weights_are_kept(dataset: Dataset, tmp_path: Path, objects: str) -> None:
    sample = dataset.samples[4]
    if objects == "none":
        none = slice(0, 0)
        changed = {name: getattr(sample, name)[none] for name in ("boxes", "labels", "areas", "crowd")}
    else:
        changed = {"boxes": sample.boxes * 0 + np.array([0, 0, 0.01, 0.01], dtype=np.float32)}
    trained = train(dataset, tmp_path, Curve(), validation=(replace(sample, **changed),))
    values = [value for _, value in trained.validation]
    assert len(values) == STEPS // EVERY
    assert np.isnan(values).all() if objects == "none" else values == [0] * len(values)
    last = torch.load(tmp_path / LAST, weights_only=True)["state_dict"]
    assert all(torch.equal(value, last[name]) for name, value in trained.best.state_dict().items())


def test_it_goes_on_without_validation_images(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(StopError):
        train(dataset, tmp_path / "a", Curve(lambda _, step: step == 7), validation=())
    assert_same(
        train(dataset, tmp_path / "a", Curve(), validation=()), train(dataset, tmp_path / "b", Curve(), validation=())
    )
