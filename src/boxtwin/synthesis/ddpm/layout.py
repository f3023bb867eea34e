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
from jaxtyping import Bool, Float
from tqdm.auto import tqdm

from boxtwin.datasets.sample import Sample
from boxtwin.errors import InputError
from boxtwin.synthesis.arrays import Box, covered_pixels, covered_slices, level_and_spread, object_mask, overlaps_any
from boxtwin.synthesis.constants import ADD, ETA_PARTS, MOVE, REMOVE, TURN_ONLY
from boxtwin.synthesis.ddpm.base import Canvas, PixelGenerator, soft_zone
from boxtwin.synthesis.ddpm.sampling import match_grain
from boxtwin.synthesis.generator import Request, Variation
from boxtwin.synthesis.silhouettes import Silhouette, draw, silhouettes_of

REACH = 48  # pixels from a removed object in which its side lobes are looked for
RIM = 1.5  # pixels of an object beyond its silhouette that move with it
# Places tried for one object before it stays where it is: a few milliseconds if there is no room.
PLACES_TRIED = 60
# Objects tried for one addition: some are too long for the room there is.
OBJECTS_TRIED = 6
# Surroundings in which more than this share of the pixels differ from the median are no open ground: quays, land, other
# objects.
BUSY = 0.06
# Ground whose pixels scatter this much more than those around the training images' objects usually do is no open ground
# either: of HRSID's chips, open sea stays below 1.6 of the median, harbours and towns begin at 1.8.
ROUGH = 1.7
SIMILAR = 1.3  # and this much more than the ground that a place is to be like
LEAST_FRAME = 12  # pixels around an object that are looked at, at least; half its size otherwise


@dataclass(frozen=True, eq=False)
class ObjectPatch:
    """An object as it was seen."""

    patch: Float[np.ndarray, "c h w"]  # its pixels with a margin, network's units
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
    from noise of `object_strength` by the network, which is shown its silhouette there. The box is the tight box of the
    silhouette.

    Objects at the border, close to another or on busy ground stay where they are: the ground behind them is not known.
    New places are as calm as the old ones. A source in which nothing can change comes back as it was; the manifest's
    record counts the changes.

    The model has to learn all noise levels, and silhouettes.
    """

    object_strength: float  # time in [0, 1] to which an object at its new place is noised; 1 leaves its silhouette
    turn: float  # greatest angle in degrees by which an object is turned, 0 for images that have an up and a down
    margin: int  # clearance between objects, and pixels over which painted ground goes over into old

    name = "pixel_ddpm_layout"
    eta = ETA_PARTS

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("object_strength", margin=1)
        if not 0 <= self.turn <= 180:
            raise InputError(f"{self.name}: turn lies between 0 and 180 degrees, got {self.turn}")
        if self.mask != "silhouettes":
            raise InputError(f"{self.name}: mask={self.mask} does not say how objects lie; use mask=silhouettes")
        self.check_strength("repainting", 1.0)
        self.turn = float(self.turn)
        self._donors: list[ObjectPatch] = []

    def fit(self, training: Sequence[Sample], folder: Path) -> None:
        super().fit(training, folder)
        self._donors = []
        for sample in tqdm(training, desc="cutting out objects", unit="image", mininterval=1.0, leave=False):
            if len(sample.object_boxes):
                encoded = self.encoded(sample.read())
                self._donors += [patch for _, patch in object_patches(encoded, sample, self.margin)]

    def draw(self, canvas: Canvas, request: Request) -> Variation:
        source, height, width = request.source, canvas.height, canvas.width
        noise = torch.Generator().manual_seed(request.seed)
        changes = plan(
            canvas.encoded, source, self._donors, self.turn, self.margin, np.random.default_rng(request.seed)
        )
        silhouettes = dict(enumerate(silhouettes_of(canvas.encoded.mean(axis=0), source.boxes)))
        x = canvas.x
        # 1. Old places become ground.
        for old in (change.old for change in changes if change.old is not None):
            del silhouettes[old]
            spare = soft_zone(object_mask(source.boxes[sorted(silhouettes)], height, width) > 0, 2) > 0
            traced = traces(canvas.brightness(x), source.boxes[old].astype(np.float64), REACH, spare)
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
            request=request,
            pixels=canvas.pixels(x) if changes else canvas.like.copy(),
            boxes=np.array(boxes, dtype=source.boxes.dtype).reshape(-1, 4),
            labels=np.array(labels, dtype=source.labels.dtype),
            record={kind: counts[kind] for kind in ("moved", "turned", "removed", "added")},
        )


def _put_down(patch: ObjectPatch, new: Silhouette, ground: Float[np.ndarray, "c h w"]) -> Float[np.ndarray, "c h w"]:
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


def object_patches(
    encoded: Float[np.ndarray, "c h w"], sample: Sample, margin: int
) -> Iterator[tuple[int, ObjectPatch]]:
    """The objects of an image that can be lifted off their ground, with the index of their box.

    Those at the border, those with a neighbour within ``margin`` pixels and those on busy ground cannot: the ground
    behind them is not known.
    """
    values = encoded.mean(axis=0)
    height, width = values.shape
    silhouettes = silhouettes_of(values, sample.boxes)
    for index in np.flatnonzero(~sample.crowd).tolist():
        box = sample.boxes[index].astype(np.float64)
        around = grown(box, margin)
        if not _inside(box, height, width) or overlaps_any(around, np.delete(sample.boxes, index, axis=0)):
            continue
        ground = _ground(values, box, margin)
        if ground is None:
            continue
        x1, y1, x2, y2 = covered_pixels(around, height, width)
        silhouette = silhouettes[index]
        at_patch = silhouette.moved(silhouette.x - x1, silhouette.y - y1, 0.0)
        yield index, ObjectPatch(encoded[:, y1:y2, x1:x2].copy(), at_patch, int(sample.labels[index]), ground)


def plan(
    encoded: Float[np.ndarray, "c h w"],
    source: Sample,
    donors: Sequence[ObjectPatch],
    most_turn: float,
    margin: int,
    rng: np.random.Generator,
) -> list[LayoutChange]:
    """What changes in one variation; at least one object if any can.

    Objects turn by up to ``most_turn`` degrees and keep ``margin`` pixels between them.
    """
    values = encoded.mean(axis=0)
    usual = float(np.median([donor.ground[1] for donor in donors])) if donors else math.inf
    movable = {at: patch for at, patch in object_patches(encoded, source, margin) if patch.ground[1] <= ROUGH * usual}
    donors = [patch for patch in donors if patch.ground[1] <= ROUGH * usual]
    silhouettes = silhouettes_of(values, source.boxes)
    # Where objects are, or were: a place that is repainted is not built upon at once.
    taken = [box.astype(np.float64) for box in source.boxes]
    changes: list[LayoutChange] = []

    def try_action(index: int, action: str) -> bool:
        patch, old, new = movable[index], silhouettes[index], None
        if action == "turned":
            new = old.moved(old.x, old.y, _turn(most_turn, rng))
            if not _is_free(new, values, [box for at, box in enumerate(taken) if at != index], margin):
                return False
            taken[index] = _union(taken[index], new.box())
        elif action == "moved":
            new = _place(patch, values, taken, patch.ground, most_turn, margin, rng)
            if new is None:
                return False
            taken.append(new.box())
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
    # Added objects come to ground like that on which the image's own stand; if all of those stand on busy ground, the
    # open ground may be land, and nothing is added.
    grounds = [patch.ground for patch in movable.values()]
    level = float(np.median([level for level, _ in grounds] or values))
    spread = float(np.median([spread for _, spread in grounds] or [usual]))
    candidates = [*donors, *movable.values()] if movable or not len(source.boxes) else []
    for _ in range(wanted if candidates else 0):
        for _ in range(OBJECTS_TRIED):
            patch = candidates[int(rng.integers(len(candidates)))]
            new = _place(patch, values, taken, (level, spread), most_turn, margin, rng)
            if new is not None:
                taken.append(new.box())
                changes.append(LayoutChange("added", patch, None, new))
                break
    return changes


def grown(box: Box, margin: int) -> Box:
    """A box (xyxy) larger by ``margin`` on every side."""
    return box + np.array([-margin, -margin, margin, margin], dtype=np.float64)


def _turn(most: float, rng: np.random.Generator) -> float:
    return math.radians(float(rng.uniform(-most, most)))


def _place(
    patch: ObjectPatch,
    values: Float[np.ndarray, "h w"],
    taken: Sequence[Box],
    ground: tuple[float, float],
    most_turn: float,
    margin: int,
    rng: np.random.Generator,
) -> Silhouette | None:
    """A free place on ground of that level and spread."""
    height, width = values.shape
    level, spread = ground
    for _ in range(PLACES_TRIED):
        x, y = rng.uniform((0, 0), (width, height)).tolist()
        new = patch.silhouette.moved(x, y, _turn(most_turn, rng))
        if not _is_free(new, values, taken, margin):
            continue
        place = values[covered_slices(grown(new.box(), margin), height, width)]
        place_level, place_spread = level_and_spread(place)
        alike = abs(place_level - level) <= 0.7 * spread and place_spread <= SIMILAR * spread
        if alike and _busy(place, place_level, place_spread) <= BUSY / 2:
            return new
    return None


def _is_free(new: Silhouette, values: Float[np.ndarray, "h w"], taken: Sequence[Box], margin: int) -> bool:
    """Whether the silhouette lies within the image, clear of all that is taken."""
    box = new.box()
    return _inside(box, *values.shape) and not overlaps_any(grown(box, margin), taken)


def _ground(values: Float[np.ndarray, "h w"], box: Box, margin: int) -> tuple[float, float] | None:
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


def _inside(box: Box, height: int, width: int) -> bool:
    x1, y1, x2, y2 = box
    return bool(x1 >= 1 and y1 >= 1 and x2 <= width - 1 and y2 <= height - 1)


def _union(a: Box, b: Box) -> Box:
    return np.concatenate([np.minimum(a[:2], b[:2]), np.maximum(a[2:], b[2:])])


def traces(
    values: Float[np.ndarray, "h w"], box: Box, reach: int, spare: Bool[np.ndarray, "h w"]
) -> Bool[np.ndarray, "h w"]:
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
    traced = np.zeros(values.shape, dtype=bool)
    traced[top : top + window.shape[0], left : left + window.shape[1]] = cv2.dilate(
        connected.astype(np.uint8), np.ones((5, 5), np.uint8)
    )
    return traced & ~spare
