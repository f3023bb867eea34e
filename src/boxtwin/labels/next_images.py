"""Which of many unlabelled images to label next: those that detectors disagree on, and that are unlike one another.

Disagreement is the vote entropy of a committee (Dagan & Engelson, "Committee-Based Sampling for Training Probabilistic
Classifiers", ICML 1995), summed over the places of an image where some detector finds an object. Alone, it would choose
many views of the most crowded harbour; so an image counts the more, the further its features are from those of all
labelled images and of the images chosen before it, as in the core-set selection of Sener & Savarese (arXiv:1708.00489).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import rankdata

from boxtwin.datasets.sample import Detections
from boxtwin.labels.ensemble import AgreedObject, agreements


@dataclass(frozen=True)
class Disagreement:
    """What several detectors find in one image; an object is agreed on if more than half of them detect it."""

    agreed: tuple[AgreedObject, ...]
    doubtful: tuple[AgreedObject, ...]  # detected by half of them or fewer
    bits: float  # entropy of the votes, summed over places: 1 for each place where they are equally divided

    @classmethod
    def of(cls, detections: Sequence[Detections], thresholds: Sequence[Sequence[float]]) -> Disagreement:
        """From each detector's detections in the image, and its count threshold for each class."""
        places = agreements(detections, thresholds)
        agreed = tuple(place for place in places if 2 * place.votes > len(detections))
        doubtful = tuple(place for place in places if 2 * place.votes <= len(detections))
        return cls(agreed, doubtful, math.fsum(vote_entropy(place.votes, len(detections)) for place in places))


def vote_entropy(votes: int, members: int) -> float:
    """In bits: 0 where all or none vote for an object, 1 where one half does."""
    shares = (votes / members, 1 - votes / members)
    return -math.fsum(share * math.log2(share) for share in shares if share > 0)


def choose(
    bits: Float[np.ndarray, " images"],
    features: Float[np.ndarray, "images values"],
    labelled: Float[np.ndarray, "known values"],
    number: int,
) -> list[tuple[int, float]]:
    """Indices of the images to label, first ones first, each with its distance to those labelled or chosen before.

    Each time the image is taken whose rank by disagreement times that distance is greatest. Ranks, because a few images
    may hold a hundred times as many objects as the others. Equal disagreement shares the lowest rank: where most images
    have none, any higher rank would prefer distant images that no detector doubts. The distance of two images is one
    less the cosine of their features, less the mean of all images.
    """
    every = np.concatenate([features, labelled])
    every = every - every.mean(axis=0)
    every /= np.maximum(np.linalg.norm(every, axis=1, keepdims=True), 1e-12)
    ours, known = every[: len(features)], every[len(features) :]
    nearest = (1 - ours @ known.T).min(axis=1, initial=2.0)
    ranks = rankdata(bits, method="min") / max(len(bits), 1)
    chosen: list[tuple[int, float]] = []
    left: Int[np.ndarray, " left"] = np.arange(len(bits))
    while len(left) and len(chosen) < number:
        best = int(left[np.argmax(ranks[left] * nearest[left])])
        chosen.append((best, max(float(nearest[best]), 0.0)))
        nearest = np.minimum(nearest, 1 - ours @ ours[best])
        left = left[left != best]
    return chosen
