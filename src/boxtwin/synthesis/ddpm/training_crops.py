"""What a network trained on a few images sees of them: random crops, in units of mean 0 and standard deviation 1."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from boxtwin.datasets.sample import Sample
from boxtwin.synthesis.arrays import is_grey, object_mask, padded_to, planes_of
from boxtwin.synthesis.silhouettes import draw, silhouettes_of

MASKS = ("boxes", "silhouettes")
TONES = ("log", "linear")


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
    """Mask that shows the network where objects are: their boxes, or their silhouettes (one of `MASKS`)."""
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
        self.tone = Tone.measure(tone, planes)
        self._crop, self._object_crops, self._mirror = crop, object_crops, mirror
        self._images: list[Tensor] = []
        self._centres: list[tuple[int, float, float]] = []  # image, x, y of every object
        for index, (sample, values) in enumerate(zip(training, planes, strict=True)):
            encoded = self.tone.encode(values)
            shown = mask_of(mask, encoded, sample.boxes)
            self._images.append(torch.from_numpy(padded_to(np.concatenate([encoded, shown[None]]), crop)))
            self._centres += [(index, (x1 + x2) / 2, (y1 + y2) / 2) for x1, y1, x2, y2 in sample.boxes.tolist()]

    def draw(
        self, count: int, rng: torch.Generator
    ) -> tuple[Float[Tensor, "count channels crop crop"], Float[Tensor, "count 1 crop crop"]]:
        """``count`` crops in the network's units and their masks."""
        crops, side = [], self._crop
        for _ in range(count):
            choice, x, y, mirror_x, mirror_y = torch.rand(5, generator=rng).tolist()
            if self._centres and choice < self._object_crops:
                index, cx, cy = self._centres[int(torch.randint(len(self._centres), (), generator=rng))]
                left, top = cx - x * side, cy - y * side  # the object's centre falls anywhere in the crop
            else:
                index = int(torch.randint(len(self._images), (), generator=rng))
                _, height, width = self._images[index].shape
                left, top = x * (width - side + 1), y * (height - side + 1)
            image = self._images[index]
            column = min(max(int(left), 0), image.shape[2] - side)
            row = min(max(int(top), 0), image.shape[1] - side)
            crop = image[:, row : row + side, column : column + side]
            if self._mirror:
                crop = crop.flip([axis for axis, chance in ((2, mirror_x), (1, mirror_y)) if chance < 0.5])
            crops.append(crop)
        batch = torch.stack(crops)
        return batch[:, :-1], batch[:, -1:]
