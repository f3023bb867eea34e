"""What the generators around the project's own diffusion model share: the model, and images as it sees them."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np
import torch

from boxtwin.datasets.image_io import Pixels
from boxtwin.datasets.sample import Sample
from boxtwin.errors import InputError
from boxtwin.synthesis.arrays import Mask, Plane, Planes, as_pixels, is_grey, planes_of
from boxtwin.synthesis.constants import ETA
from boxtwin.synthesis.ddpm.model import ModelSettings, PixelModel
from boxtwin.synthesis.ddpm.sampling import Image, Map, PredictV, match_grain, match_level, sdedit
from boxtwin.synthesis.generator import Generator, Model, Request, Variation, check_settings

# Pixels around a part that the network sees besides: enough ground to continue, and the objects nearby.
CONTEXT = 32
LEVEL = 41  # pixels over which the level of the ground is taken: wider than most objects, narrower than its changes
BRIGHT = 3.0  # standard deviations: pixels that differ by more are no example of the ground's grain


class Canvas:
    """An image, of that ``name``, in the units of a trained model, with mirrored borders up to a size that it takes."""

    def __init__(self, model: PixelModel, pixels: Pixels, name: str) -> None:
        if model.image_channels == 1 and not is_grey(pixels):
            raise InputError(f"{name} is a colour image, but all training images are grey: convert either of them")
        self.model, self.like = model, pixels
        self.height, self.width = pixels.shape[:2]
        # Up to a size that the network's levels divide, with two pixels or more at the coarsest for its group norms.
        step = model.multiple
        self._pad = [(0, max(2 * step - size, -size % step)) for size in (self.height, self.width)]
        self.encoded = model.tone.encode(planes_of(pixels, model.image_channels))
        self.x: Image = self._padded(self.encoded)

    def showing(self, encoded: Planes) -> Canvas:
        """A canvas of the same kind with another image, in the network's units."""
        other = copy.copy(self)
        other.encoded, other.x = encoded, self._padded(encoded)
        return other

    def mask(self, mask: Plane) -> Map:
        """A mask of the image, padded as the image is."""
        return self._padded(mask[None])

    def _padded(self, planes: Planes) -> Image:
        padded = np.pad(planes, ((0, 0), *self._pad), mode="symmetric")
        return torch.from_numpy(padded)[None].to(self.model.device)

    def values(self, x: Image) -> Planes:
        """``x`` without its padding."""
        inner: Planes = x[0, :, : self.height, : self.width].cpu().numpy()
        return inner

    def pixels(self, x: Image) -> Pixels:
        """``x`` without its padding, as pixels of the kind that the image has."""
        return as_pixels(self.model.tone.decode(self.values(x)).transpose(1, 2, 0), self.like)


@dataclass(kw_only=True, eq=False)
class PixelGenerator(ModelSettings, Generator):
    """A generator that draws with a `PixelModel`, one by one: in a batch, bytes would depend on the other images."""

    steps: int  # denoising steps

    eta: ClassVar[float] = ETA
    learns = True
    boxes = "exact"

    def __post_init__(self) -> None:
        self.network = PixelModel(self.name, self)
        check_settings(self.name, self, steps=1)

    def fit(self, training: Sequence[Sample], folder: Path) -> None:
        self.network.fit(training, folder)

    def model(self) -> Model | None:
        return self.network.model()

    def vary(self, requests: Sequence[Request]) -> Iterator[Variation]:
        self.network.net  # noqa: B018, raises if `fit` has not been called
        for request in requests:
            canvas = Canvas(self.network, request.source.read(), request.source.name)
            with torch.inference_mode():
                variation = self.draw(canvas, request)
            yield variation

    @abstractmethod
    def draw(self, canvas: Canvas, request: Request) -> Variation:
        """One variation of the image on ``canvas``."""

    def sample(self, predict_v: PredictV, x: Image, strength: Map, noise: torch.Generator, steps: int = 0) -> Image:
        """`sdedit` with the settings of the generator; ``steps`` may differ."""
        return sdedit(predict_v, x, strength, steps=steps or self.steps, eta=self.eta, generator=noise)

    def paint(
        self, canvas: Canvas, x: Image, mask: Plane, strength: Plane, noise: torch.Generator, steps: int = 0
    ) -> Image:
        """``x`` with the parts repainted in which ``strength`` is above 0, objects where ``mask`` shows them.

        Only a window around the parts is drawn. Painted ground gets grain and level of the ground around it.
        """
        rows, columns = self._window(strength, int(x.shape[2]), int(x.shape[3]))
        seen = x[:, :, rows, columns]
        condition, change = canvas.mask(mask)[:, :, rows, columns], canvas.mask(strength)[:, :, rows, columns]
        painted = self.sample(self.network.given_mask(condition.contiguous()), seen, change, noise, steps)
        ground = _ground(seen, condition, change)
        zone = (change / change.max().clamp(min=1e-6)) * (condition < 0.05)
        # The level first: a step at the edge would count as grain.
        result = x.clone()
        result[:, :, rows, columns] = match_grain(match_level(painted, zone, ground, LEVEL), zone, seen, ground)
        return result

    def _window(self, strength: Plane, height: int, width: int) -> tuple[slice, slice]:
        """Rows and columns around all that is to be painted, of sizes that the network takes."""
        multiple, slices = self.network.multiple, []
        for axis, size in ((1, height), (0, width)):
            touched = np.flatnonzero(strength.max(axis=axis) > 0)
            low, high = int(touched[0]) - CONTEXT, int(touched[-1]) + 1 + CONTEXT
            side = min(max(-(-(high - low) // multiple) * multiple, self.crop), size)
            start = min(max((low + high - side) // 2, 0), size - side)
            slices.append(slice(start, start + side))
        return slices[0], slices[1]

    def encoded(self, pixels: Pixels) -> Planes:
        """An image in the network's units; `fit` came first."""
        return self.network.tone.encode(planes_of(pixels, self.network.image_channels))

    def check_strength(self, name: str, strength: float) -> None:
        """Refuse a strength above the noise levels that the model has learnt."""
        if strength > self.train_strength:
            both = f"{name} ({strength}) must not be above train_strength ({self.train_strength})"
            raise InputError(f"{self.name}: {both}: the model has not learnt to remove more noise")


def the_one_class(owner: str, training: Sequence[Sample], instead: str) -> int:
    """The class of all objects of the training images, 0 if there are none.

    `InputError` if there are several; it advises the generators ``instead``.
    """
    classes = {int(label) for sample in training for label in sample.object_labels}
    if len(classes) > 1:
        raise InputError(f"{owner} makes objects of one class; the training images have several classes: use {instead}")
    return next(iter(classes), 0)


def soft_zone(core: Mask, margin: int) -> Plane:
    """1 in ``core``, falling to 0 over ``margin`` pixels around it."""
    distance = cv2.distanceTransform((~core).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return np.clip(1 - distance / np.float32(margin + 1), 0, 1).astype(np.float32)


def _ground(seen: Image, condition: Map, change: Map) -> Map:
    """Where a window shows untouched ground, bright pixels left out."""
    values = seen.mean(dim=1, keepdim=True)
    free = (change == 0) & (condition == 0)
    if not bool(free.any()):
        return free.float()
    level = values[free].median()
    spread = 1.4826 * (values[free] - level).abs().median()
    return (free & ((values - level).abs() < BRIGHT * spread)).float()
