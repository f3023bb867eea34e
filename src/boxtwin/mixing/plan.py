"""Which real images and which variations make up one cell: pure, seeded, nested."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from boxtwin.datasets.sample import Sample
from boxtwin.datasets.splits import Split


@dataclass(frozen=True)
class Plan:
    """The images of one cell. Real and synthetic images are told apart by their lineage.

    A variation lives on the side of its source, and test images are real: anything else is refused.
    """

    train: tuple[Sample, ...]
    val: tuple[Sample, ...]  # real: checkpoints and thresholds are chosen on these
    val_synthetic: tuple[Sample, ...]  # reported apart
    test: tuple[Sample, ...]

    def __post_init__(self) -> None:
        real_train = {sample.name for sample in self.train if sample.lineage is None}
        real_val = {sample.name for sample in self.val}
        strays = [
            f"{sample.name} (a variation of {sample.lineage.source}) on the training side"
            for sample in self.train
            if sample.lineage is not None and sample.lineage.source not in real_train
        ]
        strays += [
            f"{sample.name} is no variation, but stands among them"
            for sample in self.val_synthetic
            if sample.lineage is None
        ]
        strays += [
            f"{sample.name} (a variation of {sample.lineage.source}) on the validation side"
            for sample in self.val_synthetic
            if sample.lineage is not None and sample.lineage.source not in real_val
        ]
        for side, samples in (("validation", self.val), ("test", self.test)):
            strays += [f"{sample.name} is synthetic, on the {side} side" for sample in samples if sample.lineage]
        if strays:
            raise ValueError("a variation must stay on its source's side: " + "; ".join(strays[:10]))
        if not self.train or not self.val or not self.test:
            raise ValueError("a run needs training, validation and test images")

    @property
    def real_train(self) -> int:
        """How many training images are real."""
        return sum(sample.lineage is None for sample in self.train)

    @property
    def synthetic_train(self) -> int:
        """How many training images are variations."""
        return len(self.train) - self.real_train


def make_plan(split: Split, variations: Sequence[Sample]) -> Plan:
    """Put the variations of a split's training and validation images to their sources' sides.

    Raises:
        ValueError: a variation's source is on neither side, or one of them is a real image.
    """
    train_names = {sample.name for sample in split.train}
    is_training = [v.lineage is not None and v.lineage.source in train_names for v in variations]
    to_train = tuple(v for v, training in zip(variations, is_training, strict=True) if training)
    # Plan looks at what is left over, and refuses what is no variation of a validation image.
    to_val = tuple(v for v, training in zip(variations, is_training, strict=True) if not training)
    return Plan(train=(*split.train, *to_train), val=split.val, val_synthetic=to_val, test=split.test)


def draw_order(
    plan: Plan, *, steps: int, batch_size: int, seed: int, synthetic_fraction: float | None
) -> Int[np.ndarray, "steps batch"]:
    """Which training image (an index into ``plan.train``) stands at which place of which batch.

    Every run takes the same number of steps of the same size; only the pool differs. With ``synthetic_fraction`` None
    all images are drawn equally often: shuffled passes over the pool, one after the other. Otherwise that share of
    every batch (rounded; what rounding takes is given back by later batches) is drawn from the variations, and the rest
    from the real images, each in shuffled passes of its own.

    Raises:
        ValueError: the share is outside [0, 1].
    """
    if synthetic_fraction is not None and not 0 <= synthetic_fraction <= 1:
        raise ValueError(f"synthetic_fraction must lie between 0 and 1, got {synthetic_fraction}")
    random = np.random.default_rng(seed)
    if synthetic_fraction is None or plan.synthetic_train == 0:
        return _passes(np.arange(len(plan.train)), steps * batch_size, random).reshape(steps, batch_size)
    is_synthetic = np.array([sample.lineage is not None for sample in plan.train])
    after = np.round(np.arange(1, steps + 1) * batch_size * synthetic_fraction).astype(int)
    per_batch = np.diff(after, prepend=0)
    synthetic = _passes(np.flatnonzero(is_synthetic), int(after[-1]), random)
    real = _passes(np.flatnonzero(~is_synthetic), steps * batch_size - int(after[-1]), random)
    order = np.empty((steps, batch_size), dtype=np.int64)
    used = 0
    for step, count in enumerate(per_batch):
        order[step, :count] = synthetic[used : used + count]
        used_real = step * batch_size - used
        order[step, count:] = real[used_real : used_real + batch_size - count]
        used += count
    return order


def _passes(pool: Int[np.ndarray, " n"], draws: int, random: np.random.Generator) -> Int[np.ndarray, " draws"]:
    """Shuffled passes over a pool, cut off after so many draws."""
    passes = [random.permutation(pool) for _ in range(-(-draws // len(pool)))]
    return np.concatenate(passes)[:draws] if passes else np.empty(0, dtype=np.int64)
