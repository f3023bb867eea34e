"""Conditions held against each other pair by pair: how large a difference is, and how sure."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Float

from boxtwin.errors import InputError
from boxtwin.studies.condition_values import Values
from boxtwin.studies.conditions import Row, baseline, paired_seeds
from boxtwin.studies.conditions import difference as mean_change
from boxtwin.studies.evidence import FIGURES, Evidence
from boxtwin.studies.inference import (
    LEAST_PAIRS,
    SIGNIFICANT,
    Interval,
    hierarchical_interval,
    holm,
    image_counts,
    pairs_needed,
    sign_flip_p,
)

CONTROLS = ("repeat", "copy_paste")
FIELDS = {"map": "ap", "map_50": "ap50", "count_mae": "count_mae"}  # of a `Row`
MOST_FLIPS = 20
RESAMPLES = 1000
RESAMPLING_SEED = 0  # the same resamples for all runs of all studies


@dataclass(frozen=True)
class Difference:
    """One figure of one condition less that of another, over the seeds that both have.

    ``interval`` is None with fewer than two pairs, or where runs keep no matches. ``p`` is not corrected, ``p_holm``
    is, for all differences of this figure that the table makes.
    """

    figure: str
    mean: float  # with no pairs, the difference of the means
    pairs: int
    low: float  # least and greatest of the pairs
    high: float
    interval: Interval | None
    p: float
    p_holm: float = math.nan
    family: int = 1  # differences that were corrected together

    @property
    def established(self) -> bool:
        """Whether chance is ruled out at 5 %, all differences of the table taken together."""
        return self.p_holm <= SIGNIFICANT

    @property
    def pairs_needed(self) -> int:
        """Seeds in common that it takes before a difference of this table can be established."""
        return max(LEAST_PAIRS, pairs_needed(self.family))

    @property
    def could_be_established(self) -> bool:
        """Whether so few pairs could have ruled chance out at all."""
        return self.pairs >= self.pairs_needed


class Figures:
    """Figures of runs on the test images and on resamples of them, each worked out once.

    Runs must have been tested on the same images; `differences` compares no others.
    """

    def __init__(self, evidence: Mapping[str, Evidence]) -> None:
        self._evidence = dict(evidence)  # by run id
        self._counts: dict[int, Float[np.ndarray, "_resamples _images"]] = {}
        self._known: dict[str, dict[str, Float[np.ndarray, " resamples"]]] = {}

    def of(self, run: str) -> dict[str, Float[np.ndarray, " resamples"]] | None:
        """`FIGURES` of a run: first on the images as they are, then on every resample. None without evidence."""
        if run not in self._evidence:
            return None
        if run not in self._known:
            images = len(self._evidence[run].names)
            if images not in self._counts:
                resamples = image_counts(images, RESAMPLES, RESAMPLING_SEED)
                self._counts[images] = np.concatenate([np.ones((1, images)), resamples])
            self._known[run] = self._evidence[run].figures(self._counts[images])
        return self._known[run]

    def images(self, run: str) -> tuple[str, ...]:
        """Names of the test images of a run."""
        return self._evidence[run].names if run in self._evidence else ()


def difference(figure: str, new: Row, old: Row, figures: Figures) -> Difference:
    """One figure of ``new`` less that of ``old``, over the seeds of `paired_seeds`.

    Raises:
        InputError: runs of the two were tested on different images.
    """
    after, before = (getattr(row, FIELDS[figure]) for row in (new, old))
    change = mean_change(new, old, FIELDS[figure])
    if not change.pairs:
        return Difference(figure, change.mean, 0, math.nan, math.nan, None, math.nan)
    values, pairable = dict(before.by_seed), set(paired_seeds(new, old))
    shared = [(seed, value - values[seed]) for seed, value in after.by_seed if seed in values and seed in pairable]
    p = sign_flip_p([value for _, value in shared]) if len(shared) <= MOST_FLIPS else math.nan
    interval = _interval(figure, [seed for seed, _ in shared], new, old, figures) if len(shared) > 1 else None
    return Difference(figure, change.mean, change.pairs, change.low, change.high, interval, p)


def _interval(figure: str, seeds: Sequence[int], new: Row, old: Row, figures: Figures) -> Interval | None:
    resampled, images = [], set()
    for seed in seeds:
        runs = [dict(zip(row.seeds, row.runs, strict=True))[seed] for row in (new, old)]
        after, before = (figures.of(run) for run in runs)
        if after is None or before is None:
            return None
        images |= {figures.images(run) for run in runs}
        if len(images) > 1:
            raise InputError(f"runs {runs[0]} and {runs[1]} were tested on different images and cannot be compared")
        resampled.append(after[figure] - before[figure])
    together = np.stack(resampled)
    (names,) = images
    return hierarchical_interval(together[:, 0], together[:, 1:], images=len(names))


@dataclass(frozen=True)
class Contrast:
    """Two conditions, and by how much the new one differs in each of `FIGURES`."""

    kind: Literal["variations", "control", "yardstick"]
    new: Row
    old: Row
    differences: Mapping[str, Difference]


def contrasts(rows: Sequence[Row], figures: Figures) -> list[Contrast]:
    """All that a study's table says against each other: variations against none, generators against controls at the
    same count, more real images against fewer. Each kind is a family of its own for Holm's correction.
    """
    pairs: list[tuple[Literal["variations", "control", "yardstick"], Row, Row]] = []
    for row in rows:
        base = baseline(rows, row)
        if row.variations and base is not None:
            pairs.append(("variations", row, base))
    for row, other in itertools.product(rows, rows):
        if _controls(row, other):
            pairs.append(("control", row, other))
    pairs += [("yardstick", more, fewer) for fewer, more in yardsticks(rows)]
    found = []
    for kind, group in itertools.groupby(pairs, key=lambda pair: pair[0]):
        members = list(group)
        by_figure = {
            figure: corrected([difference(figure, new, old, figures) for _, new, old in members]) for figure in FIGURES
        }
        for place, (_, new, old) in enumerate(members):
            found.append(Contrast(kind, new, old, {figure: by_figure[figure][place] for figure in FIGURES}))
    return found


def _controls(row: Row, other: Row) -> bool:
    """Whether ``other`` mixes in as many images by a control, everything else the same but how labels are found."""
    if row.generator_name in CONTROLS or other.generator_name not in CONTROLS or not row.variations:
        return False
    return (row.split, row.condition) == (other.split, other.condition) and _mixing(row.values) == _mixing(other.values)


def _mixing(values: Values) -> dict[str, str]:
    return {key: value for key, value in values.items() if key.startswith("variations.")}


def yardsticks(rows: Sequence[Row]) -> list[tuple[Row, Row]]:
    """Neighbouring sizes of real data among the rows without variations, smaller first.

    Rows of parts of a split (``train_size``) measure what real images are worth; only where there are no two whole
    splits is the largest row held against the one nearest to half of it.
    """
    plain = sorted(
        (row for row in rows if not row.variations and row.real_images > 0),  # nan is not
        key=lambda row: (row.condition, row.real_images),
    )
    found = []
    for _, alike in itertools.groupby(plain, key=lambda row: row.condition):
        group = list(alike)
        whole = [row for row in group if row.train_size is None]
        pairs = [(fewer, more) for fewer, more in itertools.pairwise(whole) if fewer.real_images < more.real_images]
        if not pairs:
            largest = max(group, key=lambda row: row.real_images)
            smaller = [row for row in group if row.real_images < largest.real_images]
            if smaller:
                half = min(smaller, key=lambda row: abs(math.log(2 * row.real_images / largest.real_images)))
                pairs = [(half, largest)]
        found += pairs
    return found


def corrected(differences: Sequence[Difference]) -> list[Difference]:
    """The differences of one table with Holm's correction, figure by figure, in the order given."""
    result = list(differences)
    by_figure: dict[str, list[int]] = {}
    for index, found in enumerate(differences):
        by_figure.setdefault(found.figure, []).append(index)
    for places in by_figure.values():
        known = [place for place in places if not math.isnan(differences[place].p)]
        for place, p in zip(known, holm([differences[place].p for place in known]), strict=True):
            result[place] = replace(differences[place], p_holm=p, family=len(known))
    return result
