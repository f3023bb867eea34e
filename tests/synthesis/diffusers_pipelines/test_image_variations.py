from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pipeline_generators import make, make_source, pixels_of

from boxtwin.datasets.image_io import read_image
from boxtwin.synthesis.diffusers_pipelines.image_variations import UnCLIP, as_clip_sees
from boxtwin.synthesis.generator import Request

TinyPipeline = Callable[[str], Path]


@pytest.mark.parametrize("side", [32, 64, 30])
def test_clip_sees_what_its_own_processor_makes_of_8_bit_images(side: int) -> None:
    from tiny_parts import image_processor

    processor = image_processor()
    # Smooth: Pillow and torch have the same cubic, and differ by the rounding to 8 bits.
    waves = np.sin(np.arange(side) / 5)
    pixels = np.rint(127 + 60 * np.add.outer(waves, waves))[:, :, None] * np.array([1.0, 0.8, 0.6])
    pixels = pixels.clip(0, 255).astype(np.uint8)
    expected = processor(images=Image.fromarray(pixels), return_tensors="pt").pixel_values
    seen = as_clip_sees(torch.from_numpy(pixels.transpose(2, 0, 1)[None].copy()).float() / 255, processor, True)
    assert seen.shape == expected.shape
    assert float((seen - expected).abs().max()) < 0.03  # one grey level is 0.015


def test_dark_16_bit_images_are_not_black_to_clip() -> None:
    from tiny_parts import image_processor

    dark = torch.rand(1, 3, 30, 30) / 512  # less than one of 256 levels
    seen = as_clip_sees(dark, image_processor(), True)
    assert len(seen.unique()) > 2000  # type: ignore[no-untyped-call]


def test_kandinsky_gets_the_embedding_that_its_prior_interpolates(tmp_path: Path, tiny_pipeline: TinyPipeline) -> None:
    """With one image of weight 1, and without loading the rest of the prior."""
    from diffusers import KandinskyV22PriorPipeline

    sample = make_source(tmp_path, "a.png", (32, 32, 3))
    generator = make("kandinsky", tiny_pipeline)
    assert isinstance(generator, UnCLIP)
    generator.fit([], tmp_path)
    assert generator._prior is not None
    assert generator._prior.prior is None
    image = torch.from_numpy(read_image(sample.path).transpose(2, 0, 1)[None].copy()).float() / 255
    with torch.inference_mode():
        ours = generator._inputs(image)
        prior = KandinskyV22PriorPipeline.from_pretrained(tiny_pipeline("kandinsky_prior"))  # type: ignore[no-untyped-call]
        theirs = prior.interpolate([Image.fromarray(read_image(sample.path))], [1.0])
    torch.testing.assert_close(ours["image_embeds"], theirs.image_embeds, atol=0.02, rtol=0.02)
    torch.testing.assert_close(ours["negative_image_embeds"], theirs.negative_image_embeds)


def test_noise_on_the_embedding_changes_the_image(tmp_path: Path, tiny_pipeline: TinyPipeline) -> None:
    sample = make_source(tmp_path, "a.png")
    made = []
    for noise_level in (0, 900):
        generator = make("stable_unclip", tiny_pipeline, noise_level=noise_level)
        generator.fit([], tmp_path)
        made += pixels_of(generator, Request(sample, 1, 0))
    assert (made[0] != made[1]).any()
