"""Sections of the report after the table: sensitivity, how many variations, their worth in real images, next runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from boxtwin.studies.comparison import Contrast, Figures
from boxtwin.studies.conditions import Row, baseline, prefixes
from boxtwin.studies.dose_response import MARGINS, Curve, can_bend, fit, lines, tried
from boxtwin.studies.equivalence import Exchange, curve_rows, exchange
from boxtwin.studies.inference import LEVEL, Interval
from boxtwin.studies.next_runs import Candidate, points
from boxtwin.studies.report.plots import MEASURES, Drawing, dose_response_picture, equivalence_pictures, steps_picture
from boxtwin.studies.runs import FINISHED, Cell
from boxtwin.studies.sensitivity import FIGURE, STILL, Series, detectable, gains_by_steps, half_width, length_of
from boxtwin.studies.study import Study


@dataclass(frozen=True)
class Section:
    """A heading, sentences below it, then figures."""

    title: str
    sentences: tuple[str, ...]
    figures: tuple[Drawing, ...]


def sections(study: Study, candidates: Sequence[Candidate] | None = None) -> list[Section]:
    """The sections of a study, in the order they are read: what it could see comes before what it saw.

    ``candidates`` is what `boxtwin.studies.next_runs.plan` found; None where nobody asked.
    """
    if not study.rows:
        return []
    found = [
        sensitivity_section(study.cells, study.rows, study.contrasts),
        dose_response_section(study.rows, study.figures),
        equivalence_section(study.rows, study.figures),
    ]
    if candidates is not None:
        found.append(next_runs_section(candidates, study.cells))
    return [section for section in found if section is not None]


def sensitivity_section(cells: Sequence[Cell], rows: Sequence[Row], contrasts: Sequence[Contrast]) -> Section:
    """Whether the study could have seen a gain."""
    sentences = _yardsticks(rows, contrasts)
    sentences += _lengths(cells, rows)
    by_steps = {_what(series[0][1]): series for series in gains_by_steps(cells, contrasts)}
    told = [_steps_in_words(title, series) for title, series in by_steps.items()]
    sentences += told
    figures = (steps_picture(by_steps, " ".join(told)),) if by_steps else ()
    return Section("What this study could have seen", tuple(sentences), figures)


def _yardsticks(rows: Sequence[Row], contrasts: Sequence[Contrast]) -> list[str]:
    """For each condition: what its yardstick says of differences that were not found."""
    name, said = prefixes(rows), []
    for condition in dict.fromkeys(row.condition for row in rows):
        own = [contrast for contrast in contrasts if contrast.new.condition == condition]
        rulers = [contrast for contrast in own if contrast.kind == "yardstick"]
        gains = [contrast for contrast in own if contrast.kind == "variations"]
        row = next(row for row in rows if row.condition == condition)
        unseen = [contrast for contrast in gains if not contrast.differences[FIGURE].established]
        title = name(row).rstrip(", ")
        said += [f"{title}: {sentence}" if title else sentence for sentence in _of_condition(rulers, gains, unseen)]
    return said


def _of_condition(rulers: Sequence[Contrast], gains: Sequence[Contrast], unseen: Sequence[Contrast]) -> list[str]:
    said = []
    if not rulers:
        said.append(
            "There is no yardstick: runs on real images alone, of two sizes (split=s1,s2 variations=0). Without one "
            "nobody can tell a set-up in which variations bring nothing from one in which no data brings anything."
        )
    for ruler in rulers:
        found = ruler.differences[FIGURE]
        what = f"{ruler.new.real_images:g} instead of {ruler.old.real_images:g} real images"
        change = _change(found.mean, found.interval)
        if found.established and found.mean > 0:
            said.append(
                f"This set-up can see what data is worth: {what} changed AP50 by {change}, which is established."
            )
        elif not found.could_be_established:
            said.append(
                f"Whether this set-up could have seen a gain is open: {what} changed AP50 by {change}, over "
                f"{found.pairs} paired {'seed' if found.pairs == 1 else 'seeds'}, and "
                f"{found.pairs_needed} are needed to tell."
            )
        elif gains and len(unseen) < len(gains):
            said.append(
                f"{what.capitalize()} changed AP50 by {change}, which is not established; but a gain from variations "
                "is, so that this set-up does see some."
            )
        else:
            said.append(
                f"This set-up could not have seen a gain: even {what} changed AP50 by {change}, which is not "
                f"established.{' That variations show none says nothing about them.' if gains else ''}"
            )
    halves = [found.interval for gain in gains if (found := gain.differences[FIGURE]).interval is not None]
    if halves:
        measured = _span([half_width(half) for half in halves])
        true = _span([detectable(half) for half in halves])
        which = ", depending on the comparison" if len(halves) > 1 else ""
        said.append(
            f"The smallest gain in reach: a measured one had to exceed {measured} of AP50 to stand clear of 0{which}; "
            f"a true one of {true} is seen by four of five such studies."
        )
    return said


def _change(mean: float, interval: Interval | None) -> str:
    if interval is None:
        return f"{100 * mean:+.1f} points"
    return f"{100 * mean:+.1f} points (95 % interval {100 * interval.low:+.1f} to {100 * interval.high:+.1f})"


def _span(values: Sequence[float]) -> str:
    """Least and greatest of some shares, in points."""
    low, high = (f"{100 * value:.1f}" for value in (min(values), max(values)))
    return f"{low} points" if low == high else f"{low} to {high} points"


def _lengths(cells: Sequence[Cell], rows: Sequence[Row]) -> list[str]:
    """Whether training on real images alone was over when it ended."""
    curves, name, said = {cell.run_id: cell.validation for cell in cells}, prefixes(rows), []
    for row in rows:
        if row.variations:
            continue
        found = length_of([curves.get(run, ()) for run in row.runs])
        title = f"{name(row)}{row.split}, real images alone"
        if found is None:
            continue
        rise = f"the last third of its validations lies {100 * found.rise:+.1f} points of AP from the third before"
        if found.seeds == 1:
            said.append(f"{title}: {rise}, in one seed; whether it had stopped improving cannot be told from one.")
            continue
        rise = f"{rise} (95 % interval {100 * found.low:+.1f} to {100 * found.high:+.1f}, {found.seeds} seeds)"
        verdict = {
            "on": f"it was still improving at {row.steps} steps: train longer (trainer.steps)",
            "over": f"it had stopped improving at {row.steps} steps, to within {100 * STILL:.0f} point",
            "unknown": f"whether it had stopped improving at {row.steps} steps cannot be told",
        }[found.told]
        said.append(f"{title}: {verdict}; {rise}.")
    return said


def _what(contrast: Contrast) -> str:
    new, old = contrast.new, contrast.old
    if contrast.kind == "yardstick":
        return f"{new.real_images:g} instead of {old.real_images:g} real images"
    return f"{new.split}, {new.variations} variation{'' if new.variations == 1 else 's'} ({new.generator})"


def _steps_in_words(title: str, series: Series) -> str:
    parts = [f"{steps} steps {_change((d := c.differences[FIGURE]).mean, d.interval)}" for steps, c in series]
    return f"Gain in AP50 against steps, {title}: {'; '.join(parts)}."


def dose_response_section(rows: Sequence[Row], figures: Figures) -> Section | None:
    """How many variations are best, for each split and generator with enough numbers of them; None if there is none."""
    name = prefixes(rows)
    sentences: list[str] = []
    curves: dict[str, list[tuple[str, Curve]]] = {figure: [] for figure in MEASURES}
    for base, members in lines(rows):
        if not can_bend(base, members):
            continue
        title = f"{name(base)}{base.split}, {members[0].generator}"
        for figure in MEASURES:
            curve = fit(figure, tried(figure, base, members, figures))
            curves[figure].append((title, curve))
            sentences.append(f"{title}: {describe_curve(curve)}")
        left_out = [row.variations for row in members if row.variations not in curve.tried.variations]
        if left_out:
            sentences.append(f"{title}: {_listed(left_out)} variations have too few seeds and are left out.")
    pictures = tuple(dose_response_picture(named) for named in curves.values() if named)
    return Section("How many variations", tuple(sentences), pictures) if sentences else None


def describe_curve(curve: Curve) -> str:
    """The best number of variations, how sure that is, what it brings, and from where more stops helping."""
    name, scale, decimals, unit, _ = MEASURES[curve.figure]
    verb = "falls" if curve.figure == "count_mae" else "rises"
    numbers, chances = curve.variations, curve.chances
    at = int(curve.mean.argmax())
    low, high = (scale * float(end) for end in curve.band[:, at])
    gain = scale * float(curve.mean[at])
    interval = f"95 % interval {low:.{decimals}f} to {high:.{decimals}f}"
    largest = int(numbers[-1])
    said = []
    first, last = curve.best_range
    span = f"the runs allow anything from {first} to {last}" if first < last else "the runs allow no other number"
    if curve.best == 0:
        said.append(f"{name} is best without variations, as far as the runs tell ({span}).")
    elif low <= 0:
        said.append(
            f"{name}: no number of variations is surely better than none. The curve is at its best at about "
            f"{curve.best} ({span}), where it {verb} by {gain:.{decimals}f} {unit} ({interval})."
        )
    else:
        said.append(
            f"{name} is best at about {curve.best} variations ({span}, {_percent(LEVEL)} sure); there it {verb} by "
            f"{gain:.{decimals}f} {unit} ({interval})."
        )
    said.append(f"That no number of them beats none at all has a probability of {_percent(float(chances[0]))}.")
    if curve.best == largest:
        said.append(f"{largest} is the largest number tried: a larger one may be better still.")
    among = [0, *curve.tried.variations]
    best_tried = np.bincount(
        curve.draws[:, np.searchsorted(numbers, among)].argmax(axis=1), minlength=len(among)
    ) / len(curve.draws)
    said.append(
        "Of the numbers tried, the best is "
        + ", ".join(
            f"{number} with {_percent(float(chance))}" for number, chance in zip(among, best_tried, strict=True)
        )
        + " probability."
    )
    margin = scale * MARGINS[curve.figure]
    amount = "1 point" if margin == 1 else f"{margin:g} {unit}"
    if curve.enough is None:
        chance = curve.chance_enough()
        said.append(
            f"From where more stops helping is not known: no number is {_percent(LEVEL)} sure to be within {amount} of "
            f"the best; the surest is {int(numbers[chance.argmax()])}, with {_percent(float(chance.max()))}."
        )
    elif curve.enough == 0:
        said.append(f"With {_percent(LEVEL)} certainty no number of variations brings more than {amount}.")
    else:
        said.append(
            f"More than {curve.enough} stops helping: {curve.enough} is the smallest number that is, with "
            f"{_percent(LEVEL)} certainty, within {amount} of the best."
        )
    if not curve.tried.images_known:
        said.append("These runs keep no matches: the choice of test images is not in the intervals.")
    return " ".join(said)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def equivalence_section(rows: Sequence[Row], figures: Figures) -> Section | None:
    """What conditions with variations are worth in real images; None where runs do not tell of any."""
    name, sentences = prefixes(rows), []
    shown: list[tuple[Row, list[Row], Exchange]] = []
    for row in rows:
        base = baseline(rows, row)
        if not row.variations or base is None:
            continue
        curve = curve_rows(rows, base, figures)
        found = exchange(row, base, curve, figures)
        if found is not None:
            what = f"{row.variations} variation{'' if row.variations == 1 else 's'} ({row.generator})"
            title = f"{name(row)}{row.split}, {what} on {row.real_images:g} real images"
            sentences.append(f"{title} {describe_exchange(found)}")
            shown.append((row, curve, found))
    if not shown:
        return None
    return Section("What the synthetic images are worth", tuple(sentences), tuple(equivalence_pictures(shown, rows)))


def describe_exchange(found: Exchange) -> str:
    """`are worth about 12 more real labelled images (95 % interval -3 to 31; …)`."""
    own, least, largest = found.base.real_images, found.sizes[0], found.sizes[-1]
    basis = (
        f"measured by AP50 of real-only runs at {', '.join(f'{size:g}' for size in found.sizes)}; {found.pairs} seeds"
    )
    plural = "is" if found.row.variations == 1 else "are"
    if found.worth == math.inf:
        said = f"{plural} worth more than {largest - own:.0f} more real labelled images: better than the largest set"
    elif found.worth == -math.inf:
        said = f"cost more than {own - least:.0f} real labelled images: worse than the smallest set"
    elif round(found.worth) == 0:
        said = f"{plural} worth no more and no fewer real labelled images"
    elif found.worth > 0:
        said = f"{plural} worth about {found.worth:.0f} more real labelled images"
    else:
        said = f"do as if about {-found.worth:.0f} of the real labelled images were missing"
    ends = []
    for end in (found.low, found.high):
        if end == math.inf:
            ends.append(f"more than {largest - own:.0f}")
        elif end == -math.inf:
            ends.append(f"less than {least - own:.0f}")
        else:
            ends.append(f"{end + 0.0:.0f}".replace("-0", "0") if round(end) == 0 else f"{end:.0f}")
    outside = [end for end in (found.worth, found.low, found.high) if math.isinf(end)]
    beyond = " What lies outside of the sizes measured cannot be told closer." if outside else ""
    return f"{said} (95 % interval {ends[0]} to {ends[1]}; {basis}).{beyond}"


def candidates_table(candidates: Sequence[Candidate]) -> str:
    """What the candidates would settle and take, columns aligned."""
    headings = ["", "± now", "± then", "runs", "minutes", "what to run"]
    body = [
        [
            str(place),
            "-" if candidate.now is None else points(candidate.now),
            "-" if candidate.after is None else points(candidate.after),
            str(candidate.runs),
            "-" if math.isnan(candidate.minutes) else f"{candidate.minutes:.0f}",
            candidate.what,
        ]
        for place, candidate in enumerate(candidates, start=1)
    ]
    widths = [max(len(line[column]) for line in (headings, *body)) for column in range(len(headings) - 1)]
    return "\n".join(
        "  ".join([*(entry.rjust(width) for entry, width in zip(line, widths, strict=False)), line[-1]])
        for line in (headings, *body)
    )


def next_runs_section(candidates: Sequence[Candidate], cells: Sequence[Cell]) -> Section:
    """The list, one sentence and one command each."""
    if not candidates:
        return Section("What to run next", ("Nothing that would narrow the answer was found.",), ())
    sentences = [_sentence(place, candidate) for place, candidate in enumerate(candidates, start=1)]
    minutes = [candidate.minutes for candidate in candidates]
    known = math.fsum(each for each in minutes if math.isfinite(each))
    sentences.append(
        f"All of it takes about {known:.0f} minutes, by the finished runs and without the time to make new images; "
        "runs that are in several of these are made once, and what was left out of the "
        "list would narrow less. ± is half of a 95 % interval of AP50, in points."
    )
    finished = [cell for cell in cells if cell.status == FINISHED]
    if any(not cell.overrides for cell in finished):
        sentences.append(
            "Some of these runs do not say what was typed to get them: add the settings that they share "
            "(experiment=…, dataset.root=…) to the commands."
        )
    return Section("What to run next", tuple(sentences), ())


def _sentence(place: int, candidate: Candidate) -> str:
    now = "no answer yet" if candidate.now is None else f"±{points(candidate.now)} now"
    after = "what it will be cannot be foretold" if candidate.after is None else f"±{points(candidate.after)} expected"
    minutes = "of unknown length" if math.isnan(candidate.minutes) else f"about {candidate.minutes:.0f} minutes in all"
    return (
        f"{place}. {candidate.what}. Settles {candidate.settles}: {now}, {after}. "
        f"{candidate.runs} run{'' if candidate.runs == 1 else 's'}, {minutes}.\n   {candidate.command}"
    )
