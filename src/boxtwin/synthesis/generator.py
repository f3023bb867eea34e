"""What every generator is: the Protocol, what it is asked for and what it gives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from boxtwin.datasets.images import Pixels
from boxtwin.datasets.sample import Sample

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]


@dataclass(frozen=True)
class Request:
    """One variation to make. The seed alone decides its randomness, so any variation can be made again by itself."""

    source: Sample
    variation: int  # from 1
    seed: int


@dataclass(frozen=True)
class Variation:
    """One variation as a generator hands it over: same size, channels and bit depth as its source.

    ``boxes`` and ``labels`` are what the generator says is in the picture: those of the source for generators that keep
    objects in place, new ones for generators that place objects themselves (xyxy, pixels of the image).
    """

    request: Request
    pixels: Pixels
    boxes: Float[np.ndarray, "n 4"]
    labels: Int[np.ndarray, " n"]


@runtime_checkable
class Generator(Protocol):
    """A way to make variations.

    A generator never reads an image that it was not handed: ``fit`` sees the split's training images only, and
    ``vary`` sees one source at a time.
    """

    name: str
    learns: bool  # whether `fit` looks at the training images: then the store is keyed by them

    def parameters(self) -> dict[str, Json]:
        """All that changes the pixels it makes; the store is keyed by it, and the manifest records it."""

    def fit(self, training: Sequence[Sample], folder: Path) -> None:
        """Learn from the training images, or load what an earlier call left in ``folder``.

        Killed in the middle, the next call continues from the last state saved in ``folder``. Shows a progress bar.
        """

    def vary(self, requests: Sequence[Request]) -> Iterator[Variation]:
        """Make the requested variations, in order, yielding each as soon as it is there. `fit` came first."""
