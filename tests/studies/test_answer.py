"""The short answer of studies with a known truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from simulated_study import Simulated, simulate

from boxtwin.studies.archive import runs_folder
from boxtwin.studies.comparison import Figures, contrasts
from boxtwin.studies.conditions import condition_table
from boxtwin.studies.evidence import Evidence
from boxtwin.studies.report.summary import answer
from boxtwin.studies.runs import cells_in

ROOT = Path(__file__).parents[2]

PLAIN = [("s1", 0, "none", 80.0, 0.7), ("s2", 0, "none", 40.0, 0.6)]


def said(conditions: Sequence[Simulated], kept: bool = True, **settings: Any) -> list[str]:
    _, rows, figures = simulate(conditions, **{"seeds": 9, "seed_noise": 0.005, "own_image_noise": 0.01, **settings})
    return answer(rows, contrasts(rows, figures if kept else Figures({})))


def with_variations(ap50: float, generator: str = "pixel_ddpm", counts: tuple[int, ...] = (10,)) -> list[Simulated]:
    return [("s2", count, generator, 40.0, ap50) for count in counts]


def test_a_gain_beside_its_controls() -> None:
    conditions = [*PLAIN, *with_variations(0.63, counts=(2,)), *with_variations(0.68), *with_variations(0.6, "repeat")]
    of_s2, yardstick, advice = said(conditions)
    assert of_s2.startswith("On s2 (40 real images), 10 variations of each image by pixel_ddpm raise AP50 by ")
    assert "; 9 seeds): established." in of_s2
    assert "; the difference to repeat is established. With 2 it is +" in of_s2
    assert yardstick.startswith("Twice the real images (80 instead of 40) bring +")
    assert yardstick.endswith("established: this set-up sees what data is worth.")
    assert advice == "What to do: use them (on s2 10 by pixel_ddpm)."


@pytest.mark.parametrize(
    ("control", "told", "advice"),
    [
        (0.6, "the difference to copy_paste is established", "use them (on s2 10 by pixel_ddpm)."),
        (0.66, "no difference to these is established", "or copy_paste, which costs less and is not established to be"),
    ],
)
def test_a_control_that_does_as_well_is_cheaper(control: float, told: str, advice: str) -> None:
    found = said([*PLAIN, *with_variations(0.66), *with_variations(control, "copy_paste")])
    assert "As many by other means: copy_paste +" in found[0]
    assert told in found[0]
    assert advice in found[-1]


def test_a_gain_without_controls_asks_for_them() -> None:
    assert "add generator=repeat,copy_paste" in said([*PLAIN, *with_variations(0.66)])[-1]
    # A control by itself is what the study is about.
    found = said([*PLAIN, *with_variations(0.66, "copy_paste")])
    assert "by copy_paste raise AP50 by" in found[0]
    assert found[-1] == "What to do: use them (on s2 10 by copy_paste)."


def test_the_best_number_that_is_established_comes_first() -> None:
    found = said([*PLAIN, *with_variations(0.64, counts=(1,)), *with_variations(0.6, counts=(20,))])
    assert "1 variation of each image by pixel_ddpm raises AP50 by" in found[0]
    assert "With 20 it is " in found[0]
    found = said([*PLAIN, *with_variations(0.6, counts=(2, 5, 20))], seeds=10)
    assert "20 variations of each image" in found[0]
    assert "With 2, 5 it is " in found[0]


def test_nothing_is_bounded_by_the_interval() -> None:
    nothing, _, advice = said([*PLAIN, *with_variations(0.6)])
    high = nothing.partition(" to +")[2].partition(";")[0]
    assert f"no gain is established, and one of more than {high} points is unlikely." in nothing
    assert "leave these variations out and label more real images, which brought " in advice
    assert f"hardly bring more than {high}." in advice


def test_the_bound_is_that_of_all_numbers_tried() -> None:
    wide = [*PLAIN, *with_variations(0.6, counts=(1,)), *with_variations(0.595, counts=(10,))]
    _, rows, figures = simulate(wide, seeds=9, seed_noise=0.005, own_image_noise=0.01)
    found = contrasts(rows, figures)
    intervals = [c.differences["map_50"].interval for c in found if c.kind == "variations"]
    highs = [interval.high for interval in intervals if interval is not None]
    assert highs[0] > highs[1]
    assert f"hardly bring more than {100 * highs[0]:.1f}." in answer(rows, found)[-1]


def test_tighter_boxes_without_more_objects() -> None:
    _, rows, figures = simulate(
        [*PLAIN, *with_variations(0.6, counts=(2, 10))], seeds=9, seed_noise=0.005, own_image_noise=0.01
    )
    found = contrasts(rows, figures)
    place = next(k for k, contrast in enumerate(found) if contrast.new.variations == 2)
    ap = replace(found[place].differences["map"], mean=0.006, p_holm=0.03)
    assert not any(c.differences["map"].established for c in found if c.new.variations == 10)
    found[place] = replace(found[place], differences={**found[place].differences, "map": ap})
    nothing, _, advice = answer(rows, found)
    assert "10 variations of each image by pixel_ddpm change AP50 by " in nothing
    assert "AP, with 2, changes by +0.6 points (95 % interval " in nothing
    assert "expect little of these variations, 0.6 points of AP and hardly more than " in advice


def test_a_loss() -> None:
    found = said([*PLAIN, *with_variations(0.55)])
    assert "lower AP50 by " in found[0]
    assert found[-1] == "What to do: leave these variations out: they cost accuracy."


def test_too_few_seeds_tell_nothing() -> None:
    found = said([*PLAIN, *with_variations(0.7, counts=(2, 10))], seeds=5)
    assert "not enough runs to tell chance from effect, which takes 7 seeds" in found[0]
    assert "established" not in found[0]
    assert "takes 6 seeds to tell" in found[1]
    assert "7 seeds in common are needed, and there are 5." in found[2]
    assert "there is 1." in said([*PLAIN, *with_variations(0.7)], seeds=1)[-1]


def test_a_set_up_that_sees_nothing_gives_no_advice_on_variations() -> None:
    blind = [("s1", 0, "none", 80.0, 0.6), PLAIN[1]]
    _, yardstick, advice = said([*blind, *with_variations(0.6)])
    assert "could hardly have seen a gain" in yardstick
    assert advice.startswith("What to do: first find a set-up")
    advice = said([*blind, *with_variations(0.6, counts=(2, 10))], seeds=6)[-1]
    assert advice.startswith("What to do: first find a set-up")
    assert "then run more seeds before you believe" in advice


def test_wide_intervals_leave_the_question_open() -> None:
    found = said([*PLAIN, *with_variations(0.62)], seeds=12, own_image_noise=0.2, seed_noise=0.04)
    assert "established: this set-up sees" in found[1]
    assert "a gain may still be there" in found[-1]
    # Without a yardstick nobody knows how much would be much.
    assert "a gain may still be there" in said([PLAIN[1], *with_variations(0.6)])[-1]


def test_cells_that_keep_no_matches_have_no_intervals() -> None:
    found = said([*PLAIN, *with_variations(0.6)], kept=False)
    assert "(9 seeds): no gain is established." in found[0]


def test_each_setting_has_an_answer_of_its_own() -> None:
    found = said([*PLAIN, *with_variations(0.65)], steps=(300, 1200))
    assert len(found) == 6
    assert sum("What to do" in sentence for sentence in found) == 2
    assert len({sentence.partition("On s2")[0] for sentence in found if "On s2" in sentence}) == 2


def test_without_variations_there_is_no_answer() -> None:
    assert said(PLAIN) == []
    assert answer([], []) == []


def test_the_results_page_quotes_the_kept_runs() -> None:
    with runs_folder(ROOT / "docs/results/hrsid200") as folder:
        cells = cells_in(folder)
        evidence = {cell.run_id: found for cell in cells if (found := Evidence.load(Path(cell.output_dir))) is not None}
    assert len(cells) == len(evidence) == 90
    rows = condition_table(cells)
    quoted = " ".join((ROOT / "docs/results.md").read_text().replace("\n> ", "\n").split())
    for sentence in answer(rows, contrasts(rows, Figures(evidence))):
        assert f"- {sentence}" in quoted
