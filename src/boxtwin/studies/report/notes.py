"""Notes under the table: code, versions and machines of its runs, and which conditions are not compared and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from boxtwin.studies.condition_values import not_known_to_all, part, shown
from boxtwin.studies.conditions import Row, baseline, paired_seeds, recorded_values, varied_settings
from boxtwin.studies.report.words import paragraphs
from boxtwin.studies.runs import FINISHED, Cell

NOTED = ("boxtwin", "torch", "cuda", "threads")  # what may differ under the same recipe; commit and machine aside


def notes(cells: Sequence[Cell], rows: Sequence[Row]) -> list[str]:
    """One sentence for each thing that a reader of the table must know and that is no column of it."""
    finished = [cell for cell in cells if cell.status == FINISHED]
    committed = [cell.provenance for cell in finished if cell.provenance.get("commit", "null") != "null"]
    commits = Counter(
        each["commit"][:8] + ("" if each.get("clean") == "true" else " with changes") for each in committed
    )
    versions = {name: Counter(cell.provenance[name] for cell in finished if name in cell.provenance) for name in NOTED}
    machines = Counter(cell.machine or "not recorded" for cell in finished)
    return paragraphs(
        "notes",
        settings=varied_settings(rows),
        unpaired=_unpaired(rows),
        unknown=sorted(not_known_to_all(recorded_values(finished))),
        unrecorded=len(finished) - len(committed),
        runs=len(finished),
        commits=commits if len(commits) > 1 or any(" " in commit for commit in commits) else {},
        versions={name: counts for name, counts in versions.items() if len(counts) > 1},
        machines=machines if len(machines) > 1 else {},
    )


def obstacles(rows: Sequence[Row], row: Row) -> dict[str, tuple[str, str]]:
    """Why a row has no baseline: where the nearest runs without variations differ, as ``(theirs, its own)`` by setting.

    Empty where there are no runs without variations at all.
    """
    apart: list[dict[str, tuple[str, str]]] = []
    for other in (other for other in rows if not other.variations):
        theirs, own = ({**part(each.values, "setup"), **part(each.values, "split")} for each in (other, row))
        keys = sorted(key for key in {*theirs, *own} if theirs.get(key) != own.get(key))
        apart.append({key: (shown(key, theirs.get(key)), shown(key, own.get(key))) for key in keys})
    return min(apart, key=len, default={})


def _unpaired(rows: Sequence[Row]) -> list[tuple[Row, list[int]]]:
    """Seeds that a condition shares with its baseline, run on different kinds of device or in different precision."""
    apart = []
    for row in rows:
        base = baseline(rows, row)
        if base is not None and (seeds := set(row.seeds) & set(base.seeds) - set(paired_seeds(row, base))):
            apart.append((row, sorted(seeds)))
    return apart
