"""The page of the images to label next, with what detectors find in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import cv2

from boxtwin.counting.files import frame
from boxtwin.counting.page import TEMPLATES
from boxtwin.datasets.image_io import Pixels, encode
from boxtwin.evaluation.pages import data_uri
from boxtwin.files import write_bytes_atomically
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
    pixels: Pixels  # in 8 bit
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
            "picture": data_uri("jpeg", _picture(image)),
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
    pixels = image.pixels
    scale = PICTURE / max(pixels.shape[:2])  # small images are enlarged, so that lines are thin beside objects
    size = [max(1, round(side * scale)) for side in pixels.shape[1::-1]]
    shown = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST)
    shown = cv2.cvtColor(shown, cv2.COLOR_GRAY2RGB) if shown.ndim == 2 else shown
    doubtful = [(place, DOUBTFUL) for place in image.found.doubtful]
    for place, colour in doubtful + [(place, class_colour(place.label)) for place in image.found.agreed]:
        frame(shown, [value * scale for value in place.box], colour, "#000000", thick=2, least=LEAST_BOX)
    return encode(shown, "jpg", QUALITY)
