"""Matches and counts of a run on its test images, from which its metrics follow on any resample of the images."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from boxtwin.errors import InputError, is_of_the_system
from boxtwin.evaluation.resampled_ap import MATCHES_FILE, ResampledAP, load_matches
from boxtwin.tracking.run_folders import RESULT_FILE, read_result

log = logging.getLogger(__name__)

Counts = Float[np.ndarray, "resamples images"]  # how often each test image is in each resample
Resampled = Float[np.ndarray, " resamples"]
NO_COUNTS = np.zeros((0, 0), dtype=np.int64)
TOLERANCE = 1e-6  # of metrics that are computed again from the same numbers
COMPARED = ("map", "map_50", "count_mae")  # by which conditions are compared


def metric_limits(metric: str) -> tuple[float, float]:
    """The least and greatest value of a metric: an AP is a share, an error of counts has no end, a bias has a sign."""
    name = metric.rpartition("/")[2]
    if name == "count_bias":
        return -math.inf, math.inf
    return 0.0, math.inf if name.startswith("count_") else 1.0


def change_limits(metric: str) -> tuple[float, float]:
    """The least and greatest difference of two values of a metric."""
    low, high = metric_limits(metric)
    return low - high, high - low


@dataclass(frozen=True, eq=False)
class Evidence:
    """The matches of a run's detections, and its counts, image by image in the order of ``matches``."""

    matches: Mapping[str, ResampledAP]  # by the names of `boxtwin.evaluation.resampled_ap.AREAS`
    names: tuple[str, ...]  # file names of the test images
    true: Int[np.ndarray, " images"]
    found: Int[np.ndarray, " images"]
    groups: tuple[str, ...] = ()  # the scene of each image; none in runs of older versions
    classes: tuple[str, ...] = ()  # none in runs of older versions, nor where there is but one
    true_by_class: Int[np.ndarray, "_images _classes"] = field(default_factory=lambda: NO_COUNTS)
    found_by_class: Int[np.ndarray, "_images _classes"] = field(default_factory=lambda: NO_COUNTS)

    @classmethod
    def load(cls, folder: Path) -> Evidence | None:
        """From the folder of a run; None without matches (older versions).

        None with a warning if they are damaged, or the recorded metrics do not follow from them.
        """
        if not (folder / MATCHES_FILE).exists() or not (folder / RESULT_FILE).exists():
            return None
        try:
            return cls._load(folder)
        except Exception as error:  # whatever readers of zip archives, arrays and JSON meet in damaged files
            if is_of_the_system(error):
                raise
            log.warning("%s: the files that intervals follow from are damaged: %s", folder, error)
            return None

    @classmethod
    def _load(cls, folder: Path) -> Evidence:
        matches = load_matches(folder / MATCHES_FILE)
        result = read_result(folder)
        if result is None:
            raise InputError(f"{RESULT_FILE} is cut, or no JSON")
        evidence = cls.of(matches, result.counts, result.classes)
        evidence._check(result.metrics)
        return evidence

    def _check(self, recorded: Mapping[str, int | float | None]) -> None:
        """Raise `InputError` if the metrics that were recorded do not follow from matches and counts.

        Then one of the files is another run's, or was edited, and estimates would not belong to their intervals.
        """
        values = {metric: recorded.get(f"test/{metric}") for metric in COMPARED}
        known = {metric: value for metric, value in values.items() if value is not None and math.isfinite(value)}
        found = self.metrics(np.ones((1, len(self.names)))) if known else {}
        for metric, value in known.items():
            if not math.isclose(value, found[metric][0], abs_tol=TOLERANCE):
                raise InputError(
                    f"{RESULT_FILE} records test/{metric} {value:.6g}, but its counts and {MATCHES_FILE} give "
                    f"{found[metric][0]:.6g}: one of the files was changed, or is another run's"
                )

    @classmethod
    def of(
        cls,
        matches: Mapping[str, ResampledAP],
        of_images: Sequence[Mapping[str, Any]],
        of_classes: Sequence[Mapping[str, Any]],
    ) -> Evidence:
        """From matches, and the entries that result.json has for test images (``counts``) and classes."""
        counts = {entry["image_id"]: entry for entry in of_images}
        image_ids = matches["all"].image_ids
        if set(counts) != set(image_ids):
            raise InputError(f"{RESULT_FILE} and {MATCHES_FILE} are of different test images")
        in_order = [counts[image_id] for image_id in image_ids]
        classes = [str(entry["name"]) for entry in of_classes]
        if len(classes) < 2 or not all("true_by_class" in entry for entry in in_order):
            classes = []

        def numbers(key: str) -> Int[np.ndarray, "images *classes"]:
            return np.array([entry[key] for entry in in_order], dtype=np.int64)

        return cls(
            matches,
            tuple(str(entry["file_name"]) for entry in in_order),
            numbers("true"),
            numbers("found"),
            tuple(str(entry["group"]) for entry in in_order if "group" in entry),
            tuple(classes),
            *(numbers(f"{side}_by_class") if classes else NO_COUNTS for side in ("true", "found")),
        )

    def metrics(self, counts: Counts) -> dict[str, Resampled]:
        """`COMPARED` on resamples of the test images."""
        by_threshold = self.matches["all"](counts)
        mae = counts @ np.abs(self.found - self.true).astype(np.float64) / counts.sum(axis=1)
        return {"map": by_threshold.mean(axis=1), "map_50": by_threshold[:, 0], "count_mae": mae}

    def metrics_by_class(self, counts: Counts) -> dict[str, Resampled]:
        """AP50 and count MAE of each class, named ``CLASS/map_50``, on resamples; none without counts by class."""
        if not self.classes:
            return {}
        errors = np.abs(self.found_by_class - self.true_by_class).astype(np.float64)
        ap50 = self.matches["all"].part(np.ones(len(self.names), dtype=bool), thresholds=1).by_class(counts)[:, :, 0]
        mae = counts @ errors / counts.sum(axis=1, keepdims=True)
        values = {f"{name}/map_50": ap50[place] for place, name in enumerate(self.classes)}
        return values | {f"{name}/count_mae": mae[:, place] for place, name in enumerate(self.classes)}
