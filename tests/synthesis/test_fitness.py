import numpy as np
import pytest

from boxtwin.synthesis.fitness import unfit

RNG = np.random.default_rng(0)
SCENE = RNG.integers(1000, 1200, (64, 64)).astype(np.uint16)
FLAT = np.full((64, 64), 500, np.uint16)
FLAT[30:34, 30:34] = 3000  # fewer than 1 % of the pixels


def test_hot_pixels_do_not_make_variations_blank() -> None:
    hot = SCENE.copy()
    hot[5, 5] = hot[40, 20] = 65535
    assert hot.std() > 10 * SCENE.std()
    assert unfit(hot, SCENE[::-1]) is None
    assert (unfit(hot, np.full_like(hot, 1100)) or "").startswith("blank")
    black = np.zeros_like(hot)
    black[9, 9] = 60000
    assert (unfit(SCENE, black) or "").startswith("blank")


@pytest.mark.parametrize("shift", [0, 1, 40])
def test_images_that_are_mostly_of_one_value_may_be_shifted(shift: int) -> None:
    assert unfit(FLAT, FLAT + np.uint16(shift)) is None


DARK = RNG.integers(0, 4096, (64, 64)).astype(np.uint16)  # from 0, as microscopes write


@pytest.mark.parametrize("source", [FLAT, SCENE, DARK])
def test_levels_of_another_scale_are_refused(source: np.ndarray) -> None:
    assert (unfit(source, source * 16) or "").startswith("levels")
    assert unfit(source, source // 2 * 2) is None
    assert unfit(DARK, DARK // 2) is None


def test_colour_is_judged_too() -> None:
    colour = np.stack([SCENE, SCENE, SCENE + 5], axis=2)
    assert unfit(colour, colour[::-1]) is None
    assert (unfit(colour, np.full_like(colour, 1000)) or "").startswith("blank")
