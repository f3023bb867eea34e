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
from matplotlib.figure import Figure as Canvas
from scipy.optimize import isotonic_regression

from boxtwin.studies.comparison import FIELDS, Figures
from boxtwin.studies.conditions import Row, baseline, paired_seeds, prefixes
from boxtwin.studies.inference import LEAST_PAIRS, bootstrapped, hierarchical_interval, widened_tail
from boxtwin.studies.report.plots import COLOURS, MARKERS
from boxtwin.studies.report.section import Figure, Section, as_svg

FIGURE = "map_50"
LEAST_SIZES = 3  # two make a straight line whatever the truth
SEED = 0  # of the draws of seeds
# Far below what can be measured: gives a flat stretch of the curve a slope, so that every figure is met once.
TILT = 1e-9


@dataclass(frozen=True)
class Exchange:
    """What a condition with variations is worth in real images beyond its own.

    Infinite where it lies above all that was measured, minus infinity below; so are the ends of the interval.
    """

    row: Row
    base: Row
    sizes: tuple[float, ...]
    worth: float
    low: float
    high: float
    pairs: int


def curve_rows(rows: Sequence[Row], base: Row, figures: Figures) -> list[Row]:
    """Real-only rows that can be put on one curve with a baseline: same condition and test images, sizes rising.

    Of two rows of the same size the baseline itself is taken, or a whole split's.
    """
    by_size: dict[float, Row] = {}
    images = {figures.images(run) for run in base.runs}
    for row in sorted(rows, key=lambda row: (row is not base, row.train_size is not None, row.split)):
        same = not row.variations and row.condition == base.condition and math.isfinite(row.real_images)
        if same and {figures.images(run) for run in row.runs} == images:
            by_size.setdefault(row.real_images, row)
    return [by_size[size] for size in sorted(by_size)]


def monotone(values: Float[np.ndarray, " sizes"]) -> Float[np.ndarray, " sizes"]:
    """The nearest sequence that never falls: neighbours that do are replaced by their mean."""
    return np.asarray(isotonic_regression(values).x)


def equivalent(sizes: Float[np.ndarray, " sizes"], values: Float[np.ndarray, " sizes"], reached: float) -> float:
    """Number of real images whose curve reaches a figure; infinite beyond the sizes measured, either way."""
    at = np.log(sizes)
    curve = monotone(values) + TILT * (at - at[0])
    if reached > curve[-1]:
        return math.inf
    if reached < curve[0]:
        return -math.inf
    return float(np.exp(np.interp(reached, curve, at)))


def exchange(row: Row, base: Row, curve: Sequence[Row], figures: Figures) -> Exchange | str:
    """What a row is worth, with its interval from a bootstrap of seeds and images; or what is missing, in words.

    In each of the resamples seeds are drawn that all conditions have in common, together with a resample of the test
    images, and the whole curve is drawn anew (see `hierarchical_interval`, whose tails are widened in the same way).
    """
    used = [each for each in curve if len(paired_seeds(row, each)) >= LEAST_PAIRS]
    if base not in used:
        short = len(paired_seeds(row, base))
        return (
            f"{LEAST_PAIRS} seeds in common with the runs without variations; there is {short}"
            if short == 1
            else (f"{LEAST_PAIRS} seeds in common with the runs without variations; there are {short}")
        )
    if len(used) < LEAST_SIZES:
        there = " and ".join(f"{each.real_images:g}" for each in used)
        return (
            f"real-only runs with {LEAST_PAIRS} seeds at {LEAST_SIZES} numbers of real images at least; there are "
            f"{there} (split.train_size=N gives others)"
        )
    shared = paired_seeds(row, *used)
    if len(shared) < LEAST_PAIRS:
        return f"{LEAST_PAIRS} seeds that all these runs have in common; there are {len(shared)}"
    found = [_of(each, shared, figures) for each in (*used, row)]
    if any(each is None for each in found):
        return "the matches of these cells, which older versions do not keep: no interval can be given"
    values = np.stack([each for each in found if each is not None])  # conditions, seeds, 1 + resamples
    sizes = np.array([each.real_images for each in used])
    measured = values[:, :, 0].mean(axis=1)
    drawn = np.random.default_rng(SEED).integers(len(shared), size=(len(shared), values.shape[2] - 1))
    means = np.stack([bootstrapped(each[:, 0], each[:, 1:], drawn) for each in values])
    own = base.real_images
    worth = [equivalent(sizes, column[:-1], column[-1]) - own for column in means.T]
    place = used.index(base)
    gains = values[-1] - values[place]
    gain = hierarchical_interval(gains[:, 0], gains[:, 1:], images=len(figures.images(row.runs[0])))
    tail = widened_tail(gain.seed_variance, gain.image_variance, len(shared), len(figures.images(row.runs[0])))
    low, high = np.quantile(worth, [tail, 1 - tail], method="nearest")  # of infinite values there is no middle
    middle = equivalent(sizes, measured[:-1], float(measured[-1])) - own
    return Exchange(row, base, tuple(sizes.tolist()), middle, float(low), float(high), len(shared))


def _of(row: Row, seeds: Sequence[int], figures: Figures) -> Float[np.ndarray, "seeds _resamples"] | None:
    runs = dict(zip(row.seeds, row.runs, strict=True))
    found = [figures.of(runs[seed]) for seed in seeds]
    return None if any(each is None for each in found) else np.stack([each[FIGURE] for each in found if each])


def section(rows: Sequence[Row], figures: Figures) -> Section | None:
    """What every condition with variations is worth; None in a study without variations."""
    name = prefixes(rows)
    sentences: list[str] = []
    lacking: dict[str, list[str]] = {}  # conditions by what is missing
    shown: list[tuple[Row, list[Row], Exchange]] = []
    for row in rows:
        base = baseline(rows, row)
        if not row.variations or base is None:
            continue
        curve = curve_rows(rows, base, figures)
        found = exchange(row, base, curve, figures)
        what = f"{row.variations} variation{'' if row.variations == 1 else 's'} ({row.generator})"
        title = f"{name(row)}{row.split}, {what} on {row.real_images:g} real images"
        if isinstance(found, str):
            lacking.setdefault(found, []).append(title)
        else:
            sentences.append(f"{title} {describe(found)}")
            shown.append((row, curve, found))
    alike = not shown and len(lacking) == 1
    for lack, titles in lacking.items():
        which = "All conditions" if alike and len(titles) > 1 else "; ".join(titles)
        sentences.append(f"{which}: what they are worth in real images cannot be said. Missing: {lack}.")
    if not sentences:
        return None
    return Section("What the synthetic images are worth", tuple(sentences), tuple(_pictures(shown, rows)))


def describe(found: Exchange) -> str:
    """`are worth about 12 more real labelled images (95 % interval -3 to 31; …)`."""
    own, least, largest = found.base.real_images, found.sizes[0], found.sizes[-1]
    basis = (
        f"measured by AP50 of real-only runs at {', '.join(f'{size:g}' for size in found.sizes)}; {found.pairs} seeds"
    )
    plural = "is" if found.row.variations == 1 else "are"
    if found.worth == math.inf:
        said = f"{plural} worth more than {largest - own:.0f} more real labelled images: better than the largest set"
    elif found.worth == -math.inf:
        said = f"cost more than {own - least:.0f} real labelled images: worse than the smallest set"
    elif round(found.worth) == 0:
        said = f"{plural} worth no more and no fewer real labelled images"
    elif found.worth > 0:
        said = f"{plural} worth about {found.worth:.0f} more real labelled images"
    else:
        said = f"do as if about {-found.worth:.0f} of the real labelled images were missing"
    ends = []
    for end in (found.low, found.high):
        if end == math.inf:
            ends.append(f"more than {largest - own:.0f}")
        elif end == -math.inf:
            ends.append(f"less than {least - own:.0f}")
        else:
            ends.append(f"{end + 0.0:.0f}".replace("-0", "0") if round(end) == 0 else f"{end:.0f}")
    outside = [end for end in (found.worth, found.low, found.high) if math.isinf(end)]
    beyond = " What lies outside of the sizes measured cannot be told closer." if outside else ""
    return f"{said} (95 % interval {ends[0]} to {ends[1]}; {basis}).{beyond}"


def _pictures(shown: Sequence[tuple[Row, list[Row], Exchange]], rows: Sequence[Row]) -> list[Figure]:
    """One picture for each curve of real-only runs, with the conditions that are read off it."""
    by_curve: dict[tuple[str, ...], list[tuple[Row, list[Row], Exchange]]] = {}
    for each in shown:
        by_curve.setdefault(tuple(run for row in each[1] for run in row.runs), []).append(each)
    name = prefixes(rows)
    pictures = []
    for members in by_curve.values():
        curve = members[0][1]
        sizes = np.array([row.real_images for row in curve])
        heights = 100 * monotone(np.array([getattr(row, FIELDS[FIGURE]).mean for row in curve]))
        canvas = Canvas(figsize=(5.6, 4.4), layout="constrained")
        axes = canvas.add_subplot()
        axes.plot(sizes, heights, color="black", linewidth=1.8, label="real images alone")
        for row in curve:
            values = [100 * value for _, value in getattr(row, FIELDS[FIGURE]).by_seed]
            axes.plot([row.real_images] * len(values), values, "o", color="black", fillstyle="none", markersize=5)
        words = [f"{size:g} real images {height:.1f}" for size, height in zip(sizes, heights, strict=True)]
        for place, (row, _, found) in enumerate(members):
            reached = 100 * getattr(row, FIELDS[FIGURE]).mean
            end = min(max(row.real_images + found.worth, sizes[0]), sizes[-1])
            colour, marker = COLOURS[(place + 1) % len(COLOURS)], MARKERS[(place + 1) % len(MARKERS)]
            ends = [min(max(row.real_images + bound, sizes[0]), sizes[-1]) for bound in (found.low, found.high)]
            axes.plot(ends, [reached, reached], "|-", color=colour, linewidth=0.9, markersize=9)
            axes.plot([row.real_images, end], [reached, reached], color=colour, linestyle=":", linewidth=1.6)
            label = f"{row.split} with {row.variations} {row.generator}"
            axes.plot(end, reached, marker, color=colour, markersize=9, markeredgecolor="black", label=label)
            beyond = {math.inf: "more than ", -math.inf: "fewer than "}.get(found.worth, "")
            words.append(f"{label}: {reached:.1f}, as with {beyond}{end:.0f} real images")
        axes.set_xscale("log")
        axes.set_xticks(sizes, [f"{size:g}" for size in sizes])
        axes.minorticks_off()
        axes.set_xlabel("real training images")
        axes.set_ylabel("AP50, percent")
        axes.set_title(f"{name(curve[0])}how many real images reach the same (95 % intervals)".strip(), fontsize=11)
        axes.grid(alpha=0.3)
        canvas.legend(loc="outside lower center", fontsize=9, frameon=False, ncols=2)
        pictures.append(Figure(as_svg(canvas), f"AP50 in percent against real training images: {'; '.join(words)}."))
    return pictures
