"""The counts of several detectors in one: medians, and what is done where they lie halfway."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from boxtwin.counting.ensemble import joined

CLASSES = 3


def counted(by_class: np.ndarray) -> np.ndarray:
    return np.concatenate([by_class.sum(axis=-1, keepdims=True), by_class], axis=-1)


def counts_of(detectors: st.SearchStrategy[int]) -> st.SearchStrategy[np.ndarray]:
    return detectors.flatmap(lambda n: arrays(np.int64, (n, CLASSES), elements=st.integers(0, 20))).map(counted)


@given(counts_of(st.sampled_from([1, 3, 5])))
def test_an_odd_number_of_detectors_gives_the_medians(counts: np.ndarray) -> None:
    assert joined(counts)[1:].tolist() == np.median(counts[:, 1:], axis=0).tolist()


@given(counts_of(st.just(2)))
def test_the_total_of_two_detectors_lies_between_theirs(counts: np.ndarray) -> None:
    assert counts[:, 0].min() <= joined(counts)[0] <= counts[:, 0].max()


@given(counts_of(st.integers(1, 6)))
def test_no_count_is_a_whole_object_from_the_median(counts: np.ndarray) -> None:
    found, medians = joined(counts), np.median(counts[:, 1:], axis=0)
    assert found[0] == found[1:].sum()
    assert abs(found[0] - medians.sum()) < 1
    assert (np.abs(found[1:] - medians) < 1).all()


@given(counts_of(st.integers(1, 6)), arrays(np.int64, CLASSES, elements=st.integers(0, 30)))
def test_residuals_are_joined_as_the_residuals_of_joined_counts(counts: np.ndarray, true: np.ndarray) -> None:
    assert (-joined(-(counted(true) - counts))).tolist() == (counted(true) - joined(counts)).tolist()


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([[10, 5], [9, 6]], [15, 10, 5]),  # 9.5 and 5.5: rounded one by one, there would be 16
        ([[2, 1], [3, 1]], [4, 3, 1]),
        ([[0], [0]], [0, 0]),
    ],
)
def test_medians_halfway_between_two_counts(counts: list[list[int]], expected: list[int]) -> None:
    assert joined(counted(np.array(counts))).tolist() == expected


def test_rows_are_joined_one_by_one() -> None:
    rows = np.random.default_rng(0).integers(0, 9, size=(4, 50, CLASSES))
    together = joined(counted(rows))
    assert together.shape == (50, 1 + CLASSES)
    assert all(together[row].tolist() == joined(counted(rows[:, row])).tolist() for row in range(50))
