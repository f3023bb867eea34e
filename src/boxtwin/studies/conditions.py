"""Finished runs of a study, grouped by condition."""

from __future__ import annotations

import math
import shlex
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from boxtwin.command_line import typed_values
from boxtwin.config.identity import NO_PRETRAINING
from boxtwin.errors import InputError
from boxtwin.studies.condition_names import REAL_IMAGES, condition_name, names_of, prefix_of, varied_values
from boxtwin.studies.condition_values import (
    COUNT,
    DEVICE,
    EPOCHS,
    PRETRAINING,
    Values,
    differences,
    not_known_to_all,
    part,
    part_of,
    places_of,
)
from boxtwin.studies.evidence import metric_limits
from boxtwin.studies.inference import clusters_of, mean_interval
from boxtwin.studies.runs import FINISHED, StudyRun

CONTROLS = ("repeat", "copy_paste")
ESTIMATED = ("map", "map_50", "count_mae", "count_bias")
# Settings that versions which record no condition had at their first value.
SINCE = ("evaluation", "levels", "max_detections", "anchors", "crowds", "channels")


@dataclass(frozen=True)
class Estimate:
    """A metric by seed; seeds without it are left out. The mean of none is nan."""

    by_seed: tuple[tuple[int, float], ...]
    clusters: tuple[int, ...] = ()  # of each value: equal numbers share a pre-training; empty: all are independent
    limits: tuple[float, float] = (-math.inf, math.inf)  # the least and greatest value that the metric can have

    @classmethod
    def of(
        cls,
        values: Iterable[tuple[int, float | None]],
        runs: Iterable[StudyRun] = (),
        limits: tuple[float, float] = (-math.inf, math.inf),
    ) -> Estimate:
        """From values by seed, of which some are not known, and the runs that they are of."""
        by_seed = tuple((seed, float(v)) for seed, v in values if v is not None and math.isfinite(v))
        first = {run.seed: run.pretraining_seed for run in runs}
        return cls(by_seed, clusters_of([first.get(seed) for seed, _ in by_seed]), limits)

    @property
    def values(self) -> list[float]:
        return [value for _, value in self.by_seed]

    @property
    def mean(self) -> float:
        return math.fsum(self.values) / len(self.by_seed) if self.by_seed else math.nan

    @property
    def low(self) -> float:
        return min(self.values, default=math.nan)

    @property
    def high(self) -> float:
        return max(self.values, default=math.nan)

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval of the mean over seeds on the same test images; None with fewer than two seeds."""
        interval, (least, most) = mean_interval(self.values, self.clusters), self.limits
        return None if interval is None else (max(interval[0], least), min(interval[1], most))


@dataclass(frozen=True)
class Row:
    """One condition: the finished runs that differ in their seed only. AP and AP50 are in [0, 1], MAE in objects.

    ``split`` and ``generator`` name their parts of the condition uniquely among the rows of a table: settings in which
    parts of one name differ are added, as in ``repeat variations.synthetic_fraction=0.5``.
    """

    split: str
    generator: str
    variations: int
    runs: tuple[StudyRun, ...]  # in the order of their seeds
    estimates: Mapping[str, Estimate]  # by the names in `ESTIMATED`
    real_images: float
    synthetic_images: float
    minutes: float
    values: Values = field(default_factory=dict)  # all that defines the condition
    varied: Values = field(default_factory=dict)  # those of its settings outside of `NAMES` that differ in the table
    alone: bool = False  # no row of the table has variations

    @property
    def first(self) -> StudyRun:
        """The run of the first seed, which is shown for all."""
        return self.runs[0]

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(run.seed for run in self.runs)

    @property
    def run_ids(self) -> tuple[str, ...]:
        return tuple(run.run_id for run in self.runs)

    @property
    def condition(self) -> tuple[tuple[str, str], ...]:
        """What two rows must share to be compared: setup, test images and their labels."""
        return tuple(sorted(part(self.values, "setup").items()))

    @property
    def setup(self) -> dict[str, str]:
        """The settings of `condition` that differ in the table."""
        return part(self.varied, "setup")

    @property
    def run_of(self) -> dict[int, str]:
        """Run id by seed."""
        return {run.seed: run.run_id for run in self.runs}

    @property
    def pretraining_seeds(self) -> dict[int, int | None]:
        """Seed of the pre-training by seed of the run."""
        return {run.seed: run.pretraining_seed for run in self.runs}

    @property
    def pretrainings(self) -> int:
        """How many pre-trainings serve the seeds; 0 without one."""
        return len({*self.pretraining_seeds.values()} - {None})

    @property
    def is_control(self) -> bool:
        return self.variations > 0 and self.first.generator in CONTROLS

    @property
    def prefix(self) -> str:
        """Settings that tell the row from those of the same name on another setup, such as ``detector=yolov3, ``."""
        return prefix_of(self.setup)

    @property
    def name(self) -> str:
        """Unique among the rows of a table."""
        name = self.split if self.alone else condition_name(self.split, self.variations, self.generator)
        return f"{self.prefix}{name}"

    @property
    def images(self) -> str:
        """The split with its number of real images: ``s1 (80 real images)``."""
        return self.split if REAL_IMAGES in self.split else f"{self.split} ({self.real_images:g}{REAL_IMAGES})"


def condition_table(in_order: Iterable[StudyRun]) -> list[Row]:
    """Finished runs grouped by condition. If a condition has runs of one seed on several kinds of device, every row of
    the table is of one kind, which is among its values (`DEVICE`).

    Raises:
        InputError: two runs have the same condition and seed, on one kind of device or on one that is not recorded.
    """
    finished = [run for run in in_order if run.status == FINISHED]
    recorded = condition_values(finished)
    if _on_several_devices(finished, recorded):
        one = len({run.provenance.get("precision", "") for run in finished}) == 1
        devices = [run.provenance.get("device", "") if one else run.machine for run in finished]
        recorded = [{**values, DEVICE: device} for values, device in zip(recorded, devices, strict=True)]
    groups: dict[tuple[tuple[str, str], ...], dict[int, StudyRun]] = defaultdict(dict)
    for run, values in zip(finished, recorded, strict=True):
        groups[tuple(sorted(values.items()))][run.seed] = run
    conditions = [dict(key) for key in groups]
    firsts = [next(iter(runs.values())) for runs in groups.values()]
    labels, alone = names_of(conditions, firsts), not any(run.variations for run in firsts)
    varied = varied_values(conditions, firsts)
    rows = [_row(*each, alone) for each in zip(groups.values(), conditions, varied, labels, strict=True)]
    rows.sort(
        key=lambda row: (
            *(row.first.dataset, row.first.detector, row.first.setting),
            *(0 if EPOCHS in row.values else row.first.steps, row.condition, row.first.split),
            *(row.real_images if math.isfinite(row.real_images) else 0.0, row.split),
            *(row.variations > 0, row.generator, row.variations),
        )
    )
    return rows


def _on_several_devices(runs: Sequence[StudyRun], values: Sequence[Values]) -> bool:
    """Whether runs of a condition have one seed; `InputError` if their kinds of device do not tell them apart."""
    known: dict[Hashable, list[StudyRun]] = defaultdict(list)
    for run, each in zip(runs, values, strict=True):
        of_seed = known[run.seed, frozenset(each.items())]
        for other in of_seed:
            if not (run.machine and other.machine) or run.machine == other.machine:
                raise InputError(
                    f"{run.name} has two finished runs of the same condition and seed, {other.run_id} and "
                    f"{run.run_id}; leave one of them out: delete it in MLflow, or move its folder away"
                )
        of_seed.append(run)
    return any(len(each) > 1 for each in known.values())


def condition_values(runs: Sequence[StudyRun]) -> list[dict[str, str]]:
    """What defines each run apart from its seed; where some runs do not have it recorded, what all of them have."""
    recorded = recorded_values(runs)
    unknown = not_known_to_all(recorded)
    return [{key: value for key, value in values.items() if key not in unknown} for values in recorded]


def recorded_values(runs: Sequence[StudyRun]) -> list[Values]:
    """What each run records of its condition, in one form for all."""
    if all(run.condition for run in runs):
        return _with_pretraining([run.condition for run in runs])
    values = [_in_old_form(run) for run in runs]
    # Runs that record more stay apart by all that they record.
    keys = [tuple(sorted(each.items())) if run.condition else None for each, run in zip(values, runs, strict=True)]
    for places in places_of(keys):
        apart = differences([runs[place].condition for place in places])
        for place, more in zip(places, apart, strict=True):
            values[place] |= more
    return list(values)


def _with_pretraining(values: Sequence[Values]) -> list[Values]:
    """Conditions that say none where others have a pre-training: runs without one do not record it."""
    if any(PRETRAINING in each for each in values):
        return [{PRETRAINING: NO_PRETRAINING, **each} for each in values]
    return list(values)


def _in_old_form(run: StudyRun) -> dict[str, str]:
    """What runs of every version record of their condition: names, hashes, and what was typed for what is mixed in."""
    typed = typed_values(shlex.split(run.overrides))
    values = {
        "dataset.name": run.dataset,
        "split.name": run.split,
        COUNT: str(run.variations),
        "detector.name": run.detector,
        "setting": run.setting,
        "trainer.steps": str(run.steps),
    }
    if run.overrides:  # the folder of the weights may be another one on another machine
        # Every run's detector has the same file name.
        values["detector.weights"] = "/".join(PurePosixPath(typed.get("detector.weights", "null")).parts[-2:])
    if run.data:
        values["data"] = run.data
    if run.test:
        values["data.test_names"] = run.test
    if run.variations:
        values |= {"generator.name": run.generator, "labels.name": run.labels, "store": run.store}
        mixed_in = {key: value for key, value in typed.items() if part_of(key) == "variations" and "." in key}
        values |= {key: value for key, value in mixed_in.items() if key != COUNT}
    # What changed for some data since runs that do not record it.
    values |= {key: run.condition[key] for key in SINCE if key in run.condition}
    if run.condition.get("recipe", "1") != "1":
        values["recipe"] = run.condition["recipe"]
    return values


def _row(runs: Mapping[int, StudyRun], values: Values, varied: Values, labels: tuple[str, str], alone: bool) -> Row:
    in_order = tuple(runs[seed] for seed in sorted(runs))

    def estimate(metric: str) -> Estimate:
        values = ((run.seed, run.metrics.get(metric)) for run in in_order)
        return Estimate.of(values, in_order, metric_limits(metric))

    return Row(
        *labels,
        in_order[0].variations,
        in_order,
        estimates={name: estimate(f"test/{name}") for name in ESTIMATED},
        real_images=estimate("data/real_images").mean,
        synthetic_images=estimate("data/synthetic_images").mean,
        minutes=sum(run.minutes for run in runs.values()) / len(runs),
        values=values,
        varied=varied,
        alone=alone,
    )


def baseline(rows: Sequence[Row], row: Row) -> Row | None:
    """The same condition without variations; None for a row that has none, or if there is no such row."""
    same = (r for r in rows if not r.variations and r.split == row.split and r.condition == row.condition)
    return next(same, None) if row.variations else None


def setups(rows: Sequence[Row]) -> list[list[Row]]:
    """The rows that may be compared with each other, together."""
    return [[row for row in rows if row.condition == each] for each in dict.fromkeys(row.condition for row in rows)]


def paired_seeds(*rows: Row) -> list[int]:
    """Seeds that all rows have, run on one kind of device and in one precision where these are recorded."""
    machines = [{run.seed: run.machine for run in row.runs} for row in rows]
    shared = set.intersection(*(set(each) for each in machines))
    return sorted(seed for seed in shared if len({each[seed] for each in machines} - {""}) < 2)


def varied_settings(rows: Sequence[Row]) -> list[str]:
    """The settings of `Row.condition` that differ among the rows."""
    return sorted({key for row in rows for key in row.setup})
