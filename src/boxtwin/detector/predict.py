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
from boxtwin.detector.spec import DetectorSpec
from boxtwin.mixing.augment import Labelled
from boxtwin.mixing.network_input import full_scale, network_input
from boxtwin.mixing.tiles import take_view, views

BATCH = 8  # tiles that are computed at once: more take memory and save next to nothing on a CPU

# Images in [0, 1] -> boxes (xyxy, pixels of the network input) and scores (objectness * class probability).
Compute = Callable[
    [Float32[np.ndarray, "batch _channels side side"]],
    tuple[Float32[np.ndarray, "batch places 4"], Float32[np.ndarray, "batch places classes"]],
]


def detect_objects(pixels: Pixels, spec: DetectorSpec, compute: Compute) -> Detections:
    """All detections from the score floor on, best first, boxes xyxy in pixels of the image.

    Args:
        pixels: as they are read from the file.
        spec: how images go into the network, and how its outputs become detections.
        compute: the network.
    """
    height, width = pixels.shape[:2]
    shown = spec.levels.scaled(as_grey(pixels))
    image = Labelled(shown, np.zeros((0, 4), np.float32), np.zeros(0, np.int64))
    tiles = views(width, height, size=spec.image_size, tile=spec.tile)
    found: list[tuple[int, Detections]] = []
    for start in range(0, len(tiles), BATCH):
        taken = [
            take_view(image, tile, size=spec.image_size, tile=spec.tile, white=full_scale(shown))
            for tile in tiles[start : start + BATCH]
        ]
        batch = network_input([view.pixels for view, _ in taken], channels=spec.channels)
        boxes, scores = compute(np.ascontiguousarray(batch))
        for index, (_, place) in enumerate(taken):
            detections = detections_in_file(
                boxes[index],
                scores[index],
                letterbox=np.array([place.scale, place.pad_x, place.pad_y], dtype=np.float32),
                file_size=np.array([width, height]),
                own=np.array(place.own, dtype=np.float32),
                score_floor=spec.score_floor,
                nms_iou=spec.nms_iou,
                max_detections=spec.max_detections,
            )
            found.append((0, detections))
    return merge_tiles(found, nms_iou=spec.nms_iou, max_detections=spec.max_detections)[0]
