from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

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
