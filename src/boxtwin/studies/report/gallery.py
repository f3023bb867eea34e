"""Pictures of the page: the same test images under each condition, and the cards of variation stores."""

from __future__ import annotations

import itertools
import json
import logging
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float, Int

from boxtwin.datasets.image_io import read_image
from boxtwin.datasets.sample import Detections
from boxtwin.errors import is_of_the_system
from boxtwin.evaluation.examples import EXAMPLES_FILE, Examples, Pictured, load_examples
from boxtwin.evaluation.matching import match
from boxtwin.evaluation.pages import data_uri
from boxtwin.lettering import class_colour
from boxtwin.studies.conditions import Row
from boxtwin.studies.runs import LABEL_CARD, QUALITY_CARD
from boxtwin.studies.study import Study
from boxtwin.synthesis.manifest import LEAST_OBJECTS

log = logging.getLogger(__name__)

_Read = TypeVar("_Read")
# What the report says of a card, by its kind.
WORDED = {
    LABEL_CARD: {"kept", "shifted", "dropped", "added", "images", "refused"},
    QUALITY_CARD: {"verdict", "images", "figures"},
}

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
    colour: str  # of its class, for a square in its corner; empty where there is one class
    corner: float  # side of the square


@dataclass(frozen=True)
class MarkedImage:
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
    drawings: tuple[MarkedImage, ...]


@dataclass(frozen=True)
class Gallery:
    """Images that several conditions were tested on; columns name these, ``classes`` what colours mean."""

    title: str
    columns: tuple[str, ...]
    images: tuple[PicturedImage, ...]
    classes: tuple[tuple[str, str], ...] = ()  # name and colour, where there are several


def galleries(study: Study) -> list[Gallery]:
    """Two for every test set: images from the emptiest to the fullest, and those that were counted worst."""
    groups: dict[Hashable, list[tuple[Row, Examples]]] = defaultdict(list)
    for row in sorted(study.rows, key=lambda row: (row.split, row.variations > 0, row.generator, row.variations)):
        file = study.file(row, EXAMPLES_FILE)
        examples = _whole(load_examples, file)
        if examples is not None:
            fixed = sorted((p.sample.name, p.sample.image_id) for p in examples.pictured if not p.worst)
            groups[row.first.dataset, row.values.get("data.test"), *fixed].append((row, examples))
    shown = []
    for number, members in enumerate(groups.values()):
        columns = ("truth", *(row.name for row, _ in members))
        each = [examples for _, examples in members]
        choices = {"From the emptiest to the fullest": [p for p in each[0].pictured if not p.worst]}
        choices["Counted worst"] = _worst(each)
        for title, images in choices.items():
            drawn = tuple(_image(f"t{number}{title[0]}{place}", image, each) for place, image in enumerate(images))
            used = {mark.colour for image in drawn for drawing in image.drawings for mark in drawing.marks}
            colours = [(name, class_colour(label)) for label, name in enumerate(each[0].classes)]
            if drawn:
                shown.append(Gallery(title, columns, drawn, tuple(pair for pair in colours if pair[1] in used)))
    return shown


def _worst(members: Sequence[Examples]) -> list[Pictured]:
    """Of the images that any run kept as one of its worst, those with the greatest error over all that are shown."""
    pictured = [each for examples in members for each in examples.pictured]
    fixed = {each.sample.image_id for each in pictured if not each.worst}
    kept = {each.sample.image_id: each for each in reversed(pictured) if each.sample.image_id not in fixed}

    def error(pictured: Pictured) -> int:
        true, image_id = len(pictured.sample.object_boxes), pictured.sample.image_id
        found = (each.found[image_id] for each in members if image_id in each.found)
        counts = [int((~match(pictured.sample, each).ignored).sum()) for each in found]
        return sum(abs(number - true) for number in (*counts, *[0] * (len(members) - len(counts))))

    return sorted(kept.values(), key=lambda each: (-error(each), each.sample.name))[:MOST_WORST]


def _image(key: str, pictured: Pictured, members: Sequence[Examples]) -> PicturedImage:
    sample, classes = pictured.sample, members[0].classes
    boxes, labels, several = sample.object_boxes, sample.object_labels, len(classes) > 1
    crowds = _marks("crowd", sample.boxes[sample.crowd], sample.labels[sample.crowd], pictured, coloured=False)
    truth = _marks("true", boxes, labels, pictured, coloured=several)
    drawings = [MarkedImage((*crowds, *truth), f"{len(boxes)} true{_by_class(labels, classes)}")]
    for examples in members:
        detections = examples.found.get(
            sample.image_id, Detections(np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64))
        )
        matches = match(sample, detections)
        wrong = ~matches.right & ~matches.ignored
        groups = {"missed": (boxes[matches.missed], labels[matches.missed])}
        for kind, chosen in (("crowd", matches.ignored), ("right", matches.right), ("wrong", wrong)):
            groups[kind] = (detections.boxes[chosen], detections.labels[chosen])
        marks = itertools.chain(*(_marks(kind, *of, pictured, coloured=several) for kind, of in groups.items()))
        counts = ", ".join(f"{len(groups[kind][0])} {word}" for kind, word in KINDS.items() if len(groups[kind][0]))
        labels_found = detections.labels[~matches.ignored]  # those in crowds are not counted
        text = f"found {len(labels_found)}{_by_class(labels_found, classes)}{counts and ': '}{counts}"
        drawings.append(MarkedImage((*crowds, *marks), text))
    uri = data_uri("webp", pictured.webp)
    return PicturedImage(key, sample.name, sample.width, sample.height, uri, tuple(drawings))


def _by_class(labels: Int[np.ndarray, " n"], classes: Sequence[str]) -> str:
    """`` (4 red, 1 white)`` where there are several classes."""
    counts = [f"{number} {name}" for label, name in enumerate(classes) if (number := int((labels == label).sum()))]
    return f" ({', '.join(counts)})" if len(classes) > 1 and counts else ""


def _marks(
    kind: str, boxes: Float[np.ndarray, "n 4"], labels: Int[np.ndarray, " n"], pictured: Pictured, *, coloured: bool
) -> list[Mark]:
    """Boxes around the same centres, enlarged to a visible size."""
    least = LEAST_BOX * max(pictured.sample.width, pictured.sample.height)
    size = np.maximum(boxes[:, 2:] - boxes[:, :2], least)
    corner = (boxes[:, :2] + boxes[:, 2:] - size) / 2
    places = np.concatenate([corner, size], axis=1).round(1).tolist()
    colours = [class_colour(label) if coloured else "" for label in labels.tolist()]
    return [
        Mark(kind, x, y, width, height, colour, round(least, 1))
        for (x, y, width, height), colour in zip(places, colours, strict=True)
    ]


@dataclass(frozen=True)
class Card:
    """A card; ``kind`` is the name of its file and of the macro that words it."""

    kind: str
    content: dict[str, Any]
    picture: Path | None  # None where that is not at hand


@dataclass(frozen=True)
class StoreCards:
    """The cards of a store as one split sees it."""

    name: str
    used_by: tuple[str, ...]  # conditions
    cards: tuple[Card, ...]


def store_cards(study: Study) -> list[StoreCards]:
    """The cards of all stores that the runs used, once for each split, from the run with the most variations."""
    by_store: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in sorted(study.rows, key=lambda row: -row.variations):
        if row.variations:
            by_store[row.first.store or row.first.generator, row.first.split].append(row)
    stores = []
    for (store, split), rows in sorted(by_store.items()):
        cards = tuple(card for kind in (LABEL_CARD, QUALITY_CARD) if (card := _card(study, rows, kind)) is not None)
        if cards:
            stores.append(StoreCards(f"{store}, for {split}", tuple(row.name for row in reversed(rows)), cards))
    return stores


def nearly_empty(stores: Sequence[StoreCards]) -> list[tuple[str, int, int]]:
    """Stores whose variations have hardly any boxes: name, boxes that are left, and objects of their sources."""
    found = []
    for store in stores:
        for content in (card.content for card in store.cards if card.kind == LABEL_CARD):
            kept, dropped, added = (content.get(name, 0) for name in ("kept", "dropped", "added"))
            left = kept + content.get("shifted", 0) + added
            objects = content.get("objects", left - added + dropped)
            if left < LEAST_OBJECTS * objects:
                found.append((store.name, left, objects))
    return found


def _card(study: Study, rows: list[Row], kind: str) -> Card | None:
    def content(file: Path) -> dict[str, Any]:
        values: Any = json.loads(file.read_text())
        if not isinstance(values, dict) or (missing := WORDED[kind] - values.keys()):
            raise ValueError(f"it lacks {', '.join(sorted(missing))}" if isinstance(values, dict) else "it is no card")
        return values

    for row in rows:
        if (values := _whole(content, study.file(row, f"{kind}.json"))) is not None:
            picture = study.file(row, f"{kind}.png")
            return Card(kind, values, None if _whole(read_image, picture) is None else picture)
    return None


def _whole(read: Callable[[Path], _Read], file: Path | None) -> _Read | None:
    """What is read from a file that a report can do without; None with a warning if the file is damaged."""
    try:
        return None if file is None else read(file)
    except Exception as error:  # whatever readers of JSON and images meet in bytes that are not theirs
        if is_of_the_system(error):
            raise
        log.warning("%s is damaged and left out of the report: %s", file, error)
        return None
