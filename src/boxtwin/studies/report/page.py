"""The comparison of a study as one HTML file that needs nothing else, beside its table as CSV and its curves as PNG."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2

from boxtwin.command_line import command_line, relative, setting
from boxtwin.datasets.image_io import encode, read_image
from boxtwin.evaluation.pages import data_uri
from boxtwin.files import write_bytes_atomically
from boxtwin.studies.comparison import EXTRA_IMAGES, against_none
from boxtwin.studies.primary import PRIMARY_FILE
from boxtwin.studies.relabelled import Relabelled
from boxtwin.studies.report.gallery import galleries
from boxtwin.studies.report.plots import CURVES, curve_plot, lines_of, plot_curves
from boxtwin.studies.report.sections import WORTH, Section, is_pretrained, is_treated
from boxtwin.studies.report.summary import Summary
from boxtwin.studies.report.tables import MOST_CLASSES, write_csv
from boxtwin.studies.report.words import ENVIRONMENT
from boxtwin.studies.runs import FINISHED, StudyRun
from boxtwin.studies.slices import LEAST_IMAGES, RESAMPLES, count_errors, slicings
from boxtwin.studies.study import Study, costs, unattributed

CARD_WIDTH = 1100  # pixels: small type is still read on a wide screen, and the report stays below some megabytes
MOST_LINES = 12  # of the curves against the number of variations
WORTH_FILE = "worth.svg"
REPORT_FILES = ("index.html", "comparison.csv", "curves.png", WORTH_FILE, PRIMARY_FILE)
CSV_UNDER = {False: "comparison_corrected.csv", True: "comparison_suspects.csv"}  # tables under other labels
JPEG_QUALITY = 82  # small type is still clean


def write_report(
    study: Study, summary: Summary, folder: Path, others: Sequence[Relabelled] = (), store: Sequence[str] = ()
) -> Path:
    """Write ``index.html`` (self-contained), ``comparison.csv`` and ``curves.png`` into ``folder``; the HTML's path.

    ``others`` are the same runs under other labels, whose tables are `CSV_UNDER`. ``worth.svg`` is AP50 against real
    images, where there are enough numbers of them. What runs do not keep is left out; runs that failed or did not
    finish are listed. ``store`` are the settings of `compare.py` that name the MLflow store, if it is not the usual.
    """
    runs, rows = study.runs, study.rows
    write_csv(rows, folder / "comparison.csv", study.contrasts, study.by_class)
    for other in others:
        write_csv(other.other.rows, folder / CSV_UNDER[other.suspected], other.other.contrasts, other.other.by_class)
    plot_curves(rows, folder / "curves.png")
    worth = next((section for section in summary.sections if section.title == WORTH), None)
    if worth:
        write_bytes_atomically(folder / WORTH_FILE, worth.plots[0].svg.encode())
    # More lines than can be told apart: the picture by treatment comes first, where there is one.
    first = worth if worth and len(lines_of(rows)) > MOST_LINES else None
    drawn = not first and any(map(is_treated, rows))  # against the number of variations
    curves = tuple(curve_plot(rows, metric) for metric in CURVES) if drawn else ()
    page = ENVIRONMENT.get_template("page.html").render(
        study=study,
        summary=summary,
        question=question(study),
        seeds=sorted({seed for row in rows for seed in row.seeds}),
        curves=first or Section("Curves", (), curves),
        most_classes=MOST_CLASSES,
        sections=[
            *([Section("Every comparison", tuple(summary.comparisons), ())] if summary.answer else ()),
            Section("Notes on the runs", tuple(summary.notes), ()),
            *(section for section in summary.sections if section is not first),
        ],
        others=others,
        costs=costs(rows),
        gains=against_none(study.contrasts),
        made_by=unattributed(runs),
        slices=slicings(rows, study.evidence),
        least_images=LEAST_IMAGES,
        slice_resamples=RESAMPLES,
        counts=count_errors(rows, study.evidence),
        galleries=galleries(study),
        stores=summary.stores,
        jpeg_uri=_jpeg,
        svg_uri=lambda svg: data_uri("svg+xml", svg.encode()),
        runs=sorted(runs, key=lambda run: (run.name, run.run_id)),
        folder_of=lambda run: relative(Path(run.output_dir)) if run.output_dir else "",
        commands=_commands(runs, store),
    )
    path = folder / "index.html"
    write_bytes_atomically(path, page.encode())
    return path


def question(study: Study) -> str:
    """What the title of the report asks, by what the study compares."""
    kinds = {contrast.kind for contrast in study.contrasts}
    tried = ["the variations"] if any(row.variations for row in study.rows) else []
    tried += ["the pre-training"] if any(map(is_pretrained, study.rows)) else []
    tried += [f"the {kind}" for kind in EXTRA_IMAGES if kind in kinds]
    if not tried and "positive control" in kinds:
        tried = ["more real images"]
    verb = "does" if tried == ["the pre-training"] else "do"
    return f"{verb} {' and '.join(tried)} help?" if tried else "results"


def command_of(run: StudyRun) -> tuple[str, bool]:
    """The command that makes a run; and whether it is what was typed, not put together from the few parameters."""
    if run.overrides:
        return command_line("train.py", shlex.split(run.overrides)), True
    parts = [
        *(setting(key, getattr(run, key)) for key in ("study", "dataset", "split", "variations")),
        *([setting("generator", run.generator)] if run.variations else []),
        *(setting("detector", run.detector), setting("seed", run.seed), setting("trainer.steps", run.steps)),
    ]
    return command_line("train.py", parts), False


def _commands(runs: Sequence[StudyRun], store: Sequence[str] = ()) -> list[tuple[str, bool]]:
    """What makes the finished runs and the page again."""
    finished = sorted((run for run in runs if run.status == FINISHED), key=lambda run: (run.name, run.run_id))
    studies = sorted({run.typed("study") or run.study for run in finished})  # of several, where they are compared
    together = setting("runs", [f"multirun/{study}" for study in studies])
    chosen = [setting("study", studies[0]), *store] if len(studies) == 1 else [together]
    compared = [(command_line("compare.py", chosen), True)]
    return [*(command_of(run) for run in finished), *(compared if studies else [])]


def _jpeg(path: Path) -> str:
    pixels: Any = read_image(path)
    scale = min(1.0, CARD_WIDTH / pixels.shape[1])
    size = [max(1, round(side * scale)) for side in (pixels.shape[1], pixels.shape[0])]
    shrunk = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    return data_uri("jpeg", encode(shrunk, "jpg", JPEG_QUALITY))
