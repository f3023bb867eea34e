"""Detect the objects of one image, whole or in tiles, with torch or ONNX Runtime; image files in, detections out.

Imports no torch. Letterbox, tiles, scaling and non-maximum suppression are the functions that training and testing use.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from boxtwin.datasets.image_io import Pixels, as_grey, decode_image
from boxtwin.datasets.sample import Detections
from boxtwin.detector.nms import detections_in_file, merge_tiles
from boxtwin.detector.spec import DetectorSpec, NetworkSpec
from boxtwin.errors import InputError
from boxtwin.mixing.letterbox import Labelled, network_input, take_view, views

BATCH = 8  # tiles that are computed at once: more take memory and save next to nothing on a CPU

# Boxes (xyxy, pixels of the network input) and scores (objectness * class probability).
BoxesAndScores = tuple[Float32[np.ndarray, "batch places 4"], Float32[np.ndarray, "batch places classes"]]
# Images in [0, 1] -> their boxes and scores.
Compute = Callable[[Float32[np.ndarray, "batch _channels side side"]], BoxesAndScores]


def detect_objects(pixels: Pixels, spec: NetworkSpec, compute: Compute) -> Detections:
    """All detections in pixels as read from a file, from the score floor on, best first, xyxy in pixels of the file."""
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


class OnnxDetector:
    """A trained detector that ONNX Runtime computes, from what `write_onnx` wrote; another file raises `InputError`.

    The first of ``providers`` that works is taken, such as "CUDAExecutionProvider".
    """

    def __init__(self, path: Path, providers: Sequence[str] = ("CPUExecutionProvider",)) -> None:
        import onnxruntime  # an extra

        options = onnxruntime.SessionOptions()
        # Waiting threads that spin slow other processes on the same cores down.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(path, options, providers=list(providers))
        except Exception as error:  # ONNX Runtime's own errors share no class
            raise InputError(f"{path} cannot be read as ONNX: {error}") from None
        self.spec = DetectorSpec.from_text(self._session.get_modelmeta().custom_metadata_map, str(path))

    def read(self, encoded: bytes, name: str) -> Pixels:
        """Decode an image file, called ``name`` in errors; raises `InputError` if it is none, or of another depth."""
        try:
            pixels = decode_image(bytes(encoded), name, self.spec.how_to_read)
        except OSError as error:
            raise InputError(str(error)) from None
        # 16 bit files may hold 8 bit values, and do if the full scale is 255; nothing tells the reverse.
        if self.spec.white > 255 and pixels.dtype == np.uint8:
            raise InputError(f"{name} has 8 bit; the detector was trained on 16 bit, full scale {self.spec.white}")
        if self.spec.white <= 255 and int(pixels.max()) > 255:
            raise InputError(f"{name} has 16 bit; the detector was trained on values up to {self.spec.white}")
        return pixels

    def __call__(self, pixels: Pixels) -> Detections:
        """All detections from the score floor on, best first, boxes xyxy in pixels of the image as it is read."""
        run = self._session.run
        return detect_objects(pixels, self.spec, lambda batch: run(["boxes", "scores"], {"images": batch}))
