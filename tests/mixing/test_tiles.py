import math

import numpy as np
import pytest

from boxtwin.mixing.letterbox import OVERLAP, Labelled, take_view, tiles


@pytest.mark.parametrize(
    ("width", "height", "size", "tile"),
    [(800, 800, 800, 416), (800, 500, 800, 416), (1000, 3000, 1500, 320), (90, 60, 64, 64), (801, 799, 416, 96)],
)
def test_tiles_cover_the_image_and_every_point_has_one_owner(width: int, height: int, size: int, tile: int) -> None:
    found = tiles(width, height, size=size, tile=tile)
    shown = tile * max(width, height) / size
    random = np.random.default_rng(0)
    for x, y in random.uniform((0, 0), (width, height), (500, 2)):
        owners = [t for t in found if t.own[0] <= x < t.own[2] and t.own[1] <= y < t.own[3]]
        assert len(owners) == 1
        (left, top), own = owners[0].corner, owners[0]
        assert own.scale == size / max(width, height)
        # An object of half the overlap around this point lies whole in its owner's tile, or at the image's border.
        half = shown * OVERLAP / 4 - 1
        assert left <= max(x - half, 0)
        assert min(x + half, width) <= left + shown + 1
        assert top <= max(y - half, 0)
        assert min(y + half, height) <= top + shown + 1


def test_one_tile_is_enough_for_a_small_image() -> None:
    (only,) = tiles(90, 60, size=64, tile=64)
    assert only.corner == (0, 0)
    assert only.own == (-math.inf, -math.inf, math.inf, math.inf)


def test_tiles_of_less_than_a_pixel_lie_in_the_image() -> None:
    image = Labelled(np.full((1, 2), 7, np.uint8), np.zeros((0, 4), np.float32), np.zeros(0, dtype=int))
    for tile in tiles(2, 1, size=640, tile=64):
        cut, _ = take_view(image, tile, 640)
        assert (cut.pixels == 7).any()


def test_tiles_hold_the_images_pixels_and_boxes_and_lead_back() -> None:
    pixels = np.arange(200 * 300, dtype=np.uint16).reshape(200, 300)
    boxes = np.array([[10, 20, 30, 40], [250, 150, 290, 190]], dtype=np.float32)
    image = Labelled(pixels, boxes, np.array([0, 1]))
    seen = []
    for tile in tiles(300, 200, size=300, tile=128):
        cut, geometry = take_view(image, tile, 300)
        left, top = tile.corner
        own = pixels[top : top + 128, left : left + 128]
        np.testing.assert_array_equal(cut.pixels[: own.shape[0], : own.shape[1]], own)
        assert (geometry.scale, geometry.pad_x, geometry.pad_y) == (1, -left, -top)
        assert geometry.own == tile.own
        back = (cut.boxes - [geometry.pad_x, geometry.pad_y] * 2) / geometry.scale
        for box, label in zip(back, cut.labels, strict=True):
            if (box == boxes[label]).all():
                seen.append(int(label))
    assert set(seen) == {0, 1}


def test_the_rest_of_a_tile_is_mid_grey() -> None:
    image = Labelled(np.zeros((60, 90), dtype=np.uint8), np.zeros((0, 4), np.float32), np.zeros(0, dtype=int))
    (only,) = tiles(90, 60, size=90, tile=96)
    cut, _ = take_view(image, only, 90)
    assert (cut.pixels[:60, :90] == 0).all()
    assert (cut.pixels[60:] == 128).all()
    assert (cut.pixels[:, 90:] == 128).all()
