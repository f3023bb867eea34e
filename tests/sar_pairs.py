"""Pairs of simulated SAR scenes of which it is known what became of every ship: the truth for label evidence."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, NamedTuple

import numpy as np

from boxtwin.datasets.image_io import Pixels
from boxtwin.datasets.simulated_sar.layout import (
    Berths,
    Ship,
    Window,
    buildings,
    distractors,
    draw_ship,
    ship_scatterers,
    visible_box,
)
from boxtwin.datasets.simulated_sar.physics import Scatterers, join, land_reflectivity, multilook_intensity
from boxtwin.datasets.simulated_sar.scenes import MARGIN, _draw_sensor, _lay_out, _sea, quantise

WHOLE = 0.99  # share of a hull that a moved ship shows before and after: the border must not change its box
Fate = Literal["there", "lost", "moved", "added"]


class Truth(NamedTuple):
    """One ship: where it is in the source and in the variation (None: not at all), and what became of it."""

    before: tuple[int, int, int, int] | None
    after: tuple[int, int, int, int] | None
    fate: Fate


class Pair(NamedTuple):
    """A source and a variation of it: the same sea, land and ships in new speckle, but for what ``truths`` tell."""

    source: Pixels
    variation: Pixels
    truths: list[Truth]

    @property
    def boxes(self) -> np.ndarray:
        """The source's, as a generator that keeps objects in place would hand them over."""
        known = [truth.before for truth in self.truths if truth.before is not None]
        return np.array(known, dtype=np.float32).reshape(-1, 4)


def simulate_pair(
    rng: np.random.Generator,
    *,
    size: int = 256,
    lost: float = 0.2,
    moved: float = 0.2,
    added: int = 0,
    shifts: tuple[int, int] = (4, 12),
) -> Pair:
    """Simulate one chip twice. Each ship is lost or moved with the given probabilities.

    Args:
        added: ships that the variation has and the source has not.
        shifts: least and largest distance that a moved ship goes, in pixels.
    """
    window = Window(MARGIN, MARGIN, size)
    shape = (size + 2 * MARGIN, size + 2 * MARGIN)
    berths, shore, sheltered = _lay_out(rng, [window], shape, size)
    reflectivity = _sea(rng, shape, [], sheltered)  # wakes would tell where a ship was
    land_level = 10 ** (rng.uniform(7, 14) / 10)
    if shore.land.any():
        reflectivity = np.where(shore.land, land_reflectivity(rng, shore.land, level=land_level), reflectivity)
    still = [buildings(rng, shore.land, level=land_level)]
    if rng.random() < 0.45:
        still.append(distractors(rng, berths, int(rng.integers(1, 9))))

    before: list[Scatterers] = []
    after: list[Scatterers] = []
    truths: list[Truth] = []
    for ship in list(berths.ships):
        seen, targets = visible_box(ship.hull(), window), ship_scatterers(rng, ship)
        before.append(targets)
        if seen is None:
            after.append(targets)
            continue
        draw = rng.random()
        if draw < lost:
            truths.append(Truth(seen[0], None, "lost"))
        elif draw < lost + moved and seen[1] > WHOLE and (place := _new_place(rng, berths, ship, shifts)):
            there, by = place
            after.append(Scatterers(targets.xy + by, targets.amplitude))
            truths.append(Truth(seen[0], there, "moved"))
        else:
            after.append(targets)
            truths.append(Truth(seen[0], seen[0], "there"))
    for _ in range(added):
        for _ in range(50):
            xy = (float(rng.uniform(0, shape[1])), float(rng.uniform(0, shape[0])))
            ship = draw_ship(rng, xy=xy, heading=float(rng.uniform(0, 2 * np.pi)), longest=0.4 * size)
            if berths.place(ship, clearance=3.0) and (seen := visible_box(ship.hull(), window)):
                after.append(ship_scatterers(rng, ship))
                truths.append(Truth(None, seen[0], "added"))
                break
    sensor = _draw_sensor(rng)
    sea_level = float(np.clip(15 * np.exp(0.45 * rng.standard_normal()), 5, 40))
    pictures = [
        quantise(multilook_intensity(rng, reflectivity, join([*still, *ships]), sensor), sea_level=sea_level)
        for ships in (before, after)
    ]
    source, variation = (
        np.ascontiguousarray(picture[MARGIN : MARGIN + size, MARGIN : MARGIN + size]) for picture in pictures
    )
    return Pair(source, variation, truths)


def _new_place(
    rng: np.random.Generator, berths: Berths, ship: Ship, shifts: tuple[int, int]
) -> tuple[tuple[int, int, int, int], np.ndarray] | None:
    """The box of the ship somewhere near, on free water, and the way there; None where there is no room."""
    for _ in range(30):
        angle, distance = rng.uniform(0, 2 * np.pi), rng.uniform(*shifts)
        by = np.rint([distance * np.cos(angle), distance * np.sin(angle)])
        there = replace(ship, xy=(ship.xy[0] + by[0], ship.xy[1] + by[1]))
        shown = visible_box(there.hull(), berths.windows[0])
        if shown is None or shown[1] < WHOLE:
            continue
        others = Berths(berths.taken.astype(bool), berths.windows)
        own = others.footprint(ship)
        if own is not None:
            around, mask = own
            around[mask] = 0
        if others.place(there, clearance=1.0):
            berths.taken = np.maximum(berths.taken, others.taken)
            return shown[0], by
    return None
