"""A part of the report: what others hand to `boxtwin.studies.report.page.write_report` to stand after the curves."""

from __future__ import annotations

import io
from dataclasses import dataclass

import matplotlib as mpl
from matplotlib.figure import Figure as Canvas

# Nothing about when and with what: the same figure gives the same bytes, and names no address.
NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))


@dataclass(frozen=True)
class Figure:
    """A picture, and what it shows in words for those who do not see it."""

    svg: str  # a whole SVG file that needs no other
    text: str


@dataclass(frozen=True)
class Section:
    """A heading, sentences below it, then figures."""

    title: str
    sentences: tuple[str, ...]
    figures: tuple[Figure, ...]


def as_svg(canvas: Canvas, *, transparent: bool = False) -> str:
    """A drawing as a whole SVG file; twice the same drawing gives twice the same text."""
    encoded = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "boxtwin"}):
        canvas.savefig(encoded, format="svg", facecolor="white", transparent=transparent, metadata=NO_METADATA)
    return encoded.getvalue()
