"""Which real images and which variations make up one run, and the order in which training draws them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from boxtwin.datasets.sample import Sample
from boxtwin.datasets.splits import Split
from boxtwin.mixing.options import BatchOptions


@dataclass(frozen=True)
class Plan:
    """The images of one run, of which synthetic ones have a lineage.

    ValueError if a variation is not on the side of its source, a test image is synthetic, or there are no training
    images; and if one of the ``extra`` images has variations, is a variation, or is a validation or test image.
    """

    train: tuple[Sample, ...]
    val: tuple[Sample, ...]  # real: checkpoints and thresholds are chosen on these
    val_synthetic: tuple[Sample, ...]  # reported apart
    test: tuple[Sample, ...]
    extra: tuple[Sample, ...] = ()  # real images to train on that are no labelled images of the split
    pretraining: tuple[Sample, ...] = ()  # images of the pre-training, shown between the others

    def __post_init__(self) -> None:
        real = {side: {s.name for s in samples if s.lineage is None} for side, samples in vars(self).items()}
        strays = [
            f"{sample.name} (a variation of {sample.lineage.source}) on the {side} side"
            for side, samples, home in (("training", self.train, "train"), ("validation", self.val_synthetic, "val"))
            for sample in samples
            if sample.lineage is not None and sample.lineage.source not in real[home]
        ]
        strays += [f"{name} is no variation, but is among them" for name in sorted(real["val_synthetic"])]
        for side, samples in (("validation", self.val), ("test", self.test)):
            strays += [f"{sample.name} is synthetic, on the {side} side" for sample in samples if sample.lineage]
        held_out = {sample.sha256 for sample in (*self.val, *self.test) if sample.sha256}
        for sample in self.extra:
            if sample.lineage or sample.sha256 in held_out:
                what = "synthetic" if sample.lineage else "a validation or test image"
                strays.append(f"{sample.name}, an image beside the split, is {what}")
        if strays:
            raise ValueError("a variation must stay on its source's side: " + "; ".join(strays[:10]))
        if not self.train:
            raise ValueError("a run needs training images")

    @property
    def pool(self) -> tuple[Sample, ...]:
        """All images that are trained on."""
        return (*self.train, *self.extra)

    @property
    def real_train(self) -> int:
        """How many training images of the split there are: real and labelled ones."""
        return sum(sample.lineage is None for sample in self.train)

    @property
    def synthetic_train(self) -> int:
        """How many training images are variations."""
        return len(self.train) - self.real_train


def make_plan(
    split: Split, variations: Sequence[Sample], extra: Sequence[Sample] = (), pretraining: Sequence[Sample] = ()
) -> Plan:
    """Put the variations of a split's training and validation images on the sides of their sources; see `Plan`."""
    names = {sample.name for sample in split.train}
    to_train: list[Sample] = []
    to_val: list[Sample] = []
    for variation in variations:
        is_training = variation.lineage is not None and variation.lineage.source in names
        (to_train if is_training else to_val).append(variation)  # Plan refuses what is none of validation images
    return Plan((*split.train, *to_train), split.val, tuple(to_val), split.test, tuple(extra), tuple(pretraining))


def draw_order(plan: Plan, batches: BatchOptions) -> Int[np.ndarray, "steps batch"]:
    """The training image at each place of each batch: an index into ``(*plan.pool, *plan.pretraining)``.


    A share of every batch is drawn from the images of the pre-training. Of the other places, with
    ``synthetic_fraction`` None, all images are drawn equally often: shuffled passes over the pool, one after the other.
    Otherwise that share of them is drawn from the variations, and the rest from the real images, each in shuffled
    passes of its own. Later batches make up for rounding.
    """
    steps, batch_size, synthetic_fraction = batches.steps, batches.batch_size, batches.synthetic_fraction
    random = np.random.default_rng(batches.seed)
    shares = np.full(steps, batches.pretraining_share if plan.pretraining else 0.0)
    if batches.pretraining_share_falls:
        shares *= 1 - (np.arange(steps) + 0.5) / steps
    earlier = _per_batch(np.cumsum(batch_size * shares))
    synthetic = np.zeros(steps, dtype=np.int64)
    pools = [np.arange(len(plan.pool))]
    if synthetic_fraction is not None and plan.synthetic_train:
        is_synthetic = np.array([sample.lineage is not None for sample in plan.pool])
        synthetic = _per_batch(np.cumsum(batch_size - earlier) * synthetic_fraction)
        pools = [np.flatnonzero(is_synthetic), np.flatnonzero(~is_synthetic)]
    place = np.arange(batch_size)
    is_synthetic, is_earlier = place < synthetic[:, None], place >= batch_size - earlier[:, None]
    places = [is_synthetic, ~is_synthetic & ~is_earlier][-len(pools) :]
    order = np.empty((steps, batch_size), dtype=np.int64)
    for pool, here in zip(pools, places, strict=True):
        order[here] = _passes(pool, int(here.sum()), random)
    others = np.arange(len(plan.pool), len(plan.pool) + len(plan.pretraining))
    order[is_earlier] = _passes(others, int(is_earlier.sum()), random)
    return order


def _per_batch(until: Float[np.ndarray, " steps"]) -> Int[np.ndarray, " steps"]:
    """Whole numbers of images in each batch, of which ``until`` have been shown by the end of each."""
    return np.diff(np.round(until).astype(np.int64), prepend=0)


def _passes(pool: Int[np.ndarray, " n"], draws: int, random: np.random.Generator) -> Int[np.ndarray, " draws"]:
    """Shuffled passes over a pool, cut off after so many draws."""
    passes = [random.permutation(pool) for _ in range(-(-draws // len(pool)))] if draws else []
    return np.concatenate(passes)[:draws] if passes else np.empty(0, dtype=np.int64)
