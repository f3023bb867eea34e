"""The page of suspects: a ranked list with a picture of each, as one HTML file that needs nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from boxtwin.boxes import Box
from boxtwin.datasets.image_io import encode
from boxtwin.datasets.levels import to_8_bit
from boxtwin.datasets.sample import Sample
from boxtwin.evaluation.overlays import shrunk
from boxtwin.evaluation.pages import data_uri
from boxtwin.files import write_bytes_atomically
from boxtwin.studies.report.words import ENVIRONMENT
from boxtwin.studies.suspects import APPLIED_FROM, KINDS, LEAST_SCORE, Suspect

PAGE_FILE = "index.html"
MOST_SHOWN = 200  # with a picture: a page of some megabytes
MARGIN = 1.0  # of the longer side of what is shown, around it
LEAST_SIDE = 48  # pixels of the image that a picture shows at least
SIDE = 240  # pixels of a picture, at most
QUALITY = 70  # of WebP


@dataclass(frozen=True)
class Pictured:
    """A suspect with the part of its image around it; boxes are (x, y, width, height) in pixels of the image."""

    rank: int
    suspect: Suspect
    side: str
    uri: str
    window: Box
    label: Box | None
    suggested: Box | None
    others: tuple[Box, ...]  # the other labels in the window
    words: tuple[str, str]  # class of the label and of the suggested object; empty where there is none, or one class


def write_page(
    folder: Path,
    study: str,
    suspects: Sequence[Suspect],
    samples: Mapping[str, Sample],
    *,
    sides: Mapping[str, str],
    classes: Sequence[str],
    runs: Sequence[str],
    remarks: Sequence[str],
    command: str,
) -> Path:
    """Write the page; ``samples`` and ``sides`` are by image name, ``remarks`` say what could not be checked."""
    shown = suspects[:MOST_SHOWN]
    by_image: dict[str, list[tuple[int, Suspect]]] = {}
    for rank, suspect in enumerate(shown, start=1):
        by_image.setdefault(suspect.name, []).append((rank, suspect))
    pictured: list[Pictured] = []
    for name, ones in by_image.items():
        pixels = to_8_bit(samples[name].read())  # each image is decoded once
        pictured += [_pictured(rank, each, samples[name], pixels, sides[name], classes) for rank, each in ones]
    page = ENVIRONMENT.get_template("suspects.html").render(
        study=study,
        suspects=suspects,
        pictured=sorted(pictured, key=lambda each: each.rank),
        counts=[(kind, number) for kind in KINDS if (number := Counter(each.kind for each in suspects)[kind])],
        labels=sum(len(sample.object_boxes) for sample in samples.values()),
        images={side: list(sides.values()).count(side) for side in dict.fromkeys(sides.values())},
        runs=runs,
        remarks=remarks,
        command=command,
        applied_from=APPLIED_FROM,
        least_score=LEAST_SCORE,
    )
    write_bytes_atomically(folder / PAGE_FILE, page.encode())
    return folder / PAGE_FILE


def _pictured(
    rank: int, suspect: Suspect, sample: Sample, pixels: np.ndarray, side: str, classes: Sequence[str]
) -> Pictured:
    boxes = np.array([box for box in (suspect.box, suspect.suggested) if box is not None])
    (x1, y1), (x2, y2) = boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)
    half = max((0.5 + MARGIN) * max(x2 - x1, y2 - y1), LEAST_SIDE / 2)
    height, width = pixels.shape[:2]
    (left, right), (top, bottom) = _around(x1, x2, half, width), _around(y1, y2, half, height)
    part = shrunk(np.ascontiguousarray(pixels[top:bottom, left:right]), SIDE)
    others = [box for index, box in enumerate(sample.boxes.tolist()) if index != suspect.index]
    inside = [box for box in others if box[0] < right and box[2] > left and box[1] < bottom and box[3] > top]
    names = [
        "" if label is None or len(classes) == 1 else classes[label]
        for label in (suspect.label, suspect.suggested_label)
    ]
    return Pictured(
        rank=rank,
        suspect=suspect,
        side=side,
        uri=data_uri("webp", encode(part, "webp", QUALITY)),
        window=(float(left), float(top), float(right - left), float(bottom - top)),
        label=_placed(suspect.box),
        suggested=_placed(suspect.suggested),
        others=tuple(placed for box in inside if (placed := _placed(tuple(box))) is not None),
        words=(names[0], names[1]),
    )


def _around(start: float, end: float, half: float, size: int) -> tuple[int, int]:
    """Two times ``half`` pixels around the middle of a box, moved into the image; all of a smaller one."""
    first = min(max(0.0, (start + end) / 2 - half), max(0.0, size - 2 * half))
    return round(first), min(size, round(first + 2 * half))


def _placed(box: Box | None) -> Box | None:
    if box is None:
        return None
    x1, y1, x2, y2 = box
    return round(x1, 1), round(y1, 1), round(x2 - x1, 1), round(y2 - y1, 1)
