"""How many real labelled images the synthetic ones are worth: read off the curve of training on real images alone.

The curve joins the real-only conditions: monotone (more real images do not hurt; what breaks that is taken for chance,
Ayer et al. 1955's pooling of adjacent violators) and straight between them against the logarithm of their number, in
which detectors' accuracy is close to a line (Hestness et al. 2017, "Deep Learning Scaling is Predictable").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.optimize import isotonic_regression

from boxtwin.studies.comparison import ResampledMetrics
from boxtwin.studies.conditions import Row, baseline, paired_seeds
from boxtwin.studies.inference import LEAST_PAIRS, bootstrapped, variances, widened_tail

METRIC = "map_50"
LEAST_SIZES = 3  # two make a straight line whatever the truth
SEED = 0  # of the draws of seeds
# Far below what can be measured: gives a flat stretch of the curve a slope, so that every metric is met once.
TILT = 1e-9


@dataclass(frozen=True)
class Exchange:
    """What a condition with variations is worth in real images beyond its own.

    Infinite where it lies above all that was measured, minus infinity below; so are the ends of the interval.
    """

    row: Row
    base: Row
    curve: Sequence[Row]  # real-only conditions
    sizes: tuple[float, ...]
    worth: float
    low: float
    high: float
    pairs: int


def curve_rows(rows: Sequence[Row], base: Row, resampled: ResampledMetrics) -> list[Row]:
    """Real-only rows that can be put on one curve with a baseline: same condition and test images, sizes rising.

    Of two rows of the same size the baseline itself is taken, or a whole split's.
    """
    by_size: dict[float, Row] = {}
    images = {resampled.images(run) for run in base.runs}
    for row in sorted(rows, key=lambda row: (row is not base, row.train_size is not None, row.split)):
        same = not row.variations and row.condition == base.condition and math.isfinite(row.real_images)
        if same and {resampled.images(run) for run in row.runs} == images:
            by_size.setdefault(row.real_images, row)
    return [by_size[size] for size in sorted(by_size)]


def monotone(values: Float[np.ndarray, " sizes"]) -> Float[np.ndarray, " sizes"]:
    """The nearest sequence that never falls: neighbours that do are replaced by their mean."""
    return np.asarray(isotonic_regression(values).x)


def equivalent(sizes: Float[np.ndarray, " sizes"], values: Float[np.ndarray, " sizes"], reached: float) -> float:
    """Number of real images whose curve reaches a metric; infinite beyond the sizes measured, either way."""
    at = np.log(sizes)
    curve = monotone(values) + TILT * (at - at[0])
    if reached > curve[-1]:
        return math.inf
    if reached < curve[0]:
        return -math.inf
    return float(np.exp(np.interp(reached, curve, at)))


def exchange(row: Row, rows: Sequence[Row], resampled: ResampledMetrics) -> Exchange | None:
    """What a row is worth, with its interval from a bootstrap of seeds and images; None where runs or matches lack.

    In each of the resamples seeds are drawn that all conditions have in common, together with a resample of the test
    images, and the whole curve is drawn anew (see `hierarchical_interval`, whose tails are widened in the same way).
    """
    base = baseline(rows, row)
    if base is None:
        return None
    curve = curve_rows(rows, base, resampled)
    used = [each for each in curve if len(paired_seeds(row, each)) >= LEAST_PAIRS]
    if base not in used or len(used) < LEAST_SIZES:
        return None
    shared = paired_seeds(row, *used)
    known = [resampled.of_row(METRIC, each, shared) for each in (*used, row)] if len(shared) >= LEAST_PAIRS else [None]
    if any(each is None for each in known):
        return None
    values = np.stack([each for each in known if each is not None])  # conditions, seeds, 1 + resamples
    sizes = np.array([each.real_images for each in used])
    measured = values[:, :, 0].mean(axis=1)
    drawn = np.random.default_rng(SEED).integers(len(shared), size=(len(shared), values.shape[2] - 1))
    means = np.stack([bootstrapped(each[:, 0], each[:, 1:], drawn) for each in values])
    worth = [equivalent(sizes, column[:-1], column[-1]) - base.real_images for column in means.T]
    gains, images = values[-1] - values[used.index(base)], len(resampled.images(row.runs[0]))
    tail = widened_tail(*variances(gains[:, 0], gains[:, 1:]), len(shared), images)
    low, high = np.quantile(worth, [tail, 1 - tail], method="nearest")  # of infinite values there is no middle
    middle = equivalent(sizes, measured[:-1], float(measured[-1])) - base.real_images
    return Exchange(row, base, curve, tuple(sizes.tolist()), middle, float(low), float(high), len(shared))
