"""The embedded data set: simulated SAR sea scenes with ships, cut into chips, with exact boxes, in COCO form.

Each scene is one simulated acquisition larger than a chip. Sensor, sea state, brightness and layout are drawn per
scene; chips are crops of it that overlap by a quarter, as those of HRSID do, and are named after it:
``S0001_<x0>_<y0>.png`` (x0, y0: the crop's corner in the scene, pixels). HRSID: S. Wei et al., "HRSID: A
High-Resolution SAR Images Dataset for Ship Detection and Instance Segmentation", IEEE Access 2020.

Labels are the hulls of ships: the tight axis-aligned box, in whole pixels, of the part of a hull inside the chip,
without side lobes, wakes and ghosts. A chip shows either nothing of a hull or at least a quarter of it, and no box is
less than 3 px wide or high. ``area`` is that of the box. Buoys, platforms, rocks, buildings and azimuth ghosts of ships
are not labelled. Ship sizes are the same, in pixels, at every image size, and at most 0.4 of the image.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import joblib
import numpy as np
from jaxtyping import Float, UInt8
from scipy import fft, ndimage
from tqdm import tqdm

from boxtwin.datasets.coco import coco_content
from boxtwin.datasets.image_io import write_png
from boxtwin.datasets.simulated_sar import layout, physics
from boxtwin.datasets.simulated_sar.layout import Berths, Ship, ShipSizes, Shore, Window
from boxtwin.datasets.simulated_sar.physics import Scatterers, Sensor
from boxtwin.errors import InputError
from boxtwin.files import atomic_path, lock_beside, write_bytes_atomically

SIMULATION = 2  # raised whenever the same parameters give other pixels or boxes
MIN_IMAGE_SIZE = 64  # smaller chips cannot hold the ships
PARALLEL_FROM = 40  # scenes
MOST_LOOKS, SMOOTH = 8, 200.0  # greatest number of looks, and order of a texture that is not seen, of a fitted sea
MARGIN = 16  # pixels simulated around a scene: side lobes and texture wrap around there, not in the chips
# Shares of scenes. HRSID has 18 % inshore images; more here, since few images must show every kind.
LAYOUTS = {"open": 0.4, "coast": 0.2, "harbour": 0.28, "river": 0.12}


@dataclass(frozen=True)
class Fit:
    """What was read off real images (`boxtwin.synthesis.sensor.fit_to`), in place of the simulator's wide ranges."""

    sea_levels: tuple[float, ...]  # grey levels of the mean power of the open sea, one for each image
    looks: tuple[float, ...]  # equivalent number of looks, one for each image
    brightest: int  # grey level at which the sensor saturates
    ships: ShipSizes
    density: float  # ships a million pixels of open water
    clustering: float  # variance beyond that of independent ships, as a share of the squared mean


class Chip(NamedTuple):
    """One crop of a scene: its corner in the scene, its pixels, and boxes xyxy in pixels of the crop."""

    x: int
    y: int
    pixels: UInt8[np.ndarray, "size size"]
    boxes: list[tuple[int, int, int, int]]


def build(root: Path, *, images: int, image_size: int, chips_per_scene: int, seed: int, fit: Fit | None = None) -> Path:
    """Make the data set in ``root`` (``images/*.png``, ``annotations.json``) and return ``root``.

    The same parameters give the same bytes. A finished build with the same parameters is left as it is. The folder
    appears whole or not at all; of two processes that build at once, one waits for the other.

    ``images`` is the number of chips, ``image_size`` their side in pixels; the last scene may have fewer chips.
    `InputError` if a parameter is out of range, or ``root`` holds something else than this build.
    """
    chosen = {"images": images, "image_size": image_size, "chips_per_scene": chips_per_scene, "seed": seed}
    for name, least in {"images": 1, "image_size": MIN_IMAGE_SIZE, "chips_per_scene": 1, "seed": 0}.items():
        if chosen[name] < least:
            raise InputError(f"sar_scenes: {name} must be at least {least}, got {chosen[name]}")
    parameters: dict[str, Any] = {"simulation": SIMULATION, **chosen}
    if fit is not None:
        parameters["fit"] = json.loads(json.dumps(asdict(fit)))  # as it is read back
    with lock_beside(root, "is building"):
        if _is_finished(root, parameters):
            return root
        with atomic_path(root) as partial:
            _write(partial, parameters, fit)
    return root


def _is_finished(root: Path, parameters: dict[str, Any]) -> bool:
    """Whether ``root`` holds this build; False when there is nothing, an error when there is something else."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    cure = f"Remove {root} to build it anew, or give another folder."
    try:
        content = json.loads((root / "annotations.json").read_text(encoding="utf-8"))
        built = content["info"]["parameters"]
        names = [image["file_name"] for image in content["images"]]
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise InputError(f"{root} is not a finished build of sar_scenes: {problem!r}. {cure}") from problem
    if built != parameters:
        raise InputError(f"{root} was built with {built}, but {parameters} is asked for. {cure}")
    missing = [name for name in names if not (root / "images" / name).is_file()]
    if missing:
        raise InputError(f"{root} lacks {len(missing)} of its {len(names)} images, first {missing[0]}. {cure}")
    return True


def _write(folder: Path, parameters: dict[str, Any], fit: Fit | None) -> None:
    images: list[dict[str, Any]] = []
    annotations: list[tuple[int, int, list[float], float, bool]] = []
    per_scene = parameters["chips_per_scene"]
    scenes = -(-parameters["images"] // per_scene)
    size = parameters["image_size"]
    counts = [min(per_scene, parameters["images"] - scene * per_scene) for scene in range(scenes)]
    # Processes, because the parts that numpy computes are too short for threads; few scenes are not worth their start.
    workers = joblib.Parallel(n_jobs=-1 if scenes >= PARALLEL_FROM else 1, return_as="generator")
    simulated = workers(
        joblib.delayed(_scene)(parameters["seed"], scene, count, size, fit) for scene, count in enumerate(counts)
    )
    for scene, chips in enumerate(tqdm(simulated, total=scenes, desc="simulating SAR scenes", unit="scene")):
        for chip in chips:
            image_id = len(images) + 1
            name = f"S{scene + 1:04d}_{chip.x}_{chip.y}.png"
            write_png(folder / "images" / name, chip.pixels)
            images.append({"id": image_id, "file_name": name, "width": size, "height": size})
            for x1, y1, x2, y2 in chip.boxes:
                annotations.append((image_id, 1, [x1, y1, x2 - x1, y2 - y1], (x2 - x1) * (y2 - y1), False))
    info = {"description": "Simulated SAR sea scenes with ships", "parameters": parameters}
    content = {"info": info, **coco_content(images, annotations, [(1, "ship")])}
    write_bytes_atomically(folder / "annotations.json", json.dumps(content).encode())


def _scene(seed: int, scene: int, chips: int, size: int, fit: Fit | None) -> list[Chip]:
    rng = np.random.default_rng(np.random.SeedSequence([seed, scene]))
    return simulate_scene(rng, chips=chips, size=size, fit=fit)


def simulate_scene(rng: np.random.Generator, *, chips: int, size: int, fit: Fit | None = None) -> list[Chip]:
    """Simulate one acquisition and cut ``chips`` crops of ``size`` pixels from it.

    Lays out land, ships and other targets, computes the reflectivity of sea and land and the image that the sensor
    forms, and quantises its amplitude to 8 bit.
    """
    image = 0 if fit is None else int(rng.integers(len(fit.sea_levels)))  # of which level and looks are
    looks, order = (None, None) if fit is None else _looks_and_order(fit.looks[image])
    windows, shape = _windows(chips, size)
    berths, shore, sheltered = _lay_out(rng, windows, shape, size, fit)
    land_level = 10 ** (rng.uniform(4, 15) / 10)
    reflectivity = _sea(rng, shape, berths.ships, sheltered, order)
    rocks = np.zeros(shape, bool)
    if rng.random() < 0.3:
        rocks = layout.islets(rng, shape, int(rng.integers(1, 6)))
        for ship in berths.ships:  # none within about 5 px of a ship's box
            hull = ship.hull(5.0)
            (x1, y1), (x2, y2) = np.maximum(hull.min(axis=0), 0).astype(int), hull.max(axis=0).astype(int) + 1
            rocks[y1:y2, x1:x2] = False
    ground = shore.land | rocks
    land = physics.land_reflectivity(rng, ground, level=land_level) if ground.any() else np.zeros(shape)
    targets = [layout.ship_scatterers(rng, ship) for ship in berths.ships]
    clutter = [layout.buildings(rng, shore.land, level=land_level)]
    if rng.random() < 0.8:
        clutter.append(layout.industry(rng, shore, int(rng.integers(0, 18))))
    if rng.random() < 0.45:
        targets.append(layout.distractors(rng, berths, int(rng.integers(1, 9))))
    scatterers = physics.join(targets)
    if rng.random() < 0.3:
        shift, level = rng.uniform(60, 160), 10 ** (-rng.uniform(18, 26) / 20)
        ghosts = physics.azimuth_ghosts(rng, scatterers, shift=shift, level=level, smear=rng.uniform(0.5, 3))
        visible = ghosts.amplitude > 1  # above the sea; the others would cost time
        scatterers = physics.join([scatterers, Scatterers(ghosts.xy[visible], ghosts.amplitude[visible])])
        for side in (-1, 1):
            reflectivity += level**2 * ndimage.shift(land, (side * round(shift), 0), order=0)
    reflectivity = np.where(ground, land, reflectivity)
    sensor = _draw_sensor(rng)
    sensor = replace(sensor, looks=looks or sensor.looks)
    intensity = physics.multilook_intensity(rng, reflectivity, scatterers, sensor, physics.join(clutter))
    usual, spread = (15.0, 0.45) if fit is None else (fit.sea_levels[image], 0.1)
    sea_level = usual * np.exp(spread * rng.standard_normal())
    picture = quantise(intensity, sea_level=float(np.clip(sea_level, 5, 40) if fit is None else sea_level))
    if fit is not None:
        picture = np.minimum(picture, np.uint8(fit.brightest))
    inland = [float(shore.land[w.y : w.y + size, w.x : w.x + size].mean()) for w in windows]
    chosen = np.sort(np.argsort(inland, kind="stable")[:chips])  # crops with most land are left out first, as in HRSID
    # Azimuth lies along the columns of half the scenes: ascending and descending passes, other map projections.
    is_transposed = rng.random() < 0.5
    cut = []
    for window in (windows[i] for i in chosen):
        x, y, _ = window
        pixels = picture[y : y + size, x : x + size]
        boxes = [seen[0] for ship in berths.ships if (seen := layout.visible_box(ship.hull(), window)) is not None]
        chip = Chip(x - MARGIN, y - MARGIN, pixels, boxes)
        if is_transposed:
            turned = [(y1, x1, y2, x2) for x1, y1, x2, y2 in boxes]
            chip = Chip(chip.y, chip.x, np.ascontiguousarray(pixels.T), turned)
        cut.append(chip)
    return cut


def _windows(chips: int, size: int) -> tuple[list[Window], tuple[int, int]]:
    """Where chips can lie: a grid of at least ``chips`` that overlap by a quarter, and the scene's shape."""
    columns = int(np.ceil(np.sqrt(chips)))
    rows = -(-chips // columns)
    stride = size - size // 4
    windows = [Window(MARGIN + stride * x, MARGIN + stride * y, size) for y in range(rows) for x in range(columns)]
    # The sides of a scene have small prime factors, so that its Fourier transforms are fast.
    height, width = (fft.next_fast_len(stride * (count - 1) + size + 2 * MARGIN) for count in (rows, columns))
    return windows, (height, width)


def _lay_out(
    rng: np.random.Generator, windows: list[Window], shape: tuple[int, int], size: int, fit: Fit | None = None
) -> tuple[Berths, Shore, bool]:
    """Land and ships of one scene, and whether its water is sheltered."""
    kind = str(rng.choice(list(LAYOUTS), p=list(LAYOUTS.values())))
    longest = 0.45 * size
    stream = None
    # Ships per chip: a gamma mixture of Poisson counts gives the long tail and the empty sea of real counts.
    density, sizes, more = rng.gamma(3.0, 0.9), ShipSizes(), 1.0
    if fit is not None:
        sizes, more = fit.ships, fit.density * size**2 / 1e6 / 2.7  # 2.7 on average otherwise
        density = rng.gamma(1 / fit.clustering, 2.7 * fit.clustering)
    shore = Shore(np.zeros(shape, bool), [])
    if kind == "coast":
        shore = layout.coast(rng, shape)
    elif kind == "harbour":
        shore = layout.harbour(rng, shape)
        density *= 0.5
    elif kind == "river":
        shore, stream = layout.river(rng, shape)
        density = rng.uniform(2, 7)
    berths = Berths(shore.land, windows)
    if kind == "harbour":
        layout.moor(rng, berths, shore, occupancy=rng.uniform(0.15, 0.55), longest=longest, sizes=sizes)
    area = shape[0] * shape[1] / size**2
    count = int(rng.poisson(density * more * area))
    layout.scatter_ships(rng, berths, count=count, longest=longest, stream=stream, sizes=sizes)
    return berths, shore, kind in ("harbour", "river")


def _sea(
    rng: np.random.Generator, shape: tuple[int, int], ships: list[Ship], sheltered: bool, order: float | None = None
) -> Float[np.ndarray, "h w"]:
    """Mean power of the sea around 1: gamma texture, swell, slicks, and the wakes of ships under way.

    The order of the texture is drawn if None is given.
    """
    drawn = float(np.exp(rng.uniform(np.log(2.5), np.log(40))))  # spiky to nearly Rayleigh sea
    sea = physics.gamma_texture(rng, shape, order=order or drawn, correlation=rng.uniform(1, 4))
    if sheltered:
        return sea * 10 ** (-rng.uniform(0, 4) / 10)
    if rng.random() < 0.5:
        wavelength, heading = rng.uniform(8, 40), rng.uniform(0, np.pi)
        spread, depth = rng.uniform(0.15, 0.4), rng.uniform(0.1, 0.5)
        sea *= physics.swell(rng, shape, wavelength=wavelength, heading=heading, spread=spread, depth=depth)
    if rng.random() < 0.2:  # slicks and low wind: dark patches with soft borders
        patches = physics.smooth_normal(rng, shape, rng.uniform(30, 90))
        sea *= 1 - rng.uniform(0.4, 0.8) / (1 + np.exp(-8 * (patches - rng.uniform(0.2, 1.0))))
    # Pixels of displacement in azimuth per m/s of range velocity: range over platform speed (50 to 110 s, from airborne
    # to orbit) over a pixel of 3 to 6 m.
    displacement = rng.uniform(50, 110) / rng.uniform(3, 6)
    for ship in ships:
        if rng.random() < 0.35:
            sea *= _ship_wake(rng, shape, ship, displacement)
    return sea


def _ship_wake(
    rng: np.random.Generator, shape: tuple[int, int], ship: Ship, displacement: float
) -> Float[np.ndarray, "h w"]:
    """The wake of one ship. It stays where the ship is, while the ship's image is displaced in azimuth by its Doppler.

    Ships with a wake are slow in range (under 1.5 m/s), so that the wake stays in the scene.
    """
    range_velocity = rng.uniform(0, 1.5) * np.cos(ship.heading)
    ahead = np.array([np.cos(ship.heading), np.sin(ship.heading)])
    stern = np.array(ship.xy) - 0.5 * ship.length * ahead + np.array([0.0, displacement * range_velocity])
    return physics.wake(
        shape,
        start=stern,
        heading=ship.heading,
        beam=ship.beam,
        reach=rng.uniform(1.5, 6) * ship.length,
        darkness=rng.uniform(0.5, 0.9),
        arms=rng.uniform(0.5, 4) * (rng.random() < 0.6),
        # Narrow-V wakes lie within the Kelvin angle.
        arm_angle=rng.choice([physics.KELVIN_ANGLE, rng.uniform(0.04, 0.15)]),
    )


def _looks_and_order(equivalent: float) -> tuple[int, float]:
    """A whole number of looks, and the order of the sea's texture that lowers it to an equivalent number of looks.

    The squared variation of a product of independent factors: ``1 + 1/E = (1 + 1/looks) (1 + 1/order)``.
    """
    looks = int(np.clip(np.ceil(equivalent), 1, MOST_LOOKS))
    return looks, 1 / max((1 + 1 / equivalent) / (1 + 1 / looks) - 1, 1 / SMOOTH)


def _draw_sensor(rng: np.random.Generator) -> Sensor:
    """Mostly single-look and critically sampled, as HRSID's chips are; some oversampled, some multi-look."""
    coarse = rng.random() < 0.15
    bandwidth = rng.uniform(0.4, 0.6, 2) if coarse else rng.uniform(0.7, 0.95, 2)
    return Sensor(
        bandwidth=(float(bandwidth[0]), float(bandwidth[1])),
        taper=float(rng.uniform(0.75, 1.0)),
        looks=int(rng.choice([1, 2, 3, 4], p=[0.6, 0.22, 0.1, 0.08])),
    )


def quantise(intensity: Float[np.ndarray, "h w"], *, sea_level: float) -> UInt8[np.ndarray, "h w"]:
    """Amplitude as 8-bit grey, linear and clipped, as in HRSID; power 1, the open sea, becomes ``sea_level``."""
    return np.clip(np.rint(sea_level * np.sqrt(intensity)), 0, 255).astype(np.uint8)
