"""A cell that another study has run already: its files and its run become this study's too, and nothing is trained."""

from __future__ import annotations

import json
import logging
import tempfile
from pathlib import Path
from typing import Any

from mlflow.entities import Run

from boxtwin.datasets.images import link_file, write_bytes_atomically
from boxtwin.tracking.mlflow_runs import IDENTITY_TAG, Store
from boxtwin.tracking.provenance import code_tags
from boxtwin.tracking.run_folders import find_folder

log = logging.getLogger(__name__)

OWN = {"result.json", "config.yaml", "train.log"}  # what says whose a cell is, and what Hydra writes


def take_over(
    store: Store,
    run_id: str,
    source: Run,
    output: Path,
    *,
    tracking: Path,
    condition: dict[str, Any],
    study: str,
    overrides: list[str],
    detector: str,
) -> dict[str, float]:
    """Give a run everything of the finished run ``source``; returns its metrics.

    Files are linked from the folder of the other cell where it is there, and come from the store otherwise, which has
    all but the detector. Killed in the middle, it is done once more.

    Args:
        store: of both runs.
        run_id: of the cell of this study, begun.
        source: the finished run of the same cell in another study.
        output: folder of the cell of this study.
        tracking: folder of the MLflow store.
        condition: all that defines the cell, which results of older versions do not say.
        study: this study's name.
        overrides: what was typed for the cell of this study.
        detector: name of the file that holds the trained detector.
    """
    origin = store.study_of(source)
    recorded, identity = (source.data.tags.get(tag, "") for tag in ("boxtwin.output_dir", IDENTITY_TAG))
    folder = find_folder(recorded, tracking, identity)
    with tempfile.TemporaryDirectory() as temporary:
        artifacts = store.copy_run(source, run_id, Path(temporary))
        whole = folder is not None and (folder / "detections.json").exists()
        for file in sorted(folder.iterdir() if folder and whole else artifacts.rglob("*")):
            if file.is_file() and not file.name.startswith(".") and file.name not in OWN:
                link_file(file, output / file.name)
        result: dict[str, Any] = json.loads((artifacts / "result.json").read_text())
        taken_from = {"study": origin, "run_id": str(source.info.run_id)}
        result |= {"study": study, "overrides": overrides, "condition": condition, "taken_over_from": taken_from}
        if not (output / detector).exists():
            log.warning("%s is not there any more: this cell has its figures, but no %s", recorded, detector)
        write_bytes_atomically(output / "result.json", json.dumps(result, indent=1).encode())
        store.log_files(run_id, [output / "result.json"])
    store.tag(run_id, code_tags(source.data.tags) | {"boxtwin.taken_over_from": f"{origin}/{source.info.run_id}"})
    return dict(source.data.metrics)
