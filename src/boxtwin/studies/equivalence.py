"""AP50 against the number of real images for each treatment, and how many real images alone reach the same.

A treatment is a pre-training, variations, or both. The curve without treatment joins its conditions: monotone (more
real images do not hurt; what breaks that is taken for chance, Ayer et al. 1955's pooling of adjacent violators) and
straight between them against the logarithm of their number, in which detectors' accuracy is close to a line (Hestness
et al. 2017, "Deep Learning Scaling is Predictable").
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.optimize import isotonic_regression
from scipy.stats import norm

from boxtwin.config.identity import NO_PRETRAINING
from boxtwin.studies.comparison import EXTRA_IMAGES, Contrast, ResampledMetrics
from boxtwin.studies.condition_names import prefix_of
from boxtwin.studies.condition_values import DEVICE, PRETRAINING, Values, as_overrides, in_words
from boxtwin.studies.conditions import Estimate, Row, paired_seeds
from boxtwin.studies.inference import (
    LEAST_PAIRS,
    LEVEL,
    bootstrapped,
    clusters_of,
    defined_columns,
    seed_variance,
    students,
    variances,
    widened_tail,
)
from boxtwin.studies.label_versions import LabelVersions

METRIC = "map_50"
LEAST_SIZES = 3  # two make a straight line whatever the truth
LEAST_SEEDS = 3  # of a condition on the curve
SEED = 0  # of the draws of seeds
# Far below what can be measured: gives a flat stretch of the curve a slope, so that every metric is met once.
TILT = 1e-9
PLAIN = "real images alone"
STEPS = "trainer.steps"
OF_TREATMENT = ("pretraining", "pretraining_images")  # groups of settings


@dataclass(frozen=True)
class Exchange:
    """How many real images alone are as good as a treated condition, infinite beyond what was measured."""

    row: Row
    curve: Sequence[Row]
    worth: float
    low: float
    high: float

    @property
    def treatment(self) -> str:
        return treatment_of(self.row)

    @property
    def prefix(self) -> str:
        """Settings that tell its setup from others, such as ``detector=yolov3, ``."""
        return prefix_of(untreated(self.row.setup))


def treatment_of(row: Row) -> str:
    """``pre-training on sar_scenes and 10 variations by repeat``, or ``real images alone``."""
    name, parts = row.values.get(PRETRAINING, NO_PRETRAINING), []
    if name != NO_PRETRAINING:
        more = {k: v for k, v in row.setup.items() if k.split(".")[0] in OF_TREATMENT and k != "pretraining"}
        if not row.variations and "generator.name" in row.values:  # of the variations that it was trained on
            more["generator"] = row.values["generator.name"]
        parts.append(in_words("pretraining", name) + (f" ({as_overrides(more)})" if more else ""))
    if row.variations:
        parts.append(f"{row.variations} variation{'' if row.variations == 1 else 's'} by {row.generator}")
    return " and ".join(parts) or PLAIN


def untreated(values: Values) -> dict[str, str]:
    """Settings of a setup without those of a treatment and the steps, which may be the best for each treatment."""
    return {k: v for k, v in values.items() if k.split(".")[0] not in OF_TREATMENT and k != STEPS}


def setup_without_treatment(row: Row) -> frozenset[tuple[str, str]]:
    """All settings of a condition, the steps too, but those of a treatment and of the draw of images."""
    treatment = (*OF_TREATMENT, *EXTRA_IMAGES.values())
    return frozenset((k, v) for k, v in row.condition if k.split(".")[0] not in treatment and k != DEVICE)


def size_curves(rows: Sequence[Row], contrasts: Sequence[Contrast] = ()) -> list[dict[str, list[Row]]]:
    """For each setup the conditions of each treatment by number of real images, real images alone first.

    Where several conditions of a treatment have as many images, other numbers of steps for example, the one in a
    primary comparison is taken, else that with the most seeds, of these the best on validation images. All
    treatments of one number are on the same draw of images, that of real images alone.
    """
    named = {row.run_ids for each in contrasts if each.kind == "primary" for row in (each.new, each.old)}

    def rank(row: Row) -> tuple[bool, int, float, bool]:
        return row.run_ids in named, len(row.seeds), on_validation(row), row.first.train_size is None

    versions = LabelVersions(rows)
    found: dict[object, dict[str, dict[float, Row]]] = defaultdict(lambda: defaultdict(dict))
    images: dict[object, str | None] = {}  # hash of the training images, by setup and number
    ordered = [row for row in sorted(rows, key=rank, reverse=True) if row.real_images > 0]  # nan is not
    for row in sorted(ordered, key=lambda row: treatment_of(row) != PLAIN):
        values = frozenset((k, v) for k, v in untreated(dict(row.condition)).items() if k != DEVICE)
        setup = (values, versions.of(row))  # a curve over corrected labels and those before would be none
        # Another draw of as many images may be luckier: a treatment is set against the same images without it.
        drawn = row.first.condition.get("data.train")
        known = images.setdefault((setup, row.real_images), drawn)
        if known == drawn or None in (known, drawn):
            found[setup][treatment_of(row)].setdefault(row.real_images, row)
    order = [PLAIN, *dict.fromkeys(treatment_of(row) for row in rows)]
    return [
        {name: [row for _, row in sorted(lines[name].items())] for name in sorted(lines, key=order.index)}
        for lines in found.values()
    ]


def on_validation(row: Row) -> float:
    """Mean AP50 on the real validation images; -1 where it is not known."""
    mean = Estimate.of((run.seed, run.metrics.get("val_real/map_50")) for run in row.runs).mean
    return mean if math.isfinite(mean) else -1.0


def step_series(rows: Sequence[Row]) -> list[list[Row]]:
    """Conditions that differ in their optimiser steps alone, by steps."""
    found: dict[object, list[Row]] = defaultdict(list)
    for row in rows:
        found[frozenset((k, v) for k, v in row.values.items() if k != STEPS)].append(row)
    return [sorted(series, key=lambda row: row.first.steps) for series in found.values() if len(series) > 1]


def curve_rows(rows: Sequence[Row], like: Row, resampled: ResampledMetrics) -> list[Row]:
    """Real images alone in the setup of a condition and on its test images, by size."""

    versions = LabelVersions(rows)

    def shared(row: Row) -> object:
        return untreated(dict(row.condition)), versions.of(row), {resampled.images(run) for run in row.run_ids}

    curves = size_curves([row for row in rows if shared(row) == shared(like)])
    return curves[0].get(PLAIN, []) if curves else []


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


def exchange(row: Row, plain: Iterable[Row], resampled: ResampledMetrics) -> Exchange | None:
    """What a condition is worth, its interval by a bootstrap of seeds and images; None where runs or matches lack.

    In each of the resamples seeds of all conditions are drawn, the same where they have equally many, together with a
    resample of the test images, and the whole curve is drawn anew (see `hierarchical_interval`, whose tails are widened
    in the same way; those of the widest difference to the curve are taken).

    Args:
        plain: conditions on real images alone, by size.
    """
    curve = [each for each in plain if len(paired_seeds(row, each)) >= LEAST_SEEDS]
    if len(row.seeds) < LEAST_PAIRS or len(curve) < LEAST_SIZES:
        return None
    sizes = np.array([each.real_images for each in curve])
    found = []
    for each in (*curve, row):
        seeds = paired_seeds(row, each)
        values, own = (resampled.of_row(METRIC, one, seeds) for one in (each, row))
        if values is None or own is None or len({resampled.images(run) for run in (*each.run_ids, *row.run_ids)}) > 1:
            return None
        found.append((each, seeds, values, own))
    defined = defined_columns(np.concatenate([each for *_, values, own in found for each in (values, own)]))
    if defined is None:
        return None
    means, tails, measured = [], [], []
    for each, seeds, *both in found:
        values, own = (one[:, defined] for one in both)
        drawn = np.random.default_rng(SEED).integers(len(seeds), size=(len(seeds), values.shape[1] - 1))
        clusters = clusters_of([row.pretraining_seeds[seed] for seed in seeds])
        resamples = bootstrapped(values[:, 0], values[:, 1:], drawn, clusters if each is row else ())
        measured.append(float(values[:, 0].mean()))
        gains, images = own - values, len(resampled.images(row.run_ids[0]))
        independent = seed_variance(gains[:, 0], clusters)[1]
        spread = variances(gains[:, 0], gains[:, 1:], clusters)
        tail = widened_tail(*spread, independent, images)
        if tail * len(resamples) < 1:  # no resample is that far out: these are moved out instead
            tail = (1 - LEVEL) / 2
            widened = students(*spread, independent, images) / float(norm.ppf(1 - tail))
            resamples = measured[-1] + (resamples - measured[-1]) * widened
        means.append(resamples)
        tails.append(tail)
    worth = [equivalent(sizes, column[:-1], column[-1]) for column in np.stack(means).T]
    low, high = np.quantile(
        worth, [min(tails), 1 - min(tails)], method="nearest"
    )  # of infinite values there is no middle
    middle = equivalent(sizes, np.array(measured[:-1]), measured[-1])
    return Exchange(row, curve, middle, float(low), float(high))
