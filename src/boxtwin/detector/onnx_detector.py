"""A detector from its ONNX file alone: image files in, detections out, without torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from jaxtyping import Float32

from boxtwin.datasets.image_io import Pixels, decode_image
from boxtwin.datasets.sample import Detections
from boxtwin.detector.predict import detect_objects
from boxtwin.detector.spec import DetectorSpec
from boxtwin.errors import InputError


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
        return detect_objects(pixels, self.spec, self._compute)

    def _compute(
        self, batch: Float32[np.ndarray, "batch _channels side side"]
    ) -> tuple[Float32[np.ndarray, "batch places 4"], Float32[np.ndarray, "batch places classes"]]:
        boxes, scores = self._session.run(["boxes", "scores"], {"images": batch})
        return boxes, scores
