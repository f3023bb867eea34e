"""The comparison of a study: table, sentences, and one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import cv2
import jinja2
import numpy as np

from boxtwin.datasets.images import read_image, write_bytes_atomically
from boxtwin.studies.comparison import Figures, contrasts
from boxtwin.studies.conditions import (
    FINISHED,
    Cell,
    Estimate,
    Row,
    condition_table,
    prefixes,
)
from boxtwin.studies.curves import CURVES, curve_svg, plot_curves
from boxtwin.studies.evidence import Evidence
from boxtwin.studies.verdict import count, number, percent, verdict

__all__ = ["Cell", "Row", "condition_table", "plot_curves", "text_table", "write_csv", "write_report"]

MAX_EXAMPLES = 4
EXAMPLE_WIDTH = 1000  # pixels: boxes stay readable on a wide screen, and the report stays below some megabytes


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
        changes = (row.ap50_change, percent), (row.count_mae_change, count)
        ap50_change, mae_change = ("" if c is None else form(c.mean, signed=True) for c, form in changes)
        body.append(
            [
                *(str(getattr(row, part)) for part in varied),
                row.split,
                str(row.variations),
                row.generator,
                str(len(row.seeds)),
                _ranged(row.ap, percent),
                _ranged(row.ap50, percent),
                ap50_change,
                _ranged(row.count_mae, count),
                mae_change,
                count(row.count_bias.mean, signed=True),
                number(row.real_images, 0, False),
                number(row.synthetic_images, 0, False),
                number(row.minutes, 1, False),
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


def write_report(cells: Sequence[Cell], folder: Path, evidence: Mapping[str, Evidence] = MappingProxyType({})) -> Path:
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
        verdict=verdict(rows, contrasts(rows, Figures(evidence))),
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
    name, form = {"ap50": ("AP50 in percent", percent), "count_mae": ("Count MAE", count)}[measure]
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
