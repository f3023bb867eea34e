"""What a network trained on a few images sees of them: random crops, in units of mean 0 and standard deviation 1."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from boxtwin.datasets.image_io import Pixels
from boxtwin.datasets.sample import Sample
from boxtwin.synthesis.ddpm.sampling import object_mask
from boxtwin.synthesis.silhouettes import draw, silhouettes_of


def is_grey(pixels: Pixels) -> bool:
    """Whether an image has one channel, or three that say the same, as many grey JPEG files have."""
    return pixels.ndim == 2 or bool((pixels == pixels[:, :, :1]).all())


def planes_of(pixels: Pixels, channels: int) -> Float[np.ndarray, "{channels} h w"]:
    """Pixels as shares of full scale, channels first; grey is repeated where three channels are asked for."""
    values = pixels.astype(np.float32) / np.float32(np.iinfo(pixels.dtype).max)
    if channels == 1 and values.ndim == 3:
        values = values[:, :, 0]
    return np.repeat(values[None], channels, axis=0) if values.ndim == 2 else values.transpose(2, 0, 1)


class Tone:
    """Pixel values, as shares of full scale, to the network's units (mean 0, standard deviation 1) and back."""

    def __init__(self, kind: str, *, scale: float, mean: float, std: float) -> None:
        self.kind, self.scale, self.mean, self.std = kind, scale, mean, std

    @classmethod
    def measure(cls, kind: str, images: Sequence[np.ndarray]) -> Tone:
        """Take scale, mean and standard deviation from training images (values as shares of full scale)."""
        pixels = sum(image.size for image in images)
        scale = max(sum(float(image.sum(dtype=np.float64)) for image in images) / pixels, 1e-6)
        raw = cls(kind, scale=scale, mean=0.0, std=1.0)
        first = second = 0.0
        for image in images:
            x = raw.encode(image).astype(np.float64)
            first, second = first + float(x.sum()), second + float((x**2).sum())
        mean = first / pixels
        return cls(kind, scale=scale, mean=mean, std=math.sqrt(max(second / pixels - mean**2, 1e-12)))

    def encode(self, values: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        x = np.log1p(values / self.scale) if self.kind == "log" else values
        return ((x - self.mean) / self.std).astype(np.float32)

    def decode(self, x: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        values = x * self.std + self.mean
        return np.expm1(values) * self.scale if self.kind == "log" else values


def mask_of(
    kind: str, encoded: Float[np.ndarray, "c h w"], boxes: Float[np.ndarray, "n 4"]
) -> Float[np.ndarray, "h w"]:
    """What tells the network where objects are: their boxes, or their silhouettes as the pixels in them have it."""
    height, width = encoded.shape[1:]
    if kind == "boxes":
        return object_mask(boxes, height, width)
    return draw(silhouettes_of(encoded.mean(axis=0), boxes), height, width)


class TrainingCrops:
    """Random crops of the training images with the masks of their objects."""

    def __init__(
        self, training: Sequence[Sample], tone: str, crop: int, object_crops: float, mirror: bool, mask: str
    ) -> None:
        pixels = [sample.read() for sample in training]
        self.channels = 1 if all(is_grey(image) for image in pixels) else 3
        planes = [planes_of(image, self.channels) for image in pixels]
        measured = Tone.measure(tone, planes)
        self.scale, self.mean, self.std = measured.scale, measured.mean, measured.std
        self._crop, self._object_crops, self._mirror = crop, object_crops, mirror
        self._images: list[Tensor] = []
        self._centres: list[tuple[int, float, float]] = []  # image, x, y of every object
        for index, (sample, values) in enumerate(zip(training, planes, strict=True)):
            height, width = values.shape[1:]
            encoded = measured.encode(values)
            pad = ((0, 0), (0, max(crop - height, 0)), (0, max(crop - width, 0)))
            stacked = np.pad(
                np.concatenate([encoded, mask_of(mask, encoded, sample.boxes)[None]]), pad, mode="symmetric"
            )
            self._images.append(torch.from_numpy(stacked))
            self._centres += [(index, (x1 + x2) / 2, (y1 + y2) / 2) for x1, y1, x2, y2 in sample.boxes.tolist()]

    def draw(
        self, count: int, rng: torch.Generator
    ) -> tuple[Float[Tensor, "count channels crop crop"], Float[Tensor, "count 1 crop crop"]]:
        """``count`` crops in the network's units and their masks."""
        crops = []
        for _ in range(count):
            choice, x, y, mirror_x, mirror_y = torch.rand(5, generator=rng).tolist()
            if self._centres and choice < self._object_crops:
                at = int(torch.randint(len(self._centres), (), generator=rng))
                index, cx, cy = self._centres[at]
                # The object's centre falls anywhere in the crop.
                left, top = cx - x * self._crop, cy - y * self._crop
            else:
                index = int(torch.randint(len(self._images), (), generator=rng))
                left, top = (
                    x * (self._images[index].shape[2] - self._crop + 1),
                    y * (self._images[index].shape[1] - self._crop + 1),
                )
            image = self._images[index]
            column = min(max(int(left), 0), image.shape[2] - self._crop)
            row = min(max(int(top), 0), image.shape[1] - self._crop)
            crop = image[:, row : row + self._crop, column : column + self._crop]
            if self._mirror:
                turned = [axis for axis, chance in ((2, mirror_x), (1, mirror_y)) if chance < 0.5]
                crop = crop.flip(turned)
            crops.append(crop)
        batch = torch.stack(crops)
        return batch[:, :-1], batch[:, -1:]
