"""A LightningDataModule over a plan: the same draws whatever the machine, and after any resume."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from boxtwin.datasets.image_cache import DecodedImages
from boxtwin.datasets.levels import Levels
from boxtwin.datasets.sample import Sample
from boxtwin.errors import InputError
from boxtwin.mixing.augment import augment
from boxtwin.mixing.letterbox import Labelled, Letterbox, network_input, take_view, views
from boxtwin.mixing.options import AugmentationOptions, BatchOptions, InputOptions
from boxtwin.mixing.plan import Plan, draw_order

Item = tuple[Labelled, Letterbox, Sample]


class Batch(NamedTuple):
    """Images as the network takes them, with their objects, those of all images in one list."""

    images: Float[Tensor, "batch _channels size size"]  # in [0, 1]
    boxes: Float[Tensor, "objects 4"]  # xyxy, pixels of the network input
    labels: Int[Tensor, " objects"]
    box_image: Int[Tensor, " objects"]  # which image of the batch each belongs to
    crowds: Float[Tensor, "crowds 4"]  # areas of objects without boxes of their own, xyxy as `boxes`
    crowd_image: Int[Tensor, " crowds"]
    image_ids: tuple[int, ...]  # of any size: those of the annotation file
    letterbox: tuple[Letterbox, ...]  # leads back to the image files


def check_variations(variations: Sequence[Sample], images: DecodedImages, bits: int) -> None:
    """Raise `InputError` unless variations have as many bits as the real images."""
    for sample in variations:
        if (depth := 8 * images.read(sample).dtype.itemsize) != bits:
            what = f"variations must be {bits} bit as the real images are, and this one is {depth} bit"
            raise InputError(f"{sample.path}: {what}; remove its folder and make them again")


def _labelled(sample: Sample, images: DecodedImages, levels: Levels) -> Labelled:
    """The image, from black to full scale over the whole range of its type, its single objects and its crowds."""
    pixels, crowds = levels.scaled(images.read(sample)), sample.boxes[sample.crowd]
    return Labelled(pixels, sample.object_boxes, sample.object_labels, crowds, sample.relative_size)


@dataclass(frozen=True, eq=False)
class TrainingDraws(Dataset[Item]):
    """Item ``i`` is the augmented image at place ``i % batch_size`` of step ``i // batch_size``.

    Its randomness is seeded by ``i``, so an item is the same in every process and after every resume.
    """

    plan: Plan
    order: Int[np.ndarray, " draws"]
    augmentation: AugmentationOptions
    input: InputOptions
    levels: Levels
    seed: int
    images: DecodedImages
    pretraining_levels: Levels = Levels()  # noqa: RUF009 (frozen)

    def __len__(self) -> int:
        return len(self.order)

    @cached_property
    def samples(self) -> tuple[Sample, ...]:
        """What the order counts."""
        return (*self.plan.pool, *self.plan.pretraining)

    @cached_property
    def _draws(self) -> tuple[Int[np.ndarray, " training"], Int[np.ndarray, " pretraining"]]:
        """Draws of training images, and draws of images of the pre-training."""
        is_earlier = self.order >= len(self.plan.pool)
        return np.flatnonzero(~is_earlier), np.flatnonzero(is_earlier)

    def __getitem__(self, index: int) -> Item:
        random = np.random.default_rng([self.seed, index])
        is_earlier = bool(self.order[index] >= len(self.plan.pool))
        # From the draws, not the pool: real and synthetic images keep their shares in a mosaic. Images of the
        # pre-training have a scale of their own, so a mosaic has these alone, or none of them.
        partners = self._draws[is_earlier]
        levels = self.pretraining_levels if is_earlier else self.levels

        def labelled(draw: int) -> Labelled:
            return _labelled(self.samples[self.order[draw]], self.images, levels)

        image = augment(
            labelled(index),
            lambda: labelled(int(partners[random.integers(len(partners))])),
            self.augmentation,
            size=self.input.pretraining_size if is_earlier else self.input.image_size,
            crop=self.input.crop,
            random=random,
        )
        letterbox = Letterbox(self.input.crop, self.input.crop, 1.0, 0.0, 0.0)
        return image, letterbox, self.samples[self.order[index]]


class LetterboxedImages(Dataset[Item]):
    """Images for validation, test and counting: letterboxed whole, or cut into tiles (see `views`)."""

    def __init__(
        self, samples: Sequence[Sample], size: int, tile: int | None, levels: Levels, images: DecodedImages
    ) -> None:
        self.size, self.levels, self.images = size, levels, images
        self._items = [(one, view) for one in samples for view in views(one.width, one.height, size=size, tile=tile)]

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Item:
        sample, view = self._items[index]
        image, letterbox = take_view(_labelled(sample, self.images, self.levels), view, self.size)
        return image, letterbox, sample


@dataclass(frozen=True, eq=False)
class EpochSampler(Sampler[int]):
    """The draws of one epoch, beginning where the optimiser is.

    The number of steps done is the only count that survives every kind of resume; Lightning's count of epochs may stand
    before or behind a checkpoint that was written during validation.
    """

    draws: int  # of the whole run
    draws_per_epoch: int  # a whole number of batches
    position: Callable[[], int]  # the draws that have been trained on
    batch_size: int  # images a step, on all devices together
    # Of every batch, each of n devices takes every nth draw; all together take what one would. Variations stand first
    # in a batch, and images of a pre-training last, so that every device gets some of both.
    device: int = 0
    devices: int = 1

    def __iter__(self) -> Iterator[int]:
        first = self.position()
        last = min(first + self.draws_per_epoch, self.draws)
        for start in range(first, last, self.batch_size):
            yield from range(start + self.device, min(start + self.batch_size, last), self.devices)

    def __len__(self) -> int:
        return self.draws_per_epoch // self.devices


class PrefetchLoader:
    """Batches that threads make while others are worked on: ``threads`` at once, and one more that waits.

    OpenCV and numpy release the interpreter while they compute, so threads are enough, and cheaper than processes to
    which images have to be handed over. Items do not depend on the order in which they are made, so any number of
    threads gives the same batches in the same order.
    """

    def __init__(
        self,
        images: Dataset[Item],
        batch_size: int,
        order: EpochSampler | range,
        *,
        channels: int,
        threads: int,
        pin_memory: bool,
    ) -> None:
        self.images, self.batch_size, self.order = images, batch_size, order
        self.channels, self.threads, self.pin_memory = channels, threads, pin_memory

    def __len__(self) -> int:
        return -(-len(self.order) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        indices = iter(self.order)
        batches = iter(lambda: list(islice(indices, self.batch_size)), [])
        with ThreadPoolExecutor(self.threads, thread_name_prefix="batches") as pool:
            waiting = deque(pool.submit(self._batch, batch) for batch in islice(batches, self.threads + 1))
            while waiting:
                batch = waiting.popleft().result()
                waiting.extend(pool.submit(self._batch, following) for following in islice(batches, 1))
                yield batch

    def _batch(self, indices: Sequence[int]) -> Batch:
        batch = collate([self.images[index] for index in indices], self.channels)
        return batch._replace(images=batch.images.pin_memory()) if self.pin_memory else batch


def collate(items: Sequence[Item], channels: int) -> Batch:
    """Items as a batch for a network that takes so many channels."""
    images, letterboxes, samples = zip(*items, strict=True)
    return Batch(
        images=torch.from_numpy(network_input([image.pixels for image in images], channels=channels)),
        boxes=torch.from_numpy(np.concatenate([image.boxes for image in images]).astype(np.float32)),
        labels=torch.from_numpy(np.concatenate([image.labels for image in images])),
        box_image=_places([len(image.boxes) for image in images]),
        crowds=torch.from_numpy(np.concatenate([image.crowds for image in images]).astype(np.float32)),
        crowd_image=_places([len(image.crowds) for image in images]),
        image_ids=tuple(sample.image_id for sample in samples),
        letterbox=letterboxes,
    )


def _places(counts: Sequence[int]) -> Int[Tensor, " total"]:
    """``[2, 0, 1]`` -> 0, 0, 2."""
    return torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))


class StudyDataModule(pl.LightningDataModule):
    """The images of one run as batches."""

    def __init__(
        self,
        plan: Plan,
        input_options: InputOptions,
        batch_options: BatchOptions,
        augmentation: AugmentationOptions,
        levels: Levels,
        images: DecodedImages,
        pretraining_levels: Levels = Levels(),  # noqa: B008 (frozen)
    ) -> None:
        super().__init__()
        self.plan, self.input, self.batches = plan, input_options, batch_options
        self.augmentation, self.levels, self._images = augmentation, levels, images
        self.pretraining_levels = pretraining_levels
        self._order = draw_order(plan, batch_options).reshape(-1)

    @property
    def validation_samples(self) -> tuple[Sample, ...]:
        """The real images that checkpoints and thresholds are chosen on."""
        return self.plan.val

    def train_dataloader(self) -> PrefetchLoader:
        """Augmented batches, one epoch at a time."""
        seed, images = self.batches.seed, self._images
        draws = TrainingDraws(
            *(self.plan, self._order, self.augmentation, self.input, self.levels, seed, images, self.pretraining_levels)
        )
        batch_size, trainer = self.batches.batch_size, self.trainer
        device, devices = (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)
        per_epoch = self.batches.steps_per_epoch * batch_size

        def position() -> int:
            return 0 if trainer is None else trainer.global_step * batch_size

        sampler = EpochSampler(len(draws), per_epoch, position, batch_size, device, devices)
        return self._loader(draws, batch_size // devices, sampler)

    def val_dataloader(self) -> PrefetchLoader:
        """Real validation images."""
        return self.letterboxed(self.plan.val)

    def letterboxed(self, samples: Sequence[Sample]) -> PrefetchLoader:
        """Any images as they are, for prediction; each of several devices takes all of them."""
        images = LetterboxedImages(samples, self.input.image_size, self.input.tile, self.levels, self._images)
        return self._loader(images, self.batches.batch_size, range(len(images)))

    def _loader(self, images: Dataset[Item], batch_size: int, order: EpochSampler | range) -> PrefetchLoader:
        return PrefetchLoader(
            images,
            batch_size,
            order,
            channels=self.input.channels,
            threads=self.batches.threads,
            pin_memory=self.batches.pin_memory,
        )
