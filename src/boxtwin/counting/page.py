"""The page of counts: one HTML file that needs nothing else, sortable by count and by doubt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from boxtwin.counting.files import CountedImage
from boxtwin.evaluation.pages import data_uri, templates
from boxtwin.files import write_bytes_atomically
from boxtwin.lettering import class_colour

FEW_CLASSES = 10  # up to so many, an image shows also those of which it has none

TEMPLATES = templates(Path(__file__).parent)


def write_page(
    path: Path,
    images: Sequence[CountedImage],
    *,
    title: str,
    classes: Sequence[str],
    notes: Sequence[str],
    warning: str,
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
        warning=warning,
        unreadable=unreadable,
        thumbnail=lambda image: data_uri("jpeg", image.thumbnail),
        link=lambda image: quote(image.picture or ""),
    )
    write_bytes_atomically(path, content.encode())
