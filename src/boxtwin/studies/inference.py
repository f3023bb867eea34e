"""How sure a difference between two conditions is: intervals over seeds and test images, exact tests, many comparisons.

Two conditions are held against each other pair by pair: runs that share a seed, a split and the test images. Two things
are chance: the seed of a training, and which images happen to be in the test set. A difference must be seen through
both to hold for the next training and the next image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from jaxtyping import Float
from scipy import stats

LEVEL = 0.95
SIGNIFICANT = 1 - LEVEL
LEAST_PAIRS = 6  # 2 / 2^6 = 0.03 is the first p below 0.05


@dataclass(frozen=True)
class Interval:
    """A 95 % interval of a mean difference, and where its width comes from (variances of the mean)."""

    mean: float
    low: float
    high: float
    seed_variance: float
    image_variance: float


def image_counts(images: int, resamples: int, seed: int) -> Float[np.ndarray, "resamples images"]:
    """How often each of ``images`` test images is in each bootstrap resample; the same for all runs of a study."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(images, np.full(images, 1 / images), size=resamples).astype(np.float64)


def hierarchical_interval(
    differences: Float[np.ndarray, " pairs"],
    resampled: Float[np.ndarray, "_pairs resamples"],
    *,
    images: int,
    seed: int = 0,
) -> Interval:
    """Interval of the mean difference over seeds and test images, by a bootstrap of both.

    Args:
        differences: of each pair of runs, on the test images as they are.
        resampled: the same on resamples of the test images; column ``b`` is one resample for all pairs, so that what an
            image does to all runs alike stays together (crossed factors: Owen 2007, "The pigeonhole bootstrap").
        images: number of test images.
        seed: of the draw of pairs.

    Percentiles of a bootstrap of few values are too narrow for two reasons. Its variance is (n - 1) / n of what it
    should be: one pair less is drawn than there are (the "bootknife" has the same aim: Hesterberg 2004). And it treats
    the spread as known: the level is widened as Student's t asks for it (Hesterberg 2015, "What teachers should know
    about the bootstrap", section 3.2), with degrees of freedom from both sources of chance (Satterthwaite 1946).

    Raises:
        ValueError: fewer than two pairs, or the shapes do not fit.
    """
    pairs = len(differences)
    if pairs < 2:
        raise ValueError(f"an interval over seeds needs at least two pairs, got {pairs}")
    if resampled.shape[0] != pairs or resampled.shape[1] < 2:
        raise ValueError(f"{pairs} pairs need resampled differences of shape ({pairs}, many), got {resampled.shape}")
    mean = float(np.mean(differences))
    # What the images do to the mean of these runs, and what the choice of runs does on these images.
    image_variance = float(np.var(resampled.mean(axis=0), ddof=1))
    seed_variance = float(np.var(differences, ddof=1)) / pairs
    rng = np.random.default_rng(seed)
    drawn = rng.integers(pairs, size=(pairs - 1, resampled.shape[1]))
    means = np.take_along_axis(resampled, drawn, axis=0).mean(axis=0)
    total = seed_variance + image_variance
    if total == 0:
        return Interval(mean, mean, mean, 0.0, 0.0)
    tail = widened_tail(seed_variance, image_variance, pairs, images)
    # Deviations from the bootstrap's own middle, put around the mean as measured: AP of a resample is biased a little.
    low, high = np.quantile(means - means.mean(), [tail, 1 - tail])
    return Interval(mean, mean + float(low), mean + float(high), seed_variance, image_variance)


def mean_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """95 % interval of a mean over seeds by Student's t (Student 1908); None with fewer than two of them.

    It speaks of other seeds on the same test images, and of no other images.
    """
    if len(values) < 2:
        return None
    mean, reach = float(np.mean(values)), float(np.std(values, ddof=1)) / math.sqrt(len(values))
    reach *= float(stats.t.ppf((1 + LEVEL) / 2, len(values) - 1))
    return mean - reach, mean + reach


def freedom(seed_variance: float, image_variance: float, pairs: int, images: int) -> float:
    """Degrees of freedom of a sum of two variances, each known from so many values (Satterthwaite 1946)."""
    total = seed_variance + image_variance
    return total**2 / (seed_variance**2 / (pairs - 1) + image_variance**2 / max(images - 1, 1))


def widened_tail(seed_variance: float, image_variance: float, pairs: int, images: int) -> float:
    """Share to cut off each end of a bootstrap's values for an interval of `LEVEL`: less than a normal's, as t asks."""
    if seed_variance + image_variance == 0:
        return (1 - LEVEL) / 2
    degrees = freedom(seed_variance, image_variance, pairs, images)
    return float(stats.norm.cdf(stats.t.ppf((1 - LEVEL) / 2, degrees)))


def sign_flip_p(differences: Sequence[float]) -> float:
    """Two-sided p of "the two conditions differ by nothing but chance", exact over all 2^n flips of the pairs' signs.

    Under that hypothesis either run of a pair could have been the other (Fisher 1935, section 21). It cannot be less
    than 2 / 2^n; equal means count as at least as extreme. Up to 20 pairs all flips are looked at.

    Raises:
        ValueError: no pairs, or more than 20.
    """
    pairs = len(differences)
    if not 1 <= pairs <= 20:
        raise ValueError(f"between 1 and 20 pairs, got {pairs}")
    values = np.asarray(differences, dtype=np.float64)
    signs = np.array(list(product((1.0, -1.0), repeat=pairs)))
    totals = np.abs(signs @ values)
    # Sums of the same numbers in another order differ in the last bits.
    return float((totals >= totals[0] * (1 - 1e-12)).mean())


def least_p(pairs: int) -> float:
    """The smallest two-sided p that ``pairs`` pairs can give."""
    return 2.0 / 2.0**pairs if pairs else 1.0


def pairs_needed(comparisons: int) -> int:
    """Pairs that a table of so many comparisons needs before the clearest of them can be called significant."""
    return math.ceil(math.log2(2 * max(comparisons, 1) / SIGNIFICANT))


def holm(p_values: Sequence[float]) -> list[float]:
    """p values corrected for their number (Holm 1979), in the order given; nan stays nan and does not count."""
    known = [index for index, p in enumerate(p_values) if not math.isnan(p)]
    corrected = [math.nan] * len(p_values)
    greatest = 0.0
    for rank, index in enumerate(sorted(known, key=lambda index: p_values[index])):
        greatest = max(greatest, min(1.0, (len(known) - rank) * p_values[index]))
        corrected[index] = greatest
    return corrected
