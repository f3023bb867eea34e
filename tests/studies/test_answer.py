"""The short answer of studies with a known truth: what it names, and what it advises."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from simulated_study import simulate

from boxtwin.studies.archive import runs_folder
from boxtwin.studies.comparison import Contrast, ResampledMetrics, contrasts
from boxtwin.studies.conditions import Row, condition_table
from boxtwin.studies.evidence import Evidence
from boxtwin.studies.report.summary import Answer, answer, answers, in_short
from boxtwin.studies.runs import runs_in

ROOT = Path(__file__).parents[2]

Condition = tuple[str, int, str, float, float]
PLAIN: list[Condition] = [("s1", 0, "none", 80.0, 0.7), ("s2", 0, "none", 40.0, 0.6)]


def all_of(conditions: Sequence[Condition], kept: bool = True, **settings: Any) -> list[Answer]:
    _, rows, figures = simulate(conditions, **{"seeds": 9, "seed_noise": 0.005, "own_image_noise": 0.01, **settings})
    compared = contrasts(rows, figures if kept else ResampledMetrics({}))
    values = answers(rows, compared)
    # A sentence for each generator and positive control, and one with the advice.
    assert len(answer(rows, compared)) == sum(
        len(each.groups) + len(each.positive_controls) + bool(each.advice) for each in values
    )
    short = in_short(rows, compared)
    assert len(short) == len(answer(rows, compared))
    assert all(text.count("AP50") == 1 for text in short if "What to do" not in text)  # one sentence each
    return values


def answer_of(conditions: Sequence[Condition], **settings: Any) -> Answer:
    (found,) = all_of(conditions, **settings)
    return found


def with_variations(ap50: float, generator: str = "pixel_ddpm", counts: Sequence[int] = (10,)) -> list[Condition]:
    return [("s2", count, generator, 40.0, ap50) for count in counts]


def named(values: dict[str, Any], key: str) -> list[int]:
    """The numbers of variations of a generator under a key, such as its lead."""
    return [each.new.variations for each in (values[key] if isinstance(values[key], list) else [values[key]])]


def test_the_answer_in_short() -> None:
    conditions = [*PLAIN, *with_variations(0.6), *with_variations(0.6, "copy_paste")]
    _, rows, figures = simulate(conditions, seeds=9, seed_noise=0.005, own_image_noise=0.01)
    variations, data, advice = in_short(rows, contrasts(rows, figures))
    number, interval = r"[+-]\d+\.\d", r"\(95 % interval [+-]\d+\.\d to [+-]\d+\.\d"
    assert re.fullmatch(
        rf"On 40 real images, 10 variations of each by pixel_ddpm change AP50 by {number} points {interval}; "
        rf"9 seeds\): not significant; as many by copy_paste, without diffusion, by {number} {interval}\): "
        r"not significant\.",
        variations,
    )
    assert re.fullmatch(
        r"More real images \(80 instead of 40, the positive control\) change AP50 by "
        rf"{number} points {interval}; 9 seeds\): significant\.",
        data,
    )
    assert advice == "What to do: label more real images instead of using these variations."
    one, *_ = in_short(*_few(conditions))
    assert one.count("too few seeds to tell") == 2


def test_a_control_at_another_number_of_variations_has_its_own_sentence() -> None:
    """Only one at the same number stands beside a generator; the answer must not lose the others."""
    found = answer_of([*PLAIN, *with_variations(0.6), *with_variations(0.7, "copy_paste", (2, 5))])
    assert [(each["lead"].new.generator, named(each, "controls")) for each in found.groups] == [
        ("pixel_ddpm", []),
        ("copy_paste", []),
    ]
    beside = answer_of([*PLAIN, *with_variations(0.6), *with_variations(0.7, "copy_paste", (2, 10))])
    assert [each["lead"].new.generator for each in beside.groups] == ["pixel_ddpm"]


def _nine(conditions: Sequence[Condition]) -> tuple[Sequence[Row], Sequence[Contrast]]:
    _, rows, figures = simulate(conditions, seeds=9, seed_noise=0.005, own_image_noise=0.01)
    return rows, contrasts(rows, figures)


def _few(conditions: Sequence[Condition]) -> tuple[Sequence[Row], Sequence[Contrast]]:
    _, rows, figures = simulate(conditions, seeds=3)
    return rows, contrasts(rows, figures)


def test_a_gain_beside_its_controls() -> None:
    conditions = [*PLAIN, *with_variations(0.63, counts=(2,)), *with_variations(0.68), *with_variations(0.6, "repeat")]
    found = answer_of(conditions)
    (of_s2,) = found.groups
    change = of_s2["lead"].differences["map_50"]
    assert (of_s2["lead"].new.split, of_s2["lead"].new.real_images, change.pairs) == ("s2", 40, 9)
    assert change.gain_significant
    assert (named(of_s2, "lead"), named(of_s2, "others")) == ([10], [2])
    ((control, of_control),) = of_s2["controls"]
    assert (control.old.generator, control.differences["map_50"].significant) == ("repeat", True)
    assert of_control.mean == pytest.approx(change.mean - control.differences["map_50"].mean)
    (positive_control,) = found.positive_controls
    assert (positive_control.new.real_images, positive_control.old.real_images) == (80, 40)
    assert positive_control.differences["map_50"].gain_significant
    data = positive_control.differences["map_50"].mean
    assert data > change.mean
    wins = [of_s2["lead"]]
    advice = {"kind": "use", "wins": wins, "gaining": wins, "without_controls": False, "equal": [], "data": data}
    assert found.advice == advice | {"few_controls": {}}


def test_a_control_alone_that_gains_is_advised() -> None:
    conditions = [*PLAIN, *with_variations(0.6), *with_variations(0.66, "copy_paste"), *with_variations(0.7, "repeat")]
    found = answer_of(conditions)
    assert named(found.groups[0], "lead") == [10]
    assert [win.new.generator for win in found.advice["wins"]] == ["copy_paste"]
    assert not found.advice["without_controls"]
    *_, advice = in_short(*_nine(conditions))
    assert "10 variations of each image by copy_paste on s2 (+" in advice
    assert "More real images gain more (+" in advice
    both = answer_of([*PLAIN, *with_variations(0.68), *with_variations(0.64, "copy_paste")])
    assert both.advice["equal"] == []
    assert [win.new.generator for win in both.advice["wins"]] == ["pixel_ddpm", "copy_paste"]


@pytest.mark.parametrize(("control", "equal"), [(0.6, []), (0.66, ["copy_paste"])])
def test_a_control_that_does_as_well_is_cheaper(control: float, equal: list[str]) -> None:
    found = answer_of([*PLAIN, *with_variations(0.66), *with_variations(control, "copy_paste")])
    ((compared, _),) = found.groups[0]["controls"]
    assert compared.differences["map_50"].significant == (not equal)
    assert (found.advice["kind"], found.advice["equal"]) == ("use", equal)


def test_a_control_that_gains_significantly_more_is_not_beaten() -> None:
    """At equal epochs, `repeat` shows that steps gain, and the images lose."""
    conditions = [*PLAIN, *with_variations(0.66), *with_variations(0.7, "repeat")]
    found = answer_of(conditions)
    ((compared, _),) = found.groups[0]["controls"]
    assert compared.differences["map_50"].significant
    assert (found.advice["kind"], found.advice["by"]) == ("beaten", ["repeat"])
    *_, advice = in_short(*_nine(conditions))
    assert re.match(
        r"What to do: do not use 10 variations of each image by pixel_ddpm on s2 .* control repeat gains .* more\.",
        advice,
    )
    both = answer_of([*conditions, *with_variations(0.66, "copy_paste")])
    assert [win.new.generator for win in both.advice["gaining"]] == ["copy_paste"]


def test_a_control_with_few_seeds_is_not_called_as_good() -> None:
    conditions = [*PLAIN, *with_variations(0.66), *with_variations(0.6, "repeat")]
    runs, _, figures = simulate(conditions, seeds=9, seed_noise=0.005, own_image_noise=0.01)
    rows = condition_table([run for run in runs if run.generator != "repeat" or run.seed == 0])
    (found,) = answers(rows, contrasts(rows, figures))
    assert (found.advice["kind"], found.advice["equal"], found.advice["without_controls"]) == ("use", [], False)
    assert found.advice["few_controls"]["names"] == ["repeat"]
    needed = found.advice["few_controls"]["seeds"]
    assert needed >= 6
    said = " ".join(answer(rows, contrasts(rows, figures)))
    assert f"too few seeds to tell a difference from these: {needed} are needed." in said
    assert f"Run {needed} seeds of repeat" in said
    assert "no significant difference" not in said
    assert "Add controls" not in said


def test_more_images_that_lower_ap_are_no_lack_of_seeds() -> None:
    *_, control, advice = in_short(*_nine([("s1", 0, "none", 80.0, 0.5), PLAIN[1], *with_variations(0.6)]))
    assert control.endswith(": significant.")
    assert "with which more real images help significantly" in advice
    texts = answer(*_nine([("s1", 0, "none", 80.0, 0.5), PLAIN[1], *with_variations(0.6)]))
    assert "significant: more real images lower AP50" in " ".join(texts)


def test_a_gain_without_controls_asks_for_them() -> None:
    assert answer_of([*PLAIN, *with_variations(0.66)]).advice["without_controls"]
    # A control by itself is what the study is about.
    found = answer_of([*PLAIN, *with_variations(0.66, "copy_paste")])
    assert found.groups[0]["lead"].new.generator == "copy_paste"
    assert (found.advice["kind"], found.advice["without_controls"]) == ("use", False)


def test_the_best_number_that_is_significant_comes_first() -> None:
    found = answer_of([*PLAIN, *with_variations(0.64, counts=(1,)), *with_variations(0.6, counts=(20,))])
    assert (named(found.groups[0], "lead"), named(found.groups[0], "others")) == ([1], [20])
    found = answer_of([*PLAIN, *with_variations(0.6, counts=(2, 5, 20))], seeds=10)
    assert (named(found.groups[0], "lead"), named(found.groups[0], "others")) == ([20], [2, 5])


def test_a_number_with_one_seed_does_not_come_first() -> None:
    """The largest number of those with enough seeds does; where none has enough, the largest of those with most."""
    conditions = [*PLAIN, *with_variations(0.6, counts=(2, 5, 10, 20))]
    runs, _, figures = simulate(conditions, seeds=9, seed_noise=0.005, own_image_noise=0.01)

    def lead(seeds: dict[int, int]) -> list[int]:
        rows = condition_table([run for run in runs if run.seed < seeds.get(run.variations, 9)])
        (found,) = answers(rows, contrasts(rows, figures))
        return named(found.groups[0], "lead")

    assert lead({20: 1}) == [10]
    assert lead({10: 8, 20: 1}) == [10]
    assert lead({0: 3, 20: 1}) == [10]
    assert lead({0: 3, 2: 2, 5: 2, 10: 1, 20: 1}) == [5]


@pytest.mark.parametrize("seeds", [1, 9])
def test_a_detector_that_has_learnt_nothing_needs_no_more_seeds(seeds: int) -> None:
    dull = [(*condition[:4], 0.02) for condition in [*PLAIN, *with_variations(0.0)]]
    _, rows, figures = simulate(dull, seeds=seeds, seed_noise=0.001, own_image_noise=0.0, image_noise=0.001)
    compared = contrasts(rows, figures)
    for texts in (answer(rows, compared), in_short(rows, compared)):
        assert re.fullmatch(
            r"What to do: first make the detector learn: its AP50 is 2\.\d at best after 1200 steps, .* "
            r"Train longer \(trainer\.steps\), begin with published weights \(detector\.weights\) or a pre-training, "
            r"or show objects larger \(dataset\.image_size\)\. More seeds do not help\.",
            texts[-1],
        )
    (alone,) = answers(rows[:2], contrasts(rows[:2], figures))  # the positive control
    assert alone.advice["kind"] == "untrained"


def test_nothing_is_bounded_by_the_interval() -> None:
    found = answer_of([*PLAIN, *with_variations(0.6)])
    change = found.groups[0]["lead"].differences["map_50"]
    assert not change.significant
    assert (found.advice["kind"], found.advice["ap"]) == ("little", 0)
    assert found.advice["bound"] == change.interval.high
    assert found.advice["data"] == found.positive_controls[0].differences["map_50"].mean


def test_the_bound_is_that_of_all_numbers_tried() -> None:
    wide = [*PLAIN, *with_variations(0.6, counts=(1,)), *with_variations(0.595, counts=(10,))]
    found = answer_of(wide)
    (values,) = found.groups
    highs = [each.differences["map_50"].interval.high for each in (*values["others"], values["lead"])]
    assert highs[0] > highs[1]
    assert found.advice["bound"] == highs[0]


def test_tighter_boxes_without_more_objects() -> None:
    _, rows, figures = simulate(
        [*PLAIN, *with_variations(0.6, counts=(2, 10))], seeds=9, seed_noise=0.005, own_image_noise=0.01
    )
    compared = contrasts(rows, figures)
    place = next(k for k, contrast in enumerate(compared) if contrast.new.variations == 2)
    ap = compared[place].differences["map"]
    assert ap.interval is not None
    ap = replace(ap, mean=0.006, p_holm=0.03, interval=replace(ap.interval, low=0.001, high=0.011))
    assert not any(c.differences["map"].significant for c in compared if c.new.variations == 10)
    compared[place] = replace(compared[place], differences={**compared[place].differences, "map": ap})
    (found,) = answers(rows, compared)
    assert (named(found.groups[0], "lead"), named(found.groups[0], "ap")) == ([10], [2])
    assert (found.advice["kind"], found.advice["ap"]) == ("little", 0.006)


def test_a_loss() -> None:
    found = answer_of([*PLAIN, *with_variations(0.55)])
    change = found.groups[0]["lead"].differences["map_50"]
    assert change.significant
    assert change.mean < 0
    assert found.advice == {"kind": "loss", "losses": [found.groups[0]["lead"]]}


def test_a_loss_of_one_treatment_says_nothing_of_the_others() -> None:
    conditions = [*PLAIN, *with_variations(0.602), *with_variations(0.5, "copy_paste")]
    found = answer_of(conditions)
    assert found.advice["kind"] == "little"
    assert [each.new.generator for each in found.advice["losses"]] == ["copy_paste"]
    *_, advice = in_short(*_nine(conditions))
    assert advice.startswith("What to do: label more real images")
    assert "Do not use 10 variations of each image by copy_paste on s2 (-" in advice


def test_a_control_is_equal_on_its_own_split_alone() -> None:
    here = [("s1", 10, "copy_paste", 80.0, 0.77), ("s1", 10, "pixel_ddpm", 80.0, 0.7)]
    found = answer_of([*PLAIN, *with_variations(0.66), *with_variations(0.66, "copy_paste"), *here])
    assert [(win.new.split, win.new.generator) for win in found.advice["wins"]] == [
        ("s1", "copy_paste"),
        ("s2", "pixel_ddpm"),
    ]


def test_too_few_seeds_tell_nothing() -> None:
    found = answer_of([*PLAIN, *with_variations(0.7, counts=(2, 10))], seeds=5)
    assert not any(
        each.differences["map_50"].could_be_significant for each in (found.groups[0]["lead"], *found.positive_controls)
    )
    assert found.positive_controls[0].differences["map_50"].pairs_needed == 6
    assert found.advice == {"kind": "seeds", "blind": False, "least": 7, "most": 7, "pairs": 5}
    assert answer_of([*PLAIN, *with_variations(0.7)], seeds=1).advice["pairs"] == 1


def test_a_set_up_that_sees_nothing_gives_no_advice_on_variations() -> None:
    blind: list[Condition] = [("s1", 0, "none", 80.0, 0.6), PLAIN[1]]
    assert answer_of([*blind, *with_variations(0.6)]).advice == {"kind": "blind"}
    advice = answer_of([*blind, *with_variations(0.6, counts=(2, 10))], seeds=6).advice
    assert (advice["kind"], advice["blind"]) == ("seeds", True)


def test_wide_intervals_leave_the_question_open() -> None:
    found = answer_of([*PLAIN, *with_variations(0.62)], seeds=12, own_image_noise=0.2, seed_noise=0.04)
    assert found.positive_controls[0].differences["map_50"].gain_significant
    assert found.advice == {"kind": "open"}
    # Without a positive control nobody knows how much would be much.
    assert answer_of([PLAIN[1], *with_variations(0.6)]).advice == {"kind": "open"}


def test_runs_that_keep_no_matches_have_no_intervals() -> None:
    found = answer_of([*PLAIN, *with_variations(0.6)], kept=False)
    assert all(change.interval is None for change in found.groups[0]["lead"].differences.values())


def test_each_setting_has_an_answer_of_its_own() -> None:
    found = all_of([*PLAIN, *with_variations(0.65)], steps=(300, 1200))
    assert [(len(each.groups), len(each.positive_controls)) for each in found] == [(1, 1), (1, 1)]
    assert len({each.prefix for each in found}) == 2


def test_the_same_advice_for_several_settings_is_given_once() -> None:
    few = all_of([*PLAIN, *with_variations(0.65)], seeds=2, steps=(300, 1200))
    assert [each.advice.get("kind") for each in few] == [None, "seeds"]
    assert {each.advised_for for each in few} == {""}
    _, rows, figures = simulate([*PLAIN, *with_variations(0.65)], seeds=2, steps=(300, 1200))
    assert [text.startswith("What to do: ") for text in answer(rows, contrasts(rows, figures))].count(True) == 1


def test_advice_whose_words_follow_from_other_comparisons_is_given_for_each_setting() -> None:
    """Where a gain is still possible, the words depend on what more real images bring in that setting."""
    wide: dict[str, Any] = {"seeds": 12, "own_image_noise": 0.2, "seed_noise": 0.04}
    found = all_of([PLAIN[1], *with_variations(0.6)], steps=(300, 1200), **wide)
    assert [each.advice for each in found] == [{"kind": "open"}] * 2
    assert all(each.advised_for == each.prefix for each in found)


def test_more_real_images_alone_are_an_answer() -> None:
    (found,) = all_of(PLAIN)
    assert (found.groups, len(found.positive_controls), found.advice) == ([], 1, {})
    assert all_of(PLAIN[:1]) == []
    assert answer([], []) == []


def test_the_results_page_quotes_the_kept_runs() -> None:
    with runs_folder(ROOT / "docs/results/hrsid200") as folder:
        runs = runs_in(folder)
        evidence = {run.run_id: found for run in runs if (found := Evidence.load(Path(run.output_dir))) is not None}
    assert len(runs) == len(evidence) == 90
    rows = condition_table(runs)
    quoted = " ".join((ROOT / "docs/results.md").read_text().replace("\n> ", "\n").split())
    for sentence in answer(rows, contrasts(rows, ResampledMetrics(evidence))):
        assert f"- {sentence}" in quoted
