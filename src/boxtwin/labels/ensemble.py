"""Ensembles of detectors trained on real images only: their detections in one image, and where they agree.

Detectors are callables, so that this package needs no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from boxtwin.boxes import Box, iou_matrix, shares_inside
from boxtwin.datasets.image_io import Pixels
from boxtwin.datasets.sample import CrowdAreas, Detections, Sample

# Least overlap of a detection and the object that it means: a box of 4 pixels, one pixel off in x and y, has 0.39.
SAME_OBJECT = 0.3
AGREED_OVERLAP = 0.5  # of boxes of two members that mean one object: COCO's AP50
# Share of its threshold from which on a member's detection supports one of another member. Thresholds are chosen to get
# counts right, and two detectors rarely pass theirs on the same images.
SUPPORT = 0.5
PART_OF_OBJECT = 0.5  # share of a detection inside an object's box from which on it is a part of that object
# Share of real validation images in which a false detection may pass for an object. Of a store's images, about as many
# are refused wrongly.
FALSE_ALARMS = 0.05


class Member(NamedTuple):
    """A detector and its thresholds, chosen on real validation images."""

    detect: Callable[[Pixels], Detections]
    thresholds: tuple[float, ...]  # of an object of each class: counts come out right
    new_thresholds: tuple[float, ...]  # of one that the source lacks, not lower: hardly ever passed where none is


class AgreedObject(NamedTuple):
    """What one or more members detect at one place, averaged by score."""

    box: Box
    label: int
    score: float  # mean over all members; who detects nothing adds 0
    votes: int
    spread: float  # least overlap of a member's box with the mean


def agreements(
    detections: Sequence[Detections], thresholds: Sequence[float] | Sequence[Sequence[float]]
) -> list[AgreedObject]:
    """All places where some member detects an object, best score first.

    A place begins with a detection above its member's threshold. Of every other member the best one of the same class
    joins, if it overlaps by at least `AGREED_OVERLAP` and has at least `SUPPORT` of its threshold.

    Args:
        thresholds: of each member, one for all classes or one for each class.
    """
    least = [
        np.full(len(one.scores), of_one) if isinstance(of_one, float | int) else np.array(of_one)[one.labels]
        for one, of_one in zip(detections, thresholds, strict=True)
    ]
    members = list(enumerate(zip(detections, least, strict=True)))
    unused = [set(np.flatnonzero(one.scores >= SUPPORT * threshold).tolist()) for _, (one, threshold) in members]
    begins = sorted(
        (-float(one.scores[index]) / max(float(threshold[index]), 1e-9), member, index)
        for member, (one, threshold) in members
        for index in np.flatnonzero(one.scores >= threshold).tolist()
    )
    places = []
    for _, member, index in begins:
        if index not in unused[member]:
            continue
        label, box = int(detections[member].labels[index]), detections[member].boxes[index]
        joined = [(member, index)]
        for other, one in enumerate(detections):
            candidates = [i for i in unused[other] if int(one.labels[i]) == label] if other != member else []
            if candidates:
                overlap = iou_matrix(box[None].astype(np.float64), one.boxes[candidates].astype(np.float64))[0]
                if overlap.max() >= AGREED_OVERLAP:
                    joined.append((other, candidates[int(overlap.argmax())]))
        for one_member, used in joined:
            unused[one_member].discard(used)
        boxes = np.stack([detections[one].boxes[at] for one, at in joined]).astype(np.float64)
        scores = np.array([float(detections[one].scores[at]) for one, at in joined])
        mean = (boxes * scores[:, None]).sum(axis=0) / scores.sum() if scores.sum() > 0 else boxes.mean(axis=0)
        x1, y1, x2, y2 = mean.tolist()
        spread = float(iou_matrix(mean[None], boxes).min())
        places.append(AgreedObject((x1, y1, x2, y2), label, float(scores.sum()) / len(members), len(joined), spread))
    return sorted(places, key=lambda place: -place.score)


class Ensemble:
    """At least one detector, of which ``agree`` must detect an object (None: more than half)."""

    def __init__(self, members: Sequence[Member], *, agree: int | None = None) -> None:
        if not members:
            raise ValueError("an ensemble needs at least one detector")
        self.members = tuple(members)
        self.agree = len(members) // 2 + 1 if agree is None else agree

    def detect(self, pixels: Pixels) -> list[Detections]:
        """Detections of each member."""
        return [member.detect(pixels) for member in self.members]

    def agreements(self, detections: Sequence[Detections], crowds: CrowdAreas) -> list[AgreedObject]:
        """All places where some member detects an object that belongs to no crowd."""
        places = agreements(detections, [member.thresholds for member in self.members])
        return [place for place in places if not crowds.hold(place.box, place.label)]

    def clearly_new(self, detections: Sequence[Detections], crowds: CrowdAreas) -> list[AgreedObject]:
        """Objects of no crowd that enough members detect above their `Member.new_thresholds`."""
        places = agreements(detections, [member.new_thresholds for member in self.members])
        return [place for place in places if place.votes >= self.agree and not crowds.hold(place.box, place.label)]

    def score(self, detections: Sequence[Detections], box: Box, label: int) -> float:
        """Mean over the members of the best score of a detection of this class on ``box``, 0 where there is none."""
        return float(np.mean([best_score(one, box, label) for one in detections]))

    def detects(self, detections: Sequence[Detections], box: Box, label: int) -> bool:
        """Whether enough members detect an object of this class on ``box``."""
        votes = [
            best_score(one, box, label) >= member.thresholds[label]
            for one, member in zip(detections, self.members, strict=True)
        ]
        return sum(votes) >= self.agree


def new_object_threshold(samples: Sequence[Sample], detections: Mapping[int, Detections], at_least: float) -> float:
    """The least score, ``at_least`` or more, that false detections pass in at most `FALSE_ALARMS` of real images.

    Above 1 where even the best scores are false: then the detector cannot show anything new.
    """
    highest = []
    for sample in samples:
        boxes, scores, _ = detections[sample.image_id]
        scored = zip(boxes.tolist(), scores.tolist(), strict=True)
        highest.append(max((score for box, score in scored if is_beside(box, sample.boxes)), default=0.0))
    worst = sorted(highest, reverse=True)[int(FALSE_ALARMS * len(highest))]
    return max(at_least, float(np.nextafter(worst, 2.0)))


def is_beside(place: Sequence[float], known: Float[np.ndarray, "n 4"]) -> bool:
    """Whether a detection (xyxy) is neither one of the ``known`` boxes nor a part of one."""
    if len(known) == 0:
        return True
    box, boxes = np.array(place), known.astype(np.float64)
    return bool(shares_inside(box, boxes).max() < PART_OF_OBJECT and iou_matrix(box[None], boxes).max() < SAME_OBJECT)


def best_score(detections: Detections, box: Sequence[float] | np.ndarray, label: int, on: float = SAME_OBJECT) -> float:
    """The best score of a detection of a class on a box (xyxy) with an overlap (IoU) of ``on``; 0 if there is none."""
    overlap = iou_matrix(np.array([box], dtype=np.float64), detections.boxes.astype(np.float64))[0]
    return float(detections.scores[(overlap >= on) & (detections.labels == label)].max(initial=0.0))
