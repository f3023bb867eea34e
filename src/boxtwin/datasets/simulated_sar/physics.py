"""Image formation of a synthetic aperture radar: impulse response, K-distributed clutter, scatterers, wakes.

Arrays of a scene have azimuth along axis 0 (rows) and slant range along axis 1 (columns). Positions are xy in
continuous pixels: x along range, y along azimuth, the centre of the first pixel at (0.5, 0.5). Intensities are
relative to the mean of the open sea, which is 1. Double precision keeps rounding differences between machines out of
the 8 bits of the pictures.

Sources:
    K. Ward, R. Tough, S. Watts, "Sea Clutter: Scattering, the K Distribution and Radar Performance", 2nd ed., IET 2013.
    C. Oliver, S. Quegan, "Understanding Synthetic Aperture Radar Images", SciTech 2004.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Complex, Float
from scipy import fft

KELVIN_ANGLE = np.arcsin(1 / 3)  # half angle of the Kelvin wake, 19.5 degrees


class Scatterers(NamedTuple):
    """Point targets: positions xy in pixels, and the amplitude each would have alone (open sea: 1)."""

    xy: Float[np.ndarray, "n 2"]
    amplitude: Float[np.ndarray, " n"]


NONE = Scatterers(np.zeros((0, 2)), np.zeros(0))


def join(parts: Sequence[Scatterers]) -> Scatterers:
    """All scatterers of ``parts`` as one set; no parts give the empty set."""
    parts = [Scatterers(np.zeros((0, 2)), np.zeros(0)), *parts]
    return Scatterers(np.concatenate([p.xy for p in parts]), np.concatenate([p.amplitude for p in parts]))


@dataclass(frozen=True)
class Sensor:
    """The processor's passband and look averaging (Oliver & Quegan, ch. 2)."""

    # Processed band in cycles per pixel (azimuth, range): 1 is sampled at the Nyquist rate, smaller values are
    # oversampled, so that neighbouring speckle is correlated.
    bandwidth: tuple[float, float]
    taper: float  # generalised Hamming weight: 1 leaves the -13.3 dB side lobes of the sinc, 0.54 is the Hamming window
    looks: int

    def __post_init__(self) -> None:
        if not (all(0 < b <= 1 for b in self.bandwidth) and 0.5 <= self.taper <= 1 and self.looks >= 1):
            raise ValueError(f"bandwidth in (0, 1], taper in [0.5, 1] and looks of at least 1 are needed, got {self}")


def impulse_response(
    offset: Float[np.ndarray, "*shape"], bandwidth: float, taper: float
) -> Float[np.ndarray, "*shape"]:
    """Amplitude at ``offset`` pixels from a point target along one axis; 1 at the target.

    The spectrum is ``taper + (1 - taper) cos(2 pi f / bandwidth)`` within ``|f| < bandwidth / 2``; its transform is a
    sum of three sincs (Oliver & Quegan, ch. 2).
    """
    x = bandwidth * offset
    sine = np.sin(np.pi * x) / np.pi  # of all three, but for its sign

    def sinc(place: int) -> Float[np.ndarray, "*shape"]:
        distance = x - place
        return np.divide(sine, distance, out=np.full_like(x, (-1.0) ** place), where=distance != 0)

    return sinc(0) - (1 - taper) / (2 * taper) * (sinc(1) + sinc(-1))


def _passband(n: int, bandwidth: float, taper: float) -> Float[np.ndarray, " n"]:
    """Spectrum of the impulse response on the grid of the transform, with mean square 1: noise keeps its power."""
    frequency = fft.fftfreq(n)
    hamming = taper + (1 - taper) * np.cos(2 * np.pi * frequency / bandwidth)
    weight = np.where(np.abs(frequency) <= bandwidth / 2, hamming, 0.0)
    return weight / np.sqrt(np.mean(weight**2))


def speckle_field(
    rng: np.random.Generator, reflectivity: Float[np.ndarray, "h w"], sensor: Sensor, clutter: Scatterers = NONE
) -> Complex[np.ndarray, "h w"]:
    """One look at a rough surface: complex circular Gaussian scattering, seen through the impulse response.

    The mean intensity is ``reflectivity`` where that changes slowly over the resolution (Oliver & Quegan, ch. 4).
    """
    noise = rng.standard_normal((2, *reflectivity.shape))
    scattering = np.sqrt(reflectivity / 2) * (noise[0] + 1j * noise[1])
    sides = zip(reflectivity.shape, sensor.bandwidth, strict=True)
    rows, columns = (_passband(n, bandwidth, sensor.taper) for n, bandwidth in sides)
    if len(clutter.amplitude):
        # On the grid, before the filter: the cost is that of the surface alone, however many there are.
        x, y = (np.clip(clutter.xy[:, axis].astype(int), 0, reflectivity.shape[1 - axis] - 1) for axis in (0, 1))
        phase = np.exp(2j * np.pi * rng.random(len(clutter.amplitude)))
        np.add.at(scattering, (y, x), clutter.amplitude * phase / (rows.mean() * columns.mean()))
    return fft.ifft2(fft.fft2(scattering) * np.outer(rows, columns))


def scatterer_fields(
    rng: np.random.Generator, scatterers: Scatterers, shape: tuple[int, int], sensor: Sensor
) -> Iterator[Complex[np.ndarray, "h w"]]:
    """Looks at point targets: each spreads its impulse response over the whole scene, with a random phase in each look.

    The response is separable, hence the cross of side lobes along range and azimuth.
    """
    along_azimuth, along_range = (
        impulse_response(
            np.arange(shape[axis])[:, None] + 0.5 - scatterers.xy[:, 1 - axis], sensor.bandwidth[axis], sensor.taper
        )
        for axis in (0, 1)
    )
    for _ in range(sensor.looks):
        phased = scatterers.amplitude * np.exp(2j * np.pi * rng.random(len(scatterers.amplitude)))
        # In double precision: in single, the number of threads would change some grey levels of an image.
        real, imaginary = ((along_azimuth * part) @ along_range.T for part in (phased.real, phased.imag))
        yield real + 1j * imaginary


def multilook_intensity(
    rng: np.random.Generator,
    reflectivity: Float[np.ndarray, "h w"],
    scatterers: Scatterers,
    sensor: Sensor,
    clutter: Scatterers = NONE,
) -> Float[np.ndarray, "h w"]:
    """Mean intensity over independent looks at a surface with point targets on it (Oliver & Quegan, ch. 4)."""
    total = np.zeros(reflectivity.shape)
    shape = (reflectivity.shape[0], reflectivity.shape[1])
    for points in scatterer_fields(rng, scatterers, shape, sensor):
        field = speckle_field(rng, reflectivity, sensor, clutter) + points
        total += field.real**2 + field.imag**2
    return total / sensor.looks


def smooth_normal(rng: np.random.Generator, shape: tuple[int, int], correlation: float) -> Float[np.ndarray, "h w"]:
    """Gaussian field, mean 0 and variance 1, with autocorrelation ``exp(-(distance / correlation)^2)``, in pixels."""
    fy, fx = fft.fftfreq(shape[0])[:, None], fft.rfftfreq(shape[1])[None, :]
    amplitude = np.exp(-((np.pi * correlation) ** 2) * (fy**2 + fx**2) / 2)
    field = fft.irfft2(fft.rfft2(rng.standard_normal(shape)) * amplitude, s=shape)
    return (field - field.mean()) / field.std()


def gamma_texture(
    rng: np.random.Generator, shape: tuple[int, int], *, order: float, correlation: float
) -> Float[np.ndarray, "h w"]:
    """Correlated gamma field with mean 1 and variance ``1 / order``: the local power of the K distribution.

    The sample of rank r in a correlated Gaussian field gets the gamma variate of rank r (Ward, Tough & Watts, ch. 5).
    """
    ranked = np.argsort(smooth_normal(rng, shape, correlation), axis=None, kind="stable")
    texture = np.empty(shape[0] * shape[1])
    texture[ranked] = np.sort(rng.standard_gamma(order, texture.size)) / order
    return texture.reshape(shape)


def swell(
    rng: np.random.Generator, shape: tuple[int, int], *, wavelength: float, heading: float, spread: float, depth: float
) -> Float[np.ndarray, "h w"]:
    """Modulation of the sea's power by swell, mean about 1 (Ward, Tough & Watts, ch. 2).

    Narrow-band waves, log-normal with log deviation ``depth``; ``wavelength`` in pixels, ``heading`` in radians,
    ``spread`` the relative width of the wave spectrum.
    """
    fy, fx = fft.fftfreq(shape[0])[:, None], fft.fftfreq(shape[1])[None, :]
    f0 = 1 / wavelength
    distance = (fx - f0 * np.cos(heading)) ** 2 + (fy - f0 * np.sin(heading)) ** 2
    amplitude = np.exp(-distance / (2 * (spread * f0) ** 2))
    waves = fft.ifft2(fft.fft2(rng.standard_normal(shape)) * amplitude).real
    return np.exp(depth * waves / waves.std() - depth**2 / 2)


def wake(
    shape: tuple[int, int],
    *,
    start: Float[np.ndarray, "2"],
    heading: float,
    beam: float,
    reach: float,
    darkness: float,
    arms: float,
    arm_angle: float,
) -> Float[np.ndarray, "h w"]:
    """Factor on the sea's power behind a ship whose stern was at ``start``: dark turbulent wake, bright arms.

    The wake decays over ``reach`` pixels; ``darkness`` in [0, 1) is the loss on its axis, ``arms`` the gain on arms at
    ``arm_angle`` radians to either side.
    """
    y, x = np.arange(shape[0])[:, None] + 0.5 - start[1], np.arange(shape[1])[None, :] + 0.5 - start[0]
    along = -(x * np.cos(heading) + y * np.sin(heading))
    behind, across = np.maximum(along, 0), np.abs(y * np.cos(heading) - x * np.sin(heading))
    strength = np.where(along > 0, np.exp(-behind / reach), 0.0)
    # A turbulent wake widens slowly, roughly with the fifth root of distance; a line is close enough over one reach.
    core = np.exp(-((across / (0.5 * beam + 0.8 + 0.02 * behind)) ** 4))
    arm = np.exp(-(((across - behind * np.tan(arm_angle)) / (1.0 + 0.04 * behind)) ** 2))
    return (1 - darkness * strength * core) * (1 + arms * strength * arm)


def azimuth_ghosts(
    rng: np.random.Generator, scatterers: Scatterers, *, shift: float, level: float, smear: float
) -> Scatterers:
    """Azimuth ambiguities: copies ``shift`` pixels before and behind each target, ``level`` times its amplitude.

    Aliases from outside the Doppler band, defocused by ``smear`` pixels in azimuth (Oliver & Quegan, ch. 3).
    """
    pieces = 3  # a defocused response as a few independent points: enough to break up the main lobe
    copies = []
    for side in (-shift, shift):
        xy = np.repeat(scatterers.xy, pieces, axis=0)
        xy[:, 1] += side + smear * rng.standard_normal(len(xy))
        copies.append(Scatterers(xy, np.repeat(scatterers.amplitude, pieces) * level / np.sqrt(pieces)))
    return join(copies)


def land_reflectivity(
    rng: np.random.Generator, land: Bool[np.ndarray, "h w"], *, level: float
) -> Float[np.ndarray, "h w"]:
    """Power of land relative to the sea: towns of blocks and dark streets, smoother country between; 0 off land.

    Both have a gamma texture, of low order where built up (Oliver & Quegan, ch. 5).
    """
    shape = (land.shape[0], land.shape[1])
    angle = rng.uniform(0, np.pi)
    y, x = np.arange(shape[0])[:, None], np.arange(shape[1])[None, :]
    extent = shape[0] + shape[1]  # keeps block coordinates positive whatever the angle
    u = (np.cos(angle) * x + np.sin(angle) * y + extent) / rng.uniform(12, 30)
    v = (-np.sin(angle) * x + np.cos(angle) * y + extent) / rng.uniform(8, 20)
    block = (u.astype(int) * 7919 + v.astype(int) * 104729) % 1009  # primes: neighbouring blocks get unrelated levels
    decibels = rng.normal(0, 3.0, 1009)[block]
    decibels[(u % 1 < 0.1) | (v % 1 < 0.12)] = -10  # streets
    town = smooth_normal(rng, shape, 50.0) > rng.uniform(-1.0, 0.8)
    country = 3.5 * smooth_normal(rng, shape, 24.0) + 2.5 * smooth_normal(rng, shape, 3.0) - 4
    built = gamma_texture(rng, shape, order=rng.uniform(0.25, 1.2), correlation=rng.uniform(1.0, 2.0))
    grown = gamma_texture(rng, shape, order=rng.uniform(2, 6), correlation=rng.uniform(1.2, 3.0))
    power = np.where(town, 10 ** (decibels / 10) * built, 10 ** (country / 10) * grown)
    return np.where(land, level * power, 0.0)
