"""The comparison of a study: table, sentences, and one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import csv
import io
import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import jinja2
import numpy as np

from boxtwin.datasets.images import read_image, write_bytes_atomically
from boxtwin.studies.conditions import (
    FINISHED,
    Cell,
    Estimate,
    Row,
    condition_table,
    difference,
    prefixes,
)
from boxtwin.studies.curves import CURVES, curve_svg, plot_curves

__all__ = ["Cell", "Row", "condition_table", "plot_curves", "text_table", "verdict", "write_csv", "write_report"]

# With n paired seeds the smallest two-sided p of a sign or permutation test is 2 / 2^n: 0.06 for 5 pairs, 0.03 for 6.
ENOUGH_PAIRS = 6
MAX_EXAMPLES = 4
EXAMPLE_WIDTH = 1000  # pixels: boxes stay readable on a wide screen, and the report stays below some megabytes


def verdict(rows: Sequence[Row]) -> list[str]:
    """What the rows say, one sober sentence or two per condition, and no more certainty than the runs carry."""
    if not rows:
        return ["No finished cell: there is nothing to compare."]
    prefix = prefixes(rows)
    sentences = []
    for row in rows:
        if not row.variations:
            continue
        what = f"{prefix(row)}{row.split}, {_plural(row.variations, 'variation')} ({row.generator})"
        baseline = _baseline(rows, row)
        if baseline is None:
            sentences.append(
                f"{what}: AP50 {_percent(row.ap50.mean)}, count MAE {_count(row.count_mae.mean)}. "
                "No finished run without variations to hold it against."
            )
        else:
            sentences.append(f"{what}: {_movement(baseline, row)}")
    for fewer, more in _yardsticks(rows):
        sizes = (
            f"{more.split} with {more.real_images:g} instead of {fewer.split} with {fewer.real_images:g} real images"
        )
        amount = "twice the real data" if more.real_images == 2 * fewer.real_images else "more real data"
        sentences.append(f"{prefix(more)}Yardstick, {amount} ({sizes}; no variations): {_movement(fewer, more)}")
    if not sentences:
        figures = "; ".join(
            f"{prefix(row)}{row.split}: AP50 {_percent(row.ap50.mean)}, count MAE {_count(row.count_mae.mean)}"
            for row in rows
        )
        return [f"No finished cell with variations. Without variations, {figures}."]
    return sentences


def _movement(old: Row, new: Row) -> str:
    """`AP50 41.2 -> 43.0 (+1.8), count MAE 1.15 -> 1.47 (+0.32, worse). …`: both means over the seeds compared."""
    parts, pairs = [], 0
    for name, before, after, form, lower_is_better in (
        ("AP50", old.ap50, new.ap50, _percent, False),
        ("count MAE", old.count_mae, new.count_mae, _count, True),
    ):
        change = difference(after, before)
        shared = {seed for seed, _ in before.by_seed} & {seed for seed, _ in after.by_seed}
        if change.pairs:
            before, after = (Estimate(tuple(p for p in e.by_seed if p[0] in shared)) for e in (before, after))
        step = form(change.mean, signed=True)
        if step != "-" and float(step):
            step += ", better" if (change.mean < 0) == lower_is_better else ", worse"
        else:
            step = "unknown" if step == "-" else "no change"
        if change.pairs > 1:
            step += f"; {form(change.low, signed=True)} to {form(change.high, signed=True)} over seeds"
        parts.append(f"{name} {form(before.mean)} -> {form(after.mean)} ({step})")
        pairs = max(pairs, change.pairs)
    return f"{', '.join(parts)}. {_certainty(pairs)}"


def _certainty(pairs: int) -> str:
    if pairs >= ENOUGH_PAIRS:
        return f"{pairs} paired seeds."
    runs = {0: "No seed in common", 1: "One seed"}.get(pairs, f"{pairs} paired seeds")
    return f"{runs}: not enough runs to tell chance from effect."


def _baseline(rows: Sequence[Row], row: Row) -> Row | None:
    same = (r for r in rows if not r.variations and r.split == row.split and r.condition == row.condition)
    return next(same, None)


def _yardsticks(rows: Sequence[Row]) -> list[tuple[Row, Row]]:
    """Neighbouring sizes of real data among the rows without variations, smaller first."""
    plain = sorted(
        (row for row in rows if not row.variations and math.isfinite(row.real_images)),
        key=lambda row: (row.condition, row.real_images),
    )
    return [
        (fewer, more)
        for fewer, more in itertools.pairwise(plain)
        if fewer.condition == more.condition and fewer.real_images < more.real_images
    ]


def _plural(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _percent(value: float, *, signed: bool = False) -> str:
    return _number(100 * value, 1, signed)


def _count(value: float, *, signed: bool = False) -> str:
    return _number(value, 2, signed)


def _number(value: float, decimals: int, signed: bool) -> str:
    if not math.isfinite(value):
        return "-"
    text = f"{value:+.{decimals}f}" if signed else f"{value:.{decimals}f}"
    return text.replace("-", "+" if signed else "") if float(text) == 0 else text


def table_columns(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Headings and formatted entries; AP in percent, ranges in brackets are least and greatest over seeds."""
    varied = [part for part in ("dataset", "detector", "steps", "setting") if len({getattr(r, part) for r in rows}) > 1]
    headings = [
        *varied,
        "split",
        "variations",
        "generator",
        "seeds",
        "AP",
        "AP50",
        "vs x0",
        "count MAE",
        "vs x0",
        "bias",
    ]
    headings += ["real", "synthetic", "minutes"]
    body = []
    for row in rows:
        changes = (row.ap50_change, _percent), (row.count_mae_change, _count)
        ap50_change, mae_change = ("" if c is None else form(c.mean, signed=True) for c, form in changes)
        body.append(
            [
                *(str(getattr(row, part)) for part in varied),
                row.split,
                str(row.variations),
                row.generator,
                str(len(row.seeds)),
                _ranged(row.ap, _percent),
                _ranged(row.ap50, _percent),
                ap50_change,
                _ranged(row.count_mae, _count),
                mae_change,
                _count(row.count_bias.mean, signed=True),
                _number(row.real_images, 0, False),
                _number(row.synthetic_images, 0, False),
                _number(row.minutes, 1, False),
            ]
        )
    return headings, body


def _ranged(estimate: Estimate, form: Callable[[float], str]) -> str:
    if len(estimate.by_seed) < 2:
        return form(estimate.mean)
    return f"{form(estimate.mean)} [{form(estimate.low)}, {form(estimate.high)}]"


def text_table(rows: Sequence[Row]) -> str:
    """The table in plain text, columns aligned; words to the left, numbers to the right."""
    headings, body = table_columns(rows)
    lines = [headings, *body]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headings))]
    words = {"dataset", "detector", "setting", "split", "generator"}
    return "\n".join(
        "  ".join(
            entry.ljust(width) if heading in words else entry.rjust(width)
            for entry, width, heading in zip(line, widths, headings, strict=True)
        ).rstrip()
        for line in lines
    )


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """One line per condition, unrounded; AP in [0, 1] as in MLflow. Empty: not known."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    plain = ("dataset", "detector", "setting", "steps", "split", "generator", "variations")
    sizes = ("real_images", "synthetic_images", "minutes")
    estimates = {"map": "ap", "map_50": "ap50", "count_mae": "count_mae", "count_bias": "count_bias"}
    changes = {"map": "ap_change", "map_50": "ap50_change", "count_mae": "count_mae_change"}
    header = [*plain, "seeds", *sizes]
    header += [f"{name}_{part}" for name in estimates for part in ("mean", "min", "max")]
    header += [f"{name}_change{part}" for name in changes for part in ("", "_min", "_max", "_pairs")]
    writer.writerow(header)
    for row in rows:
        values: list[object] = [getattr(row, name) for name in plain]
        values += [" ".join(map(str, row.seeds)), *(getattr(row, name) for name in sizes)]
        for field in estimates.values():
            estimate = getattr(row, field)
            values += [estimate.mean, estimate.low, estimate.high]
        for field in changes.values():
            change = getattr(row, field)
            values += [None] * 4 if change is None else [change.mean, change.low, change.high, change.pairs]
        writer.writerow([None if isinstance(v, float) and math.isnan(v) else v for v in values])
    write_bytes_atomically(path, text.getvalue().encode())


def write_report(cells: Sequence[Cell], folder: Path) -> Path:
    """Write ``index.html`` (self-contained), ``comparison.csv`` and ``curves.png`` into ``folder``; the HTML's path.

    Cells that failed or did not finish are listed; examples are taken from ``overlays.png`` in the cells' folders.
    """
    rows = condition_table(cells)
    write_csv(rows, folder / "comparison.csv")
    plot_curves(rows, folder / "curves.png")
    headings, body = table_columns(rows)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    page = environment.get_template("report.html").render(
        title=", ".join(sorted({cell.study for cell in cells})) or "no study",
        facts=_facts(rows),
        verdict=verdict(rows),
        curves=[(_data_uri("svg+xml", curve_svg(rows, m)), _curve_text(rows, m)) for m in CURVES] if rows else [],
        headings=headings,
        body=body,
        several_settings=len({row.condition for row in rows}) > 1,
        examples=_examples(cells),
        unfinished=[cell for cell in cells if cell.status != FINISHED],
        cells=sorted(cells, key=lambda cell: (cell.name, cell.run_id)),
    )
    path = folder / "index.html"
    write_bytes_atomically(path, page.encode())
    return path


def _facts(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    parts = [("data set", "dataset"), ("detector", "detector"), ("optimiser steps", "steps")]
    said = [f"{word} {', '.join(str(v) for v in sorted({getattr(r, field) for r in rows}))}" for word, field in parts]
    seeds = sorted({seed for row in rows for seed in row.seeds})
    return f"{'; '.join(said)}; {'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}."


def _curve_text(rows: Sequence[Row], measure: str) -> str:
    name, form = {"ap50": ("AP50 in percent", _percent), "count_mae": ("Count MAE", _count)}[measure]
    prefix = prefixes(rows)
    points = [f"{prefix(r)}{r.split} x{r.variations} {r.generator} {form(getattr(r, measure).mean)}" for r in rows]
    return f"{name} against variations per real image: {'; '.join(points)}."


def _examples(cells: Sequence[Cell]) -> list[tuple[str, str]]:
    """Per split the fewest and the most variations, first seed: pictures as JPEG data URIs, with their captions."""
    pictured = [
        cell for cell in cells if cell.status == FINISHED and (Path(cell.output_dir) / "overlays.png").is_file()
    ]
    chosen: dict[str, Cell] = {}
    for split in sorted({cell.split for cell in pictured}):
        ordered = sorted((c for c in pictured if c.split == split), key=lambda c: (c.variations, c.seed, c.generator))
        most = [cell for cell in ordered if cell.variations == ordered[-1].variations]
        chosen |= {cell.run_id: cell for cell in (ordered[0], most[0])}
    return [(_jpeg(Path(c.output_dir) / "overlays.png"), c.name) for c in list(chosen.values())[:MAX_EXAMPLES]]


def _jpeg(path: Path) -> str:
    pixels = read_image(path)
    scale = min(1.0, EXAMPLE_WIDTH / pixels.shape[1])
    size = (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale)))
    shrunk = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    stored = shrunk if shrunk.ndim == 2 else np.ascontiguousarray(shrunk[:, :, ::-1])
    done, encoded = cv2.imencode(".jpg", stored, [cv2.IMWRITE_JPEG_QUALITY, 82])  # small type is still clean at 82
    if not done:
        raise OSError(f"{path}: pixels of shape {pixels.shape} and type {pixels.dtype} cannot be written as JPEG")
    return _data_uri("jpeg", encoded.tobytes())


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
