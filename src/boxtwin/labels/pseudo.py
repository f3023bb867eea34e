"""Pseudo-labels: boxes that detectors trained on real images agree on, for generators that move objects."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from boxtwin.datasets.image_io import Pixels
from boxtwin.datasets.sample import CrowdAreas, Judge, Judgement, PropagatedBox
from boxtwin.errors import InputError
from boxtwin.labels.box_evidence import channels, strongest_contrast
from boxtwin.labels.ensemble import AGREED_OVERLAP, Ensemble, Member
from boxtwin.labels.method import Variations, by_detectors
from boxtwin.labels.options import LabelOptions

DISAGREE = "the detectors disagree"  # why an image is refused
TOLERANCE = 0.25  # objects that too few detect, as a share of those that enough detect; an image with more is refused


def judge_by_agreement(
    ensemble: Ensemble,
    source: Pixels,  # noqa: ARG001
    pixels: Pixels,
    boxes: Any,  # noqa: ARG001
    labels: Any,  # noqa: ARG001
    image: str,  # noqa: ARG001
    crowds: CrowdAreas,
) -> Judgement:
    """Take the boxes that enough detectors agree on, and refuse images about which they disagree.

    Where at least ``ensemble.agree`` members detect an object, its box is the mean of theirs, weighted by their scores
    ("added": it is none of the source's). An image is refused when the objects that too few members detect are more
    than `TOLERANCE` of those that are agreed on: a detector would learn that these are background. What the generator
    says of boxes does not count, and neither does what is detected in crowds.

    The evidence, per box: ``score``, the mean over all members; ``votes``; ``spread``, the least overlap of a member's
    box with their mean; ``contrast``, as in `Carry`.
    """
    pairs = channels(pixels, pixels)
    places = ensemble.agreements(ensemble.detect(pixels), crowds)
    agreed = [place for place in places if place.votes >= ensemble.agree]
    found = []
    for place in agreed:
        contrast = strongest_contrast(pairs, place.box)
        evidence = {"score": place.score, "votes": place.votes, "spread": place.spread, "contrast": contrast}
        rounded: dict[str, float | None] = {name: round(float(value), 4) for name, value in evidence.items()}
        found.append(PropagatedBox(place.box, place.label, "added", rounded))
    doubtful = len(places) - len(agreed)
    if doubtful > TOLERANCE * len(agreed):
        return Judgement(tuple(found), refused=f"{DISAGREE}: on {doubtful} object(s), {len(agreed)} agreed on")
    return Judgement(tuple(found))


class PseudoLabels:
    """The way to label of `judge_by_agreement`, for any generator."""

    by_hand = False
    asks_detectors = True

    def __init__(self, options: LabelOptions, variations: Variations) -> None:
        if not 1 <= options.agree <= options.detectors:
            limits = f"between 1 and labels.detectors={options.detectors}, of which so many must detect an object"
            raise InputError(f"labels.agree={options.agree} must lie {limits}")
        self._agree, self._more = options.agree, by_detectors(variations.dataset)

    def identity(self) -> dict[str, Any]:
        """All that decides about boxes."""
        return {"agree": self._agree, "iou": AGREED_OVERLAP, "tolerance": TOLERANCE, **self._more}

    def judge(self, members: Sequence[Member]) -> Judge:
        """By the agreement of the detectors."""
        return partial(judge_by_agreement, Ensemble(members, agree=self._agree))
