"""What a study's page says beyond the verdict: dose-response curve, equivalent real images, sensitivity, next runs."""

from __future__ import annotations

from collections.abc import Sequence

from boxtwin.studies import equivalence, sensitivity
from boxtwin.studies.comparison import Contrast, Figures
from boxtwin.studies.conditions import Cell, Row
from boxtwin.studies.next_runs import Candidate
from boxtwin.studies.report import dose_response, next_runs
from boxtwin.studies.report.section import Section


def sections(
    cells: Sequence[Cell],
    rows: Sequence[Row],
    contrasts: Sequence[Contrast],
    figures: Figures,
    candidates: Sequence[Candidate] | None = None,
) -> list[Section]:
    """The sections of a study, in the order they are read: what it could see comes before what it saw.

    ``candidates`` is what `boxtwin.studies.next_runs.plan` found; None where nobody asked.
    """
    if not rows:
        return []
    found = [
        sensitivity.section(cells, rows, contrasts),
        dose_response.section(rows, figures),
        equivalence.section(rows, figures),
    ]
    if candidates is not None:
        found.append(next_runs.section(candidates, cells))
    return [section for section in found if section is not None]
