"""The interface of generators: what they are asked for and what they give."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import numpy as np
from jaxtyping import Int

from boxtwin.datasets.image_io import Pixels
from boxtwin.datasets.sample import Sample
from boxtwin.errors import InputError
from boxtwin.synthesis.arrays import Boxes
from boxtwin.synthesis.constants import ADDED_SETTINGS, former_settings_of

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]


@dataclass(frozen=True)
class Request:
    """One variation to make. The seed alone decides its randomness, so that it can be made again by itself."""

    source: Sample
    variation: int  # from 1
    seed: int

    @property
    def key(self) -> tuple[str, int]:
        """Name of the source and number of the variation."""
        return self.source.name, self.variation


@dataclass(frozen=True)
class Variation:
    """One variation as a generator gives it: same size, channels and bit depth as its source.

    ``boxes`` (xyxy, pixels of the image) and ``labels`` are what the generator says is in the picture: those of the
    source if it keeps objects in place, new ones if it places objects itself, none if it moves objects.
    """

    request: Request
    pixels: Pixels
    boxes: Boxes
    labels: Int[np.ndarray, " n"]
    cost_usd: float = 0.0  # what was paid for it
    record: dict[str, Json] = field(default_factory=dict)  # more for the manifest


@dataclass(frozen=True)
class Refused:
    """A variation that cannot be made; the others go on, unless too many fail one after another."""

    request: Request
    reason: str
    may_recur: bool = False  # whether others may fail for this reason: after `GIVE_UP_AFTER` in a row the rest would
    cost_usd: float = 0.0  # what was paid nevertheless


class Model(NamedTuple):
    """What made a variation: a checkpoint's or a remote model's name, and its revision if it has one."""

    id: str
    revision: str | None


# What a generator knows of the places of objects: where they were (to be checked), exactly, or nothing: it moves them.
Knowledge = Literal["carried", "exact", "none"]


class Generator(ABC):
    """A way to make variations.

    A generator never reads an image that it was not given: `fit` sees the split's training images only, and `vary` one
    source at a time. Wrong settings raise `InputError` when it is built; what takes time or a download happens in
    `fit`. Generators are dataclasses whose fields are their settings.
    """

    name: str  # that of its file in conf/generator: `make_generator` sets it, the class has that of the usual file
    boxes: ClassVar[Knowledge]
    learns: bool = False  # whether `fit` looks at the training images: then the store is keyed by them
    remote: bool = False  # whether pixels leave this machine: `train.py` never calls such a generator
    reproducible: bool = True  # whether this machine makes its images again at no cost; otherwise `make clean` asks
    copies: bool = False  # whether its variations equal their sources on purpose

    def version(self, training: Sequence[Sample]) -> int:  # noqa: ARG002
        """The version of what it computes (of such data), from 1: raised when equal settings give other images."""
        return 1

    def parameters_of(self, training: Sequence[Sample]) -> dict[str, Json]:  # noqa: ARG002
        """What else changes its pixels and follows from the images that it learns from, beside these themselves."""
        return {}

    def parameters(self) -> dict[str, Json]:
        """All that changes the pixels it makes: settings but the device, and former ones. The store is keyed by it.

        Added settings that change nothing are left out.
        """
        former = former_settings_of(f"{type(self).__module__}.{type(self).__qualname__}")
        settings = settings_of(self, without=("device",))
        return former | {name: value for name, value in settings.items() if (name, value) not in ADDED_SETTINGS.items()}

    def former_parameters(self) -> dict[str, Json]:
        """What stores of earlier versions recorded of the same settings instead, if it differs.

        A store that is there under these is taken and continued, so that nothing is made twice.
        """
        return {}

    def model(self) -> Model | None:
        """What it draws with, once `fit` is over; None: nothing but this package."""
        return None

    def price_usd(self, source: Sample) -> float:  # noqa: ARG002
        """What one variation of ``source`` costs."""
        return 0.0

    def limit_costs(self, usd: float) -> None:  # noqa: B027
        """Have `vary` raise `InputError` rather than spend more than ``usd``."""

    def match(self, samples: Sequence[Sample]) -> None:  # noqa: B027
        """Find the sources of what it has among all images of the data set, or raise InputError. Called first."""

    def check_early(self) -> None:  # noqa: B027
        """Raise InputError for what cannot work, as far as it is known without learning, loading or downloading."""

    def fit(self, training: Sequence[Sample], folder: Path) -> None:  # noqa: B027
        """Learn from the training images, or load what an earlier call left in ``folder``.

        ``folder`` is shared by all generators and stores of a data folder: what is left there is named by a hash of
        all it follows from. If a call is killed, the next one continues from the last saved state.
        """

    @abstractmethod
    def vary(self, requests: Sequence[Request]) -> Iterator[Variation | Refused]:
        """Make the requested variations, in order, yielding each as soon as it is made. `fit` came first."""


def hash_of(content: object) -> str:
    """The sha256 of plain values, hexadecimal: names what follows from them."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def settings_of(generator: object, *, without: Sequence[str] = (), of: type | None = None) -> dict[str, Json]:
    """The fields of a dataclass (or of its base class ``of``) by name, tuples as lists."""
    names = [entry.name for entry in fields(of or generator) if entry.name not in without]  # type: ignore[arg-type]
    values = {name: getattr(generator, name) for name in names}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def check_settings(owner: str, settings: object, *shares: str, **least: int) -> None:
    """Refuse attributes of ``settings`` out of range: ``shares`` outside [0, 1], others under their ``least`` value."""
    for name in shares:
        if not 0 <= (value := getattr(settings, name)) <= 1:
            raise InputError(f"{owner}: {name}={value} must lie between 0 and 1")
    for name, minimum in least.items():
        if not (value := getattr(settings, name)) >= minimum:
            raise InputError(f"{owner}: {name}={value} must be at least {minimum}")
