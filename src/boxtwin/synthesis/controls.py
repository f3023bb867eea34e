"""Controls, which diffusion has to beat: the same images again, and labelled objects pasted at new places."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float
from tqdm.auto import tqdm

from boxtwin.datasets.image_io import Pixels
from boxtwin.datasets.sample import Sample
from boxtwin.synthesis.arrays import Box, Mask, covered_slices, overlaps_any
from boxtwin.synthesis.constants import FEATHER, LEAST_PASTES, MOST_PASTES, TOLERANCE
from boxtwin.synthesis.generator import Generator, Request, Variation

# Places tried for one object before another object is taken, and objects tried for one paste before it is given up:
# enough to find a calm corner in a harbour, a few milliseconds if there is none.
PLACES_TRIED = 30
OBJECTS_TRIED = 8


@dataclass(kw_only=True, eq=False)
class Repeat(Generator):
    """The source itself: the effect of more copies of the same images on a training."""

    name = "repeat"
    boxes = "exact"
    copies = True

    def vary(self, requests: Sequence[Request]) -> Iterator[Variation]:
        for request in requests:
            source = request.source
            yield Variation(request, source.read(), source.object_boxes, source.object_labels)


@dataclass(frozen=True, eq=False)
class _Cutout:
    """An object with the `FEATHER` pixels around it; ``box`` is xyxy in pixels of the patch."""

    patch: Float[np.ndarray, "h w c"]
    box: Box
    label: int
    dtype: np.dtype

    def mirrored(self) -> _Cutout:
        """Flipped left to right."""
        x1, y1, x2, y2 = self.box
        width = self.patch.shape[1]
        return replace(self, patch=self.patch[:, ::-1], box=np.array([width - x2, y1, width - x1, y2]))

    def turned(self) -> _Cutout:
        """Turned by 90 degrees counterclockwise."""
        x1, y1, x2, y2 = self.box
        width = self.patch.shape[1]
        return replace(self, patch=np.rot90(self.patch), box=np.array([y1, width - x2, y2, width - x1]))

    def ring(self) -> Mask:
        """The pixels around the box."""
        height, width = self.patch.shape[:2]
        ring = np.ones((height, width), dtype=bool)
        ring[covered_slices(self.box, height, width)] = False
        return ring

    def alpha(self) -> Float[np.ndarray, "h w 1"]:
        """1 in the box, falling to 0 along a cosine over `FEATHER` pixels outside of it."""
        x1, y1, x2, y2 = self.box
        x, y = np.arange(self.patch.shape[1]) + 0.5, np.arange(self.patch.shape[0]) + 0.5
        across = np.maximum(np.maximum(x1 - x, x - x2), 0)
        down = np.maximum(np.maximum(y1 - y, y - y2), 0)
        distance = np.hypot(down[:, None], across[None, :])
        return (0.5 * (1 + np.cos(np.pi * np.minimum(distance / FEATHER, 1))))[:, :, None]


@dataclass(kw_only=True, eq=False)
class CopyPaste(Generator):
    """Objects of the training images and of the source itself, pasted where the background is like their own.

    After Dwibedi et al. 2017, "Cut, Paste and Learn", and Ghiasi et al. 2021, "Simple Copy-Paste", for boxes instead of
    masks: a whole box is pasted, its surroundings faded out, its level shifted to that of the new place. Objects that
    are cut off by a border, or have a neighbour in the faded margin, are not copied. Without a place, none is pasted.
    """

    mirror: bool  # flip objects left to right at random
    turns: bool  # turn objects by multiples of 90 degrees at random

    name = "copy_paste"
    boxes = "exact"
    learns = True

    def __post_init__(self) -> None:
        self._cutouts: list[_Cutout] | None = None

    def fit(self, training: Sequence[Sample], folder: Path) -> None:  # noqa: ARG002, nothing to save: reading takes seconds
        """Cut the objects out of the training images and keep them in memory."""
        self._cutouts = []
        for sample in tqdm(training, desc="cutting out objects", unit="image", mininterval=1.0, leave=False):
            if len(sample.object_boxes):
                self._cutouts += self._cut(sample, sample.read())

    def vary(self, requests: Sequence[Request]) -> Iterator[Variation]:
        """Paste `LEAST_PASTES` to `MOST_PASTES` objects, of its bit depth and channels, into each source."""
        if self._cutouts is None:
            raise RuntimeError("CopyPaste.vary needs objects: call fit first")
        yield from (self._vary_one(request, self._cutouts) for request in requests)

    def _vary_one(self, request: Request, cutouts: Sequence[_Cutout]) -> Variation:
        rng = np.random.default_rng(request.seed)
        source = request.source
        pixels = source.read()
        canvas = pixels.astype(np.float64).reshape(*pixels.shape[:2], -1)
        kind = pixels.dtype, canvas.shape[2]
        donors = [one for one in [*cutouts, *self._cut(source, pixels)] if (one.dtype, one.patch.shape[2]) == kind]
        taken = [box.astype(np.float64) for box in source.boxes]
        boxes, labels = list(source.object_boxes), list(source.object_labels)
        wanted = int(rng.integers(LEAST_PASTES, MOST_PASTES + 1))
        for _ in range(wanted if donors else 0):
            for _ in range(OBJECTS_TRIED):
                donor = self._pose(donors[int(rng.integers(len(donors)))], rng)
                if (place := self._find_place(donor, canvas, taken, rng)) is not None:
                    box = donor.box + np.array([*place, *place], dtype=np.float64)
                    self._paste(donor, canvas, place)
                    taken.append(box)
                    boxes.append(box)
                    labels.append(donor.label)
                    break
        pasted = np.rint(np.clip(canvas, 0, np.iinfo(pixels.dtype).max)).astype(pixels.dtype).reshape(pixels.shape)
        corners = np.array(boxes, dtype=source.boxes.dtype).reshape(-1, 4)
        return Variation(request, pasted, corners, np.array(labels, dtype=source.labels.dtype))

    def _cut(self, sample: Sample, pixels: Pixels) -> list[_Cutout]:
        values = pixels.astype(np.float64).reshape(*pixels.shape[:2], -1)
        height, width = values.shape[:2]
        cutouts = []
        for index in np.flatnonzero(~sample.crowd):
            box = sample.boxes[index].astype(np.float64)
            others = np.delete(sample.boxes, index, axis=0)
            left, top = (int(value) for value in np.floor(box[:2]) - FEATHER)
            right, bottom = (int(value) for value in np.ceil(box[2:]) + FEATHER)
            inside = left >= 0 and top >= 0 and right <= width and bottom <= height
            if inside and not overlaps_any((left, top, right, bottom), others):
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
        self, donor: _Cutout, canvas: Float[np.ndarray, "H W c"], taken: Sequence[Box], rng: np.random.Generator
    ) -> tuple[int, int] | None:
        """Left and top of a place like the donor's, or None."""
        height, width = donor.patch.shape[:2]
        free_x, free_y = canvas.shape[1] - width, canvas.shape[0] - height
        if free_x < 0 or free_y < 0:
            return None
        mean, std = _level(donor.patch[donor.ring()])
        places = rng.integers([0, 0], [free_x + 1, free_y + 1], size=(PLACES_TRIED, 2))
        for x, y in places.tolist():
            if overlaps_any((x, y, x + width, y + height), taken):
                continue
            # The whole place is looked at, not its rim alone: the paste would cut an unlabelled object in two.
            place_mean, place_std = _level(canvas[y : y + height, x : x + width].reshape(-1, canvas.shape[2]))
            alike = abs(place_mean - mean) <= TOLERANCE * max(std, place_std, 1.0)
            # One grey level stands for the spread of areas that are flat.
            ratio = max(std, 1.0) / max(place_std, 1.0)
            if alike and 1 / (1 + TOLERANCE) <= ratio <= 1 + TOLERANCE:
                return x, y
        return None

    def _paste(self, donor: _Cutout, canvas: Float[np.ndarray, "H W c"], place: tuple[int, int]) -> None:
        x, y = place
        height, width = donor.patch.shape[:2]
        target, ring = canvas[y : y + height, x : x + width], donor.ring()
        shift = target[ring].mean(axis=0) - donor.patch[ring].mean(axis=0)
        target += donor.alpha() * (donor.patch + shift - target)


def _level(values: Float[np.ndarray, "n c"]) -> tuple[float, float]:
    brightness = values.mean(axis=1)
    return float(brightness.mean()), float(brightness.std())
