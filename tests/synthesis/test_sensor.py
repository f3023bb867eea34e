"""Simulated images get level, speckle and resolution of training images, and keep what they show."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from written_samples import write_sample

from boxtwin.datasets.sample import Sample
from boxtwin.datasets.simulated_sar.layout import ShipSizes
from boxtwin.datasets.simulated_sar.physics import NONE, Sensor, multilook_intensity
from boxtwin.datasets.simulated_sar.scenes import Fit, quantise, simulate_scene
from boxtwin.errors import InputError
from boxtwin.synthesis.sensor import CalmStatistics, calm_statistics, dithered, fit_to, matched, seen


def sea(bandwidth: float, looks: int, level: int, *, seed: int = 0, side: int = 192) -> np.ndarray:
    rng = np.random.default_rng(seed)
    sensor = Sensor((bandwidth, bandwidth), 1.0, looks)
    return quantise(multilook_intensity(rng, np.ones((side, side)), NONE, sensor), sea_level=float(level))


def look(pixels: np.ndarray, seed: int = 0) -> CalmStatistics:
    return calm_statistics(dithered(pixels, np.random.default_rng(seed)))


def test_the_calm_areas_get_histogram_and_spectrum_of_the_reference() -> None:
    chip, reference = sea(0.9, 1, 12), look(sea(0.5, 3, 30, seed=1))
    before, after = look(chip), look(matched(chip, reference, np.random.default_rng(2)))
    np.testing.assert_allclose(after.values, reference.values, rtol=0.03, atol=1 / 255)
    assert np.abs(after.power - reference.power).sum() < 0.2 < 0.4 < np.abs(before.power - reference.power).sum()


def test_land_and_ships_keep_their_contrast_and_saturation() -> None:
    chip = sea(0.9, 1, 10)
    chip[96:104, 90:120] = 100
    chip[99:101, 99:101] = 255
    # A reference without any land: what is bright in the image must stay bright.
    result = matched(chip, look(sea(0.9, 1, 20, seed=1)), np.random.default_rng(2))
    assert result.max() == 255
    ratios = [np.median(image[97:103, 92:98]) / np.median(image[:64, :64]) for image in (chip, result)]
    assert ratios[1] == pytest.approx(ratios[0], rel=0.2)


def test_a_simulated_scene_matched_to_itself_stays_nearly_as_it_is() -> None:
    (chip,) = simulate_scene(np.random.default_rng(3), chips=1, size=160)
    again = matched(chip.pixels, look(chip.pixels, 5), np.random.default_rng(6))
    assert np.abs(again.astype(float) - chip.pixels).mean() < 1


def test_training_images_are_seen_in_the_size_of_the_network(tmp_path: Path) -> None:
    pixels = sea(0.9, 1, 20)

    def sample(image: np.ndarray) -> Sample:
        return write_sample(tmp_path, f"{image.ndim}-{image.dtype}.png", image, [])

    assert seen(sample(pixels), 96).shape == (96, 96)
    np.testing.assert_array_equal(seen(sample(pixels), len(pixels)), pixels)
    assert seen(sample(pixels), 400).shape == (400, 400)  # smaller images are enlarged, as in the letterbox
    colour = np.stack([pixels, pixels, pixels + 3], axis=2)
    assert seen(sample(colour), len(pixels)).shape == pixels.shape
    with pytest.raises(InputError, match="16 bits"):
        seen(replace(sample(pixels.astype(np.uint16)), bits=16), 96)


FITS = (
    Fit((12.0,), (1.0,), 255, ShipSizes(32, 0.2, 25, 40, (3.0, 4.0)), density=60.0, clustering=0.1),
    Fit((40.0,), (4.0,), 200, ShipSizes(60, 0.2, 45, 80, (5.0, 7.0)), density=150.0, clustering=0.1),
)


def scenes_of(fit: Fit, folder: Path) -> list[Sample]:
    """Twelve simulated images, of which a third or so show land."""
    chips = [simulate_scene(np.random.default_rng([1, n]), chips=1, size=256, fit=fit)[0] for n in range(12)]
    return [write_sample(folder, f"{n}.png", chip.pixels, chip.boxes) for n, chip in enumerate(chips)]


def test_what_a_simulation_was_given_is_read_off_its_images(tmp_path: Path) -> None:
    found = [fit_to(scenes_of(fit, tmp_path / str(place)), 256) for place, fit in enumerate(FITS)]
    for given, fit in zip(FITS, found, strict=True):
        # Swell lowers the looks, and slicks and shelter the level.
        assert np.median(fit.sea_levels) == pytest.approx(given.sea_levels[0], rel=0.35)
        assert 0.5 * given.looks[0] < np.median(fit.looks) < 1.6 * given.looks[0]
        assert fit.brightest == given.brightest
        assert fit.ships.median == pytest.approx(given.ships.median, rel=0.25)
        assert np.mean(fit.ships.slenderness) == pytest.approx(np.mean(given.ships.slenderness), rel=0.25)
    assert found[0].density < found[1].density


def test_images_almost_without_objects_leave_the_sizes_of_the_simulator(tmp_path: Path) -> None:
    fit = fit_to([write_sample(tmp_path, "a.png", sea(0.9, 1, 20), [[10, 10, 30, 16]])], 192)
    assert fit.ships == ShipSizes()
    assert 0 < fit.density < 100
    scene = simulate_scene(np.random.default_rng(0), chips=2, size=128, fit=fit)
    assert len(scene) == 2


def test_a_network_that_sees_half_the_size_gets_half_the_length(tmp_path: Path) -> None:
    images = scenes_of(FITS[1], tmp_path)
    full, half = fit_to(images, 256), fit_to(images, 128)
    assert half.ships.median == pytest.approx(full.ships.median / 2, rel=0.15)
    assert half.density == pytest.approx(4 * full.density, rel=0.01)
    double = fit_to(images, 512)
    assert double.ships.median == pytest.approx(2 * full.ships.median, rel=0.15)
    assert double.density == pytest.approx(full.density / 4, rel=0.01)
