"""A detector from its ONNX file alone: image files in, detections out, without torch.

Letterbox, tiles, scaling and non-maximum suppression are the functions that training and testing use.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from jaxtyping import Float32

from boxtwin.datasets.image_io import Pixels, decode_image
from boxtwin.datasets.sample import Detections
from boxtwin.detector.nms import detections_in_file, merge_tiles
from boxtwin.detector.spec import DetectorSpec
from boxtwin.errors import InputError
from boxtwin.mixing.augment import Labelled, Letterbox
from boxtwin.mixing.network_input import full_scale, network_input
from boxtwin.mixing.tiles import take_view, views

BATCH = 8  # views that are computed at once: more take memory and save next to nothing on a CPU


class OnnxDetector:
    """A trained detector that ONNX Runtime computes.

    Args:
        path: what `write_onnx` wrote.
        providers: of ONNX Runtime, the first that works is taken, such as "CUDAExecutionProvider".

    Raises:
        InputError: the file cannot be read, or is no detector of ours.
    """

    def __init__(self, path: Path, providers: Sequence[str] = ("CPUExecutionProvider",)) -> None:
        options = onnxruntime.SessionOptions()
        # Waiting threads that spin slow other processes on the same cores down.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(path, options, providers=list(providers))
        except Exception as error:  # ONNX Runtime's own errors share no class
            raise InputError(f"{path} cannot be read as ONNX: {error}") from None
        self.spec = DetectorSpec.from_text(self._session.get_modelmeta().custom_metadata_map, str(path))

    def read(self, encoded: bytes, name: str) -> Pixels:
        """Decode the bytes of an image file; ``name`` is what errors call it.

        Raises:
            InputError: it is no image, or of another bit depth than the images that the network was trained on.
        """
        try:
            pixels = decode_image(bytes(encoded), name, self.spec.how_to_read)
        except OSError as error:
            raise InputError(str(error)) from None
        # 16 bit files may hold 8 bit values, and do if white is 255; the other way round nothing tells them apart.
        if self.spec.white > 255 and pixels.dtype == np.uint8:
            raise InputError(f"{name} has 8 bit; the detector was trained on 16 bit images, white at {self.spec.white}")
        if self.spec.white <= 255 and int(pixels.max()) > 255:
            raise InputError(f"{name} has 16 bit; the detector was trained on values up to {self.spec.white}")
        return pixels

    def __call__(self, pixels: Pixels) -> Detections:
        """All detections from the score floor on, best first, boxes xyxy in pixels of the image as it is read."""
        spec = self.spec
        height, width = pixels.shape[:2]
        image = Labelled(spec.levels.scaled(pixels), np.zeros((0, 4), np.float32), np.zeros(0, np.int64))
        found: list[Detections] = []
        parts = views(width, height, size=spec.image_size, tile=spec.tile)
        for start in range(0, len(parts), BATCH):
            taken = [
                take_view(image, part, size=spec.image_size, tile=spec.tile, white=full_scale(image.pixels))
                for part in parts[start : start + BATCH]
            ]
            batch = network_input([view.pixels for view, _ in taken], channels=spec.channels)
            found += self._detect(np.ascontiguousarray(batch), [place for _, place in taken], (width, height))
        return merge_tiles([(0, part) for part in found], nms_iou=spec.nms_iou, max_detections=spec.max_detections)[0]

    def _detect(
        self, batch: Float32[np.ndarray, "batch _channels side side"], places: list[Letterbox], size: tuple[int, int]
    ) -> list[Detections]:
        boxes, scores = self._session.run(["boxes", "scores"], {"images": batch})
        return [
            detections_in_file(
                boxes[index],
                scores[index],
                letterbox=np.array([place.scale, place.pad_x, place.pad_y], dtype=np.float32),
                file_size=np.array(size),
                own=np.array(place.own, dtype=np.float32),
                score_floor=self.spec.score_floor,
                nms_iou=self.spec.nms_iou,
                max_detections=self.spec.max_detections,
            )
            for index, place in enumerate(places)
        ]
