"""Random changes of training images: mosaic, zoom, crops, flips, turns, gain, speckle and colour; boxes move along."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import cv2
import numpy as np
from jaxtyping import Float

from boxtwin.datasets.image_io import Pixels
from boxtwin.mixing.letterbox import Labelled, Part, canvas_like, full_scale, placed
from boxtwin.mixing.options import AugmentationOptions

CENTRE = (0.5, 0.5)


def augment(
    image: Labelled,
    partner: Callable[[], Labelled],
    options: AugmentationOptions,
    *,
    size: int,
    crop: int,
    random: np.random.Generator,
) -> Labelled:
    """Make a ``crop`` x ``crop`` training image of one whose longer side is scaled to ``size`` pixels, before zoom.

    Of an image with a ``relative_size`` it is scaled to so many times ``size``.

    ``partner`` gives one further image each time it is called; a mosaic needs three.
    """
    if random.random() < options.mosaic:
        # A part of each of four images around a random centre; one that fits its quadrant has its corner there.
        images = [image, partner(), partner(), partner()]
        x, y = (int(value) for value in random.uniform(0.3, 0.7, size=2) * crop)
        canvas = canvas_like(image.pixels, crop)
        windows = ((0, 0, x, y), (x, 0, crop, y), (0, y, x, crop), (x, y, crop, crop))
        inner = ((1.0, 1.0), (0.0, 1.0), (1.0, 0.0), (0.0, 0.0))
        parts = [
            _part(_turn(each, options, random), options, size, window, corner, random)
            for each, window, corner in zip(images, windows, inner, strict=True)
        ]
    else:
        image = _turn(image, options, random)
        canvas = canvas_like(image.pixels, crop)
        parts = [_part(image, options, size, (0, 0, crop, crop), CENTRE, random)]
    made = placed(parts, canvas)
    return replace(made, pixels=_photometric(made.pixels, options, random))


def _part(
    image: Labelled,
    options: AugmentationOptions,
    size: int,
    window: tuple[int, int, int, int],
    anchor: tuple[float, float],
    random: np.random.Generator,
) -> Part:
    """Choose the part of an image that fills a window of the canvas.

    An image smaller than the window lies at ``anchor`` (0 left or top, 1 right or bottom), or about the `CENTRE`.
    """
    sides = image.pixels.shape[1::-1]
    zoom = float(np.exp(random.uniform(-np.log(options.zoom), np.log(options.zoom))))
    scale = size / max(sides) * image.relative_size * (1.0 if random.random() < options.unscaled_fraction else zoom)
    shows_object, chosen = random.random() < options.object_crop_fraction, random.random()
    target: Float[np.ndarray, " 4"] | None = None
    if shows_object and len(image.boxes):
        target = image.boxes[int(chosen * len(image.boxes))] * scale
    source, corner = [0, 0], [0, 0]
    for axis in (0, 1):
        low, high = window[axis], window[axis + 2]
        slack = high - low - round(sides[axis] * scale)
        draw = random.random()
        if slack < 0:
            # Offsets at which the image covers the window, and those of them that show the target.
            first, last = low + slack, low
            if target is not None:
                # Of a target larger than the window, the window lies within it.
                begin, end = sorted((low - target[axis], high - target[axis + 2]))
                first, last = max(first, begin), min(last, end)
            offset = first + draw * (last - first)
        else:
            shift = (2 * draw - 1) * options.translate * size if anchor == CENTRE else 0.0
            offset = low + slack * anchor[axis] + shift
        # Whole pixels of the source only, so that nothing has to be resampled at a fraction of a pixel.
        source[axis] = min(max(0, math.floor((low - offset) / scale)), sides[axis] - 1)
        corner[axis] = low if source[axis] else math.floor(offset)
    return Part(image, scale, (source[0], source[1]), (corner[0], corner[1]), window)


def _turn(image: Labelled, options: AugmentationOptions, random: np.random.Generator) -> Labelled:
    # All three are drawn in any case, so that switching one off leaves the others' draws as they are.
    mirrored, upended, turns = random.random() < 0.5, random.random() < 0.5, int(random.integers(4))
    if options.flip_horizontal and mirrored:
        image = _flip(image)
    if options.flip_vertical and upended:
        image = _quarter_turn(_quarter_turn(_flip(image)))
    for _ in range(turns if options.quarter_turns else 0):
        image = _quarter_turn(image)
    return image


def _photometric(pixels: Pixels, options: AugmentationOptions, random: np.random.Generator) -> Pixels:
    has_colour, largest = pixels.ndim == 3 and bool(options.hue or options.saturation), full_scale(pixels)
    if options.gain == 0 and options.speckle == 0 and not has_colour:
        return pixels
    gain = np.float32(np.exp(random.uniform(-options.gain, options.gain)))
    if pixels.dtype == np.uint8 and options.speckle == 0 and not has_colour:
        # The same for every pixel of a value, so it is computed once for each of the 256.
        table = np.clip(np.arange(256, dtype=np.float32) * gain, 0, largest)
        return cv2.LUT(pixels, np.rint(table).astype(np.uint8))
    values = pixels.astype(np.float32) * gain
    if options.speckle > 0:
        noise = random.standard_normal(pixels.shape[:2], dtype=np.float32) * np.float32(options.speckle) + 1
        values *= noise if pixels.ndim == 2 else noise[:, :, None]
    values = np.clip(values, 0, largest)
    turn = random.uniform(-options.hue, options.hue)
    strength = np.exp(random.uniform(-options.saturation, options.saturation))
    if has_colour:
        hsv = cv2.cvtColor(values * np.float32(1 / largest), cv2.COLOR_RGB2HSV)  # hue in degrees, the rest in [0, 1]
        hsv[:, :, 0] = (hsv[:, :, 0] + np.float32(360 * turn)) % 360
        hsv[:, :, 1] = np.minimum(hsv[:, :, 1] * np.float32(strength), 1)
        values = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB) * np.float32(largest)
    return np.rint(values).astype(pixels.dtype)


def _flip(image: Labelled) -> Labelled:
    """Mirror left and right."""
    width = image.pixels.shape[1]

    def mirrored(boxes: np.ndarray) -> np.ndarray:
        x1, y1, x2, y2 = boxes.T
        return np.stack([width - x2, y1, width - x1, y2], axis=1)

    boxes, crowds = mirrored(image.boxes), mirrored(image.crowds)
    return replace(image, pixels=image.pixels[:, ::-1], boxes=boxes, crowds=crowds)


def _quarter_turn(image: Labelled) -> Labelled:
    """Turn by 90 degrees counter-clockwise, as np.rot90 does: (x, y) goes to (y, width - x)."""
    width = image.pixels.shape[1]

    def turned(boxes: np.ndarray) -> np.ndarray:
        x1, y1, x2, y2 = boxes.T
        return np.stack([y1, width - x2, y2, width - x1], axis=1)

    return replace(image, pixels=np.rot90(image.pixels), boxes=turned(image.boxes), crowds=turned(image.crowds))
