"""COCO detection files, with marks that other tools ignore: https://cocodataset.org/#format-data"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from boxtwin.datasets.coco import coco_content
from boxtwin.datasets.coco_boxes import Content, box_numbers, is_turned, stated_area
from boxtwin.datasets.coco_json import flag, read_content
from boxtwin.datasets.problems import Problems
from boxtwin.errors import InputError
from boxtwin.files import write_bytes_atomically
from boxtwin.labels.formats.labelled_image import LabelledBox, LabelledImage, Labels, class_name, text_or_none

FILE = "annotations.json"
MARKS = ("pixels_sha256", "refused", "confirmed", "minutes")


def write(folder: Path, images: Sequence[LabelledImage], classes: Sequence[str]) -> None:
    """Write ``annotations.json``. Tools that write COCO keep ``file_name``; the other marks of images may get lost."""
    entries: list[dict[str, Any]] = []
    annotations = []
    for number, image in enumerate(images, start=1):
        width, height = image.size()
        entry: dict[str, Any] = {"id": number, "file_name": f"images/{image.file}", "width": width, "height": height}
        marks = {name: getattr(image, name) for name in MARKS if getattr(image, name) is not None}
        entries.append({**entry, "store_path": image.name, **marks})
        for (x1, y1, x2, y2), name, _, crowd, area in image.boxes:
            box = [x1, y1, x2 - x1, y2 - y1]
            annotations.append((number, classes.index(name) + 1, box, area or box[2] * box[3], crowd))
    content = coco_content(entries, annotations, enumerate(classes, start=1))
    scores = [each.score for image in images for each in image.boxes]
    for annotation, score in zip(content["annotations"], scores, strict=True):
        annotation |= {} if score is None else {"score": score}
    write_bytes_atomically(folder / FILE, json.dumps(content).encode())


def read(path: Path) -> Labels:
    """Read a COCO file, or ``annotations.json`` of a folder."""
    return read_with_content(path / FILE if path.is_dir() else path)[0]


def read_with_content(file: Path) -> tuple[Labels, Content]:
    """The labels of a COCO file and its content, as `read_content` gives it; images are in the same order.

    Boxes are taken as they are; `InputError` lists what cannot be read.
    """
    problems = Problems()
    content = read_content(file, problems)
    names = {category["id"]: class_name(category["name"]) for category in content["categories"]}
    boxes: dict[int, list[LabelledBox]] = defaultdict(list)
    turned: list[str] = []
    files = {image["id"]: image["file_name"] for image in content["images"]}
    for annotation in content["annotations"]:
        if annotation["image_id"] not in files:
            continue  # read_content has named it among the problems
        numbers = box_numbers(annotation["bbox"])
        if numbers is None:
            place = f"{files[annotation['image_id']]}: bbox {annotation['bbox']!r} (annotation {annotation['id']})"
            problems.add("boxes that are not four finite numbers [x, y, width, height]", place)
            continue
        x, y, w, h = numbers
        turned += [files[annotation["image_id"]]] * is_turned(annotation)
        score = annotation.get("score")
        score = None if isinstance(score, bool) or not isinstance(score, int | float) else float(score)
        name = names.get(annotation["category_id"], "")
        stated = stated_area(annotation)
        area = stated if 0 < stated < math.inf else None
        boxes[annotation["image_id"]].append(
            LabelledBox((x, y, x + w, y + h), name, score, annotation["iscrowd"], area)
        )
    what = "boxes of turned rectangles (attributes.rotation)"
    problems.remark(turned, what, "bbox is the rectangle before it was turned")
    problems.raise_if_any(file)
    images = [_image(image, boxes[image["id"]], file) for image in content["images"]]
    return Labels(images, list(names.values()), problems.remarks), content


def _image(entry: dict[str, Any], boxes: Sequence[LabelledBox], file: Path) -> LabelledImage:
    name = entry.get("store_path", entry["file_name"])
    try:
        confirmed = flag(entry["confirmed"]) if entry.get("confirmed") is not None else None
        minutes = None if entry.get("minutes") is None else float(entry["minutes"])
    except (TypeError, ValueError):
        raise InputError(f"{file}, {name}: minutes is no number, {entry['minutes']!r}") from None
    if entry.get("confirmed") is not None and confirmed is None:
        raise InputError(f"{file}, {name}: confirmed is neither yes nor no, {entry['confirmed']!r}")
    return LabelledImage(
        name if isinstance(name, str) else entry["file_name"],
        entry.get("width"),
        entry.get("height"),
        tuple(boxes),
        pixels_sha256=text_or_none(entry.get("pixels_sha256")),
        confirmed=confirmed,
        refused=text_or_none(entry.get("refused")),
        minutes=minutes,
        suspects=text_or_none(entry.get("suspects")),
    )
