"""The sentences of a study: the answer, every comparison, and what the terminal shows of it all."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

from boxtwin.studies.comparison import CONTROLS, FIELDS, Contrast, Difference
from boxtwin.studies.conditions import Estimate, Row, paired_seeds, prefixes
from boxtwin.studies.inference import LEAST_PAIRS
from boxtwin.studies.next_runs import Candidate
from boxtwin.studies.report.notes import notes, obstacles
from boxtwin.studies.report.numbers import count, percent
from boxtwin.studies.report.sections import candidates_table, next_runs_section
from boxtwin.studies.report.tables import class_text, text_table
from boxtwin.studies.runs import FINISHED
from boxtwin.studies.study import Study

AP50, AP, COUNTS = "map_50", "map", "count_mae"
DIFFERENCES = 4  # that a sentence names
KINDS = ("variations", "control", "yardstick")
NAMES = {"map_50": "AP50", "map": "AP", "count_mae": "count MAE"}


def printed(study: Study, candidates: Sequence[Candidate] | None = None) -> str:
    """What `compare.py` prints: the table, the answer, and what was asked for besides; all else is in the report.

    ``candidates`` is what `boxtwin.studies.next_runs.plan` found; None where nobody asked.
    """
    cells, rows = study.cells, study.rows
    names = ", ".join(sorted({cell.study for cell in cells}))
    blocks = [
        [f"study {names}: {len(cells)} runs"],
        [text_table(rows)],
        class_text(rows, study.by_class),
        # Sentences on every single comparison are in the report, unless there is nothing shorter to say.
        answer(rows, study.contrasts) or verdict(rows, study.contrasts),
        notes(cells, rows),
    ]
    if candidates is not None:
        section = next_runs_section(candidates, cells)
        blocks += [[section.title, *section.sentences], [candidates_table(candidates)] if candidates else []]
    unfinished = [f"{cell.name} ({cell.status})" for cell in cells if cell.status != FINISHED]
    if unfinished:
        blocks.append([f"Not in the table: {', '.join(unfinished)}"])
    return "\n\n".join("\n".join(block) for block in blocks if block)


def answer(rows: Sequence[Row], contrasts: Sequence[Contrast]) -> list[str]:
    """For each setting: a sentence or more for every split and generator, then the yardstick, then what to do.

    Variations by a control are spoken of beside the generator that they control, by themselves only where there is no
    other. Empty where no variations can be held against none.
    """
    name, said = prefixes(rows), []
    for condition in dict.fromkeys(row.condition for row in rows):
        own = [contrast for contrast in contrasts if contrast.new.condition == condition]
        gains = [contrast for contrast in own if contrast.kind == "variations"]
        if not gains:
            continue
        subjects = [gain for gain in gains if gain.new.generator_name not in CONTROLS] or gains
        subjects = sorted(subjects, key=lambda gain: (gain.new.split, gain.new.generator))  # keeps counts in order
        groups = [
            list(g) for _, g in itertools.groupby(subjects, key=lambda gain: (gain.new.split, gain.new.generator))
        ]
        leads = [_lead(group) for group in groups]
        controls = [contrast for contrast in own if contrast.kind == "control"]
        rulers = [contrast for contrast in own if contrast.kind == "yardstick"]
        sentences = [
            _of_generator(lead, group, [c for c in controls if c.new is lead.new], gains)
            for lead, group in zip(leads, groups, strict=True)
        ]
        sentences += [_of_yardstick(ruler) for ruler in rulers]
        sentences.append(f"What to do: {_advice(leads, subjects, controls, rulers)}")
        said += [name(gains[0].new) + sentence for sentence in sentences]
    return said


def verdict(rows: Sequence[Row], contrasts: Sequence[Contrast]) -> list[str]:
    """A sober sentence or two per condition: against none, against controls, and what more real data brings."""
    if not rows:
        return ["No finished run: there is nothing to compare."]
    prefix = prefixes(rows)
    held = {contrast.new.runs for contrast in contrasts if contrast.kind == "variations"}
    sentences = [
        f"{prefix(row)}{_named(row)}: AP50 {percent(row.ap50.mean)}, count MAE {count(row.count_mae.mean)}. "
        f"No finished run without variations to hold it against{_because(rows, row)}."
        for row in rows
        if row.variations and row.runs not in held
    ]
    # What the study is about comes before what it is held against.
    for contrast in sorted(
        contrasts, key=lambda contrast: (KINDS.index(contrast.kind), contrast.new.generator_name in CONTROLS)
    ):
        new, old = contrast.new, contrast.old
        if contrast.kind == "variations":
            what = _named(new)
        elif contrast.kind == "control":
            what = f"{_named(new)} against as many of {old.generator}"
        else:
            sizes = f"{new.split} with {new.real_images:g} instead of {old.split} with {old.real_images:g} real images"
            amount = "twice the real data" if new.real_images == 2 * old.real_images else "more real data"
            what = f"Yardstick, {amount} ({sizes}; no variations)"
        sentences.append(f"{prefix(new)}{what}: {_movement(contrast)}")
    if not sentences:
        figures = "; ".join(
            f"{prefix(row)}{row.split}: AP50 {percent(row.ap50.mean)}, count MAE {count(row.count_mae.mean)}"
            for row in rows
        )
        return [f"No finished run with variations. Without variations, {figures}."]
    return sentences


def _because(rows: Sequence[Row], row: Row) -> str:
    """`: those there are differ in detector.weights (null there, 1f2e3d4c here)`."""
    found = [f"{key} ({theirs} there, {own} here)" for key, (theirs, own) in obstacles(rows, row).items()]
    more = f" and {len(found) - DIFFERENCES} more" if len(found) > DIFFERENCES else ""
    return f": those there are differ in {', '.join(found[:DIFFERENCES])}{more}" if found else ""


def _named(row: Row) -> str:
    plural = "" if row.variations == 1 else "s"
    return f"{row.split}, {row.variations} variation{plural} ({row.generator})"


def _movement(contrast: Contrast) -> str:
    """`AP50 41.2 -> 43.0 (+1.8, better; 95 % interval +0.2 to +3.4), AP …`: means over the seeds compared."""
    parts = []
    for figure, name in NAMES.items():
        found, lower_is_better = contrast.differences[figure], figure == "count_mae"
        form = count if figure == "count_mae" else percent
        old, new = (getattr(row, FIELDS[figure]) for row in (contrast.old, contrast.new))
        shared = {seed for seed, _ in old.by_seed} & {seed for seed, _ in new.by_seed}
        shared &= set(paired_seeds(contrast.new, contrast.old))
        if found.pairs:
            old, new = (Estimate(tuple(p for p in e.by_seed if p[0] in shared)) for e in (old, new))
        step = form(found.mean, signed=True)
        if step != "-" and float(step):
            step += ", better" if (found.mean < 0) == lower_is_better else ", worse"
        else:
            step = "unknown" if step == "-" else "no change"
        parts.append(f"{name} {form(old.mean)} -> {form(new.mean)} ({step}{_range(found, form)})")
    return f"{', '.join(parts)}. {_certainty(contrast)}"


def _range(found: Difference, form: Callable[..., str]) -> str:
    if found.interval is not None:
        return f"; 95 % interval {form(found.interval.low, signed=True)} to {form(found.interval.high, signed=True)}"
    if found.pairs > 1:
        return f"; {form(found.low, signed=True)} to {form(found.high, signed=True)} over seeds"
    return ""


def _certainty(contrast: Contrast) -> str:
    pairs = max(found.pairs for found in contrast.differences.values())
    if pairs < LEAST_PAIRS:
        runs = {0: "No seed in common", 1: "One seed"}.get(pairs, f"{pairs} paired seeds")
        return f"{runs}: not enough runs to tell chance from effect."
    said = [f"{pairs} paired seeds."]
    for figure, name in NAMES.items():
        found = contrast.differences[figure]
        if math.isnan(found.p_holm):
            continue
        if not found.could_be_established:
            said.append(
                f"{name}: p {_p(found.p)} by itself; {found.family} such comparisons in one table need "
                f"{found.pairs_needed} seeds before any can be called significant."
            )
            continue
        among = f" ({_p(found.p_holm)} among {found.family})" if found.family > 1 else ""
        said.append(f"{name}: p {_p(found.p)}{among}, {'established' if found.established else 'not established'}.")
    return " ".join(said)


def _p(value: float) -> str:
    return f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


def _lead(group: Sequence[Contrast]) -> Contrast:
    """The number of variations to speak of first: the best that is established, or else the largest."""
    sure = [gain for gain in group if gain.differences[AP50].established and gain.differences[AP50].mean > 0]
    if sure:
        return max(sure, key=lambda gain: gain.differences[AP50].mean)
    return max(group, key=lambda gain: gain.new.variations)


def _of_generator(
    lead: Contrast, group: Sequence[Contrast], controls: Sequence[Contrast], gains: Sequence[Contrast]
) -> str:
    row, ap50, counts = lead.new, lead.differences[AP50], lead.differences[COUNTS]
    plural = "" if row.variations == 1 else "s"
    verb = "change" if not ap50.established else "raise" if ap50.mean > 0 else "lower"
    amount = percent(ap50.mean, signed=True) if verb == "change" else percent(abs(ap50.mean))
    said = [
        f"On {row.split} ({row.real_images:g} real images), {row.variations} variation{plural} of each image by "
        f"{row.generator} {verb}{'s' * (not plural)} AP50 by {amount} points{_sure(ap50, percent)}: {_told(ap50)}."
    ]
    if controls:
        said.append(_beside(controls, gains))
    others = [gain for gain in group if gain is not lead]
    if others:
        numbers = ", ".join(str(gain.new.variations) for gain in others)
        changes = ", ".join(percent(gain.differences[AP50].mean, signed=True) for gain in others)
        said.append(f"With {numbers} it is {changes}.")
    # AP weighs how tight boxes are, so that it can move where AP50 does not.
    moved = next((gain for gain in group if gain.differences[AP].established), lead)
    ap, which = moved.differences[AP], "" if moved is lead else f", with {moved.new.variations},"
    said.append(f"AP{which} changes by {percent(ap.mean, signed=True)} points{_change_told(ap, percent)}.")
    said.append(
        f"Count MAE changes by {count(counts.mean, signed=True)} objects an image{_change_told(counts, count)}."
    )
    return " ".join(said)


def _change_told(found: Difference, form: Callable[..., str]) -> str:
    """Where runs are too few, the sentence on AP50 has said so of all three figures."""
    told = ": established" if found.established else ": no change is established"
    return _sure(found, form, seeds=False) + (told if found.could_be_established else "")


def _beside(controls: Sequence[Contrast], gains: Sequence[Contrast]) -> str:
    """`As many by other means: copy_paste +3.8, repeat +0.3; the difference to repeat is established.`"""
    own = {gain.new.runs: percent(gain.differences[AP50].mean, signed=True) for gain in gains}
    changes = [f"{control.old.generator} {own[control.old.runs]}" for control in controls]
    sure = [control.old.generator for control in controls if control.differences[AP50].established]
    told = f"the difference to {' and '.join(sure)} is established" if sure else "no difference to these is established"
    return f"As many by other means: {', '.join(changes)}; {told}."


def _sure(found: Difference, form: Callable[..., str], *, seeds: bool = True) -> str:
    parts = []
    if found.interval is not None:
        low, high = (form(end, signed=True) for end in (found.interval.low, found.interval.high))
        parts.append(f"95 % interval {low} to {high}")
    if seeds:
        parts.append("no seed in common" if not found.pairs else f"{found.pairs} seed{'s' * (found.pairs > 1)}")
    return f" ({'; '.join(parts)})" if parts else ""


def _told(found: Difference) -> str:
    if found.established:
        return "established"
    if not found.could_be_established:
        return f"not enough runs to tell chance from effect, which takes {found.pairs_needed} seeds"
    if found.interval is None:
        return "no gain is established"
    if found.interval.high <= 0:
        return "a loss is likely, none is established"
    return f"no gain is established, and one of more than {percent(found.interval.high)} points is unlikely"


def _of_yardstick(ruler: Contrast) -> str:
    found = ruler.differences[AP50]
    what = "Twice the real images" if ruler.new.real_images == 2 * ruler.old.real_images else "More real images"
    change = f"{percent(found.mean, signed=True)} points of AP50{_sure(found, percent)}"
    said = f"{what} ({ruler.new.real_images:g} instead of {ruler.old.real_images:g}) bring {change}"
    if found.established and found.mean > 0:
        return f"{said}, established: this set-up sees what data is worth."
    if not found.could_be_established:
        return f"{said}; whether this set-up sees what data is worth takes {found.pairs_needed} seeds to tell."
    return f"{said}, not established: this set-up could hardly have seen a gain."


def _advice(
    leads: Sequence[Contrast], subjects: Sequence[Contrast], controls: Sequence[Contrast], rulers: Sequence[Contrast]
) -> str:
    told = [lead for lead in leads if lead.differences[AP50].could_be_established]
    known = [ruler.differences[AP50] for ruler in rulers]
    seen = [found.mean for found in known if found.established and found.mean > 0]
    blind = bool(known) and not seen and all(found.could_be_established for found in known)
    if not told:
        most, least = (f([lead.differences[AP50].pairs_needed for lead in leads]) for f in (max, min))
        pairs = min(lead.differences[AP50].pairs for lead in leads)
        seeds = f"{least} seeds" if least == most else f"{least} to {most} seeds"
        more = (
            f"run more seeds before you believe a difference in either direction; {seeds} in common are needed, and "
            f"there {'is' if pairs == 1 else 'are'} {pairs}. compare.py with plan=true says which runs tell most."
        )
        return (
            f"first find a set-up that sees what real data is worth, with more steps perhaps; then {more}"
            if blind
            else more
        )
    wins = [lead for lead in told if lead.differences[AP50].established and lead.differences[AP50].mean > 0]
    losses = [lead for lead in told if lead.differences[AP50].established and lead.differences[AP50].mean < 0]
    if wins:
        uses = "; ".join(f"on {win.new.split} {win.new.variations} by {win.new.generator}" for win in wins)
        held = [c for c in controls if any(c.new is win.new for win in wins)]
        if not held and any(win.new.generator_name not in CONTROLS for win in wins):
            return f"use them ({uses}), once you know that more of the same does less: add generator=repeat,copy_paste."
        equal = sorted({c.old.generator for c in held if not c.differences[AP50].established})
        if equal:
            return f"use them ({uses}), or {' or '.join(equal)}, which costs less and is not established to be worse."
        return f"use them ({uses})."
    if losses:
        return "leave these variations out: they cost accuracy."
    highs = [interval.high for gain in subjects if (interval := gain.differences[AP50].interval) is not None]
    if blind:
        return "first find a set-up that sees what real data is worth, with more steps or seeds; this one cannot judge."
    if seen and highs and len(told) == len(leads) and max(highs) < min(seen) / 2:
        bound = percent(max(*highs, 0.0))
        tighter = [gain.differences[AP].mean for gain in subjects if gain.differences[AP].established]
        if max(tighter, default=0) > 0:
            return (
                f"expect little of these variations, {percent(max(tighter))} points of AP and hardly more than {bound} "
                f"of AP50; more real images brought {percent(min(seen))} of AP50."
            )
        return (
            f"leave these variations out and label more real images, which brought {percent(min(seen))} points of AP50 "
            f"where variations hardly bring more than {bound}."
        )
    return "a gain may still be there; compare.py with plan=true says which runs would tell most."
