"""Anchors from training boxes: k-means with the distance 1 - IoU.

J. Redmon, A. Farhadi, "YOLO9000: Better, Faster, Stronger", CVPR 2017, section 2, "Dimension Clusters".
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from boxtwin.datasets.sample import Sample
from boxtwin.detector.network import Anchors
from boxtwin.errors import InputError

NEIGHBOUR = 1.25  # two shapes whose sides differ by this factor overlap by 0.64: near, but told apart
RESTARTS = 10  # as scikit-learn's KMeans had for random starts; the best mean IoU is kept
MAX_ROUNDS = 300  # Lloyd's algorithm on a few thousand boxes settles within tens of rounds


def shape_iou(a: Float[np.ndarray, "n 2"], b: Float[np.ndarray, "m 2"]) -> Float[np.ndarray, "n m"]:
    """IoU of boxes (width, height) laid over each other with a common centre."""
    intersection = np.minimum(a[:, None], b[None]).prod(axis=-1)
    return intersection / (a.prod(axis=-1)[:, None] + b.prod(axis=-1)[None] - intersection)


def kmeans_anchors(
    sizes: Float[np.ndarray, "n 2"], count: int, rng: np.random.Generator
) -> Float[np.ndarray, "count 2"]:
    """``count`` anchors (width, height) that fit boxes of the given sizes, in their unit, smallest area first.

    Where there are fewer different sizes than anchors, the same shapes, larger and smaller by `NEIGHBOUR`, fill up. No
    boxes, or boxes without area, raise `InputError`.
    """
    sizes = np.asarray(sizes, dtype=np.float64)
    if len(sizes) == 0:
        raise InputError("anchors cannot be learnt: the training images hold no boxes; set detector.anchors=published")
    if not (np.isfinite(sizes).all() and (sizes > 0).all()):
        raise InputError("anchors cannot be learnt: some training boxes have no area")
    shapes = np.unique(sizes, axis=0)
    if len(shapes) < count:
        exponents = [(-1) ** power * -(-power // 2) for power in range(count)]  # 0, -1, 1, -2, 2 …
        scaled = np.concatenate([shapes * NEIGHBOUR**exponent for exponent in exponents])
        _, first = np.unique(scaled, axis=0, return_index=True)
        anchors = scaled[np.sort(first)[:count]]
    else:
        starts = (_lloyd(sizes, _spread_start(sizes, count, rng)) for _ in range(RESTARTS))
        anchors = max(starts, key=lambda centres: float(shape_iou(sizes, centres).max(axis=1).mean()))
    return _by_area(anchors)


def _by_area(anchors: Float[np.ndarray, "count 2"]) -> Float[np.ndarray, "count 2"]:
    return anchors[np.argsort(anchors.prod(axis=1), kind="stable")]


def _spread_start(sizes: Float[np.ndarray, "n 2"], count: int, rng: np.random.Generator) -> Float[np.ndarray, "c 2"]:
    """First centres, drawn in proportion to squared distance (k-means++, Arthur and Vassilvitskii 2007)."""
    chosen = [int(rng.integers(len(sizes)))]
    while len(chosen) < count:
        distance = 1 - shape_iou(sizes, sizes[chosen]).max(axis=1)
        distance[distance < 1e-12] = 0  # rounding must not let a chosen box be drawn twice
        weights = distance**2
        chosen.append(int(rng.choice(len(sizes), p=weights / weights.sum())))
    return sizes[chosen]


def _lloyd(sizes: Float[np.ndarray, "n 2"], centres: Float[np.ndarray, "count 2"]) -> Float[np.ndarray, "count 2"]:
    """Assign each box to its nearest centre, move each centre to its mean, until nothing changes."""
    nearest = np.full(len(sizes), -1)
    for _ in range(MAX_ROUNDS):
        assigned = shape_iou(sizes, centres).argmax(axis=1)
        if np.array_equal(assigned, nearest):
            break
        nearest = assigned
        # A centre that lost all its boxes stays where it is.
        pairs = [(sizes[nearest == k], centre) for k, centre in enumerate(centres)]
        centres = np.stack([members.mean(axis=0) if len(members) else centre for members, centre in pairs])
    return centres


def group_anchors(anchors: Float[np.ndarray, "count 2"], heads: int) -> Anchors:
    """Share out anchors by area, the largest to the first head; `ValueError` if heads cannot have equally many."""
    if len(anchors) == 0 or len(anchors) % heads:
        raise ValueError(f"{len(anchors)} anchors cannot be shared equally by {heads} heads")
    groups = np.split(_by_area(anchors), heads)[::-1]
    return tuple(tuple((float(width), float(height)) for width, height in group) for group in groups)


def anchors_from_samples(
    samples: Sequence[Sample], *, image_size: int, heads: int, per_head: int, rng: np.random.Generator
) -> Anchors:
    """k-means anchors of the samples' boxes after the letterbox to ``image_size``, by head; see `kmeans_anchors`."""
    sizes = [
        (sample.object_boxes[:, 2:] - sample.object_boxes[:, :2]) * (image_size / max(sample.width, sample.height))
        for sample in samples
    ]
    return group_anchors(kmeans_anchors(np.concatenate([np.zeros((0, 2)), *sizes]), heads * per_head, rng), heads)
