"""Test images that a run keeps for its report: a few shrunk images with their true boxes, and all counted boxes.

Every run on the same test set keeps the same images (`boxtwin.evaluation.overlays.pick_examples`) and the ones that it
counts worst. Counted boxes are kept for all images, so that an image of one run can be shown with those of another.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from boxtwin.datasets.image_io import encode
from boxtwin.datasets.levels import to_8_bit
from boxtwin.datasets.sample import Detections, Sample
from boxtwin.evaluation.counts import counted
from boxtwin.evaluation.matching import outside_crowds
from boxtwin.evaluation.overlays import pick_examples, shrunk
from boxtwin.files import write_bytes_atomically

EXAMPLES_FILE = "examples.json"  # its name in the folder of a run
EXAMPLES = 4  # as many as a page has room for, times the conditions of a study
WORST = 3
SIDE = 400  # pixels, the longer one: some more than a page shows
QUALITY = 40  # of WebP: speckle survives, and a crowded harbour has 20 kB


@dataclass(frozen=True, eq=False)
class Pictured:
    """A kept test image: ``webp`` is shrunk, ``sample`` has its boxes in pixels of the original."""

    sample: Sample
    webp: bytes
    worst: bool  # kept as one of the worst counted images, not as one that every run keeps


@dataclass(frozen=True, eq=False)
class Examples:
    """The content of a run's file."""

    pictured: tuple[Pictured, ...]
    found: Mapping[int, Detections]  # counted objects, by image id; scores are not kept, and 1
    classes: tuple[str, ...] = ()  # empty in files of older versions


def keep_examples(
    path: Path,
    samples: Sequence[Sample],
    detections: Mapping[int, Detections],
    threshold: float | Sequence[float],
    classes: Sequence[str] = (),
) -> None:
    """Write the file of a run; it appears whole or not at all.

    ``detections`` are by image id; counted from ``threshold`` on, or from that of their class. Which are worst follows
    from the counts, which leave out detections in crowds.
    """
    objects = {image_id: counted(each, threshold) for image_id, each in detections.items()}
    numbers = {image_id: len(each.boxes) for image_id, each in outside_crowds(samples, objects).items()}
    errors = {sample.image_id: abs(numbers.get(sample.image_id, 0) - len(sample.object_boxes)) for sample in samples}
    examples = pick_examples(samples, EXAMPLES)
    worst = sorted(samples, key=lambda sample: (-errors[sample.image_id], sample.name))[:WORST]
    shown = {sample.image_id for sample in examples}
    others = [sample for sample in worst if errors[sample.image_id] and sample.image_id not in shown]
    content = {
        "classes": list(classes),
        "images": [_entry(sample, sample.image_id not in shown) for sample in (*examples, *others)],
        "found": {
            str(image_id): {"boxes": _rounded(each.boxes), "labels": each.labels.tolist()}
            for image_id, each in objects.items()
            if len(each.boxes)
        },
    }
    write_bytes_atomically(path, json.dumps(content, separators=(",", ":")).encode())


def load_examples(path: Path) -> Examples | None:
    """What a run kept; None where the file is missing, as with runs of older versions."""
    if not path.exists():
        return None
    content = json.loads(path.read_text())
    objects = {
        int(image_id): Detections(_boxes(each), np.ones(len(each["boxes"])), np.array(each["labels"], dtype=np.int64))
        for image_id, each in content["found"].items()
    }
    return Examples(tuple(map(_pictured, content["images"])), objects, tuple(content.get("classes", ())))


def _entry(sample: Sample, worst: bool) -> dict[str, Any]:
    return {
        "image_id": sample.image_id,
        "file_name": sample.name,
        "width": sample.width,
        "height": sample.height,
        "boxes": _rounded(sample.boxes),
        "labels": sample.labels.tolist(),
        "crowd": sample.crowd.tolist(),
        "worst": worst,
        "webp": base64.b64encode(encode(shrunk(to_8_bit(sample.read()), SIDE), "webp", QUALITY)).decode(),
    }


def _pictured(entry: Mapping[str, Any]) -> Pictured:
    boxes = _boxes(entry)
    sample = Sample(
        name=entry["file_name"],
        path=Path(entry["file_name"]),
        width=entry["width"],
        height=entry["height"],
        image_id=entry["image_id"],
        boxes=boxes,
        labels=np.array(entry["labels"], dtype=np.int64),
        areas=np.zeros(len(boxes)),
        crowd=np.array(entry["crowd"], dtype=bool),
    )
    return Pictured(sample, base64.b64decode(entry["webp"]), bool(entry["worst"]))


def _rounded(boxes: Float[np.ndarray, "n 4"]) -> list[list[float]]:
    return boxes.astype(np.float64).round(1).tolist()


def _boxes(entry: Mapping[str, Any]) -> Float[np.ndarray, "n 4"]:
    return np.array(entry["boxes"], dtype=np.float64).reshape(-1, 4)
