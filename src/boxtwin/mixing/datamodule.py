"""A LightningDataModule over a plan: the same draws whatever the machine, and after any resume."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytorch_lightning as pl
import torch
from jaxtyping import Int
from torch.utils.data import DataLoader, Dataset, Sampler

from boxtwin.datasets.batch import Batch
from boxtwin.datasets.image_cache import DecodedImages
from boxtwin.datasets.levels import Levels
from boxtwin.datasets.sample import Sample
from boxtwin.errors import InputError
from boxtwin.mixing.augment import WHOLE, Augmentation, Labelled, Letterbox
from boxtwin.mixing.network_input import full_scale, network_input
from boxtwin.mixing.plan import Plan, draw_order
from boxtwin.mixing.tiles import Tile, take_view, views

Item = tuple[Labelled, Letterbox, Sample]

# Batches made ahead of the step that takes them: one is being made, and one waits where some batches take longer.
AHEAD = 2


def check_variations(variations: Sequence[Sample], images: DecodedImages, bits: int) -> None:
    """Variations must have as many bits as the real images.

    Raises:
        InputError: names the first of those that have not.
    """
    for sample in variations:
        found = 8 * images.read(sample).dtype.itemsize
        if found != bits:
            raise InputError(
                f"{sample.path}: variations must be {bits} bit as the real images are, and this one is {found} bit; "
                "remove its folder and make them again"
            )


def input_channels(samples: Sequence[Sample], images: DecodedImages) -> int:
    """1 where all (training) images are grey, so that the first convolution does not do the same work three times."""
    return 1 if all(images.read(sample).ndim == 2 for sample in samples) else 3


def _labelled(sample: Sample, images: DecodedImages, levels: Levels) -> Labelled:
    """The image, from black to white over the whole range of its type, and its single objects."""
    return Labelled(levels.scaled(images.read(sample)), sample.object_boxes, sample.object_labels)


class TrainingDraws(Dataset[Item]):
    """Item ``i`` is the augmented image at place ``i % batch_size`` of step ``i // batch_size``.

    Its randomness is seeded by ``i``, so an item is the same in every process and after every resume.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        order: Int[np.ndarray, " draws"],
        augmentation: Augmentation,
        *,
        size: int,
        crop: int,
        levels: Levels,
        seed: int,
        images: DecodedImages,
    ) -> None:
        self._samples = samples
        self._order = order
        self._augmentation = augmentation
        self._size = size
        self._crop = crop
        self._levels = levels
        self._seed = seed
        self._images = images

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: int) -> Item:
        random = np.random.default_rng([self._seed, index])
        sample = self._samples[self._order[index]]

        def partner() -> Labelled:
            # From the draws, not the pool: real and synthetic images keep their shares in a mosaic.
            return _labelled(self._samples[self._order[random.integers(len(self._order))]], self._images, self._levels)

        image = _labelled(sample, self._images, self._levels)
        white = full_scale(image.pixels)
        image = self._augmentation(image, partner, size=self._size, crop=self._crop, white=white, random=random)
        return image, WHOLE, sample


class ImagesAsTheyAre(Dataset[Item]):
    """Images for validation, test and counting: letterboxed whole, or in tiles of a fixed size.

    With ``tile`` None an item is an image in a ``size`` x ``size`` square; otherwise one of the ``tile`` x ``tile``
    squares that cover the image at that scale.
    """

    def __init__(
        self, samples: Sequence[Sample], *, size: int, tile: int | None, levels: Levels, images: DecodedImages
    ) -> None:
        self._samples = samples
        self._size = size
        self._tile = tile
        self._levels = levels
        self._images = images
        self._items: list[tuple[Sample, Tile | None]] = [
            (sample, part) for sample in samples for part in views(sample.width, sample.height, size=size, tile=tile)
        ]

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Item:
        sample, tile = self._items[index]
        image = _labelled(sample, self._images, self._levels)
        view = take_view(image, tile, size=self._size, tile=self._tile, white=full_scale(image.pixels))
        return *view, sample


class EpochDraws(Sampler[int]):
    """The draws of one epoch, beginning where the optimiser is.

    The number of steps done is the only count that survives every kind of resume; Lightning's count of epochs may stand
    before or behind a checkpoint that was written during validation.

    Args:
        draws: of the whole run.
        draws_per_epoch: a whole number of batches.
        position: the draws that have been trained on.
        batch_size: images a step, on all devices together.
        device, devices: of every batch, this device takes the ``device``-th of ``devices`` equal shares; all together
            take what one device would.
    """

    def __init__(
        self,
        draws: int,
        draws_per_epoch: int,
        position: Callable[[], int],
        *,
        batch_size: int,
        device: int = 0,
        devices: int = 1,
    ) -> None:
        if batch_size % devices:
            raise ValueError(f"a batch of {batch_size} images cannot be shared equally by {devices} devices")
        self._draws = draws
        self._per_epoch = draws_per_epoch
        self._position = position
        self._batch_size = batch_size
        self._share = batch_size // devices
        self._device = device

    def __iter__(self) -> Iterator[int]:
        first = self._position()
        last = min(first + self._per_epoch, self._draws)
        for start in range(first + self._device * self._share, last, self._batch_size):
            yield from range(start, min(start + self._share, last))

    def __len__(self) -> int:
        return self._per_epoch * self._share // self._batch_size


class Ahead:
    """The batches of a loader, made by one thread while the last one is worked on.

    OpenCV and numpy let go of the interpreter while they compute, so a thread is enough, and cheaper than a process to
    which images have to be handed over.
    """

    def __init__(self, loader: DataLoader[Item]) -> None:
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        batches = iter(self.loader)
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches") as thread:
            waiting = deque(thread.submit(next, batches, None) for _ in range(AHEAD))
            while (batch := waiting.popleft().result()) is not None:
                waiting.append(thread.submit(next, batches, None))
                yield batch


class Collate:
    """Items -> `Batch`: pixels in [0, 1] as float32, with as many channels as the network takes."""

    def __init__(self, channels: int) -> None:
        self._channels = channels

    def __call__(self, items: Sequence[Item]) -> Batch:
        images = network_input([image.pixels for image, _, _ in items], channels=self._channels)
        owners = [np.full(len(image.boxes), place) for place, (image, _, _) in enumerate(items)]
        return Batch(
            images=torch.from_numpy(images),
            boxes=torch.from_numpy(np.concatenate([image.boxes for image, _, _ in items]).astype(np.float32)),
            labels=torch.from_numpy(np.concatenate([image.labels for image, _, _ in items])),
            box_image=torch.from_numpy(np.concatenate(owners).astype(np.int64)),
            image_ids=tuple(sample.image_id for _, _, sample in items),
            letterbox=torch.tensor([[box.scale, box.pad_x, box.pad_y] for _, box, _ in items]),
            file_size=torch.tensor([[sample.width, sample.height] for _, _, sample in items]),
            own=torch.tensor([box.own for _, box, _ in items]),
        )


class StudyDataModule(pl.LightningDataModule):
    """The images of one run as batches.

    Args:
        plan: which images; its own check refuses a variation on the wrong side.
        image_size: what the longer side of an image is scaled to, pixels.
        crop: side of the squares that training images are cut to; the same as ``image_size`` for whole images.
        tile: side of the squares that other images are looked at in; None for whole images.
        channels: 1 for a network that takes grey images, 3 for one that takes colour.
        batch_size: images a step.
        steps: optimiser steps in all; every run of a study takes the same.
        steps_per_epoch: steps between two validations; this is what Lightning calls an epoch here.
        augmentation: what is done to training images.
        synthetic_fraction: share of each training batch that is synthetic; None: as the counts have it.
        levels: the pixel values that mean 0 and 1.
        seed: of order and augmentation.
        images: where decoded images are kept.
        workers: loader processes; 0 loads in a thread of the training process, which is faster for small images.
        pin_memory: whether batches are made in memory that a GPU can fetch by itself.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        image_size: int,
        crop: int,
        tile: int | None,
        channels: int,
        batch_size: int,
        steps: int,
        steps_per_epoch: int,
        augmentation: Augmentation,
        synthetic_fraction: float | None,
        levels: Levels,
        seed: int,
        images: DecodedImages,
        workers: int,
        pin_memory: bool = False,
    ) -> None:
        super().__init__()
        self.plan = plan
        self.image_size = image_size
        self.crop = crop
        self.tile = tile
        self.channels = channels
        self.batch_size = batch_size
        self.steps_per_epoch = steps_per_epoch
        self.augmentation = augmentation
        self.levels = levels
        self.seed = seed
        self.workers = workers
        self.pin_memory = pin_memory
        self._images = images
        self._order = draw_order(
            plan, steps=steps, batch_size=batch_size, seed=seed, synthetic_fraction=synthetic_fraction
        ).reshape(-1)

    @property
    def validation_samples(self) -> tuple[Sample, ...]:
        """The real images that checkpoints and thresholds are chosen on."""
        return self.plan.val

    def train_dataloader(self) -> Ahead | DataLoader[Item]:
        """Augmented batches, one epoch at a time."""
        draws = TrainingDraws(
            self.plan.train,
            self._order,
            self.augmentation,
            size=self.image_size,
            crop=self.crop,
            levels=self.levels,
            seed=self.seed,
            images=self._images,
        )
        devices = 1 if self.trainer is None else self.trainer.world_size
        sampler = EpochDraws(
            len(draws),
            self.steps_per_epoch * self.batch_size,
            self._draws_done,
            batch_size=self.batch_size,
            device=0 if self.trainer is None else self.trainer.global_rank,
            devices=devices,
        )
        return self._loader(draws, self.batch_size // devices, sampler)

    def val_dataloader(self) -> Ahead | DataLoader[Item]:
        """Real validation images."""
        return self.letterboxed(self.plan.val)

    def test_dataloader(self) -> Ahead | DataLoader[Item]:
        """Real test images."""
        return self.letterboxed(self.plan.test)

    def letterboxed(self, samples: Sequence[Sample]) -> Ahead | DataLoader[Item]:
        """Any images as they are, for prediction; on several devices each looks at all of them."""
        images = ImagesAsTheyAre(samples, size=self.image_size, tile=self.tile, levels=self.levels, images=self._images)
        return self._loader(images, self.batch_size, None)

    def _draws_done(self) -> int:
        return 0 if self.trainer is None else self.trainer.global_step * self.batch_size

    def _loader(self, images: Dataset[Item], batch_size: int, sampler: Sampler[int] | None) -> Ahead | DataLoader[Item]:
        loader = DataLoader(
            images,
            batch_size=batch_size,
            sampler=sampler,
            collate_fn=Collate(self.channels),
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            pin_memory=self.pin_memory,
        )
        return loader if self.workers else Ahead(loader)
