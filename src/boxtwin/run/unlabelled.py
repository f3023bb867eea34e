"""Labels for unlabelled images, as `labels=pseudo` finds those of variations: by an ensemble of real-only detectors.

They are made once for the images, the split and the settings of the detectors, and kept beside the latter in
``data/detectors`` as a COCO file, in which images that are left out are marked.
"""

from __future__ import annotations

import json
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from boxtwin.boxes import area_xyxy, xyxy_to_xywh
from boxtwin.datasets.coco import coco_content
from boxtwin.datasets.coco_json import load_json
from boxtwin.datasets.sample import NO_CROWDS, Judge, Sample
from boxtwin.files import exclusive_lock, write_bytes_atomically
from boxtwin.run.build import Prepared, runs_for_unlabelled, unlabelled_key
from boxtwin.run.extra_images import label_method
from boxtwin.run.label_detectors import make_members

log = logging.getLogger(__name__)


def label_unlabelled(prepared: Prepared) -> tuple[tuple[Sample, ...], dict[str, float]]:
    """The unlabelled images of a run with the boxes that detectors agree on, without doubtful images; and metrics.

    The detectors are trained on the labelled real images of the split; they are trained first if they are missing.
    """
    images = prepared.extra.unlabelled
    if not images:
        return (), {}
    key = unlabelled_key(prepared.config, prepared.dataset, prepared.split, prepared.extra)
    kept = Path(prepared.config.data) / "detectors" / f"unlabelled-{key}.json"
    if not kept.exists():
        waiting = f"{kept.name}: another process is labelling the unlabelled images; waiting"
        with exclusive_lock(kept.with_suffix(".lock"), waiting):
            if not kept.exists():
                started = time.perf_counter()
                members = make_members(runs_for_unlabelled(prepared.config, prepared.dataset, prepared.split))
                content = _labelled(prepared, images, label_method(prepared.dataset).judge(members))
                content["info"] = {"seconds": time.perf_counter() - started}  # with training, if there was some
                write_bytes_atomically(kept, json.dumps(content).encode())
    content = load_json(kept, damaged="remove the file, and it is made again")
    used = _with_boxes(images, content)
    boxes = sum(len(sample.boxes) for sample in used)
    log.info("%s: %d of %d unlabelled images are used, %d boxes", kept, len(used), len(images), boxes)
    return used, {
        "data/unlabelled_images": float(len(used)),
        "data/unlabelled_refused": float(len(images) - len(used)),
        "time/label_unlabelled": content["info"]["seconds"],
    }


def prepare_generator(prepared: Prepared) -> None:
    """Give a run's generator the labelled images that it learns from beside those of the split, if it does."""
    if prepared.store.more is None:
        prepared.store.more, _ = label_unlabelled(prepared)


def _labelled(prepared: Prepared, images: Sequence[Sample], judge: Judge) -> dict[str, Any]:
    """The content of a COCO file of the images; those that are ``refused`` say why."""
    category_ids, entries, annotations = prepared.dataset.category_ids, [], []
    for sample in tqdm(images, desc="labels of unlabelled images", unit="image"):
        pixels = sample.read()
        judgement = judge(pixels, pixels, sample.boxes, sample.labels, sample.name, NO_CROWDS)
        entry = {"id": sample.image_id, "file_name": sample.name, "width": sample.width, "height": sample.height}
        entries.append(entry | ({} if judgement.refused is None else {"refused": judgement.refused}))
        for each in judgement.boxes:
            box = np.array(each.box)
            area = float(area_xyxy(box))
            annotations.append((sample.image_id, category_ids[each.label], xyxy_to_xywh(box).tolist(), area, False))
    reasons = Counter(str(entry["refused"]).split(":")[0] for entry in entries if "refused" in entry)
    for reason, number in reasons.items():
        log.info("%d of %d unlabelled images are left out: %s", number, len(images), reason)
    return coco_content(entries, annotations, zip(category_ids, prepared.dataset.classes, strict=True))


def _with_boxes(images: Sequence[Sample], content: dict[str, Any]) -> tuple[Sample, ...]:
    """The images that are not refused, with their boxes, which are found by file name.

    An image's number is its place in the folder, and another image in it, such as one of the split, moves it.
    """
    number_of = {entry["file_name"]: entry["id"] for entry in content["images"]}
    label_of = {category["id"]: label for label, category in enumerate(content["categories"])}
    found: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for annotation in content["annotations"]:
        found[annotation["image_id"]].append(annotation)
    refused = {entry["id"] for entry in content["images"] if "refused" in entry}
    labelled = []
    for sample in images:
        number = number_of[sample.name]
        if number in refused:
            continue
        ones = found[number]
        boxes = np.array([each["bbox"] for each in ones]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        labelled.append(
            replace(
                sample,
                boxes=boxes.astype(np.float32),
                labels=np.array([label_of[each["category_id"]] for each in ones], dtype=np.int64),
                areas=np.array([each["area"] for each in ones], dtype=np.float64),
                crowd=np.zeros(len(ones), dtype=bool),
            )
        )
    return tuple(labelled)
