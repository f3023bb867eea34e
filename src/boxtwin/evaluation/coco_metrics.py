"""Average precision as COCO defines it (Lin et al. 2014, "Microsoft COCO"; cocodataset.org, "Detection Evaluation").

An evaluator does the sums, over exactly what `coco_results` returns: an outside tool that reads ``detections.json``
arrives at the same numbers. There are two: pycocotools is the reference; faster-coco-eval gives the same figures in a
fraction of the time, its inner loops being compiled.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from boxtwin.boxes import xyxy_to_xywh
from boxtwin.datasets.coco import coco_content
from boxtwin.datasets.sample import Detections, Sample
from boxtwin.files import atomic_path

log = logging.getLogger(__name__)

CocoEvaluator = Literal["faster", "pycocotools"]

# The order of `COCOeval.stats`.
FIGURES = (
    "map",
    "map_50",
    "map_75",
    "map_small",
    "map_medium",
    "map_large",
    "mar_1",
    "mar_10",
    "mar_100",
    "mar_small",
    "mar_medium",
    "mar_large",
)

# Results are rounded to thousandths of a pixel: far below what an annotator can see, and it halves the file.
RESULT_DECIMALS = 3
# Going from xywh to xyxy and back leaves errors of 1e-13 pixels, which could tip an overlap that stands exactly on a
# threshold. Nine decimals restore the annotation file's own number.
TRUTH_DECIMALS = 9


def coco_ground_truth(samples: Sequence[Sample], classes: Sequence[str], category_ids: Sequence[int]) -> dict[str, Any]:
    """A COCO detection data set: ``images``, ``annotations`` (xywh, pixels of the image file) and ``categories``.

    Class ``i`` is named ``classes[i]`` and numbered ``category_ids[i]``.

    Raises:
        ValueError: two samples share an image id, or a label has no category id.
    """
    if len(classes) != len(category_ids):
        raise ValueError(f"{len(classes)} classes need as many category ids, got {len(category_ids)}")
    images: dict[int, dict[str, Any]] = {}
    annotations: list[tuple[int, int, list[int | float], int | float, bool]] = []
    for sample in samples:
        if sample.image_id in images:
            other = images[sample.image_id]["file_name"]
            raise ValueError(f"image ids must be unique, got {sample.image_id} for both {other} and {sample.name}")
        images[sample.image_id] = {
            "id": sample.image_id,
            "file_name": sample.name,
            "width": sample.width,
            "height": sample.height,
        }
        _check_labels(sample.labels, category_ids, sample.name)
        bboxes = xyxy_to_xywh(np.asarray(sample.boxes, dtype=np.float64).reshape(-1, 4)).round(TRUTH_DECIMALS)
        for bbox, label, area, crowd in zip(
            bboxes.tolist(), sample.labels.tolist(), sample.areas.tolist(), sample.crowd.tolist(), strict=True
        ):
            annotations.append((sample.image_id, int(category_ids[label]), bbox, float(area), crowd))
    return coco_content(list(images.values()), annotations, zip(map(int, category_ids), classes, strict=True))


def coco_results(detections: Mapping[int, Detections], category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """The COCO results list: one entry per detection, ``bbox`` xywh in pixels of the image file.

    ``detections`` maps image ids to what was found there. Boxes are rounded to `RESULT_DECIMALS`, scores are not.

    Raises:
        ValueError: a label has no category id.
    """
    results = []
    for image_id, found in detections.items():
        _check_labels(found.labels, category_ids, f"detections of image {image_id}")
        bboxes = xyxy_to_xywh(np.asarray(found.boxes, dtype=np.float64).reshape(-1, 4)).round(RESULT_DECIMALS)
        results += [
            {"image_id": int(image_id), "category_id": int(category_ids[label]), "bbox": bbox, "score": score}
            for bbox, score, label in zip(bboxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True)
        ]
    return results


def write_results(path: Path, detections: Mapping[int, Detections], category_ids: Sequence[int]) -> None:
    """Write `coco_results` as JSON, image by image: the whole list takes forty times the memory of the detections."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        between = "["
        for image_id, found in detections.items():
            for result in coco_results({image_id: found}, category_ids):
                file.write(between + json.dumps(result))
                between = ", "
        file.write("]" if between == ", " else "[]")


def coco_figures(
    samples: Sequence[Sample],
    detections: Mapping[int, Detections],
    category_ids: Sequence[int],
    *,
    evaluator: CocoEvaluator = "faster",
) -> dict[str, float]:
    """The 12 COCO figures, named as in `FIGURES`, in [0, 1].

    An image without an entry in ``detections`` is one in which nothing was found. A figure about objects that do not
    occur (no large ships, say) is nan; objects but no detections give 0.

    Raises:
        ValueError: detections for an image that is not among the samples; ids or labels that do not fit; an unknown
            evaluator.
    """
    evaluation = _evaluate(samples, detections, category_ids, evaluator)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.summarize()
    return {
        name: math.nan if value < 0 else float(value) for name, value in zip(FIGURES, evaluation.stats, strict=True)
    }


def _evaluate(
    samples: Sequence[Sample],
    detections: Mapping[int, Detections],
    category_ids: Sequence[int],
    evaluator: CocoEvaluator,
) -> Any:
    """A ``COCOeval`` of either package, accumulated: ``params``, ``eval`` and ``summarize`` are the same in both."""
    strangers = set(detections) - {sample.image_id for sample in samples}
    if strangers:
        raise ValueError(f"detections for images that are not among the samples: ids {sorted(strangers)[:10]}")
    # The packages keep ids in 32 to 64 bits or in floating point, which the file's own may not fit: they get small ones
    # in the same order, since of equal scores in two images that of the smaller id comes first.
    place = {number: position for position, number in enumerate(sorted(sample.image_id for sample in samples), start=1)}
    samples = [replace(sample, image_id=place[sample.image_id]) for sample in samples]
    detections = {place[number]: found for number, found in detections.items()}
    names, category_ids = [str(number) for number in category_ids], range(1, len(category_ids) + 1)
    truth = coco_ground_truth(samples, names, category_ids)
    results = coco_results(detections, category_ids)
    # Imported late: only one of the two is used.
    if evaluator == "faster":
        import faster_coco_eval

        # It logs what pycocotools prints; both stay unseen.
        coco = faster_coco_eval.COCO
        evaluate: Any = partial(faster_coco_eval.COCOeval_faster, print_function=log.debug)
    elif evaluator == "pycocotools":
        from pycocotools import coco as reference
        from pycocotools.cocoeval import COCOeval

        coco, evaluate = reference.COCO, COCOeval
    else:
        raise ValueError(f"the evaluator is one of {get_args(CocoEvaluator)}, got {evaluator!r}")
    with contextlib.redirect_stdout(io.StringIO()):
        true, found = coco(), coco()
        true.dataset = truth
        true.createIndex()
        if results:
            found = true.loadRes(results)
        else:  # `loadRes` cannot take an empty list
            found.dataset = {**copy.deepcopy(truth), "annotations": []}
            found.createIndex()
        evaluation = evaluate(true, found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def _check_labels(labels: np.ndarray, category_ids: Sequence[int], owner: str) -> None:
    if labels.size and not (labels.min() >= 0 and labels.max() < len(category_ids)):
        raise ValueError(f"{owner}: labels must be in 0..{len(category_ids) - 1}, got {np.unique(labels).tolist()}")
