"""SDEdit: noise an image part of the way, then denoise it with a network; and matching of texture and levels.

Notation of the papers: ``x_t = alpha_t x_0 + sigma_t eps`` with ``alpha_t = cos(pi t / 2)``,
``sigma_t = sin(pi t / 2)`` and ``v_t = alpha_t eps - sigma_t x_0`` (Salimans & Ho 2022, "Progressive Distillation",
section 4 and appendix D). Time runs from 0, the clean image, to 1, pure noise, where no signal is left at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from boxtwin.synthesis.constants import RHO

Image = Float[Tensor, "batch channels height width"]
Map = Float[Tensor, "batch 1 height width"]
PredictV = Callable[[Image, float], Image]  # from a noisy image and its time


def strength_map(mask: Map, background: float, objects: float, margin: int) -> Map:
    """Strength of every pixel: ``objects`` in the boxes, rising to ``background`` over ``margin`` pixels around them.

    A change map as of Levin & Fried 2023, "Differential Diffusion". The rise keeps side lobes and wakes attached.
    """
    near = mask
    if margin > 0:
        # A box grown by half the margin, then blurred over the other half: 1 on the object, 0 a margin away.
        half = max(margin // 2, 1)
        near = F.max_pool2d(near, (2 * half + 1, 1), stride=1, padding=(half, 0))
        near = F.max_pool2d(near, (1, 2 * half + 1), stride=1, padding=(0, half))
        near = torch.maximum(mask, _box_filter(near, 2 * half + 1))
    return background + (objects - background) * near


def _box_filter(image: Image, width: int) -> Image:
    """Mean over ``width`` x ``width`` pixels (odd); axis by axis for speed."""
    return _mean(_mean(image, width, 1), 1, width)


def _mean(image: Image, height: int, width: int) -> Image:
    """Mean over ``height`` x ``width`` pixels (odd), at borders over those that exist."""
    padding = height // 2, width // 2
    return F.avg_pool2d(image, (height, width), stride=1, padding=padding, count_include_pad=False)


def noise_levels(t: Tensor) -> tuple[Tensor, Tensor]:
    """``alpha_t`` and ``sigma_t`` of times in [0, 1], same shape as ``t``."""
    return torch.cos(t * (math.pi / 2)), torch.sin(t * (math.pi / 2))


def sdedit(
    predict_v: PredictV, source: Image, strength: Map, *, steps: int, eta: float, generator: torch.Generator
) -> Image:
    """Noise ``source`` to the greatest ``strength`` and denoise it, every pixel from its own strength on.

    SDEdit (Meng et al. 2022, algorithm 1) with the DDIM sampler (Song et al. 2021, equation 12: ``eta`` 0 is
    deterministic, 1 ancestral), and the change map of Levin & Fried 2023 (algorithm 1) for strengths that differ
    between pixels. Pixels of strength 0 stay as they are. ``generator`` is on the CPU: a seed is one noise everywhere.
    """
    start = float(strength.max())
    if start == 0:
        return source
    eps_source = torch.randn(source.shape, generator=generator).to(source)
    # From the start down to 0; `RHO` > 1 crowds the times near 0, where fine texture is decided.
    times = [start * ((steps - i) / steps) ** RHO for i in range(steps + 1)]
    alpha, sigma = noise_levels(torch.tensor(times, dtype=torch.float64))
    x = float(alpha[0]) * source + float(sigma[0]) * eps_source
    for i in range(steps):
        a, s, a_next, s_next = (float(v) for v in (alpha[i], sigma[i], alpha[i + 1], sigma[i + 1]))
        # 1. Split the noisy image into what the network takes for image and for noise.
        v = predict_v(x, times[i])
        x_0 = a * x - s * v
        eps = s * x + a * v
        # 2. Step to the next level; eta decides how much of its noise is fresh.
        fresh = eta * (s_next / s) * math.sqrt(1 - (a / a_next) ** 2)
        x = a_next * x_0 + math.sqrt(s_next**2 - fresh**2) * eps
        if fresh > 0:
            x = x + fresh * torch.randn(source.shape, generator=generator).to(source)
        # 3. Pixels of less strength are put back to the source at this level, down to the level nearest to their own.
        weaker = strength <= (times[i] + times[i + 1]) / 2
        x = torch.where(weaker, a_next * source + s_next * eps_source, x)
    return x


def match_texture(x: Image, source: Image, window: int, share: float) -> Image:
    """Give the fine texture of ``x`` the local strength and grain direction that it has in ``source``.

    Few denoising steps with a small network average speckle away. As Heeger & Bergen 1995 ("Pyramid-based texture
    analysis and synthesis") do for whole images, every band of detail is scaled to the energy of the source's, here
    in windows of ``window`` pixels, by a ``share`` (0 to 1): across, down and diagonal, at two scales. Patterns stay.
    """
    if share == 0:
        return x
    *bands, low = _bands(x)
    *wanted, _ = _bands(source)
    matched = low
    for band, model in zip(bands, wanted, strict=True):
        gain = torch.sqrt(_local_power(model, window) / _local_power(band, window))
        # Gains beyond 4 would blow up quantisation steps of nearly flat areas instead of texture.
        gain = 1 + share * (gain.clamp(max=4.0) - 1)
        matched = matched + band * F.interpolate(gain, size=x.shape[2:], mode="bilinear", align_corners=False)
    return matched


def match_histogram(x: Image, source: Image) -> Image:
    """Give the values of ``x``, channel by channel, the distribution of those of ``source``; their order stays.

    Denoising averages the dark tail of speckle away, in which nearly black pixels lie between brighter ones. Heeger &
    Bergen 1995 match histograms along with the energies of their bands.
    """
    flat = x.flatten(2)
    wanted = source.flatten(2).sort(dim=2).values
    ranks = flat.sort(dim=2, stable=True).indices
    return torch.empty_like(flat).scatter_(2, ranks, wanted).reshape(x.shape)


def match_level(x: Image, zone: Map, ground: Map, width: int) -> Image:
    """Give ``x`` in ``zone`` (0 to 1) the level that it has around there where ``ground`` is 1.

    From pure noise a network draws ground as it mostly is. Levels are means over ``width`` pixels (odd), or over all.
    """
    if float(ground.sum()) < 1 or float(zone.sum()) < 1:
        return x

    def level(weights: Map) -> Image:
        everywhere = (x * weights).sum(dim=(2, 3), keepdim=True) / weights.sum()
        # The mean of everywhere counts as a few pixels: too little to be seen where there are others.
        few = 4.0 / width**2
        return (_box_filter(x * weights, width) + few * everywhere) / (_box_filter(weights, width) + few)

    return x + zone * (level(ground) - level(zone))


def match_grain(
    x: Image,
    zone: Map,
    model: Float[Tensor, "_batch channels _height _width"],
    reference: Float[Tensor, "_batch 1 _height _width"],
) -> Image:
    """Give the fine texture of ``x`` in ``zone`` (0 to 1) the strength that ``model`` has where ``reference`` is 1.

    As `match_texture`, where there is no source to compare with pixel by pixel: one gain for each band of the zone.
    """
    if float(reference.sum()) < 1 or float(zone.sum()) < 1:
        return x
    *bands, _ = _bands(x)
    *wanted, _ = _bands(model)
    matched = x
    for band, pattern in zip(bands, wanted, strict=True):
        has = (zone * band**2).sum() / (zone.sum() * band.shape[1])
        should = (reference * pattern**2).sum() / (reference.sum() * pattern.shape[1])
        gain = torch.sqrt((should + 1e-8) / (has + 1e-8)).clamp(max=4.0)
        matched = matched + zone * (gain - 1) * band
    return matched


def _bands(image: Image) -> list[Image]:
    """Detail across, down and diagonal at 3 and at 7 pixels, then the rest; they add up to ``image``."""
    bands, rest = [], image
    for width in (3, 7):
        flat_across, flat_down = _mean(rest, 1, width), _mean(rest, width, 1)
        flat = _mean(flat_across, width, 1)
        bands += [flat_across - flat, flat_down - flat, rest - flat_across - flat_down + flat]
        rest = flat
    return [*bands, rest]


def _local_power(band: Image, window: int) -> Float[Tensor, "batch channels rows columns"]:
    """Mean square in windows that overlap by half, on a coarse grid of them; never 0."""
    kernel = min(window, band.shape[2]), min(window, band.shape[3])
    padding = kernel[0] // 4, kernel[1] // 4
    power = F.avg_pool2d(band**2, kernel, stride=max(window // 2, 1), padding=padding, count_include_pad=False)
    return power + 1e-8  # images that are flat to the last bit
