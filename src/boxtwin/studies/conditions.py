"""Cells of a study, gathered by condition: what was run, how it did, and how far it lies from its baseline."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from boxtwin.errors import InputError

FINISHED = "FINISHED"  # MLflow's word
NO_GENERATOR = "none"  # what a cell without variations is filed under
LABELLED = "+"  # pixel_ddpm+pseudo: between a generator and its labels, where a study has several kinds of them


@dataclass(frozen=True)
class Cell:
    """One run: what was trained on what, and how it did on the test images. ``metrics`` are named as in MLflow."""

    study: str
    dataset: str
    split: str
    variations: int
    generator: str  # `NO_GENERATOR` where variations is 0
    detector: str
    seed: int
    steps: int
    setting: str  # short hash of everything else that was configured
    metrics: dict[str, float]
    run_id: str
    minutes: float
    output_dir: str
    status: str
    overrides: str = ""  # what was typed after `python train.py` to get this cell
    store: str = ""  # name of the store of its variations; empty: it has none, or does not say
    train_size: int | None = None  # where only some of the split's training images were used; `split` says so too
    labels: str = ""  # how those of its variations were found
    validation: tuple[tuple[int, float], ...] = ()  # step, AP on the real validation images

    @property
    def name(self) -> str:
        """The run's name in MLflow."""
        return f"{self.split}-x{self.variations}-{self.generator}-{self.detector}-seed{self.seed}"


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
    """One condition: the finished cells that differ in their seed only. AP and AP50 are in [0, 1], MAE in objects."""

    setting: str
    dataset: str
    detector: str
    generator: str
    split: str
    variations: int
    steps: int
    seeds: tuple[int, ...]
    runs: tuple[str, ...]  # run ids, in the order of the seeds
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
    train_size: int | None = None  # as in `Cell`

    @property
    def condition(self) -> tuple[str, str, str, int]:
        """What two rows must share to be held against each other."""
        return self.dataset, self.detector, self.setting, self.steps


def tell_labels_apart(cells: Sequence[Cell]) -> list[Cell]:
    """The cells, those of generators whose variations the study labels in several ways filed under both."""
    ways: dict[str, set[str]] = {}
    for cell in cells:
        if cell.variations:
            ways.setdefault(cell.generator, set()).add(cell.labels)
    return [
        replace(cell, generator=f"{cell.generator}{LABELLED}{cell.labels}")
        if cell.variations and len(ways[cell.generator]) > 1
        else cell
        for cell in cells
    ]


def condition_table(cells: Iterable[Cell]) -> list[Row]:
    """Finished cells, gathered by condition and held against the same condition without variations, pair by pair.

    Raises:
        InputError: two finished cells are the same condition and seed: averaging them would pass one run off as two.
    """
    groups: dict[tuple[str, str, str, int, str, str, int], dict[int, Cell]] = {}
    for cell in cells:
        if cell.status != FINISHED:
            continue
        generator = NO_GENERATOR if cell.variations == 0 else cell.generator
        key = (cell.dataset, cell.detector, cell.setting, cell.steps, cell.split, generator, cell.variations)
        runs = groups.setdefault(key, {})
        if cell.seed in runs:
            both = f"{runs[cell.seed].run_id} and {cell.run_id}"
            raise InputError(f"{cell.name} has two finished runs, {both}; delete one of them in MLflow")
        runs[cell.seed] = cell
    order = sorted(groups, key=lambda key: (*key[:5], key[6] > 0, key[5], key[6]))
    return [_row(key, groups[key], groups.get((*key[:5], NO_GENERATOR, 0))) for key in order]


def _row(key: tuple[str, str, str, int, str, str, int], runs: dict[int, Cell], baseline: dict[int, Cell] | None) -> Row:
    dataset, detector, setting, steps, split, generator, variations = key

    def change(metric: str) -> Change | None:
        return difference(_estimate(runs, metric), _estimate(baseline, metric)) if variations and baseline else None

    return Row(
        setting=setting,
        dataset=dataset,
        detector=detector,
        generator=generator,
        split=split,
        variations=variations,
        steps=steps,
        seeds=tuple(sorted(runs)),
        runs=tuple(runs[seed].run_id for seed in sorted(runs)),
        ap=_estimate(runs, "test/map"),
        ap50=_estimate(runs, "test/map_50"),
        count_mae=_estimate(runs, "test/count_mae"),
        count_bias=_estimate(runs, "test/count_bias"),
        real_images=_estimate(runs, "data/real_images").mean,
        synthetic_images=_estimate(runs, "data/synthetic_images").mean,
        minutes=sum(cell.minutes for cell in runs.values()) / len(runs),
        ap_change=change("test/map"),
        ap50_change=change("test/map_50"),
        count_mae_change=change("test/count_mae"),
        train_size=next(iter(runs.values())).train_size,
    )


def _estimate(runs: dict[int, Cell], metric: str) -> Estimate:
    values = ((seed, runs[seed].metrics.get(metric, math.nan)) for seed in sorted(runs))
    return Estimate(tuple((seed, float(value)) for seed, value in values if math.isfinite(value)))


def difference(new: Estimate, old: Estimate) -> Change:
    """How far ``new`` lies above ``old``, pair by pair where seeds are shared."""
    before = dict(old.by_seed)
    pairs = [value - before[seed] for seed, value in new.by_seed if seed in before]
    if not pairs:
        return Change(new.mean - old.mean, math.nan, math.nan, 0)
    return Change(math.fsum(pairs) / len(pairs), min(pairs), max(pairs), len(pairs))


def varied_fields(rows: Sequence[Row]) -> list[str]:
    """Which of the fields that make up a `Row.condition` differ among the rows."""
    return [name for name in ("dataset", "detector", "steps", "setting") if len({getattr(r, name) for r in rows}) > 1]


def prefixes(rows: Sequence[Row]) -> Callable[[Row], str]:
    """What must be said before a condition's name to tell it apart: only what differs among the rows."""
    parts = varied_fields(rows)
    named = {"steps": "{} steps, ", "setting": "setting {}, "}
    return lambda row: "".join(named.get(part, "{}, ").format(getattr(row, part)) for part in parts)
