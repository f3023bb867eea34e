from typing import Any

import numpy as np
import pytest

from boxtwin.synthesis.arrays import box_pixels
from boxtwin.synthesis.blending import blend_outside_boxes

BOXES = np.array([[20.5, 18.0, 31.0, 25.2], [44.0, 44.0, 90.0, 52.0]], dtype=np.float32)  # the second leaves the image


def speckle(seed: int, shape: tuple[int, ...] = (60, 70), dtype: Any = np.uint8, level: float = 0.2) -> np.ndarray:
    top = np.iinfo(dtype).max
    values = np.random.default_rng(seed).gamma(4, top * level / 4, size=shape)
    return np.clip(values, 0, top).astype(dtype)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("shape", [(60, 70), (60, 70, 3)])
def test_boxes_show_the_source_and_what_is_far_away_the_painting(shape: tuple[int, ...], dtype: Any) -> None:
    source, painted = speckle(0, shape, dtype), speckle(1, shape, dtype)
    before = source.copy(), painted.copy()
    made = blend_outside_boxes(source, painted, BOXES, 5)
    assert made.shape == source.shape
    assert made.dtype == source.dtype
    np.testing.assert_array_equal(made[18:26, 20:31], source[18:26, 20:31])  # with the fractions of pixels
    np.testing.assert_array_equal(made[44:52, 44:], source[44:52, 44:])
    rows, columns = np.mgrid[:60, :70]
    inside = ((rows >= 18) & (rows < 26) & (columns >= 20) & (columns < 31)) | (
        (rows >= 44) & (rows < 52) & (columns >= 44)
    )
    at = np.argwhere(inside)
    distance = np.sqrt(((np.stack([rows, columns], -1)[:, :, None] - at) ** 2).sum(-1)).min(-1)
    np.testing.assert_array_equal(made[distance > 6], painted[distance > 6])
    mixed = (distance > 0) & (distance < 5)
    assert (made[mixed] != source[mixed]).any()
    assert (made[mixed] != painted[mixed]).any()
    for image, copy in zip((source, painted), before, strict=True):
        np.testing.assert_array_equal(image, copy)


def test_the_weight_falls_as_a_raised_cosine() -> None:
    source, painted = np.full((9, 40), 200, dtype=np.uint8), np.zeros((9, 40), dtype=np.uint8)
    made = blend_outside_boxes(source, painted, np.array([[0.0, 0.0, 10.0, 9.0]]), 9)
    expected = 200 * 0.5 * (1 + np.cos(np.pi * np.arange(1, 11) / 10))
    # Flat images have no detail: what is left is the plain mean of levels that are measured around each pixel.
    np.testing.assert_allclose(made[4, 10:20], expected, atol=1)
    assert (made[:, :10] == 200).all()
    assert (made[:, 20:] == 0).all()


def test_equal_images_stay_as_they_are() -> None:
    source = speckle(0)
    np.testing.assert_array_equal(blend_outside_boxes(source, source.copy(), BOXES, 12), source)


def test_noise_goes_over_into_noise_of_the_same_power() -> None:
    """The plain mean of two unrelated textures would have half the variance half way."""
    boxes = np.array([[0.0, 0.0, 1600.0, 20.0]])
    source, painted = (speckle(seed, (60, 1600), np.uint16) for seed in (0, 1))
    source[:20] = 60000  # bright objects must not count as texture of their surroundings
    made = blend_outside_boxes(source, painted, boxes, 16).astype(float)
    spread = [made[row].std() for row in range(21, 36)]
    expected = speckle(2, (60, 1600), np.uint16).astype(float).std()
    np.testing.assert_allclose(spread, expected, rtol=0.1)
    assert np.mean(spread) == pytest.approx(expected, rel=0.05)
    means = [made[row].mean() for row in range(21, 36)]
    np.testing.assert_allclose(means, painted.mean(), rtol=0.12)


def test_without_boxes_all_is_painted_and_with_a_box_over_all_nothing_is() -> None:
    source, painted = speckle(0), speckle(1)
    np.testing.assert_array_equal(blend_outside_boxes(source, painted, np.zeros((0, 4)), 4), painted)
    np.testing.assert_array_equal(
        blend_outside_boxes(source, painted, np.array([[100.0, 0.0, 120.0, 9.0]]), 4), painted
    )
    everywhere = np.array([[-5.0, -5.0, 100.0, 100.0]])
    np.testing.assert_array_equal(blend_outside_boxes(source, painted, everywhere, 4), source)


def test_no_margin_is_a_hard_edge() -> None:
    source, painted = speckle(0), speckle(1)
    made = blend_outside_boxes(source, painted, BOXES, 0)
    inside = box_pixels(BOXES, 60, 70)
    np.testing.assert_array_equal(made, np.where(inside, source, painted))


def test_images_of_two_kinds_are_refused() -> None:
    with pytest.raises(ValueError, match="one kind"):
        blend_outside_boxes(speckle(0), speckle(0, dtype=np.uint16), BOXES, 4)
    with pytest.raises(ValueError, match="one kind"):
        blend_outside_boxes(speckle(0), speckle(0, (60, 71)), BOXES, 4)
    with pytest.raises(ValueError, match="margin"):
        blend_outside_boxes(speckle(0), speckle(1), BOXES, -1)
