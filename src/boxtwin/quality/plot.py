"""The picture of a quality card: the distributions that it follows from, and the pairs that a person should check."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from boxtwin.datasets.image_io import Pixels
from boxtwin.evaluation import overlays
from boxtwin.lettering import lettering, shorten_path
from boxtwin.quality.measure import Evidence
from boxtwin.quality.record import COPY, Metric, Neighbours, QualityReport, Verdict
from boxtwin.quality.texture import RINGS, TILE, pooled

REAL, VARIATIONS, OTHER = "#555555", "#d1495b", "#1f5fa8"
COLOURS = {"alike": "#2b7a3d", "unlike": "#8a5a00", "copy": "#b3261e", "leak": "#b3261e", "undecided": "#777777"}
HOW_TO_READ = """How to read this card

Grey levels and fine detail should be "alike": no farther from
the sources than random halves of the real images are from
each other.

Distances should be "unlike": a new image differs from real
images, from other variations of its source and from test
images. Layout distance is 0 for the same scene and about 1
for an unrelated one. Repeated grain is 1 for the same pixels
and 0 for new ones; "copy" is more than half.

"Leak": variations come nearer to test images than real ones
do. Results on these test images cannot be trusted then."""
BINS = 24
PAIRS = 5  # columns of pictures


def draw(evidence: Evidence, report: QualityReport, path: Path, *, title: str) -> None:
    """Six panels, one per metric; below them the pairs nearest to test images: variation, real image, test image."""
    figure = Figure(figsize=(15, 19.5))
    counts = report["images"]
    headline = (
        f"{title}: {report['verdict'].upper()}  "
        f"({counts['variations']} variations of {counts['sources']} images; {counts['real']} training and validation, "
        f"{counts['test']} test images)"
    )
    colour = COLOURS[report["verdict"]]
    figure.text(0.02, 0.985, headline, fontsize=13, fontweight="bold", color=colour, parse_math=False)
    figure.text(0.02, 0.981, textwrap.fill(report["advice"], 150), fontsize=10, va="top")
    # Places are given by hand: matplotlib's own search for them takes as long as all the drawing.
    panels = figure.add_gridspec(2, 3, left=0.05, right=0.985, top=0.93, bottom=0.565, hspace=0.36, wspace=0.2)
    drawn = {"grey_levels": _levels, "fine_detail": _spectra, "looks": _looks}
    drawn |= {"nearest_real": _to_real, "siblings": _to_siblings, "test": _to_test}
    for number, (name, panel) in enumerate(drawn.items()):
        panel(figure.add_subplot(panels[number // 3, number % 3]), evidence, report["figures"][name])
    _show_pairs(figure, evidence, report["nearest_pairs"])
    overlays.save(figure, path)


def _levels(axes: Axes, evidence: Evidence, metric: Metric) -> None:
    real = pooled([evidence.real_levels[source] for source in evidence.sources])
    for counts, colour, label in ((real, REAL, "their sources"), (evidence.levels, VARIATIONS, "variations")):
        shares = counts.sum(axis=0) / counts.sum()
        shares = shares.reshape(min(256, len(shares)), -1).sum(axis=1)
        axes.step(np.arange(len(shares)), shares + 1e-9, where="mid", color=colour, label=label, linewidth=1.4)
    axes.set(yscale="log", ylim=(1e-7, 1), xlabel="grey level (8 bit)", ylabel="share of the pixels")
    axes.legend(frameon=False, fontsize=8)
    _title(axes, "grey levels", metric, f"{_number(metric['value'])} standard deviations")


def _spectra(axes: Axes, evidence: Evidence, metric: Metric) -> None:
    frequencies = np.arange(1, RINGS + 1) / TILE
    decibels = 10 / math.log(10)
    real, made = (
        decibels * np.stack([one.spectrum for one in each]) for each in (evidence.real_measured, evidence.measured)
    )
    low, high = np.quantile(real, (0.1, 0.9), axis=0)
    sources = real[list(evidence.sources)].mean(axis=0)
    axes.fill_between(frequencies, low, high, color=REAL, alpha=0.15, linewidth=0, label="8 of 10 real images")
    axes.plot(frequencies, sources, color=REAL, linewidth=1.8, label="their sources")
    axes.plot(frequencies, made.mean(axis=0), color=VARIATIONS, linewidth=1.4, linestyle="--", label="variations")
    axes.axvspan(0.25, 0.5, color=OTHER, alpha=0.06, linewidth=0)
    axes.set(xlabel="cycles per pixel (shaded: top octave)", ylabel="power, dB")
    axes.legend(frameon=False, fontsize=8)
    _title(axes, "fine detail", metric, _ratio(metric))


def _looks(axes: Axes, evidence: Evidence, metric: Metric) -> None:
    if evidence.speckle is None:  # no radar images: there is room for an explanation
        axes.set_axis_off()
        axes.text(0, 1, HOW_TO_READ, va="top", fontsize=10, linespacing=1.5, transform=axes.transAxes)
        return
    _title(axes, "looks on calm sea", metric, _ratio(metric))
    if metric["value"] is None:
        _nothing(axes, "no calm sea, or pixels in colour")
        return
    label = f"equivalent number of looks, pixels as {evidence.speckle.value}"
    real, made = ([one.looks for one in each] for each in (evidence.real_measured, evidence.measured))
    _histograms(axes, real, made, label)


def _to_real(axes: Axes, evidence: Evidence, metric: Metric) -> None:
    text = f"distance {_number(metric['value'])}, grain repeated {_number(metric['repeated_grain'])}"
    _title(axes, "nearest real image", metric, text, "real to each other: {}", good="unlike")
    made = [(one.distance, one.repeats) for one in evidence.measured]
    _scatter(axes, evidence, made, "layout distance to the nearest training or validation image")


def _to_siblings(axes: Axes, evidence: Evidence, metric: Metric) -> None:
    grain = "" if metric["value"] is None else f", grain repeated {_number(metric['repeated_grain'])}"
    text = f"distance {_number(metric['value'])}{grain}"
    _title(axes, "other variations of the source", metric, text, "real to each other: {}", good="unlike")
    if metric["value"] is None:
        _nothing(axes, "one variation of each image")
        return
    made = [(r.sibling_distance, r.repeats_sibling) for r in evidence.measured if not math.isnan(r.repeats_sibling)]
    _scatter(axes, evidence, made, "layout distance to the nearest other variation")


def _to_test(axes: Axes, evidence: Evidence, metric: Metric) -> None:
    matches = f"{len(metric['matches'])} matches"
    text = f"distance {_number(metric['value'])}, p {_number(metric['probability'])}, {matches}"
    _title(axes, "nearest test image", metric, text, "real: {}", good="unlike")
    real, made = ([r.test_distance for r in group] for group in (evidence.real_measured, evidence.measured))
    _histograms(axes, real, made, "layout distance to the nearest test image")
    axes.set_xlim(left=min(0.0, axes.get_xlim()[0]))


def _histograms(axes: Axes, real: Sequence[float], made: Sequence[float], label: str) -> None:
    defined = [[value for value in values if not math.isnan(value)] for values in (real, made)]
    low, high = min(min(values) for values in defined if values), max(max(values) for values in defined if values)
    edges = np.linspace(low, high if high > low else low + 1e-3, BINS + 1).tolist()
    for name, colour, values in zip(("real", "variations"), (REAL, VARIATIONS), defined, strict=True):
        if values:
            weights = np.full(len(values), 1 / len(values))
            axes.hist(values, edges, weights=weights, color=colour, alpha=0.45, label=name)
    axes.set(xlabel=label, ylabel="share of the images")
    axes.legend(frameon=False, fontsize=8)


def _scatter(axes: Axes, evidence: Evidence, made: Sequence[tuple[float, float]], label: str) -> None:
    """Layout distance and share of repeated grain, of the real images and of ``made``."""
    real = [(one.distance, one.repeats) for one in evidence.real_measured]
    for points, colour, name in ((real, REAL, "real images to each other"), (made, VARIATIONS, "variations")):
        x, y = zip(*points, strict=True)
        axes.scatter(x, y, s=16, color=colour, alpha=0.5, linewidth=0, label=name)
    axes.axhline(COPY, color=COLOURS["copy"], linewidth=1, linestyle=":")
    axes.annotate("copies", (1, COPY), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8)
    axes.set(xlabel=label, ylabel="share of repeated grain", ylim=(-0.08, 1.08))
    axes.set_xlim(left=-0.03, right=max(1.0, axes.get_xlim()[1]))
    axes.legend(frameon=False, fontsize=8, loc=(0.5, 0.62))


def _show_pairs(figure: Figure, evidence: Evidence, pairs: Sequence[Neighbours]) -> None:
    """One column for each pair, boxes drawn."""
    kinds = [{one.name: one for one in kind} for kind in (evidence.variations, evidence.real, evidence.test)]
    headline = "a variation of each of five sources, its nearest real image, its nearest test image"
    figure.text(0.02, 0.522, f"Nearest to test images: {headline}", fontsize=11)
    grid = figure.add_gridspec(3, PAIRS, left=0.01, right=0.99, top=0.505, bottom=0.005, hspace=0.1, wspace=0.03)
    for column, pair in enumerate(pairs):
        real, test = (shorten_path(name, 26) for name in (pair["real"], pair["test"]))
        rows = (
            (pair["variation"], f"variation of {shorten_path(pair['source'])}", overlays.MISSED),
            (pair["real"], f"real, {pair['distance']:.3f}: {real}", overlays.TRUE),
            (pair["test"], f"test, {pair['test_distance']:.3f}: {test}", overlays.TRUE),
        )
        for row, (name, title, colour) in enumerate(rows):
            axes, sample = figure.add_subplot(grid[row, column]), kinds[row][name]
            pixels: Pixels = sample.read()
            if evidence.speckle is not None:  # radar images are dark but for their ships
                full = np.iinfo(pixels.dtype).max
                pixels = (np.sqrt(pixels / full) * full).astype(pixels.dtype)
            overlays.show_image(axes, pixels)
            overlays.draw_boxes(axes, sample.object_boxes, colour=colour)
            axes.set_title(title, fontsize=8, loc="left", **lettering(title))


def _title(
    axes: Axes, name: str, metric: Metric, value: str, reference: str = "real halves: up to {}", good: Verdict = "alike"
) -> None:
    """Green where the verdict is ``good``; in a distance, unlike is what a new image should be."""
    verdict = metric["verdict"]
    colour = COLOURS["alike"] if verdict == good else COLOURS["unlike" if verdict == "alike" else verdict]
    text = f"{name}: {verdict}\n{value}; {reference.format(_number(metric['reference']))}"
    axes.set_title(text, fontsize=10, loc="left", color=colour)


def _nothing(axes: Axes, reason: str) -> None:
    axes.text(0.5, 0.5, reason, ha="center", va="center", transform=axes.transAxes)
    axes.set(xticks=[], yticks=[])


def _ratio(metric: Metric) -> str:
    return f"ratio {_number(metric['value'])}, single images {_number(metric['typical'])}"


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.2f}"
