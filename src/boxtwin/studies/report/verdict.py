"""What the cells of a study say, in sentences, and with no more certainty than the runs carry."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from boxtwin.studies.comparison import CONTROLS, FIELDS, Contrast, Difference
from boxtwin.studies.conditions import Estimate, Row, paired_seeds, prefixes
from boxtwin.studies.inference import LEAST_PAIRS
from boxtwin.studies.notes import obstacles

DIFFERENCES = 4  # that a sentence names
KINDS = ("variations", "control", "yardstick")
NAMES = {"map_50": "AP50", "map": "AP", "count_mae": "count MAE"}


def verdict(rows: Sequence[Row], contrasts: Sequence[Contrast]) -> list[str]:
    """A sober sentence or two per condition: against none, against controls, and what more real data brings."""
    if not rows:
        return ["No finished cell: there is nothing to compare."]
    prefix = prefixes(rows)
    held = {id(contrast.new) for contrast in contrasts if contrast.kind == "variations"}
    sentences = [
        f"{prefix(row)}{_named(row)}: AP50 {percent(row.ap50.mean)}, count MAE {count(row.count_mae.mean)}. "
        f"No finished run without variations to hold it against{_because(rows, row)}."
        for row in rows
        if row.variations and id(row) not in held
    ]
    # What the study is about comes before what it is held against.
    for contrast in sorted(
        contrasts, key=lambda contrast: (KINDS.index(contrast.kind), contrast.new.generator_name in CONTROLS)
    ):
        new, old = contrast.new, contrast.old
        if contrast.kind == "variations":
            what = _named(new)
        elif contrast.kind == "control":
            what = f"{_named(new)} against as many of {old.generator}"
        else:
            sizes = f"{new.split} with {new.real_images:g} instead of {old.split} with {old.real_images:g} real images"
            amount = "twice the real data" if new.real_images == 2 * old.real_images else "more real data"
            what = f"Yardstick, {amount} ({sizes}; no variations)"
        sentences.append(f"{prefix(new)}{what}: {_movement(contrast)}")
    if not sentences:
        figures = "; ".join(
            f"{prefix(row)}{row.split}: AP50 {percent(row.ap50.mean)}, count MAE {count(row.count_mae.mean)}"
            for row in rows
        )
        return [f"No finished cell with variations. Without variations, {figures}."]
    return sentences


def _because(rows: Sequence[Row], row: Row) -> str:
    """`: those there are differ in detector.weights (null there, 1f2e3d4c here)`."""
    found = [f"{key} ({theirs} there, {own} here)" for key, (theirs, own) in obstacles(rows, row).items()]
    more = f" and {len(found) - DIFFERENCES} more" if len(found) > DIFFERENCES else ""
    return f": those there are differ in {', '.join(found[:DIFFERENCES])}{more}" if found else ""


def _named(row: Row) -> str:
    plural = "" if row.variations == 1 else "s"
    return f"{row.split}, {row.variations} variation{plural} ({row.generator})"


def _movement(contrast: Contrast) -> str:
    """`AP50 41.2 -> 43.0 (+1.8, better; 95 % interval +0.2 to +3.4), AP …`: means over the seeds compared."""
    parts = []
    for figure, name in NAMES.items():
        found, lower_is_better = contrast.differences[figure], figure == "count_mae"
        form = count if figure == "count_mae" else percent
        old, new = (getattr(row, FIELDS[figure]) for row in (contrast.old, contrast.new))
        shared = {seed for seed, _ in old.by_seed} & {seed for seed, _ in new.by_seed}
        shared &= set(paired_seeds(contrast.new, contrast.old))
        if found.pairs:
            old, new = (Estimate(tuple(p for p in e.by_seed if p[0] in shared)) for e in (old, new))
        step = form(found.mean, signed=True)
        if step != "-" and float(step):
            step += ", better" if (found.mean < 0) == lower_is_better else ", worse"
        else:
            step = "unknown" if step == "-" else "no change"
        parts.append(f"{name} {form(old.mean)} -> {form(new.mean)} ({step}{_range(found, form)})")
    return f"{', '.join(parts)}. {_certainty(contrast)}"


def _range(found: Difference, form: Callable[..., str]) -> str:
    if found.interval is not None:
        return f"; 95 % interval {form(found.interval.low, signed=True)} to {form(found.interval.high, signed=True)}"
    if found.pairs > 1:
        return f"; {form(found.low, signed=True)} to {form(found.high, signed=True)} over seeds"
    return ""


def _certainty(contrast: Contrast) -> str:
    pairs = max(found.pairs for found in contrast.differences.values())
    if pairs < LEAST_PAIRS:
        runs = {0: "No seed in common", 1: "One seed"}.get(pairs, f"{pairs} paired seeds")
        return f"{runs}: not enough runs to tell chance from effect."
    said = [f"{pairs} paired seeds."]
    for figure, name in NAMES.items():
        found = contrast.differences[figure]
        if math.isnan(found.p_holm):
            continue
        if not found.could_be_established:
            said.append(
                f"{name}: p {_p(found.p)} by itself; {found.family} such comparisons in one table need "
                f"{found.pairs_needed} seeds before any can be called significant."
            )
            continue
        among = f" ({_p(found.p_holm)} among {found.family})" if found.family > 1 else ""
        said.append(f"{name}: p {_p(found.p)}{among}, {'established' if found.established else 'not established'}.")
    return " ".join(said)


def _p(value: float) -> str:
    return f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


def percent(value: float, *, signed: bool = False) -> str:
    """A share in percent, one decimal; `-` where it is not known."""
    return number(100 * value, 1, signed)


def count(value: float, *, signed: bool = False) -> str:
    """A number of objects, two decimals."""
    return number(value, 2, signed)


def number(value: float, decimals: int, signed: bool) -> str:
    """A number with so many decimals, never -0; `-` where it is not known."""
    if not math.isfinite(value):
        return "-"
    text = f"{value:+.{decimals}f}" if signed else f"{value:.{decimals}f}"
    return text.replace("-", "+" if signed else "") if float(text) == 0 else text
