"""Reading the cells of a study back from MLflow, and comparing them."""

from __future__ import annotations

import logging
from pathlib import Path

from mlflow.entities import Run
from omegaconf import DictConfig

from boxtwin.errors import InputError
from boxtwin.studies.conditions import Cell, condition_table
from boxtwin.studies.report import text_table, verdict, write_report
from boxtwin.tracking.mlflow_runs import Store

log = logging.getLogger(__name__)


def compare_study(config: DictConfig) -> Path:
    """Print the table of a study and what it says, write its report, log both to MLflow; returns the report's path.

    Raises:
        InputError: there is no such study, or no cell in it.
    """
    folder = Path(config.tracking.folder)
    if config.tracking.uri is None and not (folder / "mlflow.db").exists():
        raise InputError(f"there are no runs in {folder}; make some: python train.py -m split=s1,s2 variations=0,2,10")
    store = Store(uri=config.tracking.uri, folder=folder)
    study = config.study or last_study(store)
    cells = collect_cells(store, study)
    report = Path(config.folder) / study
    page = write_report(cells, report)
    rows = condition_table(cells)
    run_id = store.begin_comparison(study=study)
    store.log_files(run_id, [page, report / "comparison.csv", report / "curves.png"])
    store.end(run_id, "FINISHED")
    print(f"study {study}: {len(cells)} cells\n")
    print(text_table(rows))
    print()
    print("\n".join(verdict(rows)))
    unfinished = [cell for cell in cells if cell.status != "FINISHED"]
    if unfinished:
        print(f"\nNot in the table: {', '.join(f'{cell.name} ({cell.status})' for cell in unfinished)}")
    print(f"\nreport: {page}")
    return page


def last_study(store: Store) -> str:
    """The study whose newest run is the newest of all.

    Raises:
        InputError: the store has no runs.
    """
    for experiment in store.studies():
        if store.cells(experiment.name):
            return str(experiment.name)
    raise InputError(f"{store.uri} has no cells yet; make some: python train.py -m split=s1,s2 variations=0,2,10")


def collect_cells(store: Store, study: str) -> list[Cell]:
    """The cells of a study, whatever their state; runs that never got to their parameters are left out.

    Raises:
        InputError: the study has none.
    """
    cells = [_cell(study, run) for run in store.cells(study) if "split" in run.data.params]
    if not cells:
        there = ", ".join(experiment.name for experiment in store.studies()) or "none"
        raise InputError(f"no cells of a study called {study} in {store.uri}; studies there: {there}")
    return sorted(cells, key=lambda cell: (cell.split, cell.generator, cell.variations, cell.seed))


def _cell(study: str, run: Run) -> Cell:
    params, tags, metrics = run.data.params, run.data.tags, dict(run.data.metrics)
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
        output_dir=tags.get("boxtwin.output_dir", ""),
        status=run.info.status,
        # A shell takes the quotes away again, and train.py puts them back.
        overrides=tags.get("boxtwin.overrides", "").replace("'", ""),
    )
