"""Detect the objects of one image, whole or in tiles, with torch or ONNX Runtime; image files in, detections out.

Imports no torch. Letterbox, tiles, scaling and non-maximum suppression are the functions that training and testing use.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from boxtwin.datasets.image_io import Pixels, as_grey, decode_image
from boxtwin.datasets.sample import Detections
from boxtwin.detector.nms import detections_in_file, merge_tiles
from boxtwin.detector.spec import DetectorSpec, NetworkSpec
from boxtwin.errors import InputError
from boxtwin.mixing.letterbox import Labelled, Letterbox, Tile, network_input, take_view, tiles_at, views

BATCH = 4  # tiles that are computed at once: more take memory and save next to nothing on a CPU

# Boxes (xyxy, pixels of the network input) and scores (objectness * class probability).
BoxesAndScores = tuple[Float32[np.ndarray, "batch places 4"], Float32[np.ndarray, "batch places classes"]]
# Images in [0, 1] -> their boxes and scores.
Compute = Callable[[Float32[np.ndarray, "batch _channels side side"]], BoxesAndScores]
# x, y, width, height -> these pixels of an image, as far as it reaches.
ReadWindow = Callable[[int, int, int, int], Pixels]


def detect_objects(pixels: Pixels, spec: NetworkSpec, compute: Compute, scale: float | None = None) -> Detections:
    """All detections in pixels as read from a file, from the score floor on, best first, xyxy in pixels of the file.

    With a ``scale``, in pixels of the network input for each pixel of the file, the image is processed in tiles of that
    scale; see `DetectorSpec.scale_for`. Otherwise as the images of its data set are.
    """
    grey = as_grey(pixels)
    height, width = pixels.shape[:2]
    return detect_in_windows(lambda x, y, w, h: grey[y : y + h, x : x + w], (width, height), spec, compute, scale)


def detect_in_windows(
    read: ReadWindow, shape: tuple[int, int], spec: NetworkSpec, compute: Compute, scale: float | None
) -> Detections:
    """As `detect_objects`, of an image of ``shape`` (width, height) of which windows are read one by one."""
    (width, height), settings = shape, spec
    tiles = views(width, height, size=spec.image_size, tile=spec.tile)
    if scale is not None:
        tiles = tiles_at(width, height, scale=scale, tile=spec.side)
        # The limit is that of an image of the training size.
        settings = replace(spec, max_detections=spec.max_detections * len(tiles))
    parts: list[tuple[int, Detections]] = []
    for start in range(0, len(tiles), BATCH):
        taken = [_take(read, view, width, height, spec) for view in tiles[start : start + BATCH]]
        batch = network_input([pixels for pixels, _ in taken], channels=spec.channels)
        outputs = zip(*compute(np.ascontiguousarray(batch)), (letterbox for _, letterbox in taken), strict=True)
        parts += [(0, detections_in_file(boxes, scores, letterbox, spec)) for boxes, scores, letterbox in outputs]
    return merge_tiles(parts, settings)[0]


def _take(read: ReadWindow, view: Tile | None, width: int, height: int, spec: NetworkSpec) -> tuple[Pixels, Letterbox]:
    """The network's input for one view, of which no more pixels are read than it shows."""
    (x, y), reach = (0, 0) if view is None else view.corner, max(width, height)
    if view is not None:
        reach = math.ceil(view.side / view.scale)
        view = view._replace(corner=(0, 0))
    window = spec.levels.scaled(read(x, y, reach, reach))
    image = Labelled(window, np.zeros((0, 4), np.float32), np.zeros(0, np.int64))
    shown, lies = take_view(image, view, spec.image_size)
    if view is not None:
        lies = lies._replace(width=width, height=height, pad_x=0 - x * lies.scale, pad_y=0 - y * lies.scale)
    return shown.pixels, lies


def read_pixels(encoded: bytes, name: str, spec: NetworkSpec, page: int | None = None) -> Pixels:
    """Decode an image file, or a page of it, called ``name`` in errors.

    Raises `InputError` if it is none, or of another depth than the detector's images.
    """
    reading = spec.how_to_read
    try:
        pixels = decode_image(bytes(encoded), name, reading if page is None else replace(reading, page=page))
    except OSError as error:
        raise InputError(str(error)) from None
    check_depth(pixels, name, spec)
    return pixels


def check_depth(pixels: Pixels, name: str, spec: NetworkSpec) -> None:
    """Raise `InputError` for pixels of another depth than the detector's images."""
    # 16 bit files may hold 8 bit values, and do if the full scale is 255; nothing tells the reverse.
    if spec.white > 255 and pixels.dtype == np.uint8:
        raise InputError(f"{name} has 8 bit; the detector was trained on 16 bit, full scale {spec.white}")
    if spec.white <= 255 and int(pixels.max()) > 255:
        raise InputError(f"{name} has 16 bit; the detector was trained on values up to {spec.white}")


class OnnxDetector:
    """A trained detector that ONNX Runtime computes, from what `write_onnx` wrote; another file raises `InputError`.

    The first of ``providers`` that works is taken, such as "CUDAExecutionProvider". ``threads`` compute on a CPU; None
    takes as many as there are cores.
    """

    def __init__(
        self, path: Path, providers: Sequence[str] = ("CPUExecutionProvider",), threads: int | None = None
    ) -> None:
        import onnxruntime  # an extra

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        # Waiting threads that spin slow other processes on the same cores down.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(path, options, providers=list(providers))
        except Exception as error:  # ONNX Runtime's own errors share no class
            raise InputError(f"{path} cannot be read as ONNX: {error}") from None
        self.spec = DetectorSpec.from_text(self._session.get_modelmeta().custom_metadata_map, str(path))

    def read(self, encoded: bytes, name: str) -> Pixels:
        """Decode an image file, called ``name`` in errors; raises `InputError` if it is none, or of another depth."""
        return read_pixels(encoded, name, self.spec)

    def __call__(self, pixels: Pixels) -> Detections:
        """All detections from the score floor on, best first, boxes xyxy in pixels of the image as it is read."""
        height, width = pixels.shape[:2]
        return detect_objects(pixels, self.spec, self.compute, self.spec.scale_for(width, height))

    def compute(self, images: Float32[np.ndarray, "batch _channels side side"]) -> BoxesAndScores:
        """Images in [0, 1] -> boxes and scores."""
        boxes, scores = self._session.run(["boxes", "scores"], {"images": images})
        return boxes, scores
