"""The comparison of a study as one HTML file that needs nothing else, beside its table as CSV and its curves as PNG."""

from __future__ import annotations

import base64
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import jinja2
import numpy as np

from boxtwin.command_line import command_line, relative, setting
from boxtwin.datasets.image_io import read_image
from boxtwin.files import write_bytes_atomically
from boxtwin.studies.conditions import Row
from boxtwin.studies.costs import unattributed
from boxtwin.studies.report.cards import store_cards
from boxtwin.studies.report.gallery import galleries
from boxtwin.studies.report.notes import notes
from boxtwin.studies.report.plots import CURVES, curve_figure, plot_curves
from boxtwin.studies.report.sections import Section
from boxtwin.studies.report.summary import answer, verdict
from boxtwin.studies.report.tables import (
    Table,
    class_lines,
    cost_table,
    count_table,
    page_table,
    slice_tables,
    write_csv,
)
from boxtwin.studies.runs import FINISHED, Cell
from boxtwin.studies.slices import LEAST_IMAGES, RESAMPLES, count_errors, slicings
from boxtwin.studies.study import Study

CARD_WIDTH = 1100  # pixels: small type is still read on a wide screen, and the report stays below some megabytes


def write_report(study: Study, folder: Path, sections: Sequence[Section] = ()) -> Path:
    """Write ``index.html`` (self-contained), ``comparison.csv`` and ``curves.png`` into ``folder``; the HTML's path.

    What runs do not keep is left out; runs that failed or did not finish are listed.

    Args:
        study: whose runs are compared.
        folder: of the report.
        sections: more that is known of the study; they stand after the table.
    """
    cells, rows, found = study.cells, study.rows, study.contrasts
    write_csv(rows, folder / "comparison.csv", found, study.by_class)
    class_headings, class_groups = class_lines(rows, study.by_class)
    plot_curves(rows, folder / "curves.png")
    short, comparisons, remarks = answer(rows, found), verdict(rows, found), notes(cells, rows)
    headings, body = page_table(rows, found)
    curves = Section("Curves", (), tuple(curve_figure(rows, measure) for measure in CURVES) if rows else ())
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["figure_uri"] = lambda figure: _data_uri("svg+xml", figure.svg.encode())
    page = environment.get_template("page.html").render(
        title=", ".join(sorted({cell.study for cell in cells})) or "no study",
        facts=_facts(rows),
        answer=short or comparisons,
        curves=curves,
        sections=[
            *([Section("Every comparison", tuple(comparisons), ())] if short else ()),
            *([Section("Notes on the runs", tuple(remarks), ())] if remarks else ()),
            *sections,
        ],
        table=Table("", "", headings, (("", tuple(body)),) if body else ()),
        classes=Table("", "", class_headings, tuple(class_groups)),
        more_classes=len(study.by_class) - len(class_groups),
        several_settings=len({row.condition for row in rows}) > 1,
        cost=cost_table(rows, cells, found),
        made_by=[f"{name}: {seconds:.0f} s" for name, seconds in unattributed(cells)],
        slices=slice_tables(rows, slicings(rows, study.evidence)),
        least_images=LEAST_IMAGES,
        slice_resamples=RESAMPLES,
        counts=[count_table(rows, each) for each in count_errors(rows, study.evidence)],
        galleries=galleries(cells, study.kept),
        stores=[
            (store, [(card, _jpeg(card.picture) if card.picture else None) for card in store.cards])
            for store in store_cards(cells, study.kept)
        ],
        unfinished=[cell for cell in cells if cell.status != FINISHED],
        cells=sorted(cells, key=lambda cell: (cell.name, cell.run_id)),
        folder_of=lambda cell: relative(Path(cell.output_dir)) if cell.output_dir else "",
        commands=_commands(cells),
    )
    path = folder / "index.html"
    write_bytes_atomically(path, page.encode())
    return path


def command_of(cell: Cell) -> tuple[str, bool]:
    """The command that makes a run; and whether it is what was typed, not put together from the few parameters."""
    if cell.overrides:
        return command_line("train.py", shlex.split(cell.overrides)), True
    parts = [
        *(setting(key, getattr(cell, key)) for key in ("study", "dataset", "split", "variations")),
        *([setting("generator", cell.generator)] if cell.variations else []),
        *(setting("detector", cell.detector), setting("seed", cell.seed), setting("trainer.steps", cell.steps)),
    ]
    return command_line("train.py", parts), False


def _commands(cells: Sequence[Cell]) -> list[tuple[str, bool]]:
    """What makes the finished runs and the page again."""
    finished = sorted((cell for cell in cells if cell.status == FINISHED), key=lambda cell: (cell.name, cell.run_id))
    studies = sorted({cell.study for cell in finished})
    compared = [(command_line("compare.py", [setting("study", study)]), True) for study in studies]
    return [*(command_of(cell) for cell in finished), *compared]


def _facts(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    parts = [("data set", "dataset"), ("detector", "detector"), ("optimiser steps", "steps")]
    said = [f"{word} {', '.join(str(v) for v in sorted({getattr(r, field) for r in rows}))}" for word, field in parts]
    seeds = sorted({seed for row in rows for seed in row.seeds})
    return f"{'; '.join(said)}; {'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}."


def _jpeg(path: Path) -> str:
    pixels: Any = read_image(path)
    scale = min(1.0, CARD_WIDTH / pixels.shape[1])
    size = (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale)))
    shrunk = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    stored = shrunk if shrunk.ndim == 2 else np.ascontiguousarray(shrunk[:, :, ::-1])
    done, encoded = cv2.imencode(".jpg", stored, [cv2.IMWRITE_JPEG_QUALITY, 82])  # small type is still clean at 82
    if not done:
        raise OSError(f"{path}: pixels of shape {pixels.shape} and type {pixels.dtype} cannot be written as JPEG")
    return _data_uri("jpeg", encoded.tobytes())


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
