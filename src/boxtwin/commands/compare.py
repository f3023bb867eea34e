"""Reading the cells of a study back from MLflow, and comparing them."""

from __future__ import annotations

import hashlib
import logging
import shlex
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from omegaconf import DictConfig

from boxtwin.command_line import words_of
from boxtwin.errors import InputError
from boxtwin.evaluation.resampled_ap import MATCHES_FILE
from boxtwin.files import check_name
from boxtwin.studies.archive import runs_folder
from boxtwin.studies.class_figures import class_figures
from boxtwin.studies.comparison import Contrast, Figures, contrasts
from boxtwin.studies.condition_values import flatten
from boxtwin.studies.conditions import FINISHED, Cell, Row, condition_table
from boxtwin.studies.evidence import Evidence
from boxtwin.studies.kept import SHOWN_FILES, Kept, first_runs
from boxtwin.studies.next_runs import plan as plan_next
from boxtwin.studies.notes import notes
from boxtwin.studies.report.next_runs import text_table as plan_table
from boxtwin.studies.report.page import write_report
from boxtwin.studies.report.sections import sections
from boxtwin.studies.report.summary import answer
from boxtwin.studies.report.tables import class_text, text_table
from boxtwin.studies.report.verdict import verdict
from boxtwin.studies.summaries import conditions
from boxtwin.tracking.mlflow_runs import IDENTITY_TAG, Store
from boxtwin.tracking.mlflow_view import save_view
from boxtwin.tracking.run_folders import RESULT_FILE, find_folder, read_result

log = logging.getLogger(__name__)

# What reading a record meets in values that are missing, or are not what they should be.
BROKEN = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
EVIDENCE_FILES = (MATCHES_FILE, RESULT_FILE)
DAMAGED = "DAMAGED"  # of a finished run whose matches cannot be read, here or in MLflow; train.py runs it again


def compare_study(config: DictConfig) -> Path:
    """Print the table of a study and what it says, write its report, log both to MLflow; returns the report's path.

    With ``cells=PATH`` the runs are read from their folders there, or from an archive of them, and nothing is logged.

    Raises:
        InputError: there is no such study, or no cell in it.
    """
    if config.cells is not None:
        with runs_folder(Path(config.cells)) as runs:
            cells = cells_in(runs)
            study = config.study or cells[0].study
            check_name(study, "study")  # the files may be another's
            cells = [replace(cell, study=study) for cell in cells]
            copies = {}
            if runs != Path(config.cells):  # an archive's, which are gone afterwards
                copies = {cell.run_id: Path(cell.output_dir) for cell in cells}
                cells = [replace(cell, output_dir="") for cell in cells]
            cells, evidence = with_evidence(cells, copies)
            found = _report(cells, Figures(evidence), evidence, copies, Path(config.folder) / study, plan=config.plan)
        _print(study, cells, found)
        return found.page
    folder = Path(config.tracking.folder)
    if config.tracking.uri is None and not (folder / "mlflow.db").exists():
        raise InputError(f"there are no runs in {folder}; make some: python train.py -m split=s1,s2 variations=0,2,10")
    store = Store(uri=config.tracking.uri, folder=folder)
    study = config.study or last_study(store)
    check_name(study, "study")
    report = Path(config.folder) / study

    with tempfile.TemporaryDirectory() as temporary:
        cells = collect_cells(store, study, folder, Path(temporary))
        copies = _copies(store, cells, Path(temporary))
        cells, evidence = with_evidence(cells, copies, partial(bring_back, store, Path(temporary)))
        figures = Figures(evidence)
        found = _report(cells, figures, evidence, copies, report, plan=config.plan)
    store.write_conditions(study, conditions(found.rows, found.contrasts, figures))
    run_id = store.begin_comparison(study=study)
    try:
        store.log_files(run_id, [found.page, report / "comparison.csv", report / "curves.png"])
    except BaseException as error:
        store.end(run_id, "FAILED", f"{type(error).__name__}: {error}")
        raise
    store.end(run_id, "FINISHED")
    view = save_view(store.client, store.experiment(study))
    _print(study, cells, found, view)
    return found.page


@dataclass(frozen=True)
class _Comparison:
    """What the cells of a study say, and the page that says it at length."""

    page: Path
    rows: list[Row]
    contrasts: list[Contrast]
    sentences: list[str]


def _report(
    cells: Sequence[Cell],
    figures: Figures,
    evidence: Mapping[str, Evidence],
    copies: Mapping[str, Path],
    folder: Path,
    *,
    plan: bool,
) -> _Comparison:
    rows = condition_table(cells)
    found = contrasts(rows, figures)
    candidates = plan_next(cells, rows, found, figures) if plan and rows else None
    further = sections(cells, rows, found, figures, candidates)
    page = write_report(cells, folder, evidence, sections=further, copies=copies, figures=figures)
    said = [line for section in further for line in ("", section.title, *section.sentences)]
    if candidates:
        said += ["", plan_table(candidates)]
    short, comparisons = answer(rows, found), verdict(rows, found)
    beginning = [*short, "", "Every comparison", *comparisons] if short else comparisons
    return _Comparison(page, rows, found, [*beginning, *said])


def _print(study: str, cells: Sequence[Cell], found: _Comparison, view: str = "") -> None:
    print(f"study {study}: {len(cells)} cells\n")
    print(text_table(found.rows))
    by_class = class_text(found.rows, class_figures(found.rows, cells, {}))
    for block in (by_class, notes(cells, found.rows), found.sentences):
        if block:
            print("\n" + "\n".join(block))
    unfinished = [cell for cell in cells if cell.status != FINISHED]
    if unfinished:
        print(f"\nNot in the table: {', '.join(f'{cell.name} ({cell.status})' for cell in unfinished)}")
    if view:
        print(f"\nin MLflow (make ui): {view}")
    print(f"\nreport: {found.page}")


def _copies(store: Store, cells: Sequence[Cell], temporary: Path) -> dict[str, Path]:
    """What finished cells keep with their runs and not in their folders, which may be on another machine."""
    kept, shown, found = Kept(), {cell.run_id for cell in first_runs(cells)}, {}
    for cell in cells:
        if cell.status != FINISHED:
            continue
        names = EVIDENCE_FILES + (SHOWN_FILES if cell.run_id in shown else ())
        missing = [name for name in names if kept.find(cell, name) is None]
        if missing:
            found[cell.run_id] = temporary / cell.run_id
            store.fetch_files(cell.run_id, [*missing, *(f"store/{name}" for name in missing)], found[cell.run_id])
    return found


def with_evidence(
    cells: Sequence[Cell], copies: Mapping[str, Path], bring_back: Callable[[Cell], Evidence | None] | None = None
) -> tuple[list[Cell], dict[str, Evidence]]:
    """The cells, those whose matches are damaged as such, and the evidence of the finished ones by run id.

    Args:
        cells: of a study.
        copies: by run id, a folder that has what a cell's own folder lacks.
        bring_back: gets the evidence of a cell whose own is damaged from elsewhere.
    """
    found, judged = {}, []
    for cell in cells:
        folders = [Path(cell.output_dir)] if cell.output_dir else []
        folders += [copies[cell.run_id]] if cell.run_id in copies else []
        kept = None
        if cell.status == FINISHED:
            kept = next((kept for folder in folders if (kept := Evidence.load(folder)) is not None), None)
            if kept is None and any((folder / MATCHES_FILE).exists() for folder in folders):
                kept = None if bring_back is None else bring_back(cell)
                if kept is None:  # cells of older versions keep none
                    cell = replace(cell, status=DAMAGED)
        if kept is not None:
            found[cell.run_id] = kept
        judged.append(cell)
    return judged, found


def bring_back(store: Store, temporary: Path, cell: Cell) -> Evidence | None:
    """The evidence of a cell as MLflow has it, put in the place of the damaged files; None if it has none."""
    from boxtwin.commands.reuse import mend  # late: it reads detectors, and comparing needs no torch otherwise

    copy, folder = temporary / cell.run_id, Path(cell.output_dir)
    try:
        store.fetch_files(cell.run_id, EVIDENCE_FILES, copy)
        kept = Evidence.load(copy)
        if kept is not None and cell.output_dir:
            mend(store, cell.run_id, folder, [str((read_result(folder) or {}).get("identity"))])
    except (OSError, MlflowException) as error:  # MLflow has lost it, or the folder is read-only
        log.warning("%s: not mended from MLflow: %s", cell.output_dir or cell.name, error)
        return Evidence.load(copy)
    return kept


def cells_in(folder: Path) -> list[Cell]:
    """The finished cells whose folders lie in ``folder``: what `train.py` leaves there, or copies of it.

    Raises:
        InputError: there are none.
    """
    cells = []
    for file in sorted(folder.glob(f"*/{RESULT_FILE}")):
        try:
            cells.append(_cell_in(file))
        except BROKEN as error:
            log.warning("%s is damaged; this run is left out (%s: %s)", file, type(error).__name__, error)
    if not cells:
        raise InputError(f"cells={folder} holds no folder of a cell, with a {RESULT_FILE} in it")
    return _sorted(cells)


def _cell_in(file: Path) -> Cell:
    """A finished run, from the result.json in its folder."""
    content = read_result(file.parent)
    if content is None:
        raise ValueError("it is cut, or no JSON")
    params = content["params"]
    metrics = {name: float("nan") if value is None else value for name, value in content["metrics"].items()}
    return Cell(
        study=content["study"],
        dataset=params["dataset"],
        split=params["split"],
        variations=int(params["variations"]),
        generator=params["generator"],
        detector=params["detector"],
        seed=int(params["seed"]),
        steps=int(params["steps"]),
        setting=content.get("setting", "unknown"),  # cells of older versions do not say
        metrics=metrics,
        run_id=file.parent.name,
        minutes=metrics.get("time/total", float("nan")) / 60,
        output_dir=str(file.parent),
        status=FINISHED,
        overrides=shlex.join(words_of(content.get("overrides", ""))),
        store=content["data"].get("store") or "",
        train_size=params.get("train_size"),
        labels=params.get("labels", ""),
        validation=tuple((int(step), float(value)) for step, value in content.get("validation", ())),
        **_recorded(content),
    )


def _recorded(content: dict[str, Any]) -> dict[str, Any]:
    """What a run's result.json says of its condition, data and code; runs of older versions say less."""
    names = sorted(entry["file_name"] for entry in content.get("counts", ()))
    return {
        "condition": flatten(content.get("condition", {})),
        "data": content.get("data", {}).get("dataset_sha256") or "",
        "test": hashlib.sha256("\0".join(names).encode()).hexdigest() if names else "",
        "provenance": flatten(content.get("provenance", {})),
        "classes": {
            entry["name"]: {
                name: value
                for name, value in {**entry["metrics"], "count_threshold": entry["count_threshold"]}.items()
                if value is not None
            }
            for entry in content.get("classes", ())
        },
    }


def _sorted(cells: Sequence[Cell]) -> list[Cell]:
    return sorted(cells, key=lambda cell: (cell.split, cell.generator, cell.variations, cell.seed))


def last_study(store: Store) -> str:
    """The study whose newest run is the newest of all.

    Raises:
        InputError: the store has no runs.
    """
    for experiment in store.studies():
        if store.cells(experiment.name):
            return str(experiment.name)
    raise InputError(f"{store.uri} has no cells yet; make some: python train.py -m split=s1,s2 variations=0,2,10")


def collect_cells(store: Store, study: str, tracking: Path, temporary: Path) -> list[Cell]:
    """The cells of a study, whatever their state; runs that never got to their parameters are left out.

    Args:
        store: of the runs.
        study: its name.
        tracking: folder of the store, beside which the folders of runs lie.
        temporary: takes copies of what runs keep in the store, where their folders are gone.

    Raises:
        InputError: the study has none.
    """
    cells = []
    for run in store.cells(study):
        try:
            cells += [_cell(study, run, store, tracking, temporary)] if "split" in run.data.params else []
        except BROKEN as error:
            log.warning(
                "run %s (%s) is damaged and left out: %s: %s",
                *(run.info.run_id, run.info.run_name, type(error).__name__, error),
            )
    if not cells:
        there = ", ".join(experiment.name for experiment in store.studies()) or "none"
        raise InputError(f"no cells of a study called {study} in {store.uri}; studies there: {there}")
    return _sorted(cells)


def _cell(study: str, run: Run, store: Store, tracking: Path, temporary: Path) -> Cell:
    params, tags, metrics = run.data.params, run.data.tags, dict(run.data.metrics)
    # Whether training went on long enough is asked of cells without variations alone.
    asked = int(params["variations"]) == 0 and run.info.status == FINISHED
    folder, content = None, None
    if run.info.status == FINISHED:
        # The folder counts if what lies there is this very run's: another run may have written to the same place.
        folder = find_folder(tags.get("boxtwin.output_dir", ""), tracking, tags.get(IDENTITY_TAG, ""))
        if folder is None:
            store.fetch_files(run.info.run_id, [RESULT_FILE], temporary / run.info.run_id)
        content = read_result(folder or temporary / run.info.run_id)
        if content is None:  # then nothing says what defines it
            raise ValueError(f"its {RESULT_FILE} is gone or damaged, here and in MLflow")
    return Cell(
        study=study,
        dataset=params["dataset"],
        split=params["split"],
        variations=int(params["variations"]),
        generator=params["generator"],
        detector=params["detector"],
        seed=int(params["seed"]),
        steps=int(params["steps"]),
        setting=tags.get("boxtwin.setting", "unknown"),
        metrics=metrics,
        run_id=run.info.run_id,
        minutes=metrics.get("time/total", float("nan")) / 60,
        output_dir=str(folder or ""),
        status=run.info.status,
        overrides=shlex.join(words_of(tags.get("boxtwin.overrides", ""))),
        store=f"{params['generator']}-{tags['boxtwin.store']}" if "boxtwin.store" in tags else "",
        labels=params.get("labels", ""),
        train_size=int(params["train_size"]) if "train_size" in params else None,
        validation=tuple(store.history(run.info.run_id, "val/map")) if asked else (),
        **_recorded(content or {}),
    )
