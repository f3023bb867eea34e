"""`generate.py preview=true`: four images under each generator of a sweep, on one sheet, before hundreds are made."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from jaxtyping import Int

from boxtwin.config.launch import SWEEP_VARIABLE, task_overrides
from boxtwin.datasets.image_io import Pixels
from boxtwin.datasets.sample import Judgement, Lineage, PropagatedBox, Sample
from boxtwin.evaluation import overlays
from boxtwin.files import exclusive_lock, write_bytes_atomically
from boxtwin.labels.carry import CarryLabels
from boxtwin.run.build import Prepared
from boxtwin.run.generators import make_labels
from boxtwin.run.label_detectors import make_judge
from boxtwin.synthesis.arrays import Boxes
from boxtwin.synthesis.manifest import valid_lines
from boxtwin.synthesis.store import Library

SOURCES = 4  # rows of the sheet
SHEET, COLUMNS = "preview.png", "preview.json"  # below the folder of all stores


def preview_store(prepared: Prepared) -> Library:
    """The run's store; where detectors would label it, a store of the same pixels, whose images the run's store reuses.

    That one has the boxes that are carried over, unchecked, or none where detectors have to find them.
    """
    library = prepared.store
    method = make_labels(prepared.config, prepared.dataset, library.generator)
    if method.asks_detectors:
        if isinstance(method, CarryLabels):
            return library.relabelled({"name": "preview", "boxes": "unchecked"}, _unchecked)
        return library.relabelled({"name": "preview"}, lambda *_: Judgement(()))
    library.judge = make_judge(prepared)
    return library


def _unchecked(_: Pixels, __: Pixels, boxes: Boxes, labels: Int[np.ndarray, " n"], *___: Any) -> Judgement:
    pairs = zip(boxes.tolist(), labels.tolist(), strict=True)
    return Judgement(tuple(PropagatedBox(tuple(box), label, "kept", {}) for box, label in pairs))


def preview_sources(prepared: Prepared) -> list[Sample]:
    """The images that are shown: from the emptiest to the most crowded training image."""
    return overlays.pick_examples(prepared.split.train, SOURCES)


def draw_preview(prepared: Prepared, library: Library) -> Path:
    """Add a column with the first variation of each source in ``library`` to the sheet of this sweep; its file."""
    sources, root = preview_sources(prepared), library.root
    hydra = HydraConfig.get()
    sweep = os.environ.get(SWEEP_VARIABLE, "") if hydra.mode == RunMode.MULTIRUN else ""
    number = hydra.job.num if sweep else 0
    with exclusive_lock(root / ".preview.lock", "another process is drawing the preview; waiting for it"):
        file = root / COLUMNS
        kept = json.loads(file.read_bytes()) if sweep and file.exists() else {}
        columns = kept["columns"] if kept.get("sweep") == sweep else {}
        columns[str(number)] = _column(library, sources) | {"unchecked": library is not prepared.store}
        write_bytes_atomically(file, json.dumps({"sweep": sweep, "columns": columns}).encode())
        _draw(sources, [columns[each] for each in sorted(columns, key=int)], root / SHEET, prepared.dataset.classes)
    return root / SHEET


def _column(library: Library, sources: Sequence[Sample]) -> dict[str, Any]:
    """All that a column of the sheet shows, as JSON."""
    words = [word.removeprefix("generator.").partition("=") for word in task_overrides() if "generator." in word]
    settings = {name: value for name, _, value in words}
    if (strength := getattr(library.generator, "strength", None)) is not None:
        settings["strength"] = f"{strength:g}"
    lines, refused, cells = valid_lines(library.folder, sources), library.refused(sources), {}
    for source in sources:
        if (line := lines.get((source.name, 1))) is not None:
            boxes = [box for box in line.labels.boxes if box.decision != "dropped"]
            cells[source.name] = {
                "file": str((library.folder / line.image).absolute()),
                "sha256": line.image_sha256,
                "seed": line.seed,
                "boxes": [box.box for box in boxes],
                "labels": [box.label for box in boxes],
                "refused": line.labels.refused,
            }
        elif (source.name, 1) in refused:
            cells[source.name] = {"refused": refused[source.name, 1].reason}
    return {"generator": library.generator.name, "settings": settings, "cells": cells}


def _draw(sources: Sequence[Sample], columns: Sequence[dict[str, Any]], path: Path, classes: Sequence[str]) -> None:
    names = {name for column in columns for name in column["settings"]}
    shown = [name for name in sorted(names) if len({column["settings"].get(name) for column in columns}) > 1]
    titles, rows = [], []
    for source in sources:
        cells = [column["cells"].get(source.name, {"refused": "not made"}) for column in columns]
        rows.append([_sample(source, column["generator"], cell) for column, cell in zip(columns, cells, strict=True)])
        titles.append([cell["refused"] or _title(column, shown) for column, cell in zip(columns, cells, strict=True)])
    unchecked = any(column["unchecked"] for column in columns)
    overlays.contact_sheet(sources, rows, path, classes, columns=1 + len(columns), titles=titles, unchecked=unchecked)


def _title(column: dict[str, Any], shown: Sequence[str]) -> str:
    """The generator, its strength, and what else tells it from other columns."""
    settings = column["settings"]
    named = [name for name in dict.fromkeys(["strength", *shown]) if name in settings]
    return ", ".join([column["generator"], *(f"{name} {settings[name]}" for name in named)])


def _sample(source: Sample, generator: str, cell: dict[str, Any]) -> Sample | None:
    if "file" not in cell:
        return None
    return source.variation(
        Path(cell["file"]),
        np.array(cell["boxes"], dtype=np.float32).reshape(-1, 4),
        np.array(cell["labels"], dtype=np.int64),
        lineage=Lineage(source.name, generator, 1, cell["seed"]),
        sha256=cell["sha256"],
    )
