"""Intervals of counts by conformal prediction: the jackknife+ of Barber et al. 2021 (arXiv:1905.02928, section 1.3).

A `CountCalibration` holds, for each of n labelled images i that took no part in training the weights:

- ``thresholds[i]``: the confidence thresholds, one a class, that are chosen **without** image i;
- ``residuals[i]``: true minus counted objects of image i, counted with these thresholds; in total, then by class.

The n-th image decides on nothing that its own residual is measured with, so that residuals are as large as the errors
of new images. Thresholds chosen on all n images would fit these images, and residuals would come out too small. The
choice of the checkpoint on the same images remains: see docs/counting.md.

Leave-one-out is one source (`calibrate`); k folds are another: thresholds of the other folds and their detector's
counts, one row for each image of every fold.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from boxtwin.datasets.sample import Detections, Sample
from boxtwin.evaluation.counts import choose_thresholds, counted, thresholds_without_each

LEVEL = 0.9  # of the intervals


@dataclass(frozen=True, eq=False)
class CountCalibration:
    """What intervals of counts are computed from; see above. ``images`` are the names of the n images."""

    images: tuple[str, ...]
    thresholds: Float[np.ndarray, "n classes"]
    residuals: Int[np.ndarray, "n counts"]

    def __post_init__(self) -> None:
        n, classes = self.thresholds.shape
        if self.residuals.shape != (n, 1 + classes) or len(self.images) != n:
            shapes = f"{self.thresholds.shape} and {self.residuals.shape} for {len(self.images)} images"
            raise ValueError(f"thresholds (n, classes) and residuals (n, 1 + classes) are needed, got {shapes}")

    def plain(self) -> dict[str, Any]:
        """The fields as JSON has them."""
        lists = {"thresholds": self.thresholds.tolist(), "residuals": self.residuals.tolist()}
        return {"images": list(self.images), **lists}

    @classmethod
    def from_plain(cls, fields: Mapping[str, Any]) -> CountCalibration:
        """The inverse of `plain`."""
        residuals = np.array(fields["residuals"], dtype=np.int64).reshape(len(fields["images"]), -1)
        thresholds = np.array(fields["thresholds"], dtype=np.float64).reshape(len(residuals), -1)
        return cls(tuple(fields["images"]), thresholds, residuals)


class CountInterval(NamedTuple):
    """An interval of a count, both ends included."""

    low: int
    high: int


def calibrate(samples: Sequence[Sample], detections: Mapping[int, Detections], classes: int) -> CountCalibration | None:
    """Leave-one-out thresholds and residuals of labelled images; None for fewer than two."""
    if len(samples) < 2:
        return None
    thresholds = thresholds_without_each(samples, detections, classes)
    residuals = np.zeros((len(samples), 1 + classes), dtype=np.int64)
    for place, sample in enumerate(samples):
        true = np.bincount(sample.object_labels, minlength=classes)
        if sample.image_id in detections:
            true = true - counts_at(detections[sample.image_id], thresholds[place])[1:]
        residuals[place] = true.sum(), *true
    return CountCalibration(tuple(sample.name for sample in samples), thresholds, residuals)


def calibrate_folds(
    folds: Sequence[Sequence[Sample]], detections: Mapping[int, Detections], classes: int
) -> CountCalibration:
    """Residuals of images in two or more parts, each counted at thresholds chosen on the other parts.

    ``detections`` of a part are those of a detector that was trained on the others.
    """
    names: list[str] = []
    thresholds, residuals = [], []
    for place, fold in enumerate(folds):
        others = [sample for number, other in enumerate(folds) for sample in other if number != place]
        of_others = {sample.image_id: detections[sample.image_id] for sample in others}
        chosen = np.array(choose_thresholds(others, of_others, classes).by_class)
        for sample in fold:
            true = np.bincount(sample.object_labels, minlength=classes)
            names.append(sample.name)
            thresholds.append(chosen)
            residuals.append(np.array([true.sum(), *true]) - counts_at(detections[sample.image_id], chosen))
    return CountCalibration(tuple(names), np.array(thresholds), np.array(residuals))


def counts_at(detections: Detections, thresholds: Float[np.ndarray, " classes"]) -> Int[np.ndarray, " counts"]:
    """How many objects are counted at one threshold for each class: in total, then by class."""
    by_class = np.bincount(counted(detections, thresholds.tolist()).labels, minlength=len(thresholds))
    return np.array([by_class.sum(), *by_class], dtype=np.int64)


def promised_level(n: int) -> float:
    """The highest level, `LEVEL` at most, that n residuals give: 9 are needed for 0.9."""
    return min(LEVEL, n / (n + 1))


def intervals(
    counts: Int[np.ndarray, " counts"], without: Int[np.ndarray, "n counts"], residuals: Int[np.ndarray, "n counts"]
) -> list[CountInterval]:
    """The jackknife+ interval of each count of a new image, at `promised_level` of n.

    ``without[i]`` are the new image's counts at the thresholds chosen without image i, and ``residuals[i]`` that
    image's. The ends are the k-th smallest of ``without + |residuals|`` and the k-th largest of ``without -
    |residuals|``, where k is the smallest whole number of at least ``level (n + 1)``. They are widened, if need be, to
    0 at least and to hold the count itself.
    """
    n = len(residuals)
    k = math.ceil(promised_level(n) * (n + 1) - 1e-9)
    highs = np.sort(without + np.abs(residuals), axis=0)[k - 1]
    lows = np.sort(without - np.abs(residuals), axis=0)[n - k]
    ends = zip(counts.tolist(), lows.tolist(), highs.tolist(), strict=True)
    return [CountInterval(min(max(low, 0), count), max(high, count)) for count, low, high in ends]
