"""What a study's page says beyond the verdict: the ratio, the exchange rate, what it could have seen, what is next."""

from __future__ import annotations

from collections.abc import Sequence

from boxtwin.studies import exchange, planning_section, ratio_section, sensitivity
from boxtwin.studies.comparison import Contrast, Figures
from boxtwin.studies.conditions import Cell, Row
from boxtwin.studies.planning import Candidate
from boxtwin.studies.section import Section


def sections(
    cells: Sequence[Cell],
    rows: Sequence[Row],
    contrasts: Sequence[Contrast],
    figures: Figures,
    candidates: Sequence[Candidate] | None = None,
) -> list[Section]:
    """The sections of a study, in the order they are read: what it could see comes before what it saw.

    ``candidates`` is what `boxtwin.studies.planning.plan` found; None where nobody asked.
    """
    if not rows:
        return []
    found = [
        sensitivity.section(cells, rows, contrasts),
        ratio_section.section(rows, figures),
        exchange.section(rows, figures),
    ]
    if candidates is not None:
        found.append(planning_section.section(candidates, cells))
    return [section for section in found if section is not None]
