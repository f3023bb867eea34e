"""Grey levels, speckle and fine detail: do variations look like what the sensor takes?

Each measure describes one image and compares two sets of such descriptions. `reference_of_halves` says what the
comparison gives for two sets of real images.

Sources:
    C. Oliver, S. Quegan, "Understanding Synthetic Aperture Radar Images", SciTech 2004: speckle and looks, ch. 4.
    S. Anfinsen, A. Doulgeris, T. Eltoft, "Estimation of the Equivalent Number of Looks in Polarimetric Synthetic
    Aperture Radar Imagery", IEEE TGRS 2009: many small windows, whose middle value stands for the image.
    P. Welch, "The Use of Fast Fourier Transform for the Estimation of Power Spectra", IEEE Trans. AU 1967.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import cv2
import numpy as np
from jaxtyping import Float, Float32, Int
from scipy.fft import rfft2

from boxtwin.datasets.image_io import Pixels, as_grey
from boxtwin.datasets.options import Speckle

PATCH = 32  # pixels: a window for speckle; over a thousand samples, and seldom a change of the sea within it
BLOCKS = 4  # along a side of a patch; blocks of 8 pixels are longer than speckle is correlated
CALM_SHARE = 0.25  # of an image's patches: the calmest
# Above this deviation of its blocks' means (in means), a patch holds more than speckle. Single-look sea of HRSID, whose
# neighbouring pixels are correlated, has 0.15 to 0.25.
CALM_LIMIT = 0.35
NEAR_OBJECT = 16  # pixels around a box in which side lobes and wakes may lie
CUT_OFF = 0.1  # share of black pixels above which rounding has swallowed the speckle

TILE = 64  # pixels: of the spectrum
RINGS = 32  # of a spectrum, between frequency 0 and half a cycle per pixel
# The top octave: from a quarter of a cycle per pixel to a half, the highest that pixels can hold.
TOP_OCTAVE = slice(RINGS // 2 - 1, RINGS)

HALVINGS = 40
CONFIDENCE = 0.95

# Underscores: sets of images may differ in channels and depth.
GreyLevels = Int[np.ndarray, "_channels _levels"]
Value = TypeVar("Value")


def as_float_grey(pixels: Pixels) -> Float32[np.ndarray, "h w"]:
    """The mean of the channels, in units of 8 bits whatever the depth (0 to 255)."""
    scale = np.float32(255 / np.iinfo(pixels.dtype).max)
    values = as_grey(pixels).astype(np.float32) * scale
    return values if values.ndim == 2 else values.mean(axis=2, dtype=np.float32)


def grey_levels(pixels: Pixels) -> GreyLevels:
    """How many pixels have which value: 256 or 65,536 counts for each channel."""
    channels = np.atleast_3d(as_grey(pixels)).transpose(2, 0, 1)
    levels = int(np.iinfo(pixels.dtype).max) + 1
    return np.stack([np.bincount(channel.ravel(), minlength=levels) for channel in channels]).astype(np.int32)


def pooled(sets: Sequence[GreyLevels]) -> GreyLevels:
    """The counts of several images together, in as many bits and channels as any of them has.

    Value v of 8 bits is 257 v of 16, so that the full-scale value stays the same; grey counts in all three channels.
    """
    channels, levels = max(len(counts) for counts in sets), max(counts.shape[1] for counts in sets)
    total = np.zeros((channels, levels), dtype=np.int64)
    for counts in sets:
        total[:, :: (levels - 1) // (counts.shape[1] - 1)] += counts
    return total


def wasserstein(a: GreyLevels, b: GreyLevels) -> float:
    """1-Wasserstein distance of two grey-level distributions, in standard deviations of the second; mean over channels.

    How far a pixel's value has to move on average (Peyré & Cuturi, "Computational Optimal Transport", 2019, section
    2.6). nan where ``b`` has one value only and ``a`` differs.
    """
    from scipy.stats import wasserstein_distance  # slow to import, and most runs find their card

    distances = []
    for counts, reference in zip(pooled([a, np.zeros_like(b)]), pooled([b, np.zeros_like(a)]), strict=True):
        values = np.arange(len(counts))
        distance = float(wasserstein_distance(values, values, counts, reference))
        shares = reference / reference.sum()
        deviation = math.sqrt(float(shares @ (values - shares @ values) ** 2))
        distances.append(distance / deviation if deviation else 0.0 if distance == 0 else math.nan)
    return float(np.mean(distances))


def equivalent_looks(pixels: Pixels, boxes: Float[np.ndarray, "n 4"], speckle: Speckle) -> float:
    """The equivalent number of looks of an image's calm sea: squared mean over variance of the received power.

    Speckle of L independent looks makes power gamma-distributed with exactly this ratio L (Oliver & Quegan, ch. 4):
    smoothing raises it. It is measured where nothing but speckle varies: in patches of 32 x 32 pixels away from
    ``boxes`` (xyxy, pixels), neither saturated nor black, the calmest quarter by the deviation of their blocks' means;
    the median counts. Sea that has a texture of its own counts as rougher.

    Amplitudes are squared first; had they been taken for power, one look would read as 3.7. Where a picture was
    stretched or clipped on its way to 8 bits, the number is no longer that of the sensor's looks, but still comparable
    between images that went the same way.

    nan: there is no calm patch, or the pixels are in colour, which no radar of one channel gives.
    """
    shown = as_grey(pixels)
    if shown.ndim == 3:
        return math.nan
    free = shown < np.iinfo(shown.dtype).max
    for x1, y1, x2, y2 in boxes.tolist():
        top, left = max(math.floor(y1) - NEAR_OBJECT, 0), max(math.floor(x1) - NEAR_OBJECT, 0)
        free[top : max(math.ceil(y2) + NEAR_OBJECT, 0), left : max(math.ceil(x2) + NEAR_OBJECT, 0)] = False
    values = shown.astype(np.float32)
    power = _tiled(values**2 if speckle is Speckle.amplitude else values, PATCH)
    open_sea = _tiled(free, PATCH).all(axis=(1, 2)) & ((_tiled(shown, PATCH) == 0).mean(axis=(1, 2)) <= CUT_OFF)
    power = power[open_sea]
    power = power[power.var(axis=(1, 2)) > 0]
    mean, variance = power.mean(axis=(1, 2)), power.var(axis=(1, 2))
    side = PATCH // BLOCKS
    blocks = power.reshape(-1, BLOCKS, side, BLOCKS, side).mean(axis=(2, 4)).reshape(-1, BLOCKS**2)
    roughness = blocks.std(axis=1) / mean
    if not (roughness <= CALM_LIMIT).any():
        return math.nan
    calm = roughness <= min(CALM_LIMIT, float(np.quantile(roughness, CALM_SHARE)))
    return float(np.median(mean[calm] ** 2 / variance[calm]))


def spectrum(grey: Float32[np.ndarray, "h w"]) -> Float[np.ndarray, " rings"]:
    """Logarithm of an image's power in 32 rings of frequencies, up to half a cycle per pixel.

    Tiles of 64 x 64 pixels under a Hann window (Welch). The logarithms are averaged, so that the few tiles with ships
    or land, a thousand times as strong, do not outweigh the others. A power of 1/12 in every pixel, as rounding to 8
    bits leaves, is added so that a flat tile has a logarithm.
    """
    height, width = grey.shape
    if min(height, width) < TILE:
        grey = cv2.copyMakeBorder(grey, 0, max(TILE - height, 0), 0, max(TILE - width, 0), cv2.BORDER_REFLECT)
    tiles = _tiled(grey, TILE)
    weighted = (tiles - tiles.mean(axis=(1, 2), keepdims=True)) * _WINDOW
    transformed = rfft2(weighted)
    power = (transformed.real**2 + transformed.imag**2).reshape(len(tiles), -1) / (_WINDOW**2).sum()
    return np.log(power @ _RING_MEANS + 1 / 12).mean(axis=0)


def fine_energy(log_power: Float[np.ndarray, " rings"]) -> float:
    """Logarithm of the power in a spectrum's top octave: what smoothing takes away first."""
    return float(log_power[TOP_OCTAVE].mean())


def log_ratio(a: Sequence[float], b: Sequence[float]) -> float:
    """Difference of two sets' mean logarithms. Images without one (nan) are left out; nan where none is left."""
    first, second = (np.array(values)[~np.isnan(values)] for values in (a, b))
    return float(first.mean() - second.mean()) if len(first) and len(second) else math.nan


def reference_of_halves(
    values: Sequence[Value], groups: Sequence[str], compare: Callable[[list[Value], list[Value]], float]
) -> float:
    """What a comparison gives for the values of two sets of real images: at most this, 19 times of 20.

    The images are halved at random 40 times; images of one scene (``groups``) stay together, so that the halves are as
    unlike as other scenes of the same sensor are. nan: there are fewer than four scenes.
    """
    members: dict[str, list[Value]] = {}
    for index, (value, group) in enumerate(zip(values, groups, strict=True)):
        members.setdefault(group or f"image {index}", []).append(value)
    scenes = list(members.values())
    if len(scenes) < 4:
        return math.nan
    rng = np.random.default_rng(0)
    differences = []
    for _ in range(HALVINGS):
        halves = np.split(rng.permutation(len(scenes)), [len(scenes) // 2])
        first, second = ([value for scene in half for value in scenes[scene]] for half in halves)
        differences.append(abs(compare(first, second)))
    defined = [value for value in differences if not math.isnan(value)]
    return float(np.quantile(defined, CONFIDENCE)) if defined else math.nan


def _tiled(values: Any, side: int) -> Any:
    """(h, w) as (tiles, side, side); incomplete tiles at the right and at the bottom are left out."""
    rows, columns = values.shape[0] // side, values.shape[1] // side
    cut = values[: rows * side, : columns * side].reshape(rows, side, columns, side)
    return cut.swapaxes(1, 2).reshape(-1, side, side)


def _ring_means() -> Float32[np.ndarray, "frequencies rings"]:
    """Weights for the mean over each ring of a half spectrum; columns but the first and last stand for two each."""
    radius = np.hypot(np.fft.fftfreq(TILE)[:, None], np.fft.rfftfreq(TILE)[None])[:, :, None]
    twice = np.full((1, TILE // 2 + 1, 1), 2.0)
    twice[:, [0, -1]] = 1
    # A ring reaches half a step to either side of its frequency, (ring + 1) / 64 cycles per pixel.
    flat = ((np.abs(radius * TILE - np.arange(1, RINGS + 1)) <= 0.5) * twice).reshape(-1, RINGS)
    return (flat / flat.sum(axis=0)).astype(np.float32)


_WINDOW = np.outer(np.hanning(TILE), np.hanning(TILE)).astype(np.float32)
_RING_MEANS = _ring_means()
