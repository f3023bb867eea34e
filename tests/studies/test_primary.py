"""Primary comparisons: named in a file, corrected among themselves; all others are exploratory."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from simulated_study import simulate_settings, study_of
from study_runs import finished_run

from boxtwin.commands.compare import compare_study, kept_primary
from boxtwin.errors import InputError
from boxtwin.studies.comparison import Contrast
from boxtwin.studies.condition_values import COUNT, differences
from boxtwin.studies.conditions import condition_table
from boxtwin.studies.primary import PRIMARY_FILE, find_rows, primary_comparisons
from boxtwin.studies.report.page import write_report
from boxtwin.studies.report.recommendation import recommended
from boxtwin.studies.report.summary import Summary, printed
from boxtwin.studies.runs import runs_in
from boxtwin.studies.study import Study

# AP50 of conditions on ten real images, and their settings.
SIMULATED = {"pretraining.name": "sar_scenes", "pretraining.steps": "1200"}
PASTED = {"variations.per_image": "10", "generator.name": "copy_paste", "generator.seed": "3"}
ON_VARIATIONS = {"pretraining.name": "variations", "generator.name": "copy_paste", "generator.seed": "3"} | {COUNT: "0"}
CONDITIONS = {
    "plain": (0.50, {"trainer.steps": "804"}),
    "pasted": (0.58, PASTED),
    "simulated": (0.50, SIMULATED),
    "both": (0.65, SIMULATED | PASTED | {"trainer.steps": "1314"}),
}


def study(entries: list[Any], seeds: int = 9, leave_out: str = "", changed: Mapping[str, str] | None = None) -> Study:
    """The conditions; ``changed`` are settings of the last."""
    conditions = [
        ({**settings, **(changed or {} if name == "both" else {})}, 10.0, ap50, seeds)
        for name, (ap50, settings) in CONDITIONS.items()
        if name != leave_out
    ]
    runs, figures = simulate_settings(conditions, seed_noise=0.004)
    return study_of(runs, condition_table(runs), figures, primary_comparisons({"comparisons": entries}, "p.yaml"))


TEN = {"real_images": 10}
PASTE: dict[str, Any] = {
    "treatment": {"variations": 10, "generator": "copy_paste", "steps": 402},
    "control": {"steps": 804},
} | TEN
SIMULATION: dict[str, Any] = {"treatment": {"pretraining": "sar_scenes", "steps": 402}, "control": {"steps": 804}} | TEN
COMBINED: dict[str, Any] = {
    "name": "simulation and copy-paste",
    "treatment": {"pretraining": "sar_scenes", "variations": 10, "generator": "copy_paste", "steps": 1314},
    "control": {"steps": 804},
} | TEN


def test_only_the_named_comparisons_have_p_and_they_are_corrected_together(tmp_path: Path) -> None:
    found = study([PASTE, SIMULATION, COMBINED])
    primary = {each.name: each.differences["map_50"] for each in found.contrasts if each.kind == "primary"}
    assert list(primary) == [
        "variations=10 generator=copy_paste steps=402 against steps=804 (real_images=10)",
        "pretraining=sar_scenes steps=402 against steps=804 (real_images=10)",
        "simulation and copy-paste",
    ]
    paste, simulation, both = primary.values()
    assert both.mean == pytest.approx(0.15, abs=0.02)  # at 1314 and 804 steps
    assert paste.p == both.p == 2 / 2**9
    assert simulation.p_holm <= 0.05  # the same on these test images; other images may turn it
    assert (paste.p_holm, both.p_holm) == (3 * paste.p, 3 * paste.p)
    assert [each.significant for each in primary.values()] == [True, False, True]
    assert {each.family for each in primary.values()} == {3}
    others = [
        change
        for each in found.contrasts
        for metric, change in each.differences.items()
        if (each.kind, metric) != ("primary", "map_50")
    ]
    assert others
    assert all(math.isnan(change.p) and not change.significant and change.interval for change in others)
    summary = Summary.of(found)
    assert len(summary.answer) == 5
    assert summary.answer[3].startswith(
        "What to do: with 10 real images, use pretraining=sar_scenes variations=10 generator=copy_paste steps=1314 (+1"
    )
    assert "significant gain" in summary.answer[2]
    assert "1314 and 804 optimiser steps" in summary.answer[2]
    assert "not significant (p 0.012, but the interval holds 0)" in summary.answer[1]
    page = write_report(found, summary, tmp_path).read_text()
    assert "exploratory" in page
    assert "Primary comparison 1 of 3" in page
    assert "No finished run without variations" not in page


def test_other_comparisons_are_called_exploratory() -> None:
    conditions = [({}, 10.0, 0.5, 9), (SIMULATED, 10.0, 0.58, 9), (PASTED, 10.0, 0.55, 9)]
    runs, figures = simulate_settings(conditions, seed_noise=0.004)
    entry = {"treatment": {"pretraining": "sar_scenes"}, "control": {}}
    named = primary_comparisons({"comparisons": [entry]}, "p.yaml")
    summary = Summary.of(study_of(runs, condition_table(runs), figures, named))
    (lines,) = [part.sentences for part in summary.sections if part.title == "What else you could do"]
    assert "9 seeds), significant. Machine" in lines[0]
    assert "9 seeds), exploratory, not tested. Machine" in lines[1]
    assert [line.startswith("Primary comparison") for line in summary.comparisons] == [True, False]  # each pair once


def test_the_primary_answer_is_printed_in_brief_too() -> None:
    found = study([PASTE, COMBINED])
    summary = Summary.of(found)
    text = printed(found, summary, brief=True)
    assert text.endswith("\n".join(summary.answer))
    assert text.count("Primary comparison 1 of 2") == 1
    assert text.count("What to do") == 1
    few = study([PASTE], seeds=4)
    assert "What to do" not in printed(few, Summary.of(few), brief=True)


def test_comparisons_without_runs_or_seeds_count_for_the_correction() -> None:
    found = study([PASTE, SIMULATION, COMBINED], seeds=7, leave_out="simulated")
    changes = [each.differences["map_50"] for each in found.contrasts if each.kind == "primary"]
    assert len(changes) == 2
    assert {change.family for change in changes} == {3}
    assert changes[0].p_holm == 3 * 2 / 2**7
    other = {"treatment": {"variations": 20}, "control": {"steps": 6}}
    for more in ([], [other]):
        texts = Summary.of(study([PASTE, SIMULATION, COMBINED, *more], leave_out="simulated")).answer
        texts = [text for text in texts if not text.startswith("What to do")]
        assert [text[:20] for text in texts[:3]] == [f"Primary comparison {place}" for place in (1, 3, 2)]
        assert texts[2].startswith(f"Primary comparison 2 of {3 + len(more)}, pretraining=sar_scenes")
        assert texts[2].endswith("steps=804 (real_images=10): no finished run of the treatment.")
        if more:
            assert texts[3].endswith("against steps=6: no finished run of the treatment and of the control.")
        assert len(texts) == 4 + len(more)
    few = study([PASTE, COMBINED], seeds=6)
    texts = Summary.of(few).answer
    assert "not enough runs to tell chance from effect; 7 seeds are needed" in texts[0]


def test_significance_needs_an_interval_that_excludes_zero() -> None:
    found = study([PASTE])
    (change,) = [each.differences["map_50"] for each in found.contrasts if each.kind == "primary"]
    assert change.significant
    assert change.interval is not None
    wide = replace(change, interval=replace(change.interval, low=-0.01))
    assert not wide.significant
    assert not replace(change, interval=None).significant
    assert not replace(wide, role="tested").significant
    assert replace(change, interval=None, role="tested").significant  # runs that keep no matches


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([], "must have the single key comparisons"),
        ({"comparisons": []}, "must have the single key comparisons"),
        ({"comparisons": [{"treatment": {"variations": 2}}]}, "comparison 1 needs the settings of a treatment"),
        ({"comparisons": [PASTE | {"step": 402}]}, "step is none of"),
        ({"comparisons": [PASTE, PASTE]}, "two comparisons of the same name"),
        ({"comparisons": [{"treatment": {"variations": 0}, "control": {}}]}, "the same condition"),
    ],
)
def test_files_that_cannot_be_understood(content: object, said: str) -> None:
    with pytest.raises(InputError, match=said):
        primary_comparisons(content, "p.yaml")


def test_more_images_alone_do_not_make_a_treatment_the_advice() -> None:
    """Variations of 80 images are better than 40 images without any, and worse than 80."""
    conditions = [({}, 40.0, 0.5, 9), ({}, 80.0, 0.7, 9), (PASTED, 80.0, 0.6, 9)]
    runs, figures = simulate_settings(conditions, seed_noise=0.004)
    entry = {
        "treatment": {"variations": 10, "generator": "copy_paste", "real_images": 80},
        "control": {"real_images": 40},
    }
    found = study_of(runs, condition_table(runs), figures, primary_comparisons({"comparisons": [entry]}, "p.yaml"))
    said = " ".join(Summary.of(found).answer)
    assert "significant gain" in said
    assert "What to do" not in said
    assert recommended(found)[0].variations == 0


def test_the_advice_is_the_treatment_whatever_the_comparison_is_called() -> None:
    entry = {**PASTE, "name": "real images alone against copy_paste"}
    (advice,) = (each for each in Summary.of(study([entry])).answer if each.startswith("What to do"))
    assert "use variations=10 generator=copy_paste steps=402 (" in advice


def test_sizes_that_are_compared_differ_in_nothing_but_their_images() -> None:
    sizes = {"treatment": {"real_images": 80}, "control": {"real_images": 40}}

    def compare(*settings: dict[str, str]) -> list[str]:
        conditions = [(each, size, 0.5, 6) for each, size in zip(settings, (40.0, 80.0), strict=True)]
        runs, figures = simulate_settings(conditions)
        named = primary_comparisons({"comparisons": [sizes]}, "p.yaml")
        return [each.kind for each in study_of(runs, condition_table(runs), figures, named).contrasts]

    assert "primary" in compare({}, {})
    assert "primary" in compare({"split.name": "s2", "split.train": "40"}, {"split.name": "s1", "split.train": "80"})
    with pytest.raises(InputError, match=r"also differ in split\.seed \(1 against 0\)"):
        compare({"split.seed": "0"}, {"split.seed": "1"})


def test_sides_that_fit_several_conditions_are_refused() -> None:
    several = {"treatment": {"variations": 10, "generator": "copy_paste"}, "control": {}}
    runs = study([PASTE]).runs
    more = [replace(run, condition={**run.condition, "trainer.steps": "200"}, run_id=f"{run.run_id}b") for run in runs]
    with pytest.raises(InputError, match=r"2 conditions fit .*name more settings in primary.yaml: trainer\.steps"):
        Study.of([*runs, *more], primary=primary_comparisons({"comparisons": [several]}, "p.yaml"))


def test_differences_that_are_not_named_are_refused() -> None:
    with pytest.raises(InputError, match=r"also differ in detector\.learning_rate \(0\.002 against null\)"):
        study([COMBINED], changed={"detector.learning_rate": "0.002"})
    named = {**COMBINED, "treatment": {**COMBINED["treatment"], "detector.learning_rate": 0.002}}
    found = study([named], changed={"detector.learning_rate": "0.002"})
    assert [each.kind for each in found.contrasts].count("primary") == 1


@pytest.mark.parametrize(
    ("treatment", "control", "more"),
    [
        (PASTED, PASTED | SIMULATED, {"generator.name": "repeat"}),
        (PASTED | {"labels.name": "carry"}, PASTED | SIMULATED, {"labels.name": "pseudo"}),
        # One side is pre-trained on variations, the other trains on them.
        (PASTED, ON_VARIATIONS, {"generator.name": "repeat"}),
        (PASTED | {"variations.seed": "0"}, ON_VARIATIONS, {"variations.seed": "1"}),
    ],
)
def test_another_generator_is_named_where_both_sides_have_one(
    treatment: dict[str, str], control: dict[str, str], more: dict[str, str]
) -> None:
    sides = {
        "treatment": {COUNT: treatment[COUNT]},
        "control": {COUNT: control[COUNT], "pretraining": control["pretraining.name"]},
    }

    def compare(entry: dict[str, Any], of_control: dict[str, str]) -> list[str]:
        runs, figures = simulate_settings([(treatment, 10.0, 0.5, 2), (of_control, 10.0, 0.6, 2)])
        named = primary_comparisons({"comparisons": [entry]}, "p.yaml")
        return [each.kind for each in study_of(runs, condition_table(runs), figures, named).contrasts]

    assert "primary" in compare(sides, {**control, **{key: treatment.get(key, "null") for key in more}})
    with pytest.raises(InputError, match=f"also differ in {next(iter(more))}"):
        compare(sides, control | more)
    assert "primary" in compare(sides | {"control": sides["control"] | more}, control | more)


def test_what_follows_from_having_no_variations_need_not_be_named() -> None:
    without = {"generator": "null", "labels": "null", "variations.seed": "0"}
    entry = {"treatment": {"pretraining": "variations"}, "control": {}}
    runs, figures = simulate_settings(
        [(without, 10.0, 0.5, 2), (ON_VARIATIONS | {"variations.seed": "1"}, 10.0, 0.6, 2)]
    )
    named = primary_comparisons({"comparisons": [entry]}, "p.yaml")
    assert "primary" in {each.kind for each in study_of(runs, condition_table(runs), figures, named).contrasts}


@pytest.mark.parametrize("unsaid", ["treatment", "control"])
def test_steps_that_differ_are_named_on_both_sides(unsaid: str) -> None:
    sides = {side: {key: value for key, value in PASTE[side].items() if key != "steps"} for side in (unsaid,)}
    with pytest.raises(InputError, match=r"also differ in trainer\.steps \(402 against 804\); name these settings"):
        study([PASTE | sides])


def test_steps_that_follow_from_equal_epochs_need_not_be_named() -> None:
    epochs = {"trainer.epochs": "50"}
    runs, figures = simulate_settings(
        [(epochs, 10.0, 0.5, 2), (PASTED | epochs | {"trainer.steps": "804"}, 10.0, 0.6, 2)]
    )
    entry = {"treatment": {"variations": 10}, "control": {}}
    named = primary_comparisons({"comparisons": [entry]}, "p.yaml")
    assert "primary" in {each.kind for each in study_of(runs, condition_table(runs), figures, named).contrasts}


def test_images_beside_the_data_set_are_named_by_their_number() -> None:
    beside = {"unlabelled_images": "70-3f2a91bc0d12"}
    runs, figures = simulate_settings(
        [
            ({}, 10.0, 0.5, 6),
            (beside, 10.0, 0.55, 6),
            (beside | {"empty_images": "9-0123456789ab"}, 10.0, 0.6, 6),
            ({"unlabelled_images": "30-0123456789ab"}, 10.0, 0.6, 6),
        ],
        seed_noise=0.004,
    )
    rows = condition_table(runs)

    def compare(*entries: dict[str, Any]) -> list[Contrast]:
        named = primary_comparisons({"comparisons": list(entries)}, "p.yaml")
        return [each for each in study_of(runs, rows, figures, named).contrasts if each.kind == "primary"]

    unlabelled = {"treatment": {"unlabelled_images": 70}, "control": {"unlabelled_images": 0}}
    empty = {"treatment": {"empty_images": 9}, "control": {}, "unlabelled_images": 70}
    by_hash = {"treatment": {"unlabelled_images": beside["unlabelled_images"]}, "control": {}}
    changes = [each.differences["map_50"].mean for each in compare(unlabelled, empty, by_hash)]
    assert changes == pytest.approx([0.05, 0.05, 0.05], abs=0.02)
    assert changes[0] == changes[2]
    assert compare({"treatment": {"unlabelled_images": 7}, "control": {}}) == []


def test_the_file_is_kept_beside_report_and_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = tmp_path / "runs"
    for ap50, (variations, generator) in zip((0.5, 0.6), ((0, "none"), (10, "repeat")), strict=True):
        for seed in range(6):
            folder = runs / f"x{variations}-{seed}"
            folder.mkdir(parents=True)
            names = {"dataset": "d", "split": "s1", "generator": generator, "detector": "n", "steps": 6}
            condition = {"variations": {"per_image": variations}, "split": {"name": "s1"}, "data": {"test": "5"}}
            condition["generator"] = {"name": generator} if variations else {}
            metrics = {"test/map": 0.2, "test/map_50": ap50 + seed / 1000, "test/count_mae": 1.0}
            record = {"study": "mine", "params": names | {"variations": variations, "seed": seed}, "metrics": metrics}
            (folder / "result.json").write_text(json.dumps(record | {"condition": condition}))
    file = tmp_path / "mine.yaml"
    file.write_text("comparisons:\n- {treatment: {variations: 10, generator: repeat}, control: {variations: 0}}\n")
    settings = {"study": None, "runs": str(runs), "primary": str(file), "folder": str(tmp_path / "reports")}
    config = OmegaConf.create(settings | {"annotations": None, "plan": False, "brief": False})
    page = compare_study(config).read_text()
    assert "Primary comparison 1 of 1, variations=10 generator=repeat against variations=0" in page
    kept = tmp_path / "reports" / "mine" / PRIMARY_FILE
    assert kept.read_text() == file.read_text()
    config.primary = None  # once named, they stay
    assert compare_study(config).read_text() == page
    kept.rename(runs / PRIMARY_FILE)
    assert compare_study(config).read_text() == page
    assert "Primary comparison 1 of 1" in capsys.readouterr().out
    config.primary = str(tmp_path / "other.yaml")
    with pytest.raises(InputError, match="there is no such file"):
        compare_study(config)
    (tmp_path / "other.yaml").write_text("comparisons: [")
    with pytest.raises(InputError, match="not readable as YAML"):
        compare_study(config)


def test_files_of_several_folders_are_equal_or_one_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = "comparisons:\n- {treatment: {variations: %d, generator: repeat}, control: {variations: 0}}\n"
    folders = [tmp_path / name for name in ("a", "b", "report")]
    for folder in folders[:2]:
        folder.mkdir()
        (folder / PRIMARY_FILE).write_text(text % 10)
    with caplog.at_level("INFO"):
        assert len(kept_primary(None, *folders)) == 1
    assert f"primary comparisons: {folders[0] / PRIMARY_FILE}" in caplog.text
    other = folders[1] / PRIMARY_FILE
    other.write_text(text % 2)
    with pytest.raises(InputError, match=r"a/primary.yaml, .*b/primary.yaml, .* choose one of them: primary=FILE$"):
        kept_primary(None, *folders)
    assert kept_primary(str(other), *folders) == kept_primary(None, folders[1], folders[2])
    (folders[1] / "runs.zip").touch()
    assert kept_primary(None, folders[1] / "runs.zip", folders[2]) == kept_primary(None, folders[1], folders[2])


def test_a_page_without_primary_comparisons_names_none() -> None:
    runs = [finished_run(f"r{seed}", 0, seed, metrics={"test/map_50": 0.5}) for seed in range(2)]
    assert "rimary" not in " ".join([*Summary.of(Study.of(runs)).answer, *Summary.of(Study.of(runs)).notes])


def test_changed_simulated_images_are_compared_with_those_as_they_are() -> None:
    ways = {
        "raw": {"pretraining_images": "simulation 2"},
        "matched": {"pretraining_images": "simulation 2, changed a", "pretraining.redraw": "matched"},
        "redrawn": {
            "pretraining_images": "simulation 2, changed b",
            "pretraining.redraw": "diffusion",
            "pretraining.redraw_strength": "0.3",
            "pretraining.model": "abc",
        },
    }
    runs, _ = simulate_settings([(SIMULATED | way, 10.0, 0.5, 3) for way in ways.values()], seed_noise=0.004)
    rows = condition_table(runs)
    assert [each.get("pretraining.redraw") for each in differences([row.values for row in rows])].count("matched") == 1
    assert {key for each in differences([row.values for row in rows]) for key in each} == {"pretraining.redraw"}
    sides = {"treatment": {"pretraining.redraw": "diffusion"}, "pretraining": "sar_scenes", "real_images": 10}
    for control in ({"pretraining.redraw": "matched"}, {}):
        (comparison,) = primary_comparisons({"comparisons": [sides | {"control": control}]}, "p.yaml")
        new, old = find_rows(rows, comparison)
        assert new is not None
        assert old is not None
        assert old.values.get("pretraining.redraw") == control.get("pretraining.redraw")


H200, CPU = ({"device": device, "precision": "bf16-mixed"} for device in ("NVIDIA H200", "cpu"))


def on_devices(devices: Mapping[str, Mapping[str, str]], seeds: Mapping[str, Sequence[int]]) -> Study:
    """Conditions at ten images by name and device: none on an H200, on a CPU ("none cpu"), and simulation on a CPU."""
    conditions = [({}, 10.0, 0.5, 9), ({}, 10.0, 0.52, 9), (SIMULATED, 10.0, 0.58, 9)]
    made, figures = simulate_settings(conditions, seed_noise=0.004)
    runs = [
        replace(run, provenance=devices[name])
        for name, place in (("none", 0), ("none cpu", 1), ("simulated", 2))
        for run in made[9 * place : 9 * place + 9]
        if run.seed in seeds[name]
    ]
    entry = {"treatment": {"pretraining": "sar_scenes"}, "control": {}, "real_images": 10}
    return study_of(runs, condition_table(runs), figures, primary_comparisons({"comparisons": [entry]}, "p.yaml"))


def test_a_condition_that_ran_on_two_kinds_of_device_is_paired_on_that_of_the_other_side(tmp_path: Path) -> None:
    devices = {"none": H200, "none cpu": CPU, "simulated": CPU}
    found = on_devices(devices, {"none": range(9), "none cpu": range(9), "simulated": range(9)})
    assert [(row.values["device"], len(row.seeds)) for row in found.rows] == [
        ("NVIDIA H200", 9),
        ("cpu", 9),
        ("cpu", 9),
    ]
    assert len({row.name for row in found.rows}) == 3
    kinds = [(each.kind, each.new.first.machine, each.old.first.machine) for each in found.contrasts]
    assert kinds == [(kind, "cpu bf16-mixed", "cpu bf16-mixed") for kind in ("primary", "pretraining")]
    change = found.contrasts[0].differences["map_50"]
    assert (change.pairs, change.unpaired, change.significant) == (9, 0, True)
    assert change.mean == pytest.approx(0.06, abs=0.02)
    summary = Summary.of(found)
    page = write_report(found, summary, tmp_path).read_text()
    for text in (printed(found, summary), page):
        assert "Primary comparison 1 of 1, pretraining=sar_scenes against none (real_images=10), on cpu: AP50" in text
        assert "NVIDIA H200" in text
        assert "9 seeds): significant gain" in text
    assert any("rows are compared with rows of their own kind alone" in note for note in summary.notes)
    assert not any("unknown" in text for text in summary.answer)


def test_the_kind_of_device_with_most_pairs_is_taken_and_the_others_are_shown() -> None:
    seeds = {"none": range(9), "none cpu": range(4), "simulated": range(2, 9)}
    # On the CPU, two of the seeds of simulation have runs of none.
    (first, *_) = on_devices({"none": H200, "none cpu": CPU, "simulated": CPU}, seeds).contrasts
    assert (first.old.first.machine, first.differences["map_50"].pairs) == ("cpu bf16-mixed", 2)
    (first, *_) = on_devices({"none": H200, "none cpu": CPU, "simulated": H200}, seeds).contrasts
    assert (first.old.first.machine, first.differences["map_50"].pairs) == ("NVIDIA H200 bf16-mixed", 7)


def test_runs_on_different_kinds_of_device_are_said_not_to_be_paired() -> None:
    found = on_devices(
        {"none": H200, "none cpu": CPU, "simulated": CPU}, {"none": range(9), "none cpu": [], "simulated": range(6)}
    )
    assert "device" not in found.rows[0].values
    (change, _) = [each.differences["map_50"] for each in found.contrasts]
    assert (change.pairs, change.unpaired) == (0, 6)
    text = Summary.of(found).answer[0]
    assert (
        "difference unknown (not paired, since the runs were made on different kinds of device: "
        "NVIDIA H200 bf16-mixed and cpu bf16-mixed): not enough runs" in text
    )
    both = on_devices(
        {"none": H200, "none cpu": CPU, "simulated": CPU},
        {"none": range(3), "none cpu": range(3, 9), "simulated": range(9)},
    )
    text = Summary.of(both).answer[0]
    assert "6 seeds; 3 more not paired, as run on different kinds of device)" in text


def test_the_same_run_on_two_kinds_of_device_is_two_runs(tmp_path: Path) -> None:
    params = {"dataset": "d", "split": "s1", "generator": "none", "detector": "n", "steps": 6, "variations": 0}
    for provenance, ap50 in ((H200, 0.5), (CPU, 0.6)):
        folder = tmp_path / provenance["device"] / "run0"
        folder.mkdir(parents=True)
        metrics = {"test/map": 0.2, "test/map_50": ap50, "test/count_mae": 1.0}
        record = {"study": "mine", "identity": "same", "params": params | {"seed": 0}, "metrics": metrics}
        condition = {"split": {"name": "s1"}, "variations": {"per_image": 0}}
        content = record | {"provenance": provenance, "condition": condition}
        (folder / "result.json").write_text(json.dumps(content))
    rows = condition_table(runs_in(tmp_path / "NVIDIA H200", tmp_path / "cpu"))
    assert [row.estimates["map_50"].mean for row in rows] == [0.5, 0.6]
    assert [row.name for row in rows] == ["NVIDIA H200, s1", "cpu, s1"]
