"""The page of the images to label next, with what detectors find in them."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import cv2
import numpy as np
from jaxtyping import UInt8

from boxtwin.counting.page import TEMPLATES
from boxtwin.datasets.image_io import Pixels
from boxtwin.files import write_bytes_atomically
from boxtwin.labels.ensemble import AgreedObject
from boxtwin.labels.next_images import Disagreement
from boxtwin.lettering import class_colour

PICTURE, QUALITY = 480, 80  # longer side, pixels; of JPEG
LEAST_BOX = 9  # pixels of the picture: boxes of smaller objects are drawn larger, so that they can be seen
DOUBTFUL = "#ffd23f"


@dataclass(frozen=True)
class ShownImage:
    """A chosen image on the page; ``link`` is its file as seen from the page."""

    name: str
    link: str
    pixels: Pixels
    found: Disagreement
    distance: float


def write_page(
    path: Path, images: Sequence[ShownImage], *, title: str, classes: Sequence[str], notes: Sequence[str]
) -> None:
    """Write one self-contained HTML file; ``notes`` are paragraphs under the title."""
    shown = [
        {
            "name": image.name,
            "link": quote(image.link),
            "picture": base64.b64encode(_picture(image)).decode(),
            "agreed": len(image.found.agreed),
            "doubtful": len(image.found.doubtful),
            "bits": image.found.bits,
            "distance": image.distance,
        }
        for image in images
    ]
    content = TEMPLATES.get_template("next_page.html").render(
        title=title,
        notes=notes,
        classes=[(name, class_colour(label)) for label, name in enumerate(classes)],
        doubtful=DOUBTFUL,
        images=shown,
    )
    write_bytes_atomically(path, content.encode())


def _picture(image: ShownImage) -> bytes:
    """The image as JPEG, with the boxes that detectors agree on and those in doubt."""
    pixels = image.pixels if image.pixels.dtype == np.uint8 else (image.pixels >> 8).astype(np.uint8)
    scale = PICTURE / max(pixels.shape[:2])  # small images are enlarged, so that lines are thin beside objects
    size = [max(1, round(side * scale)) for side in pixels.shape[1::-1]]
    shown = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST)
    shown = cv2.cvtColor(shown, cv2.COLOR_GRAY2BGR) if shown.ndim == 2 else np.ascontiguousarray(shown[:, :, ::-1])
    for place in image.found.doubtful:
        _frame(shown, place, DOUBTFUL, scale)
    for place in image.found.agreed:
        _frame(shown, place, class_colour(place.label), scale)
    _, encoded = cv2.imencode(".jpg", shown, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    return encoded.tobytes()


def _frame(shown: UInt8[np.ndarray, "h w 3"], place: AgreedObject, colour: str, scale: float) -> None:
    x1, y1, x2, y2 = (value * scale for value in place.box)
    room = max(0.0, LEAST_BOX - max(x2 - x1, y2 - y1)) / 2 + 1
    ends = (round(x1 - room), round(y1 - room)), (round(x2 + room), round(y2 + room))
    bgr = tuple(int(colour[start : start + 2], 16) for start in (5, 3, 1))
    cv2.rectangle(shown, *ends, (0, 0, 0), 4)  # dark around it: seen on any ground
    cv2.rectangle(shown, *ends, bgr, 2)
