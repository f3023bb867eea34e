"""Random effects that seeds share: pre-trainings, and the draw of the training images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from simulated_study import simulate_settings, study_of

from boxtwin.studies.comparison import Difference
from boxtwin.studies.conditions import condition_table
from boxtwin.studies.draws import repeated_draws
from boxtwin.studies.label_versions import LabelVersions
from boxtwin.studies.primary import primary_comparisons
from boxtwin.studies.report.summary import Summary
from boxtwin.studies.runs import StudyRun
from boxtwin.studies.study import Study

PASTED = {"variations.per_image": "10", "generator.name": "copy_paste"}
SIMULATED = {"pretraining.name": "sar_scenes"}


def pretrained(pretrainings: int) -> Study:
    """Nine seeds with and without a pre-training of which there are so many; another adds 0, 2, 4… points of AP50."""
    runs, figures = simulate_settings([({}, 10.0, 0.5, 9), (SIMULATED, 10.0, 0.6, 9)], seed_noise=0.004)
    for place, run in enumerate(runs):
        if "pretraining.name" in run.condition:
            number = run.seed // (9 // pretrainings)
            runs[place] = replace(run, pretraining_seed=number)
            figures._simulated[run.run_id] = {k: v + 0.02 * number for k, v in figures._simulated[run.run_id].items()}
    return study_of(runs, condition_table(runs), figures)


def gain(study: Study) -> Difference:
    (change,) = [each.differences["map_50"] for each in study.contrasts if each.kind == "pretraining"]
    return change


def test_pairs_are_formed_over_the_seed_of_the_run_and_clustered_by_pretraining() -> None:
    one, three = gain(pretrained(1)), gain(pretrained(3))
    assert one.pairs == three.pairs == 9
    assert one.interval is not None
    assert three.interval is not None
    # Means of three pre-trainings at about 0, 2 and 4 points.
    assert three.interval.seed_variance == pytest.approx(np.var([0, 0.02, 0.04], ddof=1) / 3, rel=0.35)
    assert one.interval.seed_variance < three.interval.seed_variance / 20


@pytest.mark.parametrize(
    ("pretrainings", "said"),
    [
        (1, "Where one pre-training serves 9 seeds, no interval covers the choice of another"),
        (3, "Where 3 pre-trainings serve 9 seeds, intervals take runs of one pre-training for a cluster"),
        (9, ""),
    ],
)
def test_the_notes_say_which_chance_an_interval_covers(pretrainings: int, said: str) -> None:
    study = pretrained(pretrainings)
    notes = " ".join(Summary.of(study).notes)
    assert said in notes
    assert ("Where" in notes) == bool(said)
    assert "They cover no other training images" in notes
    row = next(row for row in study.rows if row.first.pretraining_seed is not None)
    assert row.estimates["map_50"].clusters == tuple(seed // (9 // pretrainings) for seed in range(9))


def test_draws_without_a_common_seed_are_left_out() -> None:
    conditions = [({}, 10.0, 0.5, 6), (PASTED, 10.0, 0.55, 6)]
    for seed in (1, 2):
        draw = {"split.seed": str(seed), "data.train": f"draw {seed}"}
        conditions += [(draw, 10.0, 0.5, 3), (draw | PASTED, 10.0, 0.55, 3)]
    runs, figures = simulate_settings(conditions)

    # A sweep that was interrupted: with variations, the last draw has another seed than without.
    def kept(run: StudyRun) -> bool:
        seed = 0 if run.condition.items() >= PASTED.items() else 1
        return run.condition.get("data.train") != "draw 2" or run.seed == seed

    cut = list(filter(kept, runs))
    study = study_of(cut, condition_table(cut), figures)
    (draws,) = repeated_draws(study.rows, study.contrasts, study.resampled)
    assert [change.pairs for change in draws.changes] == [6, 3]


def corrected(runs: Sequence[StudyRun]) -> list[StudyRun]:
    """The runs with the name of their annotations, by the version that their settings give their images."""
    return [
        replace(run, overrides=f"{run.overrides} dataset.annotations=labels/{run.condition['data.train'][-1]}.json")
        for run in runs
    ]


def test_versions_of_labels_are_no_draws_and_no_more_images() -> None:
    """40 and 80 images with the labels before (a) and after a correction (b), of the same test labels."""
    versions = [{"data.train": f"{size}{version}"} for size in (40, 80) for version in "ab"]
    values = (0.52, 0.61, 0.62, 0.71)
    conditions = [
        (version, float(version["data.train"][:2]), ap50, 6) for version, ap50 in zip(versions, values, strict=True)
    ]
    conditions += [(version | PASTED, 40.0, 0.55, 6) for version in versions[:2]]
    runs, figures = simulate_settings(conditions, seed_noise=0.004, own_image_noise=0.0)
    runs = corrected(runs)
    study = study_of(runs, condition_table(runs), figures)
    positive = [each for each in study.contrasts if each.kind == "positive control"]
    assert [each.differences["map_50"].mean for each in positive] == pytest.approx([0.1, 0.1], abs=0.01)
    assert all(each.new.first.label_names == each.old.first.label_names for each in positive)
    assert repeated_draws(study.rows, study.contrasts, figures) == []


def test_images_with_labels_of_another_version_are_no_draw_whatever_the_names() -> None:
    """A correction of images that the smaller split has not leaves its labels as they were, and so joins the names."""
    versions = [({"data.train": f"80{version}"} | more, 80.0, 0.6, 6) for version in "ab" for more in ({}, PASTED)]
    runs, figures = simulate_settings(versions, seed_noise=0.004, own_image_noise=0.0)
    for images, draws in ((["the same"] * 2, 0), (["some", "others"], 1), (["", ""], 1)):
        known = [replace(run, images=images[run.condition["data.train"] == "80b"]) for run in runs]
        study = study_of(known, condition_table(known), figures)
        assert len(repeated_draws(study.rows, study.contrasts, figures)) == draws


def test_files_of_one_name_in_two_folders_are_two_versions_of_labels() -> None:
    runs, _ = simulate_settings([({}, 40.0, 0.5, 3), ({}, 80.0, 0.6, 3)])
    for folders, versions in ((("old", "new"), 2), (("a/labels", "b/labels"), 1)):
        by_size = dict(zip((40, 80), folders, strict=True))
        typed = [f"dataset.annotations={by_size[run.train_size or 0]}/annotations.json" for run in runs]
        placed = [replace(run, overrides=each) for run, each in zip(runs, typed, strict=True)]
        rows = condition_table(placed)
        assert len({LabelVersions(rows).of(row) for row in rows}) == versions


def test_names_of_the_same_data_are_one_version_of_labels() -> None:
    conditions = [({}, 40.0, 0.5, 3), ({"trainer.steps": "804"}, 40.0, 0.5, 3), ({}, 80.0, 0.6, 3)]
    runs, _ = simulate_settings(conditions)
    roots = {"40402": "mine", "40804": "yours", "80402": "yours"}
    runs = [replace(run, overrides=f"dataset.root=a/{roots[f'{run.train_size}{run.steps}']}") for run in runs]
    rows = condition_table(runs)
    assert len({LabelVersions(rows).of(row) for row in rows}) == 1
    apart = [row for row in rows if row.first.steps == 402]
    assert len({LabelVersions(apart).of(row) for row in apart}) == 2


def test_a_comparison_on_several_draws() -> None:
    others = [({"split.seed": str(seed), "data.train": f"draw {seed}"}, 0.5 + 0.01 * seed) for seed in (1, 2)]
    conditions = [({}, 10.0, 0.5, 9), (PASTED, 10.0, 0.55, 9), ({}, 20.0, 0.6, 3), (PASTED, 20.0, 0.6, 3)]
    conditions += [(draw, 10.0, ap50, 3) for draw, ap50 in others]
    conditions += [(draw | PASTED, 10.0, ap50 + 0.02, 3) for draw, ap50 in others]
    runs, figures = simulate_settings(conditions, seed_noise=0.004, own_image_noise=0.0)
    rows = condition_table(runs)
    study = study_of(runs, rows, figures)
    (found,) = repeated_draws(rows, study.contrasts, figures)
    assert [change.pairs for change in found.changes] == [9, 3, 3]
    assert [change.mean for change in found.changes] == pytest.approx([0.05, 0.02, 0.02], abs=0.01)
    assert found.interval is not None
    assert found.mean == pytest.approx(found.interval.mean)
    assert found.interval.low < found.mean < found.interval.high
    (section,) = [each for each in Summary.of(study).sections if "draws" in each.title]
    assert "on 3 draws of the training images" in section.sentences[0]
    # A primary comparison at other numbers of steps on each side.
    longer = [replace(run, condition={**run.condition, "trainer.steps": "804"}) for run in runs if not run.variations]
    sides = {"treatment": {"variations": 10, "steps": 402}, "control": {"steps": 804}}
    entry = sides | {"real_images": 10, "split.seed": None}
    primary = primary_comparisons({"comparisons": [entry]}, "p.yaml")
    runs = [*longer, *(run for run in runs if run.variations)]
    study = study_of(runs, condition_table(runs), figures, primary)
    (found,) = repeated_draws(study.rows, study.contrasts, figures)
    assert len(found.changes) == 3
    assert found.contrast.kind == "primary"
    alone = [run for run in runs if "split.seed" not in run.condition]
    assert (
        repeated_draws(condition_table(alone), study_of(alone, condition_table(alone), figures).contrasts, figures)
        == []
    )
