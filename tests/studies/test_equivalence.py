"""What synthetic images are worth, on curves that are known."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from simulated_study import SimulatedMetrics, simulate, study_of

from boxtwin.studies.comparison import ResampledMetrics, positive_controls
from boxtwin.studies.conditions import Row
from boxtwin.studies.equivalence import Exchange, curve_rows, equivalent, exchange, monotone
from boxtwin.studies.report.sections import describe_exchange, equivalence_section
from boxtwin.studies.runs import StudyRun


def on_real(images: float) -> float:
    """AP50 of so many real images: a line against their logarithm."""
    return 0.2 + 0.1 * math.log(images)


REAL = [("s1n20", 20.0), ("s2", 40.0), ("s1n60", 60.0), ("s1", 80.0)]


def study(
    reached: float, sizes: Sequence[tuple[str, float]] = REAL, **noise: Any
) -> tuple[list[StudyRun], list[Row], SimulatedMetrics]:
    conditions = [(split, 0, "none", size, on_real(size)) for split, size in sizes]
    return simulate([*conditions, ("s2", 10, "pixel_ddpm", 40.0, reached)], **{"seeds": 6, **noise})


def result(rows: Sequence[Row], figures: ResampledMetrics) -> Exchange | None:
    (row,) = [row for row in rows if row.variations]
    return exchange(row, rows, figures)


def known(rows: Sequence[Row], figures: ResampledMetrics) -> Exchange:
    found = result(rows, figures)
    assert found is not None
    return found


def test_exact_logarithms_are_inverted() -> None:
    sizes = np.array([20.0, 40.0, 80.0])
    values = np.array([on_real(size) for size in sizes])
    for size in (20, 25, 40, 52, 79.9):
        assert equivalent(sizes, values, on_real(size)) == pytest.approx(size, rel=1e-6)
    assert equivalent(sizes, values, on_real(81)) == math.inf
    assert equivalent(sizes, values, on_real(19)) == -math.inf


@pytest.mark.parametrize("values", [[1, 2, 3], [3, 2, 1], [1, 3, 2, 4], [2, 1, 1, 3, 0], [1.0]])
def test_the_nearest_sequence_that_never_falls(values: list[int] | list[float]) -> None:
    from sklearn.isotonic import isotonic_regression

    np.testing.assert_allclose(monotone(np.array(values, float)), isotonic_regression(np.array(values, float)))


def test_without_noise_the_worth_is_exact() -> None:
    _, rows, figures = study(on_real(52), seed_noise=0.0, own_image_noise=0.0)
    found = known(rows, figures)
    assert found.worth == pytest.approx(12, abs=1e-4)
    assert (found.low, found.high) == pytest.approx((12, 12), abs=1e-3)
    assert describe_exchange(found).startswith("are worth about 12 more real labelled images (95 % interval 12 to 12;")


def test_intervals_hold_the_truth() -> None:
    held = 0
    for rng in range(30):
        _, rows, figures = study(on_real(52), seed_noise=0.01, own_image_noise=0.05, rng=rng)
        found = known(rows, figures)
        held += found.low <= 12 <= found.high
    assert held >= 26


@pytest.mark.parametrize(
    ("images", "said"),
    [(200, "worth more than 40 more real labelled images: better"), (8, "cost more than 20 real"), (40, "no more and")],
)
def test_outside_of_what_was_measured(images: int, said: str) -> None:
    _, rows, figures = study(on_real(images), seed_noise=1e-5, own_image_noise=0.0)
    sentence = describe_exchange(known(rows, figures))
    assert said in sentence
    assert ("not known more closely" in sentence) == (images != 40)


def test_too_few_sizes_seeds_or_matches_give_no_answer() -> None:
    for rows, figures in (
        study(0.6, sizes=REAL[1::2])[1:],
        study(0.6, seeds=5)[1:],
        (study(0.6)[1], ResampledMetrics({})),
    ):
        assert result(rows, figures) is None
        assert equivalence_section(study_of([], rows, figures)) is None


def test_the_section_has_a_picture_and_its_words() -> None:
    _, rows, figures = study(on_real(52))
    section = equivalence_section(study_of([], rows, figures))
    assert section is not None
    assert "s2 x10 pixel_ddpm on 40 real images are worth about" in section.sentences[0]
    (picture,) = section.plots
    assert "<svg" in picture.svg
    assert "80 real images" in picture.text


def test_a_size_is_on_the_curve_once_and_the_baseline_first() -> None:
    _, rows, figures = study(0.6, sizes=[*REAL, ("s1n40", 40.0)])
    (base,) = [row for row in rows if row.split == "s2" and not row.variations]
    assert [row.split for row in curve_rows(rows, base, figures)] == ["s1n20", "s2", "s1n60", "s1"]


def test_parts_of_a_split_do_not_change_the_positive_control() -> None:
    _, rows, _ = study(0.6)
    assert [(fewer.split, more.split) for fewer, more in positive_controls(rows)] == [("s2", "s1")]
    alone = [row for row in rows if row.split != "s2"]
    assert [(fewer.split, more.split) for fewer, more in positive_controls(alone)] == [("s1n60", "s1")]
    assert positive_controls([replace(row) for row in rows if row.split == "s1"]) == []
