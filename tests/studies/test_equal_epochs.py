"""Comparisons at equal epochs, where runs with variations take more steps: the gain is taken apart."""

import pytest
from study_runs import finished_run

from boxtwin.studies.report.summary import Summary, printed
from boxtwin.studies.runs import StudyRun
from boxtwin.studies.study import Study

SETUP = {"dataset.name": "scenes", "data.test": "5" * 64, "split.name": "s2", "trainer.epochs": "30"}


def runs(generator: str, variations: int, steps: int, ap50: float, **settings: str) -> list[StudyRun]:
    condition = SETUP | {"variations.per_image": str(variations)} | settings
    if variations:
        condition |= {"generator.name": generator, "labels.name": "carry", "store": f"{generator}-0123"}
    return [
        finished_run(
            f"{generator}{steps}{seed}",
            variations,
            seed,
            metrics={"test/map": ap50 / 2, "test/map_50": ap50 + seed / 100, "test/count_mae": 1.0},
            condition=condition,
            steps=steps,
            generator=generator,
        )
        for seed in range(3)
    ]


def test_the_gain_is_taken_apart_into_steps_and_images() -> None:
    none, repeat, ours = runs("none", 0, 150, 0.5), runs("repeat", 10, 1650, 0.58), runs("pixel_ddpm", 10, 1650, 0.61)
    study = Study.of([*none, *repeat, *ours])
    means = {(each.kind, each.new.first.generator): each.differences["map_50"].mean for each in study.contrasts}
    assert means["variations", "pixel_ddpm"] == pytest.approx(0.11)
    assert means["variations", "repeat"] + means["control", "pixel_ddpm"] == pytest.approx(0.11)
    summary = Summary.of(study)
    said = " ".join(summary.answer)
    assert "At equal epochs this takes 1650 instead of 150 steps." in said
    assert "Of the change in AP50, steps bring +8.0 points, and images +3.0 points." in said
    heading, *lines = printed(study, summary).split("\n\n")[1].splitlines()
    assert "steps" in heading.split()
    assert [line.split()[-2] for line in lines] == ["150", "1650", "1650"]


def test_without_repeat_the_steps_alone_are_asked_for() -> None:
    said = " ".join(Summary.of(Study.of([*runs("none", 0, 150, 0.5), *runs("pixel_ddpm", 10, 1650, 0.61)])).answer)
    assert "generator=repeat would show how much" in said


def test_nothing_is_taken_apart_at_equal_steps() -> None:
    study = Study.of([*runs("none", 0, 150, 0.5), *runs("repeat", 10, 150, 0.5), *runs("pixel_ddpm", 10, 150, 0.6)])
    assert "epochs" not in " ".join(Summary.of(study).answer)


def test_epochs_and_steps_are_not_mixed() -> None:
    by_steps = {**{key: value for key, value in SETUP.items() if key != "trainer.epochs"}, "trainer.steps": "150"}
    other = [
        finished_run(f"s{seed}", 2, seed, metrics={"test/map_50": 0.5}, condition=by_steps | {"store": "x"}, steps=150)
        for seed in range(3)
    ]
    assert Study.of([*runs("none", 0, 150, 0.5), *other]).contrasts == []
