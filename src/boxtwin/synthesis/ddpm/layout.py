"""New layouts: objects moved, turned, added and removed, drawn by the model at the places that a new mask shows."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Float
from tqdm.auto import tqdm

from boxtwin.datasets.sample import Sample
from boxtwin.errors import InputError
from boxtwin.synthesis.arrays import (
    Box,
    Mask,
    Plane,
    Planes,
    covered_pixels,
    covered_slices,
    grown,
    level_and_spread,
    lies_inside,
    object_mask,
    overlaps_any,
)
from boxtwin.synthesis.constants import ADD, ETA_PARTS, MOVE, REMOVE, TURN_ONLY
from boxtwin.synthesis.ddpm.base import Canvas, PixelGenerator, soft_zone
from boxtwin.synthesis.ddpm.sampling import match_grain
from boxtwin.synthesis.generator import Request, Variation, check_settings
from boxtwin.synthesis.silhouettes import Silhouette, draw, silhouettes_of

REACH = 48  # pixels from a removed object in which its side lobes are looked for
RIM = 1.5  # pixels of an object beyond its silhouette that move with it
PLACES_TRIED = 60  # for one object before it stays where it is: a few milliseconds if there is no room
OBJECTS_TRIED = 6  # for one addition: some are too long for the room there is
# Surroundings in which more than this share of the pixels differ from the median (quays, land) are no open ground.
BUSY = 0.06
# Ground whose pixels scatter this much more than those around the training images' objects usually do is no open ground
# either: of HRSID's chips, open sea stays below 1.6 of the median, harbours and towns begin at 1.8.
ROUGH = 1.7
SIMILAR = 1.3  # and this much more than the ground that a place is to be like
LEAST_FRAME = 12  # pixels around an object that are looked at, at least; half its size otherwise


@dataclass(frozen=True, eq=False)
class ObjectPatch:
    """An object as it was seen."""

    patch: Planes  # its pixels with a margin, network's units
    silhouette: Silhouette  # in the patch
    label: int
    ground: tuple[float, float]  # level and spread of the pixels around it


@dataclass(frozen=True, eq=False)
class LayoutChange:
    """What happens to one object."""

    kind: str  # moved, turned, removed or added
    object: ObjectPatch
    old: int | None  # index of the source's box; None: it is added
    new: Silhouette | None  # where it will be; None: it is removed


@dataclass(kw_only=True, eq=False)
class PixelLayout(PixelGenerator):
    """The source with some of its objects moved, turned or removed, and with added objects of other images.

    Noise is put only where something changes. An old place is repainted from pure noise as ground, together with the
    side lobes connected with the object. At a new place the object is put down as it was seen, turned, and redrawn
    from noise of `object_strength` by the network, which is shown the silhouette there; its box is the object's.

    Objects at the border, close to another or on busy ground stay where they are: the ground behind them is not known.
    New places are as calm. Without any change the source comes back. The model
    has to learn all noise levels, and silhouettes (``mask=silhouettes``).
    """

    object_strength: float  # time in [0, 1] to which an object at its new place is noised; 1 leaves its silhouette
    turn: float  # greatest angle in degrees by which an object is turned, 0 for images that have an up and a down
    margin: int  # clearance between objects, and pixels over which painted ground goes over into old

    name = "pixel_ddpm_layout"
    eta = ETA_PARTS

    def __post_init__(self) -> None:
        super().__post_init__()
        check_settings(self.name, self, "object_strength", margin=1)
        if not 0 <= self.turn <= 180:
            raise InputError(f"{self.name}: turn={self.turn} must lie between 0 and 180 degrees")
        if self.mask != "silhouettes":
            raise InputError(f"{self.name}: mask={self.mask} does not say how objects lie; use mask=silhouettes")
        self.check_strength("repainting", 1.0)
        self.turn = float(self.turn)
        self._donors: list[ObjectPatch] = []

    def version(self, training: Sequence[Sample]) -> int:  # noqa: ARG002
        """2; 1 turned objects without a heading by any angle, and gave them the boxes of turned squares."""
        return 2

    def fit(self, training: Sequence[Sample], folder: Path) -> None:
        super().fit(training, folder)
        self._donors = []
        for sample in tqdm(training, desc="cutting out objects", unit="image", mininterval=1.0, leave=False):
            if len(sample.object_boxes):
                encoded = self.encoded(sample.read())
                self._donors += [patch for _, patch in object_patches(encoded, sample, self.margin)]

    def draw(self, canvas: Canvas, request: Request) -> Variation:
        source, height, width = request.source, canvas.height, canvas.width
        rng, noise = np.random.default_rng(request.seed), torch.Generator().manual_seed(request.seed)
        changes = plan(canvas.encoded, source, self._donors, self.turn, self.margin, rng)
        silhouettes = dict(enumerate(silhouettes_of(canvas.encoded.mean(axis=0), source.boxes)))
        x = canvas.x
        # 1. Old places become ground.
        for old in (change.old for change in changes if change.old is not None):
            del silhouettes[old]
            spare = soft_zone(object_mask(source.boxes[sorted(silhouettes)], height, width) > 0, 2) > 0
            traced = traces(canvas.values(x).mean(axis=0), source.boxes[old].astype(np.float64), REACH, spare)
            zone = soft_zone(traced, self.margin)
            zone[spare] = 0
            x = self.paint(canvas, x, draw(list(silhouettes.values()), height, width), zone, noise)
        stay = [index for index in np.flatnonzero(~source.crowd).tolist() if index in silhouettes]
        boxes, labels = list(source.boxes[stay]), list(source.labels[stay])
        # 2. New places get their objects.
        standing = list(silhouettes.values())
        for change in changes:
            if (new := change.new) is None:
                continue
            standing.append(new)
            shape, patch = draw([new], height, width), change.object.patch
            sketch = canvas.showing(_put_down(change.object, new, canvas.values(x)))
            zone = soft_zone(shape > 0, self.margin) * np.float32(self.object_strength)
            # Padding is painted from the image without the object; it is cut off in the end.
            painted = self.paint(canvas, sketch.x, draw(standing, height, width), zone, noise)
            seen = draw([change.object.silhouette], *patch.shape[1:])
            pattern, reference = (torch.from_numpy(part)[None].to(painted) for part in (patch, seen[None]))
            x = match_grain(painted, canvas.mask(shape), pattern, reference)
            boxes.append(new.box())
            labels.append(change.object.label)
        counts = Counter(change.kind for change in changes)
        return Variation(
            request,
            canvas.pixels(x) if changes else canvas.like.copy(),
            np.array(boxes, dtype=source.boxes.dtype).reshape(-1, 4),
            np.array(labels, dtype=source.labels.dtype),
            record={kind: counts[kind] for kind in ("moved", "turned", "removed", "added")},
        )


def _put_down(patch: ObjectPatch, new: Silhouette, ground: Planes) -> Planes:
    """The object as it was seen, turned to its new heading, upon the ground, without its old ground."""
    old = patch.silhouette
    turn = new.heading - old.heading
    c, s = math.cos(turn), math.sin(turn)
    # Maps a point of the patch to the image; OpenCV counts from the centre of the first pixel.
    matrix = np.array([[c, -s, new.x - 0.5], [s, c, new.y - 0.5]])
    matrix[:, 2] -= matrix[:, :2] @ np.array([old.x - 0.5, old.y - 0.5])
    height, width = ground.shape[1:]
    turned = np.stack([cv2.warpAffine(plane, matrix, (width, height), flags=cv2.INTER_LINEAR) for plane in patch.patch])
    known = cv2.warpAffine(np.ones(patch.patch.shape[1:], np.float32), matrix, (width, height)) > 0.99
    alpha = draw([new.grown(RIM)], height, width) * known
    return (ground + alpha * (turned - ground)).astype(np.float32)


def object_patches(encoded: Planes, sample: Sample, margin: int) -> Iterator[tuple[int, ObjectPatch]]:
    """The objects of an image that can be lifted off their ground, with the index of their box.

    Those at the border, within ``margin`` pixels of another, or on busy ground cannot: what is behind is not known.
    """
    values = encoded.mean(axis=0)
    height, width = values.shape
    silhouettes = silhouettes_of(values, sample.boxes)
    for index in np.flatnonzero(~sample.crowd).tolist():
        box = sample.boxes[index].astype(np.float64)
        around = grown(box, margin)
        if not lies_inside(box, values.shape, 1) or overlaps_any(around, np.delete(sample.boxes, index, axis=0)):
            continue
        if (ground := _ground(values, box, margin)) is None:
            continue
        x1, y1, x2, y2 = covered_pixels(around, height, width)
        silhouette = silhouettes[index]
        at_patch = silhouette.moved(silhouette.x - x1, silhouette.y - y1, 0.0)
        yield index, ObjectPatch(encoded[:, y1:y2, x1:x2].copy(), at_patch, int(sample.labels[index]), ground)


@dataclass(eq=False)
class _FreeSpace:
    """What is free in an image for objects at new places."""

    values: Plane  # brightness
    taken: list[Box]
    most_turn: float  # degrees
    margin: int  # pixels between objects
    rng: np.random.Generator

    def turn(self, silhouette: Silhouette) -> float:
        """A random angle in radians; of objects without a heading a multiple of 90 degrees, so that their boxes fit.

        The box of a disc that is turned with its silhouette, a square, would be up to 1.4 times as wide as the disc.
        """
        if silhouette.has_heading:
            return math.radians(float(self.rng.uniform(-self.most_turn, self.most_turn)))
        quarters = int(self.most_turn // 90)
        return math.pi / 2 * int(self.rng.integers(-quarters, quarters + 1))

    def is_free(self, new: Silhouette, besides: int | None = None) -> bool:
        """Whether the silhouette lies within the image, clear of all that is taken but one."""
        taken = [box for index, box in enumerate(self.taken) if index != besides]
        return lies_inside(new.box(), self.values.shape, 1) and not overlaps_any(grown(new.box(), self.margin), taken)

    def take_place(self, patch: ObjectPatch, ground: tuple[float, float]) -> Silhouette | None:
        """Take a free place on ground of that level and spread, if one is found."""
        height, width = self.values.shape
        level, spread = ground
        for _ in range(PLACES_TRIED):
            x, y = self.rng.uniform((0, 0), (width, height)).tolist()
            new = patch.silhouette.moved(x, y, self.turn(patch.silhouette))
            if not self.is_free(new):
                continue
            place = self.values[covered_slices(grown(new.box(), self.margin), height, width)]
            place_level, place_spread = level_and_spread(place)
            alike = abs(place_level - level) <= 0.7 * spread and place_spread <= SIMILAR * spread
            if alike and _busy(place, place_level, place_spread) <= BUSY / 2:
                self.taken.append(new.box())
                return new
        return None


def plan(
    encoded: Planes, source: Sample, donors: Sequence[ObjectPatch], turn: float, margin: int, rng: np.random.Generator
) -> list[LayoutChange]:
    """What changes in one variation, with turn and margin as of `PixelLayout`; at least one object if any can."""
    values = encoded.mean(axis=0)
    usual = float(np.median([donor.ground[1] for donor in donors])) if donors else math.inf
    movable = {at: patch for at, patch in object_patches(encoded, source, margin) if patch.ground[1] <= ROUGH * usual}
    donors = [patch for patch in donors if patch.ground[1] <= ROUGH * usual]
    silhouettes = silhouettes_of(values, source.boxes)
    # Places of objects stay taken when these go: a place that is repainted is not built upon at once.
    space = _FreeSpace(values, list(source.boxes.astype(np.float64)), turn, margin, rng)
    changes: list[LayoutChange] = []

    def try_action(index: int, action: str) -> bool:
        patch, old, new = movable[index], silhouettes[index], None
        if action == "turned":
            new = old.moved(old.x, old.y, space.turn(old))
            if new == old:  # without a heading, and turned by nothing
                return False
            if not space.is_free(new, besides=index):
                return False
            taken, box = space.taken[index], new.box()
            space.taken[index] = np.concatenate([np.minimum(taken[:2], box[:2]), np.maximum(taken[2:], box[2:])])
        elif action == "moved" and (new := space.take_place(patch, patch.ground)) is None:
            return False
        changes.append(LayoutChange(action, patch, index, new))
        return True

    bounds = np.cumsum([MOVE, TURN_ONLY, REMOVE])
    for index in movable:
        draw = rng.random()
        if draw < bounds[2]:
            try_action(index, ("moved", "turned", "removed")[int(np.searchsorted(bounds, draw, side="right"))])
    wanted = int(rng.integers(0, ADD + 1))
    if not changes and not wanted:
        # Without any change the variation would be the source.
        order = rng.permutation(list(movable)).tolist() if movable else []
        wanted = 0 if any(try_action(index, "moved") for index in order) else min(ADD, 1)
    # Added objects come to ground like that of the image's own. If all of those stand on busy ground, none is added.
    grounds = [patch.ground for patch in movable.values()]
    level = float(np.median([level for level, _ in grounds] or values))
    spread = float(np.median([spread for _, spread in grounds] or [usual]))
    candidates = [*donors, *movable.values()] if movable or not len(source.boxes) else []
    for _ in range(wanted if candidates else 0):
        for _ in range(OBJECTS_TRIED):
            patch = candidates[int(rng.integers(len(candidates)))]
            if (new := space.take_place(patch, (level, spread))) is not None:
                changes.append(LayoutChange("added", patch, None, new))
                break
    return changes


def _ground(values: Plane, box: Box, margin: int) -> tuple[float, float] | None:
    """Level and spread around a box; None if it is busy."""
    height, width = values.shape
    frame = max(margin, LEAST_FRAME, int((box[2:] - box[:2]).max() / 2))
    x1, y1, x2, y2 = covered_pixels(grown(box, frame), height, width)
    left, top, right, bottom = covered_pixels(grown(box, 2), height, width)
    # Side lobes leave an object along rows and columns: the corners of the frame are free of them.
    corners = np.ones((y2 - y1, x2 - x1), dtype=bool)
    corners[top - y1 : bottom - y1] = False
    corners[:, left - x1 : right - x1] = False
    around = values[y1:y2, x1:x2][corners]
    if around.size < 16:
        return None
    level, spread = level_and_spread(around)
    return None if _busy(around, level, spread) > BUSY else (level, spread)


def _busy(values: Float[np.ndarray, "..."], level: float, spread: float) -> float:
    return float((np.abs(values - level) > 3 * spread).mean())


def traces(values: Plane, box: Box, reach: int, spare: Mask) -> Mask:
    """The box and the bright pixels connected with it: side lobes, wake, bright water.

    ``spare`` is left out, and what is connected through it only; nothing beyond ``reach`` pixels counts.
    """
    x1, y1, x2, y2 = covered_pixels(box, *values.shape)
    top, left = max(y1 - reach, 0), max(x1 - reach, 0)
    window = values[top : y2 + reach, left : x2 + reach]
    level, spread = level_and_spread(window)
    # Speckle averages out over a few pixels, lobes do not. Along each axis, as lobes run.
    bright = np.zeros(window.shape, dtype=bool)
    for size in ((9, 1), (1, 9), (3, 3)):
        bright |= cv2.blur(window.astype(np.float32), size) - level > 3.5 * (spread / np.sqrt(size[0] * size[1]))
    bright[y1 - top : y2 - top, x1 - left : x2 - left] = True
    _, numbers = cv2.connectedComponents(bright.astype(np.uint8), connectivity=8)
    connected = numbers == numbers[(y1 + y2) // 2 - top, (x1 + x2) // 2 - left]
    near = cv2.dilate(connected.astype(np.uint8), np.ones((5, 5), np.uint8))
    traced = np.zeros(values.shape, dtype=bool)
    traced[top : top + window.shape[0], left : left + window.shape[1]] = near
    return traced & ~spare
