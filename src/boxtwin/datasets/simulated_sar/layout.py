"""Objects of a simulated SAR scene and their places: ships, coasts, harbours, rivers, small islands.

Positions are xy in continuous pixels as in `boxtwin.datasets.simulated_sar.physics`, headings in radians from x to y.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float

from boxtwin.datasets.simulated_sar.physics import Scatterers, join, smooth_normal

MIN_BOX = 3  # pixels: the least width and height of a labelled box
MIN_VISIBLE = 0.25  # share of a hull that a chip must show if it shows any of it
KINDS = ("cargo", "bulk", "tanker", "outline")


class Window(NamedTuple):
    """A chip's place in its scene: left, top and side, in pixels."""

    x: int
    y: int
    size: int


@dataclass(frozen=True)
class Ship:
    """A hull where it appears in the image; lengths in pixels, ``contrast`` its mean power over the sea in dB."""

    xy: tuple[float, float]
    heading: float
    length: float
    beam: float
    contrast: float
    kind: str

    def hull(self, margin: float = 0.0) -> Float[np.ndarray, "7 2"]:
        """Outline of the hull, convex, grown by about ``margin`` pixels on every side."""
        u = np.array([-0.5, -0.5, 0.28, 0.5, 0.5, 0.28, -0.42]) * (self.length + 2 * margin)
        v = np.array([-0.42, 0.42, 0.5, 0.12, -0.12, -0.5, -0.5]) * (self.beam + 2 * margin)
        return _turned(u, v, self.heading) + np.array(self.xy)


class ShipSizes(NamedTuple):
    """The range of ships, of log-normal length in pixels; ``slenderness`` is length over beam.

    By default lengths are those of HRSID's ships, and slenderness that of cargo ships and tankers.
    """

    median: float = 27.0
    spread: float = 0.75  # standard deviation of the logarithm
    least: float = 9.0
    most: float = 190.0
    slenderness: tuple[float, float] = (4.0, 7.5)


USUAL_SIZES = ShipSizes()


def _turned(u: Float[np.ndarray, " n"], v: Float[np.ndarray, " n"], heading: float) -> Float[np.ndarray, "n 2"]:
    c, s = np.cos(heading), np.sin(heading)
    return np.stack([c * u - s * v, s * u + c * v], axis=1)


def visible_box(hull: Float[np.ndarray, "n 2"], window: Window) -> tuple[tuple[int, int, int, int], float] | None:
    """The tight box of the part of ``hull`` inside ``window`` and that part's share of the hull; None when outside.

    The box is xyxy in whole pixels of the chip: every pixel that the hull touches is in it.
    """
    corner = np.array([window.x, window.y])
    outline = (hull - corner).astype(np.float32)
    frame = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float32) * window.size
    area, inside = cv2.intersectConvexConvex(outline, frame)
    if area <= 0 or inside is None:
        return None
    points = inside[:, 0]
    # A thousandth of a pixel absorbs the single precision of the intersection.
    x1, y1 = np.maximum(np.floor(points.min(axis=0) + 1e-3), 0).astype(int).tolist()
    x2, y2 = np.minimum(np.ceil(points.max(axis=0) - 1e-3), window.size).astype(int).tolist()
    return (x1, y1, x2, y2), float(area / cv2.contourArea(outline))


def well_cut(ship: Ship, windows: Sequence[Window]) -> bool:
    """Whether every chip shows either nothing of the hull, or enough of it to label."""
    seen = filter(None, (visible_box(ship.hull(), window) for window in windows))
    return all(share >= MIN_VISIBLE and min(x2 - x1, y2 - y1) >= MIN_BOX for (x1, y1, x2, y2), share in seen)


class Berths:
    """Places of ships: hulls are apart from each other, from land, and from chip borders that cut off slivers."""

    def __init__(self, land: Bool[np.ndarray, "h w"], windows: Sequence[Window]) -> None:
        self.taken = land.astype(np.uint8)
        self.windows = windows
        self.ships: list[Ship] = []

    def footprint(self, ship: Ship, margin: float = 0.0) -> tuple[np.ndarray, np.ndarray] | None:
        """The part of `taken` around a hull, to be changed in place, and the hull's mask; None beyond the scene."""
        hull = ship.hull(margin)
        x1, y1 = np.floor(hull.min(axis=0)).astype(int)
        x2, y2 = np.ceil(hull.max(axis=0)).astype(int) + 1
        if x1 < 0 or y1 < 0 or x2 > self.taken.shape[1] or y2 > self.taken.shape[0]:
            return None
        mask = np.zeros((y2 - y1, x2 - x1), np.uint8)
        cv2.fillConvexPoly(mask, np.round((hull - [x1, y1] - 0.5) * 16).astype(np.int32), 1, shift=4)
        return self.taken[y1:y2, x1:x2], mask.astype(bool)

    def place(self, ship: Ship, *, clearance: float) -> bool:
        """Place a ship if ``clearance`` pixels of water around are free, and return whether they were."""
        around, hull = self.footprint(ship, clearance), self.footprint(ship)
        if around is None or hull is None or not well_cut(ship, self.windows) or around[0][around[1]].any():
            return False
        hull[0][hull[1]] = 1
        self.ships.append(ship)
        return True


def draw_ship(
    rng: np.random.Generator, *, xy: tuple[float, float], heading: float, longest: float, sizes: ShipSizes = USUAL_SIZES
) -> Ship:
    """A ship of random size, type and brightness.

    Small ships are never among the faintest: a person could not label them.
    """
    length = sizes.median * np.exp(sizes.spread * rng.standard_normal())
    length = float(np.clip(length, sizes.least, max(min(sizes.most, longest), sizes.least)))
    beam = max(length / rng.uniform(*sizes.slenderness), 2.2)
    contrast = float(np.clip(rng.normal(21.5, 5.5), 7.5 + 45 / length, 32))
    kind = KINDS[int(rng.integers(len(KINDS)))] if length > 14 else "cargo"
    return Ship(xy, heading, length, beam, contrast, kind)


def ship_scatterers(rng: np.random.Generator, ship: Ship) -> Scatterers:
    """A hull as point scatterers: a rough deck, its brighter wall on the radar's side, and a few strong reflectors.

    These (superstructure near the stern, bow, cranes) are 4 to 16 dB over the deck; one ship in four has a corner
    reflector 6 to 14 dB above that, whose side lobes cross the chip. None is more than 48 dB over the sea: the longest
    side lobes of HRSID's ships fade within 100 px.
    """
    area = ship.length * ship.beam
    n = int(np.clip(0.8 * area, 8, 900))
    u = rng.uniform(-0.5, 0.5, n)
    half = 0.5 * np.clip((0.52 - u) / 0.24, 0.25, 1.0)
    v = rng.uniform(-1, 1, n)
    power = rng.standard_exponential(n)
    # Range grows with x: the wall whose outward normal points to smaller x faces the radar.
    power *= 1 + 1.5 * np.clip(np.sin(ship.heading) * v, 0, 1) ** 3
    if ship.kind == "bulk":
        hatches = max(round(ship.length / 7), 3)
        power *= np.where(np.cos(2 * np.pi * hatches * u) > 0, 1.7, 0.25)
    elif ship.kind == "tanker":
        power *= 0.4 + 1.6 * (np.abs(v) < 0.25) + 0.8 * (np.abs(v) > 0.8)
    elif ship.kind == "outline":
        power *= np.where((np.abs(v) > 0.75) | (np.abs(u) > 0.42), 1.8, 0.25)
    deck = 10 ** (ship.contrast / 10)
    amplitude = np.sqrt(deck * 0.6 * area / n * power / power.mean())
    strong = 1 + int(rng.integers(0, 4))
    su = rng.choice([-0.38, -0.33, 0.44, rng.uniform(-0.3, 0.3)], strong) + rng.normal(0, 0.02, strong)
    sv = rng.uniform(-0.35, 0.35, strong)
    gain = rng.uniform(4, 16, strong)
    if rng.random() < 1 / 4:
        gain[0] += rng.uniform(6, 14)
    bright = 10 ** (np.minimum(ship.contrast + gain, 48) / 20)
    uv = np.concatenate([u, su]) * ship.length, np.concatenate([v * half, np.clip(sv, -0.4, 0.4)]) * ship.beam
    xy = _turned(uv[0], uv[1], ship.heading) + np.array(ship.xy)
    return Scatterers(xy, np.concatenate([amplitude, bright]))


Vector = Float[np.ndarray, "2"]


class Shore(NamedTuple):
    """Land, and the quays on it: start xy, end xy and the unit vector pointing to the water."""

    land: Bool[np.ndarray, "h w"]
    quays: list[tuple[Vector, Vector, Vector]]


def _frame(
    shape: tuple[int, int], angle: float, origin: Vector | None = None
) -> tuple[Float[np.ndarray, "h w"], Float[np.ndarray, "h w"]]:
    """Coordinates along ``angle`` and across it; from the scene's centre by default."""
    origin = np.array([shape[1], shape[0]]) / 2 if origin is None else origin
    y, x = np.arange(shape[0])[:, None] + 0.5 - origin[1], np.arange(shape[1])[None, :] + 0.5 - origin[0]
    c, s = np.cos(angle), np.sin(angle)
    return c * x + s * y, -s * x + c * y


def coast(rng: np.random.Generator, shape: tuple[int, int]) -> Shore:
    """A natural coast with bays over a tenth to a third of the scene."""
    angle = rng.uniform(0, 2 * np.pi)
    line = _frame(shape, angle)[1] + rng.uniform(10, 30) * smooth_normal(rng, shape, 60.0)
    line += rng.uniform(2, 5) * smooth_normal(rng, shape, 9.0)
    return Shore(line > np.quantile(line, 1 - rng.uniform(0.1, 0.4)), [])


def river(rng: np.random.Generator, shape: tuple[int, int]) -> tuple[Shore, float]:
    """Two banks with water between them, and the direction of the stream."""
    angle = rng.uniform(0, 2 * np.pi)
    u, v = _frame(shape, angle)
    bend = rng.uniform(5, 25) * np.sin(2 * np.pi * u / rng.uniform(350, 700) + rng.uniform(0, 2 * np.pi))
    width = rng.uniform(0.4, 0.65) * min(shape)
    rough = rng.uniform(1.5, 4) * smooth_normal(rng, shape, 8.0)
    return Shore(np.abs(v - bend) + rough > width / 2, []), angle


def harbour(rng: np.random.Generator, shape: tuple[int, int]) -> Shore:
    """A straight waterfront with piers; every quay wall is listed."""
    angle = rng.uniform(0, 2 * np.pi)
    u, v = _frame(shape, angle)
    front = float(np.quantile(v, 1 - rng.uniform(0.1, 0.55)))
    land = v > front
    along, out = np.array([np.cos(angle), np.sin(angle)]), np.array([np.sin(angle), -np.cos(angle)])
    origin = np.array([shape[1], shape[0]]) / 2 - front * out

    def quay(u1: float, d1: float, u2: float, d2: float, normal: Vector) -> tuple[Vector, Vector, Vector]:
        return origin + u1 * along + d1 * out, origin + u2 * along + d2 * out, normal

    quays = []
    position, reach = float(u.min()), float(u.max())
    while position < reach:
        basin, width, depth = rng.uniform(50, 220), rng.uniform(8, 60), rng.uniform(45, 240)
        start, end = position + basin, position + basin + width
        land |= (u > start) & (u < end) & (v > front - depth)
        quays.append(quay(position, 0.0, start, 0.0, out))
        quays += [quay(start, 0.0, start, depth, -along), quay(end, 0.0, end, depth, along)]
        position = end
    return Shore(land, quays)


def industry(rng: np.random.Generator, shore: Shore, count: int) -> Scatterers:
    """Bright unlabelled structures on land: rows of roofs, containers and walls, and reflectors along quays."""
    parts: list[Scatterers] = []
    rows, columns = np.nonzero(shore.land)
    if not len(rows):
        return join(parts)
    height, width = shore.land.shape
    for start, end, _ in shore.quays:
        if rng.random() < 0.7:
            length = float(np.linalg.norm(end - start))
            n = int(length / rng.uniform(1.0, 4.0))
            if n:
                t = rng.random((n, 1))
                xy = start + t * (end - start) + rng.normal(0, 0.7, (n, 2))
                level = rng.uniform(12, 28)
                parts.append(Scatterers(xy, 10 ** ((level + rng.normal(0, 4, n)) / 20)))
    anchor = shore.quays[int(rng.integers(len(shore.quays)))] if shore.quays else None
    angle = float(np.arctan2(*(anchor[1] - anchor[0])[::-1])) if anchor is not None else rng.uniform(0, np.pi)
    for _ in range(count):
        place = int(rng.integers(len(rows)))
        centre = np.array([columns[place], rows[place]]) + 0.5
        turn = angle + (rng.normal(0, 0.04) if rng.random() < 0.7 else rng.uniform(0, np.pi))
        size_u, size_v = rng.uniform(20, 200), rng.uniform(10, 140)
        spacing, density = rng.uniform(4, 18), rng.uniform(0.4, 1.3)
        level, spread = rng.uniform(8, 25), rng.uniform(2, 6)
        for v in np.arange(-size_v / 2, size_v / 2, spacing):
            u = -size_u / 2
            while u < size_u / 2:
                length = min(rng.exponential(25) + 4, size_u / 2 - u)
                if rng.random() < 0.75:
                    thick = rng.uniform(0.5, 3.5)
                    n = max(2, int(density * length * max(1.0, 0.5 * thick)))
                    row_level = level + rng.normal(0, 4)
                    uu = u + rng.random(n) * length
                    vv = v + rng.uniform(-0.5, 0.5, n) * thick
                    xy = _turned(uu, vv, turn) + centre
                    parts.append(Scatterers(xy, 10 ** ((row_level + rng.normal(0, spread, n)) / 20)))
                u += length + rng.exponential(6)
    every = join(parts)
    x, y = (np.clip(every.xy[:, axis].astype(int), 0, limit - 1) for axis, limit in ((0, width), (1, height)))
    near = cv2.dilate(shore.land.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
    keep = np.flatnonzero(near[y, x])
    keep = rng.permutation(keep)[:60000]
    return Scatterers(every.xy[keep], every.amplitude[keep])


def islets(rng: np.random.Generator, shape: tuple[int, int], count: int) -> Bool[np.ndarray, "h w"]:
    """Rocks and small islands, 4 to 16 px across, of irregular outline: bright, and no ships."""
    rough = smooth_normal(rng, shape, 4.0)
    mask = np.zeros(shape, bool)
    for _ in range(count):
        origin = rng.uniform((0, 0), (shape[1], shape[0]))
        u, v = _frame(shape, rng.uniform(0, np.pi), origin)
        radius = rng.uniform(2, 8)
        mask |= np.hypot(u / rng.uniform(1, 1.8), v) + 0.3 * radius * rough < radius
    return mask


def moor(
    rng: np.random.Generator, berths: Berths, shore: Shore, *, occupancy: float, longest: float, sizes: ShipSizes
) -> None:
    """Fill quays with ships alongside, bow to stern, some rafted two or three abreast."""
    for start, end, normal in shore.quays:
        along = (end - start) / np.linalg.norm(end - start)
        position, length = rng.uniform(1, 10), float(np.linalg.norm(end - start))
        while position < length:
            ship = draw_ship(rng, xy=(0.0, 0.0), heading=0.0, longest=longest, sizes=sizes)
            if rng.random() > occupancy:
                position += rng.uniform(0.5, 1.5) * ship.length
                continue
            heading = float(np.arctan2(along[1], along[0]) + np.pi * rng.integers(2))
            distance = ship.beam / 2 + rng.uniform(1.6, 3.0)
            for _ in range(1 + rng.choice(3, p=[0.68, 0.22, 0.1])):
                x, y = (start + (position + ship.length / 2) * along + distance * normal).tolist()
                if not berths.place(replace(ship, xy=(x, y), heading=heading), clearance=0.6):
                    break
                distance += ship.beam + rng.uniform(1.2, 2.0)
            position += ship.length + rng.uniform(2, 12)


def scatter_ships(
    rng: np.random.Generator,
    berths: Berths,
    *,
    count: int,
    longest: float,
    stream: float | None,
    sizes: ShipSizes,
) -> None:
    """Place up to ``count`` ships on free water, along ``stream`` (radians, either way) or in any direction."""
    height, width = berths.taken.shape
    for _ in range(count):
        for _ in range(20):  # crowded water may have no room: then there are fewer ships
            heading = rng.uniform(0, 2 * np.pi)
            if stream is not None:
                heading = stream + np.pi * rng.integers(2) + rng.normal(0, 0.12)
            xy = (float(rng.uniform(0, width)), float(rng.uniform(0, height)))
            ship = draw_ship(rng, xy=xy, heading=float(heading), longest=longest, sizes=sizes)
            if berths.place(ship, clearance=3.0):
                break


def distractors(rng: np.random.Generator, berths: Berths, count: int) -> Scatterers:
    """Unlabelled bright targets on the water: buoys (one reflector) and platforms (a square cluster of them)."""
    height, width = berths.taken.shape
    parts: list[Scatterers] = []
    for _ in range(count):
        xy = rng.uniform((0, 0), (width, height))
        x, y = xy.astype(int)
        if berths.taken[max(y - 6, 0) : y + 7, max(x - 6, 0) : x + 7].any():
            continue
        if rng.random() < 0.6:
            parts.append(Scatterers(xy[None], np.array([10 ** (rng.uniform(14, 30) / 20)])))
        else:
            n = int(rng.integers(8, 20))
            spread = rng.uniform(1.5, 3.5)
            amplitude = 10 ** (rng.uniform(16, 26) / 20) * np.sqrt(rng.standard_exponential(n))
            parts.append(Scatterers(xy + rng.uniform(-spread, spread, (n, 2)), amplitude))
    return join(parts)


def buildings(rng: np.random.Generator, land: Bool[np.ndarray, "h w"], *, level: float) -> Scatterers:
    """Strong reflectors on land, denser where towns are, log-normal in power around 12 dB over the land's ``level``."""
    shape = (land.shape[0], land.shape[1])
    town = np.exp(1.2 * smooth_normal(rng, shape, 30.0))
    where = np.flatnonzero(land & (rng.random(shape) < town / 150))
    where = rng.permutation(where)[:20000]  # keeps the cost of a scene with much land within a second
    rows, columns = np.divmod(where, shape[1])
    xy = np.stack([columns, rows], axis=1) + rng.random((len(where), 2))
    return Scatterers(xy, np.sqrt(level) * 10 ** (rng.normal(10, 5, len(where)) / 20))
