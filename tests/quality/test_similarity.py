"""Layouts and grain: what is the same, what is like, and what has nothing to do with each other."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from boxtwin.datasets.image_io import read_image
from boxtwin.quality.record import COPY
from boxtwin.quality.similarity import (
    MOST_SUMS,
    GrainIndex,
    common_shape,
    grain,
    layout,
    layout_distances,
    nearer_than_chance,
    nearest_layout,
    repeated,
)
from boxtwin.quality.texture import as_float_grey


def scene(seed: int, *, size: tuple[int, int] = (256, 256), grain_seed: int | None = None) -> np.ndarray:
    """A smooth scene of its own with single-look speckle on it."""
    rng = np.random.default_rng(seed)
    coarse = cv2.resize(rng.uniform(5, 40, (8, 8)).astype(np.float32), size[::-1], interpolation=cv2.INTER_CUBIC)
    noise = np.random.default_rng(1000 + seed if grain_seed is None else grain_seed).exponential(size=size)
    return (np.maximum(coarse, 2) * np.sqrt(noise)).astype(np.float32)


def test_layout_distance_of_same_other_and_negative() -> None:
    a, b = layout(scene(0)), layout(scene(1))
    distances = layout_distances(np.stack([a, b, -a]), a[None])[:, 0]
    assert distances[0] == pytest.approx(0, abs=1e-6)
    assert distances[1] == pytest.approx(1 - np.corrcoef(a, b)[0, 1], abs=1e-5)
    assert distances[2] == pytest.approx(2, abs=1e-6)


def test_a_scene_seen_again_is_near_in_layout_and_shares_no_grain() -> None:
    first, second = scene(0), scene(0, grain_seed=77)
    assert layout_distances(layout(first)[None], layout(second)[None])[0, 0] < 0.3
    shape = common_shape([first.shape])
    assert abs(repeated(grain(first, shape), grain(second, shape))) < 0.03


def test_brightness_and_contrast_change_neither() -> None:
    first = scene(0)
    second = np.clip(0.5 * first + 30, 0, 255)
    assert layout_distances(layout(first)[None], layout(second)[None])[0, 0] < 1e-5
    shape = common_shape([first.shape])
    assert repeated(grain(first, shape), grain(second, shape)) > 0.95


def test_flat_images_are_like_each_other_and_nothing_else() -> None:
    flat = np.stack([layout(np.full((50, 60), value, np.float32)) for value in (0.0, 0.1, 200.3)])
    np.testing.assert_array_equal(layout_distances(flat, flat), 0)
    np.testing.assert_array_equal(layout_distances(flat, layout(scene(0))[None]), 1)
    empty = grain(np.full((64, 64), 0.3, np.float32), (64, 64))
    assert not empty.any()
    assert repeated(empty, empty) == 0


@pytest.mark.parametrize("size", [(64, 64), (65, 97), (30, 200), (1, 1), (2, 3)])
def test_an_image_repeats_its_own_grain_whatever_its_size(size: tuple[int, int]) -> None:
    shape = common_shape([size])
    assert all(even % 2 == 0 and even >= length for even, length in zip(shape, size, strict=True))
    own = grain(scene(0, size=size), shape)
    reference = np.fft.irfft2(own * own.conj(), s=shape)
    assert repeated(own, own) == pytest.approx(reference[0, 0], abs=1e-4)
    if min(size) > 2:
        assert repeated(own, own) == pytest.approx(1, abs=0.02)


def test_grain_is_the_transform_of_the_signs() -> None:
    """numpy's transform of the same signs, phases only."""
    grey = scene(0, size=(48, 80))
    signs = np.sign(grey - cv2.GaussianBlur(grey, (0, 0), 1.5))
    expected = np.fft.rfft2(signs - signs.mean())
    expected /= np.maximum(np.abs(expected), 1e-6)
    own = grain(grey, (48, 80))
    kept = own != 0
    assert kept.mean() > 0.99
    np.testing.assert_allclose(own[kept], expected[kept], atol=2e-3)


def index_of(images: list[np.ndarray], shape: tuple[int, int]) -> tuple[GrainIndex, list[np.ndarray]]:
    index, grains = GrainIndex(len(images), shape), [grain(image, shape) for image in images]
    for number, own in enumerate(grains):
        index.add(number, own)
    return index, grains


@pytest.mark.parametrize("shift", [(0, 0), (90, 0), (64, 150)])
def test_a_shifted_copy_is_found_among_many(shift: tuple[int, int]) -> None:
    images = [scene(seed) for seed in range(40)]
    shape = common_shape([(256, 256)])
    index, _ = index_of(images, shape)
    wide = scene(100, size=(512, 512))
    wide[100:356, 100:356] = images[17]
    cut = wide[100 + shift[0] : 356 + shift[0], 100 + shift[1] : 356 + shift[1]]  # the rest is another scene
    match = index.find(grain(cut, shape))
    assert match is not None
    assert match.number == 17
    # The share is that of the area, and then less: phases mix.
    overlap = (256 - shift[0]) * (256 - shift[1]) / 256**2
    assert 0.5 * overlap < match.share < 1.2 * overlap


def test_nothing_is_found_where_nothing_is() -> None:
    images = [scene(seed) for seed in range(40)]
    shape = common_shape([(256, 256)])
    index, grains = index_of(images, shape)
    assert not any(index.find(grain(scene(200 + seed), shape)) for seed in range(20))
    for number in (0, 39):
        match = index.find(grains[number])
        assert match is not None
        assert match.number == number
        assert match.share == pytest.approx(1, abs=0.01)
        assert index.find(grains[number], leave_out=(number, grains[number])) is None


def test_jpeg_and_bright_objects_leave_a_copy_a_copy() -> None:
    images = [scene(seed) for seed in range(10)]
    shape = common_shape([(256, 256)])
    index, _ = index_of(images, shape)
    done, encoded = cv2.imencode(".jpg", np.clip(images[4], 0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 90])
    assert done
    decoded = cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED)
    assert decoded is not None
    again = decoded.astype(np.float32)
    again[50:80, 60:120] = 250
    match = index.find(grain(again, shape))
    assert match is not None
    assert match.number == 4
    assert match.share > COPY


def test_a_fixed_pattern_of_the_camera_is_no_match_and_hides_none() -> None:
    """Every image has a tenth of its grain from the sensor; one of a hundred is looked for, moved and unmoved."""
    rng = np.random.default_rng(5)
    shape = common_shape([(256, 256)])
    place = rng.random((256, 256)) < 0.35  # the pixels that the pattern decides
    fixed = rng.exponential(size=(256, 256)).astype(np.float32)

    def photo(seed: int) -> np.ndarray:
        own = np.random.default_rng(seed).exponential(size=(256, 256)).astype(np.float32)
        return np.where(place, fixed, own)

    images = [photo(seed) for seed in range(100)]
    index, grains = index_of(images, shape)
    between = [repeated(grains[0], other) for other in grains[1:]]
    assert min(between) > 0.05
    for number in (0, 50, 99):
        other = index.find(grains[number], leave_out=(number, grains[number]))
        assert other is None or other.share == pytest.approx(float(np.mean(between)), abs=0.06)
    for shift in ((0, 0), (1, 0), (40, 90)):
        match = index.find(grain(np.roll(images[70], shift, (0, 1)), shape))
        assert match is not None
        assert match.number == 70
        assert match.share > 0.9


def test_the_work_for_one_image_does_not_grow_with_their_number() -> None:
    """Inverse transforms are what costs: one for each sum."""
    shape = common_shape([(64, 64)])
    few, many = GrainIndex(5, shape), GrainIndex(2000, shape)
    assert len(few._sums) == 1
    assert len(many._sums) == MOST_SUMS
    own = grain(scene(1, size=(64, 64)), shape)
    for number in range(2000):
        many.add(number, own if number == 1234 else grain(scene(number + 2, size=(64, 64)), shape))
    match = many.find(own)
    assert match is not None
    assert match.number == 1234
    assert match.share == pytest.approx(1, abs=0.02)


def test_a_part_of_one_of_thousands_is_found_and_each_takes_little_memory() -> None:
    shape, count = common_shape([(128, 128)]), 3000
    rng = np.random.default_rng(0)
    index = GrainIndex(count, shape)
    wanted = rng.exponential(size=(128, 128)).astype(np.float32)
    half = np.where(np.arange(128) < 64, wanted, rng.exponential(size=(128, 128))).astype(np.float32)
    # A twentieth of the grain is common to all, as of one camera.
    fixed = np.where(rng.random((128, 128)) < 0.25, rng.exponential(size=(128, 128)), np.nan)
    for number in range(count):
        own = rng.exponential(size=(128, 128)) if number != 2345 else wanted
        index.add(number, grain(np.where(np.isnan(fixed), own, fixed).astype(np.float32), shape))
    for seen in (half, np.roll(half, (1, 0), (0, 1))):
        match = index.find(grain(seen, shape))
        assert match is not None
        assert match.number == 2345
        assert match.share > 0.2
    arrays = [value for value in vars(index).values() if isinstance(value, np.ndarray) and len(value) == count]
    assert len(arrays) > 1
    assert sum(array.nbytes for array in arrays) / count < 25_000


@pytest.mark.parametrize(("kind", "within"), [("smooth", 1e-6), ("flat", 1e-6), ("alike", 1e-6), ("noise", 0.02)])
def test_the_nearest_layout_is_that_of_comparing_all(kind: str, within: float) -> None:
    rng = np.random.default_rng(1)
    side = {"smooth": 6, "noise": 64, "flat": 6, "alike": 6}[kind]
    coarse = rng.uniform(0, 200, (400, side, side)).astype(np.float32)
    if kind == "alike":  # one place, over and over
        coarse = coarse[:1] + rng.normal(0, 1, coarse.shape).astype(np.float32)
    if kind == "flat":
        coarse[50:250] = 7
    layouts = np.stack([layout(cv2.resize(one, (64, 64), interpolation=cv2.INTER_CUBIC)) for one in coarse])
    expected = layout_distances(layouts, layouts[:300])
    for number in range(0, 400, 15):
        row = expected[number].copy()
        found, distance = nearest_layout(layouts[:300], layouts[number])
        assert distance == pytest.approx(row.min(), abs=within)
        assert row[found] == pytest.approx(row.min(), abs=within)
        if number < 300:
            row[number] = np.inf
            found, distance = nearest_layout(layouts[:300], layouts[number], leave_out=number)
            assert found != number
            assert distance == pytest.approx(row.min(), abs=within)
    assert nearest_layout(layouts[:1], layouts[0], leave_out=0)[1] == np.inf


def test_real_chips_share_grain_where_their_names_say_that_they_overlap(hrsid200: Path) -> None:
    """HRSID's names hold the place of a chip in its acquisition: scene, left, right, top, bottom, in pixels."""
    overlapping = ["P0019_4800_5600_6000_6800.jpg", "P0019_5400_6200_6000_6800.jpg"]
    others = sorted(path.name for path in (hrsid200 / "JPEGImages").iterdir() if not path.name.startswith("P0019"))
    chosen = list({name[:5]: name for name in reversed(others)}.values())[::-1][:18]  # the first of each scene
    images = [as_float_grey(read_image(hrsid200 / "JPEGImages" / name)) for name in [*overlapping, *chosen]]
    shape = common_shape([image.shape for image in images])
    index, grains = index_of(images, shape)
    for number, own in enumerate(grains):
        match = index.find(own, leave_out=(number, own))
        if number < 2:
            assert match is not None
            assert match.number == 1 - number
            assert match.share == pytest.approx(0.25, abs=0.08)  # 200 of 800 columns
        else:
            assert match is None


def test_sizes_may_differ_and_large_images_are_compared_in_their_middle() -> None:
    assert common_shape([(100, 300), (200, 50)]) == (200, 300)
    assert common_shape([(5000, 40)])[0] == 1024
    shape = (128, 128)
    large = scene(0, size=(300, 200))
    middle = large[86:214, 36:164]
    # Filtered before or after cutting differs within the filter's reach of the border only.
    assert repeated(grain(large, shape), grain(middle, shape)) > 0.8
    small = grain(scene(1, size=(50, 70)), shape)
    assert repeated(small, small) > 0.95


@pytest.mark.parametrize(("n", "m", "levels"), [(30, 50, 10_000), (12, 9, 6), (1, 40, 100), (3, 3, 2)])
def test_chance_agrees_with_scipy(n: int, m: int, levels: int) -> None:
    rng = np.random.default_rng(n)
    a, b = rng.integers(0, levels, n).astype(float), rng.integers(0, levels, m) + levels / 8
    expected = mannwhitneyu(a, b, alternative="less", method="asymptotic").pvalue
    assert nearer_than_chance(a, b) == pytest.approx(expected, abs=1e-12)


def test_chance_without_values_or_differences_is_certain() -> None:
    assert nearer_than_chance(np.zeros(0), np.ones(3)) == 1
    assert nearer_than_chance(np.ones(3), np.zeros(0)) == 1
    assert nearer_than_chance(np.ones(4), np.ones(5)) == 1
