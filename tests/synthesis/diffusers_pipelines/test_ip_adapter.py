from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pipeline_generators import make, make_source, pixels_of

from boxtwin.datasets.image_io import read_image
from boxtwin.errors import InputError
from boxtwin.synthesis.generator import Request
from boxtwin.synthesis.tiling import tile_seed

TinyPipeline = Callable[[str], Path]


@pytest.mark.parametrize("weights", ["ip-adapter.safetensors", "ip-adapter-plus.safetensors"])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_one_tile_is_what_diffusers_makes_of_the_image(
    tmp_path: Path, tiny_pipeline: TinyPipeline, weights: str, guidance: float
) -> None:
    from diffusers import StableDiffusionPipeline

    sample = make_source(tmp_path, "a.png", (32, 32, 3))
    generator = make("ip_adapter", tiny_pipeline, weights=weights, guidance_scale=guidance, scale=0.8, tile=32)
    generator.fit([], tmp_path)
    (made,) = pixels_of(generator, Request(sample, 1, 5))
    pipeline = StableDiffusionPipeline.from_pretrained(  # type: ignore[no-untyped-call]
        tiny_pipeline("stable_diffusion"), safety_checker=None, requires_safety_checker=False
    )
    pipeline.load_ip_adapter(str(tiny_pipeline("ip_adapter")), subfolder="", weight_name=weights)
    pipeline.set_ip_adapter_scale(0.8)
    (expected,) = pipeline(
        "",
        ip_adapter_image=Image.fromarray(read_image(sample.path)),
        num_inference_steps=2,
        guidance_scale=guidance,
        generator=torch.Generator().manual_seed(tile_seed(5, 0)),
        output_type="np",
    ).images
    # CLIP's processor rounds its enlarged image to 8 bits; see `as_clip_sees`.
    assert np.abs(made - expected * 255).max() < 1


def test_images_follow_the_source_by_scale_and_keep_it_in_place_by_strength(
    tmp_path: Path, tiny_pipeline: TinyPipeline
) -> None:
    a, b = make_source(tmp_path, "a.png"), make_source(tmp_path, "b.png", boxes=((20, 20, 30, 30),))
    differences = []
    for scale in (0.0, 1.0):
        generator = make("ip_adapter", tiny_pipeline, scale=scale)
        generator.fit([], tmp_path)
        first, second = (made.astype(int) for made in pixels_of(generator, Request(a, 1, 5), Request(b, 1, 5)))
        differences.append(np.abs(first - second).mean())
    assert differences[0] < 1e-3  # levels of both images are the same: nothing else of the source is seen
    assert differences[1] > 0.1
    assert generator.boxes == "none"
    generator = make("ip_adapter_strength", tiny_pipeline)
    assert generator.boxes == "carried"
    assert generator.parameters()["adapter"] != make("ip_adapter", tiny_pipeline).parameters()["adapter"]


def test_a_folder_without_the_adapter_is_refused_by_name(tiny_pipeline: TinyPipeline) -> None:
    with pytest.raises(InputError, match=r"ip_adapter: generator\.adapter=.* holds no ip-adapter_sd15.bin"):
        make("ip_adapter", tiny_pipeline, weights="ip-adapter_sd15.bin")
