"""What to run next: forecasts against what comes, commands against what was typed, gaps that are found."""

from __future__ import annotations

import html
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from simulated_study import Simulated, simulate, study_of
from study_runs import finished_run

from boxtwin.studies.comparison import contrasts
from boxtwin.studies.conditions import condition_table
from boxtwin.studies.inference import Interval
from boxtwin.studies.next_runs import Candidate, command, plan
from boxtwin.studies.report.page import write_report
from boxtwin.studies.report.sections import next_runs_section, sections
from boxtwin.studies.report.summary import Summary
from boxtwin.studies.report.tables import candidates_table
from boxtwin.studies.study import Study

FULL: list[Simulated] = [
    ("s1", 0, "none", 80.0, 0.7),
    ("s1n20", 0, "none", 20.0, 0.5),
    ("s2", 0, "none", 40.0, 0.6),
    *(
        (split, 10, name, real, 0.65)
        for split, real in (("s1", 80.0), ("s2", 40.0))
        for name in ("pixel_ddpm", "repeat")
    ),
]


def planned(conditions: Sequence[Simulated], **settings: Any) -> list[Candidate]:
    runs, rows, figures = simulate(conditions, **{"seeds": 6, **settings})
    return plan(study_of(runs, rows, figures))


def gain_on_s2(candidate: Candidate) -> bool:
    contrast = candidate.contrast
    return contrast is not None and (contrast.kind, contrast.new.name) == ("variations", "s2 x10 pixel_ddpm")


@pytest.mark.parametrize(("seed_noise", "own_image_noise"), [(0.03, 0.05), (0.01, 0.2)])
def test_forecasts_are_what_comes(seed_noise: float, own_image_noise: float) -> None:
    # Twelve seeds are run; the first six foretell the width of all.
    ratios = []
    for rng in range(30):
        runs, rows, figures = simulate(
            [("s2", 0, "none", 40.0, 0.6), ("s2", 10, "x", 40.0, 0.6)],
            seeds=12,
            seed_noise=seed_noise,
            own_image_noise=own_image_noise,
            rng=rng,
        )
        (all_seeds,) = contrasts(rows, figures)
        (six,) = contrasts(condition_table(run for run in runs if run.seed < 6), figures)
        now, then = (each.differences["map_50"].interval for each in (six, all_seeds))
        assert now is not None
        assert then is not None
        ratios.append(now.after(12) / then.half_width)
        assert now.floor < now.after(12) < now.half_width
        assert now.after(10_006) == pytest.approx(now.floor, rel=0.02)
    assert np.mean(ratios) == pytest.approx(1, abs=0.1)


def test_seeds_do_not_get_below_the_images() -> None:
    interval = Interval(0.0, -1.0, 1.0, seed_variance=4.0, image_variance=1.0, pairs=6, images=100)
    widths = [interval.after(pairs) for pairs in (6, 12, 100, 10_000)]
    assert widths == sorted(widths, reverse=True)
    assert widths[0] == pytest.approx(interval.half_width)
    assert widths[-1] == pytest.approx(interval.floor, rel=0.02)
    assert replace(interval, seed_variance=0.0, image_variance=0.0).expected(6) == 0


@pytest.mark.parametrize(
    ("typed", "typed_for", "wanted", "made"),
    [
        (
            "experiment=x dataset.root=d split=s1 variations='10' generator=repeat generator.a=1 seed=3 data=d",
            "repeat",
            {"seeds": [6, 7]},
            "-m experiment=x dataset.root=d generator.a=1 data=d generator=repeat study=demo split=s2 "
            "variations=5 seed=6,7",
        ),
        (
            "experiment=x split=s1 variations=10 generator=pixel_ddpm generator.a=1 seed=3",
            "pixel_ddpm",
            {"size": 20},
            "experiment=x generator=repeat study=demo split=s2 variations=5 split.train_size=20 seed=0",
        ),
        # The generator that nobody typed keeps what was typed for it.
        (
            "generator.a=1 variations=2",
            "repeat",
            {},
            "generator.a=1 generator=repeat study=demo split=s2 variations=5 seed=0",
        ),
        # A pre-training on variations keeps their generator where none are mixed in afterwards.
        (
            "pretraining=variations generator=copy_paste generator.pastes=2 labels=carry variations.seed=1",
            "none",
            {"variations": 0, "generator": "repeat labels=pseudo"},
            "pretraining=variations generator=copy_paste generator.pastes=2 labels=carry variations.seed=1 study=demo "
            "split=s2 variations=0 seed=0",
        ),
        (
            "pretraining.per_image=10 generator=repeat variations=0",
            "none",
            {"variations": 0},
            "pretraining.per_image=10 generator=repeat study=demo split=s2 variations=0 seed=0",
        ),
        (
            "pretraining=sar_scenes generator=repeat variations=0",
            "none",
            {"variations": 0},
            "pretraining=sar_scenes study=demo split=s2 variations=0 seed=0",
        ),
        # What a sweep typed for all of its runs.
        ("generator=repeat generator.a=1", "none", {"variations": 0}, "study=demo split=s2 variations=0 seed=0"),
        (
            "generator=repeat generator.a=1 split.train_size=9",
            "none",
            {},
            "generator.a=1 generator=repeat study=demo split=s2 variations=5 seed=0",
        ),
        (
            "study=mine split.file=f split.name=s1 variations.per_image=3 a=[1,2]",
            "repeat",
            {},
            "study=mine split.file=f 'a=[1,2]' generator=repeat split.name=s2 variations=5 seed=0",
        ),
        # A study with several kinds of labels says which.
        (
            "labels=carry variations=2 generator.a=1",
            "repeat labels=carry",
            {"generator": "repeat labels=pseudo"},
            "generator.a=1 generator=repeat labels=pseudo study=demo split=s2 variations=5 seed=0",
        ),
        ("", "none", {"variations": 0, "split": "s1"}, "study=demo split=s1 variations=0 seed=0"),
        # A split that only the user's own file has stays as it was chosen; so does the plus of a setting that none has.
        (
            "--config-name=own split=mine split.train=9 +generator.a=1 seed=3",
            "repeat generator.a=1",
            {"split": None, "generator": "repeat generator.a=2"},
            "--config-name=own split=mine split.train=9 generator=repeat +generator.a=2 study=demo variations=5 seed=0",
        ),
    ],
)
def test_a_command_is_that_of_the_run_with_what_changes(
    typed: str, typed_for: str, wanted: dict[str, Any], made: str
) -> None:
    settings: dict[str, Any] = {
        "study": "demo",
        "split": "s2",
        "variations": 5,
        "generator": "repeat",
        "seeds": [0],
        "size": None,
    }
    assert command(typed, typed_for, **{"generator": "repeat"} | settings | wanted) == f"python train.py {made}"


def test_missing_seeds_come_with_the_number_that_holm_asks_for() -> None:
    found = planned(FULL)
    more = [candidate for candidate in found if candidate.question == "difference"]
    # Four gains over none in one table: 4 x 2 / 2^n is below 0.05 from 8 pairs on.
    eight = [c for c in more if c.contrast is not None and c.contrast.differences["map_50"].pairs_needed == 8]
    assert any(("s2 x10 pixel_ddpm", 2) in c.additions for c in eight)
    for candidate in more:
        assert candidate.now is not None
        assert candidate.after is not None
        assert candidate.floor is not None
        assert candidate.now > candidate.after > 0
        assert candidate.now > candidate.floor > 0
    for candidate in eight:
        assert "seed=6,7" in candidate.command
        assert candidate.command.count("python train.py -m") == 2
    gain = next(c for c in more if gain_on_s2(c))
    assert gain.runs == 4
    assert gain.minutes == pytest.approx(2 * 4.0 + 2 * 3.0)


def test_a_split_is_named_as_it_is() -> None:
    """Its name may have a blank, as the settings have that tell conditions of one split apart."""
    runs, _, figures = simulate([("my split", *row[1:]) for row in FULL if row[0] == "s2"], seeds=6)
    runs = [replace(run, overrides="") for run in runs]
    rows = condition_table(runs)
    found = plan(study_of(runs, rows, figures))
    assert found
    assert all("split='my split'" in command for each in found for command in each.command.split(" && "))


def test_seeds_of_one_side_are_completed_first() -> None:
    runs, _, figures = simulate(FULL[:1] + FULL[2:], seeds=6)
    runs = [run for run in runs if run.variations == 0 or run.seed == 0]
    rows = condition_table(runs)
    found = plan(study_of(runs, rows, figures))
    gain = next(c for c in found if gain_on_s2(c))
    assert gain.now is None
    assert "seed=1,2,3,4,5,6,7" in gain.command
    assert gain.additions == (("s2 x10 pixel_ddpm", 7), ("s2 x0", 2))


def test_gaps_are_found() -> None:
    alone = planned([("s1", 0, "none", 80.0, 0.7)])
    assert (alone[0].question, alone[0].additions) == ("data", (("s1 (40 of its images) x0", 6),))
    assert "split.train_size=40" in alone[0].command
    without_control = planned([row for row in FULL if row[2] != "repeat"])
    controls = [candidate.additions[0][0] for candidate in without_control if candidate.question == "control"]
    assert {"s2 x10 repeat", "s2 x10 copy_paste"} <= set(controls)
    with_gap = planned([row for row in FULL if (row[0], row[2]) != ("s1", "repeat")])
    assert any(c.question == "condition" and c.additions[0][0] == "s1 x10 repeat" for c in with_gap)
    few_sizes = planned([FULL[0], *FULL[2:]])
    assert any(c.question == "worth" and "split.train_size=20" in c.command for c in few_sizes)


def with_overrides(typed: Mapping[tuple[str, int], str], conditions: Sequence[Simulated]) -> list[Candidate]:
    """The candidates of a study of which it is known what was typed for each split and number of variations."""
    runs, _, figures = simulate(conditions, seeds=6)
    runs = [replace(run, overrides=f"{typed[run.split, run.variations]} seed={run.seed}") for run in runs]
    return plan(study_of(runs, condition_table(runs), figures))


def test_a_condition_of_another_split_keeps_the_data_and_the_split_of_its_own() -> None:
    small, large = "dataset=coco dataset.root=D split=s2 split.train=15", "dataset=coco dataset.root=LARGER split=s1"
    typed = {
        ("s2", 0): f"{small} variations=0 trainer.steps=60",
        ("s2", 10): f"{small} variations=10 generator=copy_paste generator.pastes=2 trainer.steps=60",
        ("s1", 0): f"{large} split.train=30 variations=0 trainer.steps=60",
    }
    rows: list[Simulated] = [
        ("s2", 0, "none", 15.0, 0.5),
        ("s2", 10, "copy_paste", 15.0, 0.5),
        ("s1", 0, "none", 30.0, 0.6),
    ]
    found = with_overrides(typed, rows)
    (command,) = [each.command for each in found if each.additions[0][0] == "s1 x10 copy_paste"]
    words = command.split()
    assert {"dataset.root=LARGER", "split=s1", "split.train=30", "generator.pastes=2", "variations=10"} <= set(words)
    assert not {"dataset.root=D", "split=s2", "split.train=15"} & set(words)
    assert words.count("trainer.steps=60") == 1


@pytest.mark.parametrize("said", ["", " split.train=30"])
def test_parts_of_a_split_from_a_file_say_how_many_images_it_has(said: str) -> None:
    typed = {("s1", 0): f"dataset=coco split=s1 split.file=mine.json{said} variations=0"}
    first = with_overrides(typed, [("s1", 0, "none", 30.0, 0.5)])[0]
    assert first.question == "data"
    assert first.command.split().count("split.train=30") == 1
    assert "split.train_size=15" in first.command
    (plain,) = {
        each.command
        for each in with_overrides({("s1", 0): "split=s1 variations=0"}, [("s1", 0, "none", 30.0, 0.5)])
        if each.question == "data"
    }
    assert "split.train=" not in plain


def test_a_control_has_no_labels_that_a_person_gave_to_other_images() -> None:
    typed = {
        ("s2", 0): "split=s2 variations=0",
        (
            "s2",
            10,
        ): "split=s2 variations=10 generator=pixel_ddpm labels=manual labels.file=confirmed.json",
    }
    found = with_overrides(typed, [("s2", 0, "none", 40.0, 0.5), ("s2", 10, "pixel_ddpm", 40.0, 0.6)])
    controls = [each.command for each in found if each.question == "control"]
    assert len(controls) == 2
    assert not any("labels" in command for command in controls)
    assert any("labels.file=confirmed.json" in each.command for each in found if each.generator == "pixel_ddpm")


@pytest.mark.parametrize(("own", "said"), [(True, "'pretraining.seed=${seed}'"), (False, "pretraining.seed=0")])
def test_new_seeds_have_pretrainings_of_their_own_where_others_have(own: bool, said: str) -> None:
    runs, _, figures = simulate([("s2", 0, "none", 40.0, 0.5), ("s2", 10, "repeat", 40.0, 0.6)], seeds=4)
    runs = [
        replace(run, overrides=f"{run.overrides} pretraining=sar_scenes pretraining.seed={run.seed if own else 0}")
        for run in runs
    ]
    commands = [each.command for each in plan(study_of(runs, condition_table(runs), figures))]
    assert any("seed=4" in command for command in commands)
    assert all(said in command for command in commands)


def test_half_the_images_are_not_proposed_where_the_whole_is_missing() -> None:
    typed = {("s2", 10): "split=s2 variations=10 generator=repeat"}
    found = with_overrides(typed, [("s2", 10, "repeat", 40.0, 0.6)])
    assert "data" not in [each.question for each in found]


def test_files_of_labels_keep_their_folder() -> None:
    made = command(
        "labels=manual labels.file=work/labels-1.json variations=2",
        "repeat labels.file=labels-1.json",
        study="s",
        split=None,
        variations=5,
        generator="repeat labels.file=labels-2.json",
        seeds=[0],
        size=None,
    )
    assert "labels.file=work/labels-2.json" in made.split()
    assert made.count("labels.file=") == 1


def test_a_number_beside_the_best_is_proposed() -> None:
    counts = [("s2", n, "pixel_ddpm", 40.0, 0.6 + gain) for n, gain in ((2, 0.05), (20, 0.0))]
    found = planned([("s1", 0, "none", 80.0, 0.7), ("s2", 0, "none", 40.0, 0.6), *counts], seeds=8, seed_noise=0.005)
    (number,) = [candidate for candidate in found if candidate.best is not None]
    assert number.now is not None
    assert number.after is not None
    assert number.now > number.after
    assert any(f"variations={n}" in number.command for n in range(1, 20))


def test_one_run_and_runs_that_do_not_say_what_was_typed() -> None:
    runs, _, figures = simulate(FULL[:1], seeds=1)
    runs = [replace(run, overrides="") for run in runs]
    candidates = plan(study_of(runs, condition_table(runs), figures))
    found = next_runs_section(candidates, runs)
    table = candidates_table(candidates)
    assert table[0].endswith("what to run")
    assert len(table) == len(candidates) + 1
    assert "python train.py -m study=simulated split=s1 variations=0 split.train_size=40 seed=" in found.sentences[0]
    assert "do not record what was typed" in found.sentences[-1]
    titles = [part.title for part in sections(Study.of(runs), candidates)]
    assert titles == ["Whether training was long enough", "What to run next"]
    assert sections(Study.of([])) == []


METRICS = {"test/map": 0.4, "test/map_50": 0.7, "test/count_mae": 1.0}


def test_only_finished_runs_are_made_again_and_no_absolute_path_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    evil = "dataset.name='x; touch PWNED'"
    typed = ["--config-dir=mine", f"dataset.root='{tmp_path}/my data'", evil, "variations=0"]
    runs = [
        finished_run(
            f"run{seed}",
            0,
            seed,
            metrics=METRICS,
            status=status,
            output_dir=str(tmp_path / "multirun" / f"run{seed}"),
            overrides=shlex.join([*typed, f"seed={seed}"]),
        )
        for seed, status in enumerate(("FINISHED", "FAILED", "KILLED"))
    ]
    study = Study.of(runs)
    page = write_report(study, Summary.of(study), tmp_path / "report").read_text()
    assert str(tmp_path) not in page
    assert "multirun/run0" in page
    commands = [
        shlex.split(html.unescape(line))
        for line in re.findall(r"python (?:train|compare)\.py [^<\n]*", page.partition('id="reproduce"')[2])
    ]
    made = ["--config-dir=mine", "dataset.root='my data'", evil, "variations=0", "seed=0"]
    assert commands == [["python", "train.py", *made], ["python", "compare.py", "study=demo"]]
