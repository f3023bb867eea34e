"""Detectors as witnesses: what one or several, trained on real images only, say about an image, and where they agree.

Detectors come as callables, so that this package needs neither torch nor a training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from boxtwin.boxes import Box, area_xyxy, iou_matrix
from boxtwin.datasets.image_io import Pixels
from boxtwin.datasets.sample import Detections, Sample

# A detection speaks of an object when the boxes overlap by this much. One pixel off in x and y, a box of 4 pixels
# overlaps by 0.39 with what it means.
SAME = 0.3
# A member seconds what another one is sure of already from this share of its own threshold on: thresholds are where
# counts come out right, and two detectors rarely pass them on the same images.
SECONDS = 0.5
# Of a find, this part inside an object's box already makes it a part of that object.
PART_OF = 0.5
# Share of real validation images in which a find that is no object may pass for one: of a store's images, about as many
# are refused wrongly.
FALSE_ALARMS = 0.05


class Member(NamedTuple):
    """A detector with the thresholds that suit it on real validation images."""

    detect: Callable[[Pixels], Detections]
    threshold: float  # of an object: counts come out right
    surprise: float  # of an object that nobody expects there: hardly ever passed where there is none


class Agreed(NamedTuple):
    """What a part of the members sees at one place, averaged by score; ``spread`` is their least overlap with it."""

    box: Box
    label: int
    score: float  # mean over all members; who sees nothing adds 0
    votes: int
    spread: float


def agreements(found: Sequence[Detections], thresholds: Sequence[float], *, iou: float) -> list[Agreed]:
    """All places where some member sees an object, best score first, with how many see it.

    A place begins with a detection above its member's threshold. Of every other member the best one of the same class
    joins, if it overlaps by at least ``iou`` and has at least `SECONDS` of its threshold.

    Args:
        found: what each member found.
        thresholds: of each member.
        iou: overlap from which two boxes mean one object.
    """
    free = [np.flatnonzero(one.scores >= SECONDS * threshold) for one, threshold in zip(found, thresholds, strict=True)]
    free_sets = [set(indices.tolist()) for indices in free]
    sure = [
        (float(one.scores[index]) / max(threshold, 1e-9), member, int(index))
        for member, (one, threshold) in enumerate(zip(found, thresholds, strict=True))
        for index in np.flatnonzero(one.scores >= threshold)
    ]
    places = []
    for _, member, index in sorted(sure, key=lambda entry: (-entry[0], entry[1], entry[2])):
        if index not in free_sets[member]:
            continue
        label, box = int(found[member].labels[index]), found[member].boxes[index]
        joined = [(member, index)]
        free_sets[member].discard(index)
        for other, one in enumerate(found):
            candidates = [i for i in free_sets[other] if int(one.labels[i]) == label] if other != member else []
            if not candidates:
                continue
            overlap = iou_matrix(box[None].astype(np.float64), one.boxes[candidates].astype(np.float64))[0]
            if overlap.max() >= iou:
                best = candidates[int(overlap.argmax())]
                joined.append((other, best))
                free_sets[other].discard(best)
        boxes = np.stack([found[one].boxes[at] for one, at in joined]).astype(np.float64)
        scores = np.array([float(found[one].scores[at]) for one, at in joined])
        mean = (boxes * scores[:, None]).sum(axis=0) / scores.sum() if scores.sum() > 0 else boxes.mean(axis=0)
        x1, y1, x2, y2 = mean.tolist()
        spread = float(iou_matrix(mean[None], boxes).min())
        places.append(Agreed((x1, y1, x2, y2), label, float(scores.sum()) / len(found), len(joined), spread))
    return sorted(places, key=lambda place: -place.score)


class Ensemble:
    """Some members, asked together.

    Args:
        members: at least one.
        agree: how many must see an object; None: more than half.
        iou: overlap from which two members mean one object.
    """

    def __init__(self, members: Sequence[Member], *, agree: int | None = None, iou: float = 0.5) -> None:
        if not members:
            raise ValueError("an ensemble needs at least one detector")
        self.members = tuple(members)
        self.agree = len(members) // 2 + 1 if agree is None else agree
        if not 1 <= self.agree <= len(members):
            raise ValueError(f"agree={agree} must lie between 1 and the number of detectors, {len(members)}")
        self.iou = iou

    def look(self, pixels: Pixels) -> list[Detections]:
        """What each member finds."""
        return [member.detect(pixels) for member in self.members]

    def agreements(self, found: Sequence[Detections]) -> list[Agreed]:
        """All places where some member sees an object."""
        return agreements(found, [member.threshold for member in self.members], iou=self.iou)

    def score(self, found: Sequence[Detections], box: Box, label: int) -> float:
        """Mean over the members of the best score of a detection of this class on ``box``, 0 where there is none."""
        return float(np.mean([_score(one, box, label) for one in found]))

    def sees(self, found: Sequence[Detections], box: Box, label: int) -> bool:
        """Whether enough members find an object of this class on ``box``."""
        votes = [_score(one, box, label) >= member.threshold for one, member in zip(found, self.members, strict=True)]
        return sum(votes) >= self.agree

    def surprises(self, found: Sequence[Detections]) -> list[Agreed]:
        """Objects that enough members see so clearly that they need not be expected there."""
        return [
            place
            for place in agreements(found, [member.surprise for member in self.members], iou=self.iou)
            if place.votes >= self.agree
        ]


def surprise_threshold(samples: Sequence[Sample], detections: Mapping[int, Detections], at_least: float) -> float:
    """The least score that hardly any find beside all objects of these real images passes, ``at_least`` or more.

    It is passed in no more than `FALSE_ALARMS` of the images. Above 1 where even the best scores are false alarms: then
    the detector cannot tell anything new.
    """
    highest = []
    for sample in samples:
        found = detections[sample.image_id]
        alarms = [
            float(score)
            for box, score in zip(found.boxes.tolist(), found.scores.tolist(), strict=True)
            if beside((box[0], box[1], box[2], box[3]), sample.boxes)
        ]
        highest.append(max(alarms, default=0.0))
    allowed = int(FALSE_ALARMS * len(highest))
    worst = sorted(highest, reverse=True)[allowed]
    return max(at_least, float(np.nextafter(worst, 2.0)))


def beside(place: Box, known: Float[np.ndarray, "n 4"]) -> bool:
    """Whether a find is no part of any of the ``known`` boxes, nor the same as one."""
    if len(known) == 0:
        return True
    boxes = known.astype(np.float64)
    corners = np.concatenate(
        [np.maximum(boxes[:, :2], np.array(place[:2])), np.minimum(boxes[:, 2:], np.array(place[2:]))], axis=1
    )
    inside = area_xyxy(corners) / max(float(area_xyxy(np.array(place))), 1e-9)
    return bool(inside.max() < PART_OF and iou_matrix(np.array([place]), boxes).max() < SAME)


def _score(found: Detections, box: Box, label: int) -> float:
    same = found.labels == label
    if not same.any():
        return 0.0
    overlap = iou_matrix(np.array([box], dtype=np.float64), found.boxes[same].astype(np.float64))[0]
    return float(np.where(overlap >= SAME, found.scores[same], 0.0).max())
