"""Plots of a test's metrics, a curve and a scatter for each class. All are written as PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator, ScalarFormatter

from boxtwin.evaluation.overlays import save
from boxtwin.evaluation.resampled_ap import mean_of_known
from boxtwin.lettering import class_colour, legend, lettering, shorten

PLAIN, TOGETHER = "#1f5fa8", "#333333"  # one class; all of several together
MOST_PANELS = 12
MOST_CURVES = 20


def precision_recall_curve(
    recall: Float[np.ndarray, " points"],
    precision: Float[np.ndarray, "classes points"],
    path: Path,
    classes: Sequence[str],
) -> None:
    """Precision against recall at IoU 0.5, of each class and their mean; nan is a class without objects."""
    figure = Figure(figsize=(5, 4.2), layout="constrained")
    axes = figure.add_subplot()
    mean = mean_of_known(precision)
    shown = [label for label in range(len(classes)) if not np.isnan(precision[label]).any()]
    if not shown:
        axes.text(0.5, 0.5, "no objects in these images", ha="center", va="center")
        axes.set_title("Precision and recall at IoU 0.5")
    else:
        colour = PLAIN if len(classes) == 1 else TOGETHER
        axes.fill_between(recall, mean, step="pre", alpha=0.15, color=colour, linewidth=0)
        axes.step(recall, mean, where="pre", color=colour, linewidth=1.8)
        axes.set_title(f"Precision and recall at IoU 0.5: AP50 {100 * float(mean.mean()):.1f}")
    if len(classes) > 1 and shown:
        figure.set_figwidth(7.5)
        lines = list(axes.lines)
        for label in shown[:MOST_CURVES]:
            lines += axes.step(recall, precision[label], where="pre", color=class_colour(label), linewidth=1.2)
        names = [f"{shorten(classes[label], 24)} {100 * precision[label].mean():.1f}" for label in shown[:MOST_CURVES]]
        names.insert(0, "mean of the classes")
        if (more := len(shown) - MOST_CURVES) > 0:
            lines += axes.plot([], [], linestyle="none")
            names.append(f"and {more} more")
        figure.set_figheight(max(4.2, 0.21 * len(names) + 0.1))  # room for the legend
        legend(figure, lines, names, loc="outside right upper", frameon=False, fontsize=9)
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall: share of the objects found", ylabel="precision: share right")
    axes.grid(alpha=0.3)
    save(figure, path)


def count_scatter(
    true: Int[np.ndarray, "images classes"],
    counts: Int[np.ndarray, "images classes"],
    path: Path,
    classes: Sequence[str],
) -> None:
    """Counted against true objects, one point an image, in all and (where there are several) of each class.

    The area of a dot says how many images share it. Classes with the most objects are shown where not all have room.
    """
    objects = true.sum(axis=0) + counts.sum(axis=0)
    busiest = np.argsort(-objects, kind="stable")[: MOST_PANELS - 1]
    shown = [label for label in range(len(classes)) if label in busiest and objects[label]] if len(classes) > 1 else []
    panels = 1 + len(shown)
    across = min(panels, 4 if panels > 6 else 3)
    rows = -(-panels // across)
    side = 5.0 if panels == 1 else 3.6
    figure = Figure(figsize=(side * across, side * rows), layout="constrained")
    grid = figure.subplots(rows, across, squeeze=False).ravel()
    title, colour = ("Counts", PLAIN) if len(classes) == 1 else ("all classes", TOGETHER)
    _scatter(grid[0], true.sum(axis=1), counts.sum(axis=1), title, colour)
    for axes, label in zip(grid[1:], shown, strict=False):
        _scatter(axes, true[:, label], counts[:, label], shorten(classes[label], 24), class_colour(label))
    for axes in grid[panels:]:
        axes.set_axis_off()
    if len(classes) > 1 and (more := int((objects > 0).sum()) - len(shown)):
        figure.supxlabel(f"not shown alone, with fewer objects: {more} of {len(classes)} classes", fontsize=9)
    save(figure, path)


def _scatter(
    axes: Axes, true: Int[np.ndarray, " images"], counts: Int[np.ndarray, " images"], title: str, colour: str
) -> None:
    points, repeats = np.unique(np.stack([true, counts], axis=1), axis=0, return_counts=True)
    top = float(max(points.max(initial=0), 1))
    axes.plot([0, 2 * top], [0, 2 * top], color="#777777", linestyle="--", linewidth=1, zorder=1, label="exact")
    # Area proportional to the number of images; 28 and 900 square points: still seen, and not over its neighbours.
    area = repeats * min(28.0, 900.0 / max(int(repeats.max(initial=1)), 1))
    axes.scatter(points[:, 0], points[:, 1], s=area, color=colour, alpha=0.55, edgecolor="#222222", zorder=2)
    # A single harbour with 95 ships would press all other images into one corner of linear axes.
    if top > 20 and top > 4 * np.quantile(true, 0.9):
        ticks = [0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000]
        for axis, scale in ((axes.xaxis, axes.set_xscale), (axes.yaxis, axes.set_yscale)):
            scale("symlog", linthresh=5)
            axis.set_major_locator(FixedLocator([tick for tick in ticks if tick <= 1.2 * top]))
            axis.set_minor_locator(NullLocator())
            axis.set_major_formatter(ScalarFormatter())
        limits = (-0.5, 1.2 * top)
    else:
        limits = (-0.05 * top - 0.3, 1.05 * top + 0.3)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlim=limits, ylim=limits, aspect="equal", xlabel="true objects in the image", ylabel="counted objects")
    text = f"{title}: {int((true == counts).sum())} of {len(true)} images exact"
    axes.set_title(text, fontsize=11 if title == "Counts" else 9, **lettering(text))
    axes.legend(loc="upper left", frameon=False)
    axes.grid(alpha=0.3)
