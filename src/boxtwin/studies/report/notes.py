"""Notes under the table: code, versions and machines of its runs, and which conditions are not compared and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from boxtwin.studies.condition_values import not_known_to_all, part, shown
from boxtwin.studies.conditions import Row, paired_seeds, recorded_values, varied_settings
from boxtwin.studies.runs import FINISHED, Cell

NOTED = ("boxtwin", "torch", "cuda", "threads")  # what may differ under the same recipe; commit and machine aside


def notes(cells: Sequence[Cell], rows: Sequence[Row]) -> list[str]:
    """One sentence for each thing that a reader of the table must know and that is no column of it."""
    finished = [cell for cell in cells if cell.status == FINISHED]
    return [*_setups(rows), *_unpaired(rows), *_unknown(finished), *_code(finished), *_machines(finished)]


def obstacles(rows: Sequence[Row], row: Row) -> dict[str, tuple[str, str]]:
    """Why a row has no baseline: where the nearest runs without variations differ, as ``(theirs, its own)`` by setting.

    Empty where there are no runs without variations at all.
    """
    plain = [other for other in rows if not other.variations]
    found: list[dict[str, tuple[str, str]]] = []
    for other in plain:
        theirs, own = ({**part(each.values, "setup"), **part(each.values, "split")} for each in (other, row))
        keys = sorted(key for key in {*theirs, *own} if theirs.get(key) != own.get(key))
        found.append({key: (shown(key, theirs.get(key)), shown(key, own.get(key))) for key in keys})
    return min(found, key=len, default={})


def _setups(rows: Sequence[Row]) -> list[str]:
    settings = varied_settings(rows)
    if not settings:
        return []
    return [f"Conditions that differ in {', '.join(settings)} are not compared with each other."]


def _unpaired(rows: Sequence[Row]) -> list[str]:
    """Seeds that a condition shares with its baseline, run on different kinds of device or in different precision."""
    said = []
    for row in rows:
        for base in rows:
            if not row.variations or base.variations or (row.split, row.condition) != (base.split, base.condition):
                continue
            apart = sorted(set(row.seeds) & set(base.seeds) - set(paired_seeds(row, base)))
            if apart:
                seeds = ", ".join(map(str, apart))
                said.append(
                    f"{row.split} x{row.variations} {row.generator}: seed{'s' * (len(apart) > 1)} {seeds} not paired, "
                    "since the runs without variations used another device or precision."
                )
    return said


def _unknown(cells: Sequence[Cell]) -> list[str]:
    unknown = sorted(not_known_to_all(recorded_values(cells)))
    if not unknown:
        return []
    return [
        f"Some runs, of an older version, do not record {', '.join(unknown)}; conditions may differ in that unseen."
    ]


def _code(cells: Sequence[Cell]) -> list[str]:
    recorded = [cell for cell in cells if cell.provenance.get("commit", "null") != "null"]
    said = []
    if len(recorded) < len(cells):
        some = f"{len(cells) - len(recorded)} of {len(cells)}" if recorded else "These"
        said.append(f"{some} runs do not record the commit of their code; it is as documented with the study.")
    commits = Counter(
        cell.provenance["commit"][:8] + ("" if cell.provenance.get("clean") == "true" else " with changes")
        for cell in recorded
    )
    if len(commits) > 1 or any(" " in commit for commit in commits):
        said.append(f"Code: {_counted(commits)}.")
    for name in NOTED:
        versions = Counter(cell.provenance[name] for cell in cells if name in cell.provenance)
        if len(versions) > 1:
            said.append(f"{name}: {_counted(versions)}.")
    return said


def _machines(cells: Sequence[Cell]) -> list[str]:
    machines = Counter(cell.machine or "not recorded" for cell in cells)
    return [f"Device and precision: {_counted(machines)}."] if len(machines) > 1 else []


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{name} ({count} run{'' if count == 1 else 's'})" for name, count in sorted(counts.items()))
