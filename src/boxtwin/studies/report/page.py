"""The comparison of a study as one HTML file that needs nothing else, beside its table as CSV and its curves as PNG."""

from __future__ import annotations

import base64
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import cv2
import jinja2
import numpy as np

from boxtwin.command_line import command_line, relative, setting
from boxtwin.datasets.image_io import read_image
from boxtwin.files import write_bytes_atomically
from boxtwin.studies.cards import store_cards
from boxtwin.studies.class_figures import class_figures
from boxtwin.studies.comparison import Contrast, Figures, contrasts
from boxtwin.studies.conditions import FINISHED, Cell, Row, condition_table
from boxtwin.studies.costs import costs, unattributed
from boxtwin.studies.evidence import Evidence
from boxtwin.studies.kept import NO_COPIES, Kept
from boxtwin.studies.notes import notes
from boxtwin.studies.report.count_errors import CountErrors, count_errors
from boxtwin.studies.report.gallery import galleries
from boxtwin.studies.report.plots import CURVES, curve_figure, plot_curves
from boxtwin.studies.report.section import Figure, Section
from boxtwin.studies.report.summary import answer
from boxtwin.studies.report.tables import (
    Entry,
    against_none,
    class_lines,
    difference_entries,
    named,
    page_table,
    table_columns,
    text_table,
    write_csv,
)
from boxtwin.studies.report.verdict import count, number, percent, verdict
from boxtwin.studies.slices import LEAST_IMAGES, RESAMPLES, SliceFigure, Slicing, slicings

__all__ = [
    "Cell",
    "Row",
    "condition_table",
    "plot_curves",
    "table_columns",
    "text_table",
    "write_csv",
    "write_report",
]

CARD_WIDTH = 1100  # pixels: small type is still read on a wide screen, and the report stays below some megabytes
SLICE_TITLES = {
    "size": "By size of the objects",
    "crowding": "By crowding",
    "scene": "By scene",
}


def write_report(
    cells: Sequence[Cell],
    folder: Path,
    evidence: Mapping[str, Evidence] = MappingProxyType({}),
    *,
    sections: Sequence[Section] = (),
    copies: Mapping[str, Path] = NO_COPIES,
    figures: Figures | None = None,
) -> Path:
    """Write ``index.html`` (self-contained), ``comparison.csv`` and ``curves.png`` into ``folder``; the HTML's path.

    What cells do not keep is left out, and the page says so where a figure is missing.

    Args:
        cells: of the study; those that failed or did not finish are listed.
        folder: of the report.
        evidence: by run id.
        sections: more that is known of the study; they stand after the table.
        copies: by run id, folders with those files of a cell that its own folder lacks.
        figures: those of ``evidence``, if some have been worked out.
    """
    rows, kept = condition_table(cells), Kept(copies)
    found = contrasts(rows, figures or Figures(evidence))
    by_class = class_figures(rows, cells, evidence)
    write_csv(rows, folder / "comparison.csv", found, by_class)
    class_headings, class_groups = class_lines(rows, by_class)
    plot_curves(rows, folder / "curves.png")
    short, comparisons, remarks = answer(rows, found), verdict(rows, found), notes(cells, rows)
    headings, body = page_table(rows, found)
    curves = Section("Curves", (), tuple(curve_figure(rows, measure) for measure in CURVES) if rows else ())
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["figure_uri"] = _figure_uri
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
        table=_Table("", "", headings, (("", tuple(body)),) if body else ()),
        classes=_Table("", "", class_headings, tuple(class_groups)),
        more_classes=len(by_class) - len(class_groups),
        several_settings=len({row.condition for row in rows}) > 1,
        cost=_cost_table(rows, cells, found),
        made_by=[f"{name}: {seconds:.0f} s" for name, seconds in unattributed(cells)],
        slices=_slice_tables(rows, slicings(rows, evidence)),
        least_images=LEAST_IMAGES,
        slice_resamples=RESAMPLES,
        counts=[_count_table(rows, each) for each in count_errors(rows, evidence)],
        galleries=galleries(cells, kept),
        stores=[
            (store, [(card, _jpeg(card.picture) if card.picture else None) for card in store.cards])
            for store in store_cards(cells, kept)
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
    """The command that makes a cell; and whether it is what was typed, not put together from the few parameters."""
    if cell.overrides:
        return command_line("train.py", shlex.split(cell.overrides)), True
    parts = [
        *(setting(key, getattr(cell, key)) for key in ("study", "dataset", "split", "variations")),
        *([setting("generator", cell.generator)] if cell.variations else []),
        *(setting("detector", cell.detector), setting("seed", cell.seed), setting("trainer.steps", cell.steps)),
    ]
    return command_line("train.py", parts), False


def _commands(cells: Sequence[Cell]) -> list[tuple[str, bool]]:
    """What makes the finished cells and the page again."""
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


@dataclass(frozen=True)
class _Table:
    """A table of the page; ``groups`` are parts of its body, each below a line of its own where it has a title."""

    title: str
    sentence: str
    headings: tuple[str, ...]
    groups: tuple[tuple[str, tuple[tuple[Entry, ...], ...]], ...]


def _cost_table(rows: Sequence[Row], cells: Sequence[Cell], found: Sequence[Contrast]) -> _Table:
    name, gains = named(rows), against_none(found)

    def known(value: float, decimals: int = 0) -> Entry:
        text = number(value, decimals, False)
        return Entry("not known" if text == "-" else text)

    lines = []
    for cost in costs(rows, cells):
        ap50, _ = difference_entries(gains.get(id(cost.row), {}).get("map_50"), percent)
        mae, _ = difference_entries(gains.get(id(cost.row), {}).get("count_mae"), count)
        lines.append(
            (
                Entry(name(cost.row)),
                *(known(value) for value in (cost.fit_seconds, cost.vary_seconds, cost.train_seconds)),
                known(cost.usd, 2),
                known(cost.label_minutes, 1),
                ap50,
                mae,
            )
        )
    headings = ("condition", "learning, s", "drawing, s", "training, s", "API, USD", "labelling, min", "AP50 vs x0")
    return _Table("", "", (*headings, "MAE vs x0"), (("", tuple(lines)),))


def _slice_tables(rows: Sequence[Row], found: Sequence[Slicing]) -> list[_Table]:
    name = named(rows)
    tables = []
    for slicing in found:
        groups = []
        for table in slicing.tables:
            part, images = table.slice, int(table.slice.images.sum())
            sizes = f"{_several(images, 'image')}, {_several(part.objects, 'object')}"
            warning = {
                (True, True): "",
                (False, True): f"; objects in {part.with_objects} of them: too few to tell for AP50",
                (True, False): "; too few images to tell",
                (False, False): "; too few to tell",
            }[part.tells_ap, part.tells_counts]
            if not part.objects:
                warning = "; AP is not defined without objects" + ("" if part.tells_counts else ", too few to tell")
            lines = tuple(
                (
                    Entry(name(row)),
                    Entry(percent(ap50.value)),
                    _slice_change(row, ap50, percent, part.tells_ap),
                    Entry(count(mae.value)),
                    _slice_change(row, mae, count, part.tells_counts),
                )
                for row, ap50, mae in table.figures
            )
            groups.append((f"{part.name}: {sizes}{warning}", lines))
        headings = ("condition", "AP50", "vs x0", "count MAE", "vs x0")
        # Scenes can be many: they are opened by whoever wants them.
        large = sum(table.slice.tells_counts for table in slicing.tables)
        sentence = f"{large} of {len(groups)} shown are large enough to tell" if slicing.kind == "scene" else ""
        tables.append(_Table(SLICE_TITLES[slicing.kind], sentence, headings, tuple(groups)))
    return tables


def _slice_change(row: Row, figure: SliceFigure, form: Callable[..., str], tells: bool) -> Entry:
    if not row.variations or not np.isfinite(figure.change):
        return Entry("")
    if not tells:
        return Entry("too few")
    detail = ""
    if figure.interval:
        detail = f"{form(figure.interval.low, signed=True)} to {form(figure.interval.high, signed=True)}"
    return Entry(form(figure.change, signed=True), detail)


def _count_table(rows: Sequence[Row], found: CountErrors) -> _Table:
    name = named(rows)
    sentence = f"{found.exact} of {found.images} test images are counted right in every run."
    if found.worst:
        sentence += (
            f" The {len(found.worst)} below hold {100 * found.share:.0f} % of all absolute error"
            if len(found.worst) > 1
            else " The one below holds all error there is"
        ) + ", the worst first."
    headings = ("image", "true", *(name(row) for row in found.rows))
    lines = tuple(
        (Entry(image.name), Entry(str(image.true)), *(Entry(f"{each:.1f}") for each in image.found))
        for image in found.worst
    )
    return _Table("", sentence, headings, (("", lines),) if lines else ())


def _several(amount: int, word: str) -> str:
    return f"{amount} {word}{'' if amount == 1 else 's'}"


def _figure_uri(figure: Figure) -> str:
    return _data_uri("svg+xml", figure.svg.encode())


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
