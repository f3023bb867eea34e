"""Metrics by class against pycocotools and formulas in numpy."""

import io
import math
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from coco_reference import coco_ground_truth, coco_metrics
from mlflow.utils.validation import _validate_metric_name
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from boxtwin.datasets.sample import Detections, Sample
from boxtwin.evaluation.coco_metrics import METRICS, coco_by_class, coco_results, metric_names
from boxtwin.evaluation.counts import Thresholds, choose_thresholds, count_by_class
from boxtwin.evaluation.matching import match_detections
from boxtwin.evaluation.resampled_ap import ResampledAP

IDS = (7, 3, 40)  # neither from 0, nor in order


def scene(rng: np.random.Generator, image_id: int, objects: int, classes: int = 3) -> tuple[Sample, Detections]:
    """Objects of several sizes, some of them crowds, and detections near most of them, with equal scores among them."""
    corner, size = rng.uniform(0, 400, (objects, 2)), rng.choice([14, 60, 130], (objects, 1)) * rng.uniform(0.7, 1.2, 2)
    boxes, labels = np.concatenate([corner, corner + size], axis=1), rng.integers(0, classes, objects)
    crowd = rng.random(objects) < 0.1
    sample = Sample(f"{image_id}", Path(f"{image_id}"), 600, 600, image_id, boxes, labels, size.prod(axis=1), crowd)
    near = np.repeat(boxes, 2, axis=0) + rng.normal(0, 4, (2 * objects, 4))
    confused = np.where(rng.random(2 * objects) < 0.9, np.repeat(labels, 2), rng.integers(0, classes, 2 * objects))
    scores = np.sort(rng.random(2 * objects).round(2))[::-1]
    order = rng.permutation(2 * objects)
    return sample, Detections(near[order], scores, confused[order])


def scenes(seed: int, images: int, most: int, classes: int = 3) -> tuple[list[Sample], dict[int, Detections]]:
    rng = np.random.default_rng(seed)
    made = [scene(rng, 90 - 2 * number, int(rng.integers(0, most)), classes) for number in range(images)]
    return [sample for sample, _ in made], {sample.image_id: found for sample, found in made[1:]}


def oracle(samples: list[Sample], found: dict[int, Detections], limit: int = 100) -> COCOeval:
    with redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = coco_ground_truth(samples, ["a", "b", "c"], IDS)
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(coco_results(found, IDS)), "bbox")
        evaluation.params.maxDets = [1, 10, limit]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


@pytest.mark.parametrize("seed", range(4))
def test_all_metrics_together_and_by_class_are_those_of_pycocotools(seed: int) -> None:
    samples, found = scenes(seed, 14, 12)
    matching = match_detections(samples, found, 3)
    together, by_class = coco_by_class(matching)
    assert together == pytest.approx(coco_metrics(samples, found, IDS), abs=1e-12, nan_ok=True)
    evaluation = oracle(samples, found)
    # IoU thresholds x recalls x classes in the order of their ids x areas x limits.
    precision = np.where((values := evaluation.eval["precision"]) < 0, np.nan, values)
    recall = np.where((values := evaluation.eval["recall"]) < 0, np.nan, values)
    curves = ResampledAP.of(matching).curves()
    for label, column in enumerate(np.argsort(np.argsort(IDS))):
        of_class, areas = by_class[label], (None, "small", "medium", "large")
        for area, name in enumerate(areas):
            expected = precision[:, :, column, area, -1].mean()
            assert of_class[f"map_{name}" if name else "map"] == pytest.approx(expected, abs=1e-12, nan_ok=True)
            expected = recall[:, column, area, -1].mean()
            assert of_class[f"mar_{name}" if name else "mar_100"] == pytest.approx(expected, abs=1e-12, nan_ok=True)
        assert of_class["map_50"] == pytest.approx(precision[0, :, column, 0, -1].mean(), abs=1e-12)
        assert of_class["mar_1"] == pytest.approx(recall[:, column, 0, 0].mean(), abs=1e-12)
        np.testing.assert_allclose(curves[label], precision[0, :, column, 0, -1], atol=1e-12)


def test_a_class_without_objects_has_no_ap_and_leaves_the_mean_alone() -> None:
    samples, found = scenes(3, 8, 9, classes=2)
    together, by_class = coco_by_class(match_detections(samples, found, 3))
    assert all(math.isnan(by_class[2][name]) for name in METRICS)
    assert together["map"] == pytest.approx((by_class[0]["map"] + by_class[1]["map"]) / 2)
    empty, _ = coco_by_class(match_detections(samples[:1], {}, 3))
    assert set(empty) == set(METRICS)


def test_where_a_hundred_detections_are_too_few_ap_is_told_without_the_limit_as_well() -> None:
    rng = np.random.default_rng(0)
    made = [scene(rng, number, 130, classes=1) for number in (4, 2)]
    samples, found = [sample for sample, _ in made], {sample.image_id: each for sample, each in made}
    together, (of_class,) = coco_by_class(match_detections(samples, found, 1))
    for limit, ending in ((100, ""), (1000, "_unlimited")):
        precision = oracle(samples, found, limit).eval["precision"][:, :, 1, 0, -1]
        assert together[f"map{ending}"] == of_class[f"map{ending}"] == pytest.approx(precision.mean())
        assert together[f"map_50{ending}"] == pytest.approx(precision[0].mean())
    assert together["map_50_unlimited"] > together["map_50"] + 0.1
    few, _ = coco_by_class(match_detections(*scenes(0, 5, 9), 3))
    assert "map_unlimited" not in few


def test_every_class_is_counted_at_its_own_threshold_and_the_total_is_the_sum() -> None:
    samples, found = scenes(5, 20, 9)
    thresholds = Thresholds(0.5, (0.2, 0.9, 0.55))
    together, by_class, entries = count_by_class(samples, found, thresholds)
    errors = np.zeros((3, len(samples)))
    for place, sample in enumerate(samples):
        for label, threshold in enumerate(thresholds.by_class):
            true = int(((sample.labels == label) & ~sample.crowd).sum())
            each = found.get(sample.image_id)
            counted = 0 if each is None else int(((each.labels == label) & (each.scores >= threshold)).sum())
            entry: Any = entries[place]
            assert (entry["true_by_class"][label], entry["found_by_class"][label]) == (true, counted)
            errors[label, place] = counted - true
    for label in range(3):
        assert by_class[label]["count_mae"] == pytest.approx(np.abs(errors[label]).mean())
        assert by_class[label]["count_rmse"] == pytest.approx(np.sqrt((errors[label] ** 2).mean()))
        assert by_class[label]["count_bias"] == pytest.approx(errors[label].mean())
        assert by_class[label]["count_exact"] == pytest.approx((errors[label] == 0).mean())
    assert together["count_mae"] == pytest.approx(np.abs(errors.sum(axis=0)).mean())
    differences = [cast(int, entry["found"]) - cast(int, entry["true"]) for entry in entries]
    assert differences == errors.sum(axis=0).tolist()


def test_a_detector_that_swaps_two_classes_counts_right_only_in_total() -> None:
    samples, found = scenes(6, 10, 6, classes=2)
    swapped = {
        s.image_id: Detections(s.object_boxes, np.full(len(s.object_boxes), 0.9), 1 - s.object_labels) for s in samples
    }
    together, by_class, _ = count_by_class(samples, swapped, Thresholds(0.5, (0.5, 0.5)))
    assert together["count_mae"] == 0
    assert by_class[0]["count_mae"] == by_class[1]["count_mae"] > 0
    assert by_class[0]["count_bias"] == -by_class[1]["count_bias"]
    assert found


def test_thresholds_are_chosen_class_by_class_and_guessed_where_there_is_nothing_to_choose_on() -> None:
    boxes = np.tile([[0.0, 0.0, 9.0, 9.0]], (2, 1))
    sample = Sample("a", Path("a"), 20, 20, 1, boxes, np.array([0, 1]), np.full(2, 81.0), np.zeros(2, bool))
    found = Detections(np.tile(boxes[:1], (5, 1)), np.array([0.9, 0.8, 0.7, 0.4, 0.2]), np.array([0, 0, 2, 1, 1]))
    thresholds = choose_thresholds([sample], {1: found}, 3)
    assert thresholds.by_class[:2] == pytest.approx((0.85, 0.3))
    assert thresholds.together == pytest.approx(0.75)  # two of all five
    assert (thresholds.by_class[2], thresholds.guessed) == (thresholds.together, (2,))


def test_one_class_is_counted_as_all_together() -> None:
    samples, found = scenes(8, 12, 9, classes=1)
    thresholds = choose_thresholds(samples, found, 1)
    assert thresholds.by_class == (thresholds.together,)
    together, (alone,), entries = count_by_class(samples, found, thresholds)
    assert together == alone
    assert "true_by_class" not in entries[0]


@pytest.mark.parametrize(
    "classes",
    [
        ["ship"],
        ["a/b", "a_b", "a:b", "a$b"],
        ["map", "count_mae", "", ".", "..", " ", "///"],
        ['船 $a_b$ / "Schiff"', "粒子, %s {x}", "ü\nx", "a" * 300, "a" * 299],
        ["a_b_2", "a/b", "a_b"],
        ["\U0001f6a2", "e\u0301"],
    ],
)
def test_names_of_metrics_are_taken_by_mlflow_and_unique(classes: list[str]) -> None:
    names = metric_names(classes)
    assert len(set(names)) == len(classes)
    for name, wanted in zip(names, classes, strict=True):
        assert "/" not in name
        assert len(name) <= 210
        _validate_metric_name(f"test/{name}/count_mae")  # type: ignore[no-untyped-call]
        if wanted in ("ship", "a_b", "a_b_2"):
            assert name == wanted
    assert not {"map", "count_mae"} & set(names)
