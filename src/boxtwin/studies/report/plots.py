"""Plots of the report."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from boxtwin.files import write_bytes_atomically
from boxtwin.studies.comparison import Contrast
from boxtwin.studies.condition_names import condition_name
from boxtwin.studies.conditions import Estimate, Row, baseline
from boxtwin.studies.dose_response import Curve
from boxtwin.studies.equivalence import PLAIN, Exchange
from boxtwin.studies.inference import LEAST_BARS, LEAST_PAIRS, NORMAL_QUANTILE
from boxtwin.studies.report.words import METRICS, sentence

PLOTTED = ("map_50", "count_mae")
# Title, least height of the axis in the unit shown (differences that one run alone would make must not fill the
# picture), and largest value of the metric, whatever an interval of two seeds spans.
CURVES = {
    "map_50": ("AP50 (higher is better)", 10.0, 100.0),
    "count_mae": ("count MAE (lower is better)", 0.5, np.inf),
}
MARGIN = 0.05  # of an axis's height, above and below what it shows
LETTERS = 14  # of 9 points that go into an inch of a legend
# Okabe & Ito's colours for the colour-blind; markers and dashes repeat the distinction in black and white.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
GREY = "#555555"
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
MOST_TREATMENTS = len(COLOURS)  # that are shown at one number of real images beside others at several
DASHES = ((0, ()), (0, (6, 2)), (0, (2, 1.5)), (0, (7, 2, 1.5, 2)))
# Nothing about when and with what: the same drawing gives the same bytes, and names no address.
NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))
TICKS = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
KEYS = 2  # of a curve's legend that name no line: seeds, intervals
COLUMNS = 2
SIZE = (5.6, 4.4)  # of a plot with one panel, in inches


@dataclass(frozen=True)
class Drawing:
    """A picture, and what it shows in words for those who do not see it."""

    svg: str  # a whole SVG file that needs no other
    text: str


def as_svg(canvas: Figure, *, transparent: bool = False) -> str:
    """A drawing as a whole SVG file; twice the same drawing gives twice the same text."""
    encoded = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "boxtwin"}):
        canvas.savefig(encoded, format="svg", facecolor="white", transparent=transparent, metadata=NO_METADATA)
    return encoded.getvalue()


def _sizes_axis(axes: Axes, values: Sequence[int | float], label: str, unit: str) -> None:
    """A logarithmic axis with the values that were tried, and a legend below."""
    axes.set_xscale("log")
    axes.set_xticks(values, [f"{value:g}" for value in values])
    axes.minorticks_off()
    axes.set(xlabel=label, ylabel=unit)
    axes.grid(alpha=0.3)
    axes.figure.legend(loc="outside lower center", fontsize=9, frameon=False)


def plot_curves(rows: Sequence[Row], path: Path) -> None:
    """AP50 and count MAE against variations, side by side, as PNG (see `draw_curve`)."""
    figure = Figure(figsize=(10, 4.4 + _legend_height(rows) / 2), layout="constrained")
    for panel, metric in zip(figure.subplots(1, len(CURVES)), CURVES, strict=True):
        draw_curve(panel, rows, metric)
    _legend(figure)
    encoded = io.BytesIO()
    figure.savefig(encoded, format="png", dpi=130, facecolor="white")
    write_bytes_atomically(path, encoded.getvalue())


def draw_curve(axes: Axes, rows: Sequence[Row], metric: str) -> None:
    """One line per split and generator through the means, from the runs of the split without variations.

    Several seeds are hollow points; the 95 % interval of the mean of `LEAST_BARS` or more is a bar, joined to a band
    along the line. Numbers of variations stand at equal distances.
    """
    scale, (title, least_height, largest) = METRICS[metric].factor, CURVES[metric]
    numbers = sorted({row.variations for row in rows})
    lines = lines_of(rows)
    apart = min(0.05, 0.8 / len(lines)) if lines else 0.0
    for index, (label, line) in enumerate(lines.items()):
        estimates = [row.estimates[metric] for row in line]
        # Lines side by side, not on top of each other: where baselines coincide both markers stay visible.
        x = np.array([numbers.index(row.variations) for row in line]) + apart * (index - (len(lines) - 1) / 2)
        style = _style(index)
        means = [scale * estimate.mean for estimate in estimates]
        axes.plot(x, means, **style, linewidth=1.8, markersize=7, label=label)
        known = [each if len(each.by_seed) >= LEAST_BARS else Estimate(()) for each in estimates]
        _band(axes, x, known, scale, style["color"], largest)
        for place, estimate in zip(x, estimates, strict=True):
            if len(estimate.by_seed) > 1:
                values = [scale * value for value in estimate.values]
                hollow = {**style, "linestyle": "none", "fillstyle": "none"}
                axes.plot([place] * len(values), values, **hollow, markersize=5)
    most = max((len(row.estimates[metric].by_seed) for line in lines.values() for row in line), default=0)
    if most > 1:
        axes.plot([], [], "o", color=GREY, fillstyle="none", markersize=5, label="one seed")
    if most >= LEAST_BARS:
        axes.errorbar([], [], [], ecolor=GREY, elinewidth=1.0, capsize=4, fmt="none", label="95 % interval of the mean")
    axes.set_xticks(range(len(numbers)), [str(number) for number in numbers])
    axes.set_xlim(-0.4, max(len(numbers) - 0.6, 0.4))
    low, high = _height([row.estimates[metric] for line in lines.values() for row in line], scale, largest)
    bottom = max(low - max(0.0, least_height - (high - low)) / 2, min(low, 0.0))
    axes.set_ylim(bottom, max(high, bottom + least_height))
    axes.set_xlabel("variations per real image")
    axes.set_title(title, fontsize=11)
    axes.grid(alpha=0.3)


def _height(estimates: Sequence[Estimate], scale: float, largest: float) -> tuple[float, float]:
    """What the axis shows: all values, and the intervals that are drawn."""
    shown = [value for estimate in estimates for value in estimate.values]
    shown += [end for each in estimates if len(each.by_seed) >= LEAST_BARS for end in each.interval or ()]
    if not shown:
        return 0.0, 0.0
    low, high = np.clip(scale * np.array([min(shown), max(shown)]), 0.0, largest)
    return low - MARGIN * (high - low), high + MARGIN * (high - low)


def _style(index: int) -> dict[str, Any]:
    """Colour, marker and dashes of one of several lines."""
    values = {"color": COLOURS, "marker": MARKERS, "linestyle": DASHES}
    return {name: choices[index % len(choices)] for name, choices in values.items()}


def lines_of(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The conditions that make up each line, fewest variations first, by the line's name."""
    lines: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row.variations:
            lines[f"{row.prefix}{condition_name(row.split, None, row.generator)}"].append(row)
    for base in (row for row in rows if not row.variations):
        same = [line for line in lines.values() if baseline([base], line[-1]) is base]
        for line in same:
            line.insert(0, base)
        if not same:
            lines[base.name] = [base]
    return lines


def _band(axes: Axes, x: np.ndarray, estimates: Sequence[Estimate], scale: float, colour: str, largest: float) -> None:
    ends = np.array([estimate.interval or (np.nan, np.nan) for estimate in estimates], dtype=float).reshape(-1, 2)
    low, high = np.clip(scale * ends.T, 0.0, largest)
    # Bars carry the band where lines cross, and in black and white; the band ends where there is one seed.
    axes.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)
    known = ~np.isnan(low)
    middle = np.array([scale * estimate.mean for estimate in estimates])
    reach = np.maximum(np.stack([middle - low, high - middle])[:, known], 0)  # below 0 only by rounding
    if known.any():
        axes.errorbar(x[known], middle[known], reach, fmt="none", ecolor=colour, elinewidth=1.0, capsize=4)


def curve_plot(rows: Sequence[Row], metric: str) -> Drawing:
    """One curve with its legend for the page, and what it shows in words."""
    # Four inches wide: type of 10 points has that size on a phone.
    with mpl.rc_context({"font.size": 10}):
        figure = Figure(figsize=(4.4, 4.2 + _legend_height(rows)), layout="constrained")
        draw_curve(figure.add_subplot(), rows, metric)
        _legend(figure)
        svg = as_svg(figure, transparent=True)
    return Drawing(svg, curve_text(rows, metric))


def curve_text(rows: Sequence[Row], metric: str) -> str:
    """Each line of a curve in words: the mean at every number of variations, with its interval where there is one."""
    return sentence("conditions_in_words", metric=metric, lines=lines_of(rows))


def _legend_height(rows: Sequence[Row]) -> float:
    """Inches that a legend of many lines needs beyond those of a few, where it has one column."""
    return 0.2 * max(0, len(lines_of(rows)) + KEYS - 6)


def _legend(figure: Figure) -> None:
    """Below the curves, where it covers no point; the same lines stand in every panel."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    if handles:
        fitting = figure.get_figwidth() * LETTERS / (max(map(len, labels)) + 8)  # 8: the line before the words
        columns = max(1, min(len(handles), 2 * len(figure.axes), int(fitting)))
        size = 9 * min(1.0, fitting)  # smaller where the longest name would not fit
        figure.legend(
            handles, labels, loc="outside lower center", ncols=columns, fontsize=size, frameon=False, handlelength=3.2
        )


def dose_response_picture(curves: Sequence[tuple[str, Curve]]) -> Drawing:
    """One panel for each curve, on the same scale."""
    columns = min(COLUMNS, len(curves))
    height = -(-len(curves) // columns)
    canvas = Figure(figsize=(1 + 4 * columns, 3.8 * height), layout="constrained")
    panels = canvas.subplots(height, columns, squeeze=False, sharey=True).ravel()
    for place, (panel, (title, curve)) in enumerate(zip(panels, curves, strict=False)):
        _draw(panel, curve, COLOURS[place % len(COLOURS)])
        sure = curve.best == 0 or curve.band[0, curve.best_place] > 0
        panel.set_title(f"{title}\nbest: {curve.best}{'' if sure else ' (not significant)'}", fontsize=11)
    for panel in panels[len(curves) :]:
        panel.set_axis_off()
    handles, labels = panels[0].get_legend_handles_labels()
    canvas.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return Drawing(as_svg(canvas), " ".join(_in_words(title, curve) for title, curve in curves))


def _draw(axes: Axes, curve: Curve, colour: str) -> None:
    """Curve, band, what was measured with its own interval, and the best number."""
    scale = METRICS[curve.metric].factor
    x, band = np.log1p(curve.variations), scale * curve.band
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.fill_between(x, band[0], band[1], color=colour, alpha=0.18, linewidth=0)
    for edge in band:  # in black and white a pale band alone is easily missed
        axes.plot(x, edge, color=colour, linewidth=0.7, linestyle=DASHES[2])
    axes.plot(x, scale * curve.mean, color=colour, linewidth=2, label="curve with 95 % band")
    halves = NORMAL_QUANTILE * scale * np.sqrt(np.diag(curve.tried.noise))
    measured: dict[str, Any] = {"color": "black", "markerfacecolor": "white", "capsize": 3, "linewidth": 1}
    axes.errorbar(
        np.log1p(curve.tried.variations), scale * curve.tried.gains, halves, fmt="o", **measured,
        label="measured, 95 % each",
    )  # fmt: skip
    star: dict[str, Any] = {"color": colour, "markersize": 14, "markeredgecolor": "black", "linestyle": "none"}
    axes.plot(x[curve.best_place], scale * curve.mean[curve.best_place], marker="*", label="best", **star)
    ticks = sorted({t for t in TICKS if t <= curve.variations[-1]} | {0, *curve.tried.variations})
    axes.set_xticks(np.log1p(ticks), [str(tick) for tick in ticks])
    axes.set_xlim(-0.1, x[-1] * 1.06 + 0.05)
    axes.set(xlabel="variations per real image", ylabel=METRICS[curve.metric].gain)
    axes.grid(alpha=0.3)


def _in_words(title: str, curve: Curve) -> str:
    shown = np.searchsorted(curve.variations, [0, *curve.tried.variations])
    points = np.stack([curve.variations, curve.mean, *curve.band])[:, shown].T.tolist()
    points = [(int(number), *values) for number, *values in points]
    return sentence("curve_in_words", title=title, curve=curve, points=points)


def sizes_picture(lines: Mapping[str, Sequence[Row]], exchanges: Sequence[Exchange], beside: str = "") -> Drawing:
    """AP50 of each treatment against real images. Conditions with too few seeds for a claim are hollow, without a band.

    Dotted lines lead from conditions with the fewest real images to what they are worth. Of more than
    `MOST_TREATMENTS`, those with a single number of real images are left out if others have several. ``beside`` says
    what all of them have besides.
    """
    shown = dict(lines)
    if len(lines) > MOST_TREATMENTS and any(len(line) > 1 for name, line in lines.items() if name != PLAIN):
        shown = {name: line for name, line in lines.items() if name == PLAIN or len(line) > 1}
    canvas = Figure(figsize=SIZE, layout="constrained")
    axes = canvas.add_subplot()
    sizes = sorted({row.real_images for line in shown.values() for row in line})
    least = min((each.row.real_images for each in exchanges), default=0.0)
    for place, (name, line) in enumerate(shown.items()):
        style = _style(place)
        # Side by side on the axis of logarithms, so that intervals do not cover each other.
        x = np.array([row.real_images for row in line]) * 1.015 ** (place - (len(shown) - 1) / 2)
        estimates = [row.estimates["map_50"] for row in line]
        y = np.array([100 * each.mean for each in estimates])
        sure = np.array([len(row.seeds) >= LEAST_PAIRS for row in line])
        axes.plot(x, y, **style | {"marker": ""}, linewidth=1.8)
        axes.plot(x[sure], y[sure], **style | {"linestyle": "none"}, markersize=7)
        axes.plot(x[~sure], y[~sure], **style | {"linestyle": "none", "fillstyle": "none"}, markersize=7)
        axes.plot([], [], **style, linewidth=1.8, markersize=7, label=f"{name}{beside}")
        known = [each if enough else Estimate(()) for each, enough in zip(estimates, sure, strict=True)]
        _band(axes, x, known, 100.0, style["color"], 100.0)
        for each in exchanges:
            if each.row in line and each.row.real_images == least and np.isfinite(each.worth):
                level = [100 * each.row.estimates["map_50"].mean] * 2
                axes.plot([least, each.worth], level, color=style["color"], linestyle=":", linewidth=1.4)
    left_out = len(lines) - len(shown)
    more = f"; not shown: {left_out} of {len(lines)} treatments, at one number of images" if left_out else ""
    axes.set_title(f"95 % intervals over seeds; hollow: fewer than {LEAST_PAIRS} seeds{more}", fontsize=10)
    _sizes_axis(axes, sizes, "real training images", "AP50, percent")
    return Drawing(
        as_svg(canvas), sentence("sizes_in_words", lines={f"{name}{beside}": line for name, line in shown.items()})
    )


def steps_picture(by_steps: Sequence[tuple[str, Sequence[tuple[int, Contrast]]]], text: str) -> Drawing:
    """Gains in AP50 against steps; ``text`` says the same."""
    canvas = Figure(figsize=SIZE, layout="constrained")
    axes = canvas.add_subplot()
    axes.axhline(0, color=GREY, linewidth=0.8)
    for place, (title, series) in enumerate(by_steps):
        # Side by side on the axis of logarithms, so that intervals do not cover each other.
        x = [steps * 1.03 ** (place - (len(by_steps) - 1) / 2) for steps, _ in series]
        changes = [contrast.differences["map_50"] for _, contrast in series]
        reach = [(c.mean - c.interval.low, c.interval.high - c.mean) if c.interval else (0.0, 0.0) for c in changes]
        style = {**_style(place), "capsize": 3, "linewidth": 1.8, "markersize": 7, "label": title}
        axes.errorbar(
            x, [100 * change.mean for change in changes], yerr=np.maximum(100 * np.array(reach).T, 0), **style
        )
    steps = sorted({steps for _, series in by_steps for steps, _ in series})
    _sizes_axis(axes, steps, "optimiser steps", METRICS["map_50"].gain)
    return Drawing(as_svg(canvas), text)
