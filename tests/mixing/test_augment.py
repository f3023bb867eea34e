import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from boxtwin.mixing.augment import augment
from boxtwin.mixing.letterbox import LEAST_SIDE, LEAST_VISIBLE, Labelled, _resize, letterbox
from boxtwin.mixing.options import AugmentationOptions

OBJECT = 250
PADDING = 50  # far below an object, so that a threshold finds objects alone
LOOKS: list[dict[str, Any]] = [{}, {"channels": 3}, {"unit": 257}, {"channels": 3, "unit": 257}]


@pytest.fixture(autouse=True)
def dark_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("boxtwin.mixing.letterbox.PAD", PADDING / 255)


def picture(
    width: int = 90,
    height: int = 60,
    box: tuple[int, int, int, int] | None = (30, 20, 54, 32),
    *,
    label: int = 0,
    channels: int = 1,
    unit: int = 1,
) -> Labelled:
    """One bright rectangle on black, or black alone."""
    pixels = np.zeros((height, width) if channels == 1 else (height, width, channels), dtype=int)
    boxes = np.zeros((0, 4), dtype=np.float32)
    if box is not None:
        x1, y1, x2, y2 = box
        pixels[y1:y2, x1:x2] = OBJECT * unit
        boxes = np.array([box], dtype=np.float32)
    labels = np.full(len(boxes), label)
    return Labelled(pixels.astype(np.uint8 if unit == 1 else np.uint16), boxes, labels)


def bright_box(pixels: np.ndarray, unit: int = 1) -> np.ndarray | None:
    """The bounding box of what is brighter than half an object."""
    values = pixels if pixels.ndim == 2 else pixels.max(axis=2)
    rows, columns = np.nonzero(values > OBJECT * unit / 2)
    if len(rows) == 0:
        return None
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])


def no_partner() -> Labelled:
    raise AssertionError("no partner was needed")


def augmented(
    image: Labelled, seed: int, size: int = 96, unit: int = 1, crop: int | None = None, **settings: Any
) -> Labelled:
    random = np.random.default_rng(seed)
    return augment(image, no_partner, AugmentationOptions(**settings), size=size, crop=crop or size, random=random)


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize(
    ("size", "width", "height"),
    [(96, 96, 96), (96, 90, 60), (128, 60, 90), (64, 200, 120), (416, 81, 81), (64, 201, 67)],
)
def test_letterbox_can_be_undone(size: int, width: int, height: int, look: dict[str, Any]) -> None:
    image = picture(width, height, **look)
    boxed, geometry = letterbox(image, size)
    assert boxed.pixels.shape == (size, size, *image.pixels.shape[2:])
    assert boxed.pixels.dtype == image.pixels.dtype
    assert geometry.scale == size / max(width, height)
    found = bright_box(boxed.pixels, look.get("unit", 1))
    assert found is not None
    np.testing.assert_allclose(boxed.boxes[0], found, atol=1)
    pad = np.array([geometry.pad_x, geometry.pad_y] * 2)
    np.testing.assert_allclose((boxed.boxes - pad) / geometry.scale, image.boxes, atol=1e-4)
    assert (boxed.boxes >= 0).all()
    assert (boxed.boxes <= size).all()
    # Padding is on both sides, and nowhere else.
    padding = boxed.pixels == PADDING * look.get("unit", 1)
    padding = padding if padding.ndim == 2 else padding.all(axis=2)
    expected = size * size - round(width * geometry.scale) * round(height * geometry.scale)
    assert padding.sum() >= expected
    assert padding.sum() <= expected + 4 * size  # some pixels at the object's rim may have that value


def test_letterbox_keeps_small_objects_and_no_objects() -> None:
    small = picture(400, 400, (10, 10, 11, 11))
    assert len(letterbox(small, 64)[0].boxes) == 1  # what is evaluated on is not sifted
    empty, _ = letterbox(picture(box=None), 64)
    assert empty.boxes.shape == (0, 4)
    same, geometry = letterbox(picture(64, 64), 64)
    np.testing.assert_array_equal(same.pixels, picture(64, 64).pixels)
    assert (geometry.scale, geometry.pad_x, geometry.pad_y) == (1, 0, 0)


def test_without_settings_it_is_the_letterbox() -> None:
    for image in (picture(), picture(50, 77), picture(300, 200)):
        expected, _ = letterbox(image, 96)
        result = augmented(image, 0)
        np.testing.assert_array_equal(result.pixels, expected.pixels)
        np.testing.assert_allclose(result.boxes, expected.boxes)


GEOMETRIES = [
    {"flip_horizontal": True},
    {"flip_vertical": True},
    {"quarter_turns": True},
    {"zoom": 1.8},
    {"translate": 0.4},
    {"flip_horizontal": True, "flip_vertical": True, "quarter_turns": True, "zoom": 1.5, "translate": 0.3},
]


@pytest.mark.parametrize("settings", GEOMETRIES, ids=lambda settings: "+".join(settings))
@pytest.mark.parametrize("look", LOOKS, ids=["grey8", "colour8", "grey16", "colour16"])
def test_boxes_move_with_pixels(settings: dict[str, Any], look: dict[str, Any]) -> None:
    seen = set()
    image = picture(box=(8, 20, 32, 32), **look)
    for seed in range(40):
        result = augmented(image, seed, unit=look.get("unit", 1), **settings)
        assert result.pixels.shape[:2] == (96, 96)
        assert result.pixels.dtype == image.pixels.dtype
        found = bright_box(result.pixels, look.get("unit", 1))
        if len(result.boxes):
            assert found is not None
            np.testing.assert_allclose(result.boxes[0], found, atol=1)
            assert (result.boxes >= 0).all()
            assert (result.boxes <= 96).all()
            seen.add(tuple(np.round(result.boxes[0]).tolist()))
    assert len(seen) >= 2
    np.testing.assert_array_equal(image.pixels, picture(box=(8, 20, 32, 32), **look).pixels)  # left as it was


def test_turns_and_flips_reach_all_eight_symmetries_exactly() -> None:
    image = picture(64, 64, (5, 10, 25, 16))
    results = [augmented(image, seed, size=64, flip_horizontal=True, quarter_turns=True) for seed in range(100)]
    whole = {tuple(result.boxes[0].tolist()) for result in results}
    x1, y1, x2, y2 = 5, 10, 25, 16
    across, down = ((x1, x2), (64 - x2, 64 - x1)), ((y1, y2), (64 - y2, 64 - y1))
    expected = {(a[0], b[0], a[1], b[1]) for a, b in itertools.product(across, down)}
    expected |= {(b[0], a[0], b[1], a[1]) for a, b in itertools.product(across, down)}
    assert whole == expected
    for result in results:
        np.testing.assert_array_equal(bright_box(result.pixels), result.boxes[0])


def test_flips_happen_half_of_the_time_and_switch_off_alone() -> None:
    image = picture(64, 64, (5, 10, 25, 16))
    both = [augmented(image, seed, size=64, flip_horizontal=True, flip_vertical=True) for seed in range(200)]
    only = [augmented(image, seed, size=64, flip_horizontal=True) for seed in range(200)]
    mirrored = [result.boxes[0, 0] == 64 - 25 for result in both]
    assert 75 <= sum(mirrored) <= 125
    assert 75 <= sum(result.boxes[0, 1] == 64 - 16 for result in both) <= 125
    assert mirrored == [result.boxes[0, 0] == 64 - 25 for result in only]
    assert all(result.boxes[0, 1] == 10 for result in only)


def mosaic(images: list[Labelled], seed: int, unit: int = 1, size: int = 96, **settings: Any) -> Labelled:
    partners = iter(images[1:])
    options = AugmentationOptions(mosaic=1.0, **settings)
    random = np.random.default_rng(seed)
    result = augment(images[0], lambda: next(partners), options, size=size, crop=96, random=random)
    assert next(partners, None) is None
    return result


SIZES = [(90, 60), (60, 90), (96, 96), (150, 100)]


def middle(width: int, height: int) -> tuple[int, int, int, int]:
    """A box of 32 x 18 pixels in the middle, where each of the four images of a mosaic is cut off now and then."""
    return width // 2 - 16, height // 2 - 9, width // 2 + 16, height // 2 + 9


@pytest.mark.parametrize("settings", [{}, {"zoom": 1.5, "flip_horizontal": True, "quarter_turns": True}])
@pytest.mark.parametrize("channels", [(1, 1, 1, 1), (3, 3, 3, 3), (1, 3, 1, 3), (3, 1, 3, 1)])
@pytest.mark.parametrize("unit", [1, 257])
def test_mosaic_boxes_move_with_pixels(settings: dict[str, Any], channels: tuple[int, ...], unit: int) -> None:
    """Each image's object is looked for by itself, in the same mosaic with the other three objects left out."""
    looks = [{"channels": c, "unit": unit} for c in channels]
    kept = []
    for seed in range(12):
        shown = [picture(*SIZES[n], middle(*SIZES[n]), label=n, **looks[n]) for n in range(4)]
        dark = [picture(*SIZES[n], None, **looks[n]) for n in range(4)]
        together = mosaic(shown, seed, unit, **settings)
        assert together.pixels.shape == ((96, 96) if channels[0] == 1 else (96, 96, 3))
        assert len(set(together.labels.tolist())) == len(together.labels)
        kept += together.labels.tolist()
        for n in range(4):
            alone = mosaic([shown[m] if m == n else dark[m] for m in range(4)], seed, unit, **settings)
            found = bright_box(alone.pixels, unit)
            boxes = together.boxes[together.labels == n]
            np.testing.assert_array_equal(alone.boxes, boxes)
            if len(boxes):
                assert found is not None
                np.testing.assert_allclose(boxes[0], found, atol=1)
            elif found is not None and not settings:
                scale = 96 / max(SIZES[n])
                width, height = found[2:] - found[:2]
                share = (width - 1) * (height - 1) / (32 * 18 * scale**2)  # a pixel's rim either way
                assert share < LEAST_VISIBLE or min(width, height) <= LEAST_SIDE + 1
    assert set(kept) == {0, 1, 2, 3}


@pytest.mark.parametrize("settings", [{}, {"zoom": 1.5, "flip_horizontal": True, "quarter_turns": True}])
def test_crowds_move_with_pixels_and_any_part_of_one_stays(settings: dict[str, Any]) -> None:
    objects = [picture(*SIZES[n], middle(*SIZES[n]), label=n) for n in range(4)]
    areas = [replace(one, boxes=one.boxes[:0], labels=one.labels[:0], crowds=one.boxes) for one in objects]
    cut_off = 0
    for seed in range(12):
        found, expected = mosaic(areas, seed, **settings), mosaic(objects, seed, **settings)
        np.testing.assert_array_equal(found.pixels, expected.pixels)
        assert len(found.boxes) == len(found.labels) == len(expected.crowds) == 0
        assert all((box == found.crowds).all(axis=1).any() for box in expected.boxes)
        cut_off += len(found.crowds) - len(expected.boxes)
        bright = np.zeros((96, 96), dtype=bool)
        for x1, y1, x2, y2 in np.rint(found.crowds).astype(int):
            bright[max(y1 - 1, 0) : y2 + 1, max(x1 - 1, 0) : x2 + 1] = True
        assert not (found.pixels[~bright] > OBJECT / 2).any()
    assert cut_off > 0


def test_the_four_images_of_a_mosaic_meet_with_their_corners() -> None:
    corners = [(76, 76, 96, 96), (0, 76, 20, 96), (76, 0, 96, 20), (0, 0, 20, 20)]  # the ones that face the centre
    centres = set()
    for seed in range(10):
        # Images of a quarter of the mosaic fit any quadrant, and lie with their inner corners at the centre.
        result = mosaic([picture(96, 96, corner, label=n) for n, corner in enumerate(corners)], seed, size=24)
        assert result.labels.tolist() == [0, 1, 2, 3]
        x, y = result.boxes[3, :2]
        expected = [(x - 5, y - 5, x, y), (x, y - 5, x + 5, y), (x - 5, y, x, y + 5), (x, y, x + 5, y + 5)]
        np.testing.assert_allclose(result.boxes, expected)
        assert 28 <= min(x, y) <= max(x, y) <= 68
        centres.add((x, y))
    assert len(centres) == 10


@pytest.mark.parametrize("relative_size", [0.5, 1.0, 2.5])
def test_an_image_beside_the_data_set_has_the_scale_of_the_data_set(relative_size: float) -> None:
    """Images of the data set have 120 pixels, which become 96; these have so many times as many."""
    side = round(120 * relative_size)
    image = replace(picture(side, side, (10, 20, 40, 40)), relative_size=relative_size)
    turned: dict[str, Any] = {"flip_horizontal": True, "flip_vertical": True, "quarter_turns": True}
    turned["object_crop_fraction"] = 1.0
    whole = 0
    for seed in range(40):
        for result in (
            augmented(image, seed, crop=96, **turned),
            mosaic([image, *(picture(120, 120, None) for _ in range(3))], seed, **turned),
        ):
            if len(result.boxes) and min(result.boxes[0, :2]) > 0 and max(result.boxes[0, 2:]) < 96:
                sides = sorted((result.boxes[0, 2:] - result.boxes[0, :2]).tolist())
                is_whole = sides == pytest.approx([16, 24], abs=0.01)
                assert is_whole or min(sides) < 16 or max(sides) < 24  # cut off at the centre of a mosaic
                whole += is_whole
    assert whole > 5


@pytest.mark.parametrize("look", LOOKS, ids=["grey8", "colour8", "grey16", "colour16"])
@pytest.mark.parametrize("zoom", [1.0, 1.5])
def test_crops_show_parts_of_the_image_and_its_boxes(look: dict[str, Any], zoom: float) -> None:
    image = picture(300, 200, (140, 90, 164, 102), **look)
    unit = look.get("unit", 1)
    results = [augmented(image, seed, size=300, crop=96, unit=unit, zoom=zoom) for seed in range(60)]
    for result in results:
        assert result.pixels.shape[:2] == (96, 96)
        found = bright_box(result.pixels, unit)
        if len(result.boxes):
            assert found is not None
            np.testing.assert_allclose(result.boxes[0], found, atol=1)
        # The image is larger than the crop: there is no padding.
        assert (result.pixels == PADDING * unit).mean() < 0.02
    with_object = sum(len(result.boxes) for result in results)
    assert 5 <= with_object <= 40
    corners = {tuple(result.boxes[0, :2].tolist()) for result in results if len(result.boxes)}
    assert len(corners) >= with_object / 2


def test_some_images_keep_their_own_pixels() -> None:
    random = np.random.default_rng(0)
    grain = Labelled(random.integers(0, 255, (96, 96), dtype=np.uint8), np.zeros((0, 4), np.float32), np.zeros(0, int))
    deviations = [
        augmented(grain, seed, size=96, crop=64, zoom=1.3, unscaled_fraction=0.4).pixels.std() for seed in range(200)
    ]
    sharp = [deviation > 65 for deviation in deviations]  # of the noise: 74; resampled: 40 to 50
    assert all(deviation < 55 for deviation, is_sharp in zip(deviations, sharp, strict=True) if not is_sharp)
    assert 60 <= sum(sharp) <= 100


def test_focused_crops_hold_an_object() -> None:
    far = picture(300, 200, (34, 34, 54, 46))
    seen = [augmented(far, seed, size=300, crop=96, object_crop_fraction=1.0) for seed in range(60)]
    assert all(len(result.boxes) == 1 for result in seen)
    assert len({tuple(result.boxes[0].tolist()) for result in seen}) > 20  # not always at the same place
    half = [len(augmented(far, seed, size=300, crop=96, object_crop_fraction=0.5).boxes) for seed in range(200)]
    assert 80 <= sum(half) <= 160
    assert not len(augmented(picture(300, 200, None), 0, size=300, crop=96, object_crop_fraction=1.0).boxes)


def test_a_focused_mosaic_holds_an_object_of_each_image() -> None:
    images = [picture(300, 200, (n, n, n + 12, n + 12), label=i) for i, n in enumerate((4, 180, 60, 120))]
    for seed in range(20):
        result = mosaic(images, seed, size=300, object_crop_fraction=1.0)
        assert result.labels.tolist() == [0, 1, 2, 3]


def test_hue_and_saturation_change_colours_not_greys() -> None:
    colour = picture(64, 64, None, channels=3)
    colour.pixels[:] = (200, 100, 50)
    settings: dict[str, Any] = {"hue": 0.1, "saturation": 0.5}
    seen = set()
    for seed in range(20):
        result = augmented(colour, seed, size=64, **settings)
        red, green, blue = (int(value) for value in result.pixels[0, 0])
        assert max(red, green, blue) == 200  # the value is the gain's business
        seen.add((red, green, blue))
        grey = picture(64, 64)
        same = augmented(grey, seed, size=64, **settings)
        np.testing.assert_array_equal(same.pixels, grey.pixels)
    assert len(seen) > 10
    assert all(np.ptp(pixel) > 50 for pixel in seen)


def test_mosaics_come_as_often_as_asked_for() -> None:
    calls = 0

    def partner() -> Labelled:
        nonlocal calls
        calls += 1
        return picture()

    options = AugmentationOptions(mosaic=0.3)
    for seed in range(200):
        augment(picture(), partner, options, size=32, crop=32, random=np.random.default_rng(seed))
    assert 40 <= calls / 3 <= 80


@pytest.mark.parametrize("scale", [0.37, 0.5, 1.3])
@pytest.mark.parametrize("look", LOOKS, ids=["grey8", "colour8", "grey16", "colour16"])
def test_resizing_a_turned_image_is_resizing_its_copy(scale: float, look: dict[str, Any]) -> None:
    image = picture(90, 70, (20, 30, 40, 45), **look).pixels
    for turns in range(4):
        for mirrored in (False, True):
            turned = np.rot90(image[:, ::-1] if mirrored else image, turns)[3:60, 5:50]
            expected = _resize(turned.copy(), scale).astype(int)
            # OpenCV sums up in another order; a step of the grey scale is rounding.
            assert np.abs(_resize(turned, scale).astype(int) - expected).max() <= 1
            if turned.ndim == 2:
                as_colour = np.broadcast_to(turned[:, :, None], (*turned.shape, 3))
                assert np.abs(_resize(as_colour, scale).astype(int) - expected[:, :, None]).max() <= 1


@pytest.mark.parametrize(("left", "stays"), [(1, False), (2, False), (4, True), (9, True)])
def test_an_object_of_which_too_little_is_left_goes(left: int, stays: bool) -> None:
    # Ten pixels wide and 40 tall at the border; a shift leaves so many of its columns.
    image = picture(96, 96, (0, 20, 10, 60))
    for seed in range(3000):
        result = augmented(image, seed, translate=0.1)
        found = bright_box(result.pixels)
        if found is not None and found[0] == 0 and found[2] == left:
            assert (len(result.boxes) == 1) == stays
            return
    raise AssertionError("no such shift")


def test_objects_under_two_pixels_go() -> None:
    assert len(augmented(picture(96, 96, (10, 10, 12, 50)), 0).boxes) == 1
    assert len(augmented(picture(192, 192, (10, 10, 13, 50)), 0).boxes) == 0


@pytest.mark.parametrize(("unit", "white"), [(1, 255), (257, 65535)])
@pytest.mark.parametrize("channels", [1, 3])
def test_gain_multiplies_and_stops_at_white(unit: int, white: int, channels: int) -> None:
    image = picture(64, 64, (0, 0, 64, 64), channels=channels, unit=unit)
    image.pixels[:, :32] = 50 * unit
    factors = []
    for seed in range(100):
        result = augmented(image, seed, size=64, gain=0.4)
        dark = int(result.pixels[10, 10].max())
        factors.append(dark / (50 * unit))
        assert (result.pixels[:, :32] == dark).all()
        bright = min(OBJECT * unit * factors[-1], white)
        np.testing.assert_allclose(result.pixels[:, 32:], bright, atol=3)
        np.testing.assert_array_equal(result.boxes, image.boxes)
    logs = np.log(factors)
    assert -0.42 <= logs.min() < -0.3
    assert 0.3 < logs.max() <= 0.42


def test_speckle_is_unbiased_noise_that_grows_with_the_signal() -> None:
    for level in (10, 120):
        image = Labelled(np.full((128, 128, 3), level, dtype=np.uint8), np.zeros((0, 4), np.float32), np.zeros(0, int))
        result = augmented(image, 0, size=128, speckle=0.2).pixels.astype(float)
        assert result.mean() == pytest.approx(level, abs=0.01 * level)
        assert result.std() == pytest.approx(0.2 * level, rel=0.05)
        np.testing.assert_array_equal(result[:, :, 0], result[:, :, 2])  # one sensor's noise, not the colours'


def test_the_generator_alone_decides() -> None:
    settings: dict[str, Any] = {
        "mosaic": 0.5,
        "zoom": 1.3,
        "translate": 0.1,
        "quarter_turns": True,
        "gain": 0.2,
        "speckle": 0.1,
    }
    options = AugmentationOptions(**settings)
    for seed in range(5):
        one, same, other = (
            augment(picture(), picture, options, size=48, crop=32, random=np.random.default_rng(s))
            for s in (seed, seed, seed + 100)
        )
        np.testing.assert_array_equal(one.pixels, same.pixels)
        np.testing.assert_array_equal(one.boxes, same.boxes)
        assert (one.pixels != other.pixels).any()


@pytest.mark.parametrize(
    "wrong", [{"mosaic": 1.1}, {"mosaic": -0.1}, {"zoom": 0.9}, {"translate": -0.1}, {"gain": -1.0}, {"speckle": -0.1}]
)
def test_wrong_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        AugmentationOptions(**wrong)  # type: ignore[arg-type]
