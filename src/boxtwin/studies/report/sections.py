"""Sections of the report: treatments, sensitivity, how many variations, their worth in real images, next runs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from boxtwin.config.identity import NO_PRETRAINING
from boxtwin.studies.comparison import EXTRA_IMAGES, Contrast
from boxtwin.studies.condition_names import condition_name, prefix_of
from boxtwin.studies.condition_values import DEVICE, PRETRAINING, in_words
from boxtwin.studies.conditions import Row, setups
from boxtwin.studies.dose_response import Curve, fit, has_enough_counts, lines, measured_gains
from boxtwin.studies.draws import repeated_draws
from boxtwin.studies.equivalence import (
    LEAST_SIZES,
    PLAIN,
    STEPS,
    curve_rows,
    exchange,
    on_validation,
    setup_without_treatment,
    size_curves,
    step_series,
    treatment_of,
    untreated,
)
from boxtwin.studies.next_runs import Candidate
from boxtwin.studies.report.plots import PLOTTED, Drawing, dose_response_picture, sizes_picture, steps_picture
from boxtwin.studies.report.words import paragraphs, sentence
from boxtwin.studies.runs import FINISHED, StudyRun
from boxtwin.studies.sensitivity import METRIC, STILL, detectable, gains_by_steps, late_rise
from boxtwin.studies.study import Study
from boxtwin.studies.treatments import treatments

WORTH = "What synthetic data is worth in real images"  # a section, of which the picture is kept beside the page


@dataclass(frozen=True)
class Section:
    """A heading, sentences below it, then pictures. Further lines of a sentence are commands to copy."""

    title: str
    sentences: tuple[str, ...]
    plots: tuple[Drawing, ...]


def sections(study: Study, candidates: Sequence[Candidate] | None = None) -> list[Section]:
    """The sections of a study in their order; ``candidates`` is None where nobody asked for a plan."""
    if not study.rows:
        return []
    parts = [
        draws_section(study),
        treatments_section(study),
        sensitivity_section(study),
        dose_response_section(study),
        equivalence_section(study),
        steps_section(study.rows),
        None if candidates is None else next_runs_section(candidates, study.runs),
    ]
    return [part for part in parts if part is not None]


def draws_section(study: Study) -> Section | None:
    """Comparisons that were repeated on other draws of the training images; None where there is none."""
    found = repeated_draws(study.rows, study.contrasts, study.resampled)
    sentences = tuple(sentence("draws", draws=each) for each in found)
    return Section("Other draws of the training images", sentences, ()) if found else None


def treatments_section(study: Study) -> Section | None:
    """What else one could do with the same images, a line each; None where a study tried one kind of treatment only."""
    lines = tuple(sentence("treatment", each=each) for each in treatments(study.contrasts))
    return Section("What else you could do", lines, ()) if lines else None


def sensitivity_section(study: Study) -> Section:
    """Whether the study could have detected a gain, and whether training on real images alone was over."""
    parts = []
    positive = [contrast.new for contrast in study.contrasts if contrast.kind == "positive control"]
    controlled = {setup_without_treatment(row) for row in positive}
    for rows in setups(study.rows):
        alike = [contrast for contrast in study.contrasts if contrast.new in rows]
        gains = [contrast.differences[METRIC] for contrast in alike if contrast.kind == "variations"]
        intervals = [gain.interval for gain in gains if gain.interval is not None]
        parts.append(
            {
                "title": rows[0].prefix and f"{rows[0].prefix.rstrip(', ')}: ",
                "positive_controls": [contrast for contrast in alike if contrast.kind == "positive control"],
                "controlled": setup_without_treatment(rows[0]) in controlled,
                "alone": not any(map(is_treated, rows)),
                "gains": gains,
                "gain_significant": shows_a_gain(alike),
                "measured": [interval.half_width for interval in intervals],
                "true": [detectable(gain.interval) for gain in gains if gain.interval and gain.could_be_significant],
                "needed": max((gain.pairs_needed for gain in gains), default=0),
                "family": max((gain.family for gain in gains), default=1),
            }
        )
    plain = [row for row in study.rows if not row.variations]
    late = [(row, late_rise([run.validation for run in row.runs])) for row in plain]
    series = gains_by_steps(study.contrasts)
    by_steps = [(steps_title(each[0][1]), each) for each in series]
    gains_in_words = [sentence("gains_by_steps", title=title, series=each) for title, each in by_steps]
    alone = all(part["alone"] for part in parts)
    return Section(
        "Whether training was long enough" if alone else "What this study could detect",
        (
            *paragraphs("sensitivity", setups=parts),
            *(
                sentence("late_rise", row=row, late=each, still=STILL, treated=is_treated(row))
                for row, each in late
                if each
            ),
            *gains_in_words,
        ),
        (steps_picture(by_steps, " ".join(gains_in_words)),) if by_steps else (),
    )


def steps_title(contrast: Contrast) -> str:
    """What a series of steps compares, and the settings that tell it from others, but for steps and device.

    Of older runs, all settings are one hash, with the steps in it.
    """
    setup = {key: value for key, value in contrast.new.setup.items() if key not in (STEPS, "setting", DEVICE)}
    return f"{prefix_of(setup)}{sentence('steps_title', contrast=contrast)}"


def shows_a_gain(contrasts: Iterable[Contrast]) -> bool:
    """Whether anything that was tried gains significantly, steps alone (`repeat`) too: the study detects gains."""
    tried = [each for each in contrasts if each.kind in ("variations", "pretraining", *EXTRA_IMAGES)]
    return any(each.differences[METRIC].gain_significant for each in tried)


def is_treated(row: Row) -> bool:
    """Whether a condition is more than real labelled images."""
    return bool(row.variations or is_pretrained(row) or set(EXTRA_IMAGES.values()) & row.values.keys())


def is_pretrained(row: Row) -> bool:
    return bool(row.pretrainings) or row.values.get(PRETRAINING, NO_PRETRAINING) != NO_PRETRAINING


def dose_response_section(study: Study) -> Section | None:
    """How many variations are best, for each split and generator with enough numbers of them; None if there is none."""
    sentences: list[str] = []
    curves: dict[str, list[tuple[str, Curve]]] = {metric: [] for metric in PLOTTED}
    for base, members in lines(study.rows):
        if not has_enough_counts(base, members):
            continue
        title = f"{base.prefix}{condition_name(base.split, None, members[0].generator)}"
        for metric in PLOTTED:
            curve = fit(metric, measured_gains(metric, base, members, study.resampled))
            curves[metric].append((title, curve))
            sentences.append(f"{title}: {sentence('curve', curve=curve)}")
        left_out = [row.variations for row in members if row.variations not in curve.tried.variations]
        if left_out:
            sentences.append(sentence("left_out", title=title, variations=left_out))
    if sentences:
        sentences.append(sentence("curve_note"))
    pictures = tuple(dose_response_picture(each) for each in curves.values() if each)
    return Section("How many variations", tuple(sentences), pictures) if sentences else None


def equivalence_section(study: Study) -> Section | None:
    """AP50 against real images by treatment, and what treatments are worth; None with fewer than three sizes alone."""
    sentences, plots = [], []
    for curves in size_curves(study.rows, study.contrasts):
        plain = curves.get(PLAIN, [])
        if len(plain) < LEAST_SIZES:
            continue
        treated = [row for line in curves.values() if line is not plain for row in line]
        alone = [curve_rows(study.rows, row, study.resampled) if DEVICE in row.values else plain for row in treated]
        worth = (exchange(*each, study.resampled) for each in zip(treated, alone, strict=True))
        exchanges = [each for each in worth if each is not None]
        steps = len({row.first.steps for row in (*plain, *treated)}) > 1
        read_off = {tuple(row.run_ids for row in each.curve): each.curve for each in exchanges}.values()
        sentences += [sentence("exchange", exchange=each, steps=steps) for each in exchanges]
        sentences += [sentence("exchange_curve", rows=rows, steps=steps, beside=_beside(rows[0])) for rows in read_off]
        machines = sorted({run.machine for row in (*plain, *treated) for run in row.runs} - {""})
        if len(machines) > 1:
            sentences.append(sentence("curves_of_machines", machines=machines))
        plots.append(sizes_picture(curves, exchanges, _beside(plain[0])))
    title = WORTH if any(is_treated(row) for row in study.rows) else "AP50 by number of real images"
    return Section(title, tuple(sentences), tuple(plots)) if plots else None


def _beside(row: Row) -> str:
    """``, with 70 unlabelled images`` of a condition that has images beside the data set; empty for others."""
    numbers = {key: row.values.get(key, "0").partition("-")[0] for key in EXTRA_IMAGES.values()}  # before a hash
    words = [in_words(key, number) for key, number in numbers.items() if number != "0"]
    return f", with {' and '.join(words)}" if words else ""


def steps_section(rows: Sequence[Row]) -> Section | None:
    """AP50 of each treatment by its steps, and which are best on validation images; None with one number of steps."""
    sentences = []
    for series in step_series(rows):
        best = max(series, key=on_validation)
        known = on_validation(best) >= 0
        prefix, named = prefix_of(untreated(best.setup)), treatment_of(best)
        sentences.append(sentence("steps", rows=series, prefix=prefix, treatment=named, best=best if known else None))
    return Section("Steps of each treatment", tuple(sentences), ()) if sentences else None


def next_runs_section(candidates: Sequence[Candidate], runs: Sequence[StudyRun]) -> Section:
    """The list, one sentence and one command each."""
    if not candidates:
        return Section("What to run next", (sentence("no_next_runs"),), ())
    minutes = math.fsum(each.minutes for each in candidates if math.isfinite(each.minutes))
    typed = all(run.overrides for run in runs if run.status == FINISHED)
    sentences = [
        f"{sentence('candidate', place=place, candidate=each)}\n   {each.command}"
        for place, each in enumerate(candidates, start=1)
    ]
    return Section("What to run next", (*sentences, *paragraphs("next_runs", minutes=minutes, typed=typed)), ())
