"""Plots of the report."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from boxtwin.files import write_bytes_atomically
from boxtwin.studies.comparison import FIELDS, Contrast
from boxtwin.studies.conditions import Estimate, Row, prefixes
from boxtwin.studies.dose_response import Curve
from boxtwin.studies.equivalence import Exchange, monotone
from boxtwin.studies.inference import mean_interval
from boxtwin.studies.report.numbers import count, percent

# Field of `Row` -> factor to the unit shown, title, and the least height of the axis in that unit: differences that one
# run alone would make must not fill the picture.
CURVES = {"ap50": (100.0, "AP50 (higher is better)", 10.0), "count_mae": (1.0, "count MAE (lower is better)", 0.5)}
LARGEST = {"ap50": 100.0, "count_mae": np.inf}  # no measure is below 0, whatever an interval of two seeds spans
LETTERS = 14  # of 9 points that go into an inch of a legend
# Okabe & Ito's colours for the colour-blind; markers and dashes repeat the distinction in black and white.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES: tuple[tuple[int, tuple[float, ...]], ...] = ((0, ()), (0, (6, 2)), (0, (2, 1.5)), (0, (7, 2, 1.5, 2)))
# Nothing about when and with what: the same figure gives the same bytes, and names no address.
NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))
# Figure -> name, factor to the unit shown, decimals, unit, what a gain is called.
MEASURES = {
    "map_50": ("AP50", 100.0, 1, "points", "gain in AP50, points"),
    "count_mae": ("count MAE", 1.0, 2, "objects an image", "fall of count MAE, objects an image"),
}
TICKS = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
COLUMNS = 2


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


def plot_curves(rows: Sequence[Row], path: Path) -> None:
    """AP50 and count MAE against variations, side by side, as PNG (see `draw_curve`)."""
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    for position, measure in enumerate(CURVES):
        draw_curve(figure.add_subplot(1, len(CURVES), position + 1), rows, measure)
    _legend(figure)
    encoded = io.BytesIO()
    figure.savefig(encoded, format="png", dpi=130, facecolor="white")
    write_bytes_atomically(path, encoded.getvalue())


def draw_curve(axes: Axes, rows: Sequence[Row], measure: str) -> None:
    """One line per split and generator through the means; where there are several seeds, hollow points for each of
    them, and the 95 % interval of their mean as a bar, joined to a band along the line.

    Numbers of variations stand as categories at equal distances: 0, 2 and 10 are to be told apart. The line of a
    generator starts at its split's runs without variations.
    """
    scale, title, least_height = CURVES[measure]
    numbers = sorted({row.variations for row in rows})
    for index, (label, line) in enumerate(lines_of(rows).items()):
        estimates = [getattr(row, measure) for row in line]
        x = np.array([numbers.index(row.variations) for row in line], dtype=float)
        # Lines side by side, not on top of each other: where baselines coincide both markers stay visible.
        x += 0.05 * (index - (len(lines_of(rows)) - 1) / 2)
        colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
        dashes = DASHES[index % len(DASHES)]
        axes.plot(
            x,
            [scale * estimate.mean for estimate in estimates],
            color=colour,
            marker=marker,
            linestyle=dashes,
            linewidth=1.8,
            markersize=7,
            label=label,
        )
        _band(axes, x, estimates, scale, colour, LARGEST[measure])
        for place, estimate in zip(x, estimates, strict=True):
            if len(estimate.by_seed) > 1:
                values = [scale * value for _, value in estimate.by_seed]
                axes.plot([place] * len(values), values, marker, color=colour, markersize=5, fillstyle="none")
    axes.set_xticks(range(len(numbers)), [str(number) for number in numbers])
    axes.set_xlim(-0.4, max(len(numbers) - 0.6, 0.4))
    low, high = axes.get_ylim()
    missing = max(0.0, least_height - (high - low))
    bottom = max(low - missing / 2, min(low, 0.0))
    axes.set_ylim(bottom, max(high, bottom + least_height))
    axes.set_xlabel("variations per real image")
    axes.set_title(title, fontsize=11)
    axes.grid(alpha=0.3)


def lines_of(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The conditions that make up each line, fewest variations first, by the line's name."""
    prefix = prefixes(rows)
    lines: dict[str, list[Row]] = {}
    for row in rows:
        if row.variations:
            lines.setdefault(f"{prefix(row)}{row.split}, {row.generator}", []).append(row)
    for row in rows:
        if not row.variations:
            where = row.split, row.condition
            own = [line for line in lines.values() if (line[0].split, line[0].condition) == where]
            for line in own:
                line.insert(0, row)
            if not own:
                lines[f"{prefix(row)}{row.split}"] = [row]
    return lines


def _band(axes: Axes, x: np.ndarray, estimates: Sequence[Estimate], scale: float, colour: str, largest: float) -> None:
    intervals = [mean_interval([value for _, value in estimate.by_seed]) for estimate in estimates]
    ends = np.array([interval or (np.nan, np.nan) for interval in intervals], dtype=float).reshape(-1, 2)
    low, high = np.clip(scale * ends.T, 0.0, largest)
    # Bars carry the band where lines cross, and in black and white; the band ends where there is one seed.
    axes.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)
    known = ~np.isnan(low)
    middle = np.array([scale * estimate.mean for estimate in estimates])
    reach = np.stack([middle - low, high - middle])[:, known]
    if known.any():
        axes.errorbar(x[known], middle[known], reach, fmt="none", ecolor=colour, elinewidth=1.0, capsize=4)


def curve_figure(rows: Sequence[Row], measure: str) -> Drawing:
    """One curve with its legend for the page, and what it shows in words."""
    # Four inches wide: type of 10 points has that size on a phone.
    with mpl.rc_context({"font.size": 10}):
        figure = Figure(figsize=(4.4, 4.2), layout="constrained")
        draw_curve(figure.add_subplot(), rows, measure)
        _legend(figure)
        svg = as_svg(figure, transparent=True)
    return Drawing(svg, curve_text(rows, measure))


def curve_text(rows: Sequence[Row], measure: str) -> str:
    """Each line of a curve in words: the mean at every number of variations, with its interval where there is one."""
    name, form = {"ap50": ("AP50 in percent", percent), "count_mae": ("Count MAE", count)}[measure]
    said = []
    for label, line in lines_of(rows).items():
        points = []
        for row in line:
            estimate = getattr(row, measure)
            interval = mean_interval([value for _, value in estimate.by_seed])
            reach = f" ({form(interval[0])} to {form(interval[1])})" if interval else ""
            points.append(f"{row.variations}: {form(estimate.mean)}{reach}")
        said.append(f"{label}: {', '.join(points)}")
    return (
        f"{name} against variations per real image; in brackets the 95 % interval of the mean over seeds, "
        f"where there are two or more. {'; '.join(said)}."
    )


def _legend(figure: Figure) -> None:
    """Below the curves, where it covers no point; the same lines stand in every panel."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    if handles:
        fitting = int(figure.get_figwidth() * LETTERS / (max(map(len, labels)) + 8))  # 8: the line before the words
        columns = max(1, min(len(handles), 2 * len(figure.axes), fitting))
        figure.legend(
            handles, labels, loc="outside lower center", ncols=columns, fontsize=9, frameon=False, handlelength=3.2
        )


def dose_response_picture(curves: Sequence[tuple[str, Curve]]) -> Drawing:
    """One panel for each curve, on the same scale."""
    columns = min(COLUMNS, len(curves))
    height = -(-len(curves) // columns)
    canvas = Figure(figsize=(1 + 4 * columns, 3.6 * height), layout="constrained")
    panels = canvas.subplots(height, columns, squeeze=False, sharey=True).ravel()
    for place, (panel, (title, curve)) in enumerate(zip(panels, curves, strict=False)):
        _draw(panel, curve, place)
        panel.set_title(title, fontsize=11)
    for panel in panels[len(curves) :]:
        panel.set_axis_off()
    return Drawing(as_svg(canvas), " ".join(_in_words(title, curve) for title, curve in curves))


def _draw(axes: Axes, curve: Curve, place: int) -> None:
    """Curve, band, what was measured with its own interval, and the best number."""
    _, scale, _, _, label = MEASURES[curve.figure]
    x, band = np.log1p(curve.variations), scale * curve.band
    colour = COLOURS[place % len(COLOURS)]
    axes.axhline(0, color="#555555", linewidth=0.8)
    axes.fill_between(x, band[0], band[1], color=colour, alpha=0.18, linewidth=0)
    for edge in band:  # in black and white a pale band alone is easily missed
        axes.plot(x, edge, color=colour, linewidth=0.7, linestyle=DASHES[2])
    axes.plot(x, scale * curve.mean, color=colour, linewidth=2, label="curve with 95 % band")
    halves = 1.96 * scale * np.sqrt(np.diag(curve.tried.noise))
    axes.errorbar(
        np.log1p(curve.tried.variations),
        scale * curve.tried.gains,
        yerr=halves,
        fmt=MARKERS[0],
        color="black",
        markerfacecolor="white",
        capsize=3,
        linewidth=1,
        label="measured, 95 % each",
    )
    best = int(curve.mean.argmax())
    axes.plot(x[best], scale * curve.mean[best], "*", color=colour, markersize=14, markeredgecolor="black")
    sure = curve.best == 0 or band[0, best] > 0
    axes.annotate(
        f"best: {curve.best}" if sure else f"best, not sure: {curve.best}",
        (x[best], scale * curve.mean[best]),
        (0, -20),
        textcoords="offset points",
        ha="left" if curve.best == 0 else "center",  # not across the axis
    )
    ticks = sorted({t for t in TICKS if t <= curve.variations[-1]} | {0, *curve.tried.variations})
    axes.set_xticks(np.log1p(ticks), [str(tick) for tick in ticks])
    axes.set_xlim(-0.1, x[-1] * 1.06 + 0.05)
    axes.set_xlabel("variations per real image")
    axes.set_ylabel(label)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="best", frameon=False)


def _in_words(title: str, curve: Curve) -> str:
    _, scale, decimals, _, label = MEASURES[curve.figure]
    shown = np.searchsorted(curve.variations, [0, *curve.tried.variations])
    band = scale * curve.band
    points = [
        f"{curve.variations[at]} variations {scale * curve.mean[at]:+.{decimals}f} "
        f"({band[0, at]:+.{decimals}f} to {band[1, at]:+.{decimals}f})"
        for at in shown
    ]
    return f"{title}, {label}, from the curve with its 95 % band: {'; '.join(points)}. Best at {curve.best}."


def equivalence_pictures(shown: Sequence[tuple[Row, list[Row], Exchange]], rows: Sequence[Row]) -> list[Drawing]:
    """One picture for each curve of real-only runs, with the conditions that are read off it."""
    by_curve: dict[tuple[str, ...], list[tuple[Row, list[Row], Exchange]]] = {}
    for each in shown:
        by_curve.setdefault(tuple(run for row in each[1] for run in row.runs), []).append(each)
    name = prefixes(rows)
    pictures = []
    for members in by_curve.values():
        curve = members[0][1]
        sizes = np.array([row.real_images for row in curve])
        heights = 100 * monotone(np.array([getattr(row, FIELDS["map_50"]).mean for row in curve]))
        canvas = Figure(figsize=(5.6, 4.4), layout="constrained")
        axes = canvas.add_subplot()
        axes.plot(sizes, heights, color="black", linewidth=1.8, label="real images alone")
        for row in curve:
            values = [100 * value for _, value in getattr(row, FIELDS["map_50"]).by_seed]
            axes.plot([row.real_images] * len(values), values, "o", color="black", fillstyle="none", markersize=5)
        words = [f"{size:g} real images {height:.1f}" for size, height in zip(sizes, heights, strict=True)]
        for place, (row, _, found) in enumerate(members):
            reached = 100 * getattr(row, FIELDS["map_50"]).mean
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
        pictures.append(Drawing(as_svg(canvas), f"AP50 in percent against real training images: {'; '.join(words)}."))
    return pictures


def steps_picture(by_steps: Mapping[str, Sequence[tuple[int, Contrast]]], text: str) -> Drawing:
    canvas = Figure(figsize=(5.6, 4.4), layout="constrained")
    axes = canvas.add_subplot()
    axes.axhline(0, color="#555555", linewidth=0.8)
    for place, (title, series) in enumerate(by_steps.items()):
        # Side by side on the axis of logarithms, so that intervals do not cover each other.
        x = [steps * 1.03 ** (place - (len(by_steps) - 1) / 2) for steps, _ in series]
        y = [100 * contrast.differences["map_50"].mean for _, contrast in series]
        ends = [contrast.differences["map_50"].interval for _, contrast in series]
        below = [0.0 if e is None else 100 * (e.mean - e.low) for e in ends]
        above = [0.0 if e is None else 100 * (e.high - e.mean) for e in ends]
        axes.errorbar(
            x, y, yerr=[below, above], color=COLOURS[place % len(COLOURS)], marker=MARKERS[place % len(MARKERS)],
            linestyle=DASHES[place % len(DASHES)], capsize=3, linewidth=1.8, markersize=7, label=title,
        )  # fmt: skip
    steps = sorted({steps for series in by_steps.values() for steps, _ in series})
    axes.set_xscale("log")
    axes.set_xticks(steps, [str(each) for each in steps])
    axes.minorticks_off()
    axes.set_xlabel("optimiser steps")
    axes.set_ylabel("gain in AP50, points")
    axes.grid(alpha=0.3)
    canvas.legend(loc="outside lower center", fontsize=9, frameon=False)
    return Drawing(as_svg(canvas), text)
