import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boxtwin.datasets.levels import HEADROOM, Levels, check_depth, measure_levels, widened
from boxtwin.datasets.sample import Sample
from boxtwin.errors import InputError

GROUND, OBJECT = 400, 3000


def scene(seed: int, *, offset: int = 0, objects: int = 3, side: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """A noisy 16 bit image with bright squares, and their boxes."""
    rng = np.random.default_rng(seed)
    pixels = rng.normal(GROUND, 40, (96, 128))
    boxes = np.array([(10 + 40 * n, 20, 10 + 40 * n + side, 20 + side) for n in range(objects)], np.float32)
    for x, y, x2, y2 in boxes.reshape(-1, 4).astype(int):
        pixels[y:y2, x:x2] = rng.normal(OBJECT, 100, (y2 - y, x2 - x))
    return (pixels.round() + offset).astype(np.uint16), boxes.reshape(-1, 4)


class Images:
    """Samples and their pixels, in memory."""

    def __init__(self, scenes: list[tuple[np.ndarray, np.ndarray]], bits: int = 16) -> None:
        self.pixels = {f"{number}.png": pixels for number, (pixels, _) in enumerate(scenes)}
        self.samples = [self._sample(number, *scene, bits) for number, scene in enumerate(scenes)]

    @staticmethod
    def _sample(number: int, pixels: np.ndarray, boxes: np.ndarray, bits: int) -> Sample:
        count, (height, width) = len(boxes), pixels.shape[:2]
        labels, areas, crowd = np.zeros(count, int), np.ones(count), np.zeros(count, bool)
        return Sample(f"{number}.png", Path(), width, height, number, boxes, labels, areas, crowd, bits=bits)

    def measure(self) -> Any:
        return measure_levels(self.samples, lambda sample: self.pixels[sample.name])


def scenes(count: int = 12, **settings: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    return [scene(seed, **settings) for seed in range(count)]


@pytest.mark.parametrize("place", [(50, 100), (0, 0), (95, 127), (25, 15), (20, 10)])  # the last two are in an object
def test_a_hot_pixel_moves_neither_black_nor_white(place: tuple[int, int]) -> None:
    control = Images(scenes()).measure()
    assert control.remarks == ()
    for value, named in ((65535, True), (0, False)):
        images = Images(scenes())
        images.pixels["3.png"][place] = value
        measured = images.measure()
        # The clean set's extremes are its levels' limits, which one pixel may lift by the headroom.
        room = HEADROOM * (control.levels.full_scale - control.levels.black)
        assert abs(measured.levels.full_scale - control.levels.full_scale) <= room
        assert abs(measured.levels.black - control.levels.black) <= room
        assert any("3.png (65535)" in remark for remark in measured.remarks) == named


def test_a_defective_column_and_pairs_move_neither() -> None:
    control, images = Images(scenes()).measure(), Images(scenes())
    for pixels in images.pixels.values():
        pixels[:, 15] = 65535  # through an object
        pixels[60, 70:72] = 65535
    assert images.measure().levels.full_scale <= control.levels.full_scale * (1 + HEADROOM)


@pytest.mark.parametrize("offset", [100, 51000])
def test_an_offset_is_taken_off(offset: int) -> None:
    plain, shifted = Images(scenes()).measure().levels, Images(scenes(offset=offset)).measure().levels
    assert (shifted.black, shifted.full_scale) == (plain.black + offset, plain.full_scale + offset)


@pytest.mark.parametrize("side", [2, 3, 12])
def test_what_is_in_boxes_is_not_cut_off(side: int) -> None:
    images = Images(scenes(side=side, objects=1))
    levels = images.measure().levels
    for sample in images.samples:
        (x1, y1, x2, y2) = sample.boxes[0].astype(int)
        inside = images.pixels[sample.name][y1:y2, x1:x2]
        assert levels.black <= inside.min()
        assert inside.max() <= levels.full_scale


def test_dark_objects_are_not_cut_off_either() -> None:
    images = Images([(5000 - pixels, boxes) for pixels, boxes in scenes(objects=1)])
    levels = images.measure().levels
    darkest = min(int(pixels[20:32, 10:22].min()) for pixels in images.pixels.values())
    assert levels.black <= darkest < levels.full_scale


def test_eight_bit_stays_as_it_is_and_a_narrow_range_is_named() -> None:
    bright = Images([((pixels // 16).astype(np.uint8), boxes) for pixels, boxes in scenes()], bits=8).measure()
    assert (bright.levels, bright.remarks) == (Levels(0, 255), ())
    faint = Images([((pixels // 512 + 100).astype(np.uint8), boxes) for pixels, boxes in scenes()], bits=8).measure()
    assert faint.levels == Levels(0, 255)
    assert "2.4 % of the range" in faint.remarks[0]  # 100 to 106 of 255


def test_a_scale_bar_that_sets_white_is_named() -> None:
    images = Images(scenes())
    for pixels in images.pixels.values():
        pixels[80:90, 10:110] = 65535
    (remark,) = images.measure().remarks
    assert "% of the range" in remark


def test_one_bright_image_and_empty_borders_that_set_the_range_are_named() -> None:
    """Levels hold what is in every box: where one image or a border reaches far, the others' objects are faint."""
    assert Images(scenes()).measure().remarks == ()
    bright = Images(scenes())
    bright.pixels["3.png"] = np.minimum(bright.pixels["3.png"].astype(int) * 15, 65535).astype(np.uint16)
    border = Images(scenes(offset=20000))
    for pixels in border.pixels.values():
        pixels[:, -8:] = 0  # no data there
    for images in (bright, border):
        (remark,) = images.measure().remarks
        share = re.search(r"half of the objects .* (\d+) % of the range", remark)
        assert share is not None
        assert 5 <= int(share[1]) <= 12


def test_scaled_is_the_line_through_black_and_white_clipped() -> None:
    values = np.arange(0, 65536, dtype=np.uint16)[None]
    levels = Levels(51241, 52181)
    share = np.clip((values - 51241.0) / 940, 0, 1)
    np.testing.assert_array_equal(levels.scaled(values), np.rint(share * 65535))
    inside = values[:, levels.black : levels.full_scale + 1]
    np.testing.assert_array_equal(levels.restored(levels.scaled(inside)), inside)
    eight = np.arange(256, dtype=np.uint8)[None]
    assert Levels().scaled(eight) is eight
    assert Levels().restored(eight) is eight


@pytest.mark.parametrize("levels", [(-1, 255), (300, 300), (0, 65536)])
def test_impossible_levels_are_refused(levels: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="black < full scale"):
        Levels(*levels)


@pytest.mark.parametrize("offset", [0, 51000])
def test_eight_bit_variations_are_as_bright_as_their_source(offset: int) -> None:
    source, _ = scene(0, offset=offset)
    low, high = int(source.min()), int(source.max())
    ways = {"stretched": np.rint((source - low) / (high - low) * 255)}
    if not offset:
        ways["12 bit shifted"] = source >> 4
    for way, values in ways.items():
        back = widened(values.astype(np.uint8), source)
        assert back.dtype == np.uint16
        np.testing.assert_allclose(back, source, atol=17, err_msg=way)  # one step of 8 bit is 16 of 12


def test_images_of_two_depths_are_named() -> None:
    mixed = [*Images(scenes(1)).samples, *Images(scenes(1), bits=8).samples]
    check_depth(mixed[:1])
    with pytest.raises(InputError, match=r"16 bit \(0\.png\) and .*8 bit \(0\.png\)"):
        check_depth(mixed)
