"""`pixel_ddpm_sketch`: pastes and simulated scenes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from option_generators import fitted, make_sample, one, scenes, sketch
from written_samples import write_sample

from boxtwin.datasets.image_io import read_image, write_png
from boxtwin.synthesis.ddpm.sketch import _ground, _up_to


@pytest.mark.parametrize("length", [9, 36])
def test_simulated_ships_are_as_long_as_the_objects(tmp_path: Path, length: int) -> None:
    upright = write_sample(
        tmp_path, "a.png", np.full((256, 256), 40, np.uint8), [(90, 60, 96, 60 + length), (20, 20, 20 + length, 26)]
    )
    generator = fitted(tmp_path, scenes(), [upright])
    made = [one(generator, upright, seed).boxes for seed in range(30)]
    lengths = np.concatenate([(boxes[:, 2:] - boxes[:, :2]).max(axis=1) for boxes in made])
    inside = np.concatenate([(boxes[:, :2] > 1).all(axis=1) & (boxes[:, 2:] < 255).all(axis=1) for boxes in made])
    assert np.median(lengths[inside]) == pytest.approx(length, rel=0.35)


def test_land_in_a_simulated_scene_takes_no_contrast_from_its_ships() -> None:
    rng = np.random.default_rng(0)
    sea = rng.normal(-0.5, 0.1, (1, 96, 160)).astype(np.float32)
    for land in (0, 48, 80):  # columns, up to half of the image
        scene = sea.copy()
        scene[:, :, :land] += rng.normal(0.8, 0.2, (1, 96, land)).astype(np.float32)
        scene[:, 40:44, 120:140] = 1.0
        level, spread = _ground(scene)
        assert level == pytest.approx(-0.5, abs=0.02)
        assert spread == pytest.approx(0.0674, abs=0.01)  # the median deviation of a normal distribution is 0.674 of it
    assert _ground(np.full((1, 3, 200), 0.25, np.float32)) == (0.25, 1e-3)


def test_what_a_simulated_sensor_could_not_show_is_white_again() -> None:
    values = np.array([[[-0.5, -0.4, 0.0, 0.3, 0.6]]], np.float32)
    np.testing.assert_allclose(_up_to(2.0, values, knee=0.0), [[[-0.5, -0.4, 0.0, 1.0, 2.0]]], rtol=1e-6)
    for white, knee in ((0.5, 0.0), (2.0, 0.6), (2.0, 1.0)):  # white enough; nothing above the knee
        np.testing.assert_array_equal(_up_to(white, values, knee=knee), values)


def test_a_sketch_keeps_the_sources_boxes_and_adds_those_of_the_pastes(tmp_path: Path) -> None:
    sample = make_sample(tmp_path, "a.png", crowd=1)
    made = one(fitted(tmp_path, sketch(min_pastes=2), [sample]), sample)
    np.testing.assert_array_equal(made.boxes[:1], sample.object_boxes)
    assert len(made.boxes) > 1


def test_a_simulated_sketch_owes_the_source_level_and_spread(tmp_path: Path) -> None:
    dark, light = make_sample(tmp_path, "a.png"), make_sample(tmp_path, "b.png")
    write_png(light.path, np.clip(read_image(light.path).astype(float) * 3 + 20, 0, 255).astype(np.uint8))
    generator = fitted(tmp_path, scenes(strength=0.0, object_strength=0.0, texture=0.0), [dark, light])
    for sample in (dark, light):
        seas = [
            _ground(np.log1p(pixels.astype(np.float32))[None])
            for pixels in (one(generator, sample, seed=4).pixels, read_image(sample.path))
        ]
        assert seas[0] == pytest.approx(seas[1], rel=0.15)
