"""What to run next, as sentences and as a table."""

from __future__ import annotations

import math
from collections.abc import Sequence

from boxtwin.studies.conditions import FINISHED, Cell
from boxtwin.studies.next_runs import Candidate, points
from boxtwin.studies.report.section import Section


def text_table(candidates: Sequence[Candidate]) -> str:
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


def section(candidates: Sequence[Candidate], cells: Sequence[Cell]) -> Section:
    """The list, one sentence and one command each."""
    if not candidates:
        return Section("What to run next", ("Nothing that would narrow the answer was found.",), ())
    sentences = [_sentence(place, candidate) for place, candidate in enumerate(candidates, start=1)]
    minutes = [candidate.minutes for candidate in candidates]
    known = math.fsum(each for each in minutes if math.isfinite(each))
    sentences.append(
        f"All of it takes about {known:.0f} minutes, by the cells already run and without the time to make new images; "
        "cells that are in several of these are run once, and what was left out of the "
        "list would narrow less. ± is half of a 95 % interval of AP50, in points."
    )
    finished = [cell for cell in cells if cell.status == FINISHED]
    if any(not cell.overrides for cell in finished):
        sentences.append(
            "Some of these cells do not say what was typed to get them: add the settings that they share "
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
