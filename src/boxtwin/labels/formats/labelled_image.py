"""What all formats write and read: images with labelled boxes, and what is said of each image."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from boxtwin.boxes import Box
from boxtwin.datasets.image_folder import files_below
from boxtwin.datasets.problems import some
from boxtwin.errors import nearest


def class_name(text: object) -> str:
    """The name of a class as data sets are read: letters composed (NFC), without blanks around it."""
    return unicodedata.normalize("NFC", str(text).strip())


class LabelledBox(NamedTuple):
    """One object of an image: its box (xyxy), the name of its class, and a detector's score.

    ``crowd`` (several objects in one box) and ``area`` (square pixels, of a mask) are known to COCO alone.
    """

    box: Box
    name: str
    score: float | None = None
    crowd: bool = False
    area: float | None = None


@dataclass(frozen=True)
class LabelledImage:
    """An image in a label file.

    ``name`` is its path in its store; of an image that was read, what the file says. ``file`` is the base name under
    which an image is exported. ``confirmed`` is what a person says of its labels; None: nothing is known.
    """

    name: str
    width: int | None  # pixels; None: the file does not say it
    height: int | None
    boxes: tuple[LabelledBox, ...] = ()
    file: str = ""
    pixels_sha256: str | None = None
    confirmed: bool | None = None
    refused: str | None = None  # why it is not used
    minutes: float | None = None  # that a person spent on it
    suspects: str | None = None  # what may be wrong with its labels, the likeliest first
    in_shares: bool = False  # boxes are in shares of width and height, not in pixels

    def in_pixels(self, width: int, height: int) -> LabelledImage:
        """The image with its size, and boxes in pixels."""
        boxes = self.boxes
        if self.in_shares:
            scaled = ((x1 * width, y1 * height, x2 * width, y2 * height) for (x1, y1, x2, y2), *_ in boxes)
            boxes = tuple(each._replace(box=box) for each, box in zip(boxes, scaled, strict=True))
        return replace(self, width=width, height=height, boxes=boxes, in_shares=False)

    def size(self) -> tuple[int, int]:
        """Width and height of an image that is exported."""
        if self.width is None or self.height is None:
            raise ValueError(f"the size of {self.name} is not known")
        return self.width, self.height


class Labels(NamedTuple):
    """The content of a label file."""

    images: Sequence[LabelledImage]
    classes: Sequence[str]
    remarks: Sequence[str] = ()  # what was left out or changed in reading


def unknown_classes(images: Iterable[LabelledImage], known: Collection[str]) -> list[str]:
    """Each class of labelled boxes that is not ``known``, how often it occurs, where, and what it may mean."""
    where: dict[str, list[str]] = defaultdict(list)
    for image in images:
        for box in image.boxes:
            if box.name not in known:
                where[box.name].append(image.name)
    return [
        f"{name} ({len(names)} object{'s' * (len(names) > 1)}, the first in {names[0]}{nearest(name, known, 1)})"
        for name, names in sorted(where.items())
    ]


def label_files(folder: Path, ending: str) -> list[Path]:
    """The files in a folder and below whose names end so, in capitals too; hidden ones are left alone."""
    return sorted(file for file in files_below(folder) if file.suffix.lower() == ending and file.is_file())


def without_label_file(names: list[str]) -> list[str]:
    """The remark on images of a format in which no label file may mean no object, or that nobody looked."""
    if not names:
        return []
    return [f"{len(names)} images have no label file and count as images without objects: {some(names)}"]


def text_or_none(value: object) -> str | None:
    """A mark that is text; anything else counts as no mark."""
    return value if isinstance(value, str) else None


def with_marks(images: Sequence[LabelledImage], not_confirmed: set[str] | None) -> list[LabelledImage]:
    """Images of formats without marks, marked by a list beside them; None: there is no list."""
    if not_confirmed is None:
        return list(images)
    return [replace(image, confirmed=image.name not in not_confirmed) for image in images]
