"""Simulated images get level, speckle and resolution of training images, and keep what they show."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from written_samples import write_sample

from boxtwin.datasets.sample import Sample
from boxtwin.datasets.simulated_sar.physics import NONE, Sensor, multilook_intensity
from boxtwin.datasets.simulated_sar.scenes import quantise, simulate_scene
from boxtwin.errors import InputError
from boxtwin.synthesis.sensor import Look, dithered, look_of, matched, seen


def sea(bandwidth: float, looks: int, level: int, *, seed: int = 0, side: int = 192) -> np.ndarray:
    rng = np.random.default_rng(seed)
    sensor = Sensor((bandwidth, bandwidth), 1.0, looks)
    return quantise(multilook_intensity(rng, np.ones((side, side)), NONE, sensor), sea_level=float(level))


def look(pixels: np.ndarray, seed: int = 0) -> Look:
    return look_of(dithered(pixels, np.random.default_rng(seed)))


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
    np.testing.assert_array_equal(seen(sample(pixels), 400), pixels)
    colour = np.stack([pixels, pixels, pixels + 3], axis=2)
    assert seen(sample(colour), 400).shape == pixels.shape
    with pytest.raises(InputError, match="16 bits"):
        seen(replace(sample(pixels.astype(np.uint16)), bits=16), 96)
