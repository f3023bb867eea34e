"""Images and the masks of their objects, made together from noise by one model; boxes are read from the masks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

import numpy as np
import torch
from jaxtyping import Float

from boxtwin.datasets.sample import Sample
from boxtwin.errors import InputError
from boxtwin.synthesis.ddpm.base import Canvas, PixelGenerator
from boxtwin.synthesis.ddpm.mask_reading import TORN, Reading, read_mask
from boxtwin.synthesis.ddpm.model import ModelSettings
from boxtwin.synthesis.ddpm.sampling import Image, match_grain, object_mask, sdedit
from boxtwin.synthesis.ddpm.training_crops import planes_of
from boxtwin.synthesis.diffusers_pipelines.local_painting import Brush, paint, soft_zone
from boxtwin.synthesis.generator import Json, Knowledge, Request, Variation
from boxtwin.synthesis.silhouettes import Silhouette, draw, silhouettes_of

AROUND = 8  # pixels around an object that are its ground
SLIM = 0.9  # this share of the training images' objects are slimmer than any object made


class PixelJoint(PixelGenerator):
    """A new image of the source's size, with objects of its own: nothing of the source but its size is used.

    1. Image and mask are denoised together, from noise that the request's seed decides.
    2. Each connected part of the mask is read as a turned rectangle (`read_mask`). It is an object when the mask is
       sure of it (`certainty`) and its box, the tight box of the rectangle, lies in the image. The others are
       ambiguous, counted in the manifest's record. Parts under `least_length` are noise.
    3. The ground is drawn anew from noise of `redraw`, with an empty mask, so that nothing is left of what the first
       pass was torn about, and gets the grain of a training image.
    4. The objects are drawn into it one by one, with their mask certain. One that does not differ from its ground by
       `contrast` standard deviations did not come: it has no box, and counts as ambiguous.

    The mask knows no classes: training images with objects of several classes are refused.

    Args:
        steps, eta, rho: of the sampler, as of `PixelDDPM`.
        redraw: time in [0, 1] to which the image is noised before its ground is drawn; 1 keeps nothing of it.
        redraw_steps: steps of that.
        object_steps: steps of every object; objects are small, so that more cost little.
        margin: pixels around an object that are drawn with it.
        least_length: pixels.
        certainty: least value of the blurred mask at an object's surest point, -0.6 to 1.
        contrast: see above.
        settings: of the model; see `ModelSettings`. It has to learn all noise levels, and masks (`joint`).
    """

    name = "pixel_ddpm_joint"
    boxes: Knowledge = "exact"

    def __init__(
        self,
        *,
        steps: int,
        eta: float,
        rho: float,
        redraw: float,
        redraw_steps: int,
        object_steps: int,
        margin: int,
        least_length: int,
        certainty: float,
        contrast: float,
        **settings: Unpack[ModelSettings],
    ) -> None:
        super().__init__(**settings)
        self.check(
            {"eta": eta, "redraw": redraw},
            {
                "steps": (steps, 1),
                "redraw_steps": (redraw_steps, 1),
                "object_steps": (object_steps, 1),
                "margin": (margin, 1),
                "least_length": (least_length, 1),
            },
        )
        if rho <= 0:
            raise InputError(f"{self.name}: rho is positive, got {rho}")
        if contrast < 0:
            raise InputError(f"{self.name}: contrast is not negative, got {contrast}")
        if not TORN <= certainty <= 1:
            raise InputError(f"{self.name}: certainty lies in [{TORN}, 1], got {certainty}")
        if not self.network.joint:
            raise InputError(f"{self.name}: joint is above 0, or the model does not learn to make masks")
        self.check_strength(drawing=1.0)
        self.steps, self.eta, self.rho = steps, eta, rho
        self.redraw, self.redraw_steps = redraw, redraw_steps
        self.least_length, self.certainty, self.contrast = least_length, certainty, contrast
        self.brush = Brush(steps=object_steps, rho=rho, eta=eta, margin=margin)
        self._broadest = 1.0
        self._grounds: list[tuple[Image, Image]] = []
        self._label = 0

    def drawing(self) -> dict[str, Json]:
        """Sampler, and what counts as an object."""
        return {
            "steps": self.steps,
            "eta": self.eta,
            "rho": self.rho,
            "redraw": self.redraw,
            "redraw_steps": self.redraw_steps,
            "object_steps": self.brush.steps,
            "margin": self.brush.margin,
            "least_length": self.least_length,
            "certainty": self.certainty,
            "contrast": self.contrast,
        }

    def fit(self, training: Sequence[Sample], folder: Path) -> None:
        """Train or load the model.

        Raises:
            InputError: the training images have objects of several classes.
        """
        classes = sorted({int(label) for sample in training for label in sample.object_labels})
        if len(classes) > 1:
            raise InputError(
                f"{self.name} makes objects of one class, the training images have {len(classes)}: use "
                "generator=pixel_ddpm_layout or pixel_ddpm_sketch, whose objects keep their classes"
            )
        self._label = classes[0] if classes else 0
        super().fit(training, folder)
        self._grounds, ratios = [], []
        for sample in training:
            planes = planes_of(sample.read(), self.network.image_channels)
            encoded = self.network.tone.encode(planes)
            free = object_mask(sample.boxes, *planes.shape[1:]) == 0
            image = torch.from_numpy(encoded)[None].to(self.network.device)
            self._grounds.append((image, torch.from_numpy(free[None, None]).to(image)))
            ratios += [shape.breadth / shape.length for shape in silhouettes_of(encoded.mean(axis=0), sample.boxes)]
        self._broadest = float(np.quantile(ratios, SLIM)) if ratios else 1.0

    def draw(self, canvas: Canvas, request: Request) -> Variation:
        """An image and its boxes, from the seed alone."""
        noise = torch.Generator().manual_seed(request.seed)
        height, width = canvas.height, canvas.width
        empty = torch.zeros(1, canvas.x.shape[1] + 1, *canvas.x.shape[2:], device=canvas.x.device)
        both = sdedit(
            self.network.with_mask,
            empty,
            torch.ones_like(empty[:, :1]),
            steps=self.steps,
            rho=self.rho,
            eta=self.eta,
            generator=noise,
        )
        readings = read_mask(both[0, -1, :height, :width].cpu().numpy(), self._broadest, self.least_length)
        shapes = [reading.silhouette for reading in readings if self._is_object(reading, height, width)]
        x = sdedit(
            self.network.given_mask(torch.zeros_like(empty[:, :1])),
            both[:, :-1],
            torch.full_like(empty[:, :1], self.redraw),
            steps=self.redraw_steps,
            rho=self.rho,
            eta=self.eta,
            generator=noise,
        )
        x = self._with_grain(x, request.seed)
        for shape in shapes:
            # The network has learnt objects in crops: window by window it draws them far better than all at once.
            zone = soft_zone(draw([shape], height, width) > 0, self.brush.margin)
            x = paint(canvas, x, draw(shapes, height, width), zone, self.brush, noise)
        values = x[0, :, :height, :width].mean(dim=0).cpu().numpy()
        shapes = [shape for shape in shapes if self._is_seen(shape, values)]
        boxes = np.array([shape.box() for shape in shapes], dtype=request.source.boxes.dtype).reshape(-1, 4)
        return Variation(
            request=request,
            pixels=canvas.pixels(x),
            boxes=boxes,
            labels=np.full(len(boxes), self._label, dtype=request.source.labels.dtype),
            record={"objects": len(shapes), "ambiguous": len(readings) - len(shapes)},
        )

    def _is_object(self, reading: Reading, height: int, width: int) -> bool:
        x1, y1, x2, y2 = reading.silhouette.box()
        return bool(reading.sure >= self.certainty and x1 >= 0 and y1 >= 0 and x2 <= width and y2 <= height)

    def _is_seen(self, shape: Silhouette, values: Float[np.ndarray, "h w"]) -> bool:
        """Whether the image shows something there, light or dark."""
        inside = draw([shape], *values.shape) > 0.5
        ground = values[(soft_zone(inside, AROUND) > 0) & (soft_zone(inside, 2) == 0)]
        if not ground.size or not inside.any():
            return False
        level = float(np.median(ground))
        spread = max(1.4826 * float(np.median(np.abs(ground - level))), 1e-3)
        return abs(float(values[inside].mean()) - level) >= self.contrast * spread

    def _with_grain(self, x: Image, seed: int) -> Image:
        """The texture's strength of one of the training images."""
        model, free = self._grounds[seed % len(self._grounds)]
        return match_grain(x, torch.ones_like(x[:, :1]), model, free)
