"""How wide an interval will be when more seeds have run."""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy import stats

from boxtwin.studies.inference import LEVEL, Interval, freedom


@dataclass(frozen=True)
class Noise:
    """Variance of one pair's difference by its seed, and of any mean difference by the choice of test images."""

    seed: float
    image: float
    images: int

    def half_width(self, pairs: int) -> float:
        """Of the interval that so many pairs can be expected to give: seeds average out, the test images stay."""
        seed = self.seed / pairs
        if seed + self.image == 0:
            return 0.0
        degrees = freedom(seed, self.image, pairs, self.images)
        return float(stats.t.ppf((1 + LEVEL) / 2, degrees)) * math.sqrt(seed + self.image)

    @property
    def floor(self) -> float:
        """What no number of seeds gets below."""
        return float(stats.norm.ppf((1 + LEVEL) / 2)) * math.sqrt(self.image)


def noise_of(interval: Interval, pairs: int, images: int) -> Noise:
    """What an interval's width comes from, per pair."""
    return Noise(interval.seed_variance * pairs, interval.image_variance, images)


def least(interval: Interval, pairs: int, images: int) -> float:
    """Half width that no number of pairs gets below, scaled from what it is now."""
    noise = noise_of(interval, pairs, images)
    now = noise.half_width(pairs)
    return (interval.high - interval.low) / 2 * noise.floor / now if now else 0.0


def after_more(interval: Interval, pairs: int, more: int, images: int) -> float:
    """Half width of an interval after ``more`` pairs were added, scaled from what it is now."""
    noise = noise_of(interval, pairs, images)
    now = noise.half_width(pairs)
    measured = (interval.high - interval.low) / 2
    return measured * noise.half_width(pairs + more) / now if now else 0.0
