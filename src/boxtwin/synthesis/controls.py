"""What diffusion has to beat: the same images again, and labelled objects pasted at new places."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float
from tqdm.auto import tqdm

from boxtwin.datasets.image_io import Pixels
from boxtwin.datasets.sample import Sample
from boxtwin.errors import InputError
from boxtwin.synthesis.generator import Json, Knowledge, Request, Variation

# Places tried for one object before another object is taken, and objects tried for one paste before it is given up:
# enough to find a calm corner in a harbour, a few milliseconds where there is none.
PLACES_TRIED = 30
OBJECTS_TRIED = 8


class Repeat:
    """The source itself: what more copies of the same images do to a training, without a single new pixel."""

    name = "repeat"
    learns = False
    boxes: Knowledge = "exact"
    remote = False

    def version(self, training: Sequence[Sample]) -> int:  # noqa: ARG002
        """The first."""
        return 1

    def parameters(self) -> dict[str, Json]:
        """None: there is nothing to set."""
        return {}

    def model(self) -> None:
        """None."""

    def price_usd(self, source: Sample) -> float:  # noqa: ARG002
        """Nothing."""
        return 0.0

    def match(self, samples: Sequence[Sample]) -> None:
        """Nothing to match."""

    def fit(self, training: Sequence[Sample], folder: Path) -> None:
        """Nothing to learn."""

    def vary(self, requests: Sequence[Request]) -> Iterator[Variation]:
        """The sources, unchanged."""
        for request in requests:
            source = request.source
            yield Variation(request, source.read(), source.object_boxes, source.object_labels)


@dataclass(frozen=True, eq=False)
class _Cutout:
    """An object with the ``feather`` pixels around it; ``box`` is xyxy in pixels of the patch."""

    patch: Float[np.ndarray, "h w c"]
    box: Float[np.ndarray, " 4"]
    label: int
    dtype: np.dtype

    def mirrored(self) -> _Cutout:
        """Flipped left to right."""
        x1, y1, x2, y2 = self.box
        width = self.patch.shape[1]
        return _Cutout(self.patch[:, ::-1], np.array([width - x2, y1, width - x1, y2]), self.label, self.dtype)

    def turned(self) -> _Cutout:
        """Turned by 90 degrees against the clock: what stood right stands on top."""
        x1, y1, x2, y2 = self.box
        width = self.patch.shape[1]
        return _Cutout(np.rot90(self.patch), np.array([y1, width - x2, y2, width - x1]), self.label, self.dtype)

    def alpha(self, feather: int) -> Float[np.ndarray, "h w 1"]:
        """1 in the box, falling to 0 along a cosine over ``feather`` pixels outside of it."""
        x1, y1, x2, y2 = self.box
        x, y = np.arange(self.patch.shape[1]) + 0.5, np.arange(self.patch.shape[0]) + 0.5
        across = np.maximum(np.maximum(x1 - x, x - x2), 0)
        down = np.maximum(np.maximum(y1 - y, y - y2), 0)
        distance = np.hypot(down[:, None], across[None, :])
        return (0.5 * (1 + np.cos(np.pi * np.minimum(distance / feather, 1))))[:, :, None]


class CopyPaste:
    """Objects of the training images and of the source itself, pasted where the background is like their own.

    After Dwibedi et al. 2017, "Cut, Paste and Learn", and Ghiasi et al. 2021, "Simple Copy-Paste", for boxes instead of
    masks: a whole box is pasted, its surroundings faded out, its level shifted to that of the new place. The boxes of
    what was there stay, those of what was pasted are exact.

    Objects that are cut off by the border of their image, or that have a neighbour within the faded margin, are not
    copied. An image in which no plausible place is found keeps fewer pastes, or none.

    Args:
        pastes: greatest number of objects pasted into one image.
        min_pastes: least number that is tried.
        feather: width of the faded margin in pixels. The background is compared over the same margin.
        tolerance: how unlike two backgrounds may be: their means may differ by this many standard deviations, and
            their standard deviations by this factor plus one.
        mirror: flip objects left to right at random.
        turns: turn objects by multiples of 90 degrees at random; with `mirror`, all eight symmetries of the square.
    """

    name = "copy_paste"
    learns = True
    boxes: Knowledge = "exact"
    remote = False

    def __init__(
        self, *, pastes: int, min_pastes: int, feather: int, tolerance: float, mirror: bool, turns: bool
    ) -> None:
        if not 0 <= min_pastes <= pastes:
            raise InputError(f"copy_paste: 0 <= min_pastes <= pastes must hold, got {min_pastes} and {pastes}")
        if feather < 1:
            raise InputError(f"copy_paste: feather is at least 1 pixel, got {feather}")
        if tolerance <= 0:
            raise InputError(f"copy_paste: tolerance is positive, got {tolerance}")
        self.pastes, self.min_pastes, self.feather = pastes, min_pastes, feather
        self.tolerance, self.mirror, self.turns = tolerance, mirror, turns
        self._cutouts: list[_Cutout] | None = None

    def version(self, training: Sequence[Sample]) -> int:  # noqa: ARG002
        """The first."""
        return 1

    def parameters(self) -> dict[str, Json]:
        """All settings."""
        return {
            "pastes": self.pastes,
            "min_pastes": self.min_pastes,
            "feather": self.feather,
            "tolerance": self.tolerance,
            "mirror": self.mirror,
            "turns": self.turns,
        }

    def model(self) -> None:
        """None."""

    def price_usd(self, source: Sample) -> float:  # noqa: ARG002
        """Nothing."""
        return 0.0

    def match(self, samples: Sequence[Sample]) -> None:
        """Nothing to match."""

    def fit(self, training: Sequence[Sample], folder: Path) -> None:  # noqa: ARG002, nothing to save: reading takes seconds
        """Cut the objects out of the training images and keep them in memory."""
        self._cutouts = []
        for sample in tqdm(training, desc="cutting out objects", unit="image", mininterval=1.0, leave=False):
            if len(sample.object_boxes):
                self._cutouts += self._cut(sample, sample.read())

    def vary(self, requests: Sequence[Request]) -> Iterator[Variation]:
        """Paste between `min_pastes` and `pastes` objects into each source.

        Objects of another bit depth or of other channels than the source are left out.

        Raises:
            RuntimeError: `fit` has not been called.
        """
        if self._cutouts is None:
            raise RuntimeError("CopyPaste.vary needs objects: call fit first")
        for request in requests:
            yield self._vary_one(request, self._cutouts)

    def _vary_one(self, request: Request, cutouts: Sequence[_Cutout]) -> Variation:
        rng = np.random.default_rng(request.seed)
        source = request.source
        pixels = source.read()
        canvas = pixels.astype(np.float64).reshape(*pixels.shape[:2], -1)
        donors = [
            donor
            for donor in [*cutouts, *self._cut(source, pixels)]
            if donor.dtype == pixels.dtype and donor.patch.shape[2] == canvas.shape[2]
        ]
        taken = [box.astype(np.float64) for box in source.boxes]
        boxes, labels = list(source.object_boxes), list(source.object_labels)
        wanted = int(rng.integers(self.min_pastes, self.pastes + 1))
        for _ in range(wanted if donors else 0):
            for _ in range(OBJECTS_TRIED):
                donor = self._pose(donors[int(rng.integers(len(donors)))], rng)
                place = self._find_place(donor, canvas, taken, rng)
                if place is not None:
                    box = donor.box + np.array([*place, *place], dtype=np.float64)
                    self._paste(donor, canvas, place)
                    taken.append(box)
                    boxes.append(box)
                    labels.append(donor.label)
                    break
        top = np.iinfo(pixels.dtype).max
        made = np.rint(np.clip(canvas, 0, top)).astype(pixels.dtype).reshape(pixels.shape)
        return Variation(
            request=request,
            pixels=made,
            boxes=np.array(boxes, dtype=source.boxes.dtype).reshape(-1, 4),
            labels=np.array(labels, dtype=source.labels.dtype),
        )

    def _cut(self, sample: Sample, pixels: Pixels) -> list[_Cutout]:
        values = pixels.astype(np.float64).reshape(*pixels.shape[:2], -1)
        height, width = values.shape[:2]
        cutouts = []
        for index in np.flatnonzero(~sample.crowd):
            box = sample.boxes[index].astype(np.float64)
            others = [other.astype(np.float64) for at, other in enumerate(sample.boxes) if at != index]
            left, top = (int(value) for value in np.floor(box[:2]) - self.feather)
            right, bottom = (int(value) for value in np.ceil(box[2:]) + self.feather)
            inside = left >= 0 and top >= 0 and right <= width and bottom <= height
            if inside and not _overlaps((left, top, right, bottom), others):
                at_patch = box - np.array([left, top, left, top])
                label = int(sample.labels[index])
                cutouts.append(_Cutout(values[top:bottom, left:right].copy(), at_patch, label, pixels.dtype))
        return cutouts

    def _pose(self, donor: _Cutout, rng: np.random.Generator) -> _Cutout:
        mirror, turns = rng.integers(2), rng.integers(4)
        if self.mirror and mirror:
            donor = donor.mirrored()
        for _ in range(turns if self.turns else 0):
            donor = donor.turned()
        return donor

    def _find_place(
        self,
        donor: _Cutout,
        canvas: Float[np.ndarray, "H W c"],
        taken: Sequence[Float[np.ndarray, " 4"]],
        rng: np.random.Generator,
    ) -> tuple[int, int] | None:
        """Left and top of a place like the donor's, or None."""
        height, width = donor.patch.shape[:2]
        free_x, free_y = canvas.shape[1] - width, canvas.shape[0] - height
        if free_x < 0 or free_y < 0:
            return None
        mean, std = _level(donor.patch[self._ring(donor)])
        places = rng.integers([0, 0], [free_x + 1, free_y + 1], size=(PLACES_TRIED, 2))
        for x, y in places.tolist():
            if _overlaps((x, y, x + width, y + height), taken):
                continue
            # The whole place is looked at, not its rim alone: an unlabelled thing in it would be cut in two.
            there_mean, there_std = _level(canvas[y : y + height, x : x + width].reshape(-1, canvas.shape[2]))
            alike = abs(there_mean - mean) <= self.tolerance * max(std, there_std, 1.0)
            # One grey level stands for the spread of areas that are flat.
            ratio = max(std, 1.0) / max(there_std, 1.0)
            if alike and 1 / (1 + self.tolerance) <= ratio <= 1 + self.tolerance:
                return x, y
        return None

    def _paste(self, donor: _Cutout, canvas: Float[np.ndarray, "H W c"], place: tuple[int, int]) -> None:
        x, y = place
        height, width = donor.patch.shape[:2]
        there = canvas[y : y + height, x : x + width]
        ring = self._ring(donor)
        shift = there[ring].mean(axis=0) - donor.patch[ring].mean(axis=0)
        alpha = donor.alpha(self.feather)
        there += alpha * (donor.patch + shift - there)

    def _ring(self, donor: _Cutout) -> np.ndarray:
        """The pixels of a patch that lie outside its box."""
        x1, y1, x2, y2 = (int(value) for value in (*np.floor(donor.box[:2]), *np.ceil(donor.box[2:])))
        ring = np.ones(donor.patch.shape[:2], dtype=bool)
        ring[y1:y2, x1:x2] = False
        return ring


def _level(values: Float[np.ndarray, "n c"]) -> tuple[float, float]:
    """Mean and standard deviation of the brightness."""
    brightness = values.mean(axis=1)
    return float(brightness.mean()), float(brightness.std())


def _overlaps(place: tuple[int, int, int, int], boxes: Sequence[Float[np.ndarray, " 4"]]) -> bool:
    left, top, right, bottom = place
    return any(left < x2 and x1 < right and top < y2 and y1 < bottom for x1, y1, x2, y2 in boxes)
