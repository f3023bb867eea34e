"""Variations by a small diffusion model of the split's own training images: no download, minutes on a CPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import cv2
import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from boxtwin.datasets.image_io import Pixels
from boxtwin.datasets.sample import Sample
from boxtwin.synthesis.arrays import Boxes, object_mask
from boxtwin.synthesis.constants import TEXTURE, TEXTURE_WINDOW
from boxtwin.synthesis.ddpm.base import CONTEXT, Canvas, PixelGenerator
from boxtwin.synthesis.ddpm.model import mask_of
from boxtwin.synthesis.ddpm.sampling import Image, Map, match_histogram, match_texture, strength_map
from boxtwin.synthesis.generator import Knowledge, Request, Variation, check_settings

Place = tuple[slice, slice, slice, slice]


@dataclass(kw_only=True, eq=False)
class PixelDDPM(PixelGenerator):
    """SDEdit with a U-Net trained from scratch on random crops, given the objects' mask as a conditioning channel.

    With `strength` 0 the background stays as it is, and only windows around the objects are computed.

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

    def version(self, training: Sequence[Sample]) -> int:  # noqa: ARG002
        """4 without a change of the background, since windows have all their surroundings; 1 computed whole images."""
        return 1 if self.strength > 0 else 4

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
        if self.strength > 0:
            return canvas.pixels(self._redraw(canvas.x, mask, strength, noise))
        result = canvas.x.clone()
        for place, part in self._parts(strength):
            drawn = self._redraw(canvas.x[place], mask[place].contiguous(), strength[place], noise)
            result[place] = torch.where(part, drawn, result[place])
        return canvas.pixels(result)

    def _redraw(self, x: Image, mask: Map, strength: Map, noise: torch.Generator) -> Image:
        varied = self.sample(self.network.given_mask(mask), x, strength, noise)
        varied = match_texture(varied, x, TEXTURE_WINDOW, TEXTURE)
        return match_histogram(varied, x) if self.histogram else varied

    def _parts(self, strength: Map) -> Iterator[tuple[Place, Bool[Tensor, "height width"]]]:
        """A window with its surroundings around each connected part that changes, and the pixels of the part in it."""
        change, multiple = (strength[0, 0] > 0).cpu().numpy(), self.network.multiple
        near = cv2.dilate(change.astype(np.uint8), np.ones((CONTEXT + 1, CONTEXT + 1), np.uint8))
        count, numbers, stats, _ = cv2.connectedComponentsWithStats(near)
        for number in range(1, count):
            left, top, width, height = stats[number, :4].tolist()
            slices = []
            for start, length, size in ((top, height, change.shape[0]), (left, width, change.shape[1])):
                side = min(max(-(-length // multiple), 2) * multiple, size)
                start = min(max(start + (length - side) // 2, 0), size - side)
                slices.append(slice(start, start + side))
            part = change[slices[0], slices[1]] & (numbers[slices[0], slices[1]] == number)
            yield np.s_[:, :, slices[0], slices[1]], torch.from_numpy(part).to(strength.device)
