"""`pixel_ddpm`: variations of whole images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_ddpm import TINY, fitted, pixels_of
from written_samples import bright_boxes

from boxtwin.datasets.image_io import read_image, write_png
from boxtwin.errors import InputError
from boxtwin.synthesis.constants import FORMER_SETTINGS
from boxtwin.synthesis.ddpm.whole_image import PixelDDPM
from boxtwin.synthesis.generator import Generator, Request, Variation


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((32, 32), np.uint8),
        ((32, 32), np.uint16),
        ((37, 21, 3), np.uint8),  # no multiple of anything, colour
        ((11, 50, 3), np.uint16),  # lower than a crop
        ((3, 2), np.uint8),  # smaller than the network's coarsest pixel
    ],
)
def test_a_variation_has_size_channels_and_depth_of_its_source(
    tmp_path: Path, shape: tuple[int, ...], dtype: Any
) -> None:
    boxes = ((8, 3, 18, 9),) if shape[0] > 3 else ()
    sample = bright_boxes(tmp_path, "a.png", shape, dtype, boxes)
    generator: Generator = fitted(tmp_path, [sample], train_steps=2)
    (variation,) = generator.vary([Request(sample, 1, 7)])
    assert isinstance(variation, Variation)
    source = read_image(sample.path)
    assert variation.pixels.shape == source.shape
    assert variation.pixels.dtype == source.dtype
    assert (variation.pixels != source).any()
    np.testing.assert_array_equal(variation.boxes, sample.boxes)
    np.testing.assert_array_equal(variation.labels, sample.labels)


def test_grey_stored_as_three_channels_stays_grey(tmp_path: Path) -> None:
    sample = bright_boxes(tmp_path, "a.png")
    write_png(sample.path, np.repeat(read_image(sample.path)[:, :, None], 3, axis=2))
    (made,) = pixels_of(fitted(tmp_path, [sample]), Request(sample, 1, 0))
    assert made.shape == (32, 32, 3)
    assert (made == made[:, :, :1]).all()


def test_a_seed_makes_the_same_bytes_alone_and_among_others(tmp_path: Path) -> None:
    a, b = bright_boxes(tmp_path, "a.png"), bright_boxes(tmp_path, "b.png", boxes=())
    generator = fitted(tmp_path, [a, b])
    together = pixels_of(generator, Request(b, 1, 3), Request(a, 1, 1), Request(a, 2, 2))
    (alone,) = pixels_of(generator, Request(a, 1, 1))
    np.testing.assert_array_equal(together[1], alone)
    assert (together[1] != together[2]).any()
    (loaded,) = pixels_of(fitted(tmp_path, [a, b]), Request(a, 1, 1))
    np.testing.assert_array_equal(loaded, alone)


def test_strength_zero_gives_the_source_and_little_strength_nearly_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("boxtwin.synthesis.ddpm.whole_image.TEXTURE", 0.0)
    sample = bright_boxes(tmp_path, "a.png")
    source = read_image(sample.path).astype(float)
    changes = []
    for at, strength in enumerate((0.0, 0.02, 0.6)):
        generator = fitted(tmp_path / str(at), [sample], strength=strength, object_strength=strength)
        (made,) = pixels_of(generator, Request(sample, 1, 0))
        changes.append(np.abs(made.astype(float) - source).mean() / source.std())
    assert changes[0] == 0
    assert changes[1] < 0.05
    assert changes[2] > 4 * changes[1]


def test_what_cannot_be_is_said(tmp_path: Path) -> None:
    grey, colour = bright_boxes(tmp_path, "a.png"), bright_boxes(tmp_path, "b.png", (32, 32, 3))
    with pytest.raises(RuntimeError, match="call fit first"):
        next(PixelDDPM(**TINY).vary([Request(grey, 1, 0)]))
    with pytest.raises(InputError, match="colour"):
        pixels_of(fitted(tmp_path, [grey]), Request(colour, 1, 0))
    with pytest.raises(InputError, match="at least one training image"):
        fitted(tmp_path, [])


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("strength", 1.5),
        ("object_strength", 0.9),
        ("crop", 18),
        ("crop", 0),
        ("channels", ()),
        ("steps", 0),
        ("tone", "sqrt"),
        ("dtype", "float16"),
        ("device", "tpu"),
    ],
)
def test_settings_out_of_range_are_refused(setting: str, value: Any) -> None:
    with pytest.raises(InputError, match=setting):
        PixelDDPM(**{**TINY, setting: value})


def test_parameters_name_every_setting_but_the_device() -> None:
    expected = {**FORMER_SETTINGS["ddpm.whole_image.PixelDDPM"], **TINY, "channels": [8, 16]}
    del expected["device"]
    assert PixelDDPM(**TINY).parameters() == expected
