"""Inference on the difference of two conditions: intervals over seeds and test images, exact tests, Holm's correction.

Two conditions are compared pair by pair: runs that share a seed, a split and the test images. Two things are random:
the seed of a training, and which images are in the test set.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import stats

LEVEL = 0.95
SIGNIFICANT = 1 - LEVEL
NORMAL_QUANTILE = float(stats.norm.ppf((1 + LEVEL) / 2))  # half the width of an interval, in standard deviations
RESAMPLING_SEED = 0  # the same resamples for all runs of all studies
LEAST_PAIRS = 6  # 2 / 2^6 = 0.03 is the first p below 0.05
LEAST_BARS = 3  # seeds whose interval is drawn: that of two reaches 13 standard errors to either side
EXACT_PAIRS = 20  # whose 2^n sign flips are all tried
FLIPS = 99_999  # drawn where there are more pairs
UNDEFINED = 0.01  # share of resamples of the test images on which a metric may be undefined


@dataclass(frozen=True)
class Interval:
    """A 95 % interval of a mean difference over pairs, and where its width comes from (variances of the mean)."""

    mean: float
    low: float
    high: float
    seed_variance: float
    image_variance: float
    pairs: int
    images: int  # test images

    @property
    def half_width(self) -> float:
        """A measured difference must exceed it for the interval to exclude 0."""
        return (self.high - self.low) / 2

    @property
    def floor(self) -> float:
        """Half width that no number of pairs gets below."""
        return self._scaled(NORMAL_QUANTILE * math.sqrt(self.image_variance))

    def after(self, pairs: int) -> float:
        """Half width that so many pairs in all can be expected to give."""
        return self._scaled(self.expected(pairs))

    def expected(self, pairs: int) -> float:
        """Half width of so many pairs by Student's t: seeds average out, the test images stay."""
        seed = self.seed_variance * self.pairs / pairs
        if seed + self.image_variance == 0:
            return 0.0
        return students(seed, self.image_variance, pairs, self.images) * math.sqrt(seed + self.image_variance)

    def _scaled(self, then: float) -> float:
        """The measured half width times the ratio of two that are expected."""
        now = self.expected(self.pairs)
        return self.half_width * then / now if now else 0.0


def image_counts(images: int, resamples: int, seed: int) -> Float[np.ndarray, "resamples images"]:
    """How often each of ``images`` test images is in each bootstrap resample; the same for all runs of a study."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(images, np.full(images, 1 / images), size=resamples).astype(np.float64)


@functools.cache
def bootstrap_counts(images: int, resamples: int) -> Float[np.ndarray, "_rows images"]:
    """The test images as they are, in the first row, and `image_counts` below it."""
    return np.concatenate([np.ones((1, images)), image_counts(images, resamples, RESAMPLING_SEED)])


def clusters_of(shared: Sequence[Hashable]) -> tuple[int, ...]:
    """Numbers that are equal where pairs share the same."""
    return tuple(map(list(dict.fromkeys(shared)).index, shared))


def defined_columns(values: Float[np.ndarray, "_rows columns"]) -> Bool[np.ndarray, " columns"] | None:
    """Columns without an undefined value, of which the first is not resampled.

    Resamples without an object have no AP. They are left out while they are at most `UNDEFINED` of all. None where
    there are more, or where the first column is undefined.
    """
    defined = np.isfinite(values).all(axis=0)
    return None if not defined[0] or np.mean(~defined[1:]) > UNDEFINED else np.asarray(defined)


def interval_of(
    differences: Float[np.ndarray, "pairs columns"],
    images: int,
    clusters: Sequence[int] = (),
    *,
    limits: tuple[float, float] = (-math.inf, math.inf),
) -> Interval | None:
    """`hierarchical_interval` over `defined_columns`; None without these, and with fewer than two pairs.

    ``limits`` are the least and greatest value that there can be. An interval of two or three pairs would go beyond
    them, and is cut there, which leaves out nothing that could be true.
    """
    if len(differences) < 2 or (defined := defined_columns(differences)) is None:
        return None
    kept = differences[:, defined]
    interval = hierarchical_interval(kept[:, 0], kept[:, 1:], images=images, clusters=clusters)
    return replace(interval, low=max(interval.low, limits[0]), high=min(interval.high, limits[1]))


def hierarchical_interval(
    differences: Float[np.ndarray, " pairs"],
    resampled: Float[np.ndarray, "_pairs resamples"],
    *,
    images: int,
    seed: int = 0,
    clusters: Sequence[int] = (),
) -> Interval:
    """Interval of the mean difference over seeds and test images, by a bootstrap of both.

    ``differences`` are those of each pair on the test images as they are, ``resampled`` on resamples of them. Column
    ``b`` is one resample for all pairs, so that what an image does to all runs alike stays together (crossed factors:
    Owen 2007, "The pigeonhole bootstrap"). ``seed`` is that of the draw of pairs; for ``clusters`` see
    `seed_variance`.

    The bootstrap gives the shape, `variances` the width. Since few values hardly show their own spread, the level is
    widened as Student's t asks for (Hesterberg 2015, "What teachers should know about the bootstrap", section 3.2),
    with degrees of freedom from both sources (Satterthwaite 1946). Where that level is beyond all resamples, the
    interval is at least as wide as Student's.

    Raises:
        ValueError: fewer than two pairs, or the shapes do not fit.
    """
    by_seeds, by_images = variances(differences, resampled, clusters)
    mean, pairs = float(np.mean(differences)), len(differences)
    drawn = np.random.default_rng(seed).integers(pairs, size=(pairs, resampled.shape[1]))
    independent = seed_variance(differences, clusters)[1]
    tail = widened_tail(by_seeds, by_images, independent, images)
    low, high = np.quantile(bootstrapped(differences, resampled, drawn, clusters), [tail, 1 - tail])
    if tail * resampled.shape[1] < 1 and by_seeds + by_images > 0:
        # With less than about four degrees of freedom (few pairs or pre-trainings, and little chance by the images) the
        # bootstrap has no such quantile: its extremes are far too near.
        reach = students(by_seeds, by_images, independent, images) * math.sqrt(by_seeds + by_images)
        low, high = min(low, mean - reach), max(high, mean + reach)
    return Interval(mean, float(low), float(high), by_seeds, by_images, pairs, images)


def seed_variance(differences: Float[np.ndarray, " pairs"], clusters: Sequence[int] = ()) -> tuple[float, int]:
    """Variance of the mean by the choice of seeds, and from how many independent values it is known.

    Pairs of equal ``clusters`` share a chance, that of their pre-training. The variance is that between clusters (Liang
    and Zeger 1986) where it is larger than that of as many independent pairs, else the latter. One cluster alone tells
    nothing of the chance that its pairs share.
    """
    pairs, numbers = len(differences), np.unique(clusters)
    alone = float(np.var(differences, ddof=1)) / pairs
    if 1 < len(numbers) < pairs:
        deviations = differences - differences.mean()
        sums = np.array([deviations[np.array(clusters) == number].sum() for number in numbers])
        together = float((sums**2).sum()) / pairs**2 * len(numbers) / (len(numbers) - 1)
        if together > alone:
            return together, len(numbers)
    return alone, pairs


def variances(
    differences: Float[np.ndarray, " pairs"],
    resampled: Float[np.ndarray, "_pairs resamples"],
    clusters: Sequence[int] = (),
) -> tuple[float, float]:
    """Of the mean over pairs: by the choice of seeds, and by the choice of test images. Their sum is the whole.

    What is peculiar to one run on one image is in the spread between the pairs, and a bootstrap of the images counts it
    again: that share is subtracted. It follows from how much less the mean over pairs varies between resamples than a
    single pair does.

    Raises:
        ValueError: fewer than two pairs, or the shapes do not fit.
    """
    pairs = len(differences)
    if pairs < 2:
        raise ValueError(f"an interval over seeds needs at least two pairs, got {pairs}")
    if resampled.shape[0] != pairs or resampled.shape[1] < 2:
        raise ValueError(f"{pairs} pairs need resampled differences of shape ({pairs}, many), got {resampled.shape}")
    single = float(np.var(resampled, axis=1, ddof=1).mean())
    together = float(np.var(resampled.mean(axis=0), ddof=1))
    seeds, _ = seed_variance(differences, clusters)
    # No more than the spread between the pairs: two that happen to agree would remove the whole variance of the images.
    peculiar = min((single - together) / (pairs - 1), seeds)
    return seeds, max(together - peculiar, 0.0)


def bootstrapped(
    differences: Float[np.ndarray, " pairs"],
    resampled: Float[np.ndarray, "_pairs resamples"],
    drawn: Int[np.ndarray, "draws resamples"],
    clusters: Sequence[int] = (),
) -> Float[np.ndarray, " resamples"]:
    """Bootstrap of the mean difference: in each resample of the images the mean of the pairs ``drawn`` for it.

    Drawing rows and columns at once counts what is peculiar to a run and an image three times (Owen 2007), and drawing
    few pairs underestimates their spread, so the deviations are scaled to the variance that `variances` gives. They lie
    around the mean as measured, since AP of a resample is slightly biased.
    """
    means = np.take_along_axis(resampled, drawn, axis=0).mean(axis=0)
    deviations = means - means.mean()
    spread = float(np.std(deviations, ddof=1))
    if spread == 0:
        return np.full(len(means), np.mean(differences))
    scaled: Float[np.ndarray, " resamples"] = deviations * (
        math.sqrt(sum(variances(differences, resampled, clusters))) / spread
    )
    return np.mean(differences) + scaled


def mean_interval(values: Sequence[float], clusters: Sequence[int] = ()) -> tuple[float, float] | None:
    """95 % interval of a mean over seeds on the same test images by Student's t; None with fewer than two of them."""
    if len(values) < 2:
        return None
    variance, independent = seed_variance(np.asarray(values, dtype=np.float64), clusters)
    # The mean as `Estimate` computes it, so that it lies between the ends where these coincide.
    mean, reach = math.fsum(values) / len(values), math.sqrt(variance)
    reach *= float(stats.t.ppf((1 + LEVEL) / 2, independent - 1))
    return mean - reach, mean + reach


def freedom(seed_variance: float, image_variance: float, pairs: int, images: int) -> float:
    """Degrees of freedom of a sum of two variances, each known from so many values (Satterthwaite 1946)."""
    total = seed_variance + image_variance
    return total**2 / (seed_variance**2 / (pairs - 1) + image_variance**2 / max(images - 1, 1))


def students(seed_variance: float, image_variance: float, pairs: int, images: int) -> float:
    """Half width of a 95 % interval in standard errors by Student's t, with `freedom`."""
    return float(stats.t.ppf((1 + LEVEL) / 2, freedom(seed_variance, image_variance, pairs, images)))


def widened_tail(seed_variance: float, image_variance: float, pairs: int, images: int) -> float:
    """Share to cut off each end of the values of a bootstrap for an interval of `LEVEL`, widened as t asks for."""
    if seed_variance + image_variance == 0:
        return (1 - LEVEL) / 2
    degrees = freedom(seed_variance, image_variance, pairs, images)
    return float(stats.norm.cdf(stats.t.ppf((1 - LEVEL) / 2, degrees)))


def sign_flip_p(differences: Sequence[float]) -> float:
    """Two-sided p value of the hypothesis that conditions do not differ, over the sign flips of the pairs.

    Under that hypothesis either run of a pair could have been the other (Fisher 1935, section 21), so p is at least
    2 / 2^n. With more than `EXACT_PAIRS` pairs, `FLIPS` of the 2^n flips are drawn, the same ones every time, and the
    measured signs count as one more, so that the test keeps its level (Phipson and Smyth 2010).

    Raises:
        ValueError: no pairs.
    """
    pairs = len(differences)
    if not pairs:
        raise ValueError("a test needs at least one pair, got none")
    if pairs == 1:  # of which scipy makes no test
        return 1.0
    flips = stats.permutation_test(
        (np.asarray(differences, dtype=np.float64),), np.sum, permutation_type="samples",
        n_resamples=np.inf if pairs <= EXACT_PAIRS else FLIPS, vectorized=True, batch=2**14,
        random_state=np.random.default_rng(RESAMPLING_SEED),
    )  # fmt: skip
    return float(flips.pvalue)


def pairs_needed(comparisons: int) -> int:
    """Pairs that a table of so many comparisons needs before any of them can be significant."""
    return math.ceil(math.log2(2 * max(comparisons, 1) / SIGNIFICANT))


def holm(p_values: Sequence[float]) -> list[float]:
    """p values corrected for their number (Holm 1979), in the order given; nan stays nan and does not count."""
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p)[: np.count_nonzero(~np.isnan(p))]  # nan is sorted to the end
    corrected = np.full(len(p), math.nan)
    scaled = np.minimum(p[order] * np.arange(len(order), 0, -1), 1.0)
    corrected[order] = np.maximum.accumulate(scaled)
    return [float(value) for value in corrected]
