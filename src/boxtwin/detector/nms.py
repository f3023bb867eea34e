"""From decoded boxes and scores to detections in pixels of the image file.

Plain numpy and OpenCV: what follows the network is the same whether torch or ONNX Runtime computed it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, cast

import cv2
import numpy as np
from jaxtyping import Float, Int

from boxtwin.boxes import clip_xyxy
from boxtwin.datasets.sample import Detections, Sample
from boxtwin.detector.options import Postprocessing
from boxtwin.mixing.letterbox import Letterbox

DETECTIONS = Postprocessing.max_detections
# Candidates that NMS looks at per image; RetinaNet and detectron2 keep 1,000 per level.
MAX_CANDIDATES = 3000
CANDIDATES_PER_DETECTION = MAX_CANDIDATES // DETECTIONS  # where the limit is higher


def detection_limit(samples: Sequence[Sample]) -> int:
    """How many detections an image keeps: twice the objects of the fullest training image, and `DETECTIONS` at least.

    Twice, so that fuller images are counted right as well, and precision is seen at low scores.
    """
    return max(DETECTIONS, 2 * max((len(sample.object_boxes) for sample in samples), default=0))


def non_maximum_suppression(
    boxes: Float[np.ndarray, "n 4"],
    scores: Float[np.ndarray, " n"],
    labels: Int[np.ndarray, " n"],
    settings: Postprocessing,
) -> Int[np.ndarray, " kept"]:
    """Indices of the boxes (xyxy) that stay when no two of a class overlap too much, best first.

    Of scores below ``always_kept``, only those among the best ``max_detections`` stay.
    """
    if len(boxes) == 0:
        return np.zeros(0, dtype=np.int64)
    # OpenCV keeps classes apart by shifting their boxes, which works for boxes that begin at 0 or later.
    low = boxes[:, :2].min(axis=0)
    xywh = np.concatenate((boxes[:, :2] - low, boxes[:, 2:] - boxes[:, :2]), axis=1).astype(np.float64)
    # The type stubs ask for lists; OpenCV takes arrays, and faster.
    stay: Any = cv2.dnn.NMSBoxesBatched(
        cast(Any, xywh), cast(Any, scores.astype(np.float32)), cast(Any, labels.astype(np.int32)), 0.0, settings.nms_iou
    )
    kept = np.asarray(stay, dtype=np.int64).reshape(-1)
    kept = kept[np.argsort(-scores[kept], kind="stable")]
    return kept[: max(settings.max_detections, int(np.count_nonzero(scores[kept] >= settings.always_kept)))]


def detections_in_file(
    boxes: Float[np.ndarray, "places 4"],
    scores: Float[np.ndarray, "places classes"],
    letterbox: Letterbox,
    settings: Postprocessing,
) -> Detections:
    """Turn predictions for one letterboxed image or tile into detections, in pixels of the image file.

    Each class of a box is a detection by itself, as in Darknet. Detections with their centre outside the part that the
    letterbox answers for are left out.

    Args:
        boxes: xyxy, pixels of the letterboxed image.
        scores: objectness * class probability.
    """
    flat = scores.reshape(-1)
    candidates = np.flatnonzero(flat >= settings.score_floor)
    most = max(MAX_CANDIDATES, CANDIDATES_PER_DETECTION * settings.max_detections)
    most = max(most, int(np.count_nonzero(flat >= settings.always_kept)))
    if len(candidates) > most:
        candidates = candidates[np.argsort(-flat[candidates], kind="stable")[:most]]
    places, labels = np.divmod(candidates, scores.shape[1])
    # In single precision throughout, as the boxes are.
    pad = np.array([letterbox.pad_x, letterbox.pad_y] * 2, dtype=np.float32)
    in_file = (boxes[places] - pad) / np.float32(letterbox.scale)
    own, centres = np.array(letterbox.own, dtype=np.float32), (in_file[:, :2] + in_file[:, 2:]) / 2
    is_own = ((centres >= own[:2]) & (centres < own[2:])).all(axis=1)
    in_file = clip_xyxy(in_file, float(letterbox.width), float(letterbox.height))
    # What lies in the letterbox's borders alone is no object of the image.
    visible = ((in_file[:, 2:] - in_file[:, :2]) > 0).all(axis=1) & is_own
    file_boxes, file_labels = in_file[visible].astype(np.float64), labels[visible]
    file_scores = flat[candidates[visible]].astype(np.float64)
    kept = non_maximum_suppression(file_boxes, file_scores, file_labels, settings)
    return Detections(file_boxes[kept], file_scores[kept], file_labels[kept])


def merge_tiles(detections: Iterable[tuple[int, Detections]], settings: Postprocessing) -> dict[int, Detections]:
    """Detections by image id, those of an image's tiles in one.

    Tiles answer for parts that do not overlap (`Letterbox.own`); an object is found twice only if its centre lies so
    near to the border of two parts that both tiles place it on their own side.
    """
    by_image: dict[int, list[Detections]] = {}
    for image_id, part in detections:
        by_image.setdefault(image_id, []).append(part)
    merged = {}
    for image_id, parts in by_image.items():
        boxes, scores, labels = (np.concatenate(values) for values in zip(*parts, strict=True))
        kept = non_maximum_suppression(boxes, scores, labels, settings) if len(parts) > 1 else slice(None)
        merged[image_id] = Detections(boxes[kept], scores[kept], labels[kept])
    return merged
