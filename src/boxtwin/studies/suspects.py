"""Labels that the detections of several runs contradict: candidates for a person's eye, never changed by themselves.

The runs are seeds of one condition, which have not been trained on the images. Where more than half of them detect an
object, they agree on it (`boxtwin.labels.ensemble.agreements`). Agreed objects and labels of an image are compared in
this order; each takes part in one suspect at most:

1. an agreed object on a label of its class is that object. The label is *badly placed* if it lies farther from the
   mean of the runs' boxes than any of these does;
2. one on a label of another class: *wrong class*;
3. one that touches a label of its class on which no run detects anything else: *badly placed*;
4. one beside all labels: *missing*;
5. a label without an agreed object: *doubled* if it lies on an agreed object that has a label already, and *spurious*
   if no run detects anything on it, at whatever low confidence.

The score of a suspect lies in [0, 1]. It is the mean over the runs of the confidence of their detections (a run that
detects nothing adds 0), times

- *missing*, *doubled*: 1;
- *wrong class*: 1 minus the same mean for the label's own class;
- *badly placed*: 1 minus the overlap of the label with the agreed box, as a share of the least overlap of a run's box.

A *spurious* label has no detections. Of comparable labels (of its class, nearest in size), a share ``q`` is not seen
either, because detectors miss objects. If one label in fifty has no object (`WITHOUT_OBJECT`), which no run sees, an
unseen label is one of these with the probability ``0.02 / (0.02 + q)``: its score.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Bool, Float

from boxtwin.boxes import Box, area_xyxy, iou_matrix
from boxtwin.datasets.sample import Detections, Sample
from boxtwin.labels.ensemble import SAME_OBJECT, SUPPORT, AgreedObject, agreements, best_score, is_beside

TRAINING = "training"  # side of images that one detector alone has not seen, out of fold
SUSPECTS_FOLDER = "suspects"  # beside the report of a study
LIST_FILE = "suspects.csv"
MARKED_FILE = "corrected_suggestions.json"  # labels as they are, with a list of suspects
SUGGESTED_FILE = "suggestions_applied.json"  # labels as the suspects from `APPLIED_FROM` on suggest them

Kind = Literal["missing", "doubled", "wrong class", "badly placed", "spurious"]
KINDS: tuple[Kind, ...] = get_args(Kind)
ON_LABEL = 0.5  # overlap from which on an agreed object lies on a label: COCO's AP50
TOUCHES = 0.2  # overlap with a label that is far off, but may mean the same object
COMPARABLE = 30  # labels of nearest size, of which the share not seen is taken
LEAST_COMPARABLE = 5  # below which nothing can be said of a label that no run sees
WITHOUT_OBJECT = 0.02  # share of labels that is assumed to have no object
LEAST_SCORE = 0.2  # suspects below it are not listed
APPLIED_FROM = 0.5  # score from which on a suspect is among those that are applied to try them


@dataclass(frozen=True)
class Suspect:
    """One label that may be wrong, or a place that may lack one."""

    kind: Kind
    score: float
    image_id: int
    name: str  # of the image
    index: int | None  # of the label among `Sample.boxes`; None: there is none
    box: Box | None  # of the label, xyxy in pixels
    label: int | None  # its class
    suggested: Box | None  # None: no object
    suggested_label: int | None
    votes: int  # runs that detect the suggested object; of a spurious label, those that see nothing
    runs: int  # whose detections were compared


class Found(NamedTuple):
    """What one run detects, by image id, and its count threshold for each class."""

    detections: Mapping[int, Detections]
    thresholds: Sequence[float]


def find_suspects(samples: Sequence[Sample], runs: Sequence[Found]) -> list[Suspect]:
    """The suspects among the labels of images that no run was trained on, best score first.

    A single run has no other to agree with: its own detections decide, and labels that are off by little are left out.
    """
    if not runs:
        raise ValueError("suspects need the detections of at least one run")
    suspects: list[Suspect] = []
    seen: list[_Seen] = []
    for sample in samples:
        in_image = [run.detections.get(sample.image_id, NOTHING) for run in runs]
        compared = _compare(sample, in_image, [run.thresholds for run in runs])
        suspects += compared[0]
        seen += compared[1]
    suspects += _spurious(seen, len(runs))
    return in_order(suspect for suspect in suspects if suspect.score >= LEAST_SCORE)


def in_order(suspects: Iterable[Suspect]) -> list[Suspect]:
    """Best score first."""
    return sorted(suspects, key=lambda each: (-each.score, each.name, each.kind, each.box or each.suggested))


NOTHING = Detections(np.zeros((0, 4)), np.zeros(0), np.zeros(0, dtype=np.int64))


class _Seen(NamedTuple):
    """A label, and whether no run detects anything there."""

    sample: Sample
    at: int  # among the boxes of the image
    invisible: bool

    @property
    def label(self) -> int:
        return int(self.sample.labels[self.at])

    @property
    def size(self) -> float:
        """Logarithm of its area, square pixels."""
        return float(np.log(max(float(area_xyxy(self.sample.boxes[self.at])), 1e-9)))


def agreed_objects(detections: Sequence[Detections], thresholds: Sequence[Sequence[float]]) -> list[AgreedObject]:
    """Objects that more than half of the runs detect, at most one at a place: the class of the best score."""
    agreed = [place for place in agreements(detections, thresholds) if 2 * place.votes > len(detections)]
    kept: list[AgreedObject] = []
    for place in agreed:
        if not kept or iou_matrix(np.array([place.box]), np.array([each.box for each in kept])).max() < ON_LABEL:
            kept.append(place)
    return kept


def _compare(
    sample: Sample, detections: Sequence[Detections], thresholds: Sequence[Sequence[float]]
) -> tuple[list[Suspect], list[_Seen]]:
    """The suspects of one image but the spurious ones, and what is seen of its labels."""
    places = agreed_objects(detections, thresholds)
    boxes, labels = sample.boxes.astype(np.float64), sample.labels
    overlap = iou_matrix(np.array([place.box for place in places]).reshape(-1, 4), boxes)
    same = np.array([place.label for place in places], dtype=np.int64)[:, None] == labels[None]
    single = ~sample.crowd[None]

    def suspect(kind: Kind, score: float, index: int | None, place: AgreedObject, *, remains: bool = True) -> Suspect:
        box, label = (None, None) if index is None else (_box(boxes[index]), int(labels[index]))
        suggested, of_class = (place.box, place.label) if remains else (None, None)
        votes = (place.votes, len(detections))
        return Suspect(kind, score, sample.image_id, sample.name, index, box, label, suggested, of_class, *votes)

    least = np.array(thresholds)[:, labels] * SUPPORT  # (runs, labels)
    on_labels = [_support(detections, box, label, ON_LABEL) for box, label in zip(boxes, labels.tolist(), strict=True)]
    # Labels that some run sees as an object of their own, be it faintly.
    own = (least <= np.array(on_labels).reshape(-1, len(detections)).T).any(axis=0)
    suspects = []
    # 1. Agreed objects on labels of their class.
    on_label = _pairs(np.where(same & single & (overlap >= ON_LABEL), overlap, 0))
    free_places, free_labels = set(range(len(places))) - {p for p, _ in on_label}, set(range(len(boxes)))
    free_labels -= {label for _, label in on_label} | set(np.flatnonzero(sample.crowd).tolist())
    for at, index in on_label if len(detections) > 1 else ():
        if overlap[at, index] < places[at].spread:
            score = places[at].score * (1 - float(overlap[at, index]) / places[at].spread)
            suspects.append(suspect("badly placed", score, index, places[at]))
    # 2. On labels of another class, 3. touching labels of their class.
    touching: tuple[tuple[Kind, Bool[np.ndarray, "places labels"]], ...] = (
        ("wrong class", ~same & single & (overlap >= ON_LABEL)),
        ("badly placed", same & single & ~own & (overlap >= TOUCHES)),
    )
    for kind, allowed in touching:
        free = np.zeros_like(allowed)
        free[np.ix_(sorted(free_places), sorted(free_labels))] = True
        for at, index in _pairs(np.where(allowed & free, overlap, 0)):
            lacking = overlap[at, index] / places[at].spread
            if kind == "wrong class":
                lacking = _support(detections, boxes[index], int(labels[index])).mean()
            suspects.append(suspect(kind, places[at].score * (1 - min(float(lacking), 1.0)), index, places[at]))
            free_places.discard(at)
            free_labels.discard(index)
    # 4. Beside all labels, crowds too.
    beside = [places[at] for at in sorted(free_places) if is_beside(places[at].box, sample.boxes)]
    suspects += [suspect("missing", place.score, None, place) for place in beside]
    # 5. Labels without an agreed object.
    taken = {at for at, _ in on_label}
    seen = []
    for index in np.flatnonzero(~sample.crowd).tolist():
        best = _support(detections, boxes[index], int(labels[index]))
        on_same = [at for at in taken if same[at, index] and overlap[at, index] >= ON_LABEL]
        if index in free_labels and on_same:
            suspects.append(suspect("doubled", places[on_same[0]].score, index, places[on_same[0]], remains=False))
            free_labels.discard(index)
        invisible = index in free_labels and bool((best < least[:, index]).all())
        seen.append(_Seen(sample, index, invisible))
    return suspects, seen


def _spurious(seen: Sequence[_Seen], runs: int) -> list[Suspect]:
    """Labels on which no run detects anything, by how many comparable labels are not seen either."""
    suspects = []
    sizes, labels = np.array([one.size for one in seen]), np.array([one.label for one in seen])
    invisible = np.array([one.invisible for one in seen])
    for place, one in enumerate(seen):
        if not one.invisible:
            continue
        others = np.flatnonzero((labels == one.label) & (np.arange(len(seen)) != place))
        nearest = others[np.argsort(abs(sizes[others] - one.size), kind="stable")[:COMPARABLE]]
        if len(nearest) >= LEAST_COMPARABLE:
            unseen = (int(invisible[nearest].sum()) + 1) / (len(nearest) + 2)  # never 0: Laplace's rule of succession
            score, box = WITHOUT_OBJECT / (WITHOUT_OBJECT + unseen), _box(one.sample.boxes[one.at])
            identity = (one.sample.image_id, one.sample.name, one.at, box, one.label)
            suspects.append(Suspect("spurious", score, *identity, None, None, runs, runs))
    return suspects


def _pairs(overlap: Float[np.ndarray, "places labels"]) -> list[tuple[int, int]]:
    """Places and labels that belong together, the greatest overlap first, each at most once; 0 is none."""
    pairs: list[tuple[int, int]] = []
    remaining = overlap.copy()
    while remaining.size and remaining.max() > 0:
        at, index = np.unravel_index(int(remaining.argmax()), remaining.shape)
        pairs.append((int(at), int(index)))
        remaining[at], remaining[:, index] = 0, 0
    return pairs


def _support(
    detections: Sequence[Detections], box: np.ndarray, label: int, on: float = SAME_OBJECT
) -> Float[np.ndarray, " runs"]:
    """Of each run the best score of a detection of a class on a box, 0 where there is none."""
    return np.array([best_score(one, box, label, on) for one in detections])


def _box(values: np.ndarray) -> Box:
    x1, y1, x2, y2 = (float(value) for value in values)
    return x1, y1, x2, y2
