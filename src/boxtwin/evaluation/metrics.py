"""The figures of a test, of all classes together and of each class: COCO's average precision and recall, and counts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from boxtwin.datasets.sample import Detections, Sample
from boxtwin.evaluation.coco_metrics import FIGURES
from boxtwin.evaluation.counts import best_threshold, count_figures, counted
from boxtwin.evaluation.matching import BITS, COCO_LIMIT, Matching
from boxtwin.evaluation.resampled_ap import ResampledAP, mean_of_known

RECALLS_AT = {"mar_1": ("all", 1), "mar_10": ("all", 10), "mar_100": ("all", 100)} | {
    f"mar_{area}": (area, COCO_LIMIT) for area in ("small", "medium", "large")
}
# MLflow takes letters, digits, "_", ".", "-" and spaces; ":" on some systems only, and "/" begins a folder.
REFUSED = re.compile(r"[^\w.\- ]")
LONGEST_NAME = 200  # MLflow keeps 250 characters of a metric's name


@dataclass(frozen=True)
class Thresholds:
    """The confidences that detections are counted at: one for each class, and one for all classes together."""

    together: float
    by_class: tuple[float, ...]
    guessed: tuple[int, ...] = ()  # classes that the images chosen on have no object of: they take `together`


def coco_by_class(matching: Matching) -> tuple[dict[str, float], list[dict[str, float]]]:
    """`FIGURES` of all classes together, and of each class, in [0, 1]; nan where there are no such objects.

    Where an image has more objects of a class than the 100 detections that COCO looks at, or one beyond these finds an
    object, ``map_unlimited`` and ``map_50_unlimited`` say what AP is with all detections.
    """
    once = np.ones((1, len(matching.image_ids)))
    ap = {area: ResampledAP.of(matching, area).by_class(once)[:, 0] for area in matching.areas}
    by_class: dict[str, Float[np.ndarray, " classes"]] = {"map": ap["all"].mean(axis=1)}
    by_class |= {"map_50": ap["all"][:, 0], "map_75": ap["all"][:, 5]}
    by_class |= {f"map_{area}": ap[area].mean(axis=1) for area in ("small", "medium", "large")}
    by_class |= {name: _recall(matching, area, limit) for name, (area, limit) in RECALLS_AT.items()}
    by_class = {name: by_class[name] for name in FIGURES}
    place = matching.areas.index("all")
    if any(
        (found.objects[place] > COCO_LIMIT).any() or found.matched[place][found.rank >= COCO_LIMIT].any()
        for found in matching.classes
    ):
        unlimited = ResampledAP.of(matching, limit=None).by_class(once)[:, 0]
        by_class |= {"map_unlimited": unlimited.mean(axis=1), "map_50_unlimited": unlimited[:, 0]}
    together = {name: float(mean_of_known(values)) for name, values in by_class.items()}
    each = [{name: float(values[label]) for name, values in by_class.items()} for label in range(len(matching.classes))]
    return together, each


def _recall(matching: Matching, area: str, limit: int) -> Float[np.ndarray, " classes"]:
    """Share of the objects found by the best ``limit`` detections of each image, averaged over IoU thresholds."""
    place = matching.areas.index(area)
    shares = []
    for found in matching.classes:
        best, objects = found.best(limit), int(found.objects[place].sum())
        hits = (best.matched[place] & BITS[:, None] != 0).sum(axis=1)
        shares.append(float(hits.mean()) / objects if objects else np.nan)
    return np.array(shares)


def choose_thresholds(samples: Sequence[Sample], detections: Mapping[int, Detections], classes: int) -> Thresholds:
    """The thresholds at which the counts of these images come closest to the truth, as `best_threshold` finds them."""
    together = best_threshold(samples, detections)
    by_class, guessed = [], []
    for label in range(classes):
        part, found = of_class(samples, detections, label)
        if any(len(sample.object_boxes) for sample in part):
            by_class.append(best_threshold(part, found))
        else:
            by_class.append(together)
            guessed.append(label)
    return Thresholds(together, tuple(by_class), tuple(guessed))


def count_by_class(
    samples: Sequence[Sample], detections: Mapping[int, Detections], thresholds: Thresholds
) -> tuple[dict[str, float], list[dict[str, float]], list[dict[str, object]]]:
    """Figures of the total counts and of each class's, and the counts of every image.

    Every class is counted at its own threshold, and the total is the sum. An image's entry has ``true`` and ``found``;
    where there are several classes, ``true_by_class`` and ``found_by_class`` in their order too.
    """
    classes = len(thresholds.by_class)
    true, found = (np.zeros((len(samples), classes), dtype=np.int64) for _ in range(2))
    entries: list[dict[str, object]] = []
    for place, sample in enumerate(samples):
        true[place] = np.bincount(sample.object_labels, minlength=classes)
        if sample.image_id in detections:
            kept = counted(detections[sample.image_id], thresholds.by_class)
            found[place] = np.bincount(kept.labels, minlength=classes)
        entry: dict[str, object] = {"image_id": sample.image_id, "file_name": sample.name, "group": sample.group}
        entry |= {"true": int(true[place].sum()), "found": int(found[place].sum())}
        if classes > 1:
            entry |= {"true_by_class": true[place].tolist(), "found_by_class": found[place].tolist()}
        entries.append(entry)
    columns = [(true.sum(axis=1), found.sum(axis=1)), *zip(true.T, found.T, strict=True)]
    together, *each = (count_figures(*(dict(enumerate(side.tolist())) for side in pair)) for pair in columns)
    return together, each, entries


def of_class(
    samples: Sequence[Sample], detections: Mapping[int, Detections], label: int
) -> tuple[list[Sample], dict[int, Detections]]:
    """The same images and detections with nothing but one class in them."""

    def part(sample: Sample) -> Sample:
        kept = sample.labels == label
        return replace(sample, **{name: getattr(sample, name)[kept] for name in ("boxes", "labels", "areas", "crowd")})

    found = {
        image: Detections(*(values[each.labels == label] for values in each)) for image, each in detections.items()
    }
    return [part(sample) for sample in samples], found


def metric_names(classes: Sequence[str]) -> list[str]:
    """The name of each class in the names of MLflow's metrics (``test/<class>/map``).

    What MLflow refuses, and "/", becomes "_"; names that become equal are numbered, as are those of total figures.
    """
    taken = {*FIGURES, "map_unlimited", "map_50_unlimited", "count_mae", "count_rmse", "count_bias", "count_exact"}
    taken |= {"count_threshold", "", ".", ".."}
    names = []
    # Names that can stay as they are come first: no other takes them.
    plain = {name for name in classes if not REFUSED.search(name)}
    for name in classes:
        wanted = REFUSED.sub("_", name).strip()[:LONGEST_NAME]
        free, number = wanted or "_", 1
        while free in taken or (free != name and free in plain):
            number += 1
            free = f"{wanted}_{number}"
        taken.add(free)
        names.append(free)
    return names
