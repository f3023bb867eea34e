from typing import Any

import numpy as np
import pytest

from boxtwin.labels.transfer import Carry, contrast


def scene(seed: int = 0, ship: bool = True, shape: tuple[int, ...] = (40, 60), unit: int = 1) -> np.ndarray:
    """Dark speckle with a textured bright object in [20, 10, 32, 16]."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(10, 30, size=shape)
    if ship:
        pixels[10:16, 20:32] += np.random.default_rng(99).integers(80, 200, size=(6, 12, *shape[2:]))
    return (pixels * unit).astype(np.uint8 if unit == 1 else np.uint16)


BOX = np.array([[20.0, 10, 32, 16]], dtype=np.float32)
ONE = np.array([1])


@pytest.mark.parametrize("look", [{}, {"shape": (40, 60, 3)}, {"unit": 257}])
def test_the_same_image_correlates_perfectly(look: dict[str, Any]) -> None:
    (carried,) = Carry()(scene(**look), scene(**look), BOX, ONE).boxes
    assert carried.box == (20, 10, 32, 16)
    assert (carried.label, carried.decision) == (1, "kept")
    assert carried.evidence["correlation"] == 1
    assert carried.evidence["contrast"] == carried.evidence["contrast_source"] > 5


def test_an_object_in_new_speckle_correlates_and_one_that_is_gone_does_not() -> None:
    (there,) = Carry()(scene(0), scene(1), BOX, ONE).boxes
    (gone,) = Carry()(scene(0), scene(1, ship=False), BOX, ONE).boxes
    assert there.evidence["correlation"] > 0.9
    assert abs(gone.evidence["correlation"]) < 0.4
    assert there.evidence["contrast"] > 5
    assert abs(gone.evidence["contrast"]) < 1
    assert gone.decision == "kept"  # evidence only: what to make of it is for others


def test_correlation_agrees_with_numpy() -> None:
    a, b = scene(0), scene(5)
    (carried,) = Carry()(a, b, BOX, ONE).boxes
    oracle = np.corrcoef(a[10:16, 20:32].ravel(), b[10:16, 20:32].ravel())[0, 1]
    assert carried.evidence["correlation"] == pytest.approx(oracle, abs=1e-4)


def test_contrast_by_hand() -> None:
    values = np.zeros((20, 20))
    values[::2] = 4.0  # surroundings: mean 2, deviation 2
    values[8:12, 8:12] = 12.0
    assert contrast(values, [8.0, 8.0, 12.0, 12.0]) == pytest.approx((12 - 2) / 2)
    # A flat surrounding: one grey level stands for its deviation.
    flat = np.full((20, 20), 7.0)
    flat[8:12, 8:12] = 12.0
    assert contrast(flat, [8.0, 8.0, 12.0, 12.0]) == 5


def test_flat_pixels() -> None:
    flat, other = np.full((40, 60), 9, dtype=np.uint8), np.full((40, 60), 10, dtype=np.uint8)
    assert Carry()(flat, flat, BOX, ONE).boxes[0].evidence["correlation"] == 1
    assert Carry()(flat, other, BOX, ONE).boxes[0].evidence["correlation"] == 0


@pytest.mark.parametrize(
    "box",
    [
        [0, 0, 60, 40],
        [59.2, 39.5, 60, 40],
        [0, 0, 0.4, 0.3],
        [0, 5, 60, 6],
        [59.999, 0, 60, 40],
        [20.4, 10.2, 20.6, 10.3],
    ],
)
def test_boxes_at_borders_smaller_than_a_pixel_and_as_large_as_the_image(box: list[float]) -> None:
    (carried,) = Carry()(scene(0), scene(1), np.array([box], dtype=np.float32), ONE).boxes
    assert all(np.isfinite(value) for value in carried.evidence.values())
    np.testing.assert_allclose(carried.box, box, rtol=1e-6)
    if box == [0, 0, 60, 40]:
        assert carried.evidence["contrast"] == 0  # no frame is left


def test_no_boxes() -> None:
    empty, no_labels = np.zeros((0, 4), dtype=np.float32), np.zeros(0, dtype=np.int64)
    assert Carry()(scene(), scene(), empty, no_labels).boxes == ()


def test_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(40, 60\) expected, \(40, 60, 3\) got"):
        Carry()(scene(), scene(shape=(40, 60, 3)), BOX, ONE)
