"""What a report advises follows from all that it says: constellations in which one comparison contradicts another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from simulated_study import Simulated, simulate, simulate_settings, study_of
from study_runs import finished_run

from boxtwin.studies.conditions import condition_table
from boxtwin.studies.primary import primary_comparisons
from boxtwin.studies.report.recommendation import recommended
from boxtwin.studies.report.sections import sensitivity_section
from boxtwin.studies.report.summary import Summary, answers
from boxtwin.studies.study import Study

Settings = dict[str, str]
PLAIN: list[Simulated] = [("s1", 0, "none", 80.0, 0.7), ("s2", 0, "none", 40.0, 0.6)]
QUIET: Any = {"seed_noise": 0.004, "own_image_noise": 0.01}
SIMULATION = {
    "pretraining.name": "sar_scenes",
    "pretraining.steps": "1200",
    "pretraining.batch_size": "16",
    "pretraining.per_image": "0",
    "pretraining.dataset.image_size": "256",
}
IMAGES = {
    "dataset.image_size": "832",
    "detector.crop": "416",
    "trainer.batch_size": "8",
    "trainer.validations": "6",
}


def variations(generator: str) -> Settings:
    return {"variations.per_image": "10", "generator.name": generator, "generator.seed": "0"}


def named(generator: str) -> dict[str, Any]:
    return {"variations": 10, "generator": generator}


def primary_study(
    conditions: Sequence[tuple[Settings, float, float, int]], comparisons: Sequence[Mapping[str, Any]]
) -> Study:
    runs, figures = simulate_settings(conditions, **QUIET)
    runs = [replace(run, dataset=str(run.condition["dataset.name"])) for run in runs]
    primary = primary_comparisons({"comparisons": list(comparisons)}, "primary.yaml")
    return study_of(runs, condition_table(runs), figures, primary)


def simulated(conditions: Sequence[Simulated], fewer: tuple[int, int] = (-1, 0)) -> Study:
    """A study of nine seeds; that many at one number of variations."""
    number, seeds = fewer
    runs, _, figures = simulate(conditions, seeds=9, **QUIET)
    runs = [run for run in runs if run.variations != number or run.seed < seeds]
    return study_of(runs, condition_table(runs), figures)


def advice(study: Study) -> dict[str, Any]:
    (found,) = (each.advice for each in answers(study.rows, study.contrasts) if each.advice)
    return found


def to_do(study: Study) -> str:
    (text,) = (text for text in Summary.of(study).answer if "What to do" in text)
    return text.partition("What to do: ")[2]


def test_a_gain_with_fewer_seeds_than_others_is_significant_in_every_sentence() -> None:
    """Of two comparisons, Holm asks 7 seeds of the first p and 6 of the second."""
    ten = [({}, 10.0, 0.5, 9), (SIMULATION, 10.0, 0.6, 9), (variations("copy_paste"), 10.0, 0.6, 6)]
    comparisons = [
        {"name": "simulation", "treatment": {"pretraining": "sar_scenes"}, "control": {}},
        {"name": "paste", "treatment": named("copy_paste"), "control": {}},
    ]
    study = primary_study(ten, comparisons)
    changes = {each.name: each.differences["map_50"] for each in study.contrasts if each.kind == "primary"}
    assert {name: (each.pairs, each.significant) for name, each in changes.items()} == {
        "simulation": (9, True),
        "paste": (6, True),
    }
    assert all(each.could_be_significant for each in changes.values())
    assert not any("not enough runs" in text for text in Summary.of(study).answer)
    # Without primary comparisons as well.
    more: list[Simulated] = [("s2", 2, "pixel_ddpm", 40.0, 0.7), ("s2", 10, "pixel_ddpm", 40.0, 0.72)]
    assert advice(simulated([*PLAIN, *more], fewer=(10, 6)))["kind"] == "use"


def test_a_pretraining_that_as_many_real_pixels_beat_is_not_advised() -> None:
    longer = IMAGES | {"trainer.steps": "1314"}
    runs, figures = simulate_settings(
        [(IMAGES, 40.0, 0.5, 9), (longer, 40.0, 0.65, 9), (IMAGES | SIMULATION, 40.0, 0.56, 9)], **QUIET
    )
    study = study_of(runs, condition_table(runs), figures)
    assert advice(study)["kind"] == "beaten"
    assert to_do(study).startswith("do not use the pre-training")
    row, reason = recommended(study)
    assert row.values.get("pretraining.name", "none") == "none"
    assert "no condition" in reason


def test_a_treatment_that_loses_a_primary_comparison_is_not_advised() -> None:
    conditions = [
        ({}, 40.0, 0.6, 9),
        (variations("repeat"), 40.0, 0.5, 9),
        (variations("pixel_ddpm"), 40.0, 0.55, 9),
    ]
    comparisons = [
        {"treatment": named("pixel_ddpm"), "control": named("repeat")},
        {"treatment": named("pixel_ddpm"), "control": {}},
    ]
    study = primary_study(conditions, comparisons)
    assert not any("What to do" in text for text in Summary.of(study).answer)
    assert recommended(study)[0].variations == 0
    # That it loses to a better treatment says the same; that it loses to more real images does not.
    better = [({}, 40.0, 0.5, 9), (variations("repeat"), 40.0, 0.55, 9), (variations("pixel_ddpm"), 40.0, 0.6, 9)]
    comparisons = [
        {"treatment": named("repeat"), "control": {}},
        {"treatment": named("pixel_ddpm"), "control": named("repeat")},
    ]
    study = primary_study(better, comparisons)
    assert "generator=pixel_ddpm" in to_do(study)
    assert recommended(study)[0].generator == "pixel_ddpm"


def test_a_loss_to_more_steps_in_a_primary_comparison_counts_for_final_detectors_too() -> None:
    pasted = {**named("copy_paste"), "trainer.steps": 402}
    conditions = [
        ({}, 40.0, 0.5, 9),
        ({"trainer.steps": "1314"}, 40.0, 0.65, 9),
        (variations("copy_paste"), 40.0, 0.56, 9),
    ]
    comparisons = [{"treatment": pasted, "control": {"trainer.steps": steps}} for steps in (402, 1314)]
    study = primary_study(conditions, comparisons)
    assert not any("What to do" in text for text in Summary.of(study).answer)
    assert recommended(study)[0].variations == 0


def test_each_data_set_of_primary_comparisons_has_its_advice() -> None:
    sets = {name: {"dataset.name": name, "data.test": name[0] * 64} for name in ("hrsid", "bccd")}
    pasted = variations("copy_paste")
    conditions = [
        (sets["hrsid"], 40.0, 0.5, 9),
        (sets["hrsid"] | pasted, 40.0, 0.6, 9),
        (sets["bccd"], 40.0, 0.8, 9),
        (sets["bccd"] | pasted, 40.0, 0.85, 9),
    ]
    study = primary_study(
        conditions, [{"treatment": named("copy_paste"), "control": {}, "dataset.name": name} for name in sets]
    )
    assert all(f"on {name} with 40 real images" in to_do(study) for name in sets)


def test_variations_are_not_called_useless_while_a_number_of_them_is_unknown() -> None:
    others: list[Simulated] = [("s2", 2, "pixel_ddpm", 40.0, 0.72), ("s2", 10, "pixel_ddpm", 40.0, 0.6)]
    assert advice(simulated([*PLAIN, *others], fewer=(2, 1)))["kind"] == "open"
    assert advice(simulated([*PLAIN, others[1]]))["kind"] == "little"


@pytest.mark.parametrize("treatment", [variations("pixel_ddpm"), SIMULATION, variations("repeat")])
def test_a_study_that_shows_a_gain_could_have_detected_one(treatment: Settings) -> None:
    conditions = [(IMAGES | more, real, 0.6 if more else 0.5, 9) for real in (40.0, 80.0) for more in ({}, treatment)]
    if treatment == variations("repeat"):  # beside which something else is tried
        conditions += [(IMAGES | variations("pixel_ddpm"), real, 0.5, 9) for real in (40.0, 80.0)]
    runs, figures = simulate_settings(conditions, **QUIET)
    study = study_of(runs, condition_table(runs), figures)
    said = " ".join((*Summary.of(study).answer, *sensitivity_section(study).sentences))
    assert "not significant" in said  # the positive control
    assert "unlikely to detect" not in said
    assert "could not have detected" not in said
    assert "cannot judge variations" not in said


def test_steps_that_more_images_bring_are_told() -> None:
    settings = {
        "dataset.name": "scenes",
        "data.test": "5" * 64,
        "split.name": "s2",
        "trainer.epochs": "30",
        "variations.per_image": "0",
    }

    def runs(name: str, steps: int, ap50: float, **more: str) -> list[Any]:
        metrics = {"test/map": ap50 / 2, "test/map_50": ap50, "test/count_mae": 1.0, "data/real_images": 40.0}
        return [
            finished_run(f"{name}{seed}", 0, seed, metrics=metrics, condition=settings | more, steps=steps)
            for seed in range(7)
        ]

    study = Study.of([*runs("plain", 150, 0.5), *runs("more", 900, 0.6, unlabelled_images="200-3f2a91bc0d12")])
    summary = Summary.of(study)
    for text in (summary.answer[0], summary.in_short[0], summary.comparisons[0]):
        assert "900 instead of 150 steps" in text


def test_a_cheaper_generator_is_named_with_the_split_on_which_it_is_as_good() -> None:
    tried: list[Simulated] = [
        ("s1", 10, "pixel_ddpm", 80.0, 0.78),
        ("s1", 10, "copy_paste", 80.0, 0.70),
        ("s2", 10, "pixel_ddpm", 40.0, 0.66),
        ("s2", 10, "copy_paste", 40.0, 0.66),
    ]
    assert advice(simulated([*PLAIN, *tried]))["equal"] == ["copy_paste on s2"]
    assert advice(simulated([*PLAIN, *tried[2:]]))["equal"] == ["copy_paste"]
