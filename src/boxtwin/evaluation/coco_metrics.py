"""Average precision as COCO defines it (Lin et al. 2014, "Microsoft COCO"; cocodataset.org, "Detection Evaluation").

The numbers are those of pycocotools over exactly what `coco_results` returns: an outside tool that reads
``detections.json`` arrives at the same ones.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from boxtwin.boxes import xyxy_to_xywh
from boxtwin.datasets.coco_json import load_json
from boxtwin.datasets.sample import Detections
from boxtwin.errors import InputError
from boxtwin.evaluation.matching import BITS, COCO_LIMIT, RESULT_DECIMALS, Matching
from boxtwin.evaluation.resampled_ap import ResampledAP, mean_of_known
from boxtwin.files import atomic_path

DETECTIONS_FILE, VALIDATION_DETECTIONS_FILE = "detections.json", "validation_detections.json"  # in a run's folder
# The order of `COCOeval.stats`.
METRICS = (
    *("map", "map_50", "map_75", "map_small", "map_medium", "map_large"),
    *("mar_1", "mar_10", "mar_100", "mar_small", "mar_medium", "mar_large"),
)
RECALLS_AT = {"mar_1": ("all", 1), "mar_10": ("all", 10), "mar_100": ("all", 100)} | {
    f"mar_{area}": (area, COCO_LIMIT) for area in ("small", "medium", "large")
}
# MLflow takes letters, digits, "_", ".", "-" and spaces; ":" on some systems only, and "/" begins a folder.
REFUSED = re.compile(r"[^\w.\- ]")
LONGEST_NAME = 200  # MLflow keeps 250 characters of a metric's name


def coco_by_class(matching: Matching) -> tuple[dict[str, float], list[dict[str, float]]]:
    """`METRICS` of all classes together, and of each class, in [0, 1]; nan where there are no such objects.

    Those of small, medium and large objects are left out where ``matching`` has none of these ranges of area.

    Where an image has more objects of a class than the 100 detections that COCO looks at, or one beyond these finds an
    object, ``map_unlimited`` and ``map_50_unlimited`` say what AP is with all detections.
    """
    once = np.ones((1, len(matching.image_ids)))
    ap = {area: ResampledAP.of(matching, area).by_class(once)[:, 0] for area in matching.areas}
    by_class: dict[str, Float[np.ndarray, " classes"]] = {"map": ap["all"].mean(axis=1)}
    by_class |= {"map_50": ap["all"][:, 0], "map_75": ap["all"][:, 5]}
    by_class |= {f"map_{area}": values.mean(axis=1) for area, values in ap.items() if area != "all"}
    by_class |= {name: _recall(matching, *limits) for name, limits in RECALLS_AT.items() if limits[0] in ap}
    place = matching.areas.index("all")
    if any(
        (matches.objects[place] > COCO_LIMIT).any() or matches.matched[place][matches.rank >= COCO_LIMIT].any()
        for matches in matching.classes
    ):
        unlimited = ResampledAP.of(matching, limit=None).by_class(once)[:, 0]
        by_class |= {"map_unlimited": unlimited.mean(axis=1), "map_50_unlimited": unlimited[:, 0]}
    together = {name: float(mean_of_known(values)) for name, values in by_class.items()}
    labels = range(len(matching.classes))
    return together, [{name: float(values[label]) for name, values in by_class.items()} for label in labels]


def _recall(matching: Matching, area: str, limit: int) -> Float[np.ndarray, " classes"]:
    """Share of the objects found by the best ``limit`` detections of each image, averaged over IoU thresholds."""
    place = matching.areas.index(area)
    shares = []
    for matches in matching.classes:
        best, objects = matches.best(limit), int(matches.objects[place].sum())
        hits = (best.matched[place] & BITS[:, None] != 0).sum(axis=1)
        shares.append(float(hits.mean()) / objects if objects else np.nan)
    return np.array(shares)


def coco_results(detections: Mapping[int, Detections], category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """The COCO results list: one entry per detection, ``bbox`` xywh in pixels of the image file.

    ``detections`` has them by image id. Boxes are rounded to `RESULT_DECIMALS`, scores are not. A label without a
    category id raises `ValueError`.
    """
    results = []
    for image_id, (boxes, scores, labels) in detections.items():
        if unknown := set(labels.tolist()) - set(range(len(category_ids))):
            raise ValueError(f"image {image_id}: labels must be in 0..{len(category_ids) - 1}, got {sorted(unknown)}")
        bboxes = xyxy_to_xywh(np.asarray(boxes, dtype=np.float64).reshape(-1, 4)).round(RESULT_DECIMALS)
        results += [
            {"image_id": int(image_id), "category_id": int(category_ids[label]), "bbox": bbox, "score": score}
            for bbox, score, label in zip(bboxes.tolist(), scores.tolist(), labels.tolist(), strict=True)
        ]
    return results


def write_results(path: Path, detections: Mapping[int, Detections], category_ids: Sequence[int]) -> None:
    """Write `coco_results` as JSON, image by image: the whole list takes forty times the memory of the detections."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        between = ""
        file.write("[")
        for image_id, detected in detections.items():
            for result in coco_results({image_id: detected}, category_ids):
                file.write(between + json.dumps(result))
                between = ", "
        file.write("]")


def read_results(path: Path, category_ids: Sequence[int]) -> dict[int, Detections]:
    """What `write_results` wrote, by image id, in the same order; images without detections have no entry.

    Raises `InputError` for a file that is not a list of results, or names another category.
    """
    label_of = {number: label for label, number in enumerate(category_ids)}
    by_image: dict[int, list[tuple[list[float], float, int]]] = {}
    try:
        for entry in load_json(path):
            x, y, width, height = entry["bbox"]
            one = ([x, y, x + width, y + height], float(entry["score"]), label_of[entry["category_id"]])
            by_image.setdefault(int(entry["image_id"]), []).append(one)
    except (LookupError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is no list of COCO results of classes {[*category_ids]}: {error!r}") from error
    return {
        image_id: Detections(*(np.array(column) for column in zip(*ones, strict=True)))
        for image_id, ones in by_image.items()
    }


def metric_names(classes: Sequence[str]) -> list[str]:
    """The name of each class in the names of MLflow's metrics (``test/<class>/map``).

    Characters that MLflow refuses, and "/", become "_"; equal names are numbered, as are those of metrics.
    """
    taken = {*METRICS, "map_unlimited", "map_50_unlimited", "count_mae", "count_rmse", "count_bias", "count_exact"}
    taken |= {"count_threshold", "", ".", ".."}
    names = []
    # Names that can stay as they are come first: no other takes them.
    plain = {name for name in classes if not REFUSED.search(name)}
    for name in classes:
        wanted = REFUSED.sub("_", name).strip()[:LONGEST_NAME]
        free, number = wanted or "_", 1
        while free in taken or (free != name and free in plain):
            number += 1
            free = f"{wanted}_{number}"
        taken.add(free)
        names.append(free)
    return names
