"""The picture of a quality card: the distributions behind its figures, and the pairs that a person should look at."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from boxtwin.datasets.image_io import Pixels
from boxtwin.evaluation import overlays
from boxtwin.lettering import lettering, shorten_path
from boxtwin.quality.measure import Evidence
from boxtwin.quality.similarity import COPY
from boxtwin.quality.texture import RINGS, TILE, pooled

REAL, MADE, OTHER = "#555555", "#d1495b", "#1f5fa8"
COLOURS = {"alike": "#2b7a3d", "unlike": "#8a5a00", "copy": "#b3261e", "leak": "#b3261e", "undecided": "#777777"}
# In a distance, unlike is what a new image should be.
GOOD = "#2b7a3d"
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


def draw(evidence: Evidence, card: dict[str, Any], path: Path, *, title: str) -> None:
    """Six panels, one per figure; below them the pairs nearest to test images: variation, real image, test image."""
    pairs = card["nearest_pairs"]
    figure = Figure(figsize=(15, 19.5))
    counts = card["images"]
    figure.text(
        0.02,
        0.985,
        f"{title}: {card['verdict'].upper()}  "
        f"({counts['variations']} variations of {counts['sources']} images; {counts['real']} training and validation, "
        f"{counts['test']} test images)",
        fontsize=13,
        fontweight="bold",
        color=COLOURS[card["verdict"]],
        parse_math=False,
    )
    figure.text(0.02, 0.981, textwrap.fill(card["advice"], 150), fontsize=10, va="top")
    # Places are given by hand: matplotlib's own search for them takes as long as all the drawing.
    panels = figure.add_gridspec(2, 3, left=0.05, right=0.985, top=0.93, bottom=0.565, hspace=0.36, wspace=0.2)
    for number, panel in enumerate((_levels, _spectra, _looks, _to_real, _to_siblings, _to_test)):
        panel(figure.add_subplot(panels[number // 3, number % 3]), evidence, card["figures"])
    _show_pairs(figure, evidence, pairs)
    overlays.save(figure, path)


def _levels(axes: Axes, evidence: Evidence, figures: dict[str, Any]) -> None:
    real = pooled([evidence.real_levels[source] for source in sorted(set(evidence.sources))])
    for counts, colour, label in ((real, REAL, "their sources"), (evidence.levels, MADE, "variations")):
        shares = counts.sum(axis=0) / counts.sum()
        shares = shares.reshape(min(256, len(shares)), -1).sum(axis=1)
        axes.step(np.arange(len(shares)), shares + 1e-9, where="mid", color=colour, label=label, linewidth=1.4)
    axes.set(yscale="log", ylim=(1e-7, 1), xlabel="grey level (8 bit)", ylabel="share of the pixels")
    axes.legend(frameon=False, fontsize=8)
    figure = figures["grey_levels"]
    _title(axes, "grey levels", figure, f"{_number(figure['value'])} standard deviations", "real halves: up to {}")


def _spectra(axes: Axes, evidence: Evidence, figures: dict[str, Any]) -> None:
    frequencies = np.arange(1, RINGS + 1) / TILE
    decibels = 10 / math.log(10)
    real = decibels * np.stack([look.spectrum for look in evidence.real_looks])
    sources = real[sorted(set(evidence.sources))]
    made = decibels * np.stack([look.spectrum for look in evidence.variation_looks])
    low, high = np.quantile(real, (0.1, 0.9), axis=0)
    axes.fill_between(frequencies, low, high, color=REAL, alpha=0.15, linewidth=0, label="8 of 10 real images")
    axes.plot(frequencies, sources.mean(axis=0), color=REAL, linewidth=1.8, label="their sources")
    axes.plot(frequencies, made.mean(axis=0), color=MADE, linewidth=1.4, linestyle="--", label="variations")
    axes.axvspan(0.25, 0.5, color=OTHER, alpha=0.06, linewidth=0)
    axes.set(xlabel="cycles per pixel (shaded: top octave)", ylabel="power, dB")
    axes.legend(frameon=False, fontsize=8)
    figure = figures["fine_detail"]
    _title(
        axes,
        "fine detail",
        figure,
        _ratio(figure),
        "real halves: up to {}",
    )


def _looks(axes: Axes, evidence: Evidence, figures: dict[str, Any]) -> None:
    if evidence.speckle is None:
        _how_to_read(axes)
        return
    figure = figures["looks"]
    _title(
        axes,
        "looks on calm sea",
        figure,
        _ratio(figure),
        "real halves: up to {}",
    )
    real, made = ([look.looks for look in looks] for looks in (evidence.real_looks, evidence.variation_looks))
    if figure["value"] is None:
        _nothing(axes, "no calm sea, or pixels in colour")
        return
    _histograms(axes, {"real": (real, REAL), "variations": (made, MADE)})
    axes.set(xlabel=f"equivalent number of looks, pixels as {evidence.speckle}", ylabel="share of the images")
    axes.legend(frameon=False, fontsize=8)


def _how_to_read(axes: Axes) -> None:
    """Stands where images of a radar have their speckle."""
    axes.set_axis_off()
    axes.text(0, 1, HOW_TO_READ, va="top", fontsize=10, linespacing=1.5, transform=axes.transAxes)


def _to_real(axes: Axes, evidence: Evidence, figures: dict[str, Any]) -> None:
    figure = figures["nearest_real"]
    _title(
        axes,
        "nearest real image",
        figure,
        f"distance {_number(figure['value'])}, grain repeated {_number(figure['repeated_grain'])}",
        "real to each other: {}",
        good="unlike",
    )
    _scatter(
        axes,
        ([r.distance for r in evidence.real_relations], [r.repeats for r in evidence.real_relations]),
        ([r.distance for r in evidence.relations], [r.repeats for r in evidence.relations]),
        "layout distance to the nearest training or validation image",
    )


def _to_siblings(axes: Axes, evidence: Evidence, figures: dict[str, Any]) -> None:
    figure = figures["siblings"]
    grain = "" if figure["value"] is None else f", grain repeated {_number(figure['repeated_grain'])}"
    text = f"distance {_number(figure['value'])}{grain}"
    _title(axes, "other variations of the source", figure, text, "real to each other: {}", good="unlike")
    if figure["value"] is None:
        _nothing(axes, "one variation of each image")
        return
    compared = [relation for relation in evidence.relations if not math.isnan(relation.repeats_sibling)]
    _scatter(
        axes,
        ([r.distance for r in evidence.real_relations], [r.repeats for r in evidence.real_relations]),
        ([r.sibling_distance for r in compared], [r.repeats_sibling for r in compared]),
        "layout distance to the nearest other variation",
    )


def _to_test(axes: Axes, evidence: Evidence, figures: dict[str, Any]) -> None:
    figure = figures["test"]
    _title(
        axes,
        "nearest test image",
        figure,
        f"distance {_number(figure['value'])}, p {_number(figure['probability'])}, {len(figure['matches'])} matches",
        "real: {}",
        good="unlike",
    )
    real, made = (
        [relation.test_distance for relation in relations]
        for relations in (evidence.real_relations, evidence.relations)
    )
    _histograms(axes, {"real": (real, REAL), "variations": (made, MADE)})
    axes.set(xlabel="layout distance to the nearest test image", ylabel="share of the images")
    axes.set_xlim(left=min(0.0, axes.get_xlim()[0]))
    axes.legend(frameon=False, fontsize=8)


def _histograms(axes: Axes, sets: dict[str, tuple[Sequence[float], str]]) -> None:
    kept = {name: [value for value in values if not math.isnan(value)] for name, (values, _) in sets.items()}
    everything = [value for values in kept.values() for value in values]
    low, high = min(everything), max(everything)
    edges = np.linspace(low, high if high > low else low + 1e-3, BINS + 1)
    for name, values in kept.items():
        if values:
            weights = np.full(len(values), 1 / len(values))
            axes.hist(values, edges.tolist(), weights=weights, color=sets[name][1], alpha=0.45, label=name)


def _scatter(
    axes: Axes,
    real: tuple[Sequence[float], Sequence[float]],
    made: tuple[Sequence[float], Sequence[float]],
    label: str,
) -> None:
    axes.scatter(*real, s=16, color=REAL, alpha=0.5, linewidth=0, label="real images to each other")
    axes.scatter(*made, s=16, color=MADE, alpha=0.5, linewidth=0, label="variations")
    axes.axhline(COPY, color=COLOURS["copy"], linewidth=1, linestyle=":")
    axes.annotate("copies", (1, COPY), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8)
    axes.set(xlabel=label, ylabel="share of repeated grain", ylim=(-0.08, 1.08))
    axes.set_xlim(left=-0.03, right=max(1.0, axes.get_xlim()[1]))
    axes.legend(frameon=False, fontsize=8, loc=(0.5, 0.62))


def _show_pairs(figure: Figure, evidence: Evidence, pairs: Sequence[dict[str, Any]]) -> None:
    """One column for each pair, boxes drawn."""
    variations, real, test = (
        {sample.name: sample for sample in samples} for samples in (evidence.variations, evidence.real, evidence.test)
    )
    figure.text(
        0.02,
        0.522,
        "Nearest to test images: a variation of each of five sources, its nearest real image, its nearest test image",
        fontsize=11,
    )
    grid = figure.add_gridspec(3, PAIRS, left=0.01, right=0.99, top=0.505, bottom=0.005, hspace=0.1, wspace=0.03)
    for column, pair in enumerate(pairs):
        rows = (
            (variations[pair["variation"]], f"variation of {shorten_path(pair['source'])}", overlays.MISSED),
            (real[pair["real"]], f"real, {pair['distance']:.3f}: {shorten_path(pair['real'], 26)}", overlays.TRUE),
            (
                test[pair["test"]],
                f"test, {pair['test_distance']:.3f}: {shorten_path(pair['test'], 26)}",
                overlays.TRUE,
            ),
        )
        for row, (sample, title, colour) in enumerate(rows):
            axes = figure.add_subplot(grid[row, column])
            pixels = sample.read()
            overlays.show_image(axes, pixels if evidence.speckle is None else _brightened(pixels))
            overlays.draw_boxes(axes, sample.object_boxes, colour=colour)
            axes.set_title(title, fontsize=8, loc="left", **lettering(title))


def _title(axes: Axes, name: str, figure: dict[str, Any], value: str, reference: str, *, good: str = "alike") -> None:
    verdict = figure["verdict"]
    colour = COLOURS["unlike" if (good, verdict) == ("unlike", "alike") else verdict]
    axes.set_title(
        f"{name}: {verdict}\n{value}; {reference.format(_number(figure['reference']))}",
        fontsize=10,
        loc="left",
        color=GOOD if verdict == good else colour,
    )


def _brightened(pixels: Pixels) -> Pixels:
    """The root of the brightness: radar images are dark but for their ships, and a person is to see the sea."""
    white = np.iinfo(pixels.dtype).max
    brighter: Pixels = (np.sqrt(pixels / white) * white).astype(pixels.dtype)
    return brighter


def _nothing(axes: Axes, reason: str) -> None:
    axes.text(0.5, 0.5, reason, ha="center", va="center", transform=axes.transAxes)
    axes.set(xticks=[], yticks=[])


def _ratio(figure: dict[str, Any]) -> str:
    return f"ratio {_number(figure['value'])}, single images {_number(figure['typical'])}"


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.2f}"
