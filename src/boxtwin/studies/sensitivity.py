"""What a study could have seen: its yardstick, the smallest gain in reach, and whether training went on long enough."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from matplotlib.figure import Figure as Canvas
from scipy import stats

from boxtwin.studies.comparison import Contrast
from boxtwin.studies.conditions import Cell, Row, prefixes
from boxtwin.studies.inference import LEVEL, Interval
from boxtwin.studies.report.plots import COLOURS, DASHES, MARKERS
from boxtwin.studies.report.section import Figure, Section, as_svg

FIGURE = "map_50"
POWER = 0.8  # the usual chance at which a gain is called detectable (Cohen 1988, section 2.4)
# A training is over when the last third of its validations surely lies by less than this above the third before: a
# point of AP, as in the ratio.
STILL = 0.01
# Overrides that a study's table varies, or that the machine decides: what is left is the recipe.
VARIED = (
    *("seed", "study", "rerun", "data", "split", "variations", "generator", "labels", "tracking", "quality", "hydra"),
)
LENGTH = ("trainer.steps", "trainer.validations")
MACHINE = tuple(
    f"trainer.{name}"
    for name in ("precision", "accelerator", "threads", "workers", "cache", "compile", "coco_evaluator")
)

Told = Literal["on", "over", "unknown"]


def half_width(interval: Interval) -> float:
    """Half of an interval: a measured gain must exceed it to stand clear of 0."""
    return (interval.high - interval.low) / 2


def detectable(interval: Interval) -> float:
    """The true gain that four of five such studies would set apart from 0 (minimal detectable difference)."""
    return half_width(interval) * (1 + float(stats.norm.ppf(POWER)) / float(stats.norm.ppf((1 + LEVEL) / 2)))


def recipe(cell: Cell) -> tuple[str, ...] | None:
    """What a cell was configured with, apart from a table's axes, steps and machine; None where it did not say."""
    if not cell.overrides:
        return None
    kept = []
    for override in shlex.split(cell.overrides):
        key = override.lstrip("+~").split("=")[0]
        if not key.startswith("--") and key.split(".")[0] not in VARIED and key not in (*LENGTH, *MACHINE):
            kept.append(override)
    return (cell.dataset, cell.detector, *sorted(kept))


@dataclass(frozen=True)
class Length:
    """How much AP on validation still rose, between the second and the last third of the validations."""

    rise: float  # mean over seeds
    low: float  # its 95 % interval; nan with one seed
    high: float
    seeds: int

    @property
    def told(self) -> Told:
        """Whether it was still rising, was over, or cannot be told."""
        if self.high < STILL:
            return "over"
        return "on" if self.low > 0 else "unknown"


def length_of(curves: Sequence[Sequence[tuple[int, float]]]) -> Length | None:
    """From the validation curve of each seed; None if none has three validations at least."""
    rises = []
    for curve in curves:
        values = [value for _, value in sorted(curve)]
        third = len(values) // 3
        if third:
            rises.append(float(np.mean(values[-third:]) - np.mean(values[-2 * third : -third])))
    if not rises:
        return None
    mean = math.fsum(rises) / len(rises)
    if len(rises) == 1:
        return Length(mean, math.nan, math.nan, 1)
    error = float(np.std(rises, ddof=1)) / math.sqrt(len(rises))
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(rises) - 1)) * error
    return Length(mean, mean - half, mean + half, len(rises))


def section(cells: Sequence[Cell], rows: Sequence[Row], contrasts: Sequence[Contrast]) -> Section:
    """Whether the study could have seen a gain."""
    sentences = _yardsticks(rows, contrasts)
    sentences += _lengths(cells, rows)
    by_steps = _gains_by_steps(cells, contrasts)
    sentences += [_steps_in_words(title, series) for title, series in by_steps.items()]
    figures = (_steps_picture(by_steps),) if by_steps else ()
    return Section("What this study could have seen", tuple(sentences), figures)


def _yardsticks(rows: Sequence[Row], contrasts: Sequence[Contrast]) -> list[str]:
    """For each condition: what its yardstick says of differences that were not found."""
    name, said = prefixes(rows), []
    for condition in dict.fromkeys(row.condition for row in rows):
        own = [contrast for contrast in contrasts if contrast.new.condition == condition]
        rulers = [contrast for contrast in own if contrast.kind == "yardstick"]
        gains = [contrast for contrast in own if contrast.kind == "variations"]
        row = next(row for row in rows if row.condition == condition)
        unseen = [contrast for contrast in gains if not contrast.differences[FIGURE].established]
        title = name(row).rstrip(", ")
        said += [f"{title}: {sentence}" if title else sentence for sentence in _of_condition(rulers, gains, unseen)]
    return said


def _of_condition(rulers: Sequence[Contrast], gains: Sequence[Contrast], unseen: Sequence[Contrast]) -> list[str]:
    said = []
    if not rulers:
        said.append(
            "There is no yardstick: runs on real images alone, of two sizes (split=s1,s2 variations=0). Without one "
            "nobody can tell a set-up in which variations bring nothing from one in which no data brings anything."
        )
    for ruler in rulers:
        found = ruler.differences[FIGURE]
        what = f"{ruler.new.real_images:g} instead of {ruler.old.real_images:g} real images"
        change = _change(found.mean, found.interval)
        if found.established and found.mean > 0:
            said.append(
                f"This set-up can see what data is worth: {what} changed AP50 by {change}, which is established."
            )
        elif not found.could_be_established:
            said.append(
                f"Whether this set-up could have seen a gain is open: {what} changed AP50 by {change}, over "
                f"{found.pairs} paired {'seed' if found.pairs == 1 else 'seeds'}, and "
                f"{found.pairs_needed} are needed to tell."
            )
        elif gains and len(unseen) < len(gains):
            said.append(
                f"{what.capitalize()} changed AP50 by {change}, which is not established; but a gain from variations "
                "is, so that this set-up does see some."
            )
        else:
            said.append(
                f"This set-up could not have seen a gain: even {what} changed AP50 by {change}, which is not "
                f"established.{' That variations show none says nothing about them.' if gains else ''}"
            )
    halves = [found.interval for gain in gains if (found := gain.differences[FIGURE]).interval is not None]
    if halves:
        measured = _span([half_width(half) for half in halves])
        true = _span([detectable(half) for half in halves])
        which = ", depending on the comparison" if len(halves) > 1 else ""
        said.append(
            f"The smallest gain in reach: a measured one had to exceed {measured} of AP50 to stand clear of 0{which}; "
            f"a true one of {true} is seen by four of five such studies."
        )
    return said


def _change(mean: float, interval: Interval | None) -> str:
    if interval is None:
        return f"{100 * mean:+.1f} points"
    return f"{100 * mean:+.1f} points (95 % interval {100 * interval.low:+.1f} to {100 * interval.high:+.1f})"


def _span(values: Sequence[float]) -> str:
    """Least and greatest of some shares, in points."""
    low, high = (f"{100 * value:.1f}" for value in (min(values), max(values)))
    return f"{low} points" if low == high else f"{low} to {high} points"


def _lengths(cells: Sequence[Cell], rows: Sequence[Row]) -> list[str]:
    """Whether training on real images alone was over when it ended."""
    curves, name, said = {cell.run_id: cell.validation for cell in cells}, prefixes(rows), []
    for row in rows:
        if row.variations:
            continue
        found = length_of([curves.get(run, ()) for run in row.runs])
        title = f"{name(row)}{row.split}, real images alone"
        if found is None:
            said.append(
                f"{title}: whether training was over takes three validations on record to tell; these cells have fewer."
            )
            continue
        rise = f"the last third of its validations lies {100 * found.rise:+.1f} points of AP from the third before"
        if found.seeds == 1:
            said.append(f"{title}: {rise}, in one seed; whether it had stopped improving cannot be told from one.")
            continue
        rise = f"{rise} (95 % interval {100 * found.low:+.1f} to {100 * found.high:+.1f}, {found.seeds} seeds)"
        verdict = {
            "on": f"it was still improving at {row.steps} steps: train longer (trainer.steps)",
            "over": f"it had stopped improving at {row.steps} steps, to within {100 * STILL:.0f} point",
            "unknown": f"whether it had stopped improving at {row.steps} steps cannot be told",
        }[found.told]
        said.append(f"{title}: {verdict}; {rise}.")
    return said


Series = list[tuple[int, Contrast]]


def _gains_by_steps(cells: Sequence[Cell], contrasts: Sequence[Contrast]) -> Mapping[str, Series]:
    """Contrasts that differ in their steps alone, by what they compare."""
    recipes = {cell.run_id: recipe(cell) for cell in cells}
    found: dict[tuple[object, ...], dict[int, Contrast]] = {}
    for contrast in contrasts:
        own = recipes.get(contrast.new.runs[0])
        if contrast.kind == "control" or own is None:
            continue
        new, old = contrast.new, contrast.old
        key = (contrast.kind, own, new.split, old.split, new.generator, new.variations)
        found.setdefault(key, {})[new.steps] = contrast
    return {
        _what(next(iter(by_steps.values()))): sorted(by_steps.items())
        for by_steps in found.values()
        if len(by_steps) > 1
    }


def _what(contrast: Contrast) -> str:
    new, old = contrast.new, contrast.old
    if contrast.kind == "yardstick":
        return f"{new.real_images:g} instead of {old.real_images:g} real images"
    return f"{new.split}, {new.variations} variation{'' if new.variations == 1 else 's'} ({new.generator})"


def _steps_in_words(title: str, series: Series) -> str:
    parts = [f"{steps} steps {_change((d := c.differences[FIGURE]).mean, d.interval)}" for steps, c in series]
    return f"Gain in AP50 against steps, {title}: {'; '.join(parts)}."


def _steps_picture(by_steps: Mapping[str, Series]) -> Figure:
    canvas = Canvas(figsize=(5.6, 4.4), layout="constrained")
    axes = canvas.add_subplot()
    axes.axhline(0, color="#555555", linewidth=0.8)
    for place, (title, series) in enumerate(by_steps.items()):
        # Side by side on the axis of logarithms, so that intervals do not cover each other.
        x = [steps * 1.03 ** (place - (len(by_steps) - 1) / 2) for steps, _ in series]
        y = [100 * contrast.differences[FIGURE].mean for _, contrast in series]
        ends = [contrast.differences[FIGURE].interval for _, contrast in series]
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
    return Figure(as_svg(canvas), " ".join(_steps_in_words(title, series) for title, series in by_steps.items()))
