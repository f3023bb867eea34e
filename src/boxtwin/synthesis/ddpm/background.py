"""New surroundings for the same objects. A module of its own, since recorded configurations name its place."""

from __future__ import annotations

from dataclasses import dataclass

from boxtwin.synthesis.blending import blend_outside_boxes
from boxtwin.synthesis.constants import BLEND_MARGIN
from boxtwin.synthesis.ddpm.base import Canvas
from boxtwin.synthesis.ddpm.whole_image import PixelDDPM
from boxtwin.synthesis.generator import Request, Variation


@dataclass(kw_only=True, eq=False)
class PixelBackground(PixelDDPM):
    """Everything outside the boxes repainted by SDEdit; every pixel that a box touches stays as it is.

    The network sees the objects while it paints around them, unnoised with `object_strength` 0, so that what it paints
    joins them. Boxes of crowds are kept as well. What is left of a seam is mixed away (`blend_outside_boxes`).
    """

    name = "inpaint_background"
    boxes = "exact"

    def draw(self, canvas: Canvas, request: Request) -> Variation:
        source = request.source
        painted = self.redraw(canvas, source.boxes, request.seed)
        pixels = blend_outside_boxes(canvas.like, painted, source.boxes, BLEND_MARGIN)
        return Variation(request, pixels, source.object_boxes, source.object_labels)
