"""Boxes for generators that move things about: what detectors, trained on real images only, agree on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from boxtwin.boxes import Box
from boxtwin.datasets.image_io import Pixels
from boxtwin.datasets.sample import CarriedBox, Judgement
from boxtwin.errors import InputError
from boxtwin.labels.box_evidence import Values, channels, contrast
from boxtwin.labels.ensemble import Ensemble, Member
from boxtwin.labels.method import Variations, settings_of
from boxtwin.labels.options import LabelOptions

DISAGREE = "the detectors disagree"  # why an image is refused


class Pseudo:
    """Take the boxes that enough detectors agree on, and refuse images that they do not agree about.

    Where ``agree`` or more members of the ensemble see an object, its box is the mean of theirs, weighted by their
    scores ("added": it is none of the source's). An image is refused when the objects that some member is sure of and
    too few see are more than ``tolerance`` of those that are agreed on: a detector that learns from it would learn that
    these are background.

    The evidence, per box: ``score``, the mean over all members; ``votes``; ``spread``, the least overlap of a member's
    box with their mean; ``contrast``, as in `Carry`.

    Args:
        ensemble: detectors, each with the threshold that suits real validation images best.
        tolerance: objects without agreement, as a share of those with; not negative.
    """

    name = "pseudo"

    def __init__(self, *, ensemble: Ensemble, tolerance: float) -> None:
        if tolerance < 0:
            raise ValueError(f"tolerance={tolerance} must not be negative")
        self.ensemble = ensemble
        self.tolerance = tolerance

    def __call__(
        self,
        source: Pixels,  # noqa: ARG002
        pixels: Pixels,
        boxes: Float[np.ndarray, "n 4"],  # noqa: ARG002
        labels: Int[np.ndarray, " n"],  # noqa: ARG002
        image: str = "",  # noqa: ARG002
    ) -> Judgement:
        """Find the boxes of a variation; what its generator says of boxes does not count."""
        pairs = channels(pixels, pixels)
        places = self.ensemble.agreements(self.ensemble.look(pixels))
        agreed = [place for place in places if place.votes >= self.ensemble.agree]
        carried = tuple(
            CarriedBox(
                place.box,
                place.label,
                "added",
                {
                    "score": round(place.score, 4),
                    "votes": float(place.votes),
                    "spread": round(place.spread, 4),
                    "contrast": round(_strongest(pairs, place.box), 4),
                },
            )
            for place in agreed
        )
        doubtful = len(places) - len(agreed)
        if doubtful > self.tolerance * len(agreed):
            return Judgement(carried, refused=f"{DISAGREE}: on {doubtful} object(s), {len(agreed)} agreed on")
        return Judgement(carried)


class PseudoLabels:
    """The way to label of `Pseudo`, for any generator."""

    by_hand = False
    asks_detectors = True

    def __init__(self, options: LabelOptions, variations: Variations) -> None:  # noqa: ARG002, any will do
        if not 1 <= options.agree <= options.detectors:
            raise InputError(
                f"labels.agree={options.agree} must lie between 1 and labels.detectors={options.detectors}, of which "
                "so many must see an object"
            )
        self._options = options

    def identity(self) -> dict[str, Any]:
        """The settings."""
        return settings_of(self._options, "agree", "iou", "tolerance")

    def judge(self, members: Sequence[Member]) -> Pseudo:
        """By the agreement of the detectors."""
        options = self._options
        return Pseudo(ensemble=Ensemble(members, agree=options.agree, iou=options.iou), tolerance=options.tolerance)


def _strongest(pairs: Sequence[tuple[Values, Values]], box: Box) -> float:
    """Contrast in the channel that shows most of it."""
    contrasts = [contrast(values, box) for values, _ in pairs]
    return max(contrasts, key=lambda value: value**2)
