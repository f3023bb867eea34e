"""Comparing the runs of a study: table, report, summary in MLflow."""

from __future__ import annotations

import logging
import shlex
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from boxtwin.command_line import setting
from boxtwin.config.compose import load_yaml
from boxtwin.config.schema import TrackingConfig
from boxtwin.errors import InputError
from boxtwin.files import check_name, check_target, lock_beside, remove_leftovers, write_bytes_atomically
from boxtwin.memory import keep_freed_blocks
from boxtwin.studies.archive import runs_folder
from boxtwin.studies.next_runs import plan
from boxtwin.studies.primary import PRIMARY_FILE, PRIMARY_TAG, PrimaryComparison, primary_comparisons
from boxtwin.studies.relabelled import NEEDED, Relabelled, relabelled
from boxtwin.studies.report.page import REPORT_FILES, write_report
from boxtwin.studies.report.summary import Summary, printed
from boxtwin.studies.runs import StudyRun, runs_in, with_evidence
from boxtwin.studies.study import Study
from boxtwin.studies.suspects import SUGGESTED_FILE, SUSPECTS_FOLDER
from boxtwin.tracking.run_folders import CONFIGURATION, SPLIT_FILE
from boxtwin.tracking.study_names import find_study

if TYPE_CHECKING:  # MLflow takes seconds
    from mlflow.entities import Run

    from boxtwin.tracking.mlflow_runs import Store

log = logging.getLogger(__name__)

NO_PRIMARY = "none"  # instead of a file of primary comparisons


def compare_study(config: DictConfig) -> Path:
    """Print the table and the answer of a study, write its report, log both to MLflow; returns the report's path.

    With ``runs=PATH``, or a list of paths, the runs are read there, and nothing is logged. Raises `InputError` if there
    is no run.
    """
    keep_freed_blocks()  # resampled AP takes and frees large arrays
    if config.runs is None:
        return _compare_stored(config)
    paths = paths_of(config.runs)
    with ExitStack() as opened:
        folders = [opened.enter_context(runs_folder(path)) for path in paths]
        runs = runs_in(*folders)
        name = config.study or "-and-".join(dict.fromkeys(run.study for run in runs))
        check_name(name, "study")  # the files may be another's
        # Files of an archive are gone afterwards: no path to them is shown.
        unpacked = {folder for folder, path in zip(folders, paths, strict=True) if folder != path}
        copies = {run.run_id: Path(run.output_dir) for run in runs if Path(run.output_dir).parent in unpacked}
        splits = {folder: kept_split(path) for folder, path in zip(folders, paths, strict=True)}
        runs = [
            replace(
                run,
                study=name,
                output_dir="" if run.run_id in copies else run.output_dir,
                overrides=with_split(with_study(run), splits.get(Path(run.output_dir).parent)),
            )
            for run in runs
        ]
        report = Path(config.folder) / name
        check_target(report, "folder")
        primary = kept_primary(config.primary, *paths, report)
        return _report(Study.of(*with_evidence(runs, copies), copies, primary), report, config)


def of_store(tracking: DictConfig) -> list[str]:
    """The words that name an MLflow store which is not the usual one."""
    usual = TrackingConfig()
    return [
        setting(f"tracking.{key}", tracking[key]) for key in ("uri", "folder") if tracking[key] != getattr(usual, key)
    ]


def paths_of(value: Any) -> list[Path]:
    """The paths of ``runs=``, which is one or a list; raises `InputError` for one that is not there."""
    paths = [Path(str(each)) for each in (value if isinstance(value, ListConfig) else [value])]
    missing = next((path for path in paths if not path.exists()), None)
    if missing is not None or not paths:
        advice = "; several folders are a list: runs=[FOLDER,FOLDER]" if "," in str(missing) else ""
        raise InputError(f"runs={missing or value}: there is no such folder or archive{advice}")
    return paths


def home_of(path: Path) -> Path:
    """The folder that holds the files about runs: the folder of the runs itself, or that of their archive."""
    return path if path.is_dir() else path.parent


def kept_split(path: Path) -> Path | None:
    """The file of the splits of a published study (benchmarks/keep_study.py) whose splits came from a file."""
    folder = home_of(path)
    settings, split = folder / CONFIGURATION, folder / SPLIT_FILE
    if not (settings.is_file() and split.is_file()):
        return None
    return None if OmegaConf.select(load_yaml(settings), "split.file") is None else split


def with_study(run: StudyRun) -> str:
    """What was typed for a run, with its study, which it shares with no other where several are compared."""
    if not run.overrides or run.typed("study") is not None:
        return run.overrides
    return shlex.join([*shlex.split(run.overrides), setting("study", run.study)])


def with_split(overrides: str, split: Path | None) -> str:
    """What was typed for a run, with the file of its split that is kept: the one that it had may be nowhere else."""
    if split is None or not overrides:
        return overrides
    words = [word for word in shlex.split(overrides) if not word.startswith("split.file=")]
    return shlex.join([*words, setting("split.file", str(split))])


def _compare_stored(config: DictConfig) -> Path:
    folder = Path(config.tracking.folder)
    name = find_study(config.study, config.tracking.uri, folder)
    # Imported here: MLflow takes seconds, and runs in folders do without.
    from boxtwin.commands.stored_runs import bring_back, collect_runs, conditions, copies_of
    from boxtwin.tracking.broken_off import ended_on_error
    from boxtwin.tracking.mlflow_runs import Store
    from boxtwin.tracking.mlflow_view import save_view

    store = Store(uri=config.tracking.uri, folder=folder)
    report = Path(config.folder) / name
    check_target(report, "folder")
    with tempfile.TemporaryDirectory() as temporary:
        runs = collect_runs(store, name, folder, Path(temporary))
        copies = copies_of(store, runs, Path(temporary), NEEDED if _other_labels(config, report) else ())
        evidence = with_evidence(runs, copies, partial(bring_back, store, Path(temporary)))
        lost = False
        if not (config.primary or (report / PRIMARY_FILE).is_file()):  # of a report that lies elsewhere
            try:
                if stored_primary(store, store.comparison(name), report):
                    log.info("the primary comparisons of the last report in MLflow are taken; primary=none drops them")
            except InputError as error:
                lost = True
                log.warning("%s. This report has none", error)
        study = Study.of(*evidence, copies, kept_primary(config.primary, report))
        page = _report(study, report, config)
    store.write_conditions(name, conditions(study))
    run_id = store.begin_comparison(study=name)
    with ended_on_error(partial(store.end, run_id), f"the comparison of study {name}"):
        kept = [report / PRIMARY_FILE] if study.primary else []
        store.log_files(run_id, [page, report / "comparison.csv", report / "curves.png", *kept])
        if not lost:
            store.tag(run_id, {PRIMARY_TAG: "true" if study.primary else "false"})
    store.end(run_id, "FINISHED")
    view = save_view(store.client, store.experiment(name))
    if not config.brief:
        print(f"in MLflow (make ui): {view}")
    return page


def stored_primary(store: Store, last: Run | None, folder: Path) -> Path | None:
    """Fetch the file of the primary comparisons of the ``last`` report of a study, if that had any, into ``folder``.

    Raises `InputError` if MLflow has lost it.
    """
    if last is None or last.data.tags.get(PRIMARY_TAG) != "true":
        return None
    store.fetch_files(last.info.run_id, [PRIMARY_FILE], folder)
    if not (folder / PRIMARY_FILE).is_file():
        raise InputError(
            "MLflow has lost the primary comparisons of the study's last report; give compare.py primary=FILE again"
        )
    return folder / PRIMARY_FILE


def kept_primary(given: str | None, *folders: Path) -> list[PrimaryComparison]:
    """The primary comparisons of the file ``given``, or of one kept in a folder; a copy is kept in the last folder.

    Before the last, archives of runs stand for the folders that they lie in. `NO_PRIMARY` instead of a file
    gives none, and removes the copy.

    Raises `InputError` if the file cannot be read, or none is given and the folders keep different ones.
    """
    if given == NO_PRIMARY:
        (folders[-1] / PRIMARY_FILE).unlink(missing_ok=True)
        return []
    *kept, report = folders
    files = [Path(given)] if given else [folder / PRIMARY_FILE for folder in (*map(home_of, kept), report)]
    files = [file for file in files if file.is_file()]
    if not files:
        if given:
            raise InputError(f"primary={given}: there is no such file")
        return []
    if len({file.read_bytes() for file in files}) > 1:
        raise InputError(f"{', '.join(map(str, files))} name different comparisons; choose one of them: primary=FILE")
    file = files[0]
    log.info("primary comparisons: %s", file)
    comparisons = primary_comparisons(OmegaConf.to_container(load_yaml(file, "primary=")), str(file))
    write_bytes_atomically(folders[-1] / PRIMARY_FILE, file.read_bytes())
    return comparisons


def _report(study: Study, folder: Path, config: DictConfig) -> Path:
    """Write the report and print a summary."""
    candidates = plan(study) if config.plan and study.rows else None
    found = (_relabelled(study, *each) for each in _other_labels(config, folder) if study.rows)
    others = [each for each in found if each is not None]
    summary = Summary.of(study, candidates)
    store = of_store(config.tracking) if config.runs is None else []
    folder.mkdir(parents=True, exist_ok=True)
    with lock_beside(folder, "writes the report"):
        for name in REPORT_FILES:
            remove_leftovers(folder, name)
        page = write_report(study, summary, folder, others, store)
    print(printed(study, summary, others, brief=config.brief))
    print(f"\nreport: {page}")
    return page


def _other_labels(config: DictConfig, report: Path) -> list[tuple[Path, bool]]:
    """Files of other labels that runs are scored on too, and whether they are those that suspects suggest."""
    suggested = report / SUSPECTS_FOLDER / SUGGESTED_FILE
    corrected = [(Path(config.annotations), False)] if config.annotations else []
    return corrected + ([(suggested, True)] if suggested.is_file() else [])


def _relabelled(study: Study, file: Path, suspected: bool) -> Relabelled | None:
    """The study under other labels; None where suggestions do not fit the study any more."""
    try:
        return relabelled(study, file, suspected=suspected)
    except InputError as error:
        if not suspected:
            raise
        log.warning("no section on suspects: %s", error)
        return None
