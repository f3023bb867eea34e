"""Detect the objects of one image, whole or in tiles, with a network that torch or ONNX Runtime computes.

Imports no torch. Letterbox, tiles, scaling and non-maximum suppression are the functions that training and testing use.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float32

from boxtwin.datasets.image_io import Pixels, as_grey
from boxtwin.datasets.sample import Detections
from boxtwin.detector.nms import detections_in_file, merge_tiles
from boxtwin.detector.spec import NetworkSpec
from boxtwin.mixing.letterbox import Labelled, network_input, take_view, views

BATCH = 8  # tiles that are computed at once: more take memory and save next to nothing on a CPU

# Images in [0, 1] -> boxes (xyxy, pixels of the network input) and scores (objectness * class probability).
Compute = Callable[
    [Float32[np.ndarray, "batch _channels side side"]],
    tuple[Float32[np.ndarray, "batch places 4"], Float32[np.ndarray, "batch places classes"]],
]


def detect_objects(pixels: Pixels, spec: NetworkSpec, compute: Compute) -> Detections:
    """All detections from the score floor on, best first, boxes xyxy in pixels of the image.

    Args:
        pixels: as they are read from the file.
        spec: how images go into the network, and how its outputs become detections.
        compute: the network.
    """
    height, width = pixels.shape[:2]
    image = Labelled(spec.levels.scaled(as_grey(pixels)), np.zeros((0, 4), np.float32), np.zeros(0, np.int64))
    tiles = views(width, height, size=spec.image_size, tile=spec.tile)
    parts: list[tuple[int, Detections]] = []
    for start in range(0, len(tiles), BATCH):
        shown, letterboxes = zip(
            *(take_view(image, tile, spec.image_size) for tile in tiles[start : start + BATCH]), strict=True
        )
        batch = network_input([view.pixels for view in shown], channels=spec.channels)
        outputs = zip(*compute(np.ascontiguousarray(batch)), letterboxes, strict=True)
        parts += [(0, detections_in_file(boxes, scores, letterbox, spec)) for boxes, scores, letterbox in outputs]
    return merge_tiles(parts, spec)[0]
