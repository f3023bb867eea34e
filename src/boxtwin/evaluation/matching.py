"""Match detections to objects as COCO does, for all IoU thresholds and ranges of area in one pass.

The rule is that of ``pycocotools.cocoeval.COCOeval.evaluateImg`` (Lin et al. 2014), and so are the overlaps. Images are
matched one after the other, and a few bytes a detection are kept, so that memory stays small on large test sets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt16
from pycocotools import mask

from boxtwin.boxes import xyxy_to_xywh
from boxtwin.datasets.sample import Detections, Sample

# COCO's ranges of area, square pixels, and what their files call them (cocodataset.org, "Detection Evaluation").
AREAS = {"all": None, "small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}
ALL_AREAS = (0.0, 1e10)
IOUS = np.linspace(0.5, 0.95, 10)
BITS = (1 << np.arange(len(IOUS))).astype(np.uint16)
# Results are rounded to thousandths of a pixel: far below what an annotator can see, and it halves the file.
RESULT_DECIMALS = 3
# Going from xywh to xyxy and back leaves errors of 1e-13 pixels, which could tip an overlap that stands exactly on a
# threshold. Nine decimals restore the annotation file's own number.
TRUTH_DECIMALS = 9
COCO_LIMIT = 100  # detections of a class in an image that COCO's metrics look at


@dataclass(frozen=True, eq=False)
class ClassMatches:
    """The detections of one class in all images, best score first, and its objects.

    Bit ``i`` of an entry of ``matched`` says that the detection is matched to an object at ``IOUS[i]``; of ``counted``
    that COCO does not ignore it there (as it does in crowds, and where the object's area is out of the range).
    """

    image: Int[np.ndarray, " detections"]  # place among the images
    rank: Int[np.ndarray, " detections"]  # place among the detections of its image, from 0
    matched: UInt16[np.ndarray, "areas detections"]
    counted: UInt16[np.ndarray, "areas detections"]
    objects: Int[np.ndarray, "areas images"]

    def best(self, limit: int | None) -> ClassMatches:
        """The same with the best ``limit`` detections of each image alone; None: with all of them."""
        kept = self.rank < (len(self.rank) if limit is None else limit)
        return ClassMatches(
            self.image[kept], self.rank[kept], self.matched[:, kept], self.counted[:, kept], self.objects
        )


@dataclass(frozen=True, eq=False)
class Matching:
    """The matches of a test: of each class, in each of the named ranges of area."""

    image_ids: tuple[int, ...]
    areas: tuple[str, ...]
    classes: tuple[ClassMatches, ...]


def match_detections(
    samples: Sequence[Sample],
    detections: Mapping[int, Detections],
    classes: int,
    areas: Mapping[str, tuple[float, float] | None] = AREAS,
) -> Matching:
    """Match the detections of every image, by image id, to its objects.

    ``areas`` are smallest and largest area of an object in square pixels, by name; None: all. Labels are below
    ``classes``. An image id twice, a label out of range, or detections of another image raise `ValueError`.
    """
    ids = [sample.image_id for sample in samples]
    if unknown := set(detections) - set(ids):
        raise ValueError(f"detections for images that are not among the samples: ids {sorted(unknown)[:10]}")
    if len(set(ids)) < len(ids):
        raise ValueError("image ids must be unique")
    ranges = np.array([ALL_AREAS if area is None else area for area in areas.values()])
    objects = np.zeros((classes, len(ranges), len(samples)), dtype=np.int32)
    parts: list[list[tuple[np.ndarray, ...]]] = [[] for _ in range(classes)]
    # In the order of the ids, as pycocotools does: of equal scores in two images the first is the better.
    for place in sorted(range(len(ids)), key=ids.__getitem__):
        sample, detected = samples[place], detections.get(ids[place])
        present = np.concatenate([sample.labels, [] if detected is None else detected.labels]).astype(int)
        for label in np.unique(present).tolist():
            if not 0 <= label < classes:
                raise ValueError(f"{sample.name}: labels must be in 0..{classes - 1}, got {label}")
            objects[label, :, place] = (~_ignored(sample, label, ranges)).sum(axis=1)
            if detected is None or not (detected.labels == label).any():
                continue
            order, matched, counted, _ = _match_class(sample, detected, label, ranges)
            rank = np.arange(len(order), dtype=np.int32)
            scores = detected.scores[order].astype(np.float64)
            parts[label].append((np.full(len(order), place, np.int32), rank, scores, matched.T, counted.T))
    gathered = tuple(_gather(part, objects[label]) for label, part in enumerate(parts))
    return Matching(tuple(int(number) for number in ids), tuple(areas), gathered)


class Matches(NamedTuple):
    """Right detections of an image, those in a crowd (neither right nor wrong), and missed objects."""

    right: Bool[np.ndarray, " found"]
    ignored: Bool[np.ndarray, " found"]
    missed: Bool[np.ndarray, " objects"]  # of `Sample.object_boxes`


def match(sample: Sample, detections: Detections) -> Matches:
    """The matches of one image at IoU 0.5, where COCO's AP50 and PASCAL VOC call a detection right."""
    right, ignored = (np.zeros(len(detections.boxes), dtype=bool) for _ in range(2))
    missed = np.ones(len(sample.boxes), dtype=bool)
    for label in np.unique(detections.labels).astype(int).tolist():
        order, matched, counted, free = _match_class(sample, detections, label, np.array([ALL_AREAS]))
        right[order], ignored[order] = matched[0] & BITS[0] > 0, counted[0] & BITS[0] == 0
        missed[sample.labels == label] = free[0, 0]
    return Matches(right, ignored, missed[~sample.crowd])


def outside_crowds(samples: Sequence[Sample], detections: Mapping[int, Detections]) -> dict[int, Detections]:
    """The detections, without those in crowds that AP ignores at IoU 0.5: crowds are not counted."""
    by_id = {sample.image_id: sample for sample in samples if sample.crowd.any()}

    def counted(number: int, found: Detections) -> Detections:
        kept = ~match(by_id[number], found).ignored
        return Detections(*(values[kept] for values in found))

    return {number: counted(number, found) if number in by_id else found for number, found in detections.items()}


def _ignored(sample: Sample, label: int, ranges: Float[np.ndarray, "areas 2"]) -> Bool[np.ndarray, "areas true"]:
    """Which objects of a class do not count: crowds, and those of an area out of the range."""
    true, (small, large) = sample.labels == label, ranges.T[:, :, None]
    return (sample.areas[true] < small) | (sample.areas[true] > large) | sample.crowd[true]


def _match_class(
    sample: Sample, detections: Detections, label: int, ranges: Float[np.ndarray, "areas 2"]
) -> tuple[
    Int[np.ndarray, " found"],
    UInt16[np.ndarray, "areas found"],
    UInt16[np.ndarray, "areas found"],
    Bool[np.ndarray, "areas ious true"],
]:
    """Detections of one class in an image, best score first, their bits (see `ClassMatches`), and unmatched objects."""
    true, taken = sample.labels == label, detections.labels == label
    order = np.flatnonzero(taken)[np.argsort(-detections.scores[taken], kind="stable")]
    boxes = xyxy_to_xywh(detections.boxes[order].astype(np.float64)).round(RESULT_DECIMALS)
    truth = xyxy_to_xywh(sample.boxes[true].astype(np.float64)).round(TRUTH_DECIMALS)
    overlaps = np.zeros((len(boxes), 0))
    if len(truth):
        overlaps = np.asarray(mask.iou(boxes, truth, sample.crowd[true].astype(np.uint8)))
    area, (small, large) = boxes[:, 2] * boxes[:, 3], ranges.T[:, :, None]
    outside, ignored, crowd = (area < small) | (area > large), _ignored(sample, label, ranges), sample.crowd[true]
    areas, count = outside.shape
    hit, left_out = (np.zeros((areas, len(IOUS), count), dtype=bool) for _ in range(2))
    free = np.ones((areas, len(IOUS), len(truth)), dtype=bool)
    row, column = np.ogrid[:areas, : len(IOUS)]
    # 1. Detections choose in the order of their scores; one that overlaps no object enough is left as it is.
    for index in np.flatnonzero((overlaps >= IOUS[0]).any(axis=1)).tolist():
        possible = (overlaps[index] >= IOUS[:, None]) & (free | crowd)
        # 2. Objects that count come before those that are ignored, then the greatest overlap, of equals the last.
        of_worth = possible & ~ignored[:, None, :]
        possible = np.where(of_worth.any(axis=2, keepdims=True), of_worth, possible)
        preference = np.where(possible, overlaps[index], -1.0)
        chosen = preference.shape[2] - 1 - preference[:, :, ::-1].argmax(axis=2)
        finds = possible.any(axis=2)
        hit[:, :, index] = finds
        left_out[:, :, index] = finds & ignored[row, chosen]
        free[row, column, chosen] &= ~finds
    # 3. What finds nothing and is itself outside the range of areas is not counted as wrong.
    left_out |= ~hit & outside[:, None, :]
    bits = BITS[None, :, None]
    matched, counted = ((values * bits).sum(axis=1).astype(np.uint16) for values in (hit & ~left_out, ~left_out))
    return order, matched, counted, free


def _gather(parts: Sequence[tuple[np.ndarray, ...]], objects: Int[np.ndarray, "areas images"]) -> ClassMatches:
    """The detections of one class in all images in the order of their scores; equal ones keep their order."""
    if not parts:
        none, bits = np.zeros(0, dtype=np.int32), np.zeros((len(objects), 0), dtype=np.uint16)
        return ClassMatches(none, none, bits, bits, objects)
    images, ranks, scores, matched, counted = zip(*parts, strict=True)
    order = np.argsort(-np.concatenate(scores), kind="stable")
    image, rank, matched, counted = (np.concatenate(values)[order] for values in (images, ranks, matched, counted))
    return ClassMatches(image, rank, matched.T.copy(), counted.T.copy(), objects)
