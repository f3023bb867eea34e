"""How many variations are best: a smooth curve through what was tried, with its band.

The curve is the gain over no variations against log(1 + variations), a Gaussian process (Rasmussen and Williams 2006,
chapter 2) that is 0 at 0 variations. Three to six points cannot choose how wavy a curve is. So none is chosen: curves
of every length and height on a grid are averaged, each weighed by how well it explains the points (its marginal
likelihood; ibid., section 5.2).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from jaxtyping import Float, Int

from boxtwin.studies.comparison import PRIMARY_METRIC, ResampledMetrics
from boxtwin.studies.conditions import Row, baseline, paired_seeds
from boxtwin.studies.inference import LEAST_PAIRS, LEVEL, defined_columns

LEAST_COUNTS = 3  # 0 among them: two points make a line, which is best at one of its ends whatever the truth
# What counts as "no worse than the best": AP in [0, 1], MAE in objects an image.
MARGINS = {"map": 0.01, "map_50": 0.01, "count_mae": 0.05}
ENDS = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)  # of a 95 % band, as quantiles
DRAWS = 4000
DRAWS_SEED = 0
MOST_PLACES = 120  # whole numbers that the curve is worked out at; beyond, at even distances on the axis
GRID = 8  # lengths, and heights


@dataclass(frozen=True, eq=False)
class MeasuredGains:
    """Gains at the numbers of variations that were tried, and how they err together."""

    variations: tuple[int, ...]  # without 0, rising
    gains: Float[np.ndarray, " counts"]  # positive is better, whatever the metric
    noise: Float[np.ndarray, "counts counts"]  # covariance of the gains' errors
    images_known: bool  # whether the noise knows of the choice of test images


@dataclass(frozen=True, eq=False)
class Curve:
    """The gain at every number of variations from 0 to the largest tried; positive is better."""

    metric: str
    tried: MeasuredGains
    variations: Int[np.ndarray, " places"]
    draws: Float[np.ndarray, "draws places"]

    @property
    def mean(self) -> Float[np.ndarray, " places"]:
        return self.draws.mean(axis=0)

    @property
    def band(self) -> Float[np.ndarray, "2 places"]:
        """Least and greatest gain that 95 % of the draws allow at each number."""
        return np.quantile(self.draws, ENDS, axis=0)

    @property
    def chances(self) -> Float[np.ndarray, " places"]:
        """Probability of each number to be the best."""
        return np.bincount(self.draws.argmax(axis=1), minlength=len(self.variations)) / len(self.draws)

    @property
    def chances_tried(self) -> dict[int, float]:
        """Probability of 0 and each number that was tried to be the best of these."""
        among = [0, *self.tried.variations]
        best = self.draws[:, np.searchsorted(self.variations, among)].argmax(axis=1)
        return {number: float((best == place).mean()) for place, number in enumerate(among)}

    @property
    def best_place(self) -> int:
        return int(self.mean.argmax())

    @property
    def best(self) -> int:
        """The number with the greatest gain to be expected."""
        return int(self.variations[self.best_place])

    @property
    def best_gain(self) -> tuple[float, float, float]:
        """The gain at `best`, and the ends of its band."""
        low, high = self.band[:, self.best_place].tolist()
        return float(self.mean[self.best_place]), low, high

    @property
    def best_range(self) -> tuple[int, int]:
        """Numbers between which the best lies with 95 % probability."""
        best = self.variations[self.draws.argmax(axis=1)]
        low, high = np.quantile(best, ENDS, method="nearest")
        return int(low), int(high)

    def chance_enough(self) -> Float[np.ndarray, " places"]:
        """Probability of each number to be no more than a margin (`MARGINS`) below the best of all."""
        return (self.draws.max(axis=1, keepdims=True) - self.draws <= MARGINS[self.metric]).mean(axis=0)

    @property
    def enough(self) -> int | None:
        """From here more stops helping: the smallest number that is, with 95 % probability, as good as the best."""
        sure = np.flatnonzero(self.chance_enough() >= LEVEL)
        return int(self.variations[sure[0]]) if len(sure) else None

    @property
    def surest(self) -> tuple[int, float]:
        """The number that is most probably as good as the best, and that probability."""
        chances = self.chance_enough()
        return int(self.variations[chances.argmax()]), float(chances.max())

    def narrowing(self, number: int, noise: float) -> tuple[float, float]:
        """Standard deviation of the gain at the best number: now, and after ``number`` was tried with such a noise."""
        covariance = np.cov(self.draws.T)
        at, new = self.best_place, int(np.abs(self.variations - number).argmin())
        now = float(covariance[at, at])
        total = float(covariance[new, new]) + noise
        after = now - float(covariance[at, new]) ** 2 / total if total > 0 else now
        return now**0.5, max(after, 0.0) ** 0.5


def lines(rows: Sequence[Row]) -> list[tuple[Row, list[Row]]]:
    """A baseline and its rows with variations, for each split, condition and generator."""
    members: dict[Hashable, tuple[Row, list[Row]]] = {}
    for row in rows:
        base = baseline(rows, row)
        if base is not None:
            members.setdefault((row.split, row.condition, row.generator), (base, []))[1].append(row)
    return [(base, sorted(group, key=lambda row: row.variations)) for base, group in members.values()]


def has_enough_counts(base: Row, members: Sequence[Row]) -> bool:
    """Whether enough numbers of variations have enough seeds for a best one to be named."""
    return 1 + sum(_has_enough_seeds(PRIMARY_METRIC, base, row) for row in members) >= LEAST_COUNTS


def _has_enough_seeds(metric: str, base: Row, row: Row) -> bool:
    """Whether enough seeds of both have a metric: a run may have no AP."""
    both = [dict(each.estimates[metric].by_seed) for each in (base, row)]
    return sum(seed in both[0] and seed in both[1] for seed in paired_seeds(base, row)) >= LEAST_PAIRS


def measured_gains(metric: str, base: Row, members: Sequence[Row], resampled: ResampledMetrics) -> MeasuredGains:
    """Gains of the rows with enough seeds over their baseline, and the covariance of their errors.

    1. Seeds: a run's metric is the sum of its condition, of what its seed does to all conditions (pairs cancel it), and
       of noise with the same variance everywhere, which is estimated from all rows together.
    2. All gains are over the same runs of the baseline, whose errors they share.
    3. Images: the covariance of the gains over resamples of the test images, without what is peculiar to one run on
       one image, which is part of the first.
    """
    rows = [row for row in members if _has_enough_seeds(metric, base, row)]
    sign = -1.0 if metric == "count_mae" else 1.0
    old, *new = (dict(row.estimates[metric].by_seed) for row in (base, *rows))
    shared = [
        [seed for seed in paired_seeds(base, row) if seed in old and seed in values]
        for row, values in zip(rows, new, strict=True)
    ]
    gains = [
        sign * np.mean([values[seed] - old[seed] for seed in seeds]) for values, seeds in zip(new, shared, strict=True)
    ]
    noise = _own_variance([old, *new]) * np.array(
        [
            [len(set(a) & set(b)) / (len(a) * len(b)) + (1 / len(a) if i == j else 0) for j, b in enumerate(shared)]
            for i, a in enumerate(shared)
        ]
    )
    values = [
        [resampled.of_row(metric, each, seeds) for each in (row, base)] for row, seeds in zip(rows, shared, strict=True)
    ]
    by_image = [a - b for a, b in values if a is not None and b is not None]
    defined = defined_columns(np.concatenate(by_image)) if by_image and len(by_image) == len(rows) else None
    if defined is not None:
        noise = noise + _image_noise([each[:, defined][:, 1:] for each in by_image], shared)
    return MeasuredGains(tuple(row.variations for row in rows), np.array(gains), noise, defined is not None)


def _own_variance(values: Sequence[dict[int, float]]) -> float:
    """Variance of a run that its condition and its seed leave, by least squares, raised for being an estimate."""
    entries = [(row, seed, value) for row, by_seed in enumerate(values) for seed, value in by_seed.items()]
    seeds = sorted({seed for _, seed, _ in entries})
    design = np.zeros((len(entries), len(values) + len(seeds)))
    for line, (row, seed, _) in enumerate(entries):
        design[line, row] = design[line, len(values) + seeds.index(seed)] = 1
    target = np.array([value for _, _, value in entries])
    solution, _, rank, _ = np.linalg.lstsq(design, target)
    freedom = len(entries) - int(rank)
    residual = float(((target - design @ solution) ** 2).sum())
    # Variance of Student's t with as many degrees of freedom; six seeds of three conditions have ten.
    return residual / (freedom - 2) if freedom > 2 else residual / max(freedom, 1)


def _image_noise(
    gains: Sequence[Float[np.ndarray, "_pairs resamples"]], shared: Sequence[Sequence[int]]
) -> Float[np.ndarray, "rows rows"]:
    """Covariance of mean gains by the choice of test images alone, as in `boxtwin.studies.inference.variances`."""
    together = np.atleast_2d(np.cov(np.stack([each.mean(axis=0) for each in gains])))
    peculiar = np.zeros_like(together)
    for i, j in product(range(len(gains)), repeat=2):
        if shared[i] == shared[j]:
            single = np.mean([np.cov(a, b)[0, 1] for a, b in zip(gains[i], gains[j], strict=True)])
            peculiar[i, j] = (single - together[i, j]) / (len(shared[i]) - 1)
    # A difference of two estimates need not be a covariance: the nearest one has no negative eigenvalue (Higham 1988).
    values, vectors = np.linalg.eigh(together - peculiar)
    return np.asarray((vectors * values.clip(0)) @ vectors.T)


def places(tried: Sequence[int]) -> Int[np.ndarray, " places"]:
    """Whole numbers of variations from 0 to the largest of those tried, and all that were tried."""
    largest = max(tried)
    if largest <= MOST_PLACES:
        return np.arange(largest + 1)
    even = np.round(np.expm1(np.linspace(0, np.log1p(largest), MOST_PLACES))).astype(np.int64)
    return np.unique(np.append(even, np.array(tried, dtype=np.int64)))


def fit(metric: str, gains: MeasuredGains) -> Curve:
    """The curve through what was tried: draws from the Gaussian process, averaged over its lengths and heights.

    Lengths, on the axis log(1 + variations), are from half the widest gap between neighbours that were tried to the
    whole axis; heights from the largest gain that was measured, or the largest error of one, to four times that. Both
    are in even steps of their logarithms, and equally probable.
    """
    at = np.log1p(np.array([0, *gains.variations], dtype=np.float64))
    scale = max(float(np.sqrt(np.diag(gains.noise)).max()), float(np.abs(gains.gains).max()), 1e-6)
    lengths = np.geomspace(np.diff(at).max() / 2, float(at[-1]), GRID)
    heights = np.geomspace(1.0, 4.0, GRID)
    spots = places(gains.variations)
    targets = np.concatenate([[0.0], gains.gains / scale])
    # 1e-8: the gain at 0 is 0 without error, but a matrix must not be singular.
    noise = 1e-8 * np.eye(len(at))
    noise[1:, 1:] += gains.noise / scale**2
    # The last place twice: so the draws are those of earlier versions.
    grid = np.log1p(np.append(spots, spots[-1]).astype(np.float64))
    processes = [posterior(at, targets, noise, grid, *each) for each in product(lengths, heights)]
    likelihoods = np.array([likelihood for _, _, likelihood in processes])
    weights = np.exp(likelihoods - likelihoods.max())
    rng = np.random.default_rng(DRAWS_SEED)
    numbers = rng.multinomial(DRAWS, weights / weights.sum())
    # Smooth curves have nearly singular covariances, whose least eigenvalues may come out below 0.
    drawn = [
        rng.multivariate_normal(mean, covariance, int(number), check_valid="ignore", method="eigh")
        for number, (mean, covariance, _) in zip(numbers, processes, strict=True)
        if number
    ]
    draws = np.concatenate(drawn)[:, :-1] * scale
    draws[:, 0] = 0.0
    return Curve(metric, gains, spots, draws)


def posterior(
    at: Float[np.ndarray, " points"],
    targets: Float[np.ndarray, " points"],
    noise: Float[np.ndarray, "points points"],
    grid: Float[np.ndarray, " places"],
    length: float,
    height: float,
) -> tuple[Float[np.ndarray, " places"], Float[np.ndarray, "places places"], float]:
    """Mean and covariance of a Gaussian process at ``grid``, and its log marginal likelihood.

    Rasmussen and Williams 2006, algorithm 2.1, with a squared exponential kernel; ``noise`` is the covariance of the
    errors of ``targets`` (gains over one baseline err together).
    """

    def kernel(a: Float[np.ndarray, " _a"], b: Float[np.ndarray, " _b"]) -> Float[np.ndarray, "_a _b"]:
        return height**2 * np.exp(-((a[:, None] - b) ** 2) / (2 * length**2))

    lower = np.linalg.cholesky(kernel(at, at) + noise)
    # Forward substitution: K(at, grid) and the targets divided by the lower triangle, a row at a time.
    solved = np.column_stack([kernel(at, grid), targets])
    for i, row in enumerate(lower):
        solved[i] = (solved[i] - row[:i] @ solved[:i]) / row[i]
    v, z = solved[:, :-1], solved[:, -1]
    likelihood = -z @ z / 2 - np.log(np.diag(lower)).sum() - len(at) / 2 * math.log(2 * math.pi)
    return v.T @ z, kernel(grid, grid) - v.T @ v, float(likelihood)
