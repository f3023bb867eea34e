import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_counts import make_sample

from boxtwin.datasets.sample import Detections, Sample
from boxtwin.evaluation.count_intervals import CountCalibration, calibrate, counts_at, intervals, promised_level
from boxtwin.evaluation.counts import choose_thresholds, thresholds_without_each


def some_images(seed: int, n: int, classes: int, steps: int) -> tuple[list[Sample], dict[int, Detections]]:
    """Images with scores on a grid of so many steps, so that equal scores occur; some without objects or detections."""
    rng = np.random.default_rng(seed)
    samples, detections = [], {}
    for image_id in range(n):
        sample = make_sample(image_id, int(rng.integers(0, 6)))
        sample.labels[:] = rng.integers(0, classes, len(sample.labels))
        samples.append(sample)
        if rng.random() < 0.9:
            found = int(rng.integers(0, 12))
            scores = np.sort(rng.integers(0, steps + 1, found) / steps)[::-1].astype(np.float32)
            detections[image_id] = Detections(np.zeros((found, 4)), scores, rng.integers(0, classes, found))
    return samples, detections


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 7), st.integers(1, 3), st.sampled_from([3, 10, 997]))
def test_thresholds_without_an_image_are_those_of_the_other_images(seed: int, n: int, classes: int, steps: int) -> None:
    samples, detections = some_images(seed, n, classes, steps)
    fast = thresholds_without_each(samples, detections, classes)
    for place, sample in enumerate(samples):
        others = [other for other in samples if other is not sample]
        found = {number: each for number, each in detections.items() if number != sample.image_id}
        assert fast[place].tolist() == list(choose_thresholds(others, found, classes).by_class)


def test_residuals_are_true_minus_counted_without_the_image() -> None:
    samples, detections = some_images(3, 8, 2, 50)
    calibration = calibrate(samples, detections, 2)
    assert calibration is not None
    for sample, thresholds, residuals in zip(samples, calibration.thresholds, calibration.residuals, strict=True):
        true = [len(sample.object_labels), *((sample.object_labels == label).sum() for label in range(2))]
        counts = [0, 0, 0]
        if sample.image_id in detections:
            counts = counts_at(detections[sample.image_id], thresholds).tolist()
        assert residuals.tolist() == [a - b for a, b in zip(true, counts, strict=True)]
    again = CountCalibration.from_plain(calibration.plain())
    assert again.images == calibration.images
    np.testing.assert_array_equal(again.thresholds, calibration.thresholds)
    np.testing.assert_array_equal(again.residuals, calibration.residuals)
    assert calibrate(samples[:1], {}, 2) is None


def test_the_interval_is_that_of_the_definition() -> None:
    # Barber et al. 2021, eq. 1.6 and 1.7: the ceil((1 - a)(n + 1))-th smallest, and the floor(a (n + 1))-th smallest.
    rng = np.random.default_rng(0)
    without, residuals = 50 + rng.integers(-2, 3, (19, 1)), rng.integers(-9, 10, (19, 1))
    (interval,) = intervals(np.array([50]), without, residuals)
    uppers, lowers = sorted((without + abs(residuals))[:, 0]), sorted((without - abs(residuals))[:, 0])
    assert interval == (lowers[2 - 1], uppers[18 - 1])


def test_few_images_promise_less_and_counts_are_not_negative() -> None:
    assert promised_level(9) == pytest.approx(0.9)
    assert promised_level(4) == pytest.approx(0.8)
    assert promised_level(100) == 0.9
    (interval,) = intervals(np.array([1]), np.array([[1], [2], [1], [1]]), np.array([[0], [3], [-1], [2]]))
    assert interval == (0, 5)
    (interval,) = intervals(np.array([7]), np.full((9, 1), 5), np.zeros((9, 1), int))
    assert interval == (5, 7)


def test_new_images_are_covered_as_often_as_promised() -> None:
    rng, covered = np.random.default_rng(1), []
    for _ in range(40):
        samples, detections = [], {}
        for image_id in range(41):
            objects = int(rng.poisson(8))
            samples.append(make_sample(image_id, objects))
            scores = np.concatenate([rng.beta(4, 2, objects), rng.beta(2, 6, rng.poisson(4))])
            order = np.argsort(-scores)
            detections[image_id] = Detections(np.zeros((len(scores), 4)), scores[order], np.zeros(len(scores), int))
        first = {number: each for number, each in detections.items() if number < 20}
        calibration = calibrate(samples[:20], first, 1)
        assert calibration is not None
        (threshold,) = choose_thresholds(samples[:20], first, 1).by_class
        for sample in samples[20:]:
            new = detections[sample.image_id]
            without = np.array([counts_at(new, row) for row in calibration.thresholds])
            total, _ = intervals(counts_at(new, np.array([threshold])), without, calibration.residuals)
            covered.append(total.low <= len(sample.object_labels) <= total.high)
    assert 0.88 <= np.mean(covered) <= 0.98
