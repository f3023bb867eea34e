"""Average precision on many resamples of the same test images: what a bootstrap over images needs.

Which detection matches which object does not depend on the other images, so it is settled once
(`boxtwin.evaluation.matching`). What a resample changes is how often each image counts. Average precision follows from
cumulative sums over detections in the order of their scores, with each image's count as weight: the same figure that
COCO's evaluation of a data set with that image in it so many times gives, without making one. (Two detections with the
very same score in one image have no order; there COCO's figure depends on how the copies of the image are laid out,
and is met only nearly.)
"""

from __future__ import annotations

import functools
import io
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int, UInt16, UInt32
from scipy import sparse

from boxtwin.datasets.sample import Detections, Sample
from boxtwin.evaluation.matching import AREAS, BITS, COCO_LIMIT, IOUS, Matching, match_detections
from boxtwin.files import write_bytes_atomically

MATCHES_FILE = "matches.npz"  # its name in the folder of a run
RECALLS = np.linspace(0.0, 1.0, 101)  # COCO's grid
# As many resamples are worked on at once as keep the intermediate arrays in a processor's cache (2 MiB).
ELEMENTS_AT_ONCE = 100_000


@dataclass(frozen=True, eq=False)
class _Class:
    """Matched detections of one class, best score first, and its objects per image."""

    image: Int[np.ndarray, " detections"] | UInt32[np.ndarray, " detections"]  # place among the images
    matched: UInt16[np.ndarray, " detections"]  # a bit for each threshold: 1 where it finds an object
    counted: UInt16[np.ndarray, " detections"]  # 0 where COCO ignores it
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
            category_ids: one for each class.
            area: smallest and largest area in square pixels of the objects looked at (`AREAS`); None: all.
        """
        return cls.of(match_detections(samples, detections, len(category_ids), {"all": area}))

    @classmethod
    def of(cls, matching: Matching, area: str = "all", limit: int | None = COCO_LIMIT) -> ResampledAP:
        """From matches, with the best ``limit`` detections of each class in an image; None: with all."""
        place = matching.areas.index(area)
        classes = [
            _Class(found.image, found.matched[place], found.counted[place], found.objects[place] + 0.0)
            for found in (found.best(limit) for found in matching.classes)
        ]
        return cls(matching.image_ids, IOUS, classes)

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
            matched, counted = found.matched[inside], found.counted[inside]
            classes.append(_Class(place[found.image[inside]], matched, counted, found.objects[images]))
        ids = [image_id for image_id, taken in zip(self.image_ids, images, strict=True) if taken]
        return ResampledAP(ids, self.thresholds[:thresholds], classes)

    @classmethod
    def load(cls, stored: Mapping[str, np.ndarray], prefix: str) -> ResampledAP:
        """From the arrays of `arrays`."""
        thresholds = stored[f"{prefix}/thresholds"]
        classes, starts = [], stored[f"{prefix}/starts"]
        for start, end, objects in zip(starts, starts[1:], stored[f"{prefix}/objects"], strict=False):
            image, matched, counted = (
                stored[f"{prefix}/{name}"][start:end] for name in ("image", "matched", "counted")
            )
            classes.append(_Class(image.astype(np.int64), matched, counted, objects.astype(np.float64)))
        return cls([int(number) for number in stored["image_ids"].tolist()], thresholds, classes)

    def arrays(self, prefix: str) -> dict[str, np.ndarray]:
        """What it knows as small arrays for ``np.savez_compressed``: thresholds as bits, detections in their order."""

        def together(name: str) -> np.ndarray:
            return np.concatenate([np.zeros(0, np.uint16), *(getattr(found, name) for found in self._classes)])

        images = [found.image for found in self._classes]
        return {
            "image_ids": _as_array(self.image_ids),
            f"{prefix}/thresholds": self.thresholds,
            f"{prefix}/starts": np.cumsum([0, *(len(image) for image in images)]),
            f"{prefix}/image": np.concatenate([np.zeros(0, np.int64), *images]).astype(np.uint32),
            f"{prefix}/matched": together("matched"),
            f"{prefix}/counted": together("counted"),
            f"{prefix}/objects": np.array([found.objects for found in self._classes]).astype(np.uint32),
        }

    def __call__(self, counts: Float[np.ndarray, "resamples images"]) -> Float[np.ndarray, "resamples thresholds"]:
        """AP at each IoU threshold, averaged over the classes that have objects; nan where none has.

        ``counts`` says how often each image (in the order of ``samples``) is in each resample, in whole numbers. A
        resample's mean over the last axis is COCO's AP, its first column AP50.
        """
        if not self._classes:
            return np.full((len(counts), len(self.thresholds)), np.nan)
        return mean_of_known(self.by_class(counts))

    def by_class(
        self, counts: Float[np.ndarray, "resamples images"]
    ) -> Float[np.ndarray, "classes resamples thresholds"]:
        """AP of each class at each IoU threshold; nan for one without objects."""
        whole = np.asarray(counts).astype(np.int64)
        if (whole != counts).any():
            raise ValueError("an image is in a resample a whole number of times")
        return np.stack([_average_precisions(found, whole, len(self.thresholds)) for found in self._classes])

    def curves(self) -> Float[np.ndarray, "classes 101"]:
        """Precision of each class at `RECALLS` and the first IoU threshold; nan for one without objects."""
        once = np.ones((1, len(self.image_ids)), dtype=np.int64)
        result = np.full((len(self._classes), len(RECALLS)), np.nan)
        for curve, found in zip(result, self._classes, strict=True):
            if found.objects.any():
                true, precision = next(_at_hits(found, once, 1))
                reached = _recalls_reached(int(found.objects.sum()))[true[:, 0]]
                curve[:] = np.append(precision[:, 0], 0.0)[np.searchsorted(reached, np.arange(1, len(RECALLS) + 1))]
        return result


def mean_of_known(values: Float[np.ndarray, "classes ..."]) -> Float[np.ndarray, "..."]:
    """The mean over the first axis without nan; nan where there is nothing else."""
    known = ~np.isnan(values)
    total = np.where(known, values, 0.0).sum(axis=0)
    with np.errstate(invalid="ignore"):
        return np.asarray(total / np.where(known.any(axis=0), known.sum(axis=0), np.nan))


def save_matches(path: Path, matching: Matching) -> None:
    """Keep a run's matches, for all objects and by their size, in one npz file; it appears whole or not at all."""
    arrays: dict[str, np.ndarray] = {}
    for name in matching.areas:
        arrays |= ResampledAP.of(matching, name).arrays(name)
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)  # type: ignore[arg-type]
    write_bytes_atomically(path, content.getvalue())


def load_matches(path: Path) -> dict[str, ResampledAP]:
    """What `save_matches` has kept, by the names of `AREAS`.

    Raises:
        ValueError: a checksum is wrong. Whatever else readers of archives and arrays meet in a damaged file, too.
    """
    with zipfile.ZipFile(path) as archive:  # np.load does not come to every checksum
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
    found: _Class, counts: Int[np.ndarray, "resamples images"], thresholds: int
) -> Float[np.ndarray, "resamples thresholds"]:
    """AP of one class at the first ``thresholds`` IoU thresholds; nan in resamples without objects.

    COCO averages the best precision at or beyond each of its 101 recalls. The precision at a hit is read by the recalls
    between the hit before it and itself, so that the average is a sum over hits.
    """
    objects = counts @ found.objects.astype(np.int64)
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
    at_once = max(ELEMENTS_AT_ONCE // (int(np.count_nonzero(found.matched)) + 1), 1)
    for start in range(0, len(counts), at_once):
        some = slice(start, start + at_once)
        for number, (true, precision) in enumerate(_at_hits(found, counts[some], thresholds)):
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
    found: _Class, counts: Int[np.ndarray, "resamples images"], thresholds: int
) -> Iterator[tuple[Int[np.ndarray, "hits resamples"], Float[np.ndarray, "hits resamples"]]]:
    """For each threshold: objects found up to each detection that finds one, and the best precision from there on.

    Precision can only rise where an object is found: it is worked out at those detections alone.
    """
    by_image = np.ascontiguousarray(counts.T)
    matched = (found.matched[:, None] & BITS[:thresholds]) > 0
    hits = np.flatnonzero(matched.any(axis=1))
    weights, seen, counted = by_image[found.image[hits]], np.zeros(0), None
    for bit, hit in zip(BITS, matched[hits].T, strict=False):
        # 1. Detections that count, up to each hit, in each resample. Thresholds mostly agree on which do.
        if counted is None or ((found.counted & bit > 0) != counted).any():
            counted = found.counted & bit > 0
            seen = _seen_at(hits, found.image, counted, by_image)
        true = weights[hit].cumsum(axis=0)
        precision = true / (seen[hit] + np.spacing(1))
        # 2. The best precision at this recall or a greater one.
        yield true, np.maximum.accumulate(precision[::-1], axis=0)[::-1]


def _seen_at(
    hits: Int[np.ndarray, " hits"],
    image: Int[np.ndarray, " detections"] | UInt32[np.ndarray, " detections"],
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
