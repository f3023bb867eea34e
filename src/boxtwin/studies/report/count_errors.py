"""Count errors image by image: which test images are counted worst, and what each condition finds in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from boxtwin.studies.conditions import Row
from boxtwin.studies.evidence import Evidence
from boxtwin.studies.slices import by_test_images

WORST = 10


@dataclass(frozen=True)
class ImageCount:
    """One test image: its true count, what each condition found in it (mean over seeds), and the mean error of all."""

    name: str
    true: int
    found: tuple[float, ...]  # in the order of the conditions
    error: float


@dataclass(frozen=True)
class CountErrors:
    """Conditions that were tested on the same images, and the images that they count worst, the worst first."""

    rows: tuple[Row, ...]
    images: int
    exact: int  # counted right in every run
    share: float  # of all absolute error, what lies in the worst; nan where there is none at all
    worst: tuple[ImageCount, ...]  # only such as have an error


def count_errors(rows: Sequence[Row], evidence: Mapping[str, Evidence]) -> list[CountErrors]:
    """The images that are counted worst on the average over all conditions, each of which weighs the same."""
    found = []
    for members in by_test_images(rows, evidence):
        first = evidence[members[0].runs[0]]
        # 1. What each condition finds, and how far each of its runs is off on the average.
        counts = [np.mean([evidence[run].found for run in row.runs], axis=0) for row in members]
        errors = [
            np.mean([abs(evidence[run].found - evidence[run].true) for run in row.runs], axis=0) for row in members
        ]
        total = np.mean(errors, axis=0)
        # 2. The worst images; names decide between equals, so that the list is the same every time.
        order = [int(place) for place in np.lexsort((np.array(first.names), -total))[:WORST] if total[place] > 0]
        worst = tuple(
            ImageCount(first.names[p], int(first.true[p]), tuple(float(c[p]) for c in counts), float(total[p]))
            for p in order
        )
        found.append(
            CountErrors(
                rows=tuple(members),
                images=len(first.names),
                exact=int((total == 0).sum()),
                share=float(total[order].sum() / total.sum()) if order else float("nan"),
                worst=worst,
            )
        )
    return found
