"""New surroundings for the same objects."""

from __future__ import annotations

from typing import Unpack

from boxtwin.synthesis.blending import blend_outside_boxes
from boxtwin.synthesis.ddpm.base import Canvas
from boxtwin.synthesis.ddpm.whole_image import DDPMSettings, PixelDDPM
from boxtwin.synthesis.generator import Json, Knowledge, Request, Variation


class PixelBackground(PixelDDPM):
    """Everything outside the boxes repainted by SDEdit; every pixel that a box touches stays as it is.

    The network sees the objects while it paints around them, unnoised with `object_strength` 0, so that what it paints
    joins them. Boxes of crowds are kept as well. What is left of a seam is mixed away over `blend_margin` pixels
    (`blend_outside_boxes`).

    Args:
        blend_margin: pixels around the boxes over which source and painting are mixed.
        settings: as of `PixelDDPM`.
    """

    name = "inpaint_background"
    boxes: Knowledge = "exact"

    def __init__(self, *, blend_margin: int, **settings: Unpack[DDPMSettings]) -> None:
        super().__init__(**settings)
        self.check({}, {"blend_margin": (blend_margin, 0)})
        self.blend_margin = blend_margin

    def drawing(self) -> dict[str, Json]:
        """Those of `PixelDDPM`, and the margin."""
        return {**super().drawing(), "blend_margin": self.blend_margin}

    def draw(self, canvas: Canvas, request: Request) -> Variation:
        """The source with other surroundings."""
        source = request.source
        painted = self.redraw(canvas, source.boxes, request.seed)
        pixels = blend_outside_boxes(canvas.like, painted, source.boxes, self.blend_margin)
        return Variation(request=request, pixels=pixels, boxes=source.object_boxes, labels=source.object_labels)
