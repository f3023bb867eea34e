"""Metrics of a study by part of the test set: by class, size of the objects, crowding and scene; the worst images."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product

import numpy as np
from jaxtyping import Bool

from boxtwin.studies.comparison import Difference, ResampledMetrics, changes
from boxtwin.studies.conditions import Estimate, Row
from boxtwin.studies.evidence import Counts, Evidence, Resampled

# Test images, or test images with objects, below which a slice is too small: with ten of them one image more or less
# moves a mean by a tenth, and hardly any resample (10^10 / e^10 is 1 in 20,000) is without them all.
LEAST_IMAGES = 10
CROWDING = {  # true objects per image, from and to
    (0, 0): "no object in the image",
    (1, 1): "one object in the image",
    (2, 4): "2 to 4 objects in the image",
    (5, 9): "5 to 9 objects in the image",
    (10, math.inf): "10 objects or more in the image",
}
COMPARED = ("map_50", "count_mae")
CLASS_METRICS = ("map", "map_50", "count_mae", "count_bias", "count_threshold")
SCENES = 8  # shown by name; the others are taken together
RESAMPLES = 400  # of the test images: some 16 slices of every run, and no p depends on them
WORST = 10  # images that are listed
SIZES = {
    "small": "small objects, under 32² square pixels",
    "medium": "medium objects, 32² to 96²",
    "large": "large objects, over 96²",
}


@dataclass(frozen=True, eq=False)
class Slice:
    """A part of the test set: some of its images, or objects of one range of areas.

    Such objects are searched in all images, as COCO does. Counts have no sizes; ``images`` then hold such objects.
    """

    name: str
    area: str  # one of `boxtwin.evaluation.matching.AREAS`
    images: Bool[np.ndarray, " images"]
    objects: int
    with_objects: int  # images that hold one

    @property
    def searched(self) -> Bool[np.ndarray, " images"]:
        """The images that objects are searched in."""
        return self.images if self.area == "all" else np.ones_like(self.images)

    @property
    def is_whole(self) -> bool:
        """Whether it is the whole test set."""
        return self.area == "all" and bool(self.images.all())

    @property
    def enough_for_ap(self) -> bool:
        """Whether there is enough in it to compare AP."""
        return self.with_objects >= LEAST_IMAGES

    @property
    def enough_for_counts(self) -> bool:
        """Whether there is enough in it to compare counts."""
        return int(self.images.sum()) >= LEAST_IMAGES


@dataclass(frozen=True)
class SliceTable:
    """One slice, and each condition with AP50 and count MAE in it as its estimates, and their changes."""

    slice: Slice
    conditions: tuple[tuple[Row, Mapping[str, Difference]], ...]


@dataclass(frozen=True)
class Slicing:
    """One way to cut the test images of some conditions: ``kind`` is size, crowding or scene."""

    kind: str
    tables: tuple[SliceTable, ...]


def slices_of(evidence: Evidence) -> dict[str, list[Slice]]:
    """The slices of a test set by kind; no scenes where there is only one.

    Those without images are left out, and so is the whole test set: the table has it, with more resamples.
    """
    kinds = {
        "size": [_slice(name, evidence, evidence.matches[area].objects > 0, area) for area, name in SIZES.items()],
        "crowding": [
            _slice(name, evidence, (evidence.true >= low) & (evidence.true <= high))
            for (low, high), name in CROWDING.items()
        ],
        "scene": _scenes(evidence),
    }
    return {kind: [part for part in parts if part.images.any() and not part.is_whole] for kind, parts in kinds.items()}


def slicings(rows: Sequence[Row], evidence: Mapping[str, Evidence]) -> list[Slicing]:
    """All slices of all conditions whose runs keep their matches; conditions with other test images stand apart."""
    return [
        Slicing(kind, tuple(_table(part, members, evidence) for part in parts))
        for members in by_test_images(rows, evidence)
        for kind, parts in slices_of(evidence[members[0].run_ids[0]]).items()
        if parts
    ]


def by_test_images(rows: Sequence[Row], evidence: Mapping[str, Evidence]) -> list[list[Row]]:
    """The conditions of which every run keeps its matches, gathered by test images and true counts in these."""
    groups: dict[tuple[tuple[str, ...], bytes], list[Row]] = {}
    for row in rows:
        known = [evidence[run] for run in row.run_ids if run in evidence]
        tested = {(each.names, each.true.tobytes()) for each in known}
        if len(known) == len(row.run_ids) and len(tested) == 1:
            groups.setdefault(tested.pop(), []).append(row)
    return list(groups.values())


def _slice(name: str, evidence: Evidence, images: Bool[np.ndarray, " images"], area: str = "all") -> Slice:
    objects = evidence.matches[area].objects[images]
    return Slice(name, area, images, int(objects.sum()), int((objects > 0).sum()))


def _scenes(evidence: Evidence) -> list[Slice]:
    groups, sizes = np.array(evidence.groups), Counter(evidence.groups)
    if len(sizes) < 2 or len(sizes) == len(groups):  # one scene, or every image its own
        return []
    scenes = sorted(sizes, key=lambda group: (-sizes[group], group))
    shown = scenes if len(scenes) <= SCENES + 1 else scenes[:SCENES]
    parts = [_slice(f"scene {group}", evidence, groups == group) for group in shown]
    if len(shown) < len(scenes):
        parts.append(_slice(f"the other {len(scenes) - len(shown)} scenes", evidence, ~np.isin(groups, shown)))
    return parts


def _table(part: Slice, members: Sequence[Row], evidence: Mapping[str, Evidence]) -> SliceTable:
    resampled = ResampledMetrics(evidence, partial(slice_metrics, part), RESAMPLES, part.images)
    values = {run: resampled.of(run) or {} for row in members for run in row.run_ids}
    rows = [
        replace(
            row,
            estimates={
                metric: Estimate.of((seed, float(values[run][metric][0])) for seed, run in row.run_of.items())
                for metric in COMPARED
            },
        )
        for row in members
    ]
    return SliceTable(part, tuple((row, changes(rows, row, resampled)) for row in rows))


def slice_metrics(part: Slice, run: Evidence, counts: Counts) -> dict[str, Resampled]:
    """AP50 and count MAE of a run in a slice: on all its images, then on resamples, nan where it is too small."""
    ap50 = run.matches[part.area].part(part.searched, thresholds=1)(counts[:, part.searched])[:, 0]
    counts = counts[:, part.images]
    errors = np.abs(run.found - run.true).astype(np.float64)[part.images]
    total = counts.sum(axis=1)
    # A resample without any image of the slice has no mean error.
    mae = np.divide(counts @ errors, total, out=np.full(len(counts), np.nan), where=total > 0)
    for values, enough in ((ap50, part.enough_for_ap), (mae, part.enough_for_counts)):
        values[1:] = values[1:] if enough else np.nan
    return {"map_50": ap50, "count_mae": mae}


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
    tables = []
    for members in by_test_images(rows, evidence):
        first = evidence[members[0].run_ids[0]]
        # 1. What each condition finds, and how far each of its runs is off on the average.
        counts = np.array([np.mean([evidence[run].found for run in row.run_ids], axis=0) for row in members])
        errors = [np.mean([abs(evidence[run].found - first.true) for run in row.run_ids], axis=0) for row in members]
        total = np.mean(errors, axis=0)
        # 2. The worst images; names decide between equals, so that the list is the same every time.
        worst = [int(place) for place in np.lexsort((np.array(first.names), -total))[:WORST] if total[place] > 0]
        images = [
            ImageCount(first.names[k], int(first.true[k]), tuple(counts[:, k].tolist()), float(total[k])) for k in worst
        ]
        share = float(total[worst].sum() / total.sum()) if worst else math.nan
        tables.append(CountErrors(tuple(members), len(first.names), int((total == 0).sum()), share, tuple(images)))
    return tables


@dataclass(frozen=True)
class ClassMetrics:
    """One class under one condition: `CLASS_METRICS` over seeds, and their changes where there is a baseline."""

    row: Row
    estimates: Mapping[str, Estimate]
    changes: Mapping[str, Difference]


def class_metrics(rows: Sequence[Row], evidence: Mapping[str, Evidence]) -> dict[str, list[ClassMetrics]]:
    """By the name of the class, in the order of the data set, each condition that has it; empty for one class alone."""
    names = list(dict.fromkeys(name for row in rows for run in row.runs for name in run.classes))
    if len(names) < 2:
        return {}

    def estimate(row: Row, name: str, metric: str) -> Estimate:
        return Estimate.of((run.seed, run.classes.get(name, {}).get(metric)) for run in row.runs)

    keys = list(product(names, CLASS_METRICS))
    of_classes = [replace(row, estimates={"/".join(key): estimate(row, *key) for key in keys}) for row in rows]
    resampled = ResampledMetrics(evidence, Evidence.metrics_by_class, RESAMPLES)
    by_class: dict[str, list[ClassMetrics]] = {name: [] for name in names}
    for row, of_class in zip(rows, of_classes, strict=True):
        changed = changes(of_classes, of_class, resampled)
        for name in (name for name in names if any(name in run.classes for run in row.runs)):
            estimates = {metric: of_class.estimates[f"{name}/{metric}"] for metric in CLASS_METRICS}
            differences = {metric: changed[f"{name}/{metric}"] for metric in CLASS_METRICS if changed}
            by_class[name].append(ClassMetrics(row, estimates, differences))
    return by_class
