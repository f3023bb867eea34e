"""Letterbox, crops, mosaic, flips, turns, zoom, gain, speckle and colour: boxes move with pixels.

All geometry here is turning, flipping, scaling and shifting, so an object's box stays its tight box. Pixels keep the
type of the file (8 or 16 bit) until a batch is made.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, Int

from boxtwin.boxes import area_xyxy, clip_xyxy
from boxtwin.datasets.image_io import Pixels
from boxtwin.mixing.options import AugmentationOptions

# What surrounds a letterboxed image: mid grey, as Darknet's letterbox_image (src/image.c) fills it.
PAD = 0.5
# An object of which less is left after cropping cannot be told from background; objects under 2 pixels cannot be found.
LEAST_VISIBLE = 0.3
LEAST_SIDE = 2.0


@dataclass(frozen=True, eq=False)
class Labelled:
    """Pixels with the boxes (xyxy, pixels) and labels of the objects in them."""

    pixels: Pixels
    boxes: Float[np.ndarray, "n 4"]
    labels: Int[np.ndarray, " n"]


@dataclass(frozen=True)
class Letterbox:
    """How an image was put into a square: ``x_letterboxed = x_file * scale + pad_x``.

    ``own`` is the region (xyxy, pixels of the file) whose objects this square answers for: where an image is looked at
    in overlapping tiles, what has its centre elsewhere is another tile's.
    """

    scale: float
    pad_x: float
    pad_y: float
    own: tuple[float, float, float, float] = (-math.inf, -math.inf, math.inf, math.inf)


WHOLE = Letterbox(1.0, 0.0, 0.0)


def letterbox(image: Labelled, size: int, white: int) -> tuple[Labelled, Letterbox]:
    """Fit an image into a ``size`` x ``size`` square, keeping its proportions, centred on mid grey.

    Args:
        image: pixels of any size and type with their boxes.
        size: side of the square in pixels.
        white: the pixel value that means 1.0; the padding is half of it.
    """
    height, width = image.pixels.shape[:2]
    scale = size / max(height, width)
    canvas = canvas_like(image.pixels, size, white)
    pad_x, pad_y = (size - round(width * scale)) // 2, (size - round(height * scale)) // 2
    _paste(canvas, Part(image, scale, (0, 0), (pad_x, pad_y), (0, 0, size, size)))
    # Sides are rounded to whole pixels; the boxes follow the exact scale, less than half a pixel off.
    boxes = image.boxes * np.float32(scale) + np.array([pad_x, pad_y, pad_x, pad_y], dtype=np.float32)
    return Labelled(canvas, boxes, image.labels), Letterbox(scale, float(pad_x), float(pad_y))


class Part(NamedTuple):
    """A piece of an image and where it goes: the columns and rows from ``source`` (x1, y1) on, scaled by ``scale``, lie
    in ``window`` (xyxy) of the canvas with their corner at ``corner`` (x, y).
    """

    image: Labelled
    scale: float
    source: tuple[int, int]
    corner: tuple[int, int]
    window: tuple[int, int, int, int]

    @property
    def offset(self) -> tuple[float, float]:
        """Where the image's own corner would lie on the canvas: ``x_canvas = x_image * scale + offset``."""
        return self.corner[0] - self.source[0] * self.scale, self.corner[1] - self.source[1] * self.scale


class Augmentation(AugmentationOptions):
    """What is done at random to a training image."""

    def __call__(
        self,
        image: Labelled,
        partner: Callable[[], Labelled],
        *,
        size: int,
        crop: int,
        white: int,
        random: np.random.Generator,
    ) -> Labelled:
        """Make a ``crop`` x ``crop`` training image.

        Args:
            image: the image and its objects.
            partner: gives one further image each time it is called; a mosaic needs three.
            size: what the longer side of an image is scaled to, pixels, before zoom.
            crop: side of the square that is cut out of it; the same as ``size`` for whole images.
            white: the pixel value that means 1.0.
            random: the only source of chance.
        """
        if random.random() < self.mosaic:
            image = self._mosaic([image, partner(), partner(), partner()], size, crop, white, random)
        else:
            window = (0, 0, crop, crop)
            image = self._turn(image, random)
            image = placed(
                [self._part(image, size, window, (0.5, 0.5), random)], canvas_like(image.pixels, crop, white)
            )
        return Labelled(self._photometric(image.pixels, white, random), image.boxes, image.labels)

    def _mosaic(
        self, images: list[Labelled], size: int, crop: int, white: int, random: np.random.Generator
    ) -> Labelled:
        """Parts of four images around a random centre; one that fits its quadrant has its corner at the centre."""
        x, y = (int(value) for value in random.uniform(0.3, 0.7, size=2) * crop)
        canvas = canvas_like(images[0].pixels, crop, white)
        windows = ((0, 0, x, y), (x, 0, crop, y), (0, y, x, crop), (x, y, crop, crop))
        inner = ((1.0, 1.0), (0.0, 1.0), (1.0, 0.0), (0.0, 0.0))
        parts = [
            self._part(self._turn(image, random), size, window, corner, random, is_mosaic=True)
            for image, window, corner in zip(images, windows, inner, strict=True)
        ]
        return placed(parts, canvas)

    def _part(
        self,
        image: Labelled,
        size: int,
        window: tuple[int, int, int, int],
        anchor: tuple[float, float],
        random: np.random.Generator,
        *,
        is_mosaic: bool = False,
    ) -> Part:
        """Choose the part of an image that fills a window of the canvas.

        ``anchor`` says where an image that is smaller than the window lies in it: 0 left or top, 1 right or bottom.
        """
        sides = image.pixels.shape[1::-1]
        scale = size / max(sides) * self._zoom(random)
        is_focused, chosen = random.random() < self.focus, random.random()
        target: Float[np.ndarray, " 4"] | None = None
        if is_focused and len(image.boxes):
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
                    begin, end = low - target[axis], high - target[axis + 2]
                    if begin > end:  # larger than the window, which then lies within it
                        begin, end = end, begin
                    first, last = max(first, begin), min(last, end)
                offset = first + draw * (last - first)
            else:
                shift = 0.0 if is_mosaic else (2 * draw - 1) * self.translate * size
                offset = low + slack * anchor[axis] + shift
            # Whole pixels of the source only, so that nothing has to be resampled at a fraction of a pixel.
            source[axis] = min(max(0, math.floor((low - offset) / scale)), sides[axis] - 1)
            corner[axis] = low if source[axis] else math.floor(offset)
        return Part(image, scale, (source[0], source[1]), (corner[0], corner[1]), window)

    def _zoom(self, random: np.random.Generator) -> float:
        factor = float(np.exp(random.uniform(-np.log(self.zoom), np.log(self.zoom))))
        return 1.0 if random.random() < self.unzoomed else factor

    def _turn(self, image: Labelled, random: np.random.Generator) -> Labelled:
        # All three are drawn in any case, so that switching one off leaves the others' chance as it is.
        mirrored, upended, turns = random.random() < 0.5, random.random() < 0.5, int(random.integers(4))
        if self.flip_horizontal and mirrored:
            image = _flip(image)
        if self.flip_vertical and upended:
            image = _quarter_turn(_quarter_turn(_flip(image)))
        if self.quarter_turns:
            for _ in range(turns):
                image = _quarter_turn(image)
        return image

    def _photometric(self, pixels: Pixels, white: int, random: np.random.Generator) -> Pixels:
        if self.gain == 0 and self.speckle == 0 and (pixels.ndim == 2 or self.hue == self.saturation == 0):
            return pixels
        gain = np.float32(np.exp(random.uniform(-self.gain, self.gain)))
        if pixels.dtype == np.uint8 and self.speckle == 0 and (pixels.ndim == 2 or self.hue == self.saturation == 0):
            # The same for every pixel of a value, so it is computed once for each of the 256.
            table = np.clip(np.arange(256, dtype=np.float32) * gain, 0, white)
            return cv2.LUT(pixels, np.rint(table).astype(np.uint8))
        values = pixels.astype(np.float32) * gain
        if self.speckle > 0:
            noise = random.standard_normal(pixels.shape[:2], dtype=np.float32) * np.float32(self.speckle) + 1
            values *= noise if pixels.ndim == 2 else noise[:, :, None]
        values = np.clip(values, 0, white)
        turn = random.uniform(-self.hue, self.hue)
        strength = np.exp(random.uniform(-self.saturation, self.saturation))
        if pixels.ndim == 3 and (self.hue or self.saturation):
            hsv = cv2.cvtColor(values * np.float32(1 / white), cv2.COLOR_RGB2HSV)  # hue in degrees, the rest in [0, 1]
            hsv[:, :, 0] = (hsv[:, :, 0] + np.float32(360 * turn)) % 360
            hsv[:, :, 1] = np.minimum(hsv[:, :, 1] * np.float32(strength), 1)
            values = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB) * np.float32(white)
        return np.rint(values).astype(pixels.dtype)


def _flip(image: Labelled) -> Labelled:
    """Mirror left and right."""
    width = image.pixels.shape[1]
    x1, y1, x2, y2 = image.boxes.T
    return Labelled(image.pixels[:, ::-1], np.stack([width - x2, y1, width - x1, y2], axis=1), image.labels)


def _quarter_turn(image: Labelled) -> Labelled:
    """Turn by 90 degrees counter-clockwise, as np.rot90 does: (x, y) goes to (y, width - x)."""
    width = image.pixels.shape[1]
    x1, y1, x2, y2 = image.boxes.T
    return Labelled(np.rot90(image.pixels), np.stack([y1, width - x2, y2, width - x1], axis=1), image.labels)


def canvas_like(like: Pixels, size: int, white: int) -> Pixels:
    return np.full((size, size, *like.shape[2:]), round(PAD * white), dtype=like.dtype)


def _resize(pixels: Pixels, scale: float) -> Pixels:
    height, width = (max(round(side * scale), 1) for side in pixels.shape[:2])
    # Averaging over areas when shrinking: anything else drops the small bright objects that are to be found.
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    # A turned image is a view that OpenCV would copy, pixel by pixel across memory. It is resized as it lies there, and
    # the smaller result is turned.
    is_turned = abs(pixels.strides[0]) < abs(pixels.strides[1])
    lying, sides = (pixels.swapaxes(0, 1), (height, width)) if is_turned else (pixels, (width, height))
    back = tuple(slice(None, None, -1 if step < 0 else 1) for step in lying.strides[:2])
    resized = cv2.resize(lying[back], sides, interpolation=method)[back]
    return resized.swapaxes(0, 1) if is_turned else resized


def _paste(canvas: Pixels, part: Part) -> None:
    """Lay a part of an image on a canvas, as far as it lies in its window."""
    (x, y), (left, top), window = part.source, part.corner, part.window
    # Only what will be seen is resized.
    columns, rows = math.ceil((window[2] - left) / part.scale), math.ceil((window[3] - top) / part.scale)
    if columns < 1 or rows < 1:
        return
    pixels = _resize(part.image.pixels[y : y + rows, x : x + columns], part.scale)
    if canvas.ndim != pixels.ndim:
        # A data set may mix grey and colour; the first image of a mosaic decides.
        pixels = cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB if canvas.ndim == 3 else cv2.COLOR_RGB2GRAY)
    x1, y1 = max(left, window[0]), max(top, window[1])
    x2, y2 = min(left + pixels.shape[1], window[2]), min(top + pixels.shape[0], window[3])
    if x1 < x2 and y1 < y2:
        canvas[y1:y2, x1:x2] = pixels[y1 - top : y2 - top, x1 - left : x2 - left]


def placed(parts: list[Part], canvas: Pixels) -> Labelled:
    """Scale and paste parts of images, and move, clip and sift their boxes alike."""
    all_boxes, all_labels = [], []
    for part in parts:
        _paste(canvas, part)
        window = part.window
        moved = part.image.boxes * np.float32(part.scale) + np.array(part.offset * 2, dtype=np.float32)
        origin = np.array([window[0], window[1], window[0], window[1]], dtype=np.float32)
        clipped = clip_xyxy(moved - origin, window[2] - window[0], window[3] - window[1]) + origin
        sides = clipped[:, 2:] - clipped[:, :2]
        seen = area_xyxy(clipped) >= LEAST_VISIBLE * area_xyxy(moved)
        kept = seen & (sides.min(axis=1, initial=np.inf) >= LEAST_SIDE)
        all_boxes.append(clipped[kept])
        all_labels.append(part.image.labels[kept])
    return Labelled(canvas, np.concatenate(all_boxes).astype(np.float32), np.concatenate(all_labels))
