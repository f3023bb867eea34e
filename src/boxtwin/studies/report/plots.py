"""Figures against the number of variations."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from boxtwin.files import write_bytes_atomically
from boxtwin.studies.conditions import Estimate, Row, prefixes
from boxtwin.studies.inference import mean_interval
from boxtwin.studies.report.section import Figure as Drawn
from boxtwin.studies.report.section import as_svg
from boxtwin.studies.report.verdict import count, percent

# Field of `Row` -> factor to the unit shown, title, and the least height of the axis in that unit: differences that one
# run alone would make must not fill the picture.
CURVES = {"ap50": (100.0, "AP50 (higher is better)", 10.0), "count_mae": (1.0, "count MAE (lower is better)", 0.5)}
LARGEST = {"ap50": 100.0, "count_mae": np.inf}  # no measure is below 0, whatever an interval of two seeds spans
LETTERS = 14  # of 9 points that go into an inch of a legend
# Okabe & Ito's colours for the colour-blind; markers and dashes repeat the distinction in black and white.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES: tuple[tuple[int, tuple[float, ...]], ...] = ((0, ()), (0, (6, 2)), (0, (2, 1.5)), (0, (7, 2, 1.5, 2)))


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


def curve_figure(rows: Sequence[Row], measure: str) -> Drawn:
    """One curve with its legend for the page, and what it shows in words."""
    # Four inches wide: type of 10 points has that size on a phone.
    with mpl.rc_context({"font.size": 10}):
        figure = Figure(figsize=(4.4, 4.2), layout="constrained")
        draw_curve(figure.add_subplot(), rows, measure)
        _legend(figure)
        svg = as_svg(figure, transparent=True)
    return Drawn(svg, curve_text(rows, measure))


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
