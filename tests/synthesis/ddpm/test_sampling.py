"""Sampling, masks and matching of texture, grey levels and tone, against formulas and oracles."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from boxtwin.synthesis.arrays import object_mask
from boxtwin.synthesis.ddpm.model import Tone
from boxtwin.synthesis.ddpm.sampling import (
    match_grain,
    match_histogram,
    match_level,
    match_texture,
    noise_levels,
    sdedit,
    strength_map,
)


def test_object_mask_keeps_fractional_edges_and_clips() -> None:
    mask = object_mask(np.array([[1.5, 0.0, 3.0, 1.25], [-4.0, 3.0, 1.0, 9.0], [20.0, 20.0, 30.0, 30.0]]), 4, 5)
    expected = np.zeros((4, 5), dtype=np.float32)
    expected[0, 1:3] = 0.5, 1.0
    expected[1, 1:3] = 0.125, 0.25
    expected[3, 0] = 1
    np.testing.assert_allclose(mask, expected)
    assert object_mask(np.zeros((0, 4)), 4, 5).sum() == 0


def test_strength_rises_from_object_to_background() -> None:
    mask = torch.zeros(1, 1, 40, 40)
    mask[..., 18:22, 18:22] = 1
    row = strength_map(mask, 0.8, 0.5, 8)[0, 0, 20]
    assert torch.allclose(row[18:22], torch.tensor(0.5))
    assert torch.allclose(row[[0, 8, 31, 39]], torch.tensor(0.8))
    assert (row[22:31].diff() >= 0).all()


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_sdedit_with_the_exact_denoiser_of_gaussian_noise_keeps_its_spread(eta: float) -> None:
    # For data N(0, 1) the best guess of v is 0 (alpha eps and sigma x_0 are alike), so x must stay N(0, 1), but for
    # what steps of finite length lose.
    source = torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    made = sdedit(
        lambda x, _: torch.zeros_like(x),
        source,
        torch.full_like(source, 0.9),
        steps=200,
        eta=eta,
        generator=torch.Generator().manual_seed(1),
    )
    assert float(made.std()) == pytest.approx(float(source.std()), abs=0.03)


def test_sdedit_with_an_oracle_gives_the_oracles_image() -> None:
    generator = torch.Generator().manual_seed(0)
    source, target = torch.randn(2, 1, 1, 16, 16, generator=generator)
    strength = torch.full_like(source, 0.8)
    strength[..., :8] = 0  # these pixels are to be kept

    def predict_v(x: torch.Tensor, t: float) -> torch.Tensor:
        alpha, sigma = noise_levels(torch.tensor(t))
        return alpha * (x - alpha * target) / sigma - sigma * target

    made = sdedit(predict_v, source, strength, steps=5, eta=0.0, generator=generator)
    assert torch.allclose(made[..., 8:], target[..., 8:], atol=1e-4)
    assert torch.allclose(made[..., :8], source[..., :8], atol=1e-4)


def test_texture_matching_restores_strength_and_direction_of_the_grain() -> None:
    generator = torch.Generator().manual_seed(0)
    source = torch.randn(1, 1, 64, 64, generator=generator)
    source[..., 32:] *= 2
    source[..., 1::2, :] = source[..., ::2, :]  # coarser down than across
    x = 0.6 * torch.randn(1, 1, 64, 64, generator=generator)
    made = match_texture(x, source, 16, 1.0)

    def across_and_down(image: torch.Tensor) -> list[float]:
        halves = (image[..., :24], image[..., 40:])
        return [float(half.diff(dim=axis).std()) for half in halves for axis in (2, 3)]

    before, after, wanted = map(across_and_down, (x, made, source))
    assert max(abs(np.log(np.divide(before, wanted)))) > 0.8
    assert max(abs(np.log(np.divide(after, wanted)))) < 0.2
    assert torch.equal(match_texture(x, source, 16, 0.0), x)
    assert torch.isfinite(match_texture(torch.zeros_like(x), source, 16, 1.0)).all()


def test_histogram_matching_keeps_the_order_and_takes_the_distribution() -> None:
    generator = torch.Generator().manual_seed(0)
    x, source = torch.randn(1, 2, 20, 30, generator=generator), torch.rand(1, 2, 20, 30, generator=generator) ** 3
    made = match_histogram(x, source)
    for channel in range(2):
        assert torch.equal(made[0, channel].flatten().sort().values, source[0, channel].flatten().sort().values)
        assert torch.equal(made[0, channel].flatten().argsort(), x[0, channel].flatten().argsort())
    assert torch.equal(match_histogram(source, source), source)


def test_grain_and_level_are_those_of_the_ground_around() -> None:
    generator = torch.Generator().manual_seed(0)
    ground = torch.randn(1, 1, 96, 96, generator=generator) + torch.linspace(0, 3, 96)
    zone = torch.zeros_like(ground)
    zone[..., 30:60, 30:60] = 1
    x = ground * (1 - zone) + zone * (0.3 * torch.randn(1, 1, 96, 96, generator=generator) - 4)
    made = match_grain(match_level(x, zone, 1 - zone, 41), zone, ground, 1 - zone)
    inside = made[..., 30:60, 30:60]
    assert torch.equal(made[..., :30, :], x[..., :30, :])
    assert float(inside.mean()) == pytest.approx(float(ground[..., 30:60, 30:60].mean()), abs=0.2)
    assert float(inside.diff(dim=2).std()) == pytest.approx(float(ground.diff(dim=2).std()), rel=0.15)
    nothing = torch.zeros_like(zone)
    assert torch.equal(match_level(match_grain(x, zone, ground, nothing), zone, nothing, 41), x)
    assert torch.equal(match_level(match_grain(x, nothing, ground, zone), nothing, zone, 41), x)


@pytest.mark.parametrize("kind", ["log", "linear"])
def test_tone_goes_there_and_back_and_standardises(kind: Any) -> None:
    image = np.random.default_rng(0).gamma(1, 0.05, size=(1, 64, 64)).astype(np.float32)
    tone = Tone.measure(kind, [image])
    x = tone.encode(image)
    assert float(x.mean()) == pytest.approx(0, abs=1e-4)
    assert float(x.std()) == pytest.approx(1, abs=1e-3)
    np.testing.assert_allclose(tone.decode(x), image, atol=1e-5)
    black = Tone.measure(kind, [np.zeros((1, 4, 4), dtype=np.float32)])
    assert np.isfinite(black.encode(np.zeros((1, 4, 4), dtype=np.float32))).all()
