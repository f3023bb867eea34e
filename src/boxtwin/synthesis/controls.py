"""Controls, which diffusion has to beat: the same images again, and labelled objects pasted at new places."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from jaxtyping import Float
from tqdm.auto import tqdm

from boxtwin.datasets.image_io import Pixels
from boxtwin.datasets.sample import Sample
from boxtwin.errors import InputError
from boxtwin.synthesis.arrays import Box, overlaps_any, planes_of
from boxtwin.synthesis.blending import local_mean
from boxtwin.synthesis.constants import FEATHER, LEAST_PASTES, MOST_PASTES, TOLERANCE
from boxtwin.synthesis.cutouts import Cutout
from boxtwin.synthesis.generator import Generator, Request, Variation, check_settings
from boxtwin.synthesis.silhouettes import OBLONG, ellipse_in, silhouettes_of

# Places tried for one object before another object is taken, and objects tried for one paste before it is given up:
# enough to find a calm corner in a harbour, a few milliseconds if there is none.
PLACES_TRIED = 30
OBJECTS_TRIED = 8
STRUCTURED = 2.0  # times the structure that a window without objects has in the median
MOST_WINDOWS, MOST_SIDE = 128, 256  # windows kept in memory, and their side in pixels; a quarter of the image, else
NARROW = 2  # width of the margin of objects with near neighbours, pixels


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


@dataclass(kw_only=True, eq=False)
class PasteSettings:
    """How pasted objects differ from what they were. Settings with a default were added later."""

    turns: bool  # turn objects by multiples of 90 degrees at random
    outlines: bool = False  # paste objects along their outlines instead of whole boxes
    angle: float = 0.0  # greatest angle in degrees by which objects are turned besides, along their outlines
    stretch: float = 0.0  # greatest share by which objects become longer or shorter, along their outlines
    brightness: float = 0.0  # greatest share by which their contrast to the surroundings rises or falls
    grounds: int = 0  # greatest number of windows without objects, of land and quays say, pasted before the objects

    def check(self, owner: str) -> None:
        """Raise InputError for settings out of range."""
        check_settings(owner, self, "stretch", "brightness", grounds=0)
        if not 0 <= self.angle <= 180:
            raise InputError(f"{owner}: angle={self.angle} must lie between 0 and 180 degrees")
        if self.stretch == 1:
            raise InputError(f"{owner}: stretch={self.stretch} must be below 1; an object may vanish otherwise")


@dataclass(kw_only=True, eq=False)
class CopyPaste(PasteSettings, Generator):
    """Objects of the training images and of the source itself, pasted where the background is like their own.

    After Dwibedi et al. 2017, "Cut, Paste and Learn", and Ghiasi et al. 2021, "Simple Copy-Paste", for boxes instead of
    masks: a whole box is pasted, its surroundings faded out, its level shifted to that of the new place. Objects that
    are cut off by a border, or have a neighbour in the faded margin, are not copied. Without a place, none is pasted.

    An outline is the silhouette of the object, or the ellipse in its box in classes that mostly are not `OBLONG`: the
    heading of a round object is uncertain, and more so if others touch it. Either touches all four sides of the box,
    so that the box of the turned object follows. Along outlines, the margin is `NARROW` where there is a neighbour in
    the usual one.

    With `grounds`, windows of the training images without objects are pasted where the source has none: what
    resembles an object there is none. Those that are `STRUCTURED` are taken: of calm ground there is enough.
    """

    mirror: bool  # flip objects left to right at random

    name = "copy_paste"
    boxes = "exact"
    learns = True

    def __post_init__(self) -> None:
        self.check(self.name)
        self._cutouts: list[Cutout] | None = None
        self._oblong: set[int] = set()  # classes
        self._windows: list[Cutout] = []
        self._outlined = self.outlines or self.angle > 0 or self.stretch > 0

    def fit(self, training: Sequence[Sample], folder: Path) -> None:  # noqa: ARG002, nothing to save: reading takes seconds
        """Cut the objects out of the training images and keep them in memory."""
        if self._outlined:
            self._oblong = _oblong_classes(training)
        self._cutouts = []
        for sample in tqdm(training, desc="cutting out objects", unit="image", mininterval=1.0, leave=False):
            if len(sample.object_boxes):
                self._cutouts += self._cut(sample, sample.read())
        if self.grounds:
            windows = sorted((entry for sample in training for entry in _windows(sample)), key=lambda entry: entry[0])
            least = STRUCTURED * float(np.median([structure for structure, _ in windows])) if windows else 0.0
            self._windows = [window for structure, window in windows[-MOST_WINDOWS:] if structure >= least]

    def vary(self, requests: Sequence[Request]) -> Iterator[Variation]:
        """Paste `LEAST_PASTES` to `MOST_PASTES` objects, of its bit depth and channels, into each source."""
        if self._cutouts is None:
            raise RuntimeError("CopyPaste.vary needs objects: call fit first")
        yield from (self._vary_one(request, self._cutouts) for request in requests)

    def _vary_one(self, request: Request, cutouts: Sequence[Cutout]) -> Variation:
        rng = np.random.default_rng(request.seed)
        source = request.source
        pixels = source.read()
        canvas = pixels.astype(np.float64).reshape(*pixels.shape[:2], -1)
        kind = pixels.dtype, canvas.shape[2]
        donors = [one for one in [*cutouts, *self._cut(source, pixels)] if (one.dtype, one.patch.shape[2]) == kind]
        taken = [box.astype(np.float64) for box in source.boxes]
        boxes, labels = list(source.object_boxes), list(source.object_labels)
        if windows := [one for one in self._windows if (one.dtype, one.patch.shape[2]) == kind]:
            self._paste_windows(windows, canvas, taken, rng)
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

    def _paste_windows(
        self,
        windows: Sequence[Cutout],
        canvas: Float[np.ndarray, "H W c"],
        taken: list[Box],
        rng: np.random.Generator,
    ) -> None:
        for _ in range(int(rng.integers(self.grounds + 1))):
            window = windows[int(rng.integers(len(windows)))]
            window = window.mirrored() if self.mirror and rng.integers(2) else window
            height, width = window.patch.shape[:2]
            room = np.array([canvas.shape[1] - width, canvas.shape[0] - height])
            for x, y in rng.integers(0, np.maximum(room, 0) + 1, size=(PLACES_TRIED, 2)).tolist():
                if room.min() >= 0 and not overlaps_any((x, y, x + width, y + height), taken):
                    target = canvas[y : y + height, x : x + width]
                    target += window.alpha() * (window.patch - target)
                    taken.append(np.array([x, y, x + width, y + height], dtype=np.float64))
                    break

    def _cut(self, sample: Sample, pixels: Pixels) -> list[Cutout]:
        values = pixels.astype(np.float64).reshape(*pixels.shape[:2], -1)
        height, width = values.shape[:2]
        cutouts = []
        silhouettes = silhouettes_of(values.mean(axis=2), sample.boxes) if self._outlined else []
        for index in np.flatnonzero(~sample.crowd):
            box = sample.boxes[index].astype(np.float64)
            others = np.delete(sample.boxes, index, axis=0)
            for feather in (FEATHER, NARROW) if self._outlined else (FEATHER,):
                left, top = (int(value) for value in np.floor(box[:2]) - feather)
                right, bottom = (int(value) for value in np.ceil(box[2:]) + feather)
                inside = left >= 0 and top >= 0 and right <= width and bottom <= height
                if not inside or overlaps_any((left, top, right, bottom), others):
                    continue
                corner = np.array([left, top], dtype=np.float64)
                patch, at_patch, label = (
                    values[top:bottom, left:right],
                    box - np.tile(corner, 2),
                    int(sample.labels[index]),
                )
                outline = None
                if self._outlined:
                    outline = silhouettes[index].corners() - corner if label in self._oblong else ellipse_in(at_patch)
                cutouts.append(Cutout(patch.copy(), at_patch, label, pixels.dtype, feather, outline))
                break
        return cutouts

    def _pose(self, donor: Cutout, rng: np.random.Generator) -> Cutout:
        mirror, turns = rng.integers(2), rng.integers(4)
        if self.mirror and mirror:
            donor = donor.mirrored()
        for _ in range(turns if self.turns else 0):
            donor = donor.turned()
        if self.angle or self.stretch:
            turn, stretch = (float(rng.uniform(-most, most)) for most in (self.angle, self.stretch))
            donor = donor.warped(math.radians(turn), 1 + stretch)
        if self.brightness:
            donor = donor.brighter(1 + float(rng.uniform(-self.brightness, self.brightness)))
        return donor

    def _find_place(
        self, donor: Cutout, canvas: Float[np.ndarray, "H W c"], taken: Sequence[Box], rng: np.random.Generator
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

    def _paste(self, donor: Cutout, canvas: Float[np.ndarray, "H W c"], place: tuple[int, int]) -> None:
        x, y = place
        height, width = donor.patch.shape[:2]
        target, ring = canvas[y : y + height, x : x + width], donor.ring()
        shift = target[ring].mean(axis=0) - donor.patch[ring].mean(axis=0)
        target += donor.alpha() * (donor.patch + shift - target)


def _level(values: Float[np.ndarray, "n c"]) -> tuple[float, float]:
    brightness = values.mean(axis=1)
    return float(brightness.mean()), float(brightness.std())


def _windows(sample: Sample) -> Iterator[tuple[float, Cutout]]:
    """Windows without objects, each with the spread of its brightness beyond noise, relative to the mean."""
    pixels = sample.read()
    height, width = pixels.shape[:2]
    side = min(min(height, width) // 4, MOST_SIDE)
    fade = max(side // 8, 1)
    for top, left in (
        product(range(0, height - side + 1, side), range(0, width - side + 1, side)) if side > 2 * fade else ()
    ):
        if not overlaps_any((left, top, left + side, top + side), sample.boxes):
            patch = pixels[top : top + side, left : left + side].astype(np.float64).reshape(side, side, -1)
            box = np.array([fade, fade, side - fade, side - fade], dtype=np.float64)
            smooth = local_mean(patch.mean(axis=2))
            structure = float(smooth.std() / max(smooth.mean(), 1.0))
            yield structure, Cutout(patch, box, -1, pixels.dtype, fade)


def _oblong_classes(training: Sequence[Sample]) -> set[int]:
    ratios: dict[int, list[float]] = {}
    for sample in training:
        values = planes_of(sample.read(), 3).mean(axis=0)
        for label, silhouette in zip(sample.labels, silhouettes_of(values, sample.boxes), strict=True):
            ratios.setdefault(int(label), []).append(silhouette.breadth / silhouette.length)
    return {label for label, values in ratios.items() if np.median(values) <= OBLONG}
