import numpy as np
import pytest

from boxtwin.labels.box_evidence import best_match, contrast, correlation, response, surroundings

BOX = (8.0, 8.0, 12.0, 12.0)


def test_contrast_by_hand() -> None:
    values = np.zeros((20, 20))
    values[::2] = 4.0  # surroundings: mean 2, deviation 2
    values[8:12, 8:12] = 12.0
    assert contrast(values, BOX) == pytest.approx((12 - 2) / 2)
    # A flat surrounding: one grey level stands for its deviation.
    flat = np.full((20, 20), 7.0)
    flat[8:12, 8:12] = 12.0
    assert contrast(flat, BOX) == 5
    assert contrast(flat, (0.0, 0.0, 20.0, 20.0)) == 0  # no frame is left


def test_other_objects_are_no_surroundings() -> None:
    values = np.zeros((20, 20))
    values[8:12, 13:15] = 99
    assert surroundings(values, BOX).max() == 99
    frame = surroundings(values, BOX, [(13.0, 8.0, 15.0, 12.0)])
    assert frame.max() == 0
    assert frame.size == 10 * 10 - 16 - 2 * 4


def test_correlation_agrees_with_numpy() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random((6, 12)), rng.random((6, 12))
    assert correlation(a, b) == pytest.approx(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def test_response_by_hand_and_its_invariances() -> None:
    ground = np.full((20, 20), 10.0)
    source = ground.copy()
    source[8:12, 8:12] = 50.0
    assert response(source, source, BOX, BOX) == 1
    assert response(source, ground, BOX, BOX) == 0
    half = ground.copy()
    half[8:12, 8:12] = 30.0
    assert response(source, half, BOX, BOX) == 0.5
    assert response(source, source + 70, BOX, BOX) == 1  # another ground
    assert response(-source, -half, BOX, BOX) == 0.5  # dark instead of bright
    moved = np.roll(source, (2, 3), axis=(0, 1))
    assert response(source, moved, BOX, (11.0, 10.0, 15.0, 14.0)) == 1
    # Half of it over the border: what is left counts.
    out = np.full((20, 20), 10.0)
    out[8:12, 18:20] = 50.0
    assert response(source, out, BOX, (18.0, 8.0, 22.0, 12.0)) == 1
    assert response(source, out, BOX, (30.0, 8.0, 34.0, 12.0)) == 0


def test_the_best_match_is_where_the_object_went_as_brute_force_finds_it() -> None:
    rng = np.random.default_rng(1)
    source, values = rng.random((40, 40)), rng.random((40, 40))
    values[15:25, 13:23] = source[10:20, 10:20] + 0.1 * rng.random((10, 10))
    match = best_match(source, values, (13.0, 13.0, 17.0, 17.0), 6)
    assert match.shift == (3, 5)
    scores = {
        (x, y): np.corrcoef(source[10:20, 10:20].ravel(), values[10 + y : 20 + y, 10 + x : 20 + x].ravel())[0, 1]
        for x in range(-6, 7)
        for y in range(-6, 7)
    }
    assert max(scores, key=lambda place: scores[place]) == (3, 5)
    assert match.score == pytest.approx(scores[3, 5], abs=1e-5)
    assert match.here == pytest.approx(scores[0, 0], abs=1e-5)


def test_nothing_is_found_in_flat_pixels() -> None:
    rng = np.random.default_rng(1)
    flat, other = np.full((20, 20), 3.0), rng.random((20, 20))
    assert best_match(flat, other, BOX, 4) == (0.0, (0, 0), 0.0)
    assert best_match(other, flat, BOX, 4) == (0.0, (0, 0), 0.0)
