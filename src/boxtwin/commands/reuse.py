"""Reuse of a finished run of another study: its files and its MLflow run are copied, and nothing is trained."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlflow.entities import Run

from boxtwin.detector.checkpoint import damage
from boxtwin.errors import is_of_the_system
from boxtwin.evaluation.coco_metrics import DETECTIONS_FILE, VALIDATION_DETECTIONS_FILE
from boxtwin.evaluation.examples import EXAMPLES_FILE
from boxtwin.evaluation.resampled_ap import MATCHES_FILE, load_matches
from boxtwin.files import link_file
from boxtwin.tracking.mlflow_runs import REUSED_TAG, Store
from boxtwin.tracking.provenance import code_tags
from boxtwin.tracking.run_folders import CONFIGURATION, RESULT_FILE, SPLIT_FILE, find_folder, read_result
from boxtwin.tracking.study_names import IDENTITY_TAG

log = logging.getLogger(__name__)

# Files of a run that MLflow has too.
KEPT = (
    *(RESULT_FILE, DETECTIONS_FILE, VALIDATION_DETECTIONS_FILE, MATCHES_FILE, EXAMPLES_FILE),
    *(SPLIT_FILE, CONFIGURATION),
    *("overlays.png", "precision_recall.png", "counts.png"),
)
NEEDED = (RESULT_FILE, DETECTIONS_FILE, MATCHES_FILE)  # without which a run's metrics cannot be had again
NEVER_COPIED = {RESULT_FILE, CONFIGURATION, "train.log"}


def mend(store: Store, run_id: str, folder: Path, identities: Sequence[str]) -> list[str]:
    """Bring back files of a finished run that are gone or damaged, from MLflow; returns what is lost, in words.

    The result in the folder must have one of the run's ``identities``.
    """
    sizes = store.file_sizes(run_id)

    def has_result() -> bool:
        result = read_result(folder)
        return result is not None and result.identity in identities

    wrong = {name for name in KEPT if name in sizes and not _is_whole(folder / name, sizes[name])}
    wrong |= set() if has_result() else {RESULT_FILE}
    if wrong:
        store.fetch_files(run_id, sorted(wrong), folder)
        fetched = ", ".join(sorted(wrong & set(sizes))) or "nothing"
        log.warning("%s: missing or damaged: %s; fetched from MLflow: %s", folder, ", ".join(sorted(wrong)), fetched)
    lost = [] if has_result() else [RESULT_FILE]
    if (folder / MATCHES_FILE).exists() and not _is_readable(folder / MATCHES_FILE):
        lost.append(MATCHES_FILE)
    return [f"{folder / name} is gone or damaged" for name in lost]


def _is_whole(path: Path, size: int | None) -> bool:
    right = path.is_file() and size in (None, path.stat().st_size)
    return right and (path.name != MATCHES_FILE or _is_readable(path))


def _is_readable(path: Path) -> bool:
    """Whether a file of a run exists, is not empty, and can be read as what it is."""
    try:
        if path.name == MATCHES_FILE:
            load_matches(path)
        elif path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
        return path.stat().st_size > 0
    except Exception as error:  # whatever a reader of zip archives, arrays and JSON meets in bytes that are not theirs
        if is_of_the_system(error):
            raise
        return False


def reuse_run(
    store: Store,
    run_id: str,
    source: Run,
    output: Path,
    *,
    tracking: Path,
    result: Mapping[str, Any],
    detector: str,
) -> dict[str, float]:
    """Give a run everything of the finished run ``source``; returns its metrics.

    Files are linked from the folder of the other run where they are whole, and come from the store otherwise, which
    has all but the detector. Killed in the middle, it is done once more.

    Args:
        store: of both runs, in the folder ``tracking``.
        run_id: of the run of this study, begun.
        source: the finished MLflow run of the same identity in another study.
        output: folder of the run of this study.
        tracking: folder of the store.
        result: fields of result.json that the two runs do not share, such as the study.
        detector: name of the file that holds the trained detector.

    Raises:
        FileNotFoundError: what the other run's metrics follow from is lost; nothing has been given to the run then.
    """
    study_of_source, name = store.study_of(source), source.info.run_name
    address, identity = (source.data.tags.get(tag, "") for tag in ("boxtwin.output_dir", IDENTITY_TAG))
    folder = find_folder(address, tracking, identity)
    with tempfile.TemporaryDirectory() as temporary:
        artifacts = store.fetch_all(source, Path(temporary))
        in_folder = {file.name: file for file in sorted(folder.iterdir() if folder else ())}
        had_matches = MATCHES_FILE in in_folder or (artifacts / MATCHES_FILE).exists()
        readable = {file_name: file for file_name, file in in_folder.items() if _is_readable(file)}
        for file_name in KEPT:
            if file_name in readable and not _is_readable(artifacts / file_name):
                link_file(readable[file_name], artifacts / file_name)
        lost = [file_name for file_name in NEEDED if not _is_readable(artifacts / file_name)]
        if lost and (had_matches or lost != [MATCHES_FILE]):  # runs of older versions keep none
            raise FileNotFoundError(f"missing or damaged, in the folder of {name} and in MLflow: {', '.join(lost)}")
        recorded = read_result(artifacts)
        if recorded is None or recorded.identity not in ("", identity):
            raise FileNotFoundError(f"the {RESULT_FILE} of {name} is another run's")
        store.copy_run(source, run_id, artifacts)
        whole = DETECTIONS_FILE in in_folder
        files = {file.name: file for file in sorted(artifacts.rglob("*")) if not whole or file.name in KEPT}
        for file_name, file in (files | readable).items():
            is_kept = file.is_file() and not file_name.startswith(".") and file_name not in NEVER_COPIED
            if is_kept and not (file_name == detector and damage(file)):
                link_file(file, output / file_name)
        if not (output / detector).exists():
            where = address or "its folder"
            log.warning("%s holds no whole %s any more: this run has the metrics, but no detector", where, detector)
        reused_from = {"study": study_of_source, "run_id": str(source.info.run_id)}
        store.log_files(run_id, [replace(recorded, reused_from=reused_from, **result).write(output)])
    store.tag(run_id, code_tags(source.data.tags) | {REUSED_TAG: f"{study_of_source}/{source.info.run_id}"})
    return dict(source.data.metrics)
