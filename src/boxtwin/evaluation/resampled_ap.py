"""Average precision on many resamples of the same test images: what a bootstrap over images needs.

Which detection matches which object does not depend on the other images, so it is settled once, by pycocotools. What a
resample changes is how often each image counts. Average precision follows from cumulative sums over detections in the
order of their scores, with each image's count as weight: the same figure that COCO's evaluation of a data set with that
image in it so many times gives, without making one. (Two detections with the very same score in one image have no
order; there COCO's figure depends on how the copies of the image are laid out, and is met only nearly.)
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from boxtwin.datasets.images import write_bytes_atomically
from boxtwin.datasets.sample import Detections, Sample
from boxtwin.evaluation.coco_map import coco_ground_truth, coco_results

# COCO's ranges of area, square pixels, and what their files call them (cocodataset.org, "Detection Evaluation").
AREAS = {"all": None, "small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}
MATCHES_FILE = "matches.npz"  # its name in the folder of a cell
RECALLS = np.linspace(0.0, 1.0, 101)  # COCO's grid
# As many resamples are worked on at once as keep the intermediate arrays at some tens of megabytes.
ELEMENTS_AT_ONCE = 4_000_000


@dataclass(frozen=True, eq=False)
class _Class:
    """Matched detections of one class, best score first, and its objects per image."""

    image: Int[np.ndarray, " detections"]  # place among the images
    matched: Float[np.ndarray, "thresholds detections"]  # 1 where it finds an object
    counted: Float[np.ndarray, "thresholds detections"]  # 0 where COCO ignores it
    objects: Float[np.ndarray, " images"]


class ResampledAP:
    """COCO's average precision of one run for any weighting of the test images.

    What it keeps are matches, not boxes: a few kilobytes a run, which can be passed on where the data set cannot.
    """

    def __init__(
        self, image_ids: Sequence[int], thresholds: Float[np.ndarray, " thresholds"], classes: Sequence[_Class]
    ) -> None:
        self.image_ids = tuple(int(image_id) for image_id in image_ids)
        self.thresholds = thresholds
        self._classes = tuple(classes)

    @classmethod
    def match(
        cls,
        samples: Sequence[Sample],
        detections: Mapping[int, Detections],
        category_ids: Sequence[int],
        *,
        area: tuple[float, float] | None = None,
    ) -> ResampledAP:
        """Find out which detection matches which object.

        Args:
            samples: the test images.
            detections: what was found, by image id; images without an entry have no detections.
            category_ids: as in `coco_results`.
            area: smallest and largest area in square pixels of the objects looked at (`AREAS`); None: all.
        """
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        image_ids = [sample.image_id for sample in samples]
        truth, found = COCO(), COCO()
        with contextlib.redirect_stdout(io.StringIO()):
            truth.dataset = coco_ground_truth(samples, [str(number) for number in category_ids], category_ids)
            truth.createIndex()
            results = coco_results(detections, category_ids)
            if results:
                found = truth.loadRes(results)
            else:  # `loadRes` cannot take an empty list
                found.dataset = {**truth.dataset, "annotations": []}
                found.createIndex()
            evaluation = COCOeval(truth, found, "bbox")
            evaluation.params.imgIds = image_ids
            evaluation.params.areaRng = [list(area) if area else evaluation.params.areaRng[0]]
            evaluation.params.areaRngLbl = ["all"]
            evaluation.evaluate()
        thresholds = np.asarray(evaluation.params.iouThrs, dtype=np.float64)
        # evaluate() sorts the ids; place of each image in the order it was given here.
        order = {int(image_id): place for place, image_id in enumerate(image_ids)}
        images = len(image_ids)
        by_class = [evaluation.evalImgs[number * images : (number + 1) * images] for number in range(len(category_ids))]
        return cls(image_ids, thresholds, [_gather(evaluated, order, len(thresholds)) for evaluated in by_class])

    @property
    def objects(self) -> Int[np.ndarray, " images"]:
        """How many objects each image holds, of all classes, in the range of areas that was asked for."""
        total = np.zeros(len(self.image_ids))
        return np.sum([total, *(found.objects for found in self._classes)], axis=0).astype(np.int64)

    def part(self, images: Bool[np.ndarray, " images"], thresholds: int | None = None) -> ResampledAP:
        """The same for a part of the images alone, and for the first few IoU thresholds if so many are named.

        Gives what the whole gives where all other images count 0 times, in less time.
        """
        place = np.cumsum(images) - 1
        classes = []
        for found in self._classes:
            inside = images[found.image]
            matched, counted = (array[:thresholds][:, inside] for array in (found.matched, found.counted))
            classes.append(_Class(place[found.image[inside]], matched, counted, found.objects[images]))
        ids = [image_id for image_id, taken in zip(self.image_ids, images, strict=True) if taken]
        return ResampledAP(ids, self.thresholds[:thresholds], classes)

    @classmethod
    def load(cls, stored: Mapping[str, np.ndarray], prefix: str) -> ResampledAP:
        """From the arrays of `arrays`."""
        thresholds = stored[f"{prefix}/thresholds"]
        classes, starts = [], stored[f"{prefix}/starts"]
        for start, end, objects in zip(starts, starts[1:], stored[f"{prefix}/objects"], strict=False):
            bits = 1 << np.arange(len(thresholds))[:, None]
            matched, counted = (
                (stored[f"{prefix}/{name}"][start:end].astype(np.int64) & bits != 0).astype(np.float64)
                for name in ("matched", "counted")
            )
            image = stored[f"{prefix}/image"][start:end].astype(np.int64)
            classes.append(_Class(image, matched, counted, objects.astype(np.float64)))
        return cls([int(number) for number in stored["image_ids"].tolist()], thresholds, classes)

    def arrays(self, prefix: str) -> dict[str, np.ndarray]:
        """What it knows as small arrays for ``np.savez_compressed``: thresholds as bits, detections in their order."""
        bits = 1 << np.arange(len(self.thresholds))

        def packed(name: str) -> np.ndarray:
            parts = [(bits @ getattr(found, name)).astype(np.uint16) for found in self._classes]
            return np.concatenate(parts) if parts else np.zeros(0, dtype=np.uint16)

        images = [found.image for found in self._classes]
        return {
            "image_ids": _as_array(self.image_ids),
            f"{prefix}/thresholds": self.thresholds,
            f"{prefix}/starts": np.cumsum([0, *(len(image) for image in images)]),
            f"{prefix}/image": np.concatenate([np.zeros(0, np.int64), *images]).astype(np.uint32),
            f"{prefix}/matched": packed("matched"),
            f"{prefix}/counted": packed("counted"),
            f"{prefix}/objects": np.array([found.objects for found in self._classes]).astype(np.uint32),
        }

    def __call__(self, counts: Float[np.ndarray, "resamples images"]) -> Float[np.ndarray, "resamples thresholds"]:
        """AP at each IoU threshold, averaged over the classes that have objects; nan where none has.

        ``counts`` says how often each image (in the order of ``samples``) is in each resample. A resample's mean over
        the last axis is COCO's AP, its first column AP50.
        """
        counts = np.asarray(counts, dtype=np.float64)
        detections = max(sum(len(found.image) for found in self._classes), 1)
        rows = max(ELEMENTS_AT_ONCE // (detections + 1), 1)
        parts = [self._average(counts[start : start + rows]) for start in range(0, len(counts), rows)]
        return np.concatenate(parts) if parts else np.zeros((0, len(self.thresholds)))

    def _average(self, counts: np.ndarray) -> np.ndarray:
        by_class = np.stack([self._of_class(found, counts) for found in self._classes])
        present = ~np.isnan(by_class)
        total = np.where(present, by_class, 0.0).sum(axis=0)
        with np.errstate(invalid="ignore"):
            return total / np.where(present.any(axis=0), present.sum(axis=0), np.nan)

    def _of_class(self, found: _Class, counts: np.ndarray) -> np.ndarray:
        objects = counts @ found.objects
        weight = counts[:, found.image]
        result = np.zeros((len(counts), len(self.thresholds)))
        for number in range(len(self.thresholds)):
            hits = np.flatnonzero(found.matched[number])
            if not len(hits):
                continue
            # 1. Precision can only rise where an object is found: at those detections alone it has to be known.
            seen = np.cumsum(weight * found.counted[number], axis=1)[:, hits]
            true = np.cumsum(weight[:, hits], axis=1)
            precision = true / (seen + np.spacing(1))
            # 2. The best precision at this recall or a greater one.
            precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
            # 3. Read at COCO's grid of recalls: the first detection that gets there; 0 where none does.
            recall = true / np.maximum(objects, 1)[:, None]
            result[:, number] = [
                _at_grid(one_recall, one_precision) for one_recall, one_precision in zip(recall, precision, strict=True)
            ]
        result[objects == 0] = np.nan
        return result


def save_matches(
    path: Path, samples: Sequence[Sample], detections: Mapping[int, Detections], category_ids: Sequence[int]
) -> None:
    """Keep a run's matches, for all objects and by their size, in one npz file; it appears whole or not at all."""
    arrays: dict[str, np.ndarray] = {}
    for name, area in AREAS.items():
        arrays |= ResampledAP.match(samples, detections, category_ids, area=area).arrays(name)
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)  # type: ignore[arg-type]
    write_bytes_atomically(path, content.getvalue())


def load_matches(path: Path) -> dict[str, ResampledAP]:
    """What `save_matches` has kept, by the names of `AREAS`."""
    with np.load(path, allow_pickle=False) as stored:
        arrays = dict(stored)
    return {name: ResampledAP.load(arrays, name) for name in AREAS}


def _as_array(ids: Sequence[int]) -> np.ndarray:
    """Ids as numbers of 64 bits, or as text where they are larger."""
    try:
        return np.array(ids, dtype=np.int64)
    except OverflowError:
        return np.array([str(number) for number in ids])


def _at_grid(recall: Float[np.ndarray, " hits"], precision: Float[np.ndarray, " hits"]) -> float:
    place = np.searchsorted(recall, RECALLS, side="left")
    reached = place < len(recall)
    return float(precision[place[reached]].sum() / len(RECALLS))


def _gather(evaluated: Sequence[Mapping[str, Any] | None], order: Mapping[int, int], thresholds: int) -> _Class:
    """The images' matches of one class in the order of the scores."""
    limit = 100  # COCO's detections per image and class
    objects = np.zeros(len(order))
    image, scores, matches, ignored = [], [], [np.zeros((thresholds, 0))], [np.zeros((thresholds, 0))]
    for entry in evaluated:
        if entry is None:  # neither objects nor detections
            continue
        place = order[int(entry["image_id"])]
        objects[place] = np.count_nonzero(np.asarray(entry["gtIgnore"]) == 0)
        found = np.asarray(entry["dtScores"], dtype=np.float64)[:limit]
        image.append(np.full(len(found), place, dtype=np.int64))
        scores.append(found)
        matches.append(np.asarray(entry["dtMatches"]).reshape(thresholds, -1)[:, :limit])
        ignored.append(np.asarray(entry["dtIgnore"]).reshape(thresholds, -1)[:, :limit])
    if not scores:
        return _Class(np.zeros(0, dtype=np.int64), matches[0], ignored[0], objects)
    best_first = np.argsort(-np.concatenate(scores), kind="mergesort")  # COCO's choice: equal scores keep their order
    kept = np.concatenate(ignored, axis=1)[:, best_first] == 0
    hit = np.concatenate(matches, axis=1)[:, best_first] > 0
    return _Class(np.concatenate(image)[best_first], (hit & kept).astype(np.float64), kept.astype(np.float64), objects)
