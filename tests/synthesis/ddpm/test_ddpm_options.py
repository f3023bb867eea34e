"""What `inpaint_background`, `pixel_ddpm_sketch`, `_layout` and `_joint` have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from option_generators import (
    ALL,
    JOINT,
    LAYOUT,
    MODEL,
    PASTES,
    SDEDIT,
    background,
    fitted,
    joint,
    layout,
    make_sample,
    one,
    scenes,
    sketch,
)

from boxtwin.datasets.image_io import read_image
from boxtwin.errors import InputError
from boxtwin.synthesis.ddpm.model import ModelSettings
from boxtwin.synthesis.generator import Generator, Request


@pytest.mark.parametrize("make", ALL)
@pytest.mark.parametrize(
    ("shape", "dtype"), [((80, 96), np.uint8), ((75, 66), np.uint16), ((70, 81, 3), np.uint8), ((9, 7), np.uint8)]
)
def test_variations_have_size_and_kind_of_the_source_and_boxes_inside(
    tmp_path: Path, make: Callable[..., Any], shape: tuple[int, ...], dtype: Any
) -> None:
    ships = ((30, 30, 0.5), (55, 50, -0.9)) if shape[0] > 20 else ()
    sample = make_sample(tmp_path, "a.png", shape, dtype, ships)
    generator: Generator = fitted(tmp_path, make(), [sample])
    assert generator.boxes == "exact"
    for seed in (1, 2):
        made = one(generator, sample, seed)
        source = read_image(sample.path)
        assert made.pixels.shape == source.shape
        assert made.pixels.dtype == source.dtype
        assert made.boxes.dtype == np.float32
        assert len(made.boxes) == len(made.labels)
        assert (made.boxes[:, :2] >= 0).all()
        assert (made.boxes[:, 2:] <= [sample.width, sample.height]).all()
        assert (made.boxes[:, :2] < made.boxes[:, 2:]).all()


@pytest.mark.parametrize("make", ALL)
def test_a_seed_makes_the_same_bytes_alone_and_among_others(tmp_path: Path, make: Callable[..., Any]) -> None:
    a, b = make_sample(tmp_path, "a.png"), make_sample(tmp_path, "b.png", ships=())
    generator = fitted(tmp_path, make(), [a, b])
    together = list(generator.vary([Request(b, 1, 3), Request(a, 1, 1), Request(a, 2, 2)]))
    alone = one(fitted(tmp_path, make(), [a, b]), a, 1)
    np.testing.assert_array_equal(together[1].pixels, alone.pixels)
    np.testing.assert_array_equal(together[1].boxes, alone.boxes)
    assert (together[1].pixels != together[2].pixels).any()


@pytest.mark.parametrize("make", ALL)
def test_images_without_objects_are_fine(tmp_path: Path, make: Callable[..., Any]) -> None:
    empty = make_sample(tmp_path, "a.png", ships=())
    made = one(fitted(tmp_path, make(), [empty]), empty)
    if make not in (joint, scenes):
        assert made.boxes.shape == (0, 4)
    with pytest.raises(InputError, match="at least one training image"):
        fitted(tmp_path, make(), [])


@pytest.mark.parametrize("make", ALL)
def test_parameters_hold_every_setting_but_the_device(tmp_path: Path, make: Callable[..., Any]) -> None:
    own = {background: {**SDEDIT, "object_strength": 0.0, "blend_margin": 3}, layout: LAYOUT, joint: JOINT}
    expected = {**MODEL, **own.get(make, {**SDEDIT, **PASTES}), "channels": [8, 16]}
    del expected["device"]
    if make in (sketch, scenes):
        expected["sketch"] = "copy_paste" if make is sketch else "sar_scenes"
    assert make().parameters() == expected
    assert make().version([]) == (2 if make is scenes else 1)  # in the place of a setting
    incomplete = {key: value for key, value in MODEL.items() if key != "ema"}
    with pytest.raises(TypeError, match="ema"):
        ModelSettings(**incomplete)


def test_options_with_the_same_model_settings_share_one_model(tmp_path: Path) -> None:
    sample = make_sample(tmp_path, "a.png")
    models = {fitted(tmp_path, make(), [sample]).model() for make in ALL}
    assert len(models) == 1
    assert len(list((tmp_path / "models").iterdir())) == 1


@pytest.mark.parametrize("make", [scenes, joint])
def test_what_knows_one_class_refuses_several(tmp_path: Path, make: Callable[..., Any]) -> None:
    sample = make_sample(tmp_path, "a.png")
    two = replace(sample, labels=np.array([0, 1]))
    with pytest.raises(InputError, match="classes"):
        fitted(tmp_path, make(), [two])
    assert set(one(fitted(tmp_path, make(), [replace(sample, labels=np.array([3, 3]))]), sample).labels) <= {3}


@pytest.mark.parametrize(
    ("make", "setting", "value"),
    [
        (background, "blend_margin", -1),
        (background, "strength", 1.5),
        (sketch, "sketch", "pencil"),
        (sketch, "pastes", -1),
        (layout, "move", 0.9),
        (layout, "turn", 200.0),
        (layout, "mask", "boxes"),
        (layout, "train_strength", 0.7),
        (layout, "steps", 0),
        (layout, "rho", 0.0),
        (joint, "joint", 0.0),
        (joint, "train_strength", 0.7),
        (joint, "redraw", 1.5),
        (joint, "contrast", -1.0),
        (joint, "certainty", 2.0),
        (joint, "crop", 18),
    ],
)
def test_settings_out_of_range_are_refused(make: Callable[..., Any], setting: str, value: Any) -> None:
    with pytest.raises(InputError, match=setting):
        make(**{setting: value})


def test_colour_among_grey_is_refused(tmp_path: Path) -> None:
    grey, colour = make_sample(tmp_path, "a.png"), make_sample(tmp_path, "b.png", (80, 96, 3))
    for make in ALL:
        with pytest.raises(InputError, match="colour"):
            one(fitted(tmp_path, make(), [grey]), colour)
