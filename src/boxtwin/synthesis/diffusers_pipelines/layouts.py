"""Models conditioned on the places of objects: ControlNet (Zhang et al. 2023) and GLIGEN (Li et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch

from boxtwin.datasets.image_io import Pixels
from boxtwin.datasets.levels import levels_of
from boxtwin.datasets.sample import Sample
from boxtwin.errors import InputError
from boxtwin.synthesis.arrays import Planes, planes_of
from boxtwin.synthesis.diffusers_pipelines.checkpoints import KINDS
from boxtwin.synthesis.diffusers_pipelines.loading import NotDrawnError, PipelineGenerator, Squares
from boxtwin.synthesis.generator import Request, check_settings
from boxtwin.synthesis.silhouettes import draw, silhouettes_of

CANNY = (100, 200)  # thresholds, of 255, as in the examples of diffusers' checkpoints
MOST_OBJECTS = 30  # boxes that GLIGEN can use


@dataclass(kw_only=True, eq=False)
class ControlNet(PipelineGenerator):
    """Stable Diffusion conditioned on an image of silhouettes or edges, started from the noised source."""

    controlnet: str  # folder, or id on the hub, of the ControlNet
    controlnet_revision: str | None  # of an id
    control: str  # what the control image shows: silhouettes or edges
    ground_colour: list[int]  # red, green and blue, 0 to 255, around silhouettes
    object_colour: list[int]  # the same inside of them; segmentation checkpoints have a colour for every class
    scale: float  # weight of the ControlNet
    prompt: str  # text that guides the images
    strength: float  # 0 to 1, how far the source is noised: 1 forgets it

    name = "controlnet"
    boxes = "carried"
    kinds = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")
    pipeline_class = "AutoPipelineForImage2Image"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_settings(self.name, self, scale=0)
        wrong = self.control not in ("silhouettes", "edges")
        self.refuse(wrong, f"control is silhouettes or edges, got {self.control!r}")
        for name in ("ground_colour", "object_colour"):
            if len(colour := getattr(self, name)) != 3 or not all(0 <= value <= 255 for value in colour):
                raise InputError(f"{self.name}: {name} is [red, green, blue], each 0 to 255, got {colour}")
        self._net = self._other("controlnet", "config.json", "diffusion_pytorch_model.safetensors")

    def _load_published(self, dtype: torch.dtype, **components: Any) -> Any:
        self._net.check_kind("ControlNetModel", of="AutoModel")
        net = self._net.load_model("diffusers", "ControlNetModel", dtype)
        pipeline = super()._load_published(dtype, controlnet=net, **components)
        other = net.config.cross_attention_dim != pipeline.unet.config.cross_attention_dim
        made = f"{self.controlnet} was made for another network than that of {self.checkpoint}"
        self.refuse(other, f"{made}; choose one for this generation of Stable Diffusion")
        return pipeline

    def _vary_one(self, request: Request, pixels: Pixels, *_: Any) -> Pixels:
        return super()._vary_one(request, pixels, self._shown(request.source, pixels))

    def _shown(self, source: Sample, pixels: Pixels) -> Planes:
        """The control image, as shares of 255."""
        values = planes_of(levels_of(source, pixels).scaled(pixels), 3).mean(axis=0)
        if self.control == "edges":
            edges = cv2.Canny(np.rint(values * 255).astype(np.uint8), *CANNY)
            return np.repeat(edges[None] / np.float32(255), 3, axis=0)
        mask = draw(silhouettes_of(values, source.object_boxes), *values.shape)
        colours = np.array([self.ground_colour, self.object_colour], dtype=np.float32)[:, :, None, None] / 255
        return colours[0] + mask * (colours[1] - colours[0])

    def _inputs(self, squares: Squares) -> dict[str, Any]:
        images = {"image": squares[:, :3], "control_image": squares[:, 3:], "strength": self.strength}
        return {"prompt": [self.prompt] * len(squares), "controlnet_conditioning_scale": self.scale, **images}


@dataclass(kw_only=True, eq=False)
class GLIGEN(PipelineGenerator):
    """Stable Diffusion conditioned on boxes and phrases; diffusers has deprecated it, and tests show that it runs."""

    phrases: list[str]  # what an object of every class is, in the order of the classes
    prompt: str  # what the whole image shows
    grounded: float  # share of the steps, the first ones, that use the boxes

    name = "gligen"
    boxes = "carried"
    # The published checkpoint says that it is Stable Diffusion; its network tells.
    kinds = (*KINDS["gligen"], "StableDiffusionPipeline")
    pipeline_class = KINDS["gligen"][0]
    one_by_one = True  # boxes are those of all images of a call

    def __post_init__(self) -> None:
        super().__post_init__()
        check_settings(self.name, self, "grounded")
        if not self.phrases or not all(phrase.strip() for phrase in self.phrases):
            raise InputError(f"{self.name}: phrases names every class in order, such as [ship], got {self.phrases}")

    def _load_published(self, dtype: torch.dtype, **components: Any) -> Any:
        pipeline = super()._load_published(dtype, **components)
        if not str(pipeline.unet.config.attention_type).startswith("gated"):
            cure = "choose a checkpoint of GLIGEN, whose unet/config.json has attention_type gated"
            raise InputError(f"{self.name}: {self.checkpoint} has a network that takes no boxes; {cure}")
        return pipeline

    def _vary_one(self, request: Request, pixels: Pixels, *_: Any) -> Pixels:
        source = request.source
        if (count := len(source.object_boxes)) > MOST_OBJECTS:
            raise NotDrawnError(f"{count} objects; GLIGEN places {MOST_OBJECTS} at most")
        if (most := max(source.object_labels, default=-1)) >= len(self.phrases):
            raise InputError(f"{self.name}: class {most + 1} of {source.name} has no phrase: name all in phrases")
        self._placed = source.object_boxes, [self.phrases[label] for label in source.object_labels]
        # Column and row of every pixel: the place of each square in the image.
        return super()._vary_one(request, pixels, np.indices(pixels.shape[:2], dtype=np.float32)[::-1])

    def _inputs(self, squares: Squares) -> dict[str, Any]:
        boxes, phrases = self._placed
        within = np.clip((boxes - np.tile(squares[0, 3:, 0, 0].numpy(), 2)) / self._side, 0, 1)
        seen = [number for number, (x1, y1, x2, y2) in enumerate(within) if x1 < x2 and y1 < y2]
        return {
            "prompt": [self.prompt],
            # The pipeline needs at least one box; without grounded steps, the box has no effect.
            "gligen_boxes": within[seen].tolist() or [[0.0, 0.0, 1.0, 1.0]],
            "gligen_phrases": [phrases[number] for number in seen] or [""],
            "gligen_scheduled_sampling_beta": self.grounded if seen else 0,
        }
