"""The page of counts: one HTML file that needs nothing else, sortable by count and by doubt."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import jinja2

from boxtwin.counting.files import CountedImage
from boxtwin.files import write_bytes_atomically
from boxtwin.lettering import class_colour

FEW_CLASSES = 10  # up to so many, an image shows also those of which it has none

TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def write_page(
    path: Path,
    images: Sequence[CountedImage],
    *,
    title: str,
    classes: Sequence[str],
    notes: Sequence[str],
    unreadable: Sequence[str],
) -> None:
    """Write the page; ``notes`` are paragraphs under the title, ``unreadable`` lines about files."""
    in_doubt = sorted(range(len(images)), key=lambda place: images[place].count.doubt, reverse=True)
    content = TEMPLATES.get_template("page.html").render(
        title=title,
        classes=[(name, class_colour(label)) for label, name in enumerate(classes)],
        images=images,
        doubt={place: rank for rank, place in enumerate(in_doubt)},
        totals=[sum(int(image.count.counts[place]) for image in images) for place in range(1 + len(classes))],
        few=FEW_CLASSES,
        notes=notes,
        unreadable=unreadable,
        thumbnail=lambda image: base64.b64encode(image.thumbnail).decode(),
        link=lambda image: quote(image.picture or ""),
    )
    write_bytes_atomically(path, content.encode())
