"""What every generator is: the Protocol, what it is asked for and what it gives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from boxtwin.datasets.image_io import Pixels
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
    objects in place, new ones for generators that place objects themselves, none for those that move things about
    (xyxy, pixels of the image).
    """

    request: Request
    pixels: Pixels
    boxes: Float[np.ndarray, "n 4"]
    labels: Int[np.ndarray, " n"]
    cost_usd: float = 0.0  # what was paid for it
    record: dict[str, Json] = field(default_factory=dict)  # more for the manifest, such as the number of a remote call


@dataclass(frozen=True)
class Refused:
    """A variation that could not be had, for a reason that lies with this one image; the others go on."""

    request: Request
    reason: str


class Model(NamedTuple):
    """What made a variation: a checkpoint's or a remote model's name, and its revision where there is one."""

    id: str
    revision: str | None


# How much a generator knows of where objects are: it keeps them about where they were, and each has to be looked at;
# it put them there itself; or it moves things about and cannot tell.
Knowledge = Literal["carried", "exact", "none"]


@runtime_checkable
class Generator(Protocol):
    """A way to make variations.

    A generator never reads an image that it was not handed: ``fit`` sees the split's training images only, and
    ``vary`` sees one source at a time. Whatever is wrong with its settings it says when it is made (`InputError`);
    whatever takes time or a download happens in ``fit``.
    """

    name: str  # that of its file in conf/generator: `make_generator` sets it, the class has that of the usual file
    learns: bool  # whether `fit` looks at the training images: then the store is keyed by them
    boxes: Knowledge
    remote: bool  # whether pixels leave this machine: `train.py` never calls such a generator

    def version(self, training: Sequence[Sample]) -> int:
        """The version of what it computes, from 1; to be raised when the same settings give other images than before.

        Where this is so for some data only (such as 16 bit), for these only: the store is keyed by it.
        """

    def parameters(self) -> dict[str, Json]:
        """All that changes the pixels it makes; the store is keyed by it, and the manifest records it."""

    def model(self) -> Model | None:
        """What it draws with, once `fit` is over; None: nothing but this package."""

    def price_usd(self, source: Sample) -> float:
        """What one variation of ``source`` costs; 0 for what runs here."""

    def match(self, samples: Sequence[Sample]) -> None:
        """Find what it has for which of the images of the data set, those of other splits too; comes before all else.

        Raises:
            InputError: something that it has is of no image, or of more than one.
        """

    def fit(self, training: Sequence[Sample], folder: Path) -> None:
        """Learn from the training images, or load what an earlier call left in ``folder``.

        ``folder`` is shared by all generators and stores of a data folder: what is left there is named by a hash of
        all it follows from. Killed in the middle, the next call continues from the last state saved. Shows a progress
        bar.
        """

    def vary(self, requests: Sequence[Request]) -> Iterator[Variation | Refused]:
        """Make the requested variations, in order, yielding each as soon as it is there. `fit` came first."""
