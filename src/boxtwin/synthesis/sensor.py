"""What can be read off radar images: the look of their sensor, for simulated images to have it, and their objects.

What an image shows (land, number of ships) must not enter: ten images without land would make land vanish. So only the
calm areas are compared: the darkest quarter of an image's tiles, of which the middle one counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from boxtwin.datasets.image_io import Pixels
from boxtwin.datasets.sample import Sample
from boxtwin.datasets.simulated_sar.layout import ShipSizes
from boxtwin.datasets.simulated_sar.scenes import Fit
from boxtwin.errors import InputError
from boxtwin.synthesis.arrays import Plane, Planes, lies_inside, padded_to, planes_of
from boxtwin.synthesis.silhouettes import SQUARE, Silhouette, silhouettes_of

TILE = 32  # pixels
FIT_VERSION = 1  # raised whenever `fit_to` gives other values for the same images; see `is_enlarged`
LEAST_OBJECTS = 5  # from which sizes can be told
SMEAR = 2.0  # pixels by which an image makes a hull broader
LEAST_LENGTH = 24  # pixels: from which the breadth of a hull can be told
KNEE = 6.0  # median deviations above the sea: hardly any speckle is brighter
DARKEST = 0.25  # share of an image's tiles that are calm: a half would hold land in an image of a harbour
SHARES = np.linspace(0.02, 0.98, 49)  # of a tile's pixels, of which `CalmStatistics` has the values
MOST_GAIN = 2.0  # of a frequency: more would make rings around ships

Tiles = Float[np.ndarray, "tiles values"]


class CalmStatistics(NamedTuple):
    """Of the middle tile of an image's calm areas: values at `SHARES`, and power by frequency (in rings, sum 1)."""

    values: Float[np.ndarray, " shares"]  # shares of full scale
    power: Float[np.ndarray, " rings"]


def ground(values: Planes) -> tuple[float, float]:
    """Level and spread of what lies between objects: the median tile of the darker half, and its median deviation.

    Over a whole image the deviation would be that of land from sea, where there is land.
    """
    tiles = _tiles(values)
    levels = np.median(tiles, axis=1)
    spreads = np.median(np.abs(tiles - levels[:, None]), axis=1)
    dark = levels <= np.median(levels)
    return float(np.median(levels[dark])), max(float(np.median(spreads[dark])), 1e-3)


def up_to(full_scale: float, values: Planes, knee: float) -> Planes:
    """Stretch what is above ``knee`` until the brightest is ``full_scale``; nothing is made darker."""
    top = float(values.max())
    if not knee < top < full_scale:
        return values
    return np.where(values > knee, knee + (values - knee) * ((full_scale - knee) / (top - knee)), values)


def longer_sides(training: Sequence[Sample]) -> list[float]:
    """The longer side of each box, pixels of the image files."""
    return [float(max(x2 - x1, y2 - y1)) for sample in training for x1, y1, x2, y2 in sample.object_boxes]


def fit_to(training: Sequence[Sample], side: int) -> Fit:
    """Level, looks and saturation, sizes and numbers of ships in training images, as a detector sees them (`seen`).

    Looks are the squared mean over the variance of power in calm tiles. Sizes are those of `silhouettes_of`, the
    simulator's own where there are hardly any objects.
    """
    levels, looks, counts, area, brightest = [], [], [], 0, 0
    hulls: list[Silhouette] = []
    for place, sample in enumerate(training):
        grey = seen(sample, side)
        values = dithered(grey, np.random.default_rng(place))
        power = _calm(values) ** 2
        mean, variance = power.mean(axis=1), np.maximum(power.var(axis=1), 1e-12)
        levels.append(round(255 * float(np.sqrt(np.median(mean))), 2))
        looks.append(round(float(np.median(mean**2 / variance)), 2))
        brightest, area = max(brightest, int(grey.max())), area + grey.size
        scaled = sample.object_boxes * np.float32(grey.shape[1] / sample.width)
        counts.append(len(scaled))
        whole = [box for box in scaled if lies_inside(box, grey.shape, 1)]  # borders cut off the others
        tone = np.log1p(values / max(float(values.mean()), 1e-6))
        hulls += silhouettes_of(tone, np.array(whole, dtype=np.float32).reshape(-1, 4))
    mean_count = max(float(np.mean(counts)), 0.1)
    clustering = (float(np.var(counts)) - mean_count) / mean_count**2
    return Fit(
        sea_levels=tuple(levels),
        looks=tuple(looks),
        brightest=brightest,
        ships=_sizes(hulls),
        density=round(sum(counts) * 1e6 / area, 3),
        clustering=round(min(max(clustering, 0.1), 2.0), 3),
    )


def _sizes(hulls: Sequence[Silhouette]) -> ShipSizes:
    usual, lengths = ShipSizes(), np.array([hull.length for hull in hulls])
    if len(lengths) < LEAST_OBJECTS:
        return usual
    clear = [hull for hull in hulls if hull.length >= LEAST_LENGTH and hull.breadth < SQUARE * hull.length]
    slender = [hull.length / max(hull.breadth - SMEAR, 1) for hull in clear]
    low, high = np.quantile(slender, [0.15, 0.85]) if len(slender) >= LEAST_OBJECTS else usual.slenderness
    return ShipSizes(
        median=round(float(np.median(lengths)), 2),
        spread=round(min(max(float(np.log(lengths).std()), 0.1), 1.0), 2),
        least=round(max(0.8 * float(lengths.min()), 5.0), 2),
        most=round(1.25 * float(lengths.max()), 2),
        slenderness=(round(float(low), 2), round(float(high), 2)),
    )


def seen(sample: Sample, side: int) -> Pixels:
    """A training image in grey, in the size in which a detector sees it whose input is ``side`` pixels wide.

    Raises:
        InputError: it has more than 8 bits, which simulated images do not have.
    """
    if sample.bits > 8:
        raise InputError(f"{sample.name} has {sample.bits} bits a pixel; simulated images are like images of 8 bits")
    pixels = sample.read()
    grey = pixels if pixels.ndim == 2 else np.rint(pixels.mean(axis=2)).astype(np.uint8)
    scale = side / max(grey.shape)
    least = TILE if scale < 1 else 1
    height, width = (max(round(size * scale), least) for size in grey.shape)
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR  # as `boxtwin.mixing.letterbox` does
    return np.asarray(cv2.resize(grey, (width, height), interpolation=method))


def is_enlarged(training: Sequence[Sample], side: int) -> bool:
    """Whether the detector sees an image enlarged, for versions: before, such images were taken as they are."""
    return any(max(sample.width, sample.height) < side for sample in training)


def calm_statistics(values: Plane) -> CalmStatistics:
    """The statistics of an image, whose values are shares of full scale."""
    dark = _calm(values)
    # Tile by tile, so that neither a change of the sea between tiles nor a ship in one of them counts.
    quantiles = np.median(np.quantile(dark, SHARES, axis=1), axis=1)
    waves = (dark - dark.mean(axis=1, keepdims=True)).reshape(-1, TILE, TILE) * np.outer(*[np.hanning(TILE)] * 2)
    power = np.abs(np.fft.rfft2(waves)) ** 2
    power = np.median(power / np.maximum(power.sum(axis=(1, 2), keepdims=True), 1e-12), axis=0)
    ring = np.rint(_frequencies(TILE, TILE) * TILE).astype(int)
    rings = np.array([power[ring == number].mean() for number in range(1, TILE // 2 + 1)])
    return CalmStatistics(quantiles, rings / max(float(rings.sum()), 1e-12))


def level_of(statistics: CalmStatistics) -> float:
    """The level of the calm areas in decibels, full scale being 0."""
    return 20 * float(np.log10(max(float(statistics.values.mean()), 1e-3)))


def matched(
    pixels: UInt8[np.ndarray, "h w"], wanted: CalmStatistics, rng: np.random.Generator
) -> UInt8[np.ndarray, "h w"]:
    """A simulated image whose calm areas get the histogram and the radial power spectrum of ``wanted``.

    What is brighter than the calm areas keeps its ratio to them, so that land and ships keep their contrast.
    """
    values = dithered(pixels, rng)
    # 1. One filter for the calm part of all values, as another sensor's resolution would be: it would draw rings around
    # the excess of ships and buildings. What is wider than a tile stays.
    before = calm_statistics(values)
    gain = np.sqrt(wanted.power / np.maximum(before.power, 1e-12)).clip(1 / MOST_GAIN, MOST_GAIN)
    calm = np.minimum(values, before.values[-1])
    padded = np.pad(calm, TILE, mode="symmetric")  # the two sides of an image are no neighbours
    factors = np.interp(_frequencies(*padded.shape) * TILE, np.arange(len(gain) + 1), [1.0, *gain])
    filtered = np.fft.irfft2(np.fft.rfft2(padded) * factors, s=padded.shape)[TILE:-TILE, TILE:-TILE]
    values = np.maximum(filtered, 0) + values - calm
    # 2. One curve for all values: that of the calm areas, and beyond them a straight line through 0.
    now = calm_statistics(values).values
    ratio = wanted.values[-1] / max(float(now[-1]), 1e-6)
    curve = np.interp(values, [0.0, *now], [0.0, *wanted.values])
    values = np.where(values > now[-1], values * ratio, curve)
    if pixels.max() == np.iinfo(pixels.dtype).max:  # brighter than it can show
        level, spread = ground(values[None])
        values = up_to(1.0, values[None], level + KNEE * spread)[0]
    return np.rint(values.clip(0, 1) * 255).astype(np.uint8)


def dithered(pixels: Pixels, rng: np.random.Generator) -> Plane:
    """Shares of full scale without the steps of rounding, which would leave gaps in a changed histogram."""
    values = planes_of(pixels, 1)[0].astype(np.float64)
    return np.maximum(values + rng.uniform(-0.5, 0.5, values.shape) / np.iinfo(pixels.dtype).max, 0)


def _frequencies(height: int, width: int) -> Float[np.ndarray, "{height} _half"]:
    """Cycles per pixel of each place in the half spectrum of an image."""
    return np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])


def _calm(values: Plane) -> Tiles:
    tiles = _tiles(padded_to(values[None], TILE))
    levels = np.median(tiles, axis=1)
    return tiles[levels <= np.quantile(levels, DARKEST)]


def _tiles(values: Planes) -> Tiles:
    channels, height, width = values.shape
    tile = min(TILE, height, width)
    rows, columns = height // tile, width // tile
    tiles = values[:, : rows * tile, : columns * tile].reshape(channels, rows, tile, columns, tile)
    return tiles.transpose(1, 3, 0, 2, 4).reshape(rows * columns, -1)
