"""Images and the masks of their objects, made together from noise by one model; boxes are read from the masks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

from boxtwin.datasets.sample import Sample
from boxtwin.errors import InputError
from boxtwin.synthesis.arrays import Mask, Plane, level_and_spread, lies_inside, object_mask
from boxtwin.synthesis.constants import CERTAINTY, CONTRAST, ETA_PARTS, LEAST_LENGTH, OBJECT_STEPS
from boxtwin.synthesis.ddpm.base import Canvas, PixelGenerator, soft_zone, the_one_class
from boxtwin.synthesis.ddpm.sampling import Image, match_grain
from boxtwin.synthesis.generator import Json, Request, Variation, check_settings
from boxtwin.synthesis.silhouettes import Silhouette, draw, silhouettes_of

AROUND = 8  # pixels around an object that are its ground
SLIM = 0.9  # this share of the training images' objects are slimmer than any object made
# A mask is as noisy as the last denoising step leaves it. Hulls are several pixels broad and survive the blur.
BLUR = 3.0  # standard deviation in pixels
LEAST_MASK = -0.6  # from this value on (-1: no object, 1: an object) a pixel belongs to a possible object


def read_mask(mask: Plane, broadest: float, least_length: int) -> list[tuple[Silhouette, float]]:
    """The objects in a mask (-1 to 1), as turned rectangles with the mask's greatest value in each.

    1. Blur, and take the connected parts in which the mask is above `LEAST_MASK`.
    2. Heading, length and breadth are those of the rectangle with the part's second moments, the blur's taken off.
    3. Breadth is at most ``broadest`` of the length; what is shorter than ``least_length`` pixels is noise.
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


def _rectangle(inside: Mask, left: int, top: int, broadest: float) -> Silhouette:
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


@dataclass(kw_only=True, eq=False)
class PixelJoint(PixelGenerator):
    """A new image of the source's size with new objects: nothing of the source but its size is used.

    1. Image and mask are denoised together, from noise that the request's seed decides.
    2. Each connected part of the mask is read as a turned rectangle (`read_mask`). It is an object if the mask reaches
       `CERTAINTY` in it and its tight box lies in the image. The record counts the others as ambiguous.
    3. The ground is drawn anew from noise, without ambiguous objects, and gets the grain of a training image.
    4. The objects are drawn into it one by one, with their mask certain. One that does not differ from its ground by
       `CONTRAST` standard deviations has no box, and counts as ambiguous.

    The model has to learn all noise levels, and masks (`joint`), which have no classes.
    """

    redraw_steps: int  # denoising steps of the ground
    margin: int  # pixels around an object that are drawn with it

    name = "pixel_ddpm_joint"
    eta = ETA_PARTS

    def __post_init__(self) -> None:
        super().__post_init__()
        check_settings(self.name, self, redraw_steps=1, margin=1)
        if not self.network.predicts_masks:
            raise InputError(f"{self.name}: joint must be above 0; otherwise the model does not learn to make masks")
        self.check_strength("drawing", 1.0)
        self._broadest, self._label = 1.0, 0
        self._grounds: list[tuple[Image, Image]] = []

    def fit(self, training: Sequence[Sample], folder: Path) -> None:
        """Train or load the model; training images with objects of several classes are refused."""
        self._label = the_one_class(self.name, training, "generator=pixel_ddpm_layout or generator=pixel_ddpm_sketch")
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
        certain = [shape for shape, greatest in parts if greatest >= CERTAINTY]
        shapes = [shape for shape in certain if lies_inside(shape.box(), (height, width))]
        x = self.sample(self.network.given_mask(plane), both[:, :-1], torch.ones_like(plane), noise, self.redraw_steps)
        model, free = self._grounds[request.seed % len(self._grounds)]
        x = match_grain(x, torch.ones_like(x[:, :1]), model, free)
        for shape in shapes:
            # The network has learnt objects in crops: window by window it draws them far better than all at once.
            zone = soft_zone(draw([shape], height, width) > 0, self.margin)
            x = self.paint(canvas, x, draw(shapes, height, width), zone, noise, OBJECT_STEPS)
        values = canvas.values(x).mean(axis=0)
        shapes = [shape for shape in shapes if self._is_seen(shape, values)]
        boxes = np.array([shape.box() for shape in shapes], dtype=request.source.boxes.dtype).reshape(-1, 4)
        labels = np.full(len(boxes), self._label, dtype=request.source.labels.dtype)
        record: dict[str, Json] = {"objects": len(shapes), "ambiguous": len(parts) - len(shapes)}
        return Variation(request, canvas.pixels(x), boxes, labels, record=record)

    def _is_seen(self, shape: Silhouette, values: Plane) -> bool:
        """Whether the image differs there from its ground, light or dark."""
        inside = draw([shape], *values.shape) > 0.5
        ground = values[(soft_zone(inside, AROUND) > 0) & (soft_zone(inside, 2) == 0)]
        if not ground.size or not inside.any():
            return False
        level, spread = level_and_spread(ground)
        return abs(float(values[inside].mean()) - level) >= CONTRAST * spread
