from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import cv2
import numpy as np
import pytest

from boxtwin.datasets.image_io import encode_png
from boxtwin.synthesis import squares
from boxtwin.synthesis.tiling import Tile, draw_in_tiles, tile_starts, tile_weights


def same(tiles: Sequence[Tile]) -> list[np.ndarray]:
    return [tile.values for tile in tiles]


SHAPES = [(64, 64), (32, 32), (33, 32), (31, 80), (5, 7), (1, 1), (97, 131), (32, 200), (63, 65)]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("overlap", [0, 1, 7, 16])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_model_that_changes_nothing_gives_the_image_back(shape: tuple[int, int], overlap: int, dtype: Any) -> None:
    top = np.iinfo(dtype).max
    pixels = np.random.default_rng(0).integers(0, top + 1, size=(*shape, 3)).astype(dtype)
    unit = pixels.astype(np.float32) / np.float32(top)
    made = draw_in_tiles(unit, same, side=32, overlap=overlap, batch_size=3)
    assert made.shape == unit.shape
    assert made.dtype == unit.dtype
    np.testing.assert_array_equal(np.rint(made * top).astype(dtype), pixels)


def test_squares_come_numbered_whole_and_in_batches() -> None:
    image = np.arange(70 * 40, dtype=np.float32).reshape(70, 40, 1)
    seen: list[Tile] = []
    batches = []

    def draw(tiles: Sequence[Tile]) -> list[np.ndarray]:
        seen.extend(tiles)
        batches.append(len(tiles))
        return same(tiles)

    draw_in_tiles(image, draw, side=32, overlap=8, batch_size=4)
    assert [tile.number for tile in seen] == list(range(len(seen)))
    assert batches == [4, 2]  # 3 rows of 2
    starts = [(y, x) for y in (0, 19, 38) for x in (0, 8)]
    for tile, (y, x) in zip(seen, starts, strict=True):
        np.testing.assert_array_equal(tile.values, image[y : y + 32, x : x + 32])


def test_one_square_where_the_image_is_one_square_or_less() -> None:
    calls: list[Tile] = []

    def draw(tiles: Sequence[Tile]) -> list[np.ndarray]:
        calls.extend(tiles)
        return [np.zeros((32, 32, 2), dtype=np.float32) + 0.5 for _ in tiles]

    image = np.random.default_rng(0).random((20, 32, 5), dtype=np.float32)
    made = draw_in_tiles(image, draw, side=32, overlap=16)
    assert len(calls) == 1
    assert made.shape == (20, 32, 2)  # as many channels as are drawn
    assert (made == 0.5).all()
    np.testing.assert_array_equal(calls[0].values[20:], image[:7:-1])  # the mirror image goes on below


def test_neighbours_go_over_into_each_other_smoothly() -> None:
    """Square number 0 draws black and number 1 white: what is left is the weight of number 1."""
    image = np.zeros((32, 56, 1), dtype=np.float32)
    made = draw_in_tiles(
        image, lambda tiles: [np.full((32, 32, 1), tile.number, dtype=np.float32) for tile in tiles], side=32, overlap=8
    )
    expected = 0.5 * (1 - np.cos(np.pi * (np.arange(8) + 0.5) / 8))
    np.testing.assert_allclose(made[:, 24:32, 0], np.tile(expected, (32, 1)), atol=1e-6)
    assert (made[:, :24] == 0).all()
    assert (made[:, 32:] == 1).all()


def test_noise_goes_over_into_noise_of_the_same_power() -> None:
    """The plain mean of unrelated patterns would have half of their variance half way."""
    rng = np.random.default_rng(0)

    def draw(tiles: Sequence[Tile]) -> list[np.ndarray]:
        return [tile.values + rng.normal(0, 0.05, size=(64, 64, 1)) for tile in tiles]

    level = np.full((1600, 112, 1), 0.5)
    made = draw_in_tiles(level, draw, side=64, overlap=16)[:, :, 0]
    spread = made[:, 48:64].std(axis=0)  # where the two columns of squares go over into each other
    np.testing.assert_allclose(spread, 0.05, rtol=0.12)
    assert made[:, 52:60].std() == pytest.approx(made[:, :40].std(), rel=0.05)
    assert made.mean() == pytest.approx(0.5, abs=0.001)


@pytest.mark.parametrize("overlap", [0, 1, 5, 12, 16])
def test_squares_cover_all_share_enough_and_weigh_one(overlap: int) -> None:
    for size in range(32, 200):
        starts = tile_starts(size, 32, overlap)
        assert starts[0] == 0
        assert starts[-1] + 32 == size
        assert all(0 < b - a <= 32 - overlap for a, b in pairwise(starts))
        assert len(starts) == 1 or size > 32 + (len(starts) - 2) * (32 - overlap)  # one fewer would not do
        weights = tile_weights(starts, 32, overlap, size)
        np.testing.assert_allclose(sum(weights), 1, atol=1e-12)
        for start, weight in zip(starts, weights, strict=True):
            assert (weight >= 0).all()
            assert not weight[:start].any()
            assert not weight[start + 32 :].any()


def test_what_cannot_be_is_said() -> None:
    image = np.zeros((8, 8, 1), dtype=np.float32)
    with pytest.raises(ValueError, match="half of the side"):
        draw_in_tiles(image, same, side=8, overlap=5)
    with pytest.raises(ValueError, match="squares of 8 pixels"):
        draw_in_tiles(image, lambda tiles: [tile.values[:4] for tile in tiles], side=8, overlap=0)


def noise(height: int, width: int, channels: int = 3, dtype: Any = np.uint8, seed: int = 0) -> Any:
    shape = (height, width) if channels == 1 else (height, width, channels)
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, size=shape, dtype=dtype, endpoint=True)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("height", "width"), [(64, 64), (64, 40), (1, 64), (65, 64), (65, 20), (200, 130), (130, 200), (500, 3)]
)
def test_what_is_not_enlarged_comes_back_as_it_was(height: int, width: int, channels: int) -> None:
    pixels = noise(height, width, channels)
    pieces = squares.cut(pixels, 64, 16)
    assert len(pieces) == squares.count(height, width, 64, 16)
    assert {(piece.shape, piece.dtype) for piece in pieces} == {((64, 64, 3), np.dtype(np.uint8))}
    np.testing.assert_array_equal(squares.join(pieces, pixels, 64, 16), pixels)


@pytest.mark.parametrize(("height", "width"), [(64, 48), (31, 64), (20, 20), (1, 1), (2, 64)])
def test_smaller_images_are_enlarged_never_shrunk(height: int, width: int) -> None:
    # Smooth, as an enlargement followed by a reduction gives back; of noise it takes a little.
    pixels = cv2.resize(noise(4, 4), (width, height), interpolation=cv2.INTER_CUBIC)
    (square,) = squares.cut(pixels, 256, 16)
    assert square.shape == (256, 256, 3)
    back = squares.join([square], pixels, 256, 16)
    assert back.shape == pixels.shape
    assert np.abs(back.astype(int) - pixels).mean() < 6


def test_squares_overlap_by_what_is_asked_and_cover_all() -> None:
    for length in range(65, 400):
        starts = tile_starts(length, 64, 16)
        assert starts[0] == 0
        assert starts[-1] == length - 64
        steps = np.diff(starts)
        assert steps.max() <= 48
        # No square more than is needed.
        assert len(starts) == 1 + -(-(length - 64) // 48)


def test_answers_are_blended_over_the_overlap() -> None:
    source = np.zeros((64, 112), dtype=np.uint8)
    dark, light = np.zeros((64, 64, 3), dtype=np.uint8), np.full((64, 64, 3), 200, dtype=np.uint8)
    joined = squares.join([dark, light], source, 64, 16)
    assert joined[:, :48].max() == 0
    assert joined[:, 64:].min() == 200
    ramp = joined[30, 48:64].astype(int)
    assert (np.diff(ramp) > 0).all()
    assert np.diff(joined[30].astype(int)).max() < 20  # no seam


def test_sixteen_bits_keep_their_range_within_a_grey_level_of_eight() -> None:
    pixels = (noise(64, 64, 1, np.uint16) // 8).astype(np.uint16)
    (square,) = squares.cut(pixels, 64, 0)
    assert square.max() == 255  # the image's own maximum, not the type's
    back = squares.join([square], pixels, 64, 0)
    assert back.dtype == np.uint16
    assert np.abs(back.astype(int) - pixels).max() <= pixels.max() / 255 / 2 + 1
    black = np.zeros((64, 64), dtype=np.uint16)
    np.testing.assert_array_equal(squares.join(squares.cut(black, 64, 0), black, 64, 0), black)


def test_grey_stays_grey() -> None:
    tinted = noise(64, 64, 3, seed=1)
    grey = noise(64, 64, 1)
    assert squares.join([tinted], grey, 64, 0).shape == (64, 64)
    stored_as_colour = np.repeat(grey[:, :, None], 3, axis=2)
    result = squares.join([tinted], stored_as_colour, 64, 0)
    assert result.shape == (64, 64, 3)
    assert (result == result[:, :, :1]).all()
    np.testing.assert_array_equal(squares.join([tinted], noise(64, 64, 3), 64, 0), tinted)


def test_a_wrong_number_of_answers_is_refused() -> None:
    with pytest.raises(ValueError, match="2 squares were expected, got 1"):
        squares.join([noise(64, 64)], noise(64, 100), 64, 16)


def test_answers_of_another_size_are_brought_to_it() -> None:
    assert squares.as_square(noise(128, 128), 64).shape == (64, 64, 3)
    assert squares.as_square(noise(32, 32, 1), 64).shape == (64, 64, 3)
    deep = squares.as_square(noise(64, 64, 1, np.uint16), 64)
    np.testing.assert_array_equal(deep[:, :, 0], noise(64, 64, 1, np.uint16) >> 8)
    with pytest.raises(ValueError, match="64 pixels was asked for, 64 x 32 came"):
        squares.as_square(noise(32, 64), 64)


def test_the_largest_square_of_noise_is_under_the_4_mb_of_image_variations() -> None:
    assert len(encode_png(noise(1024, 1024))) < 4 * 2**20


def test_hot_pixels_and_offsets_of_16_bit_leave_the_picture_its_range() -> None:
    scene = (noise(64, 64, 1).astype(np.uint16) // 4 + 64) * 4
    plain = squares.cut(scene, 64, 16)[0]
    hot = scene.copy()
    hot[5, 5] = 65535
    np.testing.assert_allclose(squares.cut(hot, 64, 16)[0].mean(), plain.mean(), rtol=0.2)
    far = scene + np.uint16(50000)
    assert squares.cut(far, 64, 16)[0].std() > 50
    (piece,) = squares.cut(far, 64, 16)
    back = squares.join([piece], far, 64, 16).astype(int)
    smooth = cv2.medianBlur(far, 3)
    np.testing.assert_allclose(back, far.clip(smooth.min(), None), atol=2)
