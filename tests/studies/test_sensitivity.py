"""What a study could have seen, on studies with and without a positive control."""

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats
from simulated_study import Simulated, simulate, simulate_settings, study_of

from boxtwin.studies.conditions import condition_table
from boxtwin.studies.inference import Interval
from boxtwin.studies.report.sections import Section, sensitivity_section, steps_section
from boxtwin.studies.sensitivity import detectable, late_rise, recipe

PLAIN = [("s1", 0, "none", 80.0, 0.7), ("s2", 0, "none", 40.0, 0.6)]


def said(conditions: Sequence[Simulated], **settings: Any) -> Section:
    runs, rows, figures = simulate(conditions, **{"seeds": 6, **settings})
    return sensitivity_section(study_of(runs, rows, figures))


def test_a_positive_control_that_is_significant() -> None:
    sentences = said([*PLAIN, ("s2", 2, "pixel_ddpm", 40.0, 0.6)]).sentences
    assert sentences[0].startswith(
        "The study detects the effect of more real images: 80 instead of 40 real images changed AP50 by"
    )
    assert "The smallest detectable gain" in sentences[1]


def test_a_set_up_that_could_not_have_seen_a_gain() -> None:
    blind = [("s1", 0, "none", 80.0, 0.6), *PLAIN[1:], ("s2", 2, "pixel_ddpm", 40.0, 0.6)]
    assert "The study could not have detected a gain: even 80 instead of 40" in said(blind).sentences[0]
    assert "inconclusive" not in said(blind[:2]).sentences[0]
    seeing = [*blind[:2], ("s2", 2, "pixel_ddpm", 40.0, 0.7)]
    assert "but a gain from what was tried is" in said(seeing).sentences[0]


@pytest.mark.parametrize(
    "treatment",
    [{"unlabelled_images": "70-3f2a91bc0d12"}, {"pretraining.name": "sar_scenes", "pretraining.steps": "912"}],
)
def test_treatments_share_the_positive_control_of_real_images_alone(treatment: dict[str, str]) -> None:
    conditions: list[tuple[dict[str, str], float, float, int]] = [({}, 40, 0.6, 6), ({}, 80, 0.7, 6)]
    for plain, lacks_control in ((conditions, False), (conditions[:1], True)):
        runs, figures = simulate_settings([*plain, (treatment, 40, 0.6, 6)], seed_noise=0.005)
        section = sensitivity_section(study_of(runs, condition_table(runs), figures))
        assert ("There is no positive control" in " ".join(section.sentences)) == lacks_control


def test_losses_are_no_gains() -> None:
    """Of variations, which do not show that the study detects gains; and of more real images."""
    blind = [("s1", 0, "none", 80.0, 0.6), *PLAIN[1:], ("s2", 2, "pixel_ddpm", 40.0, 0.5)]
    assert "could not have detected a gain: even 80 instead of 40" in said(blind).sentences[0]
    worse = [("s1", 0, "none", 80.0, 0.5), *blind[1:]]
    assert "which is a significant loss" in said(worse).sentences[0]


def test_too_few_seeds_and_no_positive_control() -> None:
    varied = ("s1", 2, "pixel_ddpm", 80.0, 0.7)
    sentence = said([*PLAIN, varied], seeds=4).sentences[0]
    assert "is unknown" in sentence
    assert "over 4 paired seeds, and 6 are needed" in sentence
    assert "There is no positive control" in said([PLAIN[0], varied]).sentences[0]
    assert "in one seed" in said([PLAIN[0], varied], seeds=1).sentences[1]
    # A study of real images alone asks for no control.
    assert "real data" not in " ".join(said(PLAIN).sentences)
    assert said(PLAIN).sentences[0].startswith("s1: AP on validation images")


def test_widths_and_what_is_detectable() -> None:
    interval = Interval(0.02, 0.01, 0.03, 0.0, 0.0, 6, 100)
    assert interval.half_width == pytest.approx(0.01)
    # Power of a two-sided z test at a true difference of d: P(z > 1.96 - d / se), the other tail is next to nothing.
    error = interval.half_width / stats.norm.ppf(0.975)
    assert stats.norm.sf(stats.norm.ppf(0.975) - detectable(interval) / error) == pytest.approx(0.8)


@pytest.mark.parametrize(("rise", "told"), [(0.03, "rising"), (0.0, "stopped"), (0.008, "stopped"), (-0.02, "stopped")])
def test_whether_training_was_over(rise: float, told: str) -> None:
    rng = np.random.default_rng(0)
    curves = [[(k, 0.4 + rise * (k > 4) + rng.normal(0, 0.001)) for k in range(1, 7)] for _ in range(6)]
    found = late_rise(curves)
    assert found is not None
    assert found.state == told
    rises = [np.mean([v for _, v in c[4:]]) - np.mean([v for _, v in c[2:4]]) for c in curves]
    low, high = stats.t.interval(0.95, 5, np.mean(rises), stats.sem(rises))
    assert (found.rise, found.low, found.high) == pytest.approx((np.mean(rises), low, high))


def test_whether_training_was_over_cannot_always_be_told() -> None:
    assert late_rise([]) is None
    assert late_rise([[(1, 0.1), (2, 0.2)], []]) is None
    one = late_rise([[(1, 0.1), (2, 0.2), (3, 0.3)]])
    assert one is not None
    assert (one.state, one.seeds) == ("unknown", 1)
    assert math.isnan(one.low)
    noisy = [[(1, 0.3), (2, 0.3), (3, 0.3 + by)] for by in (0.1, -0.1, 0.05)]
    unknown = late_rise(noisy)
    assert unknown is not None
    assert unknown.state == "unknown"
    runs, _, figures = simulate(PLAIN, seeds=6)
    silent = [replace(run, validation=()) for run in runs]
    sentences = sensitivity_section(study_of(silent, condition_table(silent), figures)).sentences
    assert not any("real images alone: " in sentence for sentence in sentences)


def test_gain_against_steps() -> None:
    found = said([*PLAIN, ("s2", 2, "pixel_ddpm", 40.0, 0.62)], steps=(300, 1200))
    (picture,) = found.plots
    assert "<svg" in picture.svg
    ruler, gain = found.sentences[-2:]
    if "real images: " not in ruler:
        ruler, gain = gain, ruler
    assert ruler.startswith("Gain in AP50 against steps, 80 instead of 40 real images: 300 steps ")
    assert gain.startswith("Gain in AP50 against steps, s2 x2 pixel_ddpm: 300 steps ")
    assert "; 1200 steps " in gain


def test_runs_that_differ_in_more_than_steps_are_not_put_on_one_axis() -> None:
    runs, _, figures = simulate(PLAIN, seeds=6, steps=(300, 1200))
    other = [replace(c, overrides=f"{c.overrides} detector.freeze={int(c.steps == 300)}") for c in runs]
    rows = condition_table(other)
    assert sensitivity_section(study_of(other, rows, figures)).plots == ()
    silent = [replace(run, overrides="") for run in runs]
    rows = condition_table(silent)
    assert sensitivity_section(study_of(silent, rows, figures)).plots == ()


def test_the_recipe_is_what_no_table_varies() -> None:
    runs, _, _ = simulate(PLAIN[:1], seeds=1)
    typed = "experiment=x split=s1 split.train_size=20 variations='2' generator.steps=3 seed=1 trainer.steps=3"
    same = [
        replace(runs[0], overrides=text)
        for text in (typed, "trainer.threads=1 experiment=x study=y jobs=4 trainer.devices=2")
    ]
    assert recipe(same[0]) == recipe(same[1]) == ("sar_scenes", "yolov3_nano", "experiment=x")
    assert recipe(replace(runs[0], overrides="")) is None


NAMES = {"detector": "detector.name", "trainer.steps": "trainer.steps", "variations": "variations.per_image"}


def test_gains_of_two_detectors_against_steps_are_told_apart() -> None:
    pasted = {"variations.per_image": "10", "generator.name": "copy_paste"}
    conditions = []
    for detector, ap50, gain in (("tiny", 0.5, 0.1), ("yolov3", 0.6, -0.05)):
        for steps in ("400", "1600"):
            settings = {"detector.name": detector, "trainer.steps": steps}
            conditions += [(settings, 80.0, ap50, 6), (settings | pasted, 80.0, ap50 + gain, 6)]
    runs, figures = simulate_settings(conditions, seed_noise=0.005, own_image_noise=0.01)
    for place, run in enumerate(runs):
        words = [f"{key}={run.condition[name]}" for key, name in NAMES.items()]
        runs[place] = replace(run, detector=run.condition["detector.name"], overrides=" ".join(words))
    study = study_of(runs, condition_table(runs), figures)
    found = [text for text in sensitivity_section(study).sentences if text.startswith("Gain in AP50 against steps")]
    assert [re.findall("detector=(tiny|yolov3).*400 steps ([+-])", text) for text in found] == [
        [("tiny", "+")],
        [("yolov3", "-")],
    ]
    section = steps_section(study.rows)
    assert section is not None
    assert len(section.sentences) == len({text.partition(":")[0] for text in section.sentences}) == 4
