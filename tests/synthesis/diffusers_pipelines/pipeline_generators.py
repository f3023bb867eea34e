"""The generators that draw with diffusers, over tiny pipelines, and sources for them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from written_samples import bright_boxes

from boxtwin.datasets.sample import Sample
from boxtwin.synthesis.diffusers_pipelines.image_variations import IPAdapter, Redux, SDVariations, UnCLIP
from boxtwin.synthesis.diffusers_pipelines.img2img import Edit, Img2Img, InpaintPretrained, TextToImage
from boxtwin.synthesis.diffusers_pipelines.layouts import GLIGEN, ControlNet
from boxtwin.synthesis.diffusers_pipelines.loading import PipelineGenerator
from boxtwin.synthesis.generator import Request, Variation
from boxtwin.synthesis.tiling import tile_seed

ALL: dict[str, Any] = {
    "revision": None,
    "steps": 2,
    "guidance_scale": 2.0,
    "tile": None,
    "overlap": 8,
    "batch_size": 2,
    "device": "cpu",
    "dtype": "float32",
}
PROMPTED: dict[str, Any] = {
    **ALL,
    "prompt": "",
    "strength": 0.6,
    "finetune": None,
    "finetune_steps": 4,
    "finetune_learning_rate": 1e-2,
    "seed": 0,
}
EDIT: dict[str, Any] = {**ALL, "batch_size": 1, "prompt": "image"}
CONTROLLED: dict[str, Any] = {
    **ALL,
    "controlnet_revision": None,
    "control": "silhouettes",
    "ground_colour": [0, 0, 0],
    "object_colour": [255, 255, 255],
    "scale": 1.0,
    "prompt": "",
    "strength": 0.6,
}
ADAPTED: dict[str, Any] = {
    **ALL,
    "batch_size": 1,
    "adapter_revision": None,
    "weights": "ip-adapter.safetensors",
    "image_encoder": "image_encoder",
    "scale": 1.0,
    "strength": None,
}
# Kind -> class, settings, and which setting is the folder of which pipeline.
KINDS: dict[str, tuple[type[PipelineGenerator], dict[str, Any], dict[str, str]]] = {
    "img2img": (Img2Img, PROMPTED, {"checkpoint": "stable_diffusion"}),
    "inpaint": (InpaintPretrained, {**PROMPTED, "margin": 4}, {"checkpoint": "inpainting"}),
    "inpaint_base": (InpaintPretrained, {**PROMPTED, "margin": 4}, {"checkpoint": "stable_diffusion"}),
    "text_to_image": (TextToImage, {**ALL, "prompt": "a ship"}, {"checkpoint": "stable_diffusion"}),
    "ip_adapter": (IPAdapter, ADAPTED, {"checkpoint": "stable_diffusion", "adapter": "ip_adapter"}),
    "ip_adapter_strength": (
        IPAdapter,
        {**ADAPTED, "strength": 0.6, "weights": "ip-adapter-plus.safetensors"},
        {"checkpoint": "stable_diffusion", "adapter": "ip_adapter"},
    ),
    "ip_adapter_xl": (IPAdapter, ADAPTED, {"checkpoint": "stable_diffusion_xl", "adapter": "ip_adapter_xl"}),
    "redux": (
        Redux,
        {**ALL, "tile": 32, "prior_revision": None},
        {"checkpoint": "flux", "prior": "flux_redux"},
    ),
    "edit_kontext": (Edit, {**EDIT, "tile": 32}, {"checkpoint": "flux_kontext"}),
    "edit_klein": (Edit, {**EDIT, "tile": 64}, {"checkpoint": "flux_klein"}),
    "controlnet": (ControlNet, CONTROLLED, {"checkpoint": "stable_diffusion", "controlnet": "controlnet"}),
    "controlnet_xl": (
        ControlNet,
        {**CONTROLLED, "control": "edges"},
        {"checkpoint": "stable_diffusion_xl", "controlnet": "controlnet_xl"},
    ),
    "gligen": (
        GLIGEN,
        {**ALL, "batch_size": 1, "phrases": ["a ship"], "prompt": "sea", "grounded": 1.0},
        {"checkpoint": "gligen"},
    ),
    "sd_variations": (SDVariations, ALL, {"checkpoint": "image_variation"}),
    "stable_unclip": (
        UnCLIP,
        {**ALL, "noise_level": 10, "prior": None, "prior_revision": None},
        {"checkpoint": "stable_unclip"},
    ),
    "kandinsky": (
        UnCLIP,
        {**ALL, "noise_level": 0, "prior_revision": None},
        {"checkpoint": "kandinsky_decoder", "prior": "kandinsky_prior"},
    ),
}


def make(kind: str, tiny_pipeline: Callable[[str], Path], **settings: Any) -> PipelineGenerator:
    """A generator that is not fitted yet."""
    made, defaults, folders = KINDS[kind]
    paths = {setting: str(tiny_pipeline(pipeline)) for setting, pipeline in folders.items()}
    return made(**{**defaults, **paths, **settings})


def call_of_first_square(seed: int) -> dict[str, Any]:
    """How a generator with the settings of `ALL` calls its pipeline for the first square of a request."""
    return {
        "num_inference_steps": ALL["steps"],
        "guidance_scale": ALL["guidance_scale"],
        "generator": torch.Generator().manual_seed(tile_seed(seed, 0)),
        "output_type": "np",
    }


def make_source(folder: Path, name: str, *shape_dtype_boxes: Any, **settings: Any) -> Sample:
    """`bright_boxes` on a brighter sea: the tiny pipelines lose a dark one."""
    return bright_boxes(folder, name, *shape_dtype_boxes, sea=1 / 20, **settings)


def pixels_of(generator: PipelineGenerator, *requests: Request) -> list[np.ndarray]:
    """What a generator makes."""
    made = list(generator.vary(requests))
    return [variation.pixels for variation in made if isinstance(variation, Variation)]
