"""Average precision on many resamples of the same test images: what a bootstrap over images needs.

Which detection matches which object does not depend on the other images, so it is settled once
(`boxtwin.evaluation.matching`). A resample changes how often each image counts. Average precision follows from
cumulative sums over detections in the order of their scores, with each image's count as weight: the number that COCO's
evaluation of a data set with that image in it so many times gives. (Two detections of equal score in one image have no
order; there COCO's number depends on how the copies of the image are ordered, and is met only nearly.)
"""

from __future__ import annotations

import functools
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int, UInt16
from scipy import sparse

from boxtwin.evaluation.matching import AREAS, BITS, COCO_LIMIT, IOUS, Matching
from boxtwin.files import atomic_path

MATCHES_FILE = "matches.npz"  # its name in the folder of a run
RECALLS = np.linspace(0.0, 1.0, 101)  # COCO's grid
LEAST_EQUAL = 0.9  # share of a run's detections that are in the same place by their scores, whatever ties do
# As many resamples are worked on at once as keep the intermediate arrays in a processor's cache (2 MiB).
ELEMENTS_AT_ONCE = 100_000


@dataclass(frozen=True, eq=False)
class _Class:
    """Matched detections of one class, best score first, and its objects per image."""

    image: Int[np.ndarray, " detections"]  # place among the images
    matched: UInt16[np.ndarray, " detections"]  # a bit for each threshold: 1 where it finds an object
    counted: UInt16[np.ndarray, " detections"]  # 0 where COCO ignores it
    objects: Float[np.ndarray, " images"]


@dataclass(frozen=True, eq=False)
class ResampledAP:
    """COCO's average precision of one run for any weighting of the test images.

    It keeps matches, not boxes: a few kilobytes a run, which can be passed on where the data set cannot.
    """

    image_ids: tuple[int, ...]
    thresholds: Float[np.ndarray, " thresholds"]  # of IoU
    _classes: tuple[_Class, ...]

    @classmethod
    def of(cls, matching: Matching, area: str = "all", limit: int | None = COCO_LIMIT) -> ResampledAP:
        """From matches, with the best ``limit`` detections of each class in an image; None: with all."""
        place = matching.areas.index(area)
        classes = (
            _Class(best.image, best.matched[place], best.counted[place], best.objects[place] + 0.0)
            for best in (matches.best(limit) for matches in matching.classes)
        )
        return cls(matching.image_ids, IOUS, tuple(classes))

    @property
    def objects(self) -> Int[np.ndarray, " images"]:
        """How many objects of all classes, in the range of areas, each image holds."""
        return np.sum([matches.objects for matches in self._classes], axis=0).astype(np.int64)

    def has_detections_of(self, other: ResampledAP) -> bool:
        """Whether both follow from the same detections, whatever the labels: from as many of each class, in images of
        the same order of scores, but for a few of equal score."""
        if len(self._classes) != len(other._classes):
            return False
        for ours, theirs in zip(self._classes, other._classes, strict=True):
            images, others = (
                np.array(ids)[of.image] for ids, of in ((self.image_ids, ours), (other.image_ids, theirs))
            )
            if len(images) != len(others) or (len(images) and np.mean(images == others) < LEAST_EQUAL):
                return False
        return True

    def part(self, images: Bool[np.ndarray, " images"], thresholds: int | None = None) -> ResampledAP:
        """The same for a part of the images, and for the first few IoU thresholds if so many are given.

        It gives what the whole gives where all other images count 0 times, in less time.
        """
        place, classes = np.cumsum(images) - 1, []
        for each in self._classes:
            inside = images[each.image]
            matched, counted = each.matched[inside], each.counted[inside]
            classes.append(_Class(place[each.image[inside]], matched, counted, each.objects[images]))
        ids = tuple(image_id for image_id, taken in zip(self.image_ids, images, strict=True) if taken)
        return ResampledAP(ids, self.thresholds[:thresholds], tuple(classes))

    @classmethod
    def load(cls, stored: Mapping[str, np.ndarray], prefix: str) -> ResampledAP:
        """The inverse of `arrays`; raises `ValueError` if the arrays do not belong together."""
        starts, matched, counted = (stored[f"{prefix}/{name}"] for name in ("starts", "matched", "counted"))
        columns = (stored[f"{prefix}/image"].astype(np.int64), matched, counted)
        objects = stored[f"{prefix}/objects"].astype(np.float64)
        images, detections = len(stored["image_ids"]), {len(column) for column in columns} | {int(starts[-1])}
        whole = len(detections) == 1 and objects.shape == (len(starts) - 1, images)
        if not whole or starts[0] != 0 or (np.diff(starts) < 0).any() or (columns[0] >= images).any():
            raise ValueError(f"its arrays {prefix}/… do not belong together")
        classes = map(_Class, *(np.split(column, starts[1:-1]) for column in columns), objects)
        return cls(tuple(map(int, stored["image_ids"].tolist())), stored[f"{prefix}/thresholds"], tuple(classes))

    def arrays(self, prefix: str) -> dict[str, np.ndarray]:
        """Small arrays for ``np.savez_compressed``: detections in their order, thresholds as bits."""
        images, matched, counted = (
            np.concatenate([getattr(each, name) for each in self._classes]) for name in ("image", "matched", "counted")
        )
        return {
            "image_ids": _as_array(self.image_ids),
            f"{prefix}/thresholds": self.thresholds,
            f"{prefix}/starts": np.cumsum([0, *(len(each.image) for each in self._classes)]),
            f"{prefix}/image": images.astype(np.uint32),
            f"{prefix}/matched": matched,
            f"{prefix}/counted": counted,
            f"{prefix}/objects": np.array([each.objects for each in self._classes]).astype(np.uint32),
        }

    def __call__(self, counts: Float[np.ndarray, "resamples images"]) -> Float[np.ndarray, "resamples thresholds"]:
        """AP at each IoU threshold, averaged over the classes that have objects; nan where none has.

        ``counts`` says how often each image (in the order of ``image_ids``) is in each resample, in whole numbers. A
        resample's mean over the last axis is COCO's AP, its first column AP50.
        """
        return mean_of_known(self.by_class(counts))

    def by_class(
        self, counts: Float[np.ndarray, "resamples images"]
    ) -> Float[np.ndarray, "classes resamples thresholds"]:
        """AP of each class at each IoU threshold; nan for one without objects."""
        whole = np.asarray(counts).astype(np.int64)
        if (whole != counts).any():
            raise ValueError("an image is in a resample a whole number of times")
        return np.stack([_average_precisions(matches, whole, len(self.thresholds)) for matches in self._classes])

    def curves(self) -> Float[np.ndarray, "classes 101"]:
        """Precision of each class at `RECALLS` and the first IoU threshold; nan for one without objects."""
        once = np.ones((1, len(self.image_ids)), dtype=np.int64)
        result = np.full((len(self._classes), len(RECALLS)), np.nan)
        for curve, matches in zip(result, self._classes, strict=True):
            if matches.objects.any():
                true, precision = next(_at_hits(matches, once, 1))
                reached = _recalls_reached(int(matches.objects.sum()))[true[:, 0]]
                curve[:] = np.append(precision[:, 0], 0.0)[np.searchsorted(reached, np.arange(1, len(RECALLS) + 1))]
        return result


def mean_of_known(values: Float[np.ndarray, "classes ..."]) -> Float[np.ndarray, "..."]:
    """The mean over the first axis without nan; nan where there is nothing else."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(known, values, 0.0).sum(axis=0) / known.sum(axis=0))


def save_matches(path: Path, matching: Matching) -> None:
    """Write a run's matches, for all objects and by their size, to one npz file, atomically."""
    arrays = {
        key: array for name in matching.areas for key, array in ResampledAP.of(matching, name).arrays(name).items()
    }
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def load_matches(path: Path) -> dict[str, ResampledAP]:
    """What `save_matches` wrote, by the names of `AREAS`; a damaged file raises `ValueError` or the readers' errors."""
    with zipfile.ZipFile(path) as archive:  # np.load does not check every checksum
        if (member := archive.testzip()) is not None:
            raise ValueError(f"the checksum of {member} in {path} is wrong")
    with np.load(path, allow_pickle=False) as stored:
        arrays = dict(stored)
    return {name: ResampledAP.load(arrays, name) for name in AREAS}


def _as_array(ids: Sequence[int]) -> np.ndarray:
    """Ids as numbers of 64 bits, or as text where they are larger."""
    try:
        return np.array(ids, dtype=np.int64)
    except OverflowError:
        return np.array([str(number) for number in ids])


def _average_precisions(
    matches: _Class, counts: Int[np.ndarray, "resamples images"], thresholds: int
) -> Float[np.ndarray, "resamples thresholds"]:
    """AP of one class at the first ``thresholds`` IoU thresholds; nan in resamples without objects.

    COCO averages the best precision at or beyond each of its 101 recalls. The precision at a hit is read by the recalls
    between the hit before it and itself, so that the average is a sum over hits.
    """
    objects = counts @ matches.objects.astype(np.int64)
    result = np.where(objects > 0, 0.0, np.nan)[:, None].repeat(thresholds, axis=1)
    if not objects.any():
        return result
    # 1. How many recalls of the grid are reached with so many objects found, by the number of objects there are.
    totals, which = np.unique(objects, return_inverse=True)
    reached = np.zeros((len(totals), int(totals[-1]) + 1), dtype=np.float64)
    for row, total in zip(reached, totals.tolist(), strict=True):
        row[: total + 1] = _recalls_reached(total)
    starts = which.ravel() * reached.shape[1]
    # 2. As many resamples at once as memory is meant for.
    at_once = max(ELEMENTS_AT_ONCE // (int(np.count_nonzero(matches.matched)) + 1), 1)
    for start in range(0, len(counts), at_once):
        some = slice(start, start + at_once)
        for number, (true, precision) in enumerate(_at_hits(matches, counts[some], thresholds)):
            if len(true):
                read = np.take(reached, true + starts[some])
                read[1:] -= read[:-1].copy()
                result[some, number] += np.einsum("hr,hr->r", precision, read) / len(RECALLS)
    return result


@functools.cache
def _recalls_reached(objects: int) -> Int[np.ndarray, " found"]:
    """How many of `RECALLS` are reached when 0, 1, … of the objects are found."""
    return np.searchsorted(RECALLS, np.arange(objects + 1) / max(objects, 1), side="right")


def _at_hits(
    matches: _Class, counts: Int[np.ndarray, "resamples images"], thresholds: int
) -> Iterator[tuple[Int[np.ndarray, "hits resamples"], Float[np.ndarray, "hits resamples"]]]:
    """For each threshold: objects found up to each detection that finds one, and the best precision from there on.

    Precision can only rise where an object is found: it is worked out at those detections alone.
    """
    by_image = np.ascontiguousarray(counts.T)
    matched = (matches.matched[:, None] & BITS[:thresholds]) > 0
    hits = np.flatnonzero(matched.any(axis=1))
    weights, seen, counted = by_image[matches.image[hits]], np.zeros(0), None
    for bit, hit in zip(BITS, matched[hits].T, strict=False):
        # 1. Detections that count, up to each hit, in each resample. Thresholds mostly agree on which do.
        if counted is None or ((matches.counted & bit > 0) != counted).any():
            counted = matches.counted & bit > 0
            seen = _seen_at(hits, matches.image, counted, by_image)
        true = weights[hit].cumsum(axis=0)
        precision = true / (seen[hit] + np.spacing(1))
        # 2. The best precision at this recall or a greater one.
        yield true, np.maximum.accumulate(precision[::-1], axis=0)[::-1]


def _seen_at(
    hits: Int[np.ndarray, " hits"],
    image: Int[np.ndarray, " detections"],
    counted: Bool[np.ndarray, " detections"],
    by_image: Int[np.ndarray, "images resamples"],
) -> Int[np.ndarray, "hits resamples"]:
    """How many detections count up to each hit: sums over images of their number there times the image's."""
    places = np.flatnonzero(counted)
    following = np.searchsorted(hits, places)  # what comes after the last hit changes nothing
    places, following = (each[following < len(hits)] for each in (places, following))
    where = following, image[places]
    numbers = sparse.csr_array((np.ones(len(places), np.int64), where), shape=(len(hits), len(by_image)))
    return (numbers @ by_image).cumsum(axis=0)
