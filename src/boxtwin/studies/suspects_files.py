"""Suspects as files: a table, the COCO file with a list of them, and the same with the suggestions applied.

The annotations of the data set are copied as they are, with all that a tool has written to them. What is not suspected,
and in the first file everything, stays as it was.
"""

from __future__ import annotations

import copy
import csv
import io
import json
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from boxtwin.boxes import Box, xyxy_to_xywh
from boxtwin.datasets.coco_json import load_json, whole
from boxtwin.datasets.sample import Sample
from boxtwin.files import write_bytes_atomically
from boxtwin.studies.suspects import APPLIED_FROM, LIST_FILE, MARKED_FILE, SUGGESTED_FILE, TRAINING, Suspect

COLUMNS = (
    *("rank", "score", "kind", "side", "file_name", "image_id", "annotation_id", "class", "x", "y", "width", "height"),
    *("suggested_class", "suggested_x", "suggested_y", "suggested_width", "suggested_height", "votes", "runs"),
)


def write_suspects(
    folder: Path,
    suspects: Sequence[Suspect],
    *,
    annotations: Path,
    samples: Mapping[str, Sample],
    classes: Sequence[str],
    category_ids: Sequence[int],
    sides: Mapping[str, str],
) -> None:
    """Write `LIST_FILE`, `MARKED_FILE` and `SUGGESTED_FILE`; ``samples`` and ``sides`` are by image name.

    Suggestions for training images are not applied: they are of one detector, and change nothing that is scored. Each
    image has ``path``, its file as seen from the working folder, and how it is read, so that `review.py export=` finds
    it from another folder. In `MARKED_FILE` an image has its own ``suspects`` as text, which export hands on to tools.
    """
    content = _with_paths(load_json(annotations), samples)
    found = [() if each.index is None else samples[each.name].annotations[each.index] for each in suspects]
    lines: list[dict[str, Any]] = [
        {
            "rank": rank,
            "score": round(each.score, 4),
            "kind": each.kind,
            "side": sides[each.name],
            "file_name": each.name,
            "image_id": each.image_id,
            "annotation_id": ids[0] if ids else None,
            "class": None if each.label is None else classes[each.label],
            "suggested_class": None if each.suggested_label is None else classes[each.suggested_label],
            "votes": each.votes,
            "runs": each.runs,
        }
        | {**_sides("", each.box), **_sides("suggested_", each.suggested)}
        for rank, (each, ids) in enumerate(zip(suspects, found, strict=True), start=1)
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    write_bytes_atomically(folder / LIST_FILE, text.getvalue().encode())
    marked = {**content, "images": _with_suspects(content["images"], suspects), "suspects": lines}
    write_bytes_atomically(folder / MARKED_FILE, json.dumps(marked, indent=1).encode())
    scored = [place for place, each in enumerate(suspects) if sides[each.name] != TRAINING]
    applied = _applied(content, [suspects[k] for k in scored], [found[k] for k in scored], category_ids)
    write_bytes_atomically(folder / SUGGESTED_FILE, json.dumps(applied, indent=1).encode())


def _with_paths(content: dict[str, Any], samples: Mapping[str, Sample]) -> dict[str, Any]:
    """The content of a COCO file whose images say where their files are."""
    known = {sample.image_id: sample for sample in samples.values()}

    def of(entry: Mapping[str, Any]) -> dict[str, Any]:
        if (sample := known.get(entry["id"])) is None:
            return {}
        return {"path": Path(os.path.relpath(sample.path)).as_posix(), **sample.reading.stated()}

    return {**content, "images": [{**entry, **of(entry)} for entry in content["images"]]}


def _with_suspects(images: Sequence[Mapping[str, Any]], suspects: Sequence[Suspect]) -> list[dict[str, Any]]:
    """Images of a COCO file with their suspects, such as ``0.93 missing, 0.41 spurious``."""
    texts: dict[int, list[str]] = defaultdict(list)
    for each in sorted(suspects, key=lambda suspect: -suspect.score):
        texts[each.image_id].append(f"{each.score:.2f} {each.kind}")
    return [
        {**entry, **({"suspects": ", ".join(found)} if (found := texts.get(entry["id"])) else {})} for entry in images
    ]


def _applied(
    content: Mapping[str, Any],
    suspects: Sequence[Suspect],
    found: Sequence[tuple[int, ...]],
    category_ids: Sequence[int],
) -> dict[str, Any]:
    """The content of a COCO file with the suggestions of the better suspects carried out.

    ``found`` are the annotations of each label: several where the data set was read with ``on_duplicate_box=merge``.
    """
    entries = {entry["id"]: copy.deepcopy(entry) for entry in content["annotations"]}
    number = max((whole(entry["id"]) or 0 for entry in content["annotations"]), default=0)
    for suspect, ids in zip(suspects, found, strict=True):
        if suspect.score < APPLIED_FROM:
            continue
        new: dict[str, Any] = {}
        if suspect.suggested is not None and suspect.suggested_label is not None:
            bbox = _xywh(suspect.suggested)
            new = {"bbox": bbox, "category_id": category_ids[suspect.suggested_label]}
            new |= {"area": round(bbox[2] * bbox[3], 2)}
        if suspect.kind == "missing":
            number += 1
            entries[number] = {"id": number, "image_id": suspect.image_id, "iscrowd": 0, **new}
        elif suspect.kind == "wrong class":
            for one in ids:
                entries[one]["category_id"] = new["category_id"]
        else:
            moved = ids[:1] if suspect.kind == "badly placed" else ()
            for one in moved:
                entries[one].pop("segmentation", None)  # it is that of the other place
                entries[one].update(new)
            for one in ids[len(moved) :]:
                entries.pop(one)
    note = (
        f"Suggestions of boxtwin with a score of {APPLIED_FROM} or more are applied in validation and test images; no "
        "person has confirmed them."
    )
    info = content.get("info") if isinstance(content.get("info"), dict) else {}
    return {**content, "info": {**(info or {}), "note": note}, "annotations": list(entries.values())}


def _sides(prefix: str, box: Box | None) -> dict[str, float]:
    names = ("x", "y", "width", "height")
    return {} if box is None else {prefix + name: value for name, value in zip(names, _xywh(box), strict=True)}


def _xywh(box: Box) -> list[float]:
    rounded: list[float] = xyxy_to_xywh(np.array(box)).round(2).tolist()
    return rounded
