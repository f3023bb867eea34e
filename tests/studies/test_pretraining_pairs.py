"""Comparisons with pre-training: which conditions are compared, and the control that shows as many pixels."""

import math
from dataclasses import replace
from typing import Any

import pytest
from study_runs import finished_run

from boxtwin.studies.comparison import Contrast
from boxtwin.studies.conditions import condition_table
from boxtwin.studies.next_runs import plan
from boxtwin.studies.pretraining import equal_pixel_steps
from boxtwin.studies.report.sections import next_runs_section
from boxtwin.studies.report.summary import Summary
from boxtwin.studies.runs import StudyRun
from boxtwin.studies.study import Study

PLAIN = {
    "dataset.name": "hrsid",
    "dataset.image_size": "832",
    "data.test": "5" * 64,
    "split.name": "s2",
    "detector.crop": "416",
    "trainer.steps": "402",
    "trainer.batch_size": "8",
    "trainer.validations": "6",
    "variations.per_image": "0",
    "variations.seed": "0",
    "generator": "null",
    "labels": "null",
    "store": "null",
}
SIMULATED = {
    "pretraining.name": "sar_scenes",
    "pretraining.steps": "1200",
    "pretraining.batch_size": "16",
    "pretraining.per_image": "0",
    "pretraining.dataset.name": "sar_scenes",
    "pretraining.dataset.image_size": "256",
    "pretraining_images": "simulation 1",
}
ON_VARIATIONS = {
    "pretraining.name": "variations",
    "pretraining.steps": "402",
    "pretraining.batch_size": "8",
    "pretraining.per_image": "10",
    "pretraining_images": "aa",
    "generator.name": "repeat",
    "labels.name": "carry",
    "variations.seed": "1",
}


def run(name: str, seed: int, ap50: float, more: dict[str, str], **changes: Any) -> StudyRun:
    condition = {key: value for key, value in PLAIN.items() if f"{key}.name" not in more} | more
    steps = int(condition["trainer.steps"])
    metrics = {"test/map": ap50 / 2, "test/map_50": ap50, "test/count_mae": 1.0, "data/real_images": 10.0}
    return finished_run(f"{name}{seed}", 0, seed, metrics=metrics, condition=condition, steps=steps, **changes)


def compared(study: Study) -> dict[tuple[str, str, int], Contrast]:
    return {(each.kind, each.new.values["pretraining.name"], each.old.first.steps): each for each in study.contrasts}


def test_steps_of_equal_pixels_are_those_of_the_formula() -> None:
    pixels = 1200 * 16 * 256**2
    more = pixels / (8 * 416**2)
    assert equal_pixel_steps(PLAIN | SIMULATED) == 6 * math.ceil((402 + more) / 6) == 1314
    # Variations have the size of the real images, and are shown in the same crops.
    assert equal_pixel_steps(PLAIN | ON_VARIATIONS) == 804
    # Whole images where there is no crop.
    whole = PLAIN | SIMULATED | {"detector.crop": "null", "dataset.image_size": "512"}
    assert equal_pixel_steps(whole) == 6 * math.ceil((402 + pixels / (8 * 512**2)) / 6)
    # The network may take images in another size than that of the data set, here 256 pixels, less than a crop.
    smaller = PLAIN | SIMULATED | {"detector.image_size": "256"}
    assert equal_pixel_steps(smaller) == 6 * math.ceil((402 + pixels / (8 * 256**2)) / 6) == 2802
    assert equal_pixel_steps({}) is None


@pytest.mark.parametrize("settings", [SIMULATED, ON_VARIATIONS], ids=["other images", "variations"])
def test_pretraining_is_compared_with_none_and_with_as_many_pixels(settings: dict[str, str]) -> None:
    steps = equal_pixel_steps(PLAIN | settings)
    assert steps is not None
    runs = [run("plain", seed, 0.5, {}) for seed in range(3)]
    runs += [run("longer", seed, 0.52, {"trainer.steps": str(steps)}) for seed in range(3)]
    runs += [run("other", seed, 0.9, {"trainer.steps": str(steps + 6)}) for seed in range(3)]
    runs += [run("first", seed, 0.6, settings) for seed in range(3)]
    study = Study.of(runs)
    found = compared(study)
    name = settings["pretraining.name"]
    assert set(found) == {("pretraining", name, 402), ("equal pixels", name, steps)}
    assert found["pretraining", name, 402].differences["map_50"].mean == pytest.approx(0.1)
    assert found["equal pixels", name, steps].differences["map_50"].mean == pytest.approx(0.08)
    (row,) = {each.new.name for each in study.contrasts}
    assert row.startswith(f"pre-training on {name}, ")
    answer = " ".join(Summary.of(study).answer)
    assert "+10.0 points" in answer
    assert f"{steps} steps" in answer
    assert "+8.0 points" in answer


def test_a_study_without_pretraining_names_none() -> None:
    study = Study.of([run("plain", seed, 0.5, {}) for seed in range(2)])
    assert not study.contrasts
    assert all("pretraining.name" not in row.values for row in study.rows)


def test_other_settings_of_a_pretraining_are_conditions_of_their_own() -> None:
    runs = [
        run("plain", 0, 0.5, {}),
        run("a", 0, 0.6, SIMULATED),
        run("b", 0, 0.7, SIMULATED | {"pretraining.steps": "600"}),
    ]
    study = Study.of(runs)
    names = sorted(row.name for row in study.rows)
    assert len(names) == 3
    assert any("pretraining.steps=600" in name for name in names)
    assert sum(each.kind == "pretraining" for each in study.contrasts) == 2
    assert not any("pretraining.dataset" in name for name in names)  # it follows from the pre-training


def test_images_beside_the_data_set_are_compared_with_none_and_with_nothing_else() -> None:
    unlabelled, empty = {"unlabelled_images": "70-3f2a91bc0d12"}, {"empty_images": "9-0123456789ab"}
    runs = [run("plain", seed, 0.5, {}) for seed in range(3)]
    runs += [run("more", seed, 0.55, unlabelled) for seed in range(3)]
    runs += [run("both", seed, 0.57, unlabelled | empty) for seed in range(3)]
    runs += [run("longer", seed, 0.9, unlabelled | {"trainer.steps": "804"}) for seed in range(3)]
    study = Study.of(runs)
    found = {(each.kind, each.new.first.run_id, each.old.first.run_id): each for each in study.contrasts}
    assert set(found) == {("unlabelled images", "more0", "plain0"), ("empty images", "both0", "more0")}
    assert found["unlabelled images", "more0", "plain0"].differences["map_50"].mean == pytest.approx(0.05)
    summary = Summary.of(study)
    assert "10 labelled images): the unlabelled images change AP50 by +5.0 points" in " ".join(summary.answer)
    assert "70 unlabelled images, no empty images, 402 steps, s2 against no unlabelled images" in " ".join(
        summary.comparisons
    )
    assert "trainer.steps are not compared" in " ".join(summary.notes)


def test_folders_of_as_many_images_are_told_apart() -> None:
    folders = ("70-3f2a91bc0d12", "70-0123456789ab")
    runs = [run(name, 0, 0.5, {"unlabelled_images": name}) for name in folders]
    runs += [run("plain", 0, 0.5, {})]
    names = [row.name for row in condition_table(runs)]
    assert sorted(names) == sorted(["no unlabelled images, s2", *(f"{name} unlabelled images, s2" for name in folders)])


def test_more_seeds_are_planned_for_images_beside_the_data_set() -> None:
    runs = [run("plain", seed, 0.5, {}, overrides="variations=0") for seed in range(3)]
    typed = "variations=0 dataset.unlabelled=images"
    runs += [run("more", seed, 0.6, {"unlabelled_images": "70-3f2a91bc0d12"}, overrides=typed) for seed in range(3)]
    planned = " ".join(next_runs_section(plan(Study.of(runs)), runs).sentences)
    assert "effect of unlabelled images (70 unlabelled images, s2)" in planned
    assert "train.py -m dataset.unlabelled=images study=demo variations=0 seed=3,4,5" in planned


def test_treatments_are_listed_by_their_gain_with_what_they_cost() -> None:
    costs = {"time/train": 60.0, "pretraining/seconds": 600.0, "time/label_unlabelled": 180.0}
    runs = [run("plain", seed, 0.5, {}) for seed in range(3)]
    runs += [run("more", seed, 0.55, {"unlabelled_images": "70-3f2a91bc0d12"}) for seed in range(3)]
    assert "What else you could do" not in [part.title for part in Summary.of(Study.of(runs)).sections]
    runs += [run("first", seed, 0.6, SIMULATED) for seed in range(3)]
    runs += [run("empty", seed, 0.45, {"empty_images": "9-0123456789ab"}) for seed in range(3)]
    runs = [replace(each, metrics={**each.metrics, **costs}) for each in runs]
    section = next(part for part in Summary.of(Study.of(runs)).sections if part.title == "What else you could do")
    first, second, third = section.sentences
    assert first.startswith("Pre-training on sar_scenes, ")
    assert "AP50 +10.0 points" in first
    assert first.endswith("Machine: +10.0 minutes; a person: 0 minutes.")
    assert second.startswith("Unlabelled images, ")
    assert "Machine: +3.0 minutes" in second
    assert third.startswith("Empty images, ")
    assert third.endswith("Machine: +0.0 minutes; a person: a look at each image.")


def test_minutes_of_treatments_are_of_pairs_on_one_kind_of_device() -> None:
    plain = [run("plain", seed, 0.5, {}) for seed in range(9)]
    unlabelled = [run("more", seed, 0.55, {"unlabelled_images": "70-3f2a91bc0d12"}) for seed in range(9)]
    empty = [run("empty", seed, 0.45, {"empty_images": "9-0123456789ab"}) for seed in range(9)]

    def on(each: StudyRun, device: str) -> StudyRun:
        seconds = {"cpu": 600.0, "H100": 30.0}[device]
        provenance = {"device": device, "precision": "32-true"}
        return replace(
            each, provenance=provenance, metrics={**each.metrics, "time/train": seconds, "time/label_unlabelled": 0.0}
        )

    runs = [on(each, "cpu") for each in (*plain, *empty)]
    runs += [on(each, "H100" if each.seed < 3 else "cpu") for each in unlabelled]
    section = next(part for part in Summary.of(Study.of(runs)).sections if part.title == "What else you could do")
    assert "Machine: +0.0 minutes" in section.sentences[0]
