"""COCO's metrics by pycocotools, the reference implementation, to compare with."""

from __future__ import annotations

import contextlib
import copy
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from boxtwin.boxes import xyxy_to_xywh
from boxtwin.datasets.coco import coco_content
from boxtwin.datasets.sample import Detections, Sample
from boxtwin.evaluation.coco_metrics import METRICS, coco_results
from boxtwin.evaluation.matching import TRUTH_DECIMALS


def coco_ground_truth(samples: Sequence[Sample], classes: Sequence[str], category_ids: Sequence[int]) -> dict[str, Any]:
    """A COCO detection data set; class ``i`` is named ``classes[i]`` and numbered ``category_ids[i]``."""
    images = [
        {"id": sample.image_id, "file_name": sample.name, "width": sample.width, "height": sample.height}
        for sample in samples
    ]
    annotations = [
        (sample.image_id, int(category_ids[label]), bbox, float(area), crowd)
        for sample in samples
        for bbox, label, area, crowd in zip(
            xyxy_to_xywh(np.asarray(sample.boxes, np.float64).reshape(-1, 4)).round(TRUTH_DECIMALS).tolist(),
            sample.labels.tolist(),
            sample.areas.tolist(),
            sample.crowd.tolist(),
            strict=True,
        )
    ]
    return coco_content(images, annotations, zip(map(int, category_ids), classes, strict=True))


def coco_metrics(
    samples: Sequence[Sample], detections: Mapping[int, Detections], category_ids: Sequence[int]
) -> dict[str, float]:
    """The 12 COCO metrics, named as in `FIGURES`, in [0, 1]; nan for those of objects that do not occur."""
    # pycocotools keeps ids in floating point, which some ids do not fit: they get small ones in the same order.
    place = {number: position for position, number in enumerate(sorted(sample.image_id for sample in samples), start=1)}
    samples = [replace(sample, image_id=place[sample.image_id]) for sample in samples]
    detections = {place[number]: found for number, found in detections.items()}
    names, category_ids = [str(number) for number in category_ids], range(1, len(category_ids) + 1)
    content = coco_ground_truth(samples, names, category_ids)
    results = coco_results(detections, category_ids)
    with contextlib.redirect_stdout(io.StringIO()):
        true, found = COCO(), COCO()
        true.dataset = content
        true.createIndex()
        if results:
            found = true.loadRes(results)
        else:  # `loadRes` cannot take an empty list
            found.dataset = {**copy.deepcopy(content), "annotations": []}
            found.createIndex()
        evaluation = COCOeval(true, found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {
        name: math.nan if value < 0 else float(value) for name, value in zip(METRICS, evaluation.stats, strict=True)
    }
