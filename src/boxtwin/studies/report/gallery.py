"""The same test images under each condition, as drawings that stand in the page itself."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int

from boxtwin.boxes import Box
from boxtwin.evaluation.examples import EXAMPLES_FILE, Examples, Pictured, load_examples
from boxtwin.evaluation.matching import match
from boxtwin.lettering import class_colour
from boxtwin.studies.runs import Cell, Kept, first_runs

LEAST_BOX = 0.03  # of the image's longer side: a smaller box could not be told from a dot
MOST_WORST = 4
KINDS = {"right": "right", "wrong": "wrong", "missed": "missed", "crowd": "in a crowd"}


@dataclass(frozen=True)
class Mark:
    """A box as it is drawn, in pixels of the image; ``kind`` is true, right, wrong, missed or crowd."""

    kind: str
    x: float
    y: float
    width: float
    height: float
    colour: str = ""  # of its class, for a square in its corner; empty where there is one class
    corner: float = 0.0  # side of the square


@dataclass(frozen=True)
class Drawing:
    """One image with what one condition found in it (or the truth), and the same in words."""

    marks: tuple[Mark, ...]
    text: str


@dataclass(frozen=True)
class PicturedImage:
    """One test image and its drawings, in the order of the columns: the truth first."""

    key: str  # unique in a page
    name: str
    width: int
    height: int
    uri: str
    drawings: tuple[Drawing, ...]


@dataclass(frozen=True)
class Gallery:
    """Images that several conditions were tested on; columns name these, ``classes`` what colours mean."""

    title: str
    columns: tuple[str, ...]
    images: tuple[PicturedImage, ...]
    classes: tuple[tuple[str, str], ...] = ()  # name and colour, where there are several


def galleries(cells: Sequence[Cell], kept: Kept) -> list[Gallery]:
    """Two for every test set: images from the emptiest to the fullest, and those that were counted worst.

    A condition is shown by its first seed; those whose run keeps no examples are left out.
    """
    shown = [(cell, load_examples(file)) for cell in first_runs(cells) if (file := kept.find(cell, EXAMPLES_FILE))]
    groups: dict[tuple[object, ...], list[tuple[Cell, Examples]]] = {}
    for cell, examples in shown:
        if examples is not None:
            fixed = tuple(sorted((p.sample.name, p.sample.image_id) for p in examples.pictured if not p.worst))
            groups.setdefault((cell.dataset, fixed), []).append((cell, examples))
    found = []
    for number, members in enumerate(groups.values()):
        members.sort(key=lambda pair: (pair[0].split, pair[0].variations > 0, pair[0].generator, pair[0].variations))
        fixed_images = [p for p in members[0][1].pictured if not p.worst]
        wanted = {"From the emptiest to the fullest": fixed_images, "Counted worst": _worst(members)}
        for title, images in wanted.items():
            if images:
                columns = ("truth", *(_name(cell, [cell for cell, _ in members]) for cell, _ in members))
                key = f"t{number}{'w' if title == 'Counted worst' else 'e'}"
                drawn = tuple(_image(f"{key}{place}", each, members) for place, each in enumerate(images))
                names = members[0][1].classes
                used = {mark.colour for image in drawn for drawing in image.drawings for mark in drawing.marks}
                colours = [(name, class_colour(label)) for label, name in enumerate(names)]
                found.append(Gallery(title, columns, drawn, tuple(pair for pair in colours if pair[1] in used)))
    return found


def _worst(members: Sequence[tuple[Cell, Examples]]) -> list[Pictured]:
    """Of the images that any run kept as one of its worst, those with the greatest error over all that are shown."""
    fixed = {p.sample.image_id for _, examples in members for p in examples.pictured if not p.worst}
    kept: dict[int, Pictured] = {}
    for _, examples in members:
        for pictured in examples.pictured:
            if pictured.worst and pictured.sample.image_id not in fixed:
                kept.setdefault(pictured.sample.image_id, pictured)

    def error(pictured: Pictured) -> int:
        true = len(pictured.sample.object_boxes)
        return sum(abs(_count(examples, pictured.sample.image_id) - true) for _, examples in members)

    return sorted(kept.values(), key=lambda pictured: (-error(pictured), pictured.sample.name))[:MOST_WORST]


def _count(examples: Examples, image_id: int) -> int:
    return len(examples.found[image_id].boxes) if image_id in examples.found else 0


def _name(cell: Cell, among: Sequence[Cell]) -> str:
    parts = [f"{cell.split} x{cell.variations}", *([cell.generator] if cell.variations else [])]
    for field, words in (("detector", "{}"), ("steps", "{} steps"), ("setting", "setting {}")):
        if len({getattr(other, field) for other in among}) > 1:
            parts.append(words.format(getattr(cell, field)))
    return " ".join(parts)


def _image(key: str, pictured: Pictured, members: Sequence[tuple[Cell, Examples]]) -> PicturedImage:
    sample = pictured.sample
    number = len(sample.object_boxes)
    classes, labels = members[0][1].classes, sample.object_labels
    truth = _marks("true", sample.object_boxes, labels, pictured, classes)
    drawings = [Drawing((*_crowds(pictured), *truth), f"{number} true{_by_class(labels, classes)}")]
    for _, examples in members:
        found = examples.found.get(sample.image_id)
        if found is None:
            missed = _marks("missed", sample.object_boxes, labels, pictured, classes)
            text = "found 0" + (f": {number} missed" if number else "")
            drawings.append(Drawing((*_crowds(pictured), *missed), text))
            continue
        matches = match(sample, found)
        groups = {"missed": (sample.object_boxes[matches.missed], labels[matches.missed])}
        wrong = ~matches.right & ~matches.ignored
        for kind, chosen in (("crowd", matches.ignored), ("right", matches.right), ("wrong", wrong)):
            groups[kind] = (found.boxes[chosen], found.labels[chosen])
        marks = [mark for kind, group in groups.items() for mark in _marks(kind, *group, pictured, classes)]
        said = ", ".join(f"{len(groups[kind][0])} {word}" for kind, word in KINDS.items() if len(groups[kind][0]))
        text = f"found {len(found.boxes)}{_by_class(found.labels, classes)}" + (f": {said}" if said else "")
        drawings.append(Drawing((*_crowds(pictured), *marks), text))
    uri = f"data:image/webp;base64,{base64.b64encode(pictured.webp).decode()}"
    return PicturedImage(key, sample.name, sample.width, sample.height, uri, tuple(drawings))


def _by_class(labels: Int[np.ndarray, " n"], classes: Sequence[str]) -> str:
    """`` (4 red, 1 white)`` where there are several classes."""
    said = [f"{number} {name}" for label, name in enumerate(classes) if (number := int((labels == label).sum()))]
    return f" ({', '.join(said)})" if len(classes) > 1 and said else ""


def _marks(
    kind: str,
    boxes: Float[np.ndarray, "n 4"],
    labels: Int[np.ndarray, " n"],
    pictured: Pictured,
    classes: Sequence[str],
) -> tuple[Mark, ...]:
    marks = [_mark(kind, box, pictured) for box in boxes.tolist()]
    if len(classes) < 2:
        return tuple(marks)
    side = round(LEAST_BOX * max(pictured.sample.width, pictured.sample.height), 1)
    pairs = zip(marks, labels.tolist(), strict=True)
    return tuple(replace(mark, colour=class_colour(label), corner=side) for mark, label in pairs)


def _crowds(pictured: Pictured) -> list[Mark]:
    return [_mark("crowd", box, pictured) for box in pictured.sample.boxes[pictured.sample.crowd].tolist()]


def _mark(kind: str, box: Box | Sequence[float], pictured: Pictured) -> Mark:
    """The box, not smaller than can be seen, around the same middle."""
    x1, y1, x2, y2 = box
    least = LEAST_BOX * max(pictured.sample.width, pictured.sample.height)
    width, height = max(x2 - x1, least), max(y2 - y1, least)
    return Mark(
        kind, round((x1 + x2 - width) / 2, 1), round((y1 + y2 - height) / 2, 1), round(width, 1), round(height, 1)
    )
