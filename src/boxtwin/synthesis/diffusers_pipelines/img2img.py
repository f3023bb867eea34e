"""Variations by pretrained models that make images from text: any checkpoint that the pipelines of diffusers load."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from boxtwin.datasets.image_io import Pixels
from boxtwin.synthesis.arrays import Boxes, Mask, box_pixels, grown
from boxtwin.synthesis.blending import blend_outside_boxes
from boxtwin.synthesis.diffusers_pipelines.finetune import PromptedGenerator
from boxtwin.synthesis.generator import Request, check_settings


@dataclass(kw_only=True, eq=False)
class Img2Img(PromptedGenerator):
    """The source noised to a strength and denoised: SDEdit (Meng et al. 2022) with a model for images from text."""

    name = "img2img"
    boxes = "carried"
    pipeline_class = "AutoPipelineForImage2Image"
    mapping = "AUTO_IMAGE2IMAGE_PIPELINES_MAPPING"


@dataclass(kw_only=True, eq=False)
class InpaintPretrained(PromptedGenerator):
    """Objects stay as they are to the last bit, and everything around them is painted anew."""

    margin: int  # pixels around the boxes over which source and painting are mixed; the outer half is painted

    name = "inpaint_pretrained"
    boxes = "exact"
    pipeline_class = "AutoPipelineForInpainting"
    mapping = "AUTO_INPAINT_PIPELINES_MAPPING"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_settings(self.name, self, margin=0)
        self._to_repaint, self._repaint_identity = self._repaint, {"inpaint": True, "margin": self.margin}

    def _repaint(self, boxes: Boxes, height: int, width: int) -> Mask:
        return ~box_pixels(grown(boxes, self.margin // 2), height, width)

    def _vary_one(self, request: Request, pixels: Pixels, *_: Any) -> Pixels:
        boxes = request.source.object_boxes  # crowds are painted over: no box would stand for their objects
        repaint = self._repaint(boxes, *pixels.shape[:2])
        if not repaint.any():
            return pixels
        painted = super()._vary_one(request, pixels, repaint[None].astype(np.float32))
        return blend_outside_boxes(pixels, painted, boxes, self.margin)
