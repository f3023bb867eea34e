"""Which images to label next: votes counted by hand, and choices that can be seen through."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from boxtwin.datasets.sample import Detections
from boxtwin.labels.ensemble import AgreedObject
from boxtwin.labels.next_images import Disagreement, choose, vote_entropy

A, B, C = (10, 10, 30, 30), (60, 60, 80, 90), (100, 10, 120, 40)


def found(*boxes: tuple[int, int, int, int], scores: Sequence[float] | None = None) -> Detections:
    given = np.array(scores if scores is not None else [0.9] * len(boxes))
    return Detections(np.array(boxes, dtype=np.float64).reshape(-1, 4), given, np.zeros(len(boxes), dtype=np.int64))


def boxes_of(places: Sequence[AgreedObject]) -> list[tuple[int, ...]]:
    return [tuple(map(round, place.box)) for place in places]


def test_votes_are_counted_place_by_place() -> None:
    # All three see A, two see B, one sees C.
    image = Disagreement.of([found(A, B, C), found(A, B), found(A)], [[0.5]] * 3)
    assert sorted(boxes_of(image.agreed)) == [A, B]
    assert boxes_of(image.doubtful) == [C]
    third = -(1 / 3 * math.log2(1 / 3) + 2 / 3 * math.log2(2 / 3))
    assert image.bits == pytest.approx(2 * third)


def test_of_two_detectors_both_must_find_an_object() -> None:
    image = Disagreement.of([found(A, B), found(A)], [[0.5]] * 2)
    assert (boxes_of(image.agreed), boxes_of(image.doubtful)) == ([A], [B])
    assert image.bits == 1


def test_what_no_detector_counts_is_no_place() -> None:
    nothing = Disagreement.of([found(A, scores=[0.4]), found(A, scores=[0.3]), found()], [[0.5]] * 3)
    assert nothing == Disagreement((), (), 0.0)


def test_every_class_has_its_own_threshold() -> None:
    """Of two classes: 0.4 is enough for the second one, and 0.6 is too little for the first."""
    labels = np.array([0, 1])
    both = [found(A, B, scores=[0.6, 0.4])._replace(labels=labels), found()]
    image = Disagreement.of(both, [(0.7, 0.3), (0.1, 0.1)])
    assert [(boxes_of([place]), place.label) for place in image.doubtful] == [([B], 1)]
    # A member joins from half of its own threshold for this class.
    fainter = [found(B, scores=[0.4])._replace(labels=labels[1:]), found(B, scores=[0.2])._replace(labels=labels[1:])]
    assert [place.votes for place in Disagreement.of(fainter, [(0.7, 0.3), (0.1, 0.5)]).doubtful] == [1]
    assert [place.votes for place in Disagreement.of(fainter, [(0.7, 0.3), (0.9, 0.4)]).agreed] == [2]


def test_the_entropy_of_votes() -> None:
    assert [vote_entropy(votes, 4) for votes in (0, 2, 4)] == [0, 1, 0]
    assert vote_entropy(1, 4) == vote_entropy(3, 4) == pytest.approx(0.8113, abs=1e-4)


def places(chosen: Sequence[tuple[int, float]]) -> list[int]:
    return [place for place, _ in chosen]


# Two kinds of images, with three views each; the labelled image is of neither.
FEATURES = np.array([[1, 0, 0], [1, 0.01, 0], [1, 0, 0.01], [0, 1, 0], [0.01, 1, 0], [0, 1, 0.01]])
LABELLED = np.array([[0, 0, 1.0]])


def test_the_second_image_is_no_second_view_of_the_first() -> None:
    bits = np.array([9.0, 8, 7, 3, 2, 1])
    chosen = choose(bits, FEATURES, LABELLED, 6)
    assert places(chosen)[:2] == [0, 3]
    assert sorted(places(chosen)) == list(range(6))
    assert chosen[0][1] > 1 > chosen[2][1]


def test_among_unlike_images_disagreement_decides() -> None:
    features = np.eye(5)
    bits = np.array([0.0, 3, 1, 4, 2])
    assert places(choose(bits, features, np.zeros((0, 5)), 5)) == [3, 1, 4, 2, 0]
    assert places(choose(bits, features, np.zeros((0, 5)), 2)) == [3, 1]


def test_images_without_disagreement_do_not_come_before_those_in_doubt() -> None:
    """However many there are: the last image is in doubt, and a little nearer to the labelled one."""
    images = 40
    features = np.eye(images + 1)
    labelled = features[-1:] - 0.2 * features[images - 1]
    features[images - 1] += 0.4 * features[-1]
    bits = np.zeros(images)
    bits[-1] = 2.0
    assert places(choose(bits, features[:-1], labelled, 1)) == [images - 1]


def test_without_disagreement_distance_decides() -> None:
    chosen = choose(np.zeros(3), np.array([[0, 0.1, 1.0], [0, 0, 1.0], [1, 0, 0]]), LABELLED, 3)
    assert places(chosen) == [2, 0, 1]
    assert chosen[-1][1] == pytest.approx(0, abs=1e-9)  # equal to the labelled image


@pytest.mark.parametrize("images", [0, 1, 4])
def test_there_may_be_fewer_images_than_asked_for(images: int) -> None:
    rng = np.random.default_rng(0)
    chosen = choose(rng.random(images), rng.random((images, 3)), rng.random((2, 3)), 20)
    assert sorted(places(chosen)) == list(range(images))


def test_one_image_may_hold_a_hundred_times_as_many_objects() -> None:
    """The crowded image comes first, and its near twin does not come second for its objects."""
    bits = np.array([500.0, 400, 2, 1, 0])
    features = np.array([[1, 0, 0, 0], [1, 0.02, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    assert places(choose(bits, features, np.zeros((0, 4)), 3)) == [0, 2, 3]
