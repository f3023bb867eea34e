import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from boxtwin.datasets.sample import Detections, Sample
from boxtwin.evaluation.counts import (
    THRESHOLD_WITHOUT_DETECTIONS,
    Thresholds,
    best_threshold,
    count_metrics,
    counted,
)
from boxtwin.evaluation.matching import outside_crowds
from boxtwin.evaluation.scoring import score_test, score_validation


def make_sample(image_id: int, objects: int, crowds: int = 0) -> Sample:
    n = objects + crowds
    return Sample(
        name=f"{image_id}.png",
        path=Path(f"{image_id}.png"),
        width=10,
        height=10,
        image_id=image_id,
        boxes=np.tile(np.array([[0.0, 0.0, 2.0, 2.0]]), (n, 1)),
        labels=np.zeros(n, int),
        areas=np.full(n, 4.0),
        crowd=np.arange(n) >= objects,
    )


def found(*scores: float) -> Detections:
    return Detections(np.zeros((len(scores), 4)), np.array(scores, dtype=np.float64), np.zeros(len(scores), int))


def test_a_score_on_the_threshold_counts() -> None:
    assert counted(found(0.9, 0.5, 0.1), 0.5).scores.tolist() == [0.9, 0.5]
    assert len(counted(found(), 0.5).scores) == 0


def test_metrics_by_hand() -> None:
    # errors: +2, -1, 0, -3
    metrics = count_metrics(np.array([1, 4, 0, 3]), np.array([3, 3, 0, 0]))
    assert metrics == pytest.approx(
        {"count_mae": 6 / 4, "count_rmse": math.sqrt(14 / 4), "count_bias": -2 / 4, "count_exact": 1 / 4}
    )


def test_metrics_without_images_are_nan() -> None:
    assert all(math.isnan(value) for value in count_metrics(np.zeros(0, int), np.zeros(0, int)).values())


def brute_force(samples: list[Sample], detections: dict[int, Detections], threshold: float) -> tuple[float, float]:
    errors = [
        int((detections[s.image_id].scores >= threshold).sum() if s.image_id in detections else 0) - len(s.object_boxes)
        for s in samples
    ]
    return float(np.abs(errors).mean()), abs(float(np.mean(errors)))


@pytest.mark.parametrize("seed", range(30))
def test_threshold_beats_every_other_threshold(seed: int) -> None:
    rng = np.random.default_rng(seed)
    samples = [make_sample(i, int(rng.integers(0, 6)), int(rng.integers(0, 2))) for i in range(int(rng.integers(1, 9)))]
    decimals = int(rng.integers(1, 4))  # few decimals: many equal scores, and scores of exactly 0 and 1
    detections = {
        s.image_id: found(*np.sort(rng.random(int(rng.integers(0, 12))).round(decimals))[::-1])
        for s in samples
        if rng.random() < 0.9
    }
    threshold = best_threshold(samples, detections)
    assert 0 < threshold <= 1
    mae, bias = brute_force(samples, detections, threshold)
    grid = np.concatenate([np.linspace(0, 1, 2002)[1:], *[d.scores[d.scores > 0] for d in detections.values()]])
    others = [brute_force(samples, detections, t) for t in grid]
    if any(len(d.scores) for d in detections.values()):
        assert (mae, bias) == pytest.approx(min(others))
    else:
        assert threshold == THRESHOLD_WITHOUT_DETECTIONS


def test_middle_of_the_plateau() -> None:
    # Between 0.3 and 0.8 exactly the two objects are counted.
    assert best_threshold([make_sample(1, 2)], {1: found(0.9, 0.8, 0.3)}) == pytest.approx(0.55)


def test_of_equal_errors_the_unbiased_wins() -> None:
    samples = [make_sample(1, 2), make_sample(2, 0)]
    detections = {2: found(0.9), 1: found(0.5)}
    # above 0.9: two missed; (0.5, 0.9]: two missed, one wrong; below: one missed, one wrong, on the whole right
    assert brute_force(samples, detections, 0.95) == (1, 1)
    assert brute_force(samples, detections, 0.4) == (1, 0)
    assert best_threshold(samples, detections) == pytest.approx(0.25)


def test_nothing_right_to_count_sets_the_threshold_above_all_scores() -> None:
    samples = [make_sample(1, 0), make_sample(2, 0)]
    assert best_threshold(samples, {1: found(0.7), 2: found(0.6)}) == pytest.approx(0.85)


def test_neighbouring_floats_are_still_told_apart() -> None:
    for dtype in (np.float32, np.float64):
        low = dtype(0.5)
        scores = np.array([np.nextafter(low, dtype(1)), low])
        detections = {1: Detections(np.zeros((2, 4)), scores, np.zeros(2, int))}
        threshold = best_threshold([make_sample(1, 1)], detections)
        assert len(counted(detections[1], threshold).scores) == 1


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="at least one image"):
        best_threshold([], {})
    with pytest.raises(ValueError, match=r"not among the samples: ids \[2\]"):
        best_threshold([make_sample(1, 0)], {2: found(0.4)})
    with pytest.raises(ValueError, match=r"scores must be in \[0, 1\], got 0.2 to 3"):
        best_threshold([make_sample(1, 0)], {1: found(3.0, 0.2)})


def test_large_inputs_are_fast() -> None:
    rng = np.random.default_rng(0)
    samples = [make_sample(i, int(rng.integers(0, 20))) for i in range(1000)]
    assert 0 < best_threshold(samples, {i: found(*rng.random(100)) for i in range(1000)}) <= 1


def test_detections_in_crowds_are_not_counted() -> None:
    """One object, and a crowd with five members that a detector finds."""
    members = np.array([[100 + 20 * n, 100, 115 + 20 * n, 115] for n in range(5)], dtype=np.float64)
    sample = Sample(
        name="a.png",
        path=Path("a.png"),
        width=300,
        height=300,
        image_id=7,
        boxes=np.array([[10, 10, 30, 30], [95, 95, 205, 120]], dtype=np.float32),
        labels=np.zeros(2, dtype=np.int64),
        areas=np.array([400.0, 2750.0]),
        crowd=np.array([False, True]),
    )
    boxes = np.concatenate([[[10.0, 10, 30, 30], [250, 250, 270, 270]], members])
    found = {7: Detections(boxes, np.array([0.9, 0.8, *[0.7] * 5]), np.zeros(7, dtype=np.int64))}
    assert outside_crowds([sample], found)[7].scores.tolist() == [0.9, 0.8]
    thresholds, metrics = score_validation([sample], found, ["ship"])
    assert 0.8 < thresholds.together < 0.9
    scores = score_test([sample], found, Thresholds(0.5, (0.5,)), ["ship"], [1])
    assert (scores.metrics["test/count_mae"], scores.counts[0]["true"], scores.counts[0]["found"]) == (1.0, 1, 2)
    assert scores.metrics["test/map_50"] == metrics["val_real/map_50"] == pytest.approx(1)
    without = replace(sample, crowd=np.zeros(2, dtype=bool))
    assert outside_crowds([without], found)[7] is found[7]
