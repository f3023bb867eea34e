"""Intervals and tests against scipy, against formulas, and on simulated studies with a known truth."""

from itertools import product

import numpy as np
import pytest
from scipy import stats

from boxtwin.studies.conditions import Estimate
from boxtwin.studies.inference import (
    FLIPS,
    LEAST_PAIRS,
    SIGNIFICANT,
    clusters_of,
    hierarchical_interval,
    holm,
    image_counts,
    interval_of,
    mean_interval,
    pairs_needed,
    seed_variance,
    sign_flip_p,
    variances,
)


def least_p(pairs: int) -> float:
    """The smallest two-sided p of a sign-flip test of so many pairs."""
    return 2 / 2**pairs


@pytest.mark.parametrize("pairs", [1, 2, 6, 9])
def test_sign_flips_are_all_looked_at(pairs: int) -> None:
    values = np.random.default_rng(pairs).normal(0.5, 1, pairs).round(1)  # some flips tie
    totals = np.abs([np.dot(signs, values) for signs in product((1, -1), repeat=pairs)])
    assert sign_flip_p(values.tolist()) == np.mean(totals >= totals[0] - 1e-9)


def test_what_sign_flips_can_say() -> None:
    assert sign_flip_p([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]) == least_p(6) == 2 / 64
    assert sign_flip_p([0.0, 0.0, 0.0]) == 1
    assert sign_flip_p([0.1, 0.2, 0.3]) == sign_flip_p([-0.1, -0.2, -0.3]) == least_p(3)
    assert least_p(LEAST_PAIRS) < SIGNIFICANT < least_p(LEAST_PAIRS - 1)
    with pytest.raises(ValueError, match="at least one pair"):
        sign_flip_p([])


@pytest.mark.parametrize("pairs", [21, 30, 100])
def test_many_pairs_are_tested_on_a_sample_of_their_flips(pairs: int) -> None:
    values = np.random.default_rng(pairs).normal(0.35, 1, pairs)
    # Of so many, the sum under random signs is nearly normal.
    expected = 2 * stats.norm.sf(abs(values.sum()) / np.sqrt((values**2).sum()))
    p = sign_flip_p(values.tolist())
    assert p == sign_flip_p(values.tolist())
    assert p == pytest.approx(expected, abs=0.01)
    assert sign_flip_p([0.1] * pairs) == pytest.approx(2 / (FLIPS + 1))
    assert sign_flip_p([0.0] * pairs) == 1


def test_few_undefined_resamples_are_left_out_and_many_leave_no_interval() -> None:
    differences = np.random.default_rng(0).normal(0.1, 0.05, (8, 1001))
    undefined = differences.copy()
    undefined[:, 500:510] = np.nan
    kept = np.delete(differences, slice(500, 510), axis=1)
    assert interval_of(undefined, 60) == interval_of(kept, 60) != interval_of(differences, 60)
    undefined[3, 510] = np.nan
    assert interval_of(undefined, 60) is None
    differences[0, 0] = np.nan  # on the test images themselves
    assert interval_of(differences, 60) is None


def test_an_interval_of_equal_values_holds_their_mean() -> None:
    for value in np.random.default_rng(0).random(50).tolist():
        interval = mean_interval([value] * 6)
        assert interval is not None
        assert interval[0] <= Estimate(tuple((seed, value) for seed in range(6))).mean <= interval[1]


def test_pairs_needed_are_the_least_that_survive_the_correction() -> None:
    assert pairs_needed(1) == LEAST_PAIRS
    for comparisons in range(1, 30):
        needed = pairs_needed(comparisons)
        assert comparisons * least_p(needed) <= SIGNIFICANT < comparisons * least_p(needed - 1)


def test_holm_by_hand() -> None:
    # Holm 1979: 3 x 0.01, then 2 x 0.03, then 1 x 0.04 raised to what came before.
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
    corrected = holm([0.02, float("nan"), 0.03])
    assert corrected[0] == pytest.approx(0.04)
    assert np.isnan(corrected[1])
    assert corrected[2] == pytest.approx(0.04)


def test_counts_are_resamples() -> None:
    counts = image_counts(40, 500, seed=1)
    assert (counts.sum(axis=1) == 40).all()
    assert counts.mean(axis=0) == pytest.approx(np.ones(40), abs=0.25)
    np.testing.assert_array_equal(counts, image_counts(40, 500, seed=1))


def test_without_image_noise_the_interval_is_near_students() -> None:
    differences = np.random.default_rng(3).normal(2, 1, 8)
    found = hierarchical_interval(differences, np.repeat(differences[:, None], 20_000, axis=1), images=100)
    low, high = stats.t.interval(0.95, 7, differences.mean(), stats.sem(differences))
    assert found.mean == pytest.approx(differences.mean())
    assert found.high - found.low == pytest.approx(high - low, rel=0.2)
    assert found.image_variance == pytest.approx(0, abs=1e-20)


def test_without_seed_noise_the_interval_is_that_of_the_images() -> None:
    values = np.random.default_rng(4).normal(1, 3, 100)  # of each image, the same in all runs
    resampled = image_counts(100, 20_000, seed=0) @ values / 100
    found = hierarchical_interval(np.full(6, values.mean()), np.tile(resampled, (6, 1)), images=100)
    low, high = stats.t.interval(0.95, 99, values.mean(), stats.sem(values))
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.1)
    assert found.seed_variance == 0


def test_nothing_varies() -> None:
    found = hierarchical_interval(np.full(3, 0.5), np.full((3, 10), 0.5), images=5)
    assert (found.low, found.mean, found.high) == (0.5, 0.5, 0.5)


def test_two_pairs_that_agree_by_chance_do_not_hide_the_images() -> None:
    by_image = np.random.default_rng(5).normal(1, 10, (2, 100))
    by_image += 1 - by_image.mean(axis=1, keepdims=True)  # the same mean, from images that have nothing in common
    resampled = by_image @ image_counts(100, 2000, seed=0).T / 100
    seed, image = variances(by_image.mean(axis=1), resampled)
    assert seed == pytest.approx(0, abs=1e-20)
    assert image == pytest.approx(float(np.var(resampled.mean(axis=0), ddof=1)))


def test_too_few_pairs_or_other_shapes() -> None:
    with pytest.raises(ValueError, match="at least two pairs, got 1"):
        hierarchical_interval(np.zeros(1), np.zeros((1, 10)), images=5)
    with pytest.raises(ValueError, match=r"shape \(3, many\)"):
        hierarchical_interval(np.zeros(3), np.zeros((2, 10)), images=5)


def simulated(
    rng: np.random.Generator, *, effect: float, seed_noise: float, image_noise: float, own_noise: float
) -> np.ndarray:
    """Differences of 6 pairs on 100 images: effect + seed + image + what is peculiar to a pair on an image."""
    shape = (6, 100)
    own = rng.normal(0, own_noise, shape)
    return effect + rng.normal(0, seed_noise, (6, 1)) + rng.normal(0, image_noise, (1, 100)) + own


def test_variances_are_those_of_the_sources() -> None:
    rng = np.random.default_rng(11)
    found, means = [], []
    for study in range(400):
        by_image = simulated(rng, effect=0.0, seed_noise=2.0, image_noise=5.0, own_noise=10.0)
        resampled = by_image @ image_counts(100, 200, seed=study).T / 100
        found.append(variances(by_image.mean(axis=1), resampled))
        means.append(by_image.mean())
    seed, image = np.mean(found, axis=0)
    assert seed == pytest.approx((2.0**2 + 10.0**2 / 100) / 6, rel=0.1)
    assert image == pytest.approx(5.0**2 / 100, rel=0.1)
    assert seed + image == pytest.approx(np.var(means), rel=0.15)  # what is peculiar is counted once


def test_the_variance_of_clusters_is_that_of_their_means() -> None:
    values = np.array([1.0, 1.2, 0.8, 5.0, 5.1, 4.9, 9.0, 9.3, 8.7])
    clusters = clusters_of("aaabbbccc")
    assert clusters == (0, 0, 0, 1, 1, 1, 2, 2, 2)
    assert seed_variance(values, clusters) == pytest.approx((stats.sem([1.0, 5.0, 9.0]) ** 2, 3))
    low, high = stats.t.interval(0.95, 2, 5.0, stats.sem([1.0, 5.0, 9.0]))
    assert mean_interval(values.tolist(), clusters) == pytest.approx((low, high))
    alone = pytest.approx((stats.sem(values) ** 2, 9))
    # Clusters that are alike, one for all, one for each: independent pairs.
    assert seed_variance(values, clusters_of("abcabcabc")) == alone
    assert seed_variance(values, clusters_of("a" * 9)) == alone
    assert seed_variance(values, range(9)) == alone
    # The formula for clusters of different sizes, Liang and Zeger 1986: sums of residuals, squared.
    few = values[:4]
    residuals = few - few.mean()
    by_hand = 2 * (residuals[:3].sum() ** 2 + residuals[3] ** 2) / 16
    assert seed_variance(few, (0, 0, 0, 1)) == pytest.approx((by_hand, 2))


def test_intervals_cover_the_chance_of_a_shared_pretraining() -> None:
    rng, clusters = np.random.default_rng(3), [0, 0, 0, 1, 1, 1, 2, 2, 2]
    resampled = np.zeros((9, 400))
    held = {True: 0, False: 0}
    for _ in range(400):
        values = rng.normal(0, 1, 3)[clusters] + rng.normal(0, 1, 9)
        for nested in held:
            found = hierarchical_interval(
                values, resampled + values[:, None], images=100, clusters=clusters if nested else ()
            )
            held[nested] += found.low <= 0 <= found.high
    assert held[True] / 400 >= 0.92
    assert held[False] / 400 <= 0.85


@pytest.mark.parametrize("pairs", [2, 3, 4])
def test_intervals_of_few_pairs_that_dominate_are_students(pairs: int) -> None:
    rng, held, ratios, studies = np.random.default_rng(5), 0, [], 400
    for study in range(studies):
        values = rng.normal(3, 1, pairs)
        images = np.random.default_rng(study).normal(0, 0.01, 400)  # the same for every pair
        found = hierarchical_interval(values, values[:, None] + images, images=100)
        low, high = stats.t.interval(0.95, pairs - 1, values.mean(), stats.sem(values))
        ratios.append((found.high - found.low) / (high - low))
        held += found.low <= 3 <= found.high
    assert np.median(ratios) == pytest.approx(1, abs=0.03)
    assert 0.92 <= held / studies <= 0.98


@pytest.mark.parametrize(("seed_noise", "image_noise"), [(1.0, 10.0), (0.2, 10.0), (2.0, 5.0)])
def test_intervals_hold_the_truth(seed_noise: float, image_noise: float) -> None:
    # Metrics that are means over images: a run's difference is effect + seed + mean of (image + image x seed).
    effect, studies = 3.0, 400
    rng = np.random.default_rng(7)
    held = 0
    for study in range(studies):
        by_image = simulated(
            rng, effect=effect, seed_noise=seed_noise, image_noise=image_noise, own_noise=image_noise / 2
        )
        resampled = by_image @ image_counts(100, 400, seed=study).T / 100
        found = hierarchical_interval(by_image.mean(axis=1), resampled, images=100, seed=study)
        held += found.low <= effect <= found.high
    assert 0.92 <= held / studies <= 0.98  # +-2.2 points is two standard errors of 400 studies
