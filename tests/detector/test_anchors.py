from pathlib import Path

import numpy as np
import pytest

from boxtwin.datasets.sample import Sample
from boxtwin.detector.anchors import anchors_from_samples, group_anchors, kmeans_anchors, shape_iou
from boxtwin.errors import InputError


def test_clear_clusters_are_found_whatever_the_seed() -> None:
    centres = np.array([[8.0, 8.0], [20.0, 60.0], [60.0, 20.0], [200.0, 180.0]])
    jitter = np.random.default_rng(0).uniform(0.95, 1.05, (50, 4, 2))
    sizes = (centres * jitter).reshape(-1, 2)
    for seed in range(5):
        found = kmeans_anchors(sizes, 4, np.random.default_rng(seed))
        assert (np.diff(found.prod(axis=1)) >= 0).all()
        assert (shape_iou(centres, found).max(axis=1) > 0.95).all()


def test_the_same_seed_gives_the_same_anchors() -> None:
    sizes = np.random.default_rng(1).uniform(4, 90, (300, 2))
    first, second = (kmeans_anchors(sizes, 6, np.random.default_rng(5)) for _ in range(2))
    assert np.array_equal(first, second)


def test_as_many_anchors_as_different_boxes() -> None:
    sizes = np.repeat(np.array([[5.0, 5.0], [9.0, 4.0]]), 10, axis=0)
    assert np.allclose(kmeans_anchors(sizes, 2, np.random.default_rng(0)), [[5, 5], [9, 4]])


def test_parts_of_one_size_get_that_size_and_its_neighbours() -> None:
    found = kmeans_anchors(np.full((20, 2), [8.0, 4.0]), 3, np.random.default_rng(0))
    assert np.allclose(found, np.array([[6.4, 3.2], [8, 4], [10, 5]]))
    found = kmeans_anchors(np.array([[8.0, 4.0], [3.0, 3.0]] * 5), 6, np.random.default_rng(0))
    assert len(np.unique(found, axis=0)) == 6
    assert {(8.0, 4.0), (3.0, 3.0)} <= {tuple(anchor) for anchor in found.tolist()}


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (np.zeros((0, 2)), "hold no boxes"),
        (np.array([[3.0, 0.0]]), "no area"),
    ],
)
def test_what_cannot_be_learnt_is_said(sizes: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        kmeans_anchors(sizes, 6, np.random.default_rng(0))


def test_the_coarsest_head_gets_the_largest() -> None:
    anchors = np.array([[30.0, 30.0], [1.0, 2.0], [90.0, 80.0], [9.0, 9.0]])
    assert group_anchors(anchors, 2) == (((30.0, 30.0), (90.0, 80.0)), ((1.0, 2.0), (9.0, 9.0)))
    with pytest.raises(ValueError, match="4 anchors cannot be shared equally by 3 heads"):
        group_anchors(anchors, 3)


def test_anchors_are_in_pixels_of_the_network_input() -> None:
    sample = Sample(
        name="a.png",
        path=Path("a.png"),
        width=800,
        height=400,
        image_id=1,
        boxes=np.array([[0.0, 0, 80, 40], [0, 0, 400, 200], [0, 0, 8, 8]]),
        labels=np.zeros(3, dtype=np.int64),
        areas=np.ones(3),
        crowd=np.array([False, False, True]),
    )
    anchors = anchors_from_samples([sample], image_size=416, heads=2, per_head=1, rng=np.random.default_rng(0))
    assert np.allclose(anchors, np.array([[[208, 104]], [[41.6, 20.8]]]))
