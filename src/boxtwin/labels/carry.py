"""Propagate the boxes of a source to its variation: each is kept, shifted or dropped, and its evidence recorded."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from boxtwin.boxes import Box, iou_matrix
from boxtwin.datasets.image_io import Pixels
from boxtwin.datasets.sample import Decision, Detections, Judgement, PropagatedBox
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
from boxtwin.labels.method import Variations
from boxtwin.labels.options import LabelOptions, NewObjects

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


@dataclass(frozen=True)
class _Measured:
    """One box of the source with all that was measured about it."""

    box: Box
    label: int
    match: Match
    shifted: Box | None  # where the source's object is found instead, if it is found anywhere else
    shifted_response: float
    detected: bool  # by enough members, in the variation
    detected_in_source: bool
    measured: dict[str, float]

    def decided(self, decision: Decision, box: Box | None = None) -> PropagatedBox:
        evidence: dict[str, float | None] = {name: round(value, 4) for name, value in self.measured.items()}
        evidence = evidence | {name: evidence.get(name) for name in ("detector", "detector_source")}  # None: not asked
        return PropagatedBox(box or self.box, self.label, decision, evidence)


class Carry:
    """Compare every box of the source with the variation, and keep, shift or drop it.

    1. An object is *present* if its `response` is at least ``present_response``: most of its shape and brightness is at
       its place. It is absent at ``absent_response`` or below, unless the detectors detect it. In between it is present
       if its shape is (its ``correlation`` tells), merely faded; otherwise the detectors decide if they detected it in
       the source, and if not, whether the response is nearer to ``present_response`` than to ``absent_response``.
    2. A box is *shifted* to where the source's object matches best within ``search_radius`` pixels, if the correlation
       there is at least ``shift_correlation``, the response at least ``present_response``, and no other object is
       there: when the object is absent from its place, or when the correlation exceeds that in place by ``shift_gain``.
       A box of an absent object that matches nowhere is shifted to what the detectors detect within ``search_radius``
       pixels, if that has the same class and about the same size.
    3. Present objects are otherwise *kept*, absent ones *dropped*.
    4. Objects are hallucinated where the detectors detect one beside all boxes and the source shows no such thing.

    Generators that put the objects where they say they are have all their boxes kept. Their evidence is the
    ``contrast`` alone, the mean inside the box less that of its surroundings in standard deviations of these.

    The evidence, per box: ``response``, see above; ``correlation`` of the pixels in the box before and after;
    ``contrast`` and ``contrast_source``; ``match``, ``shift_x`` and ``shift_y``, the best normalised cross-correlation
    around the box and the shift to it, and ``match_here``, without a shift; ``detector`` and ``detector_source``, the
    score at the box.

    Args:
        options: None for the defaults. ``new_objects`` says what is done with hallucinated objects: the image is
            refused, they are labelled ("added"), or nothing. Large objects are searched within a quarter of their
            longer side, if that is more than ``search_radius``.
        exact: whether the generator put the objects there itself.
        detectors: None: no detector is asked, and nothing new can be found.
    """

    def __init__(
        self, options: LabelOptions | None = None, *, exact: bool = False, detectors: Ensemble | None = None
    ) -> None:
        self.options = options or LabelOptions()
        self.exact, self.detectors = exact, detectors
        self._in_source: dict[bytes, list[Detections]] = {}

    def __call__(
        self,
        source: Pixels,
        pixels: Pixels,
        boxes: Float[np.ndarray, "n 4"],
        labels: Int[np.ndarray, " n"],
        image: str = "",  # noqa: ARG002
    ) -> Judgement:
        """Judge ``boxes`` (xyxy, pixels); see the class for how.

        Raises:
            ValueError: source and variation differ in size.
        """
        if source.shape != pixels.shape:
            raise ValueError(f"a variation must be as large as its source: {source.shape} expected, {pixels.shape} got")
        pair = _Pair(channels(source, pixels), *self._detections(source, pixels))
        claimed: list[Box] = [(x1, y1, x2, y2) for x1, y1, x2, y2 in boxes.tolist()]
        others = [[other for other in claimed if other is not box] for box in claimed]
        labelled = list(zip(claimed, labels.tolist(), others, strict=True))
        if self.exact:
            kept = []
            for box, label, beside in labelled:
                visible = round(strongest_contrast(pair.channels, box, beside), 4)
                kept.append(PropagatedBox(box, label, "kept", {"contrast": visible}))
            return Judgement(tuple(kept))
        propagated = self._decide([self._measure(pair, box, label, beside) for box, label, beside in labelled], pair)
        if self.detectors is None or self.options.new_objects is NewObjects.ignore:
            return Judgement(tuple(propagated))
        known = np.array([*claimed, *(one.box for one in propagated if one.decision == "shifted")]).reshape(-1, 4)
        new = [
            place
            for place in self.detectors.clearly_new(pair.in_variation)
            if is_beside(place.box, known) and self._is_new(pair, place)
        ]
        if new and self.options.new_objects is NewObjects.refuse:
            places = ", ".join(f"[{', '.join(f'{side:.0f}' for side in place.box)}]" for place in new[:5])
            return Judgement(tuple(propagated), refused=f"{HALLUCINATED}: {len(new)}, at {places}")
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
        source, values = max(pair.channels, key=lambda channel: abs(contrast(channel[0], box, others)))
        match = best_match(source, values, box, self._radius(box))
        x, y = match.shift
        shifted = (box[0] + x, box[1] + y, box[2] + x, box[3] + y) if max(abs(x), abs(y)) >= LEAST_SHIFT else None
        measured = {
            "response": response(source, values, box, box, others),
            "correlation": correlation(cut(source, box), cut(values, box)),
            "contrast": contrast(values, box, others),
            "contrast_source": contrast(source, box, others),
            "match": match.score,
            "match_here": match.here,
            "shift_x": float(x),
            "shift_y": float(y),
        }
        if self.detectors is not None:
            measured["detector"] = self.detectors.score(pair.in_variation, box, label)
            measured["detector_source"] = self.detectors.score(pair.in_source, box, label)
        return _Measured(
            box=box,
            label=label,
            match=match,
            shifted=shifted,
            shifted_response=0.0 if shifted is None else response(source, values, box, shifted, others),
            detected=self.detectors is not None and self.detectors.detects(pair.in_variation, box, label),
            detected_in_source=self.detectors is not None and self.detectors.detects(pair.in_source, box, label),
            measured=measured,
        )

    @property
    def _likely_response(self) -> float:
        return (self.options.present_response + self.options.absent_response) / 2

    def _is_present(self, one: _Measured) -> bool:
        share = one.measured["response"]
        if share >= self.options.present_response:
            return True
        if share <= self.options.absent_response:
            return one.detected
        if one.measured["correlation"] >= SAME_SHAPE:
            return True
        return one.detected if one.detected_in_source or one.detected else share >= self._likely_response

    def _decide(self, measured: Sequence[_Measured], pair: _Pair) -> list[PropagatedBox]:
        new = []  # objects that the detectors detect in the variation alone
        if self.detectors is not None:
            places = self.detectors.agreements(pair.in_variation)
            new = [place for place in places if place.votes >= self.detectors.agree and self._is_new(pair, place)]
        present = [self._is_present(one) for one in measured]
        taken = [one.box for one, is_present in zip(measured, present, strict=True) if is_present]
        decided: dict[int, PropagatedBox] = {}
        # The best match first: of two that are found at one place, the other is somewhere else, or nowhere.
        for index in sorted(range(len(measured)), key=lambda index: -measured[index].match.score):
            one = measured[index]
            others = [box for box in taken if box is not one.box]
            if one.shifted is not None and self._has_shifted(one, present[index]) and _is_free(one.shifted, others):
                taken = [*others, one.shifted]
                decided[index] = one.decided("shifted", one.shifted)
            elif present[index]:
                decided[index] = one.decided("kept")
            elif (place := self._nearest(one, new, taken)) is not None:
                taken.append(place)
                decided[index] = one.decided("shifted", place)
            else:
                decided[index] = one.decided("dropped")
        return [decided[index] for index in range(len(measured))]

    def _has_shifted(self, one: _Measured, present: bool) -> bool:
        options = self.options
        if one.match.score < options.shift_correlation or one.shifted_response < options.present_response:
            return False
        return not present or one.match.score >= one.match.here + options.shift_gain

    def _nearest(self, one: _Measured, new: Sequence[AgreedObject], taken: Sequence[Box]) -> Box | None:
        """The nearest newly detected object that may be the one of a box."""
        near = []
        box = np.array(one.box)
        for place in new:
            other = np.array(place.box)
            distance = (other[:2] + other[2:] - box[:2] - box[2:]) / 2
            sides = other[2:] - other[:2], box[2:] - box[:2]
            common = np.minimum(*sides).prod()
            is_similar = common / (sides[0].prod() + sides[1].prod() - common) >= SIMILAR_SIZE
            in_reach = np.abs(distance).max() <= self._radius(one.box)
            if place.label == one.label and in_reach and is_similar and _is_free(place.box, taken):
                near.append((float(np.hypot(*distance)), place.box))
        return min(near)[1] if near else None

    def _radius(self, box: Box) -> int:
        return max(self.options.search_radius, int(max(box[2] - box[0], box[3] - box[1]) / 4))

    def _is_new(self, pair: _Pair, place: AgreedObject) -> bool:
        """Whether the source has no such object at that place."""
        assert self.detectors is not None
        if self.detectors.detects(pair.in_source, place.box, place.label):
            return False
        # Whether the source shows what the variation does: then it is land, a buoy or whatever else deceives detectors.
        source, values = max(pair.channels, key=lambda channel: abs(contrast(channel[1], place.box)))
        return response(values, source, place.box, place.box) < self._likely_response


class CarryLabels:
    """The way to label of `Carry`, for generators that keep objects about where they were."""

    by_hand = False

    def __init__(self, options: LabelOptions, variations: Variations) -> None:
        if variations.boxes == "none":
            raise InputError(
                f"generator={variations.generator} moves things about, so boxes cannot be carried over: choose "
                "labels=pseudo (detectors find them) or labels=manual (a person does)"
            )
        self._options = options
        self.asks_detectors = variations.boxes != "exact"

    def identity(self) -> dict[str, Any]:
        """The settings, by the names of first versions; of exact boxes no decision follows from them."""
        if not self.asks_detectors:
            return {"boxes": "exact"}
        options = self._options
        return {
            **{"new_objects": options.new_objects.name, "sure": options.present_response},
            **{"gone": options.absent_response, "match": options.shift_correlation},
            **{"better": options.shift_gain, "search": options.search_radius},
        }

    def judge(self, members: Sequence[Member]) -> Carry:
        """By the pixels, and by detectors if there are any."""
        return Carry(self._options, exact=not self.asks_detectors, detectors=Ensemble(members) if members else None)


def _is_free(place: Box, taken: Sequence[Box]) -> bool:
    return not taken or bool(iou_matrix(np.array([place]), np.array(taken)).max() < SAME_OBJECT)
