"""Stable Diffusion from the noised source, held to its layout by a ControlNet (Zhang et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from boxtwin.datasets.image_io import Pixels
from boxtwin.datasets.sample import Sample
from boxtwin.errors import InputError
from boxtwin.synthesis.arrays import Planes, planes_of
from boxtwin.synthesis.diffusers_pipelines.loading import PipelineGenerator, Squares, check_strength, levels_of
from boxtwin.synthesis.generator import Request, check_settings
from boxtwin.synthesis.silhouettes import draw, silhouettes_of

KINDS = ("silhouettes", "edges")
CANNY = (100, 200)  # thresholds, of 255, as in the examples of diffusers' checkpoints


@dataclass(kw_only=True, eq=False)
class ControlNet(PipelineGenerator):
    """Stable Diffusion that is shown where objects are, or where edges are, besides the source noised to a strength."""

    controlnet: str  # folder, or id on the hub, of the ControlNet
    controlnet_revision: str | None  # of an id
    control: str  # one of `KINDS`: what the ControlNet is shown
    ground_colour: list[int]  # red, green and blue, 0 to 255, of a picture of silhouettes
    object_colour: list[int]  # the same inside of silhouettes; segmentation checkpoints have a colour for every class
    scale: float  # weight of the ControlNet
    prompt: str  # text that guides the images
    strength: float  # 0 to 1, how far the source is noised: 1 forgets it

    name = "controlnet"
    boxes = "carried"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_strength(self.name, self.strength, self.steps)
        check_settings(self.name, self, scale=0)
        if self.control not in KINDS:
            raise InputError(f"{self.name}: control is {' or '.join(KINDS)}, got {self.control!r}")
        for name in ("ground_colour", "object_colour"):
            if len(colour := getattr(self, name)) != 3 or not all(0 <= value <= 255 for value in colour):
                raise InputError(f"{self.name}: {name} is [red, green, blue], each 0 to 255, got {colour}")
        self._net = self._other("controlnet", "config.json", "diffusion_pytorch_model.safetensors")

    def _load(self, training: Sequence[Sample], folder: Path) -> Any:  # noqa: ARG002, nothing is learnt
        from diffusers import ControlNetModel

        self._checkpoint.check_kind("StableDiffusionPipeline", "StableDiffusionXLPipeline")
        with self._net.errors():
            kind = ControlNetModel.load_config(self._net.place, revision=self.controlnet_revision)["_class_name"]
        if kind != "ControlNetModel":
            raise InputError(f"{self.name}: {self.controlnet} is a {kind}; a ControlNetModel is needed")
        with self._net.errors():
            net = ControlNetModel.from_pretrained(
                self._net.place, revision=self.controlnet_revision, dtype=self._compute_dtype
            )
        task = "AutoPipelineForImage2Image"
        pipeline = self._checkpoint.load(task, self._device, self._compute_dtype, controlnet=net)
        if net.config.cross_attention_dim != pipeline.unet.config.cross_attention_dim:
            made = f"{self.controlnet} was made for another network than that of {self.checkpoint}"
            raise InputError(f"{self.name}: {made}; choose one for this generation of Stable Diffusion")
        return pipeline

    def _vary_one(self, request: Request, pixels: Pixels, *_: Any) -> Pixels:
        return super()._vary_one(request, pixels, self._shown(request.source, pixels))

    def _shown(self, source: Sample, pixels: Pixels) -> Planes:
        """The picture that the ControlNet is shown, as shares of 255."""
        values = planes_of(levels_of(source, pixels).scaled(pixels), 3).mean(axis=0)
        if self.control == "edges":
            edges = cv2.Canny(np.rint(values * 255).astype(np.uint8), *CANNY)
            return np.repeat(edges[None] / np.float32(255), 3, axis=0)
        mask = draw(silhouettes_of(values, source.object_boxes), *values.shape)
        ground, inside = (
            np.array(colour, dtype=np.float32)[:, None, None] / 255
            for colour in (self.ground_colour, self.object_colour)
        )
        return ground + mask * (inside - ground)

    def _inputs(self, squares: Squares) -> dict[str, Any]:
        return {
            "prompt": [self.prompt] * len(squares),
            "image": squares[:, :3],
            "control_image": squares[:, 3:],
            "strength": self.strength,
            "controlnet_conditioning_scale": self.scale,
        }
