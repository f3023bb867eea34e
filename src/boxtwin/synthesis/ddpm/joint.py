"""Images and the masks of their objects, made together from noise by one model; boxes are read from the masks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float

from boxtwin.datasets.sample import Sample
from boxtwin.errors import InputError
from boxtwin.synthesis.arrays import level_and_spread, object_mask
from boxtwin.synthesis.constants import CERTAINTY, CONTRAST, ETA_PARTS, LEAST_LENGTH, OBJECT_STEPS
from boxtwin.synthesis.ddpm.base import Canvas, PixelGenerator, soft_zone, the_one_class
from boxtwin.synthesis.ddpm.sampling import Image, match_grain
from boxtwin.synthesis.generator import Request, Variation
from boxtwin.synthesis.silhouettes import Silhouette, draw, silhouettes_of

AROUND = 8  # pixels around an object that are its ground
SLIM = 0.9  # this share of the training images' objects are slimmer than any object made
# A mask is as noisy as the last denoising step leaves it. Hulls are several pixels broad and survive the blur.
BLUR = 3.0  # standard deviation in pixels
# From this value on (-1: no object, 1: an object) a pixel belongs to a possible object.
LEAST_MASK = -0.6


def read_mask(mask: Float[np.ndarray, "h w"], broadest: float, least_length: int) -> list[tuple[Silhouette, float]]:
    """The objects in a mask (-1 to 1), as turned rectangles with the mask's greatest value in each.

    1. Blur, and take the connected parts in which the mask is above `LEAST_MASK`.
    2. Heading, length and breadth are those of the rectangle with the part's second moments, the blur's taken off.
    3. Rectangles broader than ``broadest`` of their length are slimmed, with their length kept; those shorter than
       ``least_length`` pixels are no objects but noise.
    """
    smooth = cv2.GaussianBlur(mask, (0, 0), BLUR, borderType=cv2.BORDER_REFLECT)
    count, numbers, stats, _ = cv2.connectedComponentsWithStats((smooth > LEAST_MASK).astype(np.uint8), connectivity=8)
    parts = []
    for number in range(1, count):
        x, y, width, height, area = (int(value) for value in stats[number])
        if area < least_length:
            continue
        window = slice(y, y + height), slice(x, x + width)
        inside = numbers[window] == number
        silhouette = _rectangle(inside, x, y, broadest)
        if silhouette.length >= least_length:
            parts.append((silhouette, float(smooth[window][inside].max())))
    return parts


def _rectangle(inside: Bool[np.ndarray, "h w"], left: int, top: int, broadest: float) -> Silhouette:
    share = inside / inside.sum()
    rows, columns = np.mgrid[: inside.shape[0], : inside.shape[1]]
    x, y = float((share * columns).sum()), float((share * rows).sum())
    dx, dy = columns - x, rows - y
    # A pixel is a square of variance 1/12; what is narrower than the blur is a pixel broad.
    xx, yy = (float((share * d2).sum()) + 1 / 12 for d2 in (dx * dx, dy * dy))
    xy = float((share * (dx * dy)).sum())
    middle, reach = (xx + yy) / 2, math.hypot((xx - yy) / 2, xy)
    long, short = (max(value - BLUR**2, 1 / 12) for value in (middle + reach, middle - reach))
    length, breadth = math.sqrt(12 * long), math.sqrt(12 * short)
    heading = 0.5 * math.atan2(2 * xy, xx - yy)
    return Silhouette(left + x + 0.5, top + y + 0.5, heading, length, min(breadth, broadest * length))


def _inside(shape: Silhouette, height: int, width: int) -> bool:
    x1, y1, x2, y2 = shape.box()
    return bool(x1 >= 0 and y1 >= 0 and x2 <= width and y2 <= height)


@dataclass(kw_only=True, eq=False)
class PixelJoint(PixelGenerator):
    """A new image of the source's size with new objects: nothing of the source but its size is used.

    1. Image and mask are denoised together, from noise that the request's seed decides.
    2. Each connected part of the mask is read as a turned rectangle (`read_mask`). It is an object if the mask reaches
       `CERTAINTY` in it and its box, the tight box of the rectangle, lies in the image. The others are ambiguous,
       counted in the manifest's record. Parts under `LEAST_LENGTH` are noise.
    3. The ground is drawn anew from noise, with an empty mask, so that no ambiguous objects are left, and
       gets the grain of a training image.
    4. The objects are drawn into it one by one, with their mask certain. One that does not differ from its ground by
       `CONTRAST` standard deviations has no box, and counts as ambiguous.

    The mask has no classes: training images with objects of several classes are refused.

    The model has to learn all noise levels, and masks (`joint`).
    """

    redraw_steps: int  # denoising steps of the ground
    margin: int  # pixels around an object that are drawn with it

    name = "pixel_ddpm_joint"
    eta = ETA_PARTS

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check(redraw_steps=1, margin=1)
        if not self.network.predicts_masks:
            raise InputError(f"{self.name}: joint is above 0, or the model does not learn to make masks")
        self.check_strength("drawing", 1.0)
        self._broadest, self._label = 1.0, 0
        self._grounds: list[tuple[Image, Image]] = []

    def fit(self, training: Sequence[Sample], folder: Path) -> None:
        """Train or load the model.

        Raises:
            InputError: the training images have objects of several classes.
        """
        label = the_one_class(training)
        if label is None:
            raise InputError(
                f"{self.name} makes objects of one class, the training images have several classes: use "
                "generator=pixel_ddpm_layout or pixel_ddpm_sketch, whose objects keep their classes"
            )
        self._label = label
        super().fit(training, folder)
        self._grounds, ratios = [], []
        for sample in training:
            encoded = self.encoded(sample.read())
            free = object_mask(sample.boxes, *encoded.shape[1:]) == 0
            image = torch.from_numpy(encoded)[None].to(self.network.device)
            self._grounds.append((image, torch.from_numpy(free[None, None]).to(image)))
            ratios += [shape.breadth / shape.length for shape in silhouettes_of(encoded.mean(axis=0), sample.boxes)]
        self._broadest = float(np.quantile(ratios, SLIM)) if ratios else 1.0

    def draw(self, canvas: Canvas, request: Request) -> Variation:
        noise = torch.Generator().manual_seed(request.seed)
        height, width = canvas.height, canvas.width
        empty = torch.zeros(1, canvas.x.shape[1] + 1, *canvas.x.shape[2:], device=canvas.x.device)
        plane = empty[:, :1]
        both = self.sample(self.network.with_mask, empty, torch.ones_like(plane), noise)
        parts = read_mask(canvas.values(both)[-1], self._broadest, LEAST_LENGTH)
        shapes = [shape for shape, greatest in parts if greatest >= CERTAINTY and _inside(shape, height, width)]
        x = self.sample(self.network.given_mask(plane), both[:, :-1], torch.ones_like(plane), noise, self.redraw_steps)
        model, free = self._grounds[request.seed % len(self._grounds)]
        x = match_grain(x, torch.ones_like(x[:, :1]), model, free)
        for shape in shapes:
            # The network has learnt objects in crops: window by window it draws them far better than all at once.
            zone = soft_zone(draw([shape], height, width) > 0, self.margin)
            x = self.paint(canvas, x, draw(shapes, height, width), zone, noise, OBJECT_STEPS)
        values = canvas.brightness(x)
        shapes = [shape for shape in shapes if self._is_seen(shape, values)]
        boxes = np.array([shape.box() for shape in shapes], dtype=request.source.boxes.dtype).reshape(-1, 4)
        return Variation(
            request=request,
            pixels=canvas.pixels(x),
            boxes=boxes,
            labels=np.full(len(boxes), self._label, dtype=request.source.labels.dtype),
            record={"objects": len(shapes), "ambiguous": len(parts) - len(shapes)},
        )

    def _is_seen(self, shape: Silhouette, values: Float[np.ndarray, "h w"]) -> bool:
        """Whether the image differs there from its ground, light or dark."""
        inside = draw([shape], *values.shape) > 0.5
        ground = values[(soft_zone(inside, AROUND) > 0) & (soft_zone(inside, 2) == 0)]
        if not ground.size or not inside.any():
            return False
        level, spread = level_and_spread(ground)
        return abs(float(values[inside].mean()) - level) >= CONTRAST * spread
