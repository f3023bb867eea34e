"""A part of the report: what others hand to `boxtwin.studies.report.write_report` to stand after the curves."""

from __future__ import annotations

from dataclasses import dataclass


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
