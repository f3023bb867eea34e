"""What synthetic images are worth, on curves that are known."""

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from simulated_study import SimulatedMetrics, simulate, simulate_settings, study_of

from boxtwin.studies.comparison import ResampledMetrics, positive_controls
from boxtwin.studies.conditions import Row, condition_table
from boxtwin.studies.equivalence import PLAIN, Exchange, curve_rows, equivalent, exchange, monotone, size_curves
from boxtwin.studies.primary import primary_comparisons
from boxtwin.studies.report.page import WORTH_FILE, write_report
from boxtwin.studies.report.plots import MOST_TREATMENTS, sizes_picture
from boxtwin.studies.report.sections import WORTH, equivalence_section, steps_section
from boxtwin.studies.report.summary import Summary
from boxtwin.studies.report.words import sentence
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
    return exchange(row, curve_rows(rows, row, figures), figures)


def known(rows: Sequence[Row], figures: ResampledMetrics) -> Exchange:
    found = result(rows, figures)
    assert found is not None
    return found


# Images, version of the labels, and AP50.
CORRECTED = ((10, "a", 0.5), (20, "a", 0.6), (40, "a", 0.7), (20, "b", 0.75))


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
    assert found.worth == pytest.approx(52, abs=1e-4)
    assert (found.low, found.high) == pytest.approx((52, 52), abs=1e-3)
    text = sentence("exchange", exchange=found, steps=False)
    interval = "95 % interval over seeds and test images 52 to 52; 6 seeds"
    assert text == f"40 real images with 10 variations by pixel_ddpm are worth 52 real images ({interval})."


def test_intervals_hold_the_truth() -> None:
    held = 0
    for rng in range(30):
        _, rows, figures = study(on_real(52), seed_noise=0.01, own_image_noise=0.05, rng=rng)
        found = known(rows, figures)
        held += found.low <= 52 <= found.high
    assert held >= 26


@pytest.mark.parametrize(
    ("images", "said"), [(200, "worth more than 80 real"), (8, "worth fewer than 20 real"), (40, "worth 40 real")]
)
def test_outside_of_what_was_measured(images: int, said: str) -> None:
    _, rows, figures = study(on_real(images), seed_noise=1e-5, own_image_noise=0.0)
    assert said in sentence("exchange", exchange=known(rows, figures), steps=False)


def test_too_few_sizes_seeds_or_matches_give_no_answer() -> None:
    for rows, figures in (
        study(0.6, sizes=REAL[1::2])[1:],
        study(0.6, seeds=5)[1:],
        (study(0.6)[1], ResampledMetrics({})),
    ):
        assert result(rows, figures) is None
        section = equivalence_section(study_of([], rows, figures))
        # Three sizes have a figure, whose points claim nothing.
        assert (section is None) == (len(curve_rows(rows, rows[0], figures)) < 3)
        assert section is None or not section.sentences


def test_resamples_without_an_object_are_left_out_while_they_are_few() -> None:
    _, rows, figures = study(on_real(50))
    whole, few = known(rows, figures), known(rows, figures.without([7, 100]))
    assert (few.low, few.high) == pytest.approx((whole.low, whole.high), rel=0.1)
    assert result(rows, figures.without(range(7, 10))) is None


def test_the_section_has_a_picture_and_its_words(tmp_path: Path) -> None:
    runs, rows, figures = study(on_real(52))
    whole = study_of(runs, rows, figures)
    section = equivalence_section(whole)
    assert section is not None
    assert "40 real images with 10 variations by pixel_ddpm are worth" in section.sentences[0]
    assert section.sentences[1] == "This is read off AP50 of real images alone at 20, 40, 60, 80."
    (picture,) = section.plots
    assert "<svg" in picture.svg
    assert "real images alone: 20: " in picture.text
    write_report(whole, Summary.of(whole), tmp_path)
    assert (tmp_path / WORTH_FILE).read_text() == picture.svg


SIMULATED = {"pretraining.name": "sar_scenes"}
PASTED = {"variations.per_image": "10", "generator.name": "copy_paste"}


def test_each_treatment_is_a_line_of_its_best_steps() -> None:
    sizes = (5.0, 10.0, 20.0, 40.0, 80.0)
    conditions: list[tuple[dict[str, str], float, float, int]] = [
        ({"trainer.steps": "402"}, size, on_real(size), 9 if size in (10, 40) else 3) for size in sizes
    ]
    conditions += [(SIMULATED | {"trainer.steps": "402"}, size, on_real(2 * size), 9) for size in sizes[:4]]
    conditions += [(SIMULATED | PASTED | {"trainer.steps": "1314"}, 10.0, on_real(30), 9)]
    # Other steps: fewer seeds, or worse on validation images, however good on test images.
    conditions += [({"trainer.steps": "804"}, 10.0, 0.9, 3), (SIMULATED | {"trainer.steps": "804"}, 10.0, 0.9, 9)]
    runs, figures = simulate_settings(conditions, seed_noise=0.004, own_image_noise=0.0)
    runs = [replace(run, metrics=run.metrics | {"val_real/map_50": -run.steps / 1000}) for run in runs]
    rows = condition_table(runs)
    (lines,) = size_curves(rows)
    assert list(lines) == [
        PLAIN,
        "pre-training on sar_scenes",
        "pre-training on sar_scenes and 10 variations by copy_paste",
    ]
    assert [[row.real_images for row in line] for line in lines.values()] == [list(sizes), list(sizes[:4]), [10.0]]
    assert {row.first.steps for row in (*lines[PLAIN], *lines["pre-training on sar_scenes"])} == {402}
    section = equivalence_section(study_of(runs, rows, figures))
    assert section is not None
    # A treatment at one size is a point beside the lines, while there are few treatments.
    assert "pre-training on sar_scenes and 10 variations by copy_paste: 10: " in section.plots[0].text
    crowd = lines | {
        f"treatment {number}": lines["pre-training on sar_scenes"][:1] for number in range(MOST_TREATMENTS)
    }
    assert "treatment" not in sizes_picture(crowd, ()).text
    ten, both = (next(text for text in section.sentences if text.startswith(start)) for start in (
        "10 real images with pre-training on sar_scenes (402 steps) are worth",
        "10 real images with pre-training on sar_scenes and 10 variations by copy_paste (1314 steps) are worth",
    ))  # fmt: skip
    for text, worth in ((ten, 20), (both, 30)):
        number, low, high = map(int, re.findall(r"worth (\d+) .* interval .* (\d+) to (\d+)", text)[0])
        assert number == pytest.approx(worth, rel=0.12)
        assert low <= worth <= high
    assert section.sentences[-1].endswith(
        "80 (402 steps). Where more steps would help real images alone, the true numbers are smaller."
    )
    # A primary comparison names the condition that stands in the figure.
    entry = {"treatment": {"pretraining": "sar_scenes", "steps": 804}, "control": {"steps": 402}, "real_images": 10}
    primary = primary_comparisons({"comparisons": [entry]}, "p.yaml")
    (lines,) = size_curves(rows, study_of(runs, rows, figures, primary).contrasts)
    assert [row.first.steps for row in lines["pre-training on sar_scenes"]] == [402, 804, 402, 402]


def test_seeds_that_the_curve_lacks_widen_the_interval() -> None:
    def width(seeds: int) -> float:
        alone: dict[str, str] = {}
        sizes = [(alone, size, on_real(size), seeds) for size in (10.0, 20.0, 40.0)]
        runs, figures = simulate_settings([*sizes, (PASTED, 10.0, on_real(20), 9)], seed_noise=0.02)
        rows = condition_table(runs)
        (row,) = [row for row in rows if row.variations]
        found = exchange(row, curve_rows(rows, row, figures), figures)
        assert found is not None
        return found.high - found.low

    assert width(3) > width(9)


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


def test_steps_of_a_treatment_are_told_with_the_best_on_validation() -> None:
    conditions = [
        ({"trainer.steps": steps}, 10.0, ap50, 1) for steps, ap50 in (("402", 0.6), ("804", 0.5), ("200", 0.4))
    ]
    runs, _ = simulate_settings([*conditions, (SIMULATED, 10.0, 0.6, 1)], seed_noise=0.0, own_image_noise=0.0)
    section = steps_section(condition_table(runs))
    assert section is not None
    (text,) = section.sentences
    assert "validation" not in text
    assert [int(steps) for steps in re.findall(r"at (\d+) steps", text)] == [200, 402, 804]
    runs = [replace(run, metrics=run.metrics | {"val_real/map_50": run.steps / 1000}) for run in runs]
    section = steps_section(condition_table(runs))
    assert section is not None
    assert section.sentences[0].endswith("Best on validation images: 804 steps.")
    assert steps_section(condition_table(runs[-2:])) is None


def test_a_study_of_many_lines_has_its_picture_by_treatment_first(tmp_path: Path) -> None:
    def titles(sizes: Sequence[float]) -> list[str]:
        conditions = [(way, size, on_real(size), 1) for way in ({}, SIMULATED) for size in sizes]
        runs, figures = simulate_settings(conditions)
        whole = study_of(runs, condition_table(runs), figures)
        page = write_report(whole, Summary.of(whole), tmp_path).read_text()
        return re.findall(r"<h2 id=\"\w+\">(.*)</h2>", page)

    few, many = titles((10.0, 20.0, 40.0)), titles((5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 80.0))
    assert few[:2] == ["Curves", "Table"]
    assert WORTH in few[2:]
    assert many[:2] == [WORTH, "Table"]
    assert WORTH not in many[1:]


def test_sizes_of_corrected_labels_are_on_no_curve_of_those_before() -> None:
    conditions = [({"data.train": f"{size}{version}"}, float(size), ap50, 6) for size, version, ap50 in CORRECTED]
    conditions.append(({"data.train": "10a", "variations.per_image": "10", "generator.name": "repeat"}, 10.0, 0.55, 6))
    runs, figures = simulate_settings(conditions, seed_noise=0.004, own_image_noise=0.0)
    runs = [
        replace(run, overrides=f"dataset.annotations={run.condition['data.train'][-1]}.json seed={run.seed}")
        for run in runs
    ]
    study = study_of(runs, condition_table(runs), figures)
    curves = [[row.real_images for row in each["real images alone"]] for each in size_curves(study.rows)]
    assert sorted(curves) == [[10, 20, 40], [20]]
    section = equivalence_section(study)
    assert section is not None
    assert "are worth 14 real images" in section.sentences[0]


def test_the_sizes_that_are_named_are_those_that_were_read_off() -> None:
    alone: list[tuple[dict[str, str], float, float, int]] = [
        ({}, 10.0, 0.5, 6),
        ({}, 20.0, 0.6, 6),
        ({}, 40.0, 0.65, 6),
    ]
    treated = ({"variations.per_image": "10", "generator.name": "repeat"}, 10.0, 0.7, 6)
    conditions = [*alone, ({}, 80.0, 0.8, 1), treated]
    runs, figures = simulate_settings(conditions, seed_noise=0.004, own_image_noise=0.0)
    section = equivalence_section(study_of(runs, condition_table(runs), figures))
    assert section is not None
    assert "worth more than 40 real images" in section.sentences[0]
    assert "at 10, 20, 40." in section.sentences[1]


def test_images_beside_the_data_set_are_named_with_the_curve() -> None:
    beside = {"unlabelled_images": "70-3f2a91bc0d12"}
    pasted = {"variations.per_image": "10", "generator.name": "copy_paste"}
    conditions = [(beside, size, ap50, 6) for size, ap50 in ((10.0, 0.5), (20.0, 0.6), (40.0, 0.7))]
    conditions += [(beside | pasted, 10.0, 0.6, 6), ({}, 10.0, 0.3, 6)]
    runs, figures = simulate_settings(conditions, seed_noise=0.004, own_image_noise=0.0)
    section = equivalence_section(study_of(runs, condition_table(runs), figures))
    assert section is not None
    assert "real images alone, with 70 unlabelled images at 10, 20, 40." in section.sentences[1]
    assert "real images alone, with 70 unlabelled images: 10: " in section.plots[0].text


def test_points_of_several_kinds_of_device_are_said_to_be_no_paired_difference() -> None:
    pasted = {"variations.per_image": "10", "generator.name": "copy_paste"}
    conditions = [({}, 10.0, 0.5, 6), ({}, 20.0, 0.6, 6), ({}, 40.0, 0.65, 6), (pasted, 10.0, 0.55, 6)]
    runs, figures = simulate_settings(conditions, seed_noise=0.004, own_image_noise=0.0)

    def sentences(devices: Sequence[str]) -> tuple[str, ...]:
        placed = [
            replace(run, provenance={"device": devices[int(run.run_id.split("-")[1])], "precision": "32-true"})
            for run in runs
        ]
        section = equivalence_section(study_of(placed, condition_table(placed), figures))
        assert section is not None
        return section.sentences

    assert not any("cpu 32-true" in each for each in sentences(["cpu"] * 4))
    *_, last = sentences(["cpu", "cpu", "H200", "cpu"])
    assert "H200 32-true, cpu 32-true" in last


def test_a_lucky_draw_of_images_is_no_worth_of_a_treatment() -> None:
    """Variations gain nothing on either of two draws of ten images, of which the second is as good as twenty."""
    pasted, drawn = (
        {"variations.per_image": "10", "generator.name": "copy_paste"},
        {"split.seed": "1", "data.train": "b"},
    )
    conditions = [({}, 20.0, 0.6, 6), ({}, 40.0, 0.7, 6), ({}, 10.0, 0.5, 6), (pasted, 10.0, 0.5, 6)]
    conditions += [(drawn, 10.0, 0.6, 6), (drawn | pasted, 10.0, 0.6, 6)]
    on_validation = [0.6, 0.7, 0.52, 0.50, 0.50, 0.55]
    runs, figures = simulate_settings(conditions, seed_noise=0.005, own_image_noise=0.0)
    runs = [
        replace(run, metrics=run.metrics | {"val_real/map_50": on_validation[int(run.run_id.split("-")[1])]})
        for run in runs
    ]
    whole = study_of(runs, condition_table(runs), figures)
    (curves,) = size_curves(whole.rows, whole.contrasts)
    plain, treated = curves.values()
    draws = [
        {row.first.condition.get("data.train") for row in line if row.real_images == 10} for line in (plain, treated)
    ]
    assert draws[0] == draws[1]
    assert len(draws[0]) == 1
    section = equivalence_section(whole)
    assert section is not None
    assert "are worth 10 real images" in section.sentences[0]
