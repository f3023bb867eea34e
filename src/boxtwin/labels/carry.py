"""Propagate the boxes of a source to its variation: each is kept, shifted or dropped, and its evidence recorded."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from boxtwin.boxes import Box, iou_matrix
from boxtwin.datasets.image_io import Pixels
from boxtwin.datasets.sample import NO_CROWDS, CrowdAreas, Decision, Detections, Judgement, PropagatedBox
from boxtwin.errors import InputError
from boxtwin.labels.box_evidence import (
    Match,
    Values,
    best_match,
    channels,
    contrast,
    correlation,
    cut,
    response,
    strongest_contrast,
)
from boxtwin.labels.ensemble import SAME_OBJECT, AgreedObject, Ensemble, Member, is_beside
from boxtwin.labels.method import Variations, by_detectors
from boxtwin.labels.options import LabelOptions, NewObjects

# These numbers were set on pairs of simulated scenes of which it is known what became of every ship, other ones than
# those of tests/labels/test_carry_against_truth.py.
PRESENT_RESPONSE = 0.6  # present from here on: 98 of 100 ships in new speckle have more, 99 of 100 empty places less
ABSENT_RESPONSE = 0.3  # absent below, as at 19 of 20 places that a ship has left
LIKELY_RESPONSE = (PRESENT_RESPONSE + ABSENT_RESPONSE) / 2
# Of a match elsewhere: three of four places that a ship has left show nothing above 0.44 around them.
SHIFT_CORRELATION = 0.5
SHIFT_GAIN = 0.15  # by so much its correlation must exceed the one in place; new speckle changes that by less
SEARCH_RADIUS = 12  # pixels around a box: half a ship of median size, and denoising moves objects by less
# Correlation in the box from which on an object is present that has merely faded. Of 146 places that a simulated ship
# had left or lost none correlated by more than 0.55 with what had been there.
SAME_SHAPE = 0.7
LEAST_SHIFT = 2  # pixels: new speckle moves the best match by one
SIMILAR_SIZE = 0.4  # overlap of two boxes laid on each other's centre from which on they may be one object

HALLUCINATED = "hallucinated objects"  # why an image is refused; what follows a colon is about the one image


class _Pair(NamedTuple):
    """A source and its variation."""

    channels: Sequence[tuple[Values, Values]]
    in_source: Sequence[Detections]
    in_variation: Sequence[Detections]


class _Measured(NamedTuple):
    """One box of the source with all that was measured about it."""

    box: Box
    label: int
    match: Match
    matched: Box | None  # where the source's object is clearly present instead, if it is anywhere else
    present: bool  # in its place
    values: dict[str, float]

    def decided(self, decision: Decision, box: Box | None = None) -> PropagatedBox:
        evidence: dict[str, float | None] = {name: round(value, 4) for name, value in self.values.items()}
        evidence = evidence | {name: evidence.get(name) for name in ("detector", "detector_source")}  # None: not asked
        return PropagatedBox(box or self.box, self.label, decision, evidence)


@dataclass
class Carry:
    """Compare every box of the source with the variation, and keep, shift or drop it.

    1. An object is *present* if its `response` is at least `PRESENT_RESPONSE`: most of its shape and brightness is at
       its place. It is absent at `ABSENT_RESPONSE` or below, unless the detectors detect it. In between it is present
       if its shape is (its ``correlation`` tells), merely faded; otherwise the detectors decide if they detected it in
       the source, and if not, whether the response is nearer to `PRESENT_RESPONSE` than to `ABSENT_RESPONSE`.
    2. A box is *shifted* to where the source's object matches best within `SEARCH_RADIUS` pixels (a quarter of the
       longer side of large objects), if the correlation there is at least `SHIFT_CORRELATION`, the response at least
       `PRESENT_RESPONSE`, and no other object is there: when the object is absent from its place, or when the
       correlation exceeds that in place by `SHIFT_GAIN`. A box of an absent object that matches nowhere is shifted to
       what the detectors detect within that radius, if that has the same class and about the same size.
    3. Present objects are otherwise *kept*, absent ones *dropped*.
    4. Objects are hallucinated where the detectors detect one beside all boxes and the source shows no such thing.

    The evidence, per box: ``response``, see above; ``correlation`` of the pixels in the box before and after;
    ``contrast`` and ``contrast_source``, the mean inside the box less that of its surroundings in standard deviations
    of these; ``match``, ``shift_x`` and ``shift_y``, the best normalised cross-correlation around the box and the shift
    to it, and ``match_here``, without a shift; ``detector`` and ``detector_source``, the score at the box.
    """

    new_objects: NewObjects = NewObjects.refuse  # hallucinated ones: refuse the image, label them ("added"), or ignore
    exact: bool = False  # the generator put the objects there itself: all boxes are kept, with their ``contrast`` alone
    detectors: Ensemble | None = None  # None: no detector is asked, and nothing new can be found
    _in_source: dict[bytes, list[Detections]] = field(default_factory=dict)

    def __call__(
        self,
        source: Pixels,
        pixels: Pixels,
        boxes: Float[np.ndarray, "n 4"],
        labels: Int[np.ndarray, " n"],
        image: str = "",  # noqa: ARG002
        crowds: CrowdAreas = NO_CROWDS,
    ) -> Judgement:
        """Judge ``boxes`` (xyxy, pixels); see the class for how. No object is new in a crowd.

        ValueError if the images differ in size.
        """
        if source.shape != pixels.shape:
            raise ValueError(f"a variation must be as large as its source: {source.shape} expected, {pixels.shape} got")
        pair = _Pair(channels(source, pixels), *self._detections(source, pixels))
        claimed: list[Box] = [(x1, y1, x2, y2) for x1, y1, x2, y2 in boxes.tolist()]
        others = [[other for other in claimed if other is not box] for box in claimed]
        labelled = list(zip(claimed, labels.tolist(), others, strict=True))
        if self.exact:
            seen = [round(strongest_contrast(pair.channels, box, beside), 4) for box, _, beside in labelled]
            kept = zip(claimed, labels.tolist(), seen, strict=True)
            return Judgement(tuple(PropagatedBox(box, label, "kept", {"contrast": one}) for box, label, one in kept))
        measured = [self._measure(pair, box, label, beside) for box, label, beside in labelled]
        propagated = self._decide(measured, pair, crowds)
        if self.detectors is None or self.new_objects is NewObjects.ignore:
            return Judgement(tuple(propagated))
        known = np.array([*claimed, *(one.box for one in propagated if one.decision == "shifted")]).reshape(-1, 4)
        places = self.detectors.clearly_new(pair.in_variation, crowds)
        new = [place for place in places if is_beside(place.box, known) and self._is_new(pair, place)]
        if new and self.new_objects is NewObjects.refuse:
            listed = ", ".join(f"[{', '.join(f'{side:.0f}' for side in place.box)}]" for place in new[:5])
            return Judgement(tuple(propagated), refused=f"{HALLUCINATED}: {len(new)}, at {listed}")
        for place in new:
            evidence: dict[str, float | None] = {"detector": round(place.score, 4), "votes": float(place.votes)}
            propagated.append(PropagatedBox(place.box, place.label, "added", evidence))
        return Judgement(tuple(propagated))

    def _detections(self, source: Pixels, pixels: Pixels) -> tuple[list[Detections], list[Detections]]:
        """In the source, which comes with every one of its variations and is processed once, and in the variation."""
        if self.detectors is None:
            return [], []
        key = hashlib.sha256(source.tobytes()).digest()
        if key not in self._in_source:
            self._in_source[key] = self.detectors.detect(source)
        return self._in_source[key], self.detectors.detect(pixels)

    def _measure(self, pair: _Pair, box: Box, label: int, others: Sequence[Box]) -> _Measured:
        # The channel that the object stands out in most.
        source, pixels = max(pair.channels, key=lambda channel: abs(contrast(channel[0], box, others)))
        match = best_match(source, pixels, box, _radius(box))
        x, y = match.shift
        values = {
            "response": response(source, pixels, box, box, others),
            "correlation": correlation(cut(source, box), cut(pixels, box)),
            "contrast": contrast(pixels, box, others),
            "contrast_source": contrast(source, box, others),
            "match": match.score,
            "match_here": match.here,
            "shift_x": float(x),
            "shift_y": float(y),
        }
        is_detected = was_detected = False
        if self.detectors is not None:
            values["detector"] = self.detectors.score(pair.in_variation, box, label)
            values["detector_source"] = self.detectors.score(pair.in_source, box, label)
            is_detected = self.detectors.detects(pair.in_variation, box, label)
            was_detected = self.detectors.detects(pair.in_source, box, label)
        matched = None
        if max(abs(x), abs(y)) >= LEAST_SHIFT and match.score >= SHIFT_CORRELATION:
            place = (box[0] + x, box[1] + y, box[2] + x, box[3] + y)
            matched = place if response(source, pixels, box, place, others) >= PRESENT_RESPONSE else None
        if not ABSENT_RESPONSE < values["response"] < PRESENT_RESPONSE:
            present = is_detected or values["response"] >= PRESENT_RESPONSE
        elif values["correlation"] >= SAME_SHAPE or is_detected:
            present = True
        else:
            present = not was_detected and values["response"] >= LIKELY_RESPONSE
        return _Measured(box, label, match, matched, present, values)

    def _decide(self, measured: Sequence[_Measured], pair: _Pair, crowds: CrowdAreas) -> list[PropagatedBox]:
        new = []  # objects that the detectors detect in the variation alone
        if self.detectors is not None:
            places = self.detectors.agreements(pair.in_variation, crowds)
            new = [place for place in places if place.votes >= self.detectors.agree and self._is_new(pair, place)]
        taken = [one.box for one in measured if one.present]
        decided: dict[int, PropagatedBox] = {}
        # The best match first: of two that are found at one place, the other is somewhere else, or nowhere.
        for index in sorted(range(len(measured)), key=lambda index: -measured[index].match.score):
            one = measured[index]
            others = [box for box in taken if box is not one.box]
            has_shifted = not one.present or one.match.score >= one.match.here + SHIFT_GAIN
            if one.matched is not None and has_shifted and _is_free(one.matched, others):
                taken = [*others, one.matched]
                decided[index] = one.decided("shifted", one.matched)
            elif one.present:
                decided[index] = one.decided("kept")
            elif (place := _nearest(one, new, taken)) is not None:
                taken.append(place)
                decided[index] = one.decided("shifted", place)
            else:
                decided[index] = one.decided("dropped")
        return [decided[index] for index in range(len(measured))]

    def _is_new(self, pair: _Pair, place: AgreedObject) -> bool:
        """Whether the source has no such object at that place."""
        assert self.detectors is not None
        if self.detectors.detects(pair.in_source, place.box, place.label):
            return False
        # Whether the source shows what the variation does: then it is land, a buoy or whatever else deceives detectors.
        source, pixels = max(pair.channels, key=lambda channel: abs(contrast(channel[1], place.box)))
        return response(pixels, source, place.box, place.box) < LIKELY_RESPONSE


def _nearest(one: _Measured, new: Sequence[AgreedObject], taken: Sequence[Box]) -> Box | None:
    """The nearest newly detected object that may be the one of a box."""
    near = []
    box = np.array(one.box)
    for place in new:
        other = np.array(place.box)
        distance = (other[:2] + other[2:] - box[:2] - box[2:]) / 2
        sides = other[2:] - other[:2], box[2:] - box[:2]
        common = np.minimum(*sides).prod()
        is_similar = common / (sides[0].prod() + sides[1].prod() - common) >= SIMILAR_SIZE
        in_reach = np.abs(distance).max() <= _radius(one.box)
        if place.label == one.label and in_reach and is_similar and _is_free(place.box, taken):
            near.append((float(np.hypot(*distance)), place.box))
    return min(near)[1] if near else None


def _radius(box: Box) -> int:
    return max(SEARCH_RADIUS, int(max(box[2] - box[0], box[3] - box[1]) / 4))


def _is_free(place: Box, taken: Sequence[Box]) -> bool:
    return not taken or bool(iou_matrix(np.array([place]), np.array(taken)).max() < SAME_OBJECT)


class CarryLabels:
    """The way to label of `Carry`, for generators that keep objects about where they were."""

    by_hand = False

    def __init__(self, options: LabelOptions, variations: Variations) -> None:
        if variations.boxes == "none":
            what = f"generator={variations.generator} moves things about, so boxes cannot be carried over"
            raise InputError(f"{what}: choose labels=pseudo (detectors find them) or labels=manual (a person does)")
        self._options, self._more = options, by_detectors(variations.dataset)
        self.asks_detectors = variations.boxes != "exact"

    def identity(self) -> dict[str, Any]:
        """All that decides about boxes, by the names of first versions; nothing does about exact ones."""
        if not self.asks_detectors:
            return {"boxes": "exact"}
        return {
            **{"new_objects": str(self._options.new_objects), "sure": PRESENT_RESPONSE, "gone": ABSENT_RESPONSE},
            **{"match": SHIFT_CORRELATION, "better": SHIFT_GAIN, "search": SEARCH_RADIUS},
            **(self._more if self._options.detectors else {}),
        }

    def judge(self, members: Sequence[Member]) -> Carry:
        """By the pixels, and by detectors if there are any."""
        return Carry(self._options.new_objects, not self.asks_detectors, Ensemble(members) if members else None)
