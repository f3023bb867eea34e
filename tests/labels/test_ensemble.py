from functools import partial
from pathlib import Path

import numpy as np
import pytest

from boxtwin.boxes import iou_matrix
from boxtwin.datasets.image_io import Pixels
from boxtwin.datasets.sample import NO_CROWDS, CrowdAreas, Detections, Sample
from boxtwin.labels.ensemble import Ensemble, Member, agreements, new_object_threshold
from boxtwin.labels.pseudo import judge_by_agreement

PIXELS = np.zeros((60, 80), dtype=np.uint8)
NO_BOXES, NO_LABELS = np.zeros((0, 4), dtype=np.float32), np.zeros(0, dtype=np.int64)


def found(*entries: tuple[list[float], float, int]) -> Detections:
    return Detections(
        np.array([box for box, _, _ in entries], dtype=float).reshape(-1, 4),
        np.array([score for _, score, _ in entries], dtype=float),
        np.array([label for _, _, label in entries], dtype=np.int64),
    )


A, A_NEAR, B = [10.0, 10, 30, 20], [11.0, 10, 31, 20], [50.0, 40, 60, 50]


def members(*findings: Detections) -> list[Member]:
    return [Member(partial(_found_before, one), (0.5,) * 3, (0.8,) * 3) for one in findings]


def _found_before(one: Detections, pixels: Pixels) -> Detections:
    return one


def test_boxes_are_averaged_by_score() -> None:
    (place,) = agreements([found((A, 0.9, 0)), found((A_NEAR, 0.6, 0)), found()], [0.5] * 3)
    assert place.votes == 2
    assert place.score == pytest.approx(1.5 / 3)
    np.testing.assert_allclose(place.box, (0.9 * np.array(A) + 0.6 * np.array(A_NEAR)) / 1.5)
    assert place.spread == pytest.approx(min(iou_matrix(np.array([place.box]), np.array([A, A_NEAR]))[0].tolist()))


def test_classes_are_kept_apart_and_a_member_votes_once() -> None:
    first = found((A, 0.9, 0), (A_NEAR, 0.8, 0))  # twice the same object
    places = agreements([first, found((A, 0.7, 1))], [0.5, 0.5])
    assert sorted((place.label, place.votes) for place in places) == [(0, 1), (0, 1), (1, 1)]


def test_half_a_threshold_seconds_but_does_not_begin() -> None:
    places = agreements([found((A, 0.9, 0), (B, 0.3, 0)), found((A, 0.3, 0), (B, 0.3, 0))], [0.5, 0.5])
    assert [(place.votes, place.box) for place in places] == [(2, tuple(A))]
    assert agreements([found((A, 0.9, 0)), found((A, 0.2, 0))], [0.5, 0.5])[0].votes == 1


def test_every_member_has_its_own_threshold() -> None:
    assert agreements([found((A, 0.3, 0))], [0.5]) == []
    assert len(agreements([found((A, 0.3, 0))], [0.2])) == 1


def test_an_ensemble_needs_members() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Ensemble([])
    assert Ensemble(members(found(), found(), found())).agree == 2
    assert Ensemble(members(found())).agree == 1


def test_scores_and_votes_on_a_box() -> None:
    looks = Ensemble(members(found((A, 0.9, 0)), found((A_NEAR, 0.6, 0)), found((A, 0.9, 1))))
    seen = looks.detect(PIXELS)
    assert looks.score(seen, (10.0, 10.0, 30.0, 20.0), 0) == pytest.approx(1.5 / 3)
    assert looks.detects(seen, (10.0, 10.0, 30.0, 20.0), 0)
    assert not looks.detects(seen, (10.0, 10.0, 30.0, 20.0), 1)
    assert looks.score(seen, (50.0, 40.0, 60.0, 50.0), 0) == 0
    assert [place.votes for place in looks.clearly_new(seen, NO_CROWDS)] == [
        2
    ]  # 0.9 begins, 0.6 seconds: above half of 0.8
    assert len(Ensemble(members(found((A, 0.9, 0)))).clearly_new([found((A, 0.9, 0))], NO_CROWDS)) == 1


def test_pseudo_labels_by_majority() -> None:
    looks = Ensemble(members(found((A, 0.9, 0)), found((A_NEAR, 0.6, 0)), found()))
    judged = judge_by_agreement(looks, PIXELS, PIXELS, NO_BOXES, NO_LABELS, "", NO_CROWDS)
    assert judged.refused is None
    (box,) = judged.boxes
    assert (box.decision, box.label, box.evidence["votes"], box.evidence["score"]) == ("added", 0, 2, 0.5)


def test_images_without_agreement_are_refused() -> None:
    looks = Ensemble(members(found((A, 0.9, 0), (B, 0.9, 0)), found((A, 0.9, 0)), found()), agree=2)
    judged = judge_by_agreement(looks, PIXELS, PIXELS, NO_BOXES, NO_LABELS, "", NO_CROWDS)
    assert judged.refused == "the detectors disagree: on 1 object(s), 1 agreed on"


def test_each_class_has_its_threshold() -> None:
    findings = found((A, 0.9, 0), (B, 0.2, 1)), found((A, 0.8, 0), (B, 0.3, 1))
    for thresholds, labels in (((0.5, 0.5), [0]), ((0.5, 0.15), [0, 1]), ((0.95, 0.15), [1])):
        looks = Ensemble([Member(partial(_found_before, one), thresholds, (0.95, 0.95)) for one in findings], agree=2)
        judged = judge_by_agreement(looks, PIXELS, PIXELS, NO_BOXES, NO_LABELS, "", NO_CROWDS)
        assert (sorted(box.label for box in judged.boxes), judged.refused) == (labels, None)
        seen = looks.detect(PIXELS)
        expected = [label in labels for label in (0, 1)]
        places = ((10.0, 10.0, 30.0, 20.0), (50.0, 40.0, 60.0, 50.0))
        assert [looks.detects(seen, box, label) for label, box in enumerate(places)] == expected


@pytest.mark.parametrize("label", [0, 1])
def test_nothing_in_a_crowd_is_an_object_or_a_doubt(label: int) -> None:
    """As COCO ignores detections of a crowd's class, of which half or more lies in the crowd."""
    looks = Ensemble(members(found((A, 0.9, 0), (B, 0.9, 0)), found((A, 0.9, 0)), found()), agree=2)
    x1, y1, x2, y2 = B
    for area in (np.array([[x1, y1, x2, y2]]), np.array([[x1, y1, (x1 + x2) / 2, y2]])):
        crowds = CrowdAreas(area.astype(np.float32), np.array([label]))
        judged = judge_by_agreement(looks, PIXELS, PIXELS, NO_BOXES, NO_LABELS, "", crowds)
        assert (judged.refused is None) == (label == 0)
        assert len(judged.boxes) == 1
    less = CrowdAreas(np.array([[x1, y1, x1 + 0.4 * (x2 - x1), y2]], dtype=np.float32), np.array([0]))
    assert judge_by_agreement(looks, PIXELS, PIXELS, NO_BOXES, NO_LABELS, "", less).refused
    over_a = CrowdAreas(np.array([A], dtype=np.float32), np.array([0]))
    assert judge_by_agreement(looks, PIXELS, PIXELS, NO_BOXES, NO_LABELS, "", over_a).boxes == ()


def test_nothing_found_by_anybody_is_an_agreement() -> None:
    judged = judge_by_agreement(Ensemble(members(found(), found())), PIXELS, PIXELS, NO_BOXES, NO_LABELS, "", NO_CROWDS)
    assert (judged.boxes, judged.refused) == ((), None)


def sample(number: int, *boxes: list[float]) -> Sample:
    n = len(boxes)
    corners = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    none = np.zeros(n, dtype=bool)
    return Sample("s", Path("s"), 80, 60, number, corners, np.zeros(n, dtype=np.int64), np.zeros(n), none)


def test_a_surprise_is_what_hardly_any_false_alarm_passes() -> None:
    """Twenty images; one in twenty may be deceived."""
    samples = [sample(number, A) for number in range(20)]
    alarms = [0.05 * number for number in range(20)]  # the highest is 0.95, the next 0.9
    detections = {number: found((A, 0.99, 0), (B, alarms[number], 0)) for number in range(20)}
    threshold = new_object_threshold(samples, detections, 0.3)
    assert sum(score >= threshold for score in alarms) == 1
    assert threshold == pytest.approx(0.9)
    assert new_object_threshold(samples, detections, 0.97) == 0.97
    # A part of an object is no false alarm.
    parts = {number: found((A, 0.9, 0), ([12, 12, 18, 18], 0.8, 0)) for number in range(20)}
    assert new_object_threshold(samples, parts, 0.3) == 0.3
