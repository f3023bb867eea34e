"""Variations by a small diffusion model of the split's own training images: no download, minutes on a CPU."""

from __future__ import annotations

from typing import Unpack

import numpy as np
import torch
from jaxtyping import Float

from boxtwin.datasets.image_io import Pixels
from boxtwin.errors import InputError
from boxtwin.synthesis.ddpm.base import Canvas, PixelGenerator
from boxtwin.synthesis.ddpm.model import ModelSettings
from boxtwin.synthesis.ddpm.sampling import match_histogram, match_texture, object_mask, sdedit, strength_map
from boxtwin.synthesis.ddpm.training_crops import mask_of
from boxtwin.synthesis.generator import Json, Knowledge, Request, Variation


class DDPMSettings(ModelSettings):
    """The arguments of `PixelDDPM`."""

    strength: float
    object_strength: float
    object_margin: int
    steps: int
    eta: float
    rho: float
    texture: float
    texture_window: int
    histogram: bool


class PixelDDPM(PixelGenerator):
    """SDEdit with a U-Net trained from scratch on random crops, given the objects' mask as a conditioning channel.

    Objects keep their places because the mask shows the network where they are and because noise of limited strength
    leaves their shape readable (Meng et al. 2022, "SDEdit", figure 3).

    Args:
        strength: time in [0, 1] to which the background is noised; 0 gives the source back, 1 forgets it.
        object_strength: the same inside the boxes, not above `strength`; rounded to the nearest time of the steps.
        object_margin: pixels around a box over which the strength rises from the one to the other.
        steps: denoising steps of a variation.
        eta: share of fresh noise in every step, 0 (DDIM) to 1 (ancestral).
        rho: crowding of the steps near the clean image (1: even).
        texture: 0 to 1, how far fine texture gets the local strength that it has in the source (`match_texture`).
        texture_window: width in pixels of the windows in which that strength is measured.
        histogram: give the values the distribution that they have in the source (`match_histogram`).
        settings: of the model; see `ModelSettings`. Variations have the seeds of their requests.
    """

    name = "pixel_ddpm"
    boxes: Knowledge = "carried"

    def __init__(
        self,
        *,
        strength: float,
        object_strength: float,
        object_margin: int,
        steps: int,
        eta: float,
        rho: float,
        texture: float,
        texture_window: int,
        histogram: bool,
        **settings: Unpack[ModelSettings],
    ) -> None:
        super().__init__(**settings)
        self.check(
            {"strength": strength, "object_strength": object_strength, "eta": eta, "texture": texture},
            {"steps": (steps, 1), "texture_window": (texture_window, 4), "object_margin": (object_margin, 0)},
        )
        self.check_strength(strength=strength)
        if object_strength > strength:
            raise InputError(
                f"{self.name}: object_strength ({object_strength}) must not be above strength ({strength}): "
                "objects are changed as much as their surroundings, or less"
            )
        if rho <= 0:
            raise InputError(f"{self.name}: rho is positive, got {rho}")
        self.strength, self.object_strength, self.object_margin = strength, object_strength, object_margin
        self.steps, self.eta, self.rho = steps, eta, rho
        self.texture, self.texture_window = texture, texture_window
        self.histogram = histogram

    def drawing(self) -> dict[str, Json]:
        """Strengths, steps and texture."""
        return {
            "strength": self.strength,
            "object_strength": self.object_strength,
            "object_margin": self.object_margin,
            "steps": self.steps,
            "eta": self.eta,
            "rho": self.rho,
            "texture": self.texture,
            "texture_window": self.texture_window,
            "histogram": self.histogram,
        }

    def draw(self, canvas: Canvas, request: Request) -> Variation:
        """The source, noised and denoised."""
        source = request.source
        pixels = self.redraw(canvas, source.boxes, request.seed)
        return Variation(request=request, pixels=pixels, boxes=source.object_boxes, labels=source.object_labels)

    def redraw(self, canvas: Canvas, boxes: Float[np.ndarray, "n 4"], seed: int) -> Pixels:
        """The image on ``canvas``, which shows objects in ``boxes`` (xyxy, pixels), noised and denoised."""
        mask = canvas.mask(mask_of(self.network.mask, canvas.encoded, boxes))
        inside = canvas.mask(object_mask(boxes, canvas.height, canvas.width))
        varied = sdedit(
            self.network.given_mask(mask),
            canvas.x,
            strength_map(inside, self.strength, self.object_strength, self.object_margin),
            steps=self.steps,
            rho=self.rho,
            eta=self.eta,
            generator=torch.Generator().manual_seed(seed),
        )
        varied = match_texture(varied, canvas.x, self.texture_window, self.texture)
        return canvas.pixels(match_histogram(varied, canvas.x) if self.histogram else varied)
