"""A LightningDataModule over a plan: the same draws whatever the machine, and after any resume."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence

import cv2
import numpy as np
import pytorch_lightning as pl
import torch
from jaxtyping import Int, UInt8, UInt16
from torch.utils.data import DataLoader, Dataset, Sampler

from boxtwin.datasets.batch import Batch
from boxtwin.datasets.images import Pixels, read_image
from boxtwin.datasets.sample import Sample
from boxtwin.errors import InputError
from boxtwin.mixing.augment import WHOLE, Augmentation, Labelled, Letterbox, letterbox
from boxtwin.mixing.plan import Plan, draw_order
from boxtwin.mixing.tiles import Tile, cut_tile, tiles

Item = tuple[Labelled, Letterbox, Sample]


def white_level(samples: Sequence[Sample]) -> int:
    """The pixel value that means 1.0: 255 for 8 bit; for 16 bit the largest value in the (training) images.

    Sensors fill 10, 12 or 14 of the 16 bits; 65535 would leave such images all but black.

    Raises:
        InputError: some images have 8 bit and some 16; no one value is white in both.
    """
    largest = 255
    example: dict[str, str] = {}  # pixel type -> an image of it
    for sample in samples:
        pixels = read_image(sample.path)
        example.setdefault(f"{8 * pixels.dtype.itemsize} bit", sample.name)
        if pixels.dtype == np.uint16:
            largest = max(largest, int(pixels.max()))
    if len(example) > 1:
        told = " and ".join(f"{name} has {depth}" for depth, name in example.items())
        raise InputError(f"images must be 8 bit or 16 bit throughout, but {told}; convert one kind to the other")
    return largest


class ImageCache:
    """Decoded images in memory, the least recently used ones given up beyond ``megabytes``."""

    def __init__(self, megabytes: int) -> None:
        self._limit = megabytes * 2**20
        self._held = 0
        self._images: OrderedDict[str, Pixels] = OrderedDict()

    def read(self, sample: Sample) -> Labelled:
        """The image and its single objects."""
        key = str(sample.path)
        pixels = self._images.pop(key, None)
        if pixels is None:
            pixels = read_image(sample.path)
            self._held += pixels.nbytes
        self._images[key] = pixels
        while self._held > self._limit and len(self._images) > 1:
            self._held -= self._images.popitem(last=False)[1].nbytes
        return Labelled(pixels, sample.object_boxes, sample.object_labels)


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
        white: int,
        seed: int,
        cache: ImageCache,
    ) -> None:
        self._samples = samples
        self._order = order
        self._augmentation = augmentation
        self._size = size
        self._crop = crop
        self._white = white
        self._seed = seed
        self._cache = cache

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: int) -> Item:
        random = np.random.default_rng([self._seed, index])
        sample = self._samples[self._order[index]]

        def partner() -> Labelled:
            # From the draws, not the pool: real and synthetic images keep their shares in a mosaic.
            return self._cache.read(self._samples[self._order[random.integers(len(self._order))]])

        image = self._augmentation(
            self._cache.read(sample), partner, size=self._size, crop=self._crop, white=self._white, random=random
        )
        return image, WHOLE, sample


class ImagesAsTheyAre(Dataset[Item]):
    """Images for validation, test and counting: letterboxed whole, or in tiles of a fixed size.

    With ``tile`` None an item is an image in a ``size`` x ``size`` square; otherwise one of the ``tile`` x ``tile``
    squares that cover the image at that scale.
    """

    def __init__(
        self, samples: Sequence[Sample], *, size: int, tile: int | None, white: int, cache: ImageCache
    ) -> None:
        self._samples = samples
        self._size = size
        self._tile = tile
        self._white = white
        self._cache = cache
        self._items: list[tuple[Sample, Tile | None]] = [
            (sample, part)
            for sample in samples
            for part in ([None] if tile is None else tiles(sample.width, sample.height, size=size, tile=tile))
        ]

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Item:
        sample, tile = self._items[index]
        image = self._cache.read(sample)
        if tile is None or self._tile is None:
            return *letterbox(image, self._size, self._white), sample
        return *cut_tile(image, tile, self._tile, self._white), sample


class EpochDraws(Sampler[int]):
    """The draws of one epoch, beginning where the optimiser is.

    The number of steps done is the only count that survives every kind of resume; Lightning's count of epochs may stand
    before or behind a checkpoint that was written during validation.
    """

    def __init__(self, draws: int, draws_per_epoch: int, position: Callable[[], int]) -> None:
        self._draws = draws
        self._per_epoch = draws_per_epoch
        self._position = position

    def __iter__(self) -> Iterator[int]:
        first = self._position()
        return iter(range(first, min(first + self._per_epoch, self._draws)))

    def __len__(self) -> int:
        return self._per_epoch


class Collate:
    """Items -> `Batch`: pixels over ``white`` as float32, 1 at most, with as many channels as the network takes."""

    def __init__(self, white: int, channels: int) -> None:
        self._white = white
        self._channels = channels

    def _in_channels(self, pixels: Pixels) -> UInt8[np.ndarray, "_h _w _c"] | UInt16[np.ndarray, "_h _w _c"]:
        if self._channels == 3:
            return pixels if pixels.ndim == 3 else np.broadcast_to(pixels[:, :, None], (*pixels.shape, 3))
        return (pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY))[:, :, None]

    def __call__(self, items: Sequence[Item]) -> Batch:
        pixels = torch.from_numpy(np.stack([self._in_channels(image.pixels) for image, _, _ in items]))
        # White is the brightest of the training images; in others there may be brighter pixels. Stacked with channels
        # last, which is how the convolutions take them.
        images = pixels.to(torch.float32).mul_(1 / self._white).clamp_(max=1).permute(0, 3, 1, 2)
        owners = [np.full(len(image.boxes), place) for place, (image, _, _) in enumerate(items)]
        return Batch(
            images=images,
            boxes=torch.from_numpy(np.concatenate([image.boxes for image, _, _ in items]).astype(np.float32)),
            labels=torch.from_numpy(np.concatenate([image.labels for image, _, _ in items])),
            box_image=torch.from_numpy(np.concatenate(owners).astype(np.int64)),
            image_ids=torch.tensor([sample.image_id for _, _, sample in items]),
            letterbox=torch.tensor([[box.scale, box.pad_x, box.pad_y] for _, box, _ in items]),
            file_size=torch.tensor([[sample.width, sample.height] for _, _, sample in items]),
            own=torch.tensor([box.own for _, box, _ in items]),
        )


class StudyDataModule(pl.LightningDataModule):
    """The images of one cell as batches.

    Args:
        plan: which images; its own check refuses a variation on the wrong side.
        image_size: what the longer side of an image is scaled to, pixels.
        crop: side of the squares that training images are cut to; the same as ``image_size`` for whole images.
        tile: side of the squares that other images are looked at in; None for whole images.
        channels: 1 for a network that takes grey images, 3 for one that takes colour.
        batch_size: images a step.
        steps: optimiser steps in all; every cell of a study takes the same.
        steps_per_epoch: steps between two validations; this is what Lightning calls an epoch here.
        augmentation: what is done to training images.
        synthetic_fraction: share of each training batch that is synthetic; None: as the counts have it.
        white: the pixel value that means 1.0 (`white_level`).
        seed: of order and augmentation.
        cache_mb: memory for decoded images.
        workers: loader processes; 0 loads in the training process, which is faster for small images.
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
        white: int,
        seed: int,
        cache_mb: int,
        workers: int,
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
        self.white = white
        self.seed = seed
        self.workers = workers
        self._cache = ImageCache(cache_mb)
        self._order = draw_order(
            plan, steps=steps, batch_size=batch_size, seed=seed, synthetic_fraction=synthetic_fraction
        ).reshape(-1)

    @property
    def validation_samples(self) -> tuple[Sample, ...]:
        """The real images that checkpoints and thresholds are chosen on."""
        return self.plan.val

    def train_dataloader(self) -> DataLoader[Item]:
        """Augmented batches, one epoch at a time."""
        draws = TrainingDraws(
            self.plan.train,
            self._order,
            self.augmentation,
            size=self.image_size,
            crop=self.crop,
            white=self.white,
            seed=self.seed,
            cache=self._cache,
        )
        sampler = EpochDraws(len(draws), self.steps_per_epoch * self.batch_size, self._draws_done)
        return self._loader(draws, sampler)

    def val_dataloader(self) -> DataLoader[Item]:
        """Real validation images."""
        return self.letterboxed(self.plan.val)

    def test_dataloader(self) -> DataLoader[Item]:
        """Real test images."""
        return self.letterboxed(self.plan.test)

    def letterboxed(self, samples: Sequence[Sample]) -> DataLoader[Item]:
        """Any images as they are, for prediction."""
        images = ImagesAsTheyAre(samples, size=self.image_size, tile=self.tile, white=self.white, cache=self._cache)
        return self._loader(images, None)

    def _draws_done(self) -> int:
        return 0 if self.trainer is None else self.trainer.global_step * self.batch_size

    def _loader(self, images: Dataset[Item], sampler: Sampler[int] | None) -> DataLoader[Item]:
        return DataLoader(
            images,
            batch_size=self.batch_size,
            sampler=sampler,
            collate_fn=Collate(self.white, self.channels),
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
        )
