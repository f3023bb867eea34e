"""Similarity of two images: in what they show (layout), and in their grain.

The *layout distance* compares small, smoothed versions of two images: 0 is the same scene, about 1 an unrelated one.

The *repeated grain* compares speckle, sensor noise and fine texture. Two pictures of one place share their layout but
not their grain; only a copy has the same grain again, wherever it was moved to and however its brightness was changed.
It is a phase correlation (Kuglin & Hines, "The Phase Correlation Image Alignment Method", IEEE Int. Conf. Cybernetics
and Society 1975) of the signs of the high-pass filtered pixels: both steps remove amplitude, so that a few bright ships
or a JPEG grid do not outweigh all pixels. Its peak is 1 for the same image, 0 but for noise for images with a grain of
their own, and in between about the share of the grain that is the other's. One transform compares an image with the sum
of many others, because the noise of the sum grows with the root of their number only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Complex64, Float, Float32, Int
from scipy.fft import irfft2, rfft2  # single precision stays single, several times faster than NumPy's

LAYOUT = 64  # pixels a side: 800 are averaged twelve by twelve, which leaves ships and takes away the speckle
GRAIN = 1.5  # pixels, deviation of the Gaussian that is taken off: what is left is finer than about 6 pixels
LARGEST = 1024  # pixels a side whose grain is compared: the middle of larger images
# A peak of so many standard deviations of its surroundings is no chance: among a million values of noise the largest is
# about 5, and on HRSID, 80 images against 100 others gave 5.3 at most, chips that share a quarter of their area 16.
SIGNIFICANT = 8.0
MOST_SUMS = 4
SAMPLED = 8192  # frequencies of an image: the share of grain is known to 0.008, and a match of 0.06 is no chance
ROUGH = 512  # of these frequencies, that all images are compared by: the share is known to 0.03
CANDIDATES = 128  # images that are compared by all of them; a share of 0.2 puts one of 3,000 images among these
SCALE = 100  # of phases that are kept in 8 bits
PEAKS = 4  # shifts at which a match is searched

Spectrum = Complex64[np.ndarray, "_rows _half"]


def layout(grey: Float32[np.ndarray, "h w"]) -> Float32[np.ndarray, " 4096"]:
    """An image in 64 x 64 pixels, less its mean, of length 1; all zero where it is flat."""
    small = cv2.resize(grey, (LAYOUT, LAYOUT), interpolation=cv2.INTER_AREA).ravel()
    small = small - small.mean()
    length = float(np.linalg.norm(small))
    # Below a hundredth of a grey level of 8 bits in each pixel there is nothing to see, only rounding.
    return small / np.float32(length) if length > 0.01 * LAYOUT else np.zeros_like(small)


def layout_distances(a: Float32[np.ndarray, "n 4096"], b: Float32[np.ndarray, "m 4096"]) -> Float32[np.ndarray, "n m"]:
    """One less the correlation of two layouts: 0 the same, 1 unrelated, 2 the negative. Two flat images are alike."""
    flat = np.logical_not(np.logical_or.outer(a.any(axis=1), b.any(axis=1)))
    return np.where(flat, np.float32(0), np.clip(1 - a @ b.T, 0, 2))


def nearest_layout(
    layouts: Float32[np.ndarray, "n 4096"], query: Float32[np.ndarray, " 4096"], *, leave_out: int | None = None
) -> tuple[int, float]:
    """Index and distance of the layout that is nearest; infinitely far where there is none."""
    distances = np.clip(1 - layouts @ query, 0, 2) if query.any() else layout_distances(query[None], layouts)[0]
    if leave_out is not None:
        distances[leave_out] = np.inf
    number = int(distances.argmin())
    return number, float(distances[number])


def _highest(values: Float32[np.ndarray, " n"], count: int) -> Int[np.ndarray, " _count"]:
    """Indices of the ``count`` highest values, or of all if there are fewer, in order."""
    return np.sort(np.argpartition(values, -min(count, len(values)))[-count:])


def common_shape(sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Rows and columns in which the grain of images of these sizes (height, width) can be compared."""
    rows, columns = (min(max(size[axis] for size in sizes), LARGEST) for axis in (0, 1))
    # Even, so that the last column of a half spectrum stands for one frequency.
    return 2 * cv2.getOptimalDFTSize(-(-rows // 2)), 2 * cv2.getOptimalDFTSize(-(-columns // 2))


def grain(grey: Float32[np.ndarray, "h w"], shape: tuple[int, int]) -> Spectrum:
    """The phases of an image's grain, as a half spectrum on ``shape``, of modulus 1; 0 where it has none."""
    rows, columns = min(grey.shape[0], shape[0]), min(grey.shape[1], shape[1])
    top, left = (grey.shape[0] - rows) // 2, (grey.shape[1] - columns) // 2
    seen = grey[top : top + rows, left : left + columns]
    signs = np.sign(seen - cv2.GaussianBlur(seen, (0, 0), GRAIN))
    canvas = np.zeros(shape, dtype=np.float32)
    canvas[:rows, :columns] = signs - signs.mean()
    transformed = rfft2(canvas)
    modulus = np.abs(transformed)
    # A flat image leaves rounding only, whose phases would be taken for grain.
    modulus[modulus < 1e-3 * math.sqrt(rows * columns)] = np.inf
    return transformed / modulus


def repeated(a: Spectrum, b: Spectrum) -> float:
    """The share of grain that two images have in common without a shift, from 0 to 1; `grain` gave both."""
    product = a.real * b.real + a.imag * b.imag
    # Every column of a half spectrum but the first and the last stands for two.
    whole = 2 * float(product.sum()) - float(product[:, 0].sum()) - float(product[:, -1].sum())
    return whole / (2 * (product.shape[1] - 1) * product.shape[0])


class Match(NamedTuple):
    """The image that has most of another image's grain, and the share that it has, from 0 to 1."""

    number: int
    share: float


class GrainIndex:
    """The grain of ``count`` images on a `common_shape`, to find one of which another image has part, at any shift.

    The work for one image is bounded, however alike the images are. Sums of their spectra say at which shifts there may
    be a match: as many images in one sum as let a match of 0.3 stand out (the noise of a sum of n on N pixels is the
    root of n / N; of 100 images with 800 x 800, a match of a tenth does), and `MOST_SUMS` sums at most. At these few
    shifts, and at none, a sample of the frequencies of each image says whose grain it is; a sixteenth of the sample
    chooses the `CANDIDATES` that are compared by all of it. Photos of one camera share the fixed pattern of its sensor:
    a peak of their sum without a shift says nothing, and the samples tell one from the others.
    """

    def __init__(self, count: int, shape: tuple[int, int]) -> None:
        self._shape = shape
        most = max(1, min(128, int(shape[0] * shape[1] * (0.3 / SIGNIFICANT) ** 2)))
        parts = min(MOST_SUMS, -(-count // most))
        self._size = -(-count // max(1, parts))
        self._sums = np.zeros((parts, shape[0], shape[1] // 2 + 1), dtype=np.complex64)
        frequencies = self._sums[0].size
        chosen = np.random.default_rng(0).choice(frequencies, min(SAMPLED, frequencies), replace=False)
        self._sampled = np.sort(chosen)
        # Phases to a hundredth: 16 kilobytes an image, and the error of a share is far below that of the sampling.
        self._samples = np.zeros((count, len(chosen), 2), dtype=np.int8)
        self._places = np.arange(len(chosen))[:: -(-len(chosen) // ROUGH)]
        self._rough = np.zeros((count, len(self._places)), dtype=np.complex64)

    def add(self, number: int, grain: Spectrum) -> None:
        """Add the grain of image ``number``."""
        self._sums[number // self._size] += grain
        sampled = grain.ravel()[self._sampled]
        self._samples[number] = np.rint(sampled.view(np.float32).reshape(-1, 2) * SCALE)
        self._rough[number] = sampled[self._places]

    def find(self, query: Spectrum, *, leave_out: tuple[int, Spectrum] | None = None) -> Match | None:
        """The image that has most of ``query``, all but ``leave_out`` (number, grain); None if that may be chance."""
        shifts = np.array([(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)] + self._peaks(query, leave_out))
        rows, columns = np.divmod(self._sampled, self._shape[1] // 2 + 1)
        turns = np.outer(shifts[:, 0] / self._shape[0], rows) + np.outer(shifts[:, 1] / self._shape[1], columns)
        moved = (query.ravel()[self._sampled] * np.exp(2j * math.pi * turns)).astype(np.complex64)
        # The real part of the product of one with the conjugate of the other, in real arithmetic.
        rough = np.ascontiguousarray(moved[:, self._places]).view(np.float32)
        likely = (self._rough.view(np.float32) @ rough.T).max(axis=1)
        if leave_out is not None:
            likely[leave_out[0]] = -np.inf
        chosen = _highest(likely, CANDIDATES)
        samples = self._samples[chosen].reshape(len(chosen), -1).astype(np.float32)
        shares = (samples @ moved.view(np.float32).T).max(axis=1) / (SCALE * len(self._sampled))
        if leave_out is not None:
            shares[chosen == leave_out[0]] = -np.inf
        place = int(shares.argmax())
        # The mean of K cosines of phases at random has a deviation of the root of 1 / 2K.
        significant = shares[place] > SIGNIFICANT / math.sqrt(2 * len(self._sampled))
        return Match(int(chosen[place]), float(shares[place])) if significant else None

    def _peaks(self, query: Spectrum, leave_out: tuple[int, Spectrum] | None) -> list[tuple[int, int]]:
        """The shifts, but none, at which a sum has more of ``query`` than chance gives: the few highest peaks."""
        products = query * self._sums.conj()
        if leave_out is not None:
            products[leave_out[0] // self._size] -= query * leave_out[1].conj()
        surfaces = irfft2(products, s=self._shape)
        surfaces[:, [0, 0, 0, 1, 1, 1, -1, -1, -1], [0, 1, -1] * 3] = 0  # compared in any case
        surfaces /= np.maximum(surfaces.std(axis=(1, 2), keepdims=True), np.float32(1e-12))
        heights = surfaces.max(axis=0).ravel()
        return [divmod(int(i), self._shape[1]) for i in _highest(heights, PEAKS) if heights[i] > SIGNIFICANT]


def nearer_than_chance(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " m"]) -> float:
    """Probability that the values of ``a`` are as small against ``b`` as they are, or smaller, by chance alone.

    One-sided test of Mann and Whitney ("On a Test of Whether One of Two Random Variables Is Stochastically Larger than
    the Other", Ann. Math. Statist. 1947), in its normal approximation, corrected for continuity and for ties. 1 where a
    side is empty or all values are equal.
    """
    from scipy.stats import mannwhitneyu  # slow to import, and most runs find their card

    if not len(a) or not len(b) or len(np.unique(np.concatenate((a, b)))) == 1:
        return 1.0
    return float(mannwhitneyu(a, b, alternative="less", method="asymptotic").pvalue)
