"""The curve over numbers of variations against the closed formula, and on studies with a known best."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from simulated_study import Simulated, simulate, study_of
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel

from boxtwin.studies import dose_response
from boxtwin.studies.comparison import ResampledMetrics
from boxtwin.studies.dose_response import (
    MeasuredGains,
    fit,
    has_enough_counts,
    lines,
    measured_gains,
    places,
    posterior,
)
from boxtwin.studies.report.sections import dose_response_section
from boxtwin.studies.report.words import sentence


def bump(variations: int) -> float:
    """A gain that is greatest, 5 points, at 7 variations."""
    return 0.05 * math.sin(min(math.log1p(variations) / math.log1p(7), 2) * math.pi / 2)


def conditions(counts: tuple[int, ...] = (1, 2, 5, 10, 20), gain: Callable[[int], float] = bump) -> list[Simulated]:
    with_variations = [("s2", count, "pixel_ddpm", 40.0, 0.6 + gain(count)) for count in counts]
    return [("s2", 0, "none", 40.0, 0.6), *with_variations]


def example(figure: str = "map_50", noise: float = 1e-4) -> MeasuredGains:
    together = np.full((3, 3), noise / 2) + np.diag([noise / 2] * 3)
    return MeasuredGains((2, 5, 10), np.array([0.02, 0.05, 0.01]), together, True)


def test_one_length_and_height_is_the_closed_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    # Rasmussen and Williams 2006, equations 2.23 and 2.24, with errors that go together.
    found, length, height = example(), 0.9, 1.2
    monkeypatch.setattr(dose_response, "GRID", 1)
    monkeypatch.setattr(dose_response, "DRAWS", 40_000)
    monkeypatch.setattr(np, "geomspace", lambda low, *_: np.array([height if low == 1 else length]))
    curve = fit("map_50", found)
    at = np.log1p([0, 2, 5, 10])
    scale = 0.05
    noise = np.zeros((4, 4))
    noise[1:, 1:] = found.noise / scale**2

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return height**2 * np.exp(-((a[:, None] - b[None]) ** 2) / (2 * length**2))

    x = np.log1p(np.arange(11))
    inverse = np.linalg.inv(kernel(at, at) + noise + 1e-8 * np.eye(4))
    mean = scale * kernel(x, at) @ inverse @ np.array([0.0, *(found.gains / scale)])
    spread = scale * np.sqrt(np.diag(kernel(x, x) - kernel(x, at) @ inverse @ kernel(at, x)).clip(0))
    np.testing.assert_allclose(curve.mean, mean, atol=4e-4)
    np.testing.assert_allclose(curve.draws.std(axis=0)[1:], spread[1:], rtol=0.03)


def test_a_process_against_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    at, targets, grid = np.log1p([0.0, 2.0, 5.0, 10.0]), rng.normal(size=4), np.linspace(0, 2.4, 25)
    errors = rng.uniform(0.01, 0.3, 4)  # scikit-learn takes independent ones alone
    oracle = GaussianProcessRegressor(ConstantKernel(1.44) * RBF(0.9), alpha=errors, optimizer=None)
    mean, covariance = oracle.fit(at[:, None], targets).predict(grid[:, None], return_cov=True)
    found = posterior(at, targets, np.diag(errors), grid, 0.9, 1.2)
    np.testing.assert_allclose(found[0], mean, atol=1e-12)
    np.testing.assert_allclose(found[1], covariance, atol=1e-12)
    assert found[2] == pytest.approx(oracle.log_marginal_likelihood_value_, abs=1e-12)


def test_without_noise_the_curve_goes_through_the_points() -> None:
    curve = fit("map_50", example(noise=1e-12))
    np.testing.assert_allclose(curve.mean[[0, 2, 5, 10]], [0, 0.02, 0.05, 0.01], atol=1e-4)
    assert 3 <= curve.best <= 7
    assert curve.chances.sum() == pytest.approx(1)


def test_errors_of_gains_over_one_baseline_go_together() -> None:
    # Cov(d_v, d_w) = σ² / n for v ≠ w and 2 σ² / n for v = w, the images' part apart.
    noise = []
    for rng in range(40):
        _, rows, _ = simulate(conditions((2, 5, 10)), seeds=6, seed_noise=0.02, rng=rng)
        ((base, members),) = lines(rows)
        noise.append(measured_gains("map_50", base, members, ResampledMetrics({})).noise)
    mean = np.mean(noise, axis=0)
    freedom = 3 * 5
    expected = 0.02**2 / 6 * freedom / (freedom - 2)
    np.testing.assert_allclose(mean, expected * (np.ones((3, 3)) + np.eye(3)), rtol=0.15)


def test_with_matches_the_choice_of_images_counts() -> None:
    _, rows, figures = simulate(conditions((2, 5, 10)), seeds=6, own_image_noise=0.2)
    ((base, members),) = lines(rows)
    with_images, without = (measured_gains("map_50", base, members, each) for each in (figures, ResampledMetrics({})))
    assert with_images.images_known
    assert not without.images_known
    assert (np.diag(with_images.noise) > np.diag(without.noise)).all()
    np.testing.assert_array_equal(with_images.gains, without.gains)


def test_resamples_without_an_object_are_left_out_while_they_are_few() -> None:
    _, rows, figures = simulate(conditions((2, 5, 10)), seeds=6, own_image_noise=0.2)
    ((base, members),) = lines(rows)
    whole = measured_gains("map_50", base, members, figures)
    few = measured_gains("map_50", base, members, figures.without([7, 100]))
    assert few.images_known
    np.testing.assert_allclose(few.noise, whole.noise, rtol=0.1)
    assert np.isfinite(fit("map_50", few).draws).all()
    many = measured_gains("map_50", base, members, figures.without(range(7, 10)))
    assert not many.images_known
    np.testing.assert_array_equal(many.noise, measured_gains("map_50", base, members, ResampledMetrics({})).noise)


def test_what_is_peculiar_to_a_run_and_an_image_is_counted_once() -> None:
    noise, gains = [], []
    for rng in range(150):
        settings: dict[str, Any] = {"seed_noise": 0.01, "own_image_noise": 0.05, "run_image_noise": 0.3}
        _, rows, figures = simulate(conditions((2, 10)), seeds=6, rng=rng, resamples=100, **settings)
        ((base, members),) = lines(rows)
        found = measured_gains("map_50", base, members, figures)
        noise.append(found.noise)
        gains.append(found.gains)
    freedom = 2 * 5
    # A run's mean has seed and images of its own; conditions have tastes of their own in images.
    own, taste = 0.01**2 + 0.3**2 / 100, 0.05**2 / 100
    expected = (own / 6 * freedom / (freedom - 2) + taste) * (np.ones((2, 2)) + np.eye(2))
    np.testing.assert_allclose(np.mean(noise, axis=0), expected, rtol=0.2)
    np.testing.assert_allclose(np.cov(np.array(gains).T), expected, rtol=0.35)


def test_the_best_is_found_and_more_is_known_not_to_help() -> None:
    _, rows, figures = simulate(conditions(), seeds=8, seed_noise=0.004, own_image_noise=0.02)
    ((base, members),) = lines(rows)
    curve = fit("map_50", measured_gains("map_50", base, members, figures))
    first, last = curve.best_range
    assert first <= 7 <= last
    assert 4 <= curve.best <= 12
    assert curve.enough is not None
    assert curve.enough <= curve.best
    low, high = curve.band[:, curve.best]
    assert low < 0.05 < high
    # Errors fall as AP rises, and less of them is better.
    errors = fit("count_mae", measured_gains("count_mae", base, members, figures))
    assert errors.mean.max() == pytest.approx(0.1, abs=0.03)
    assert "More than" in sentence("curve", curve=curve)


@pytest.mark.slow
def test_bands_hold_the_truth() -> None:
    held = []
    for rng in range(60):
        _, rows, figures = simulate(conditions((2, 5, 10, 20)), seeds=6, rng=100 + rng, resamples=100)
        ((base, members),) = lines(rows)
        curve = fit("map_50", measured_gains("map_50", base, members, figures))
        truth = np.array([bump(count) for count in curve.tried.variations])
        low, high = curve.band[:, list(curve.tried.variations)]
        held += ((low <= truth) & (truth <= high)).tolist()
    assert np.mean(held) >= 0.87


def test_no_effect_is_not_called_one() -> None:
    _, rows, figures = simulate(conditions(gain=lambda _: 0.0), seeds=6)
    section = dose_response_section(study_of([], rows, figures))
    ((base, members),) = lines(rows)
    curve = fit("map_50", measured_gains("map_50", base, members, figures))
    assert curve.best_range[0] <= 2
    assert curve.chances.max() < 0.95
    assert section is not None
    assert len(section.plots) == 2
    assert curve.best_gain[1] <= 0
    again = dose_response_section(study_of([], rows, figures))
    assert again is not None
    assert again.plots == section.plots  # to the byte
    assert all(picture.svg.count("<svg") == 1 and "95 % band" in picture.text for picture in section.plots)


def test_without_enough_numbers_or_seeds_there_is_no_section() -> None:
    _, rows, figures = simulate(conditions((2,)), seeds=6)
    assert dose_response_section(study_of([], rows, figures)) is None
    _, rows, figures = simulate(conditions((2, 10)), seeds=5)
    assert dose_response_section(study_of([], rows, figures)) is None
    assert dose_response_section(study_of([], [row for row in rows if not row.variations], figures)) is None


FIELDS_BY_SEED = ("runs",)


def test_numbers_with_few_seeds_are_left_out() -> None:
    _, rows, figures = simulate(conditions((2, 5, 10)), seeds=6)
    few = {field: getattr(row, field)[:2] for row in rows if row.variations == 5 for field in FIELDS_BY_SEED}
    rows = [replace(row, **few) if row.variations == 5 else row for row in rows]
    ((base, members),) = lines(rows)
    assert has_enough_counts(base, members)
    assert measured_gains("map_50", base, members, figures).variations == (2, 10)
    section = dose_response_section(study_of([], rows, figures))
    assert section is not None
    assert "5 variations have too few seeds" in section.sentences[-2]


def test_places_are_whole_numbers_from_none_to_the_largest() -> None:
    assert places([2, 3]).tolist() == [0, 1, 2, 3]
    many = places([1000])
    assert (many[0], many[-1]) == (0, 1000)
    assert len(many) <= dose_response.MOST_PLACES
    assert {*places([2, 150, 151, 1000])} >= {2, 150, 151, 1000}
    assert (np.diff(many) > 0).all()
