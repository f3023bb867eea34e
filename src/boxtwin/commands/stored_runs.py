"""A study in MLflow: its runs are read from there, and its conditions written beside them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from boxtwin.config.identity import short_hash
from boxtwin.errors import InputError
from boxtwin.evaluation.resampled_ap import MATCHES_FILE
from boxtwin.studies.comparison import Difference, ResampledMetrics, against_none
from boxtwin.studies.conditions import Row, condition_table
from boxtwin.studies.evidence import COMPARED, Evidence, metric_limits
from boxtwin.studies.inference import Interval, clusters_of, interval_of
from boxtwin.studies.runs import BROKEN, FINISHED, SHOWN_FILES, StudyRun, find_file, in_order, run_from
from boxtwin.studies.study import Study
from boxtwin.tracking.mlflow_runs import Condition, Store
from boxtwin.tracking.run_folders import RESULT_FILE, RunResult, find_folder, read_result
from boxtwin.tracking.study_names import IDENTITY_TAG

log = logging.getLogger(__name__)

STORE_TAG = "boxtwin.store"  # key of the variation store of a run
EVIDENCE_FILES = (MATCHES_FILE, RESULT_FILE)


def collect_runs(store: Store, study: str, tracking: Path, temporary: Path) -> list[StudyRun]:
    """The runs of a study, whatever their state; runs that never got to their parameters are left out.

    The folders of runs lie beside ``tracking``, that of the store; copies of what is gone there go to ``temporary``.

    Raises:
        InputError: the study has none (`find_study` says which studies there are).
    """
    runs = []
    for run in store.runs(study):
        try:
            runs += [_run(study, run, store, tracking, temporary)] if "split" in run.data.params else []
        except BROKEN as error:
            log.warning(
                "run %s (%s) is damaged and left out: %s: %s",
                *(run.info.run_id, run.info.run_name, type(error).__name__, error),
            )
    if not runs:
        raise InputError(f"study {study} has no runs in {store.uri} that can be read")
    return in_order(runs)


def copies_of(store: Store, runs: Sequence[StudyRun], temporary: Path, also: Sequence[str] = ()) -> dict[str, Path]:
    """What MLflow keeps of finished runs whose folders may be on another machine; ``also`` names files beyond."""
    shown, copies = {row.first.run_id for row in condition_table(runs)}, {}
    for run in (run for run in runs if run.status == FINISHED):
        names = (*EVIDENCE_FILES, *also) + (SHOWN_FILES if run.run_id in shown else ())
        missing = [name for name in names if find_file(run, name) is None]
        if missing:
            copies[run.run_id] = temporary / run.run_id
            store.fetch_files(run.run_id, [*missing, *(f"store/{name}" for name in missing)], copies[run.run_id])
    return copies


def bring_back(store: Store, temporary: Path, run: StudyRun) -> Evidence | None:
    """The evidence of a run as MLflow has it, put in the place of the damaged files; None if it has none."""
    from boxtwin.commands.reuse import mend  # late: it reads detectors, and comparing needs no torch otherwise

    copy, folder = temporary / run.run_id, Path(run.output_dir)
    try:
        store.fetch_files(run.run_id, EVIDENCE_FILES, copy)
        kept = Evidence.load(copy)
        if kept is not None and run.output_dir:
            result = read_result(folder)
            mend(store, run.run_id, folder, [result.identity if result else ""])
    except (OSError, MlflowException) as error:  # MLflow has lost it, or the folder is read-only
        log.warning("%s: not mended from MLflow: %s", run.output_dir or run.name, error)
        return Evidence.load(copy)
    return kept


def _run(study: str, run: Run, store: Store, tracking: Path, temporary: Path) -> StudyRun:
    params, tags, finished = run.data.params, run.data.tags, run.info.status == FINISHED
    folder, result = None, RunResult()
    if finished:
        # The folder counts if what lies there is this very run's: another run may have written to the same place.
        folder = find_folder(tags.get("boxtwin.output_dir", ""), tracking, tags.get(IDENTITY_TAG, ""))
        if folder is None:
            store.fetch_files(run.info.run_id, [RESULT_FILE], temporary / run.info.run_id)
        recorded = read_result(folder or temporary / run.info.run_id)
        if recorded is None:  # then nothing says what defines it
            raise ValueError(f"its {RESULT_FILE} is gone or damaged, here and in MLflow")
        result = recorded
    # Whether training went on long enough is asked of runs without variations alone.
    asked = int(params["variations"]) == 0 and finished
    result = replace(
        result,
        study=study,
        params=params,
        metrics=dict(run.data.metrics),
        setting=tags.get("boxtwin.setting", ""),
        overrides=tags.get("boxtwin.overrides", ""),
        data={**result.data, "store": f"{params['generator']}-{tags[STORE_TAG]}" if STORE_TAG in tags else None},
        validation=store.history(run.info.run_id, "val/map") if asked else (),
    )
    return run_from(result, run_id=run.info.run_id, status=run.info.status, output_dir=str(folder or ""))


def conditions(study: Study) -> list[Condition]:
    """What `Store.write_conditions` takes, for each condition of a study.

    Means are named as the metrics of runs are, so that MLflow has both in one column: ``test/map_50``, with
    ``test/map_50_low`` and ``test/map_50_high``. Differences to no variations are ``vs_x0/map_50`` with ``_low``,
    ``_high``, ``_p`` and ``_p_holm``, over ``vs_x0/pairs`` seeds.
    """
    differences = against_none(study.contrasts)
    return [_condition(row, differences.get(row.run_ids, {}), study.resampled) for row in study.rows]


def _condition(row: Row, differences: Mapping[str, Difference], resampled: ResampledMetrics) -> Condition:
    metrics = {
        "seeds": float(len(row.seeds)),
        "data/real_images": row.real_images,
        "data/synthetic_images": row.synthetic_images,
        "minutes": row.minutes,
    }
    for metric in COMPARED:
        metrics[f"test/{metric}"] = row.estimates[metric].mean
        metrics |= _ends(f"test/{metric}", _interval(row, metric, resampled))
    for metric, each in differences.items():
        name = f"vs_x0/{metric}"
        metrics |= {name: each.mean, f"{name}_p": each.p, f"{name}_p_holm": each.p_holm}
        metrics |= _ends(name, each.interval) | {"vs_x0/pairs": float(each.pairs)}
    name = f"{row.split}-x{row.variations}-{row.generator}-{row.first.detector}"  # of a run, without its seed
    return Condition(
        key=f"{row.first.dataset}-{row.first.setting}-{row.first.steps}-{name}-{short_hash(dict(row.values))}",
        name=name,
        params={
            **{param: getattr(row.first, param) for param in ("dataset", "detector", "steps")},
            **{param: getattr(row, param) for param in ("split", "variations", "generator")},
        },
        metrics=metrics,
        tags={"boxtwin.setting": row.first.setting, "boxtwin.seeds": " ".join(map(str, row.seeds))},
    )


def _ends(name: str, interval: Interval | None) -> dict[str, float]:
    return {} if interval is None else {f"{name}_low": interval.low, f"{name}_high": interval.high}


def _interval(row: Row, metric: str, resampled: ResampledMetrics) -> Interval | None:
    """Of the mean itself, over seeds and test images; None where one seed or no evidence gives none."""
    values, images = resampled.of_row(metric, row, row.seeds), {resampled.images(run) for run in row.run_ids}
    clusters = clusters_of(list(row.pretraining_seeds.values()))
    if values is None or len(images) != 1:
        return None
    return interval_of(values, len(images.pop()), clusters, limits=metric_limits(metric))
