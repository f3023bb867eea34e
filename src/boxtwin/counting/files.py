"""What is written of counts: counts.csv, detections.json, GeoJSON, and pictures with boxes."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2

from boxtwin.boxes import xyxy_to_xywh
from boxtwin.counting.ensemble import ImageCount
from boxtwin.counting.images import Read
from boxtwin.counting.scenes import Scene, places
from boxtwin.datasets.coco import coco_content
from boxtwin.datasets.image_folder import COCO_FILE, CSV_FILE, PICTURES
from boxtwin.datasets.image_io import Pixels
from boxtwin.datasets.levels import Levels
from boxtwin.datasets.reading import Reading
from boxtwin.datasets.sample import Detections
from boxtwin.evaluation.matching import RESULT_DECIMALS
from boxtwin.evaluation.overlays import shrunk
from boxtwin.files import write_bytes_atomically
from boxtwin.labels.store_images import export_names
from boxtwin.lettering import class_colour

PAGE_FILE = "index.html"
_OF_OTHER_FORMATS = re.compile(r"yolo/data\.yaml|\w+/(classes|not_confirmed)\.txt")
_LONGEST_NAME = 200  # bytes of a file's name; systems take 255, and what is written first has a longer one
_LABEL_FILES = (("yolo/labels/", ".txt"), ("voc/Annotations/", ".xml"))
ENDS = ("", "_low", "_high", "_spread")  # of the columns of a count
LONGEST, THUMBNAIL = 1600, 420  # pixels of the longer side of a picture, and of one in the page
QUALITY, SMALL_QUALITY = 90, 78  # of JPEG
ONE_CLASS = "#ff7f0e"  # bright on dark sea and on light ground
FEW = 256  # pixels of the longer side, below which lines of two pixels hide small objects
LEAST_BOX = 0.012  # of the longer side: boxes are drawn around smaller objects, so that they can be seen


@dataclass(frozen=True, eq=False)
class CountedImage:
    """One image with its counts; ``page`` is set for one of several in a file, width and height are in pixels."""

    name: str
    path: Path
    page: int | None
    width: int
    height: int
    count: ImageCount
    picture: str | None = None  # file in the folder of the counts
    thumbnail: bytes = b""  # JPEG
    remark: str = ""  # why there is no GeoJSON of a file with coordinates
    learnt: tuple[str, str] | None = None  # side and name of the image that the detector learnt from, which it equals


def write_csv(path: Path, images: Sequence[CountedImage], classes: Sequence[str], *, ensemble: bool) -> None:
    """A line for each image; ends of intervals are empty where no coverage is known.

    A class whose columns would have the name of others is numbered, such as ``total_2``.
    """
    names = _columns(classes)
    header = ["file", *(f"{name}{end}" for name in names for end in ("", "_low", "_high"))]
    header += ["unlike_training", "scale", *([f"{name}_spread" for name in names] if ensemble else []), "learnt_from"]
    rows = []
    for image in images:
        count = image.count
        ends: Sequence[tuple[object, object]] = count.intervals or [("", "")] * len(names)
        numbers = [value for one, end in zip(count.counts.tolist(), ends, strict=True) for value in (one, *end)]
        more = [*(count.spread.tolist() if ensemble else []), image.learnt[0] if image.learnt else ""]
        rows.append([image.name, *numbers, "; ".join(count.unlike), f"{count.scale:.6g}", *more])
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


def _columns(classes: Sequence[str]) -> list[str]:
    """The names of the columns with counts, so that they and those named after them are found once in the table."""
    taken, names = {"file", "unlike_training", "scale", "learnt_from"}, []
    for name in ("total", *classes):
        free, number = name, 1
        # The name of a class is its own, whichever comes first.
        while taken & {f"{free}{end}" for end in ENDS} or (free != name and free in classes):
            number += 1
            free = f"{name}_{number}"
        taken |= {f"{free}{end}" for end in ENDS}
        names.append(free)
    return names


def coco_detections(
    images: Sequence[CountedImage], classes: Sequence[str], ids: Sequence[int], reading: Reading
) -> dict[str, Any]:
    """The counted detections as the content of a COCO file; annotations have their ``score``.

    An image has ``path``, its file as seen from the working folder, how it was read, and ``confirmed``, which is false:
    no person has seen its boxes.
    """
    entries, boxes, scores = [], [], []
    for number, image in enumerate(images, start=1):
        entry: dict[str, Any] = {"id": number, "file_name": image.name, "width": image.width, "height": image.height}
        entry |= {"path": Path(os.path.relpath(image.path)).as_posix(), "confirmed": False, **reading.stated()}
        entries.append(entry if image.page is None else {**entry, "page": image.page})
        found = image.count.found
        xywh = xyxy_to_xywh(found.boxes.reshape(-1, 4)).round(RESULT_DECIMALS).tolist()
        boxes += [
            (number, ids[label], box, box[2] * box[3], False) for label, box in zip(found.labels, xywh, strict=True)
        ]
        scores += found.scores.tolist()
    content = coco_content(entries, boxes, zip(ids, classes, strict=True))
    for annotation, score in zip(content["annotations"], scores, strict=True):
        annotation["score"] = score
    return content


def finish(folder: Path) -> None:
    """Give the tables in a complete folder of counts the time by which `not_written_here` knows later changes."""
    now = time.time_ns()
    for name in (CSV_FILE, COCO_FILE):
        os.utime(folder / name, ns=(now, now))


def not_written_here(folder: Path) -> list[str]:
    """Files in a folder of counts that count.py did not write, or that were changed since."""
    try:
        entries = json.loads((folder / COCO_FILE).read_text(encoding="utf-8"))["images"]
        names = [entry["file_name"] for entry in entries]
        finished = min((folder / name).stat().st_mtime_ns for name in (CSV_FILE, COCO_FILE))
    except (OSError, ValueError, TypeError, KeyError):  # no folder of counts, or an edited one
        names, finished = [], 0
    written = {CSV_FILE, COCO_FILE, PAGE_FILE, *(f"{PICTURES}/{file_of(name, '.jpg')}" for name in names)}
    written |= {file_of(name, ".geojson") for name in names}
    stems = [Path(name).stem for name in export_names(names, [True] * len(names))]
    written |= {f"{place}{stem}{ending}" for place, ending in _LABEL_FILES for stem in stems}
    others = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        is_known = name in written or _OF_OTHER_FORMATS.fullmatch(name)
        if path.is_symlink() or (path.is_file() and not (is_known and path.stat().st_mtime_ns <= finished)):
            others.append(name)
    return others


def file_of(name: str, ending: str) -> str:
    """The path of a file that belongs to an image, by the image's name, which is cut where it is too long."""
    *folders, base = Path(name).parts
    if len(f"{base}{ending}".encode()) > _LONGEST_NAME:
        digest = hashlib.sha256(base.encode()).hexdigest()[:8]
        room = _LONGEST_NAME - len(f"-{digest}{ending}")
        base = f"{base.encode()[:room].decode(errors='ignore')}-{digest}"
    return Path(*folders, f"{base}{ending}").as_posix()


def geojson(path: Path, reading: Reading, found: Detections, classes: Sequence[str]) -> dict[str, Any] | None:
    """The detections in an image file as GeoJSON (RFC 7946), in degrees of longitude and latitude.

    None for a file without a coordinate reference. Raises `InputError` for a reference that leads to no such degrees.
    """
    rings = places(path, [(x1, y1, x2, y2) for x1, y1, x2, y2 in found.boxes.tolist()], reading)
    if rings is None:
        return None
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [ring]},
            "properties": {"class": classes[label], "score": score},
        }
        for ring, label, score in zip(rings, found.labels, found.scores.tolist(), strict=True)
    ]
    return {"type": "FeatureCollection", "features": features}


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON in one line."""
    write_bytes_atomically(path, json.dumps(content).encode())


def picture_of(image: Read, levels: Levels) -> Pixels:
    """The image in 8 bit colour, shrunk to `LONGEST`."""
    content = image.content.overview(LONGEST) if isinstance(image.content, Scene) else image.content
    shown = shrunk(levels.in_8_bit(content), LONGEST)
    return cv2.cvtColor(shown, cv2.COLOR_GRAY2RGB) if shown.ndim == 2 else shown


def draw(picture: Pixels, width: int, found: Detections, *, several: bool) -> Pixels:
    """A copy of a picture of an image of so many pixels a row, with boxes; of ``several`` classes, in their colours."""
    shown, longer = picture.copy(), max(picture.shape[:2])
    scale, thick = picture.shape[1] / width, max(1 if longer < FEW else 2, round(longer / 500))
    for box, label in zip(found.boxes, found.labels.tolist(), strict=True):
        colour, around = (class_colour(label), "#ffffff") if several else (ONE_CLASS, None)
        frame(shown, [float(value) * scale for value in box], colour, around, thick=thick, least=LEAST_BOX * longer)
    return shown


def frame(picture: Pixels, box: Sequence[float], colour: str, around: str | None, *, thick: int, least: float) -> None:
    """Draw a frame around an xyxy box, in pixels of the picture, as if it had at least ``least`` pixels.

    With another colour ``around`` it is told apart on any ground.
    """
    x1, y1, x2, y2 = box
    room = max(0.0, least - max(x2 - x1, y2 - y1)) / 2 + thick
    ends = (round(x1 - room), round(y1 - room)), (round(x2 + room), round(y2 + room))
    for shade, width in ((around, thick + 2), (colour, thick)):
        if shade is not None:
            red_green_blue = tuple(int(shade[place : place + 2], 16) for place in (1, 3, 5))
            cv2.rectangle(picture, *ends, red_green_blue, width)
