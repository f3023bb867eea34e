"""From detections and labels to metrics: count thresholds on validation images, then AP and counts on test images.

A run is scored when it ends, and again when labels have been corrected, by the same functions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from boxtwin.datasets.sample import Detections, Sample
from boxtwin.evaluation.coco_metrics import coco_by_class, metric_names
from boxtwin.evaluation.counts import Thresholds, choose_thresholds, count_by_class
from boxtwin.evaluation.matching import Matching, match_detections, outside_crowds

VALIDATION_AP = "val_real/map"  # metric by which the weights of a run, detectors and conditions are chosen


@dataclass(frozen=True, eq=False)
class TestScores:
    """Results on test images. ``classes`` has an entry for each class in their order: name, threshold, metrics."""

    __test__ = False  # pytest takes classes of this name for tests

    metrics: dict[str, float]  # named as in MLflow
    classes: list[dict[str, Any]]
    counts: list[dict[str, object]]  # of each test image
    matching: Matching


def score_validation(
    samples: Sequence[Sample], detections: Mapping[int, Detections], classes: Sequence[str]
) -> tuple[Thresholds, dict[str, float]]:
    """Count thresholds chosen on real validation images, and the metrics of these, named as in MLflow."""
    thresholds = choose_thresholds(samples, outside_crowds(samples, detections), len(classes))
    metrics = {"val_real/count_threshold": thresholds.together}
    for name, value in zip(metric_names(classes), thresholds.by_class, strict=True):
        metrics[f"val_real/{name}/count_threshold"] = value
    together, _ = coco_by_class(match_detections(samples, detections, len(classes)))
    return thresholds, metrics | {f"val_real/{name}": value for name, value in together.items()}


def score_test(
    samples: Sequence[Sample],
    detections: Mapping[int, Detections],
    thresholds: Thresholds,
    classes: Sequence[str],
    category_ids: Sequence[int],
) -> TestScores:
    """COCO metrics and counts of test images, for all classes together and for each."""
    matching = match_detections(samples, detections, len(classes))
    together, by_class = coco_by_class(matching)
    count_metrics, counts_by_class, counts = count_by_class(samples, outside_crowds(samples, detections), thresholds)
    metrics = {f"test/{name}": value for name, value in {**together, **count_metrics}.items()}
    entries: list[dict[str, Any]] = []
    for label, (name, in_metrics) in enumerate(zip(classes, metric_names(classes), strict=True)):
        of_class = by_class[label] | counts_by_class[label]
        metrics |= {f"test/{in_metrics}/{metric}": value for metric, value in of_class.items()}
        entry = {"name": name, "category_id": category_ids[label], "metric_name": in_metrics}
        entries.append(entry | {"count_threshold": thresholds.by_class[label], "metrics": of_class})
    return TestScores(metrics, entries, counts, matching)
