import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from conftest import MakeCoco

from boxtwin.datasets.image_cache import DecodedImages
from boxtwin.datasets.image_io import read_image, write_png
from boxtwin.datasets.levels import Levels
from boxtwin.datasets.sample import Dataset
from boxtwin.datasets.splits import Split
from boxtwin.errors import InputError
from boxtwin.labels.carry import Carry
from boxtwin.mixing.datamodule import (
    Batch,
    EpochSampler,
    StudyDataModule,
    TrainingDraws,
    check_variations,
)
from boxtwin.mixing.letterbox import OVERLAP, Labelled, take_view, tiles
from boxtwin.mixing.options import AugmentationOptions, BatchOptions, InputOptions
from boxtwin.mixing.plan import draw_order, make_plan
from boxtwin.synthesis.controls import Repeat
from boxtwin.synthesis.store import Library

EVERYTHING = AugmentationOptions(
    mosaic=0.5, zoom=1.3, translate=0.1, flip_horizontal=True, quarter_turns=True, gain=0.2, speckle=0.05
)


ANEW = DecodedImages(None)  # decodes whenever it is asked


def make_data(dataset: Dataset, stores: Path, *, per_image: int = 0, **changes: Any) -> StudyDataModule:
    """Half of a data set for training, the rest for validation and test, with repeated images as variations."""
    half = len(dataset.samples) // 2
    split = Split("s", dataset.samples[:half], dataset.samples[half:-1], dataset.samples[-1:])
    library = Library(
        stores,
        Repeat(),
        split.train,
        judge=Carry(),
        labels="carry",
        dataset=dataset,
        seed=0,
    )
    sources = (*split.train, *split.val)
    library.make(sources, per_image)
    settings: dict[str, Any] = {
        "input_options": InputOptions(image_size=64, crop=64, tile=None, channels=3),
        "augmentation": EVERYTHING,
        "levels": Levels(),
        "images": ANEW,
    }
    batches = BatchOptions(steps=7, steps_per_epoch=3, batch_size=3, seed=5)
    of_batches = {name: changes.pop(name) for name in list(changes) if hasattr(batches, name)}
    settings["batch_options"] = replace(batches, **of_batches)
    return StudyDataModule(make_plan(split, library.variations(sources, per_image)), **{**settings, **changes})


def same(a: Batch, b: Batch) -> bool:
    return a.image_ids == b.image_ids and all(
        torch.equal(one, other)
        for one, other in zip(a, b, strict=True)
        if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor)
    )


@pytest.fixture
def dataset(make_coco: MakeCoco) -> Dataset:
    return make_coco(images=8, sizes=((80, 64), (50, 90)), channels=(1, 3), objects=(2, 0, 3)).read()


def test_a_batch(dataset: Dataset, tmp_path: Path) -> None:
    data = make_data(dataset, tmp_path, per_image=1)
    for batch in data.train_dataloader():
        assert batch.images.shape == (3, 3, 64, 64)
        assert batch.images.dtype == torch.float32
        assert batch.images.min() >= 0
        assert batch.images.max() <= 1
        assert len(batch.boxes) == len(batch.labels) == len(batch.box_image)
        assert (batch.boxes[:, 2:] > batch.boxes[:, :2]).all()
        assert (batch.boxes >= 0).all()
        assert (batch.boxes <= 64).all()
        assert batch.box_image.tolist() == sorted(batch.box_image.tolist())


def test_letterboxed_batches_lead_back_to_the_files(dataset: Dataset, tmp_path: Path) -> None:
    data = make_data(dataset, tmp_path)
    samples = {sample.image_id: sample for sample in dataset.samples}
    seen = []
    for batch in data.letterboxed(dataset.samples):
        for place, image_id in enumerate(batch.image_ids):
            sample = samples[image_id]
            seen.append(image_id)
            _, _, scale, pad_x, pad_y, _ = batch.letterbox[place]
            boxes = (batch.boxes[batch.box_image == place].numpy() - [pad_x, pad_y, pad_x, pad_y]) / scale
            np.testing.assert_allclose(boxes, sample.boxes, atol=1e-3)
            assert batch.letterbox[place][:2] == (sample.width, sample.height)
            assert batch.labels[batch.box_image == place].tolist() == sample.labels.tolist()
            image, file = batch.images[place].numpy(), read_image(sample.path)
            if file.ndim == 2:
                np.testing.assert_array_equal(image[0], image[2])
            # Without the padding the mean brightness is the file's; scaling changes it little.
            inside = image[:, int(pad_y) : 64 - int(pad_y) or None, int(pad_x) : 64 - int(pad_x) or None]
            assert inside.mean() == pytest.approx(file.mean() / 255, abs=0.02)
    assert seen == [sample.image_id for sample in dataset.samples]  # in order, each once
    assert [list(b.image_ids) for b in data.val_dataloader()] == [[s.image_id for s in data.validation_samples]]


def test_black_is_zero_and_white_is_one(make_coco: MakeCoco, tmp_path: Path) -> None:
    built = make_coco(images=4, dtypes=(np.uint16,), objects=(0,), sizes=((64, 64),))
    for n, image in enumerate(built.content["images"]):
        write_png(built.images / image["file_name"], np.full((64, 64), 1000 * (n + 1), dtype=np.uint16))
    dataset = built.read()
    data = make_data(dataset, tmp_path, levels=Levels(1500, 2500))
    (batch,) = data.letterboxed(dataset.samples[:3])
    assert batch.images.mean(dim=(1, 2, 3)).tolist() == pytest.approx([0.0, 0.5, 1.0], abs=1e-4)  # clipped at both ends


@pytest.mark.parametrize(("real", "other"), [(np.uint8, np.uint16), (np.uint16, np.uint8), (np.uint16, np.uint16)])
def test_images_of_a_pretraining_keep_their_own_scale(make_coco: MakeCoco, real: type, other: type) -> None:
    """Each kind has one value throughout, 80 % of its own full scale."""
    levels: dict[Any, Levels] = {np.uint8: Levels(), np.uint16: Levels(1000, 2000)}
    kinds = []
    for name, dtype, white in (("real", real, levels[real]), ("other", other, Levels(0, 4000))):
        built = make_coco(images=6, dtypes=(dtype,), objects=(0,), sizes=((64, 64),), folder=name)
        bright = 204 if dtype == np.uint8 else white.black + 0.8 * (white.full_scale - white.black)
        for image in built.content["images"]:
            write_png(built.images / image["file_name"], np.full((64, 64), bright).astype(dtype))
        kinds.append(built.read().samples)
    (samples, others), ends = kinds, levels[real]
    data = StudyDataModule(
        make_plan(Split("s", samples[:4], samples[4:5], samples[5:]), (), pretraining=others),
        InputOptions(image_size=64, crop=64, tile=None, channels=1, pretraining_size=64),
        BatchOptions(steps=2, steps_per_epoch=2, batch_size=4, seed=5, pretraining_share=0.5),
        AugmentationOptions(),
        ends,
        ANEW,
        Levels(0, 4000) if other == np.uint16 else Levels(),
    )
    for batch in data.train_dataloader():
        assert batch.images.mean(dim=(1, 2, 3)).tolist() == pytest.approx([0.8] * 4, abs=1e-4)


def test_variations_of_another_depth_are_named(make_coco: MakeCoco) -> None:
    samples = make_coco(images=2, dtypes=(np.uint16, np.uint8)).read().samples
    check_variations(samples[:1], ANEW, 16)
    with pytest.raises(InputError, match=r"S01_0\.png: variations must be 16 bit .* this one is 8 bit"):
        check_variations(samples, ANEW, 16)


def draws(data: StudyDataModule, images: DecodedImages = ANEW) -> TrainingDraws:
    order = draw_order(
        data.plan, BatchOptions(steps_per_epoch=1, steps=7, batch_size=3, seed=5, synthetic_fraction=None)
    ).reshape(-1)
    return TrainingDraws(data.plan, order, EVERYTHING, data.input, levels=Levels(), seed=5, images=images)


def test_an_item_is_the_same_whenever_it_is_asked_for(dataset: Dataset, tmp_path: Path) -> None:
    data = make_data(dataset, tmp_path, per_image=1)
    images = DecodedImages(tmp_path / "cache")
    images.add("all", data.plan.train)
    forwards, backwards = draws(data, images), draws(data)
    assert len(forwards) == 21
    first = [forwards[index] for index in range(21)]
    for index in (20, 7, 7, 0, 13):
        image, _, sample = backwards[index]
        np.testing.assert_array_equal(image.pixels, first[index][0].pixels)
        np.testing.assert_array_equal(image.boxes, first[index][0].boxes)
        assert sample is first[index][2]
    # One image, drawn twice, is augmented in two ways.
    twice = [item for item in first if item[2] is first[0][2]]
    assert len(twice) >= 2
    assert (twice[0][0].pixels != twice[1][0].pixels).any()


@pytest.mark.parametrize("threads", [2, 3, 16])
def test_threads_change_no_batch(dataset: Dataset, tmp_path: Path, threads: int) -> None:
    alone = list(make_data(dataset, tmp_path, per_image=1).train_dataloader())
    shared = list(make_data(dataset, tmp_path, per_image=1, threads=threads).train_dataloader())
    assert len(alone) == len(shared) == 3
    assert all(same(a, b) for a, b in zip(alone, shared, strict=True))


def test_epochs_cover_every_draw_once() -> None:
    done = 0
    sampler = EpochSampler(21, 9, lambda: done, batch_size=3)
    epochs = []
    while done < 21:
        epochs.append(list(sampler))
        done += len(epochs[-1])
    assert [len(epoch) for epoch in epochs] == [9, 9, 3]
    assert [index for epoch in epochs for index in epoch] == list(range(21))
    done = 12  # after a resume in the middle of an epoch
    assert list(sampler) == list(range(12, 21))


@pytest.mark.parametrize("devices", [1, 2, 3, 6])
def test_devices_share_every_batch(devices: int) -> None:
    done = 0
    shares = [
        EpochSampler(30, 12, lambda: done, batch_size=6, device=device, devices=devices) for device in range(devices)
    ]
    for done, batches in ((0, 2), (6, 2), (24, 1)):
        share = 6 // devices
        drawn = [np.array(list(sampler)).reshape(batches, share) for sampler in shares]
        # One draw of each device in turn makes the batch of one device.
        together = np.stack(drawn, axis=2).reshape(batches, 6)
        assert together.tolist() == np.arange(done, done + 6 * batches).reshape(batches, 6).tolist()
    assert [len(sampler) for sampler in shares] == [12 // devices] * devices


def test_a_broken_image_stops_the_loader(dataset: Dataset, tmp_path: Path) -> None:
    data = make_data(dataset, tmp_path)
    for sample in data.plan.train:
        sample.path.write_bytes(b"no image")
    with pytest.raises(OSError, match="cannot be decoded"):
        list(data.train_dataloader())


class Recorder(pl.LightningModule):
    """Takes steps and writes down what it is fed."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.batches: list[Batch] = []

    def training_step(self, batch: Batch) -> torch.Tensor:
        self.batches.append(batch)
        return (self.weight * batch.images.mean()).sum()

    def validation_step(self, batch: Batch) -> None:
        assert all(image_id >= 100 for image_id in batch.image_ids)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def train(data: StudyDataModule, steps: int, checkpoint: Path | None = None) -> tuple[Recorder, pl.Trainer]:
    trainer = pl.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )
    recorder = Recorder()
    trainer.fit(recorder, datamodule=data, ckpt_path=str(checkpoint) if checkpoint else None, weights_only=True)
    return recorder, trainer


@pytest.mark.filterwarnings(
    # It cannot know that the draws begin where the optimiser is.
    "ignore:.*your dataloader is not resumable.*",
    "ignore:.*isinstance.treespec, LeafSpec.*",
)
@pytest.mark.parametrize("stop", [2, 3, 5, 6])
def test_lightning_draws_in_order_and_goes_on_where_it_stopped(dataset: Dataset, tmp_path: Path, stop: int) -> None:
    whole, _ = train(make_data(dataset, tmp_path, per_image=1), 7)
    ids = torch.tensor([number for batch in whole.batches for number in batch.image_ids])
    plan = make_data(dataset, tmp_path, per_image=1).plan
    order = draw_order(
        plan, BatchOptions(steps_per_epoch=1, steps=7, batch_size=3, seed=5, synthetic_fraction=None)
    ).reshape(-1)
    assert ids.tolist() == [plan.train[index].image_id for index in order]
    begun, trainer = train(make_data(dataset, tmp_path, per_image=1), stop)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    rest, _ = train(make_data(dataset, tmp_path, per_image=1), 7, tmp_path / "last.ckpt")
    assert (len(begun.batches), len(rest.batches)) == (stop, 7 - stop)
    assert all(same(a, b) for a, b in zip(whole.batches, begun.batches + rest.batches, strict=True))


def test_runs_with_and_without_variations_take_equal_steps(dataset: Dataset, tmp_path: Path) -> None:
    lengths = {
        per_image: [
            len(batch.image_ids) for batch in make_data(dataset, tmp_path, per_image=per_image).train_dataloader()
        ]
        for per_image in (0, 2)
    }
    assert lengths[0] == lengths[2] == [3, 3, 3]


def test_a_batch_without_objects(make_coco: MakeCoco, tmp_path: Path) -> None:
    data = make_data(make_coco(images=6, objects=(0,)).read(), tmp_path)
    for batch in (*data.train_dataloader(), *data.val_dataloader()):
        assert batch.boxes.shape == (0, 4)
        assert batch.labels.shape == batch.box_image.shape == (0,)
        assert batch.labels.dtype == batch.box_image.dtype == torch.int64


def test_crowds_are_not_trained_on(make_coco: MakeCoco, tmp_path: Path) -> None:
    built = make_coco(images=6, objects=(2,))
    for annotation in built.content["annotations"]:
        annotation["iscrowd"] = annotation["id"] % 2
    data = make_data(built.read(), tmp_path, augmentation=AugmentationOptions())
    (batch,) = data.letterboxed(data.plan.train)
    assert batch.box_image.tolist() == batch.crowd_image.tolist() == [0, 1, 2]
    scales = [letterbox.scale for letterbox in batch.letterbox]
    for sample, scale, box, crowd in zip(data.plan.train, scales, batch.boxes, batch.crowds, strict=True):
        (true,), (area,) = sample.boxes[~sample.crowd], sample.boxes[sample.crowd]
        np.testing.assert_allclose(crowd - box, (area - true) * scale, atol=1e-4)


@pytest.mark.parametrize(
    ("width", "height", "size", "tile"),
    [(800, 800, 800, 416), (800, 500, 800, 416), (1000, 3000, 1500, 320), (90, 60, 64, 64), (801, 799, 416, 96)],
)
def test_tiles_cover_the_image_and_every_point_has_one_owner(width: int, height: int, size: int, tile: int) -> None:
    found = tiles(width, height, size=size, tile=tile)
    shown = tile * max(width, height) / size
    random = np.random.default_rng(0)
    for x, y in random.uniform((0, 0), (width, height), (500, 2)):
        owners = [t for t in found if t.own[0] <= x < t.own[2] and t.own[1] <= y < t.own[3]]
        assert len(owners) == 1
        (left, top), own = owners[0].corner, owners[0]
        assert own.scale == size / max(width, height)
        # An object of half the overlap around this point lies whole in its owner's tile, or at the image's border.
        half = shown * OVERLAP / 4 - 1
        assert left <= max(x - half, 0)
        assert min(x + half, width) <= left + shown + 1
        assert top <= max(y - half, 0)
        assert min(y + half, height) <= top + shown + 1


def test_one_tile_is_enough_for_a_small_image() -> None:
    (only,) = tiles(90, 60, size=64, tile=64)
    assert only.corner == (0, 0)
    assert only.own == (-math.inf, -math.inf, math.inf, math.inf)


def test_tiles_of_less_than_a_pixel_lie_in_the_image() -> None:
    image = Labelled(np.full((1, 2), 7, np.uint8), np.zeros((0, 4), np.float32), np.zeros(0, dtype=int))
    for tile in tiles(2, 1, size=640, tile=64):
        cut, _ = take_view(image, tile, 640)
        assert (cut.pixels == 7).any()


def test_tiles_hold_the_images_pixels_and_boxes_and_lead_back() -> None:
    pixels = np.arange(200 * 300, dtype=np.uint16).reshape(200, 300)
    boxes = np.array([[10, 20, 30, 40], [250, 150, 290, 190]], dtype=np.float32)
    image = Labelled(pixels, boxes, np.array([0, 1]))
    seen = []
    for tile in tiles(300, 200, size=300, tile=128):
        cut, geometry = take_view(image, tile, 300)
        left, top = tile.corner
        own = pixels[top : top + 128, left : left + 128]
        np.testing.assert_array_equal(cut.pixels[: own.shape[0], : own.shape[1]], own)
        assert (geometry.scale, geometry.pad_x, geometry.pad_y) == (1, -left, -top)
        assert geometry.own == tile.own
        back = (cut.boxes - [geometry.pad_x, geometry.pad_y] * 2) / geometry.scale
        for box, label in zip(back, cut.labels, strict=True):
            if (box == boxes[label]).all():
                seen.append(int(label))
    assert set(seen) == {0, 1}


def test_the_rest_of_a_tile_is_mid_grey() -> None:
    image = Labelled(np.zeros((60, 90), dtype=np.uint8), np.zeros((0, 4), np.float32), np.zeros(0, dtype=int))
    (only,) = tiles(90, 60, size=90, tile=96)
    cut, _ = take_view(image, only, 90)
    assert (cut.pixels[:60, :90] == 0).all()
    assert (cut.pixels[60:] == 128).all()
    assert (cut.pixels[:, 90:] == 128).all()
