"""What the curves of `boxtwin.studies.dose_response` say, in words and in one picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from boxtwin.studies.comparison import Figures
from boxtwin.studies.conditions import Row, prefixes
from boxtwin.studies.dose_response import MARGINS, Curve, fit, lines, missing, tried
from boxtwin.studies.inference import LEVEL
from boxtwin.studies.report.plots import COLOURS, DASHES, MARKERS
from boxtwin.studies.report.section import Figure, Section, as_svg

# Figure -> name, factor to the unit shown, decimals, unit, what a gain is called.
MEASURES = {
    "map_50": ("AP50", 100.0, 1, "points", "gain in AP50, points"),
    "count_mae": ("count MAE", 1.0, 2, "objects an image", "fall of count MAE, objects an image"),
}
TICKS = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
COLUMNS = 2


def section(rows: Sequence[Row], figures: Figures) -> Section | None:
    """How many variations are best, for every split and generator; None in a study without variations."""
    found = lines(rows)
    if not found:
        return None
    name = prefixes(rows)
    sentences: list[str] = []
    lacking: dict[str, list[str]] = {}  # lines by what is missing
    curves: dict[str, list[tuple[str, Curve]]] = {figure: [] for figure in MEASURES}
    for base, members in found:
        title = f"{name(base)}{base.split}, {members[0].generator}"
        lack = missing(base, members)
        if lack is not None:
            lacking.setdefault(lack, []).append(title)
            continue
        for figure in MEASURES:
            curve = fit(figure, tried(figure, base, members, figures))
            curves[figure].append((title, curve))
            sentences.append(f"{title}: {describe(curve)}")
        left_out = [row.variations for row in members if row.variations not in curve.tried.variations]
        if left_out:
            sentences.append(f"{title}: {_listed(left_out)} variations have too few seeds and are left out.")
    sentences += [
        f"{'; '.join(titles)}: the best number of variations is not named. Missing: {lack}."
        for lack, titles in lacking.items()
    ]
    pictures = tuple(_picture(named) for named in curves.values() if named)
    return Section("How many variations", tuple(sentences), pictures)


def describe(curve: Curve) -> str:
    """The best number of variations, how sure that is, what it brings, and from where more stops helping."""
    name, scale, decimals, unit, _ = MEASURES[curve.figure]
    verb = "falls" if curve.figure == "count_mae" else "rises"
    numbers, chances = curve.variations, curve.chances
    at = int(curve.mean.argmax())
    low, high = (scale * float(end) for end in curve.band[:, at])
    gain = scale * float(curve.mean[at])
    interval = f"95 % interval {low:.{decimals}f} to {high:.{decimals}f}"
    largest = int(numbers[-1])
    said = []
    first, last = curve.best_range
    span = f"the runs allow anything from {first} to {last}" if first < last else "the runs allow no other number"
    if curve.best == 0:
        said.append(f"{name} is best without variations, as far as the runs tell ({span}).")
    elif low <= 0:
        said.append(
            f"{name}: no number of variations is surely better than none. The curve is at its best at about "
            f"{curve.best} ({span}), where it {verb} by {gain:.{decimals}f} {unit} ({interval})."
        )
    else:
        said.append(
            f"{name} is best at about {curve.best} variations ({span}, {_percent(LEVEL)} sure); there it {verb} by "
            f"{gain:.{decimals}f} {unit} ({interval})."
        )
    said.append(f"That no number of them beats none at all has a probability of {_percent(float(chances[0]))}.")
    if curve.best == largest:
        said.append(f"{largest} is the largest number tried: a larger one may be better still.")
    among = [0, *curve.tried.variations]
    best_tried = np.bincount(
        curve.draws[:, np.searchsorted(numbers, among)].argmax(axis=1), minlength=len(among)
    ) / len(curve.draws)
    said.append(
        "Of the numbers tried, the best is "
        + ", ".join(
            f"{number} with {_percent(float(chance))}" for number, chance in zip(among, best_tried, strict=True)
        )
        + " probability."
    )
    margin = scale * MARGINS[curve.figure]
    amount = "1 point" if margin == 1 else f"{margin:g} {unit}"
    if curve.enough is None:
        chance = curve.chance_enough()
        said.append(
            f"From where more stops helping is not known: no number is {_percent(LEVEL)} sure to be within {amount} of "
            f"the best; the surest is {int(numbers[chance.argmax()])}, with {_percent(float(chance.max()))}."
        )
    elif curve.enough == 0:
        said.append(f"With {_percent(LEVEL)} certainty no number of variations brings more than {amount}.")
    else:
        said.append(
            f"More than {curve.enough} stops helping: {curve.enough} is the smallest number that is, with "
            f"{_percent(LEVEL)} certainty, within {amount} of the best."
        )
    if not curve.tried.images_known:
        said.append("These cells keep no matches: the choice of test images is not in the intervals.")
    return " ".join(said)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def _picture(curves: Sequence[tuple[str, Curve]]) -> Figure:
    """One panel for each curve, on the same scale."""
    columns = min(COLUMNS, len(curves))
    height = -(-len(curves) // columns)
    canvas = Canvas(figsize=(1 + 4 * columns, 3.6 * height), layout="constrained")
    panels = canvas.subplots(height, columns, squeeze=False, sharey=True).ravel()
    for place, (panel, (title, curve)) in enumerate(zip(panels, curves, strict=False)):
        _draw(panel, curve, place)
        panel.set_title(title, fontsize=11)
    for panel in panels[len(curves) :]:
        panel.set_axis_off()
    return Figure(as_svg(canvas), " ".join(_in_words(title, curve) for title, curve in curves))


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
