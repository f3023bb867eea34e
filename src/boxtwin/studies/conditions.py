"""Runs of a study, gathered by condition: what was run, how it did, and how far it lies from its baseline."""

from __future__ import annotations

import math
import shlex
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

from boxtwin.errors import InputError
from boxtwin.studies.condition_values import (
    COUNT,
    NAMES,
    Part,
    Values,
    as_overrides,
    differences,
    not_known_to_all,
    part,
    part_of,
)
from boxtwin.studies.runs import FINISHED, NO_GENERATOR, Cell

# Recorded where they are not as they were in runs that do not record their condition.
SINCE = ("evaluation", "levels", "max_detections", "anchors")


@dataclass(frozen=True)
class Estimate:
    """A figure over the seeds that have it; nan where none does."""

    by_seed: tuple[tuple[int, float], ...]

    @property
    def mean(self) -> float:
        return math.fsum(value for _, value in self.by_seed) / len(self.by_seed) if self.by_seed else math.nan

    @property
    def low(self) -> float:
        return min((value for _, value in self.by_seed), default=math.nan)

    @property
    def high(self) -> float:
        return max((value for _, value in self.by_seed), default=math.nan)


@dataclass(frozen=True)
class Change:
    """A figure minus that of the baseline: mean, least and greatest over ``pairs`` seeds that both have.

    With no seed in common ``pairs`` is 0 and ``mean`` is the difference of the means.
    """

    mean: float
    low: float
    high: float
    pairs: int


@dataclass(frozen=True)
class Row:
    """One condition: the finished runs that differ in their seed only. AP and AP50 are in [0, 1], MAE in objects.

    ``split`` and ``generator`` name their parts of the condition uniquely among the rows of a table: settings in which
    parts of one name differ are added, as in ``repeat variations.synthetic_fraction=0.5``.
    """

    setting: str
    dataset: str
    detector: str
    generator: str
    split: str
    variations: int
    steps: int
    seeds: tuple[int, ...]
    runs: tuple[str, ...]  # run ids, in the order of the seeds
    machines: tuple[str, ...]  # `Run.machine`, in the order of the seeds
    ap: Estimate
    ap50: Estimate
    count_mae: Estimate
    count_bias: Estimate
    real_images: float
    synthetic_images: float
    minutes: float
    ap_change: Change | None  # against no variations of the same split and setting; None without such runs
    ap50_change: Change | None
    count_mae_change: Change | None
    train_size: int | None = None  # as in `Run`
    generator_name: str = NO_GENERATOR  # without what tells it from others of the name
    values: Values = field(default_factory=dict)  # all that defines the condition
    varied: Values = field(default_factory=dict)  # those of its settings outside of `NAMES` that differ in the table

    @property
    def condition(self) -> tuple[tuple[str, str], ...]:
        """What two rows must share to be held against each other: setup, test images and their labels."""
        return tuple(sorted(part(self.values, "setup").items()))

    @property
    def setup(self) -> dict[str, str]:
        """The settings of `condition` that differ in the table."""
        return part(self.varied, "setup")


def condition_table(cells: Iterable[Cell]) -> list[Row]:
    """Finished runs, gathered by condition and held against the same condition without variations, pair by pair.

    Raises:
        InputError: two finished runs are the same condition and seed: averaging them would pass one run off as two.
    """
    finished = [cell for cell in cells if cell.status == FINISHED]
    groups: dict[tuple[tuple[str, str], ...], dict[int, Cell]] = {}
    values_of: dict[tuple[tuple[str, str], ...], dict[str, str]] = {}
    for cell, values in zip(finished, condition_values(finished), strict=True):
        key = tuple(sorted(values.items()))
        values_of[key] = values
        runs = groups.setdefault(key, {})
        if cell.seed in runs:
            raise InputError(
                f"{cell.name} has two finished runs of the same condition and seed, {runs[cell.seed].run_id} and "
                f"{cell.run_id}; leave one of them out: delete it in MLflow, or move its folder away"
            )
        runs[cell.seed] = cell
    keys = list(groups)
    varied = _varied([values_of[key] for key in keys])
    labels = _labels([values_of[key] for key in keys], [next(iter(groups[key].values())) for key in keys])
    rows = []
    for key, names, (split, generator) in zip(keys, varied, labels, strict=True):
        rows.append(_row(groups[key], values_of[key], names, split, generator))
    rows.sort(
        key=lambda row: (
            *(row.dataset, row.detector, row.setting, row.steps, row.condition, row.split),
            *(row.variations > 0, row.generator, row.variations),
        )
    )
    return [_with_changes(row, baseline(rows, row)) for row in rows]


def condition_values(cells: Sequence[Cell]) -> list[dict[str, str]]:
    """What defines each run apart from its seed; where some runs do not have it recorded, what all of them have."""
    recorded = recorded_values(cells)
    unknown = not_known_to_all(recorded)
    return [{key: value for key, value in values.items() if key not in unknown} for values in recorded]


def recorded_values(cells: Sequence[Cell]) -> list[Values]:
    """What each run records of its condition, in one form for all."""
    if all(cell.condition for cell in cells):
        return [cell.condition for cell in cells]
    values = [_in_old_form(cell) for cell in cells]
    # Runs that record more stay apart by all that they record.
    alike: dict[Hashable, list[int]] = defaultdict(list)
    for place, cell in enumerate(cells):
        if cell.condition:
            alike[tuple(sorted(values[place].items()))].append(place)
    for places in alike.values():
        apart = differences([cells[place].condition for place in places])
        for place, more in zip(places, apart, strict=True):
            values[place] |= more
    return list(values)


def _in_old_form(cell: Cell) -> dict[str, str]:
    """What runs of every version say of their condition: names, hashes, and what was typed for what is mixed in."""
    typed = [word.lstrip("+").split("=", 1) for word in shlex.split(cell.overrides) if "=" in word]
    said = dict(word for word in typed if len(word) == 2)
    values = {
        "dataset.name": cell.dataset,
        "split.name": cell.split,
        COUNT: str(cell.variations),
        "detector.name": cell.detector,
        "setting": cell.setting,
        "trainer.steps": str(cell.steps),
    }
    if cell.overrides:  # the folder of the weights may be another one on another machine
        # Every run's detector has the same file name.
        values["detector.weights"] = "/".join(PurePosixPath(said.get("detector.weights", "null")).parts[-2:])
    if cell.data:
        values["data"] = cell.data
    if cell.test:
        values["data.test_names"] = cell.test
    if cell.variations:
        values |= {"generator.name": cell.generator, "labels.name": cell.labels, "store": cell.store}
        named = {key: value for key, value in said.items() if part_of(key) == "variations" and "." in key}
        values |= {key: value for key, value in named.items() if key != COUNT}
    # What changed for some data since runs that do not record it.
    values |= {key: cell.condition[key] for key in SINCE if key in cell.condition}
    if cell.condition.get("recipe", "1") != "1":
        values["recipe"] = cell.condition["recipe"]
    return values


def _varied(values: Sequence[Values]) -> list[dict[str, str]]:
    """The settings in which conditions differ; those of what is mixed in among conditions with variations alone."""
    found = differences([{key: v for key, v in each.items() if part_of(key) != "variations"} for each in values], NAMES)
    mixed = [place for place, each in enumerate(values) if each.get(COUNT) != "0"]
    ways = differences([part(values[place], "variations") for place in mixed], (*NAMES, "store"))
    for place, way in zip(mixed, ways, strict=True):
        found[place] |= way
    return found


def _labels(values: Sequence[Values], cells: Sequence[Cell]) -> list[tuple[str, str]]:
    """Split and generator of each condition as a table names them: uniquely within a setup."""
    splits = [cell.split for cell in cells]
    generators = [cell.generator if cell.variations else NO_GENERATOR for cell in cells]
    _tell_apart(splits, values, "split", [(cell.dataset, cell.split) for cell in cells])
    ways = [(cell.dataset, cell.generator) if cell.variations else None for cell in cells]
    _tell_apart(generators, values, "variations", ways)
    # Stores differ from split to split; within one, other labels or other pixels under the same settings.
    alike: dict[Hashable, list[int]] = defaultdict(list)
    for place, each in enumerate(values):
        alike[splits[place], generators[place], *sorted(part(each, "setup").items())].append(place)
    for places in alike.values():
        stores = [values[place].get("store", "").rpartition("-")[2] for place in places]
        if len(set(stores) - {"null"}) > 1:
            for place, store in zip(places, stores, strict=True):
                generators[place] += f" store={store}"
    return list(zip(splits, generators, strict=True))


def _tell_apart(names: list[str], values: Sequence[Values], which: Part, groups: Sequence[Hashable]) -> None:
    """Add to each name the settings of a part in which conditions of its group differ; none where the group is None."""
    for group in dict.fromkeys(groups):
        places = [place for place, own in enumerate(groups) if own == group and group is not None]
        found = differences([part(values[place], which) for place in places], (*NAMES, "store"))
        for place, each in zip(places, found, strict=True):
            names[place] = " ".join((names[place], as_overrides(each))).rstrip()


def _row(runs: dict[int, Cell], values: Values, varied: Mapping[str, str], split: str, generator: str) -> Row:
    first = next(iter(runs.values()))
    return Row(
        setting=first.setting,
        dataset=first.dataset,
        detector=first.detector,
        generator=generator,
        split=split,
        variations=first.variations,
        steps=first.steps,
        seeds=tuple(sorted(runs)),
        runs=tuple(runs[seed].run_id for seed in sorted(runs)),
        machines=tuple(runs[seed].machine for seed in sorted(runs)),
        ap=_estimate(runs, "test/map"),
        ap50=_estimate(runs, "test/map_50"),
        count_mae=_estimate(runs, "test/count_mae"),
        count_bias=_estimate(runs, "test/count_bias"),
        real_images=_estimate(runs, "data/real_images").mean,
        synthetic_images=_estimate(runs, "data/synthetic_images").mean,
        minutes=sum(cell.minutes for cell in runs.values()) / len(runs),
        ap_change=None,
        ap50_change=None,
        count_mae_change=None,
        train_size=first.train_size,
        generator_name=first.generator if first.variations else NO_GENERATOR,
        values=values,
        varied=varied,
    )


def _with_changes(row: Row, base: Row | None) -> Row:
    if not row.variations or base is None:
        return row
    return replace(
        row,
        ap_change=difference(row, base, "ap"),
        ap50_change=difference(row, base, "ap50"),
        count_mae_change=difference(row, base, "count_mae"),
    )


def baseline(rows: Sequence[Row], row: Row) -> Row | None:
    """The same condition without variations."""
    same = (r for r in rows if not r.variations and r.split == row.split and r.condition == row.condition)
    return next(same, None)


def paired_seeds(*rows: Row) -> list[int]:
    """Seeds that all rows have, run on one kind of device and in one precision where these are recorded."""
    machines = [dict(zip(row.seeds, row.machines, strict=True)) for row in rows]
    shared = set.intersection(*(set(each) for each in machines))
    return sorted(seed for seed in shared if len({each[seed] for each in machines} - {""}) < 2)


def _estimate(runs: dict[int, Cell], metric: str) -> Estimate:
    values = ((seed, runs[seed].metrics.get(metric, math.nan)) for seed in sorted(runs))
    return Estimate(tuple((seed, float(value)) for seed, value in values if math.isfinite(value)))


def difference(new: Row, old: Row, field: str) -> Change:
    """How far a field of ``new`` lies above that of ``old``, pair by pair where they share seeds and machine.

    With no seed in common it is the difference of the means; with none on the same kind of machine it is not defined.
    """
    pairable = set(paired_seeds(new, old))
    after, before = getattr(new, field), dict(getattr(old, field).by_seed)
    pairs = [value - before[seed] for seed, value in after.by_seed if seed in before and seed in pairable]
    if pairs:
        return Change(math.fsum(pairs) / len(pairs), min(pairs), max(pairs), len(pairs))
    machines = {machine for row in (new, old) for machine in row.machines} - {""}
    mean = after.mean - getattr(old, field).mean if len(machines) < 2 else math.nan
    return Change(mean, math.nan, math.nan, 0)


def varied_settings(rows: Sequence[Row]) -> list[str]:
    """The settings of `Row.condition` that differ among the rows."""
    return sorted({key for row in rows for key in row.setup})


def prefixes(rows: Sequence[Row]) -> Callable[[Row], str]:
    """What must be said before a condition's name to tell it apart: only what differs among the rows."""
    several = len({row.condition for row in rows}) > 1
    return lambda row: f"{as_overrides(row.setup)}, " if several and row.setup else ""
