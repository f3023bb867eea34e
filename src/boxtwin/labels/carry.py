"""Carrying the boxes of a source over to its variation: each is kept, shifted or dropped, with the evidence for it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from boxtwin.boxes import Box, iou_matrix
from boxtwin.datasets.image_io import Pixels
from boxtwin.datasets.sample import CarriedBox, Detections, Judgement
from boxtwin.errors import InputError
from boxtwin.labels.box_evidence import Match, Values, best_match, channels, contrast, correlation, cut, response
from boxtwin.labels.ensemble import SAME, Agreed, Ensemble, Member, beside
from boxtwin.labels.method import Variations, settings_of
from boxtwin.labels.options import LabelOptions, NewObjects

# Correlation in the box from which on an object is there that has merely faded. Of 146 places that a simulated ship had
# left or lost none correlated by more than 0.55 with what had been there.
SAME_SHAPE = 0.7
# A way of one pixel is within what new speckle does to the place of the best match.
LEAST_SHIFT = 2
# Overlap of two boxes laid on each other's centre from which on they may be one object.
ALIKE = 0.4

OUT_OF_NOTHING = "objects out of nothing"  # why an image is refused; what follows a colon is about the one image


@dataclass(frozen=True)
class _Seen:
    """One box with all that was measured about it."""

    box: Box
    label: int
    response: float
    correlation: float
    contrast: float
    contrast_source: float
    match: Match
    moved: Box | None  # where the source's object is found instead, if it is found anywhere else
    moved_response: float
    detector: float | None  # mean score at the box, in the variation and in the source
    detector_source: float | None
    sees: bool
    sees_source: bool

    def evidence(self) -> dict[str, float | None]:
        measured = {
            "response": self.response,
            "correlation": self.correlation,
            "contrast": self.contrast,
            "contrast_source": self.contrast_source,
            "match": self.match.score,
            "match_here": self.match.here,
            "shift_x": float(self.match.shift[0]),
            "shift_y": float(self.match.shift[1]),
            "detector": self.detector,
            "detector_source": self.detector_source,
        }
        return {name: value if value is None else round(value, 4) for name, value in measured.items()}


class Carry:
    """Look at every box of the source in the variation, and keep, shift or drop it.

    1. A box is *there* if its `response` is at least ``sure``: most of the object's shape and brightness is at its
       place. It is not there at ``gone`` or below, unless the detectors see it. In between it is there if its
       shape is, merely faded (its ``correlation`` tells); otherwise the detectors decide if they saw the object in the
       source, and if not, whether the response is nearer to ``sure`` than to ``gone``.
    2. A box is *shifted* to where the source's object matches best within ``search`` pixels, if it matches by at least
       ``match`` there, its response there is at least ``sure``, and nothing else stands there: when it is not there,
       or when it matches better by ``better`` than at its own place.
       A box that is not there and matches nowhere is shifted to what the detectors see within ``search`` pixels, if
       that has the same class and about the same size.
    3. All others are *dropped*.
    4. What the detectors see where there is no box, and no such thing in the source, has appeared out of nothing.

    Generators that put the objects where they say they are have all their boxes kept. The source may have nothing
    there, and nothing to compare with: their evidence is the ``contrast`` alone, which tells faint objects.

    The evidence, per box: ``response``, see above; ``correlation``, Pearson's, of the pixels in the box before and
    after; ``contrast`` and ``contrast_source``, the mean inside the box less that of its surroundings in standard
    deviations of these; ``match``, ``shift_x`` and ``shift_y``, the best normalised cross-correlation around the box
    and the way there, and ``match_here``, without a way; ``detector`` and ``detector_source``, the score at the box.

    Args:
        options: None for the defaults. ``new_objects`` says what becomes of an image with objects out of nothing: it
            is refused, they are labelled ("added"), or nothing. ``sure`` and ``gone``, see above, are shares of the
            object; ``match`` and ``better`` are correlations. Objects are looked for within ``search`` pixels; large
            ones within a quarter of their longer side, if that is more.
        exact: whether the generator put the objects there itself.
        detectors: None: no detector looks, and nothing new can be found.
    """

    name = "carry"

    def __init__(
        self, options: LabelOptions | None = None, *, exact: bool = False, detectors: Ensemble | None = None
    ) -> None:
        options = options or LabelOptions()
        self.exact, self.detectors, self.new_objects = exact, detectors, options.new_objects
        self.sure, self.gone, self.match, self.better = options.sure, options.gone, options.match, options.better
        self.search = options.search
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
        pairs = channels(source, pixels)
        found = self.detectors.look(pixels) if self.detectors else []
        before = self._look_at_source(source) if self.detectors else []
        claimed = [(x1, y1, x2, y2) for x1, y1, x2, y2 in boxes.tolist()]
        if self.exact:
            return Judgement(
                tuple(
                    CarriedBox(box, label, "kept", {"contrast": round(_stands_out(pairs, box, claimed), 4)})
                    for box, label in zip(claimed, labels.tolist(), strict=True)
                )
            )
        seen = [
            self._look(pairs, box, label, claimed, found, before)
            for box, label in zip(claimed, labels.tolist(), strict=True)
        ]
        carried = self._decide(seen, self._sightings(pairs, found, before))
        if self.detectors is None or self.new_objects is NewObjects.ignore:
            return Judgement(tuple(carried))
        new = self._new(pairs, found, before, [*claimed, *(one.box for one in carried if one.decision == "shifted")])
        if new and self.new_objects is NewObjects.refuse:
            places = ", ".join(f"[{', '.join(f'{side:.0f}' for side in place.box)}]" for place in new[:5])
            return Judgement(tuple(carried), refused=f"{OUT_OF_NOTHING}: {len(new)}, at {places}")
        added = [
            CarriedBox(
                place.box, place.label, "added", {"detector": round(place.score, 4), "votes": float(place.votes)}
            )
            for place in new
        ]
        return Judgement((*carried, *added))

    def _look(
        self,
        pairs: Sequence[tuple[Values, Values]],
        box: Box,
        label: int,
        claimed: Sequence[Box],
        found: Sequence[Detections],
        before: Sequence[Detections],
    ) -> _Seen:
        others = [other for other in claimed if other is not box]
        # The channel that the object stands out in most.
        source, values = max(pairs, key=lambda pair: abs(contrast(pair[0], box, others)))
        match = best_match(source, values, box, self._radius(box))
        moved, moved_response = None, 0.0
        if max(abs(match.shift[0]), abs(match.shift[1])) >= LEAST_SHIFT:
            moved = _moved(box, match.shift)
            moved_response = response(source, values, box, moved, others)
        looks = self.detectors
        return _Seen(
            box=box,
            label=label,
            response=response(source, values, box, box, others),
            correlation=correlation(cut(source, box), cut(values, box)),
            contrast=contrast(values, box, others),
            contrast_source=contrast(source, box, others),
            match=match,
            moved=moved,
            moved_response=moved_response,
            detector=looks.score(found, box, label) if looks else None,
            detector_source=looks.score(before, box, label) if looks else None,
            sees=looks.sees(found, box, label) if looks else False,
            sees_source=looks.sees(before, box, label) if looks else False,
        )

    def _is_there(self, seen: _Seen) -> bool:
        if seen.response >= self.sure:
            return True
        if seen.response <= self.gone:
            return seen.sees
        if seen.correlation >= SAME_SHAPE:
            return True
        if seen.sees_source or seen.sees:
            return seen.sees
        return seen.response >= (self.sure + self.gone) / 2

    def _decide(self, seen: Sequence[_Seen], sightings: Sequence[Agreed]) -> list[CarriedBox]:
        there = [self._is_there(one) for one in seen]
        taken = [one.box for one, is_there in zip(seen, there, strict=True) if is_there]
        final: dict[int, CarriedBox] = {}
        # The best match first: of two that are found at one place, the other is somewhere else, or nowhere.
        for index in sorted(range(len(seen)), key=lambda index: -seen[index].match.score):
            one = seen[index]
            others = [box for box in taken if box is not one.box]
            if one.moved is not None and self._has_moved(one, there[index]) and _free(one.moved, others):
                if there[index]:
                    taken = others
                taken.append(one.moved)
                final[index] = CarriedBox(one.moved, one.label, "shifted", one.evidence())
            elif there[index]:
                final[index] = CarriedBox(one.box, one.label, "kept", one.evidence())
            elif (place := self._sighting_of(one, sightings, taken)) is not None:
                taken.append(place)
                final[index] = CarriedBox(place, one.label, "shifted", one.evidence())
            else:
                final[index] = CarriedBox(one.box, one.label, "dropped", one.evidence())
        return [final[index] for index in range(len(seen))]

    def _has_moved(self, seen: _Seen, there: bool) -> bool:
        if seen.match.score < self.match or seen.moved_response < self.sure:
            return False
        return not there or seen.match.score >= seen.match.here + self.better

    def _sighting_of(self, seen: _Seen, sightings: Sequence[Agreed], taken: Sequence[Box]) -> Box | None:
        """The nearest new sighting that may be the object, if there is one."""
        radius = self._radius(seen.box)
        near = []
        for place in sightings:
            by = (np.array(place.box[:2]) + place.box[2:] - seen.box[:2] - seen.box[2:]) / 2
            sides = np.array(place.box[2:]) - place.box[:2], np.array(seen.box[2:]) - seen.box[:2]
            common = np.minimum(*sides).prod()
            alike = common / (sides[0].prod() + sides[1].prod() - common) >= ALIKE
            if place.label == seen.label and np.abs(by).max() <= radius and alike and _free(place.box, taken):
                near.append((float(np.hypot(*by)), place.box))
        return min(near)[1] if near else None

    def _radius(self, box: Box) -> int:
        return max(self.search, int(max(box[2] - box[0], box[3] - box[1]) / 4))

    def _sightings(
        self,
        pairs: Sequence[tuple[Values, Values]],
        found: Sequence[Detections],
        before: Sequence[Detections],
    ) -> list[Agreed]:
        """What the detectors see in the variation and the source does not have at that place."""
        if self.detectors is None:
            return []
        agreed = [place for place in self.detectors.agreements(found) if place.votes >= self.detectors.agree]
        return [place for place in agreed if self._is_new(pairs, before, place)]

    def _new(
        self,
        pairs: Sequence[tuple[Values, Values]],
        found: Sequence[Detections],
        before: Sequence[Detections],
        known: Sequence[Box],
    ) -> list[Agreed]:
        """What the detectors see beside all ``known`` boxes and what the source does not have."""
        assert self.detectors is not None
        surprises = self.detectors.surprises(found)
        return [
            place
            for place in surprises
            if beside(place.box, np.array(known).reshape(-1, 4)) and self._is_new(pairs, before, place)
        ]

    def _is_new(self, pairs: Sequence[tuple[Values, Values]], before: Sequence[Detections], place: Agreed) -> bool:
        """Whether the source has no such thing at that place."""
        assert self.detectors is not None
        if self.detectors.sees(before, place.box, place.label):
            return False
        # The other way round: is this, as the variation shows it, in the source? Land, buoys and whatever else deceives
        # a detector is.
        source, values = max(pairs, key=lambda pair: abs(contrast(pair[1], place.box)))
        return response(values, source, place.box, place.box) < (self.sure + self.gone) / 2

    def _look_at_source(self, source: Pixels) -> list[Detections]:
        """A source comes with every one of its variations, and is looked at once."""
        assert self.detectors is not None
        key = hashlib.sha256(source.tobytes()).digest()
        if key not in self._in_source:
            self._in_source[key] = self.detectors.look(source)
        return self._in_source[key]


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
        """The settings; of exact boxes no decision follows from them."""
        if not self.asks_detectors:
            return {"boxes": "exact"}
        return settings_of(self._options, "new_objects", "sure", "gone", "match", "better", "search")

    def judge(self, members: Sequence[Member]) -> Carry:
        """By the pixels, and by detectors if there are any."""
        return Carry(self._options, exact=not self.asks_detectors, detectors=Ensemble(members) if members else None)


def _stands_out(pairs: Sequence[tuple[Values, Values]], box: Box, claimed: Sequence[Box]) -> float:
    """`contrast` in the variation, in the channel where it is greatest."""
    others = [other for other in claimed if other is not box]
    return max((contrast(values, box, others) for _, values in pairs), key=abs)


def _moved(box: Box, shift: tuple[int, int]) -> Box:
    return box[0] + shift[0], box[1] + shift[1], box[2] + shift[0], box[3] + shift[1]


def _free(place: Box, taken: Sequence[Box]) -> bool:
    if not taken:
        return True
    return bool(iou_matrix(np.array([place]), np.array(taken)).max() < SAME)
