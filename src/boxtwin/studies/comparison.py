"""Comparisons of conditions pair by pair: how large a difference is, and how sure."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

from boxtwin.errors import InputError
from boxtwin.studies.condition_values import EPOCHS
from boxtwin.studies.conditions import Estimate, Row, baseline, paired_seeds, setups
from boxtwin.studies.evidence import COMPARED, Counts, Evidence, Resampled, change_limits
from boxtwin.studies.inference import (
    LEAST_PAIRS,
    SIGNIFICANT,
    Interval,
    bootstrap_counts,
    clusters_of,
    holm,
    interval_of,
    pairs_needed,
    sign_flip_p,
)
from boxtwin.studies.label_versions import LabelVersions
from boxtwin.studies.pretraining import pretraining_pairs
from boxtwin.studies.primary import PrimaryComparison, find_rows

PRIMARY_METRIC = "map_50"
RESAMPLES = 1000

Kind = Literal[
    "primary",
    "variations",
    "pretraining",
    "equal pixels",
    "unlabelled images",
    "empty images",
    "control",
    "positive control",
]
Role = Literal["tested", "primary", "exploratory"]
# By the kind of a comparison with none of them, the value of a condition with images beside the data set.
EXTRA_IMAGES: dict[Kind, str] = {"unlabelled images": "unlabelled_images", "empty images": "empty_images"}


@dataclass(frozen=True)
class Difference:
    """One metric of one condition minus that of another, over the seeds that both have."""

    metric: str
    before: float  # means over the pairs; with no pairs, those of the conditions
    after: float
    mean: float  # of the pairs; with none, the difference of the means, or nan if the kinds of machine differ
    pairs: int
    low: float  # least and greatest of the pairs
    high: float
    interval: Interval | None  # None with fewer than two pairs, without matches, or where `undefined`
    p: float
    p_holm: float = math.nan  # corrected for all differences of this metric that the table makes
    family: int = 1  # differences that were corrected together
    role: Role = "tested"  # with primary comparisons, all others are exploratory and have no p
    undefined: bool = False  # too few test images hold objects: many resamples of them have no such metric
    unpaired: int = 0  # seeds in common that are no pairs, since their runs were made on different kinds of device
    machines: tuple[str, ...] = ()  # kinds of device of all runs, where they are recorded

    @property
    def significant(self) -> bool:
        """Whether p is at most 0.05 after correction and the interval excludes 0.

        Runs that keep no matches have no interval. Of these p alone decides, but not in a primary comparison.
        """
        no_matches = self.interval is None and not self.undefined
        return self.p_holm <= SIGNIFICANT and (self.excludes_zero or (no_matches and self.role != "primary"))

    @property
    def excludes_zero(self) -> bool:
        return self.interval is not None and (self.interval.low > 0 or self.interval.high < 0)

    @property
    def gain_significant(self) -> bool:
        return self.significant and self.mean > 0

    @property
    def pairs_needed(self) -> int:
        """Seeds in common from which on a difference of this table can be significant."""
        return max(LEAST_PAIRS, pairs_needed(self.family))

    @property
    def could_be_significant(self) -> bool:
        """Whether there are enough pairs for a difference to be significant.

        After smaller p of its family, Holm's correction asks less of it than of the first.
        """
        return self.significant or self.pairs >= self.pairs_needed


class ResampledMetrics:
    """Metrics of runs on the test images and on resamples of them, each computed once.

    ``evidence`` is by run id; ``metrics`` gives metrics by name from how often each image is in each resample; they
    depend on the images of ``part`` alone, or on all.
    """

    def __init__(
        self,
        evidence: Mapping[str, Evidence],
        metrics: Callable[[Evidence, Counts], Mapping[str, Resampled]] = Evidence.metrics,
        resamples: int = RESAMPLES,
        part: Bool[np.ndarray, " images"] | None = None,
    ) -> None:
        self._evidence, self._metrics, self._resamples, self._part = dict(evidence), metrics, resamples, part
        self._known: dict[str, Mapping[str, Resampled]] = {}

    def of(self, run: str) -> Mapping[str, Resampled] | None:
        """Metrics of a run: first on the images as they are, then on every resample. None without evidence."""
        if run not in self._evidence:
            return None
        if run not in self._known:
            evidence = self._evidence[run]
            self._known[run] = self._metrics(evidence, bootstrap_counts(len(evidence.names), self._resamples))
        return self._known[run]

    def of_row(self, metric: str, row: Row, seeds: Sequence[int]) -> Float[np.ndarray, "seeds resamples"] | None:
        """One metric of a condition's runs with these seeds; None if it is not known of one of them."""
        values = [(self.of(row.run_of[seed]) or {}).get(metric) for seed in seeds]
        return None if any(each is None for each in values) else np.stack([each for each in values if each is not None])

    def images(self, run: str) -> tuple[str, ...]:
        """Names of the test images of a run that metrics depend on."""
        names = self._evidence[run].names if run in self._evidence else ()
        return names if self._part is None else tuple(itertools.compress(names, self._part))


def difference(metric: str, new: Row, old: Row, resampled: ResampledMetrics, *, tested: bool = True) -> Difference:
    """One metric of ``new`` minus that of ``old``, over the seeds of `paired_seeds`; p is nan unless ``tested``.

    Raises:
        InputError: runs of the two were tested on different images.
    """
    before, after = (dict(row.estimates[metric].by_seed) for row in (old, new))
    seeds = [seed for seed in paired_seeds(new, old) if seed in after and seed in before]
    pairs = Estimate(tuple((seed, after[seed] - before[seed]) for seed in seeds))
    old_mean, new_mean = (Estimate(tuple((s, each[s]) for s in seeds or each)).mean for each in (before, after))
    machines = sorted({run.machine for row in (new, old) for run in row.runs} - {""})
    unpaired = new_mean - old_mean if len(machines) < 2 else math.nan
    values = _resampled(metric, seeds, new, old, resampled) if len(seeds) > 1 else None
    interval = None if values is None else _interval(values, metric, seeds, new, old, resampled)
    return Difference(
        metric,
        old_mean,
        new_mean,
        pairs.mean if seeds else unpaired,
        len(seeds),
        pairs.low,
        pairs.high,
        interval,
        sign_flip_p(pairs.values) if tested and seeds else math.nan,
        undefined=values is not None and interval is None,
        unpaired=len({*new.seeds} & {*old.seeds}) - len(paired_seeds(new, old)),
        machines=tuple(machines),
    )


def _resampled(
    metric: str, seeds: Sequence[int], new: Row, old: Row, resampled: ResampledMetrics
) -> Float[np.ndarray, "seeds resamples"] | None:
    """The differences on the test images and on resamples of them; None if a run keeps no matches."""
    after, before = (resampled.of_row(metric, row, seeds) for row in (new, old))
    return None if after is None or before is None else after - before


def _interval(
    differences: Float[np.ndarray, "seeds resamples"],
    metric: str,
    seeds: Sequence[int],
    new: Row,
    old: Row,
    resampled: ResampledMetrics,
) -> Interval | None:
    runs = [(new.run_of[seed], old.run_of[seed]) for seed in seeds]
    images = resampled.images(runs[0][0])
    for pair in runs:
        if any(resampled.images(run) != images for run in pair):
            raise InputError(
                f"{new.name} and {old.name}: not all of their runs were tested on the same images, so they cannot be "
                "compared; compare them in separate studies, or delete the runs on other images in MLflow"
            )
    first = [(new.pretraining_seeds[seed], old.pretraining_seeds[seed]) for seed in seeds]
    return interval_of(differences, len(images), clusters_of(first), limits=change_limits(metric))


def changes(rows: Sequence[Row], row: Row, resampled: ResampledMetrics) -> dict[str, Difference]:
    """By how much each metric of a condition differs from its baseline, without p; empty where no seed is paired."""
    base = baseline(rows, row)
    if base is None or not paired_seeds(row, base):
        return {}
    return {metric: difference(metric, row, base, resampled, tested=False) for metric in row.estimates}


@dataclass(frozen=True)
class Contrast:
    """Two conditions, and by how much the new one differs in each of `COMPARED`."""

    kind: Kind
    new: Row
    old: Row
    differences: Mapping[str, Difference]
    name: str = ""  # of a primary comparison


def contrasts(
    rows: Sequence[Row], resampled: ResampledMetrics, primary: Sequence[PrimaryComparison] = ()
) -> list[Contrast]:
    """All comparisons of a study's table: variations against none, pre-training against none and against as many pixels
    of real images, images beside the data set against none, generators against controls at the same number of
    variations, more real images against fewer. Each kind is a family of its own for Holm's correction.

    With ``primary`` comparisons, these come first and are the only family; the others are exploratory.
    """
    compared = _primary_contrasts(rows, resampled, primary)
    known = {(each.new.run_ids, each.old.run_ids): each.differences for each in compared}
    pretraining = pretraining_pairs(rows)
    families: dict[Kind, list[tuple[Row, Row]]] = {
        "variations": [(row, base) for row in rows if (base := baseline(rows, row)) is not None],
        "pretraining": [(row, other) for kind, row, other in pretraining if kind == "pretraining"],
        "equal pixels": [(row, other) for kind, row, other in pretraining if kind == "equal pixels"],
        **{kind: _with_and_without(key, rows) for kind, key in EXTRA_IMAGES.items()},
        "control": [(row, other) for row, other in itertools.product(rows, rows) if _controls(row, other)],
        "positive control": [(more, fewer) for fewer, more in positive_controls(rows)],
    }
    for kind, pairs in families.items():
        if primary:
            compared += [
                Contrast(kind, *pair, known.get((pair[0].run_ids, pair[1].run_ids)) or _exploratory(*pair, resampled))
                for pair in pairs
            ]
            continue
        by_metric = [corrected([difference(metric, *pair, resampled) for pair in pairs]) for metric in COMPARED]
        for (new, old), *of_pair in zip(pairs, *by_metric, strict=True):
            compared.append(Contrast(kind, new, old, dict(zip(COMPARED, of_pair, strict=True))))
    return compared


def _primary_contrasts(
    rows: Sequence[Row], resampled: ResampledMetrics, primary: Sequence[PrimaryComparison]
) -> list[Contrast]:
    """Those of which both conditions have runs, tested by `PRIMARY_METRIC`. All count for the correction."""
    found = [(each.name, *find_rows(rows, each)) for each in primary]
    pairs = [(name, new, old) for name, new, old in found if new and old]
    tested = [
        replace(difference(PRIMARY_METRIC, new, old, resampled), role="primary", family=len(primary))
        for _, new, old in pairs
    ]
    return [
        Contrast("primary", new, old, _exploratory(new, old, resampled) | {PRIMARY_METRIC: change}, name)
        for (name, new, old), change in zip(pairs, corrected(tested, len(primary)), strict=True)
    ]


def _exploratory(new: Row, old: Row, resampled: ResampledMetrics) -> dict[str, Difference]:
    found = {metric: difference(metric, new, old, resampled, tested=False) for metric in COMPARED}
    return {metric: replace(each, role="exploratory") for metric, each in found.items()}


def against_none(contrasts: Sequence[Contrast]) -> dict[tuple[str, ...], Mapping[str, Difference]]:
    """The differences of each condition to no variations, by the runs of its row."""
    return {each.new.run_ids: each.differences for each in contrasts if each.kind == "variations"}


def _with_and_without(key: str, rows: Sequence[Row]) -> list[tuple[Row, Row]]:
    """Each row whose condition has a value, and the row that differs in nothing but not having it."""
    with_it = [(row, {k: v for k, v in row.values.items() if k != key}) for row in rows if key in row.values]
    return [(row, other) for row, rest in with_it for other in rows if other.values == rest]


def _controls(row: Row, other: Row) -> bool:
    """Whether ``other`` mixes in as many images by a control, everything else the same but how labels are found.

    Controls are not compared with each other, but at equal epochs with `repeat`, which shows what the steps alone do.
    """
    shows_steps = EPOCHS in row.values and other.first.generator == "repeat" != row.first.generator
    if (row.is_control and not shows_steps) or not other.is_control or not row.variations:
        return False
    mixed, other_mixed = (
        {k: v for k, v in each.values.items() if k.startswith("variations.")} for each in (row, other)
    )
    return (row.split, row.condition, mixed) == (other.split, other.condition, other_mixed)


def positive_controls(rows: Sequence[Row]) -> list[tuple[Row, Row]]:
    """Neighbouring sizes of real data among the rows without variations, smaller first.

    Without two whole splits, the largest row is compared with the part of a split that is nearest to half of it. Only
    rows of one version of the labels and of one ``split.seed`` are compared: others differ in more than their number.
    """
    plain = sorted(
        (row for row in rows if not row.variations and row.real_images > 0),  # nan is not
        key=lambda row: (row.condition, row.real_images),
    )
    neighbours = []
    versions = LabelVersions(rows)
    for group in (part for alike in setups(plain) for part in _of_one_draw(alike, versions)):
        whole = [row for row in group if row.first.train_size is None]
        pairs = [(fewer, more) for fewer, more in itertools.pairwise(whole) if fewer.real_images < more.real_images]
        if not pairs:
            largest = max(group, key=lambda row: row.real_images)
            smaller = [row for row in group if row.real_images < largest.real_images]
            if smaller:
                half = min(smaller, key=lambda row: abs(math.log(2 * row.real_images / largest.real_images)))
                pairs = [(half, largest)]
        neighbours += pairs
    return neighbours


def _of_one_draw(rows: Sequence[Row], versions: LabelVersions) -> list[list[Row]]:
    """The rows by version of their labels and seed of their splits, in order."""
    found: dict[object, list[Row]] = {}
    for row in rows:
        found.setdefault((versions.of(row), row.first.condition.get("split.seed")), []).append(row)
    return list(found.values())


def corrected(differences: Sequence[Difference], family: int | None = None) -> list[Difference]:
    """The differences of one metric in one table with Holm's correction, in the order given.

    Of a ``family`` that has more comparisons than have a p, the p of the others counts as 1.
    """
    known = sum(not math.isnan(each.p) for each in differences)
    family = known if family is None else family
    p_values = holm([*(each.p for each in differences), *[1.0] * (family - known)])[: len(differences)]
    return [
        each if math.isnan(each.p) else replace(each, p_holm=p, family=family)
        for each, p in zip(differences, p_values, strict=True)
    ]
