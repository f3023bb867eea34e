"""Which condition of a study with a known truth is to be used from then on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from simulated_study import Simulated, simulate, simulate_settings, study_of

from boxtwin.errors import InputError
from boxtwin.studies.conditions import condition_table
from boxtwin.studies.primary import primary_comparisons
from boxtwin.studies.report.recommendation import recommended
from boxtwin.studies.study import Study

PLAIN: list[Simulated] = [("s1", 0, "none", 80.0, 0.7), ("s2", 0, "none", 40.0, 0.6)]


def study(conditions: Sequence[Simulated], seeds: int = 9) -> Study:
    return study_of(*simulate(conditions, seeds=seeds, seed_noise=0.005, own_image_noise=0.01))


def test_the_best_significant_gain_on_most_images_is_taken() -> None:
    row, reason = recommended(study([*PLAIN, ("s1", 2, "pixel_ddpm", 80.0, 0.75), ("s1", 10, "pixel_ddpm", 80.0, 0.8)]))
    assert row.name == "s1 x10 pixel_ddpm"
    assert reason.startswith("it is significantly better than s1 x0, by ")


def test_of_several_that_gain_the_one_with_the_highest_ap50_is_taken() -> None:
    """A control too, though a report names it as the cheaper one; and none that a control beats."""
    both: list[Simulated] = [("s1", 10, "pixel_ddpm", 80.0, 0.8), ("s1", 10, "copy_paste", 80.0, 0.803)]
    found = study([PLAIN[0], *both])
    row, _ = recommended(found)
    best = max(found.rows, key=lambda each: each.estimates["map_50"].mean)
    assert row.name == best.name != "s1 x0"
    repeated: list[Simulated] = [("s1", 10, "pixel_ddpm", 80.0, 0.8), ("s1", 10, "repeat", 80.0, 0.9)]
    assert recommended(study([PLAIN[0], *repeated]))[0].name == "s1 x0"


@pytest.mark.parametrize(
    ("variations", "seeds"),
    [
        ([("s1", 10, "pixel_ddpm", 80.0, 0.7)], 9),  # no gain
        ([("s1", 10, "pixel_ddpm", 80.0, 0.6)], 9),  # a loss
        ([("s1", 10, "pixel_ddpm", 80.0, 0.8)], 3),  # too few seeds to tell
        ([("s2", 10, "pixel_ddpm", 40.0, 0.8)], 9),  # a gain on fewer images
        ([], 1),
    ],
)
def test_without_a_significant_gain_real_images_alone_are_taken(variations: list[Simulated], seeds: int) -> None:
    row, reason = recommended(study([*PLAIN, *variations], seeds))
    assert row.name == ("s1 x0" if variations else "s1")
    assert "no condition" in reason


def test_what_gains_elsewhere_or_is_beaten_is_told() -> None:
    _, reason = recommended(study([*PLAIN, ("s2", 10, "pixel_ddpm", 40.0, 0.8)]))
    assert reason.startswith("no condition on 80 real images gains significantly over real images alone; on 40 images ")
    assert "s2 x10 pixel_ddpm gains " in reason
    _, reason = recommended(study([PLAIN[0], ("s1", 10, "pixel_ddpm", 80.0, 0.8), ("s1", 10, "repeat", 80.0, 0.9)]))
    assert "is not beaten by a control, as s1 x10 pixel_ddpm is" in reason


def test_a_primary_comparison_decides_alone() -> None:
    conditions: list[tuple[dict[str, str], float, float, int]] = [({}, 80.0, 0.7, 9)]
    for generator, count, ap50 in (("repeat", "2", 0.8), ("copy_paste", "10", 0.9)):
        settings = {"variations.per_image": count, "generator.name": generator, "generator.seed": "0"}
        conditions.append((settings, 80.0, ap50, 9))
    runs, figures = simulate_settings(conditions, seed_noise=0.005, own_image_noise=0.01)
    entry = {"treatment": {"variations": 2, "generator": "repeat"}, "control": {"variations": 0}}
    for entries, name in (([], "copy_paste"), ([entry], "repeat")):
        primary = primary_comparisons({"comparisons": entries}, "p.yaml") if entries else ()
        row, _ = recommended(study_of(runs, condition_table(runs), figures, primary))
        assert row.first.generator == name


def test_of_two_detectors_the_one_better_on_validation_images_is_taken() -> None:
    runs, _, figures = simulate(PLAIN[:1], seeds=2)
    ap = {"yolov3_nano": 0.5, "yolov3": 0.4}
    both = [
        replace(run, detector=name, run_id=f"{name}{run.seed}", metrics=run.metrics | {"val_real/map": value})
        for name, value in ap.items()
        for run in runs
    ]
    row, _ = recommended(study_of(both, condition_table(both), figures))
    assert row.first.detector == "yolov3_nano"


@pytest.mark.parametrize("setting", [{"detector.name": "yolov3"}, {"trainer.steps": "1600"}])
@pytest.mark.parametrize(("ap50", "is_taken"), [(0.8, True), (0.62, False)])
def test_a_gain_in_a_worse_setup_does_not_decide(setting: dict[str, str], ap50: float, is_taken: bool) -> None:
    """Of two detectors or numbers of steps, the one without a gain may be far better on validation images."""
    pasted = {"variations.per_image": "10", "generator.name": "copy_paste"}
    conditions = [
        ({}, 80.0, 0.6, 9),
        (pasted, 80.0, 0.65, 9),
        (setting, 80.0, ap50, 9),
        (setting | pasted, 80.0, ap50, 9),
    ]
    runs, figures = simulate_settings(conditions, seed_noise=0.005, own_image_noise=0.01)
    runs = [
        replace(
            run,
            detector=str(run.condition["detector.name"]),
            metrics=run.metrics | {"val_real/map": run.metrics["test/map"]},
        )
        for run in runs
    ]
    row, reason = recommended(study_of(runs, condition_table(runs), figures))
    (key, value), *_ = setting.items()
    assert (row.first.condition[key] == value) == is_taken
    assert ("better on validation images" in reason) == is_taken
    assert ("significantly better" in reason) != is_taken


def test_two_data_sets_have_no_best_condition() -> None:
    runs, _, figures = simulate(PLAIN[:1], seeds=2)
    both = [*runs, *(replace(run, dataset="other", run_id=f"other{run.seed}") for run in runs)]
    with pytest.raises(InputError, match="runs on 2 data sets"):
        recommended(study_of(both, condition_table(both), figures))


@pytest.mark.parametrize("side", ["val", "test"])
def test_conditions_on_other_images_have_no_best(side: str) -> None:
    def conditions(*digests: str) -> list[tuple[dict[str, str], float, float, int]]:
        return [
            ({f"data.{side}": each, "detector.name": str(place)}, 80.0, 0.7, 2) for place, each in enumerate(digests)
        ]

    runs, figures = simulate_settings(conditions("aa", "bb"))
    with pytest.raises(InputError, match=r"2 sets of (validation|test) images"):
        recommended(study_of(runs, condition_table(runs), figures))
    same, figures = simulate_settings(conditions("aa", "aa"))
    recommended(study_of(same, condition_table(same), figures))


def test_a_study_without_finished_runs_has_no_recommendation() -> None:
    runs, _, figures = simulate(PLAIN[:1], seeds=1)
    with pytest.raises(InputError, match="no finished run"):
        recommended(study_of([replace(run, status="FAILED") for run in runs], [], figures))
