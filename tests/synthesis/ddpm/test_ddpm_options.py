"""What `inpaint_background`, `pixel_ddpm_sketch`, `_layout` and `_joint` have in common."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from option_generators import (
    ALL,
    JOINT,
    LAYOUT,
    MODEL,
    SDEDIT,
    SMALL,
    background,
    fitted,
    hull,
    joint,
    layout,
    make_sample,
    one,
    scenes,
    sketch,
)
from written_samples import write_sample

from boxtwin.datasets.image_io import read_image, write_png
from boxtwin.errors import InputError
from boxtwin.synthesis.arrays import grown, object_mask
from boxtwin.synthesis.constants import former_settings_of
from boxtwin.synthesis.controls import CopyPaste
from boxtwin.synthesis.ddpm.base import soft_zone
from boxtwin.synthesis.ddpm.joint import read_mask
from boxtwin.synthesis.ddpm.layout import object_patches, plan, traces
from boxtwin.synthesis.ddpm.model import ModelSettings, PixelModel, TrainingCrops
from boxtwin.synthesis.generator import Generator, Request, Variation
from boxtwin.synthesis.sensor import ground, up_to
from boxtwin.synthesis.silhouettes import draw


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, constants in SMALL.items():
        for name, value in constants.items():
            monkeypatch.setattr(f"boxtwin.synthesis.{module}.{name}", value)


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
def test_parameters_hold_every_setting_but_the_device(make: Callable[..., Any]) -> None:
    own = {background: {**SDEDIT, "object_strength": 0.0}, layout: LAYOUT, joint: JOINT}
    expected = {**MODEL, **own.get(make, {**SDEDIT, "turns": False}), "channels": [8, 16]}
    del expected["device"]
    kind = type(make())
    expected |= former_settings_of(f"{kind.__module__}.{kind.__name__}")
    if make in (sketch, scenes):
        expected["sketch"] = "copy_paste" if make is sketch else "sar_scenes"
    assert make().parameters() == expected
    assert make().version([]) == {scenes: 3, layout: 2}.get(make, 1)
    incomplete = {key: value for key, value in MODEL.items() if key != "seed"}
    with pytest.raises(TypeError, match="seed"):
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
        (background, "strength", 1.5),
        (sketch, "sketch", "pencil"),
        (layout, "turn", 200.0),
        (layout, "mask", "boxes"),
        (layout, "train_strength", 0.7),
        (layout, "steps", 0),
        (joint, "joint", 0.0),
        (joint, "train_strength", 0.7),
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


def test_a_repainted_background_leaves_every_pixel_of_every_box(tmp_path: Path) -> None:
    sample = make_sample(tmp_path, "a.png", dtype=np.uint16, crowd=1)
    made, source = one(fitted(tmp_path, background(), [sample]), sample), read_image(sample.path)
    same = made.pixels == source
    for x1, y1, x2, y2 in sample.boxes:
        assert same[int(y1) : int(np.ceil(y2)), int(x1) : int(np.ceil(x2))].all()
    assert same.mean() < 0.5
    np.testing.assert_array_equal(made.boxes, sample.object_boxes)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_without_a_strength_of_the_background_only_objects_change(tmp_path: Path, dtype: Any) -> None:
    sample = make_sample(tmp_path, "a.png", (160, 176), dtype, ships=((9, 7, 0.5), (50, 44, 0.1), (130, 120, -0.9)))
    settings: dict[str, Any] = {"strength": 0.0, "object_strength": 0.8, "angle": 90.0}
    generator = fitted(tmp_path, sketch(**settings), [sample])
    pastes = CopyPaste(mirror=True, turns=False, angle=90.0)
    pastes.fit([sample], tmp_path)
    for seed in (1, 2):
        made = one(generator, sample, seed)
        (pasted,) = pastes.vary([Request(sample, 1, seed)])
        assert isinstance(pasted, Variation)
        np.testing.assert_array_equal(made.boxes, pasted.boxes)
        assert len(made.boxes) > 3
        near = object_mask(grown(made.boxes, SDEDIT["object_margin"] + 1), *made.pixels.shape) > 0
        np.testing.assert_array_equal(made.pixels[~near], pasted.pixels[~near])
        for x1, y1, x2, y2 in made.boxes.astype(int):
            differs = made.pixels[y1:y2, x1:x2] != pasted.pixels[y1:y2, x1:x2]
            assert min(differs[:4].mean(), differs[:, :4].mean(), differs.mean()) > 0.5  # up to the image's border
    assert generator.version([]) == 4


@pytest.mark.parametrize("degrees", [0, 30, 80, -50])
def test_objects_are_read_from_a_noisy_mask(degrees: float) -> None:
    sure, unsure = hull(30, 30, np.radians(degrees), 26, 9), hull(90, 70, 0.3, 24, 9)
    mask = 2 * draw([sure], 120, 120) + draw([unsure], 120, 120) - 1
    mask += np.random.default_rng(0).normal(0, 0.7, mask.shape).astype(np.float32)
    parts = sorted(read_mask(mask, 0.6, 10), key=lambda part: part[0].x)
    assert len(parts) == 2
    assert parts[0][1] > 0.6 > parts[1][1]
    for (silhouette, _), shape in zip(parts, (sure, unsure), strict=True):
        np.testing.assert_allclose(silhouette.box(), shape.box(), atol=5)
    slim = read_mask(mask, 0.2, 10)
    assert max(silhouette.breadth / silhouette.length for silhouette, _ in slim) <= 0.2 + 1e-9
    assert read_mask(mask, 0.6, 100) == []
    assert read_mask(-np.ones((4, 4), np.float32), 0.6, 1) == []


def test_a_joint_model_guesses_masks_or_takes_them_as_given(tmp_path: Path) -> None:
    sample = make_sample(tmp_path, "a.png")
    model = PixelModel("test", ModelSettings(**{**MODEL, "train_steps": 1}))
    model.fit([sample], tmp_path)
    both = torch.randn(1, 2, 16, 24, generator=torch.Generator().manual_seed(0))
    assert model.with_mask(both, 0.5).shape == both.shape
    assert model.given_mask(both[:, :1])(both[:, :1], 0.5).shape == (1, 1, 16, 24)
    crops = TrainingCrops([sample], model.settings)
    assert np.isfinite(float(model.loss(model.net, crops, torch.Generator().manual_seed(1))))


def set_layout(monkeypatch: pytest.MonkeyPatch, **constants: float) -> None:
    for name, value in constants.items():
        monkeypatch.setattr(f"boxtwin.synthesis.ddpm.layout.{name}", value)


def test_a_layout_changes_what_it_says_and_leaves_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_layout(monkeypatch, MOVE=0.0, TURN_ONLY=0.0, REMOVE=0.0, ADD=1)
    sample = make_sample(tmp_path, "a.png", (160, 160), ships=((30, 40, 0.5), (110, 110, -0.9)))
    generator = fitted(tmp_path, layout(), [sample])
    source = read_image(sample.path)
    for seed in range(4):
        made = one(generator, sample, seed)
        changes = sum(int(str(count)) for count in made.record.values())
        assert changes == 1
        assert len(made.boxes) == 2 + int(str(made.record["added"]))
        # Only around the new box, and around an old one that is gone, is anything new.
        near = np.zeros(source.shape, dtype=bool)
        for x1, y1, x2, y2 in [*made.boxes[-1:], *(b for b in sample.boxes if not (made.boxes == b).all(1).any())]:
            near[max(int(y1) - 56, 0) : int(y2) + 56, max(int(x1) - 56, 0) : int(x2) + 56] = True
        np.testing.assert_array_equal(made.pixels[~near], source[~near])
        assert (made.pixels != source).any()


def test_a_crowd_and_an_object_at_the_border_stay_where_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_layout(monkeypatch, MOVE=1.0, TURN_ONLY=0.0, REMOVE=0.0, ADD=0)
    sample = make_sample(tmp_path, "a.png", (120, 120), ships=((4, 60, 1.5), (60, 60, 0.4)), crowd=1)
    encoded = read_image(sample.path).astype(np.float32)[None] / 50
    assert list(object_patches(encoded, sample, 6)) == []
    made = one(fitted(tmp_path, layout(), [sample]), sample)
    np.testing.assert_array_equal(made.pixels, read_image(sample.path))
    assert set(made.record.values()) == {0}


def test_plans_keep_clear_of_everything_and_stay_inside(tmp_path: Path) -> None:
    sample = make_sample(tmp_path, "a.png", (200, 200), ships=((40, 40, 0.5), (150, 60, 1.0), (90, 150, -0.4)))
    encoded = np.log1p(read_image(sample.path).astype(np.float32)[None] / 20)
    donors = [patch for _, patch in object_patches(encoded, sample, 6)]
    assert len(donors) == 3
    kinds = set()
    for seed in range(30):
        changes = plan(encoded, sample, donors, 180.0, 6, np.random.default_rng(seed))
        assert changes
        gone = {change.old for change in changes}
        boxes = [box for index, box in enumerate(sample.boxes) if index not in gone]
        boxes += [change.new.box() for change in changes if change.new is not None]
        for at, (x1, y1, x2, y2) in enumerate(boxes):
            assert min(x1, y1) >= 0
            assert max(x2, y2) <= 200
            for u1, v1, u2, v2 in boxes[:at]:
                assert not (x1 < u2 and u1 < x2 and y1 < v2 and v1 < y2)
        kinds |= {change.kind for change in changes}
        for change in changes:
            if change.kind == "turned" and change.new is not None and change.old is not None:
                middle = (sample.boxes[change.old][:2] + sample.boxes[change.old][2:]) / 2
                np.testing.assert_allclose([change.new.x, change.new.y], middle, atol=1e-3)
    assert kinds == {"moved", "turned", "removed", "added"}


def test_round_objects_keep_the_size_of_their_boxes(tmp_path: Path) -> None:
    """A cell has no heading: turned by 45 degrees as a square, it would get a box 1.4 times as wide."""
    y, x = np.mgrid[:200, :200] + 0.5
    pixels = np.random.default_rng(0).normal(40, 3, (200, 200))
    places = ((40, 40), (150, 50), (90, 150))
    for at in places:
        pixels[np.hypot(x - at[0], y - at[1]) <= 12] = 200
    sample = write_sample(
        tmp_path, "a.png", pixels.astype(np.uint8), [(u - 12, v - 12, u + 12, v + 12) for u, v in places]
    )
    encoded = np.log1p(read_image(sample.path).astype(np.float32)[None] / 20)
    donors = [patch for _, patch in object_patches(encoded, sample, 6)]
    changes = [
        each for seed in range(30) for each in plan(encoded, sample, donors, 180.0, 6, np.random.default_rng(seed))
    ]
    boxes = np.stack([each.new.box() for each in changes if each.new is not None])
    assert len(boxes) > 30
    np.testing.assert_allclose(boxes[:, 2:] - boxes[:, :2], 24, atol=1e-3)
    turned = [each for each in changes if each.kind == "turned"]
    assert turned
    turns = [each.new.heading - each.object.silhouette.heading for each in turned if each.new is not None]
    assert {round(math.degrees(turn)) % 360 for turn in turns} == {90, 180, 270}
    upright = [
        each for seed in range(30) for each in plan(encoded, sample, donors, 80.0, 6, np.random.default_rng(seed))
    ]
    assert {each.kind for each in upright} == {"moved", "removed", "added"}  # no quarter turn is allowed


def test_traces_follow_side_lobes_and_spare_others() -> None:
    values = np.random.default_rng(0).normal(size=(100, 100)).astype(np.float32)
    values[45:55, 45:55] += 8
    values[49:51, 20:45] += 4  # a lobe
    values[80:85, 80:85] += 8  # something else, not attached
    box = np.array([45.0, 45.0, 55.0, 55.0])
    found = traces(values, box, 40, np.zeros((100, 100), dtype=bool))
    assert found[45:55, 45:55].all()
    assert found[49:51, 22:45].mean() > 0.9
    assert not found[80:85, 80:85].any()
    assert found.mean() < 0.1
    spare = np.zeros((100, 100), dtype=bool)
    spare[:, 50:] = True
    assert not traces(values, box, 40, spare)[:, 50:].any()
    zone = soft_zone(found, 4)
    assert (zone[found] == 1).all()
    assert (zone[cv2.dilate(found.astype(np.uint8), np.ones((15, 15))) == 0] == 0).all()


@pytest.mark.parametrize("length", [pytest.param(9, marks=pytest.mark.slow), 36])
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
        level, spread = ground(scene)
        assert level == pytest.approx(-0.5, abs=0.02)
        assert spread == pytest.approx(0.0674, abs=0.01)  # the median deviation of a normal distribution is 0.674 of it
    assert ground(np.full((1, 3, 200), 0.25, np.float32)) == (0.25, 1e-3)


def test_what_a_simulated_sensor_could_not_show_is_white_again() -> None:
    values = np.array([[[-0.5, -0.4, 0.0, 0.3, 0.6]]], np.float32)
    np.testing.assert_allclose(up_to(2.0, values, knee=0.0), [[[-0.5, -0.4, 0.0, 1.0, 2.0]]], rtol=1e-6)
    for white, knee in ((0.5, 0.0), (2.0, 0.6), (2.0, 1.0)):  # white enough; nothing above the knee
        np.testing.assert_array_equal(up_to(white, values, knee=knee), values)


def test_simulated_ships_are_no_brighter_than_the_sensors_full_scale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 16 bit files with values of 12 bit."""
    monkeypatch.setattr("boxtwin.synthesis.ddpm.whole_image.TEXTURE", 0.0)
    sample = replace(make_sample(tmp_path, "a.png", (128, 128), dtype=np.uint16), bits=16)
    write_png(sample.path, read_image(sample.path) // 16)
    generator = fitted(tmp_path, scenes(strength=0.0, object_strength=0.0), [sample])
    assert generator.version([sample]) == generator.version([replace(sample, bits=8)]) + 1
    brightest = max(int(one(generator, sample, seed).pixels.max()) for seed in range(8))
    assert 2000 < brightest < 4800


def test_a_sketch_keeps_the_sources_boxes_and_adds_those_of_the_pastes(tmp_path: Path) -> None:
    sample = make_sample(tmp_path, "a.png", crowd=1)
    made = one(fitted(tmp_path, sketch(), [sample]), sample)
    np.testing.assert_array_equal(made.boxes[:1], sample.object_boxes)
    assert len(made.boxes) > 1


def test_a_simulated_sketch_owes_the_source_level_and_spread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("boxtwin.synthesis.ddpm.whole_image.TEXTURE", 0.0)
    dark, light = make_sample(tmp_path, "a.png"), make_sample(tmp_path, "b.png")
    write_png(light.path, np.clip(read_image(light.path).astype(float) * 3 + 20, 0, 255).astype(np.uint8))
    generator = fitted(tmp_path, scenes(strength=0.0, object_strength=0.0), [dark, light])
    for sample in (dark, light):
        seas = [
            ground(np.log1p(pixels.astype(np.float32))[None])
            for pixels in (one(generator, sample, seed=5).pixels, read_image(sample.path))
        ]
        assert seas[0] == pytest.approx(seas[1], rel=0.2)  # a grey level is a fifth of the spread of the dark sea
