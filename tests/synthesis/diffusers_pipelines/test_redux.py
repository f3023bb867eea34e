from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from pipeline_generators import call_of_first_square, make, make_source, pixels_of

from boxtwin.datasets.image_io import read_image
from boxtwin.synthesis.generator import Request


def test_one_tile_is_what_diffusers_makes_of_the_image(tmp_path: Path, tiny_pipeline: Callable[[str], Path]) -> None:
    """The call of diffusers' own Redux pipeline has the sizes of FLUX.1 written into it; its parts have not."""
    from diffusers import FluxPipeline, FluxPriorReduxPipeline

    sample = make_source(tmp_path, "a.png", (32, 32, 3))
    generator = make("redux", tiny_pipeline)
    generator.fit([], tmp_path)
    assert generator._pipeline.text_encoder_2 is None
    (made,) = pixels_of(generator, Request(sample, 1, 5))
    prior = FluxPriorReduxPipeline.from_pretrained(tiny_pipeline("flux_redux"))  # type: ignore[no-untyped-call]
    pipeline = FluxPipeline.from_pretrained(tiny_pipeline("flux"))  # type: ignore[no-untyped-call]
    with torch.no_grad():
        image = prior.encode_image(Image.fromarray(read_image(sample.path)), torch.device("cpu"), 1)
        embedded = prior.image_embedder(image).image_embeds
        (expected,) = pipeline(
            prompt_embeds=torch.cat([torch.zeros(1, 512, embedded.shape[2]), embedded], dim=1),
            pooled_prompt_embeds=torch.zeros(1, 32),
            height=32,
            width=32,
            **call_of_first_square(5),
        ).images
    # SigLIP's processor rounds its enlarged image to 8 bits; see `as_clip_sees`.
    assert np.abs(made - expected * 255).max() < 1


def test_images_follow_the_source(tmp_path: Path, tiny_pipeline: Callable[[str], Path]) -> None:
    generator = make("redux", tiny_pipeline)
    generator.fit([], tmp_path)
    sources = make_source(tmp_path, "a.png"), make_source(tmp_path, "b.png", boxes=((20, 20, 30, 30),))
    first, second = pixels_of(generator, *(Request(source, 1, 5) for source in sources))
    assert (first != second).any()
