"""Which objects of an image move, turn, go or come, and where to: plausible places, before anything is drawn."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from boxtwin.datasets.sample import Sample
from boxtwin.synthesis.silhouettes import Silhouette, silhouettes_of

# Places tried for one object before it stays where it is: a few milliseconds where there is no room.
PLACES_TRIED = 60
# Objects tried for one addition: some are too long for the room there is.
OBJECTS_TRIED = 6
# Surroundings in which more than this share of the pixels sticks out are no open ground: quays, land, other objects.
BUSY = 0.06
# Ground whose pixels scatter this much more than those around the training images' objects usually do is no open ground
# either: of HRSID's chips, open sea stays below 1.6 of the median, harbours and towns begin at 1.8.
ROUGH = 1.7
SIMILAR = 1.3  # and this much more than the ground that a place is to be like
LEAST_FRAME = 12  # pixels around an object that are looked at, at least; half its size otherwise


@dataclass(frozen=True, eq=False)
class Thing:
    """An object as it was seen: its pixels (network's units) with a margin, and its silhouette in that patch.

    ``level`` and ``spread`` are those of the ground around it.
    """

    patch: Float[np.ndarray, "c h w"]
    silhouette: Silhouette
    label: int
    level: float
    spread: float


@dataclass(frozen=True, eq=False)
class Change:
    """What happens to one object: ``old`` is where it was (None: it was not there), ``new`` where it will be."""

    kind: str  # moved, turned, removed or added
    thing: Thing
    old: int | None  # index of the source's box
    new: Silhouette | None


@dataclass(frozen=True)
class Chances:
    """How likely an object is moved, turned where it is, or removed; and how many come at most.

    ``turn`` is the greatest angle in degrees by which an object that moves or turns is turned.
    """

    move: float
    turn_only: float
    remove: float
    add: int
    turn: float


def things_of(encoded: Float[np.ndarray, "c h w"], sample: Sample, margin: int) -> Iterator[tuple[int, Thing]]:
    """The objects of an image that can be lifted off their ground, with the index of their box.

    Those at the border, those with a neighbour within ``margin`` pixels and those on busy ground cannot: nobody knows
    what lies behind them.
    """
    values = encoded.mean(axis=0)
    height, width = values.shape
    silhouettes = silhouettes_of(values, sample.boxes)
    for index in np.flatnonzero(~sample.crowd).tolist():
        box = sample.boxes[index].astype(np.float64)
        around = grown(box, margin)
        others = np.delete(sample.boxes, index, axis=0)
        if not _inside(box, height, width, 1) or _touches(around, others):
            continue
        ground = _ground(values, box, margin)
        if ground is None:
            continue
        x1, y1, x2, y2 = _pixels(around, height, width)
        silhouette = silhouettes[index]
        patch = encoded[:, y1:y2, x1:x2].copy()
        at_patch = silhouette.moved(silhouette.x - x1, silhouette.y - y1, 0.0)
        yield index, Thing(patch, at_patch, int(sample.labels[index]), *ground)


def usual_spread(things: Sequence[Thing]) -> float:
    """The spread of the ground that objects usually stand on; infinite where there are none."""
    return float(np.median([thing.spread for thing in things])) if things else math.inf


def plan(
    encoded: Float[np.ndarray, "c h w"],
    source: Sample,
    donors: Sequence[Thing],
    chances: Chances,
    margin: int,
    rng: np.random.Generator,
) -> list[Change]:
    """What changes in one variation; at least one thing where anything can."""
    values = encoded.mean(axis=0)
    usual = usual_spread(donors)
    own = {at: thing for at, thing in things_of(encoded, source, margin) if thing.spread <= ROUGH * usual}
    donors = [thing for thing in donors if thing.spread <= ROUGH * usual]
    silhouettes = silhouettes_of(values, source.boxes)
    # Where something is, or was: a place that is repainted is not built upon at once.
    taken = [box.astype(np.float64) for box in source.boxes]
    changes: list[Change] = []

    def try_action(index: int, action: str) -> bool:
        thing, old = own[index], silhouettes[index]
        if action == "removed":
            changes.append(Change(action, thing, index, None))
            return True
        if action == "turned":
            new = old.moved(old.x, old.y, _turn(chances.turn, rng))
            others = [box for at, box in enumerate(taken) if at != index]
            if not _fits(new, values, others, (thing.level, thing.spread), margin, itself=source.boxes[index]):
                return False
            taken[index] = _union(taken[index], new.box())
        else:
            found = _place(thing, values, taken, (thing.level, thing.spread), margin, chances.turn, rng)
            if found is None:
                return False
            new = found
            taken.append(new.box())
        changes.append(Change(action, thing, index, new))
        return True

    for index in own:
        draw = rng.random()
        bounds = np.cumsum([chances.move, chances.turn_only, chances.remove])
        if draw < bounds[2]:
            try_action(index, ("moved", "turned", "removed")[int(np.searchsorted(bounds, draw, side="right"))])
    wanted = int(rng.integers(0, chances.add + 1))
    if not changes and not wanted:
        # Without any change the variation would be the source.
        tried = any(try_action(index, "moved") for index in rng.permutation(list(own)).tolist()) if own else False
        wanted = 0 if tried else min(chances.add, 1)
    # Objects come to ground like that on which the image's own stand; where all of those stand on busy ground, the open
    # ground may be land for all one knows, and nothing comes.
    level = float(np.median([thing.level for thing in own.values()] or values))
    spread = float(np.median([thing.spread for thing in own.values()] or [usual]))
    candidates = [*donors, *own.values()] if own or not len(source.boxes) else []
    for _ in range(wanted if candidates else 0):
        for _ in range(OBJECTS_TRIED):
            thing = candidates[int(rng.integers(len(candidates)))]
            new = _place(thing, values, taken, (level, spread), margin, chances.turn, rng)
            if new is not None:
                taken.append(new.box())
                changes.append(Change("added", thing, None, new))
                break
    return changes


def grown(box: Float[np.ndarray, " 4"], margin: int) -> Float[np.ndarray, " 4"]:
    """A box (xyxy) larger by ``margin`` on every side."""
    return box + np.array([-margin, -margin, margin, margin], dtype=np.float64)


def _turn(most: float, rng: np.random.Generator) -> float:
    return math.radians(float(rng.uniform(-most, most)))


def _place(
    thing: Thing,
    values: Float[np.ndarray, "h w"],
    taken: Sequence[Float[np.ndarray, " 4"]],
    ground: tuple[float, float],
    margin: int,
    turn: float,
    rng: np.random.Generator,
) -> Silhouette | None:
    height, width = values.shape
    for _ in range(PLACES_TRIED):
        x, y = rng.uniform((0, 0), (width, height)).tolist()
        new = thing.silhouette.moved(x, y, _turn(turn, rng))
        if _fits(new, values, taken, ground, margin):
            return new
    return None


def _fits(
    new: Silhouette,
    values: Float[np.ndarray, "h w"],
    taken: Sequence[Float[np.ndarray, " 4"]],
    ground: tuple[float, float],
    margin: int,
    itself: Float[np.ndarray, " 4"] | None = None,
) -> bool:
    """Whether the silhouette lies within the image, clear of all that is taken, on ground of that level and spread."""
    box = new.box()
    around = grown(box, margin)
    if not _inside(box, values.shape[0], values.shape[1], 1) or _touches(around, taken):
        return False
    if itself is not None:  # it turns on ground that it was found on
        return True
    x1, y1, x2, y2 = _pixels(around, values.shape[0], values.shape[1])
    here = values[y1:y2, x1:x2]
    level, spread = ground
    there_level, there_spread = float(np.median(here)), _spread(here)
    alike = abs(there_level - level) <= 0.7 * spread and there_spread <= SIMILAR * spread
    return alike and _busy(here, there_level, there_spread) <= BUSY / 2


def _ground(values: Float[np.ndarray, "h w"], box: Float[np.ndarray, " 4"], margin: int) -> tuple[float, float] | None:
    """Level and spread around a box; None where it is busy."""
    height, width = values.shape
    frame = max(margin, LEAST_FRAME, int((box[2:] - box[:2]).max() / 2))
    x1, y1, x2, y2 = _pixels(grown(box, frame), height, width)
    ring = np.ones((y2 - y1, x2 - x1), dtype=bool)
    left, top, right, bottom = _pixels(grown(box, 2), height, width)
    ring[top - y1 : bottom - y1, left - x1 : right - x1] = False
    # Side lobes leave an object along rows and columns: the corners of the frame are free of them.
    ring[max(top - y1, 0) : bottom - y1] = False
    ring[:, max(left - x1, 0) : right - x1] = False
    around = values[y1:y2, x1:x2][ring]
    if around.size < 16:
        return None
    level, spread = float(np.median(around)), _spread(around)
    return None if _busy(around, level, spread) > BUSY else (level, spread)


def _spread(values: Float[np.ndarray, "..."]) -> float:
    """Standard deviation, from the median deviation; never 0."""
    return max(1.4826 * float(np.median(np.abs(values - np.median(values)))), 1e-3)


def _busy(values: Float[np.ndarray, "..."], level: float, spread: float) -> float:
    return float((np.abs(values - level) > 3 * spread).mean())


def _inside(box: Float[np.ndarray, " 4"], height: int, width: int, margin: int) -> bool:
    x1, y1, x2, y2 = box
    return bool(x1 >= margin and y1 >= margin and x2 <= width - margin and y2 <= height - margin)


def _touches(box: Float[np.ndarray, " 4"], others: Sequence[Float[np.ndarray, " 4"]] | np.ndarray) -> bool:
    left, top, right, bottom = box
    return any(left < x2 and x1 < right and top < y2 and y1 < bottom for x1, y1, x2, y2 in others)


def _union(a: Float[np.ndarray, " 4"], b: Float[np.ndarray, " 4"]) -> Float[np.ndarray, " 4"]:
    return np.concatenate([np.minimum(a[:2], b[:2]), np.maximum(a[2:], b[2:])])


def _pixels(box: Float[np.ndarray, " 4"], height: int, width: int) -> tuple[int, int, int, int]:
    """Whole pixels of the image that a box touches."""
    x1, y1, x2, y2 = (int(side) for side in (*np.floor(box[:2]), *np.ceil(box[2:])))
    return max(x1, 0), max(y1, 0), min(x2, width), min(y2, height)
