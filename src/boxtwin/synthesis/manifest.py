"""The lines of a store's manifest: which of them count, and what they are held against."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from boxtwin.boxes import xyxy_to_xywh
from boxtwin.datasets.images import pixels_sha256, read_image
from boxtwin.datasets.sample import Judgement, Sample

MANIFEST = "manifest.jsonl"


def whole_lines(file: Path) -> list[dict[str, Any]]:
    """All lines, oldest first; one cut short by a kill does not count."""
    if not file.exists():
        return []
    content = file.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    return [json.loads(line) for line in whole.splitlines()]


def append_line(file: Path, line: dict[str, Any]) -> None:
    """Add a line that outlives a power cut: what it names may have been paid for."""
    with file.open("ab") as lines:
        lines.write(json.dumps(line).encode() + b"\n")
        lines.flush()
        os.fsync(lines.fileno())


def labels_entry(judgement: Judgement) -> dict[str, Any]:
    """What a line says of its labels: decisions by kind, and each box with its evidence."""
    decisions = Counter(box.decision for box in judgement.boxes)
    return {
        **{decision: decisions[decision] for decision in ("kept", "shifted", "dropped", "added")},
        "refused": judgement.refused,
        **({} if judgement.minutes is None else {"minutes": judgement.minutes}),
        "boxes": [asdict(box) for box in judgement.boxes],
    }


def mend(file: Path) -> None:
    """Cut off a last line that a kill left unfinished: what is appended must start on a line of its own."""
    if not file.exists():
        return
    content = file.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(file, whole)


def valid_lines(folder: Path, sources: Iterable[Sample]) -> dict[tuple[str, int], dict[str, Any]]:
    """The lines whose image is there as recorded and whose source has not changed since, by source and variation; the
    newest one counts.
    """
    fingerprints = {source.name: fingerprint(source) for source in sources}
    newest = {(line["source"], line["variation"]): line for line in whole_lines(folder / MANIFEST)}
    return {
        key: line
        for key, line in newest.items()
        if fingerprints.get(line["source"]) == line["source_fingerprint"] and image_is_whole(folder, line)
    }


def image_is_whole(folder: Path, line: dict[str, Any]) -> bool:
    """Whether the image of a line is there, byte for byte."""
    image = folder / line["image"]
    return image.is_file() and file_sha256(image) == line["image_sha256"]


def fingerprint(sample: Sample) -> str:
    """Pixels and labels of a source in one hash: variations of either older version are not of this image."""
    total = hashlib.sha256(sample.sha256.encode())
    for array in (sample.boxes, sample.labels, sample.crowd):
        total.update(array.tobytes())
    return total.hexdigest()


def file_sha256(path: Path) -> str:
    """Of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def as_coco(
    folder: Path, lines: Iterable[dict[str, Any]], classes: Sequence[str], category_ids: Sequence[int]
) -> dict[str, list[dict[str, Any]]]:
    """What ``lines`` name and is there, as a COCO detection set; dropped boxes are left out."""
    newest = {(line["source"], line["variation"]): line for line in lines if image_is_whole(folder, line)}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, (_, line) in enumerate(sorted(newest.items()), start=1):
        pixels = read_image(folder / line["image"])
        height, width = pixels.shape[:2]
        images.append(
            {"id": image_id, "file_name": line["image"], "width": width, "height": height}
            | {key: line[key] for key in ("source", "variation", "generator", "seed")}
            # Labels that come back from a person are of these pixels, not of any others under the same name.
            | {"pixels_sha256": pixels_sha256(pixels)}
        )
        for box in line["labels"]["boxes"]:
            if box["decision"] == "dropped":
                continue
            x, y, w, h = xyxy_to_xywh(np.array(box["box"])).tolist()
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": category_ids[box["label"]],
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": 0,
                }
            )
    categories = [{"id": number, "name": name} for number, name in zip(category_ids, classes, strict=True)]
    return {"images": images, "annotations": annotations, "categories": categories}
