import io
import json
import math
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from coco_reference import coco_metrics
from numpy.typing import ArrayLike
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from boxtwin.datasets.sample import Detections, Sample
from boxtwin.evaluation.coco_metrics import METRICS, coco_by_class, coco_results
from boxtwin.evaluation.matching import match_detections
from boxtwin.evaluation.resampled_ap import ResampledAP

Evaluator = Literal["faster", "pycocotools"]
CATEGORY_IDS = (7, 3, 40)  # neither from 0, nor in order, nor dense
CLASSES = ("ship", "buoy", "quay")


def make_sample(
    image_id: int, boxes: ArrayLike, labels: ArrayLike, crowd: ArrayLike | None = None, areas: ArrayLike | None = None
) -> Sample:
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    n = len(boxes)
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    return Sample(
        name=f"{image_id}.png",
        path=Path(f"{image_id}.png"),
        width=400,
        height=400,
        image_id=image_id,
        boxes=boxes,
        labels=np.asarray(labels, dtype=np.int64),
        areas=width * height if areas is None else np.asarray(areas, dtype=np.float64),
        crowd=np.zeros(n, dtype=bool) if crowd is None else np.asarray(crowd, dtype=bool),
    )


def random_case(seed: int, images: int = 12) -> tuple[list[Sample], dict[int, Detections]]:
    """Objects of three sizes and classes, some of them crowds, and detections that are jittered, missed or made up."""
    rng = np.random.default_rng(seed)
    samples, detections = [], {}
    for index in range(images):
        n = int(rng.integers(0, 9))
        corner = rng.uniform(0, 250, (n, 2))
        size = rng.choice([12, 50, 130], (n, 1)) * rng.uniform(0.7, 1.1, (n, 2))
        labels = rng.integers(0, 3, n)
        boxes = np.concatenate([corner, corner + size], axis=1)
        sample = make_sample(100 - 3 * index, boxes, labels, crowd=rng.random(n) < 0.15)
        samples.append(sample)
        if index == 3:
            continue  # an image for which the detector handed in nothing
        kept = rng.random(n) < 0.8
        jittered = boxes[kept] + rng.normal(0, 0.08, (int(kept.sum()), 4)) * np.repeat(size[kept], 2, axis=1)
        found_labels = np.where(rng.random(int(kept.sum())) < 0.9, labels[kept], rng.integers(0, 3, int(kept.sum())))
        made_up = rng.uniform(0, 200, (int(rng.integers(0, 4)), 2))
        found = np.concatenate([jittered, np.concatenate([made_up, made_up + 40], axis=1)]).astype(np.float32)
        found_labels = np.concatenate([found_labels, rng.integers(0, 3, len(made_up))])
        scores = np.sort(rng.random(len(found)).astype(np.float32).round(2))[::-1].copy()
        detections[sample.image_id] = Detections(found, scores, found_labels)
    return samples, detections


def outside_evaluation(folder: Path, truth: dict[str, Any], results: list[dict[str, Any]]) -> COCOeval:
    """What somebody does who has nothing but the two files."""
    (folder / "annotations.json").write_text(json.dumps(truth))
    (folder / "detections.json").write_text(json.dumps(results))
    with redirect_stdout(io.StringIO()):
        gt = COCO(str(folder / "annotations.json"))
        evaluation = COCOeval(gt, gt.loadRes(str(folder / "detections.json")), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def hand_written_truth(samples: list[Sample]) -> dict[str, Any]:
    annotations = [
        {
            "id": 1000 * s.image_id + i,
            "image_id": s.image_id,
            "category_id": CATEGORY_IDS[s.labels[i]],
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": s.areas[i],
            "iscrowd": int(s.crowd[i]),
        }
        for s in samples
        for i, (x1, y1, x2, y2) in enumerate(s.boxes.tolist())
    ]
    return {
        "images": [{"id": s.image_id, "file_name": s.name, "width": s.width, "height": s.height} for s in samples],
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for number, name in zip(CATEGORY_IDS, CLASSES, strict=True)],
    }


@pytest.mark.parametrize("seed", range(5))
def test_metrics_equal_pycocotools_on_files(seed: int, tmp_path: Path) -> None:
    samples, detections = random_case(seed)
    evaluation = outside_evaluation(tmp_path, hand_written_truth(samples), coco_results(detections, CATEGORY_IDS))
    metrics, _ = coco_by_class(match_detections(samples, detections, len(CATEGORY_IDS)))
    assert tuple(metrics) == METRICS
    expected = [value if value >= 0 else math.nan for value in evaluation.stats.tolist()]
    # The order of a sum may differ between the two, and with it the last bit.
    assert list(metrics.values()) == pytest.approx(expected, abs=1e-12, rel=0, nan_ok=True)
    assert 0.05 < metrics["map"] < 0.95  # the case is neither trivial nor hopeless


def crowded_case(
    seed: int, *, images: int, classes: int, most_objects: int, most_found: int
) -> tuple[list[Sample], dict[int, Detections]]:
    """Any number of classes, crowds and empty images; scores of few values, so that many are equal."""
    rng = np.random.default_rng(seed)
    samples, detections = [], {}
    for image_id in rng.permutation(1000)[:images].tolist():
        n = int(rng.integers(0, most_objects + 1)) * int(rng.random() < 0.8)
        corner = rng.uniform(0, 250, (n, 2))
        boxes = np.concatenate([corner, corner + rng.choice([10, 40, 120], (n, 1)) * rng.uniform(0.5, 1.2, (n, 2))], 1)
        labels = rng.integers(0, classes, n)
        samples.append(make_sample(image_id, boxes, labels, crowd=rng.random(n) < 0.2))
        m = int(rng.integers(0, most_found + 1)) * int(rng.random() < 0.8)
        near = rng.integers(0, n, m) if n else np.zeros(m, int)
        moved = boxes[near] + rng.normal(0, 4, (m, 4)) if n else rng.uniform(0, 100, (m, 4))
        found = np.concatenate([moved[:, :2], np.maximum(moved[:, 2:], moved[:, :2] + 1)], 1)
        found_labels = np.where(rng.random(m) < 0.8, labels[near] if n else 0, rng.integers(0, classes, m))
        scores = np.sort(rng.integers(1, 12, m) / 12)[::-1].copy()
        if m or rng.random() < 0.5:  # nothing found: no entry, or an empty one
            detections[image_id] = Detections(found, scores, found_labels)
    return samples, detections


@pytest.mark.parametrize(
    ("images", "classes", "most_objects", "most_found"),
    [(25, 1, 6, 12), (25, 5, 12, 30), (8, 2, 40, 320), (25, 5, 6, 0), (25, 3, 0, 20), (1, 1, 1, 1)],
    ids=["one class", "five classes", "more than 100 an image", "nothing found", "no objects", "one image"],
)
@pytest.mark.parametrize("seed", range(4))
def test_metrics_equal_the_reference_in_hard_cases(
    seed: int, images: int, classes: int, most_objects: int, most_found: int
) -> None:
    samples, detections = crowded_case(
        seed, images=images, classes=classes, most_objects=most_objects, most_found=most_found
    )
    ids = tuple(np.random.default_rng(seed).permutation(90)[:classes].tolist())
    plain = coco_metrics(samples, detections, ids)
    own, _ = coco_by_class(match_detections(samples, detections, classes))
    assert {name: own[name] for name in METRICS} == pytest.approx(plain, abs=1e-12, rel=0, nan_ok=True)


def test_the_random_sets_hold_what_they_are_to_hold() -> None:
    samples, detections = crowded_case(0, images=8, classes=2, most_objects=40, most_found=320)
    assert max(len(found.boxes) for found in detections.values()) > 100
    assert any(sample.crowd.any() for sample in samples)
    assert any(len(set(found.scores.tolist())) < len(found.scores) for found in detections.values())
    metrics = coco_metrics(samples, detections, (1, 2))
    assert 0.1 < metrics["map_50"] < 0.9
    assert metrics["mar_1"] < metrics["mar_10"] < metrics["mar_100"]


def test_size_classes_follow_the_annotated_area_not_the_box() -> None:
    box = [0, 0, 100, 100]
    small = make_sample(1, [box], [0], areas=[500.0])
    found = {1: Detections(np.array([box], np.float32), np.ones(1), np.zeros(1, int))}
    metrics = coco_by_class(match_detections([small], found, 1))[0]
    assert metrics["map_small"] == pytest.approx(1)
    assert math.isnan(metrics["map_large"])


def test_crowds_are_neither_missed_nor_held_against_detections() -> None:
    box, crowd = [10, 10, 40, 40], [100, 100, 300, 300]
    sample = make_sample(5, [box, crowd], [0, 0], crowd=[False, True])
    boxes = np.array([[120, 120, 150, 150], box, [200, 200, 230, 230]], np.float32)
    metrics = coco_by_class(
        match_detections([sample], {5: Detections(boxes, np.array([0.9, 0.8, 0.7]), np.zeros(3, int))}, 1)
    )[0]
    assert (metrics["map"], metrics["mar_100"]) == pytest.approx((1, 1))


def test_objects_but_no_detections_give_zero() -> None:
    samples = [make_sample(1, [[0, 0, 20, 20]], [0]), make_sample(2, [], [])]
    empty = Detections(np.zeros((0, 4), np.float32), np.zeros(0), np.zeros(0, int))
    for detections in ({}, {1: empty, 2: empty}):
        metrics = coco_by_class(match_detections(samples, detections, 1))[0]
        assert metrics["map"] == metrics["map_50"] == metrics["mar_100"] == metrics["map_small"] == 0
        assert math.isnan(metrics["map_large"])
        assert (ResampledAP.of(match_detections(samples, detections, 1)).curves() == 0).all()


def test_no_objects_give_nan() -> None:
    found = {1: Detections(np.array([[0, 0, 9, 9]], np.float32), np.ones(1), np.zeros(1, int))}
    for samples, detections in (([], {}), ([make_sample(1, [], [])], {}), ([make_sample(1, [], [])], found)):
        assert all(math.isnan(value) for value in coco_by_class(match_detections(samples, detections, 1))[0].values())
        assert np.isnan(ResampledAP.of(match_detections(samples, detections, 1)).curves()).all()


def test_a_class_without_objects_does_not_pull_the_mean_down() -> None:
    box = [0, 0, 30, 30]
    found = {1: Detections(np.array([box], np.float32), np.ones(1), np.zeros(1, int))}
    assert coco_by_class(match_detections([make_sample(1, [box], [0])], found, 3))[0]["map"] == pytest.approx(1)


def test_mistakes_are_named() -> None:
    sample = make_sample(1, [[0, 0, 5, 5]], [0])
    with pytest.raises(ValueError, match=r"not among the samples: ids \[2\]"):
        coco_by_class(match_detections([sample], {2: Detections(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int))}, 1))[
            0
        ]
    with pytest.raises(ValueError, match="ids must be unique"):
        match_detections([sample, sample], {}, 1)
    with pytest.raises(ValueError, match=r"labels must be in 0..0, got \[1\]"):
        coco_results({1: Detections(np.zeros((1, 4)), np.ones(1), np.ones(1, int))}, (1,))


def test_ids_of_any_size_change_nothing() -> None:
    """Time stamps, unsigned numbers of 64 bits, negative ones: in the same order, they give the same metrics."""
    samples, detections = random_case(5)
    order = sorted(sample.image_id for sample in samples)
    large = {number: place + 2**64 - len(order) for place, number in enumerate(order)}
    large[order[0]], large[order[1]] = -(10**30), 20240115123456701
    renamed = [replace(sample, image_id=large[sample.image_id]) for sample in samples]
    found = {large[number]: each for number, each in detections.items()}
    category_ids = (2**64 - 1, 2**64 - 2, 10**25)
    expected = coco_by_class(match_detections(samples, detections, 3))
    assert coco_by_class(match_detections(renamed, found, 3)) == expected
    # And they go out as they came in.
    results = json.loads(json.dumps(coco_results(found, category_ids)))
    assert {result["image_id"] for result in results} <= set(large.values())
    assert {result["category_id"] for result in results} <= set(category_ids)
