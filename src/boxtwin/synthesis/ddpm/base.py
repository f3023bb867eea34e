"""What the generators around the project's own diffusion model share: the model, and images as it sees them."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Unpack

import numpy as np
import torch
from jaxtyping import Float

from boxtwin.datasets.image_io import Pixels
from boxtwin.datasets.sample import Sample
from boxtwin.errors import InputError
from boxtwin.synthesis.ddpm.model import ModelSettings, PixelModel
from boxtwin.synthesis.ddpm.sampling import Image, Map
from boxtwin.synthesis.ddpm.training_crops import is_grey, planes_of
from boxtwin.synthesis.generator import Json, Knowledge, Model, Request, Variation


class Canvas:
    """An image in the network's units, with mirrored borders up to a size that the network takes.

    Args:
        model: a trained model.
        pixels: the image.
        name: what errors call it.
    """

    def __init__(self, model: PixelModel, pixels: Pixels, name: str) -> None:
        if model.image_channels == 1 and not is_grey(pixels):
            raise InputError(f"{name} is a colour image, but all training images are grey: convert either of them")
        self.model = model
        self.like = pixels
        self.height, self.width = pixels.shape[:2]
        # Up to a size that the network's levels divide, with two pixels or more at the coarsest for its group norms;
        # "symmetric" mirrors as often as it takes.
        multiple = model.multiple
        self._pad = [(0, max(2 * multiple - size, -size % multiple)) for size in (self.height, self.width)]
        self.encoded = model.tone.encode(planes_of(pixels, model.image_channels))
        self.x: Image = self._padded(self.encoded)

    def showing(self, encoded: Float[np.ndarray, "c h w"]) -> Canvas:
        """A canvas of the same kind with another image, in the network's units."""
        other = copy.copy(self)
        other.encoded, other.x = encoded, self._padded(encoded)
        return other

    def mask(self, mask: Float[np.ndarray, "h w"]) -> Map:
        """A mask of the image, padded as the image is."""
        return self._padded(mask[None])

    def _padded(self, planes: Float[np.ndarray, "c h w"]) -> Image:
        padded = np.pad(planes, ((0, 0), *self._pad), mode="symmetric")
        return torch.from_numpy(padded)[None].to(self.model.device)

    def pixels(self, x: Image) -> Pixels:
        """``x`` without its padding, as pixels of the kind that the image has."""
        values = self.model.tone.decode(x[0, :, : self.height, : self.width].cpu().numpy())
        top = np.iinfo(self.like.dtype).max
        if is_grey(self.like):
            values = values.mean(axis=0, keepdims=True)
        stored = np.rint(np.clip(values, 0, 1) * top).astype(self.like.dtype)
        if self.like.ndim == 2:
            return stored[0]
        return np.ascontiguousarray(np.broadcast_to(stored, (3, self.height, self.width)).transpose(1, 2, 0))


class PixelGenerator(ABC):
    """A generator that draws with a `PixelModel`; those of this project differ in what they let it draw.

    Variations are made one by one: in a batch, their bytes would depend on how many are made together.

    Args:
        settings: see `ModelSettings`.
    """

    name = "pixel"
    learns = True
    boxes: Knowledge = "exact"
    remote = False

    def __init__(self, **settings: Unpack[ModelSettings]) -> None:
        self.network = PixelModel(self.name, settings)

    def version(self, training: Sequence[Sample]) -> int:  # noqa: ARG002
        """The first."""
        return 1

    def parameters(self) -> dict[str, Json]:
        """All settings but the device."""
        return {**self.network.parameters(), **self.drawing()}

    def drawing(self) -> dict[str, Json]:
        """The settings that are none of the model's."""
        return {}

    def match(self, samples: Sequence[Sample]) -> None:  # noqa: B027, most have nothing to match
        """Nothing to match."""

    def fit(self, training: Sequence[Sample], folder: Path) -> None:
        """Train the model, continue its training, or load it from ``folder`` (`PixelModel.fit`)."""
        self.network.fit(training, folder)

    def model(self) -> Model | None:
        """The network trained here, by the hash of what it follows from."""
        return self.network.model()

    def price_usd(self, source: Sample) -> float:  # noqa: ARG002
        """Nothing."""
        return 0.0

    def vary(self, requests: Sequence[Request]) -> Iterator[Variation]:
        """Make variations one by one.

        Raises:
            RuntimeError: `fit` has not been called.
            InputError: a source has colour and the training images have none.
        """
        self.network.net  # noqa: B018, says so when there is none
        for request in requests:
            source = request.source
            canvas = Canvas(self.network, source.read(), source.name)
            with torch.inference_mode():
                made = self.draw(canvas, request)
            yield made

    @abstractmethod
    def draw(self, canvas: Canvas, request: Request) -> Variation:
        """One variation of the image on ``canvas``."""

    def check(self, shares: dict[str, float], least: dict[str, tuple[int, int]]) -> None:
        """Refuse ``shares`` outside [0, 1], and numbers (value, least value) that are too small."""
        for setting, share in shares.items():
            if not 0 <= share <= 1:
                raise InputError(f"{self.name}: {setting} lies in [0, 1], got {share}")
        for setting, (value, minimum) in least.items():
            if value < minimum:
                raise InputError(f"{self.name}: {setting} is at least {minimum}, got {value}")

    def check_strength(self, **strengths: float) -> None:
        """Refuse strengths of which the model knows nothing."""
        for setting, strength in strengths.items():
            if strength > self.network.settings["train_strength"]:
                raise InputError(
                    f"{self.name}: {setting} ({strength}) must not be above train_strength "
                    f"({self.network.settings['train_strength']}): the model has not learnt to remove more noise"
                )
