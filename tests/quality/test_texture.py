"""Metrics against formulas on known distributions, and against scipy."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from scipy.stats import wasserstein_distance

from boxtwin.datasets.image_io import read_image
from boxtwin.datasets.options import Speckle
from boxtwin.quality.texture import (
    TILE,
    as_float_grey,
    equivalent_looks,
    fine_energy,
    grey_levels,
    log_ratio,
    pooled,
    reference_of_halves,
    spectrum,
    wasserstein,
)

NO_BOXES = np.zeros((0, 4))


def speckle(looks: float, *, size: int = 256, level: float = 20.0, seed: int = 0) -> np.ndarray:
    """Power of ``looks`` looks with mean ``level`` squared."""
    return level**2 * np.random.default_rng(seed).gamma(looks, 1 / looks, size=(size, size))


def amplitude(power: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(np.sqrt(power)), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("looks", [1, 2, 4, 8])
def test_gamma_speckle_has_its_number_of_looks(looks: int) -> None:
    power = speckle(looks, size=512)
    assert equivalent_looks(amplitude(power), NO_BOXES, Speckle.amplitude) == pytest.approx(looks, rel=0.06)
    deep = np.clip(np.rint(power), 0, 65535).astype(np.uint16)
    assert equivalent_looks(deep, NO_BOXES, Speckle.intensity) == pytest.approx(looks, rel=0.06)


def test_amplitudes_taken_for_power_read_as_too_many_looks() -> None:
    """Rayleigh: squared mean over variance is pi / (4 - pi)."""
    read = equivalent_looks(amplitude(speckle(1, size=512)), NO_BOXES, Speckle.intensity)
    assert read == pytest.approx(math.pi / (4 - math.pi), rel=0.03)


def test_looks_are_those_of_the_sea_whatever_else_is_there() -> None:
    power = speckle(4, size=512)
    power[:, 300:] *= np.random.default_rng(1).gamma(0.5, 2, size=(512, 212))  # land
    power[100:120, 100:140] = 250.0**2
    box = np.array([[100.0, 100, 140, 120]])
    assert equivalent_looks(amplitude(power), box, Speckle.amplitude) == pytest.approx(4, rel=0.1)


def test_smoothing_raises_the_looks() -> None:
    rough = amplitude(speckle(1))
    smooth = cv2.GaussianBlur(rough, (0, 0), 1)
    assert equivalent_looks(smooth, NO_BOXES, Speckle.amplitude) > 3 * equivalent_looks(
        rough, NO_BOXES, Speckle.amplitude
    )


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((128, 128), np.uint8),
        np.full((128, 128), 255, np.uint8),
        np.full((128, 128), 90, np.uint8),
        amplitude(speckle(1, size=20)),  # smaller than a patch
        amplitude(speckle(1, size=128, level=0.3)),  # swallowed by rounding
        np.random.default_rng(0).integers(0, 200, size=(128, 128, 3)).astype(np.uint8),  # in colour
    ],
    ids=["black", "white", "flat", "small", "dark", "colour"],
)
def test_without_calm_sea_there_are_no_looks(pixels: np.ndarray) -> None:
    assert math.isnan(equivalent_looks(pixels, NO_BOXES, Speckle.amplitude))


def test_land_alone_and_boxes_everywhere_leave_no_sea() -> None:
    land = amplitude(speckle(1) * np.repeat(np.repeat(np.random.default_rng(1).gamma(0.3, 3, (32, 32)), 8, 0), 8, 1))
    assert math.isnan(equivalent_looks(land, NO_BOXES, Speckle.amplitude))
    assert math.isnan(equivalent_looks(amplitude(speckle(1)), np.array([[0.0, 0, 256, 256]]), Speckle.amplitude))


def test_grey_stored_as_colour_counts_as_grey() -> None:
    grey = amplitude(speckle(1))
    colour = np.repeat(grey[:, :, None], 3, axis=2)
    assert equivalent_looks(colour, NO_BOXES, Speckle.amplitude) == equivalent_looks(grey, NO_BOXES, Speckle.amplitude)
    assert grey_levels(colour).shape == (1, 256)
    np.testing.assert_array_equal(as_float_grey(colour), as_float_grey(grey))


def test_hrsid_pixels_are_amplitudes_of_about_one_look(hrsid200: Path) -> None:
    """What conf/dataset/hrsid.yaml says of them."""
    chips = sorted((hrsid200 / "JPEGImages").iterdir())[::10]
    looks = [equivalent_looks(read_image(chip), NO_BOXES, Speckle.amplitude) for chip in chips]
    assert 1 < np.nanmedian(looks) < 1.7


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_wasserstein_agrees_with_scipy(dtype: type[np.unsignedinteger[Any]]) -> None:
    rng = np.random.default_rng(0)
    top = np.iinfo(dtype).max
    a = np.clip(rng.gamma(2, top / 20, size=(40, 50)), 0, top).astype(dtype)
    b = np.clip(rng.gamma(3, top / 15, size=(30, 60)), 0, top).astype(dtype)
    expected = wasserstein_distance(a.ravel().astype(float), b.ravel().astype(float)) / b.astype(float).std()
    assert wasserstein(grey_levels(a), grey_levels(b)) == pytest.approx(expected, rel=1e-9)


def test_wasserstein_in_colour_is_the_mean_over_channels() -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.integers(0, high, size=(20, 30, 3)).astype(np.uint8) for high in (200, 250))
    expected = [
        wasserstein_distance(a[:, :, c].ravel().astype(float), b[:, :, c].ravel().astype(float)) / b[:, :, c].std()
        for c in range(3)
    ]
    assert wasserstein(grey_levels(a), grey_levels(b)) == pytest.approx(np.mean(expected), rel=1e-9)


def test_wasserstein_of_equal_shifted_and_flat_images() -> None:
    grey = np.random.default_rng(0).integers(0, 200, size=(50, 50)).astype(np.uint8)
    assert wasserstein(grey_levels(grey), grey_levels(grey)) == 0
    assert wasserstein(grey_levels(grey + np.uint8(7)), grey_levels(grey)) == pytest.approx(7 / grey.std())
    flat = np.full((9, 9), 30, np.uint8)
    assert wasserstein(grey_levels(flat), grey_levels(flat)) == 0
    assert math.isnan(wasserstein(grey_levels(grey), grey_levels(flat)))


def test_depths_and_channels_may_differ_in_one_set() -> None:
    grey = np.random.default_rng(0).integers(0, 256, size=(30, 30)).astype(np.uint8)
    colour = np.stack([grey, grey // 2, grey // 3], axis=2)
    both = pooled([grey_levels(grey), grey_levels(grey.astype(np.uint16) * 257), grey_levels(colour)])
    assert both.shape == (3, 65536)
    assert both.sum() == 3 * 3 * 900
    assert wasserstein(grey_levels(grey), grey_levels(grey.astype(np.uint16) * 257)) == 0


def test_the_spectrum_of_white_noise_is_flat_and_of_its_variance() -> None:
    noise = np.random.default_rng(0).normal(100, 5, size=(512, 512)).astype(np.float32)
    # The mean of a logarithm lies below the logarithm of the mean, the more the fewer frequencies a ring has.
    np.testing.assert_allclose(spectrum(noise)[8:], math.log(25), atol=0.1)


def test_a_wave_stands_in_the_ring_of_its_frequency() -> None:
    x = np.arange(TILE * 4)
    for ring in (3, 12, 31):
        wave = np.tile(60 * np.cos(2 * np.pi * (ring + 1) / TILE * x), (TILE * 4, 1)).astype(np.float32)
        assert int(spectrum(wave).argmax()) == ring


def test_smoothing_takes_the_top_octave_as_its_transfer_function_says() -> None:
    noise = np.random.default_rng(0).normal(0, 20, size=(512, 512)).astype(np.float32)
    kernel = np.array([0.25, 0.5, 0.25])
    smooth = cv2.sepFilter2D(noise, -1, kernel, kernel)
    frequency = np.arange(1, 33) / 64
    # Along one axis the filter passes cos^4(pi f) of the power; over a ring, the mean of the product over directions.
    angles = np.linspace(0, 2 * np.pi, 720, endpoint=False)
    passed = np.array(
        [np.mean((np.cos(np.pi * f * np.cos(angles)) * np.cos(np.pi * f * np.sin(angles))) ** 4) for f in frequency]
    )
    lost = spectrum(smooth) - spectrum(noise)
    np.testing.assert_allclose(lost[4:24], np.log(passed)[4:24], atol=0.1)
    assert fine_energy(spectrum(smooth)) < fine_energy(spectrum(noise)) - 1


@pytest.mark.parametrize("shape", [(64, 64), (40, 200), (7, 9), (1, 1)])
def test_small_and_flat_images_have_a_spectrum(shape: tuple[int, int]) -> None:
    grey = np.full(shape, 40, np.float32)
    np.testing.assert_allclose(spectrum(grey), math.log(1 / 12), atol=1e-3)


def test_ratios_leave_out_what_has_no_metric() -> None:
    assert log_ratio([1.0, math.nan, 3.0], [1.0]) == 1.0
    assert math.isnan(log_ratio([math.nan], [1.0]))
    assert math.isnan(log_ratio([], [1.0]))


def test_halves_keep_scenes_together_and_are_reproducible() -> None:
    groups = ["a", "a", "b", "b", "c", "d", "", ""]  # images without a scene stand for themselves
    seen = []

    def compare(first: Sequence[int], second: Sequence[int]) -> float:
        seen.append((first, second))
        return float(len(first) - len(second))

    reference = reference_of_halves(range(8), groups, compare)
    assert reference == reference_of_halves(range(8), groups, compare)
    for first, second in seen:
        assert sorted([*first, *second]) == list(range(8))
        assert ({0, 1} <= set(first)) or ({0, 1} <= set(second))


def test_three_scenes_are_too_few_for_halves() -> None:
    assert math.isnan(reference_of_halves(range(4), ["a", "b", "c", "c"], lambda *_: 1.0))
    assert math.isnan(reference_of_halves([], [], lambda *_: 1.0))
