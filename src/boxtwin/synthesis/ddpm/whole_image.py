"""Variations by a small diffusion model of the split's own training images: no download, minutes on a CPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from boxtwin.datasets.image_io import Pixels
from boxtwin.synthesis.arrays import Boxes, object_mask
from boxtwin.synthesis.constants import TEXTURE, TEXTURE_WINDOW
from boxtwin.synthesis.ddpm.base import Canvas, PixelGenerator
from boxtwin.synthesis.ddpm.model import mask_of
from boxtwin.synthesis.ddpm.sampling import match_histogram, match_texture, strength_map
from boxtwin.synthesis.generator import Knowledge, Request, Variation, check_settings


@dataclass(kw_only=True, eq=False)
class PixelDDPM(PixelGenerator):
    """SDEdit with a U-Net trained from scratch on random crops, given the objects' mask as a conditioning channel.

    Objects keep their places: the mask shows them, and noise of limited strength leaves their shape readable (Meng et
    al. 2022, "SDEdit", figure 3).
    """

    strength: float  # time in [0, 1] to which the background is noised; 0 gives the source back, 1 forgets it
    object_strength: float  # the same in the boxes; rounded to the nearest time of the steps
    object_margin: int  # pixels around a box over which the strength rises from the one to the other
    histogram: bool  # give the values the distribution that they have in the source (`match_histogram`)

    name = "pixel_ddpm"
    boxes: ClassVar[Knowledge] = "carried"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_settings(self.name, self, "strength", "object_strength", object_margin=0)
        for setting in ("strength", "object_strength"):
            self.check_strength(setting, getattr(self, setting))

    def draw(self, canvas: Canvas, request: Request) -> Variation:
        source = request.source
        pixels = self.redraw(canvas, source.boxes, request.seed)
        return Variation(request, pixels, source.object_boxes, source.object_labels)

    def redraw(self, canvas: Canvas, boxes: Boxes, seed: int) -> Pixels:
        """The image on ``canvas``, which shows objects in ``boxes`` (xyxy, pixels), noised and denoised."""
        mask = canvas.mask(mask_of(self.mask, canvas.encoded, boxes))
        inside = canvas.mask(object_mask(boxes, canvas.height, canvas.width))
        strength = strength_map(inside, self.strength, self.object_strength, self.object_margin)
        noise = torch.Generator().manual_seed(seed)
        varied = self.sample(self.network.given_mask(mask), canvas.x, strength, noise)
        varied = match_texture(varied, canvas.x, TEXTURE_WINDOW, TEXTURE)
        return canvas.pixels(match_histogram(varied, canvas.x) if self.histogram else varied)
