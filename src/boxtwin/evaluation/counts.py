"""Counting objects: errors of counts, and the confidence thresholds at which detections are counted."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from boxtwin.datasets.sample import Detections, Sample

# Where validation images have no detections: Darknet's default (`-thresh` of `darknet detector test`).
THRESHOLD_WITHOUT_DETECTIONS = 0.5


@dataclass(frozen=True)
class Thresholds:
    """The confidences from which detections are counted: one for each class, and one for all classes together."""

    together: float
    by_class: tuple[float, ...]
    guessed: tuple[int, ...] = ()  # classes without an object in the validation images: they take `together`


def counted(detections: Detections, threshold: float | Sequence[float]) -> Detections:
    """The detections with ``score >= threshold``; of several thresholds, that of the detection's class.

    Compared in double precision, whatever the scores come in: numpy would round the threshold to theirs.
    """
    least = np.asarray(threshold, dtype=np.float64)
    kept = detections.scores.astype(np.float64) >= (least[detections.labels] if least.ndim else least)
    return Detections(*(values[kept] for values in detections))


def count_metrics(true: Int[np.ndarray, " images"], counts: Int[np.ndarray, " images"]) -> dict[str, float]:
    """Count errors over images, in objects per image; nan where there are no images.

    ``count_mae`` is the mean of ``|counts - true|``, ``count_rmse`` the root of the mean square, ``count_bias`` the
    mean of ``counts - true`` (positive: too many found), ``count_exact`` the share of images counted exactly.
    """
    errors = (counts - true).astype(np.float64)
    values = {"mae": np.abs(errors), "rmse": errors**2, "bias": errors, "exact": errors == 0}
    metrics = {f"count_{name}": float(each.mean()) if len(each) else math.nan for name, each in values.items()}
    return metrics | {"count_rmse": math.sqrt(metrics["count_rmse"])}


def best_threshold(samples: Sequence[Sample], detections: Mapping[int, Detections], label: int | None = None) -> float:
    """The confidence threshold that minimises count MAE over these images; objects are counted at ``score >= it``.

    ``label`` chooses one class; None counts all together.

    The search is exact. Counts change only where the threshold passes a score, so each gap between neighbouring
    distinct scores (and the two ends) is tried once. Of the gaps with the least MAE, those with the least |bias|
    remain; of the runs of neighbouring gaps, the widest is taken, and its middle returned, where new images are least
    likely to disagree. The result lies in (0, 1]. Without any detection it is `THRESHOLD_WITHOUT_DETECTIONS`. No
    images, detections of another image, or scores outside [0, 1] raise `ValueError`.
    """
    if not samples:
        raise ValueError("choosing a count threshold needs at least one image, got none")
    rows = {sample.image_id: row for row, sample in enumerate(samples)}
    if unknown := set(detections) - set(rows):
        raise ValueError(f"detections for images that are not among the samples: ids {sorted(unknown)[:10]}")
    parts = [scores if label is None else scores[labels == label] for _, scores, labels in detections.values()]
    scores = np.concatenate([np.zeros(0), *parts], dtype=np.float64)
    if not len(scores):
        return THRESHOLD_WITHOUT_DETECTIONS
    if not (scores.min() >= 0 and scores.max() <= 1):
        raise ValueError(f"scores must be in [0, 1], got {scores.min():g} to {scores.max():g}")
    image = np.repeat([rows[image_id] for image_id in detections], [len(part) for part in parts])
    true = np.array([len(s.object_labels) if label is None else (s.object_labels == label).sum() for s in samples])

    mae, bias, edges = _errors_by_gap(true, image, scores)
    return _middle_of_best(mae, bias, edges)


def _middle_of_best(
    mae: Int[np.ndarray, " gaps"], bias: Int[np.ndarray, " gaps"], edges: Float[np.ndarray, " edges"]
) -> float:
    """The threshold of `best_threshold`, from summed errors in each gap ``(edges[i], edges[i + 1]]``."""
    # Counts are whole numbers, so sums that are equal are equal exactly.
    best = np.flatnonzero(mae == mae.min())
    best = best[np.abs(bias[best]) == np.abs(bias[best]).min()]
    runs = np.split(best, np.flatnonzero(np.diff(best) > 1) + 1)
    widest = max(runs, key=lambda run: edges[run[-1] + 1] - edges[run[0]])
    low, high = edges[widest[0]], edges[widest[-1] + 1]
    middle = (low + high) / 2
    # The gap is (low, high]; in floating point the middle of two neighbours may fall onto the lower one.
    return float(middle if middle > low else high)


def choose_thresholds(samples: Sequence[Sample], detections: Mapping[int, Detections], classes: int) -> Thresholds:
    """The thresholds of `best_threshold` for all classes together and for each class."""
    together = best_threshold(samples, detections)
    occurring = {int(label) for sample in samples for label in sample.object_labels}
    by_class = (
        best_threshold(samples, detections, label) if label in occurring else together for label in range(classes)
    )
    return Thresholds(together, tuple(by_class), tuple(sorted({*range(classes)} - occurring)))


def thresholds_without_each(
    samples: Sequence[Sample], detections: Mapping[int, Detections], classes: int
) -> Float[np.ndarray, "images classes"]:
    """Row ``i``: the thresholds of `choose_thresholds` by class on all images but the i-th, of which there are two.

    Errors are sums over images, so an image's own are taken from the sums of all: no search is begun anew.
    """
    true = np.array([np.bincount(sample.object_labels, minlength=classes) for sample in samples])
    together = _without_each(true.sum(axis=1), _scores_by_image(samples, detections, None))
    chosen = np.repeat(together[:, None], classes, axis=1)
    for label in range(classes):
        occurs = true[:, label].sum() - true[:, label] > 0  # in the other images
        of_class = _without_each(true[:, label], _scores_by_image(samples, detections, label))
        chosen[occurs, label] = of_class[occurs]
    return chosen


def _scores_by_image(
    samples: Sequence[Sample], detections: Mapping[int, Detections], label: int | None
) -> list[Float[np.ndarray, " _found"]]:
    """The scores in each image, ascending; of one class, or of all."""
    nothing = (None, np.zeros(0), np.zeros(0, dtype=np.int64))
    found = [detections.get(sample.image_id, nothing) for sample in samples]
    return [np.sort(scores[labels == label] if label is not None else scores) for _, scores, labels in found]


def _without_each(
    true: Int[np.ndarray, " images"], scores: Sequence[Float[np.ndarray, " _found"]]
) -> Float[np.ndarray, " images"]:
    edges = np.union1d(np.concatenate(scores).astype(np.float64), (0.0, 1.0))

    def errors(place: int) -> Int[np.ndarray, " gaps"]:
        """Of one image's count, with a threshold in each gap."""
        own = scores[place].astype(np.float64)
        return len(own) - np.searchsorted(own, edges[1:]) - true[place]

    mae, bias = (np.zeros(len(edges) - 1, dtype=np.int64) for _ in range(2))
    for place in range(len(true)):
        own = errors(place)
        mae, bias = mae + np.abs(own), bias + own
    found, chosen = sum(map(len, scores)), []
    for place in range(len(true)):
        own, has_others = errors(place), found > len(scores[place])
        gap = _middle_of_best(mae - np.abs(own), bias - own, edges) if has_others else THRESHOLD_WITHOUT_DETECTIONS
        chosen.append(gap)
    return np.array(chosen)


def count_by_class(
    samples: Sequence[Sample], detections: Mapping[int, Detections], thresholds: Thresholds
) -> tuple[dict[str, float], list[dict[str, float]], list[dict[str, object]]]:
    """Metrics of total counts, metrics of the counts of each class, and the counts of every image.

    Every class is counted at its own threshold, and the total is the sum. An image's entry has ``image_id``,
    ``file_name``, ``group``, ``width`` and ``height`` in pixels, and numbers of objects: ``true`` and ``found``, with
    several classes also ``true_by_class`` and ``found_by_class``.
    """
    classes = len(thresholds.by_class)
    true, counts = (np.zeros((len(samples), classes), dtype=np.int64) for _ in range(2))
    entries: list[dict[str, object]] = []
    for place, sample in enumerate(samples):
        true[place] = np.bincount(sample.object_labels, minlength=classes)
        if sample.image_id in detections:
            kept = counted(detections[sample.image_id], thresholds.by_class)
            counts[place] = np.bincount(kept.labels, minlength=classes)
        entry: dict[str, object] = {"image_id": sample.image_id, "file_name": sample.name, "group": sample.group}
        entry |= {"width": sample.width, "height": sample.height}
        entry |= {"true": int(true[place].sum()), "found": int(counts[place].sum())}
        if classes > 1:
            entry |= {"true_by_class": true[place].tolist(), "found_by_class": counts[place].tolist()}
        entries.append(entry)
    together = count_metrics(true.sum(axis=1), counts.sum(axis=1))
    return together, [count_metrics(*pair) for pair in zip(true.T, counts.T, strict=True)], entries


def _errors_by_gap(
    true: Int[np.ndarray, " images"], image: Int[np.ndarray, " found"], scores: Float[np.ndarray, " found"]
) -> tuple[Int[np.ndarray, " gaps"], Int[np.ndarray, " gaps"], Float[np.ndarray, " edges"]]:
    """Summed absolute error and summed error for a threshold in each gap ``(edges[i], edges[i + 1]]``.

    Detections enter one by one, best score first: the one that is its image's ``n``-th (from 0) lowers the absolute
    error by 1 if the image holds more than ``n`` objects and raises it by 1 otherwise, so both sums are running sums.
    """
    order = np.argsort(-scores, kind="stable")
    scores, image = scores[order], image[order]
    by_image = np.argsort(image, kind="stable")
    starts = np.concatenate(([0], np.cumsum(np.bincount(image, minlength=len(true)))))
    rank = np.empty(len(scores), dtype=np.int64)
    rank[by_image] = np.arange(len(scores)) - starts[image[by_image]]
    absolute = true.sum() + np.concatenate(([0], np.cumsum(np.where(rank < true[image], -1, 1))))
    signed = -true.sum() + np.arange(len(scores) + 1)
    # Equal scores enter together: only the states after the last of each group can be reached.
    reachable = np.concatenate(([0], np.flatnonzero(np.diff(scores)) + 1, [len(scores)]))
    taken = reachable if scores[0] < 1 else reachable[1:]
    edges = np.union1d(scores, (0.0, 1.0))
    absolute, signed = absolute[taken][::-1], signed[taken][::-1]
    if scores[-1] == 0:  # counting every score of 0 would take a threshold of 0, outside (0, 1]
        absolute, signed = absolute[1:], signed[1:]
    return absolute, signed, edges
