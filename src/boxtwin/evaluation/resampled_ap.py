"""Average precision on many resamples of the same test images: what a bootstrap over images needs.

Which detection matches which object does not depend on the other images, so it is settled once
(`boxtwin.evaluation.matching`). What a resample changes is how often each image counts. Average precision follows from
cumulative sums over detections in the order of their scores, with each image's count as weight: the same figure that
COCO's evaluation of a data set with that image in it so many times gives, without making one. (Two detections with the
very same score in one image have no order; there COCO's figure depends on how the copies of the image are laid out,
and is met only nearly.)
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int, UInt16, UInt32

from boxtwin.datasets.sample import Detections, Sample
from boxtwin.evaluation.matching import AREAS, BITS, COCO_LIMIT, IOUS, Matching, match_detections
from boxtwin.files import write_bytes_atomically

MATCHES_FILE = "matches.npz"  # its name in the folder of a cell
RECALLS = np.linspace(0.0, 1.0, 101)  # COCO's grid
# As many resamples are worked on at once as keep the intermediate arrays at some tens of megabytes.
ELEMENTS_AT_ONCE = 4_000_000


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

        ``counts`` says how often each image (in the order of ``samples``) is in each resample. A resample's mean over
        the last axis is COCO's AP, its first column AP50.
        """
        counts = np.asarray(counts, dtype=np.float64)
        detections = max(sum(len(found.image) for found in self._classes), 1)
        rows = max(ELEMENTS_AT_ONCE // (detections + 1), 1)
        parts = [self._average(counts[start : start + rows]) for start in range(0, len(counts), rows)]
        return np.concatenate(parts) if parts else np.zeros((0, len(self.thresholds)))

    def by_class(
        self, counts: Float[np.ndarray, "resamples images"]
    ) -> Float[np.ndarray, "classes resamples thresholds"]:
        """AP of each class at each IoU threshold; nan for one without objects."""
        return np.stack([self._of_class(found, np.asarray(counts, dtype=np.float64)) for found in self._classes])

    def curves(self) -> Float[np.ndarray, "classes 101"]:
        """Precision of each class at `RECALLS` and the first IoU threshold; nan for one without objects."""
        once = np.ones((1, len(self.image_ids)))
        found = []
        for each in self._classes:
            (recall,), (precision,) = _at_hits(each, once, 0)
            found.append(_on_grid(recall, precision) if each.objects.sum() else np.full(len(RECALLS), np.nan))
        return np.stack(found)

    def _average(self, counts: np.ndarray) -> np.ndarray:
        return mean_of_known(self.by_class(counts))

    def _of_class(self, found: _Class, counts: np.ndarray) -> np.ndarray:
        result = np.zeros((len(counts), len(self.thresholds)))
        for number in range(len(self.thresholds)):
            curves = zip(*_at_hits(found, counts, number), strict=True)
            result[:, number] = [_on_grid(recall, precision).mean() for recall, precision in curves]
        result[counts @ found.objects == 0] = np.nan
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


def _at_hits(
    found: _Class, counts: Float[np.ndarray, "resamples images"], number: int
) -> tuple[Float[np.ndarray, "resamples hits"], Float[np.ndarray, "resamples hits"]]:
    """Recall at each detection that finds an object at threshold ``number``, and the best precision from there on."""
    weight = counts[:, found.image]
    # 1. Precision can only rise where an object is found: at those detections alone it has to be known.
    hits = np.flatnonzero(found.matched & BITS[number])
    seen = np.cumsum(weight * (found.counted & BITS[number] != 0), axis=1)[:, hits]
    true = np.cumsum(weight[:, hits], axis=1)
    precision = true / (seen + np.spacing(1))
    # 2. The best precision at this recall or a greater one.
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    return true / np.maximum(counts @ found.objects, 1)[:, None], precision


def _on_grid(recall: Float[np.ndarray, " hits"], precision: Float[np.ndarray, " hits"]) -> Float[np.ndarray, " 101"]:
    """Read at COCO's grid of recalls: the first detection that gets there; 0 where none does."""
    place = np.searchsorted(recall, RECALLS, side="left")
    return np.concatenate((precision, [0.0]))[np.minimum(place, len(precision))]
