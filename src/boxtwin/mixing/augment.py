"""Letterbox, mosaic, flips, turns, zoom and gain: boxes move with pixels.

All geometry here is turning, flipping, scaling and shifting, so an object's box stays its tight box. Pixels keep the
type of the file (8 or 16 bit) until a batch is made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float, Int

from boxtwin.boxes import area_xyxy, clip_xyxy
from boxtwin.datasets.images import Pixels

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
    """How an image was put into a square: ``x_letterboxed = x_file * scale + pad_x``."""

    scale: float
    pad_x: float
    pad_y: float


def letterbox(image: Labelled, size: int, white: int) -> tuple[Labelled, Letterbox]:
    """Fit an image into a ``size`` x ``size`` square, keeping its proportions, centred on mid grey.

    Args:
        image: pixels of any size and type with their boxes.
        size: side of the square in pixels.
        white: the pixel value that means 1.0; the padding is half of it.
    """
    height, width = image.pixels.shape[:2]
    scale = size / max(height, width)
    canvas = _canvas(image.pixels, size, white)
    pad_x, pad_y = (size - round(width * scale)) // 2, (size - round(height * scale)) // 2
    _paste(canvas, _resize(image.pixels, scale), pad_x, pad_y, (0, 0, size, size))
    # Sides are rounded to whole pixels; the boxes follow the exact scale, less than half a pixel off.
    boxes = image.boxes * np.float32(scale) + np.array([pad_x, pad_y, pad_x, pad_y], dtype=np.float32)
    return Labelled(canvas, boxes, image.labels), Letterbox(scale, float(pad_x), float(pad_y))


@dataclass(frozen=True)
class Augmentation:
    """What is done at random to a training image.

    Attributes:
        mosaic: share of training images that are put together from four (Bochkovskiy et al. 2020, YOLOv4, section 3.3).
        zoom: an image is scaled by a factor between ``1 / zoom`` and ``zoom``, log-uniform.
        translate: it is shifted by up to this share of the square.
        flip_horizontal, flip_vertical: mirror with probability one half.
        quarter_turns: turn by 0, 90, 180 or 270 degrees: for images without an up.
        gain: brightness is multiplied by ``exp(u)``, u uniform in [-gain, gain].
        speckle: standard deviation of multiplicative noise, as coherent sensors show it; 0 for none.
    """

    mosaic: float = 0.0
    zoom: float = 1.0
    translate: float = 0.0
    flip_horizontal: bool = False
    flip_vertical: bool = False
    quarter_turns: bool = False
    gain: float = 0.0
    speckle: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.mosaic <= 1:
            raise ValueError(f"mosaic is a probability, got {self.mosaic}")
        if self.zoom < 1:
            raise ValueError(f"zoom is the largest factor and at least 1, got {self.zoom}")
        for name in ("translate", "gain", "speckle"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")

    def __call__(
        self,
        image: Labelled,
        partner: Callable[[], Labelled],
        *,
        size: int,
        white: int,
        random: np.random.Generator,
    ) -> Labelled:
        """Make a ``size`` x ``size`` training image.

        Args:
            image: the image and its objects.
            partner: gives one further image each time it is called; a mosaic needs three.
            size: side of the square, pixels.
            white: the pixel value that means 1.0.
            random: the only source of chance.
        """
        if random.random() < self.mosaic:
            image = self._mosaic([image, partner(), partner(), partner()], size, white, random)
        else:
            image = self._single(image, size, white, random)
        return Labelled(self._photometric(image.pixels, white, random), image.boxes, image.labels)

    def _single(self, image: Labelled, size: int, white: int, random: np.random.Generator) -> Labelled:
        image = self._turn(image, random)
        scale = size / max(image.pixels.shape[:2]) * self._zoom(random)
        height, width = (round(side * scale) for side in image.pixels.shape[:2])
        shift_x, shift_y = random.uniform(-self.translate, self.translate, size=2) * size
        left, top = round((size - width) / 2 + shift_x), round((size - height) / 2 + shift_y)
        canvas = _canvas(image.pixels, size, white)
        return _placed([(image, scale, left, top, (0, 0, size, size))], canvas)

    def _mosaic(self, images: list[Labelled], size: int, white: int, random: np.random.Generator) -> Labelled:
        """Four images around a random centre, each with its nearest corner there, cut off at its quadrant."""
        centre_x, centre_y = (int(value) for value in random.uniform(0.3, 0.7, size=2) * size)
        canvas = _canvas(images[0].pixels, size, white)
        parts = []
        for place, image in enumerate(images):
            turned = self._turn(image, random)
            scale = size / max(turned.pixels.shape[:2]) * self._zoom(random)
            height, width = (round(side * scale) for side in turned.pixels.shape[:2])
            is_right, is_below = bool(place % 2), bool(place // 2)
            left = centre_x if is_right else centre_x - width
            top = centre_y if is_below else centre_y - height
            window = (
                centre_x if is_right else 0,
                centre_y if is_below else 0,
                size if is_right else centre_x,
                size if is_below else centre_y,
            )
            parts.append((turned, scale, left, top, window))
        return _placed(parts, canvas)

    def _zoom(self, random: np.random.Generator) -> float:
        return float(np.exp(random.uniform(-np.log(self.zoom), np.log(self.zoom))))

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
        if self.gain == 0 and self.speckle == 0:
            return pixels
        values = pixels.astype(np.float32) * np.float32(np.exp(random.uniform(-self.gain, self.gain)))
        if self.speckle > 0:
            noise = random.standard_normal(pixels.shape[:2], dtype=np.float32) * np.float32(self.speckle) + 1
            values *= noise if pixels.ndim == 2 else noise[:, :, None]
        return np.rint(np.clip(values, 0, white)).astype(pixels.dtype)


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


def _canvas(like: Pixels, size: int, white: int) -> Pixels:
    return np.full((size, size, *like.shape[2:]), round(PAD * white), dtype=like.dtype)


def _resize(pixels: Pixels, scale: float) -> Pixels:
    height, width = (max(round(side * scale), 1) for side in pixels.shape[:2])
    # Averaging over areas when shrinking: anything else drops the small bright objects that are to be found.
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return cv2.resize(np.ascontiguousarray(pixels), (width, height), interpolation=method)


def _paste(canvas: Pixels, pixels: Pixels, left: int, top: int, window: tuple[int, int, int, int]) -> None:
    """Lay pixels on a canvas with their corner at (left, top), as far as they lie in the window (xyxy)."""
    if canvas.ndim != pixels.ndim:
        # A data set may mix grey and colour; the first image of a mosaic decides.
        pixels = cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB if canvas.ndim == 3 else cv2.COLOR_RGB2GRAY)
    x1, y1 = max(left, window[0]), max(top, window[1])
    x2, y2 = min(left + pixels.shape[1], window[2]), min(top + pixels.shape[0], window[3])
    if x1 < x2 and y1 < y2:
        canvas[y1:y2, x1:x2] = pixels[y1 - top : y2 - top, x1 - left : x2 - left]


def _placed(parts: list[tuple[Labelled, float, int, int, tuple[int, int, int, int]]], canvas: Pixels) -> Labelled:
    """Scale and paste images (image, scale, left, top, window), and move, clip and sift their boxes alike."""
    all_boxes, all_labels = [], []
    for image, scale, left, top, window in parts:
        _paste(canvas, _resize(image.pixels, scale), left, top, window)
        moved = image.boxes * np.float32(scale) + np.array([left, top, left, top], dtype=np.float32)
        origin = np.array([window[0], window[1], window[0], window[1]], dtype=np.float32)
        clipped = clip_xyxy(moved - origin, window[2] - window[0], window[3] - window[1]) + origin
        sides = clipped[:, 2:] - clipped[:, :2]
        seen = area_xyxy(clipped) >= LEAST_VISIBLE * area_xyxy(moved)
        kept = seen & (sides.min(axis=1, initial=np.inf) >= LEAST_SIDE)
        all_boxes.append(clipped[kept])
        all_labels.append(image.labels[kept])
    return Labelled(canvas, np.concatenate(all_boxes).astype(np.float32), np.concatenate(all_labels))
