"""Label Studio's JSON: tasks with predictions or annotations of type ``rectanglelabels``.

https://labelstud.io/guide/tasks and https://labelstud.io/guide/export: ``value`` holds percent of the image's width and
height, and the angle in degrees by which a rectangle is turned about its left upper corner.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import quoteattr

from boxtwin.boxes import Box
from boxtwin.datasets.coco_json import load_json
from boxtwin.errors import InputError
from boxtwin.files import write_bytes_atomically
from boxtwin.labels.formats.labelled_image import LabelledBox, LabelledImage, Labels, class_name, text_or_none

TASKS, CONFIG = "tasks.json", "config.xml"
LOCAL_FILES = "/data/local-files/?d="
LABEL, IMAGE = "label", "image"  # the names of the two controls in `CONFIG`, and the key of an image's address
SKIPPED = "skipped in Label Studio"
MARKS = ("pixels_sha256", "refused", "suspects")  # in the data of a task, so that tasks can be sorted by them


def write(folder: Path, images: Sequence[LabelledImage], classes: Sequence[str], served_as: str = "") -> None:
    """Write ``tasks.json`` and the labelling interface, ``config.xml``.

    Labels that a person has confirmed are annotations, all others predictions, which a person accepts or corrects.
    ``served_as`` is the folder's name below ``LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT``, by default its own.
    """
    tasks = [_task(image, served_as or folder.name) for image in images]
    write_bytes_atomically(folder / TASKS, json.dumps(tasks, indent=1).encode())
    values = "\n".join(f"    <Label value={quoteattr(name)}/>" for name in classes)
    config = (
        f'<View>\n  <Image name="{IMAGE}" value="${IMAGE}" zoom="true" zoomControl="true"/>\n'
        f'  <RectangleLabels name="{LABEL}" toName="{IMAGE}">\n{values}\n  </RectangleLabels>\n</View>\n'
    )
    write_bytes_atomically(folder / CONFIG, config.encode())


def _task(image: LabelledImage, served_as: str) -> dict[str, Any]:
    width, height = image.size()
    results = [
        {
            "id": f"box{number}",
            "type": "rectanglelabels",
            "from_name": LABEL,
            "to_name": IMAGE,
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "value": {
                "x": 100 * x1 / width,
                "y": 100 * y1 / height,
                "width": 100 * (x2 - x1) / width,
                "height": 100 * (y2 - y1) / height,
                "rotation": 0,
                "rectanglelabels": [name],
            },
            **({} if score is None else {"score": score}),
        }
        for number, ((x1, y1, x2, y2), name, score, *_) in enumerate(image.boxes, start=1)
    ]
    labels: dict[str, Any] = {"result": results}
    if image.confirmed:
        labels |= {} if image.minutes is None else {"lead_time": 60 * image.minutes}
    else:
        labels["model_version"] = "boxtwin"
    marks = {name: getattr(image, name) for name in MARKS if getattr(image, name) is not None}
    address = LOCAL_FILES + quote(f"{served_as}/images/{image.file}")
    key = "annotations" if image.confirmed else "predictions"
    return {"data": {IMAGE: address, "store_path": image.name, **marks}, key: [labels]}


def read(path: Path) -> Labels:
    """Read an export of the kind JSON, or our own tasks (``tasks.json`` of a folder).

    A task counts as confirmed if a person has submitted an annotation; of several, the newest counts, and their times
    are added up. A task that was skipped or that has predictions alone is not confirmed.
    """
    file = path / TASKS if path.is_dir() else path
    tasks = load_json(file)
    images, remarks = [], []
    turned = others = 0
    for position, task in enumerate(tasks):
        where = f"{file}: task {task.get('id', position + 1) if isinstance(task, dict) else position + 1}"
        try:
            given = [one for one in task.get("annotations") or () if not one.get("was_cancelled")]
            cancelled = [one for one in task.get("annotations") or () if one.get("was_cancelled")]
            chosen = max(given, key=lambda one: str(one.get("updated_at") or ""), default=None)
            predicted = list(task.get("predictions") or ())
            labelled = [one for one in (chosen, *predicted, *cancelled) if isinstance(one, dict)]
            if predicted and not labelled:  # exports name predictions by their numbers: nothing is known of the boxes
                continue
            shown: dict[str, Any] = labelled[0] if labelled else {"result": []}
            boxes = []
            for result in shown["result"]:
                if result["type"] != "rectanglelabels":
                    others += 1
                    continue
                box, is_turned = _box(result)
                turned += is_turned
                (name,) = result["value"]["rectanglelabels"]
                score = result.get("score")
                boxes.append(LabelledBox(box, class_name(name), None if score is None else float(score)))
            times = [float(one["lead_time"]) / 60 for one in given if one.get("lead_time") is not None]
            images.append(
                LabelledImage(
                    _name(task["data"], where),
                    width=None,
                    height=None,
                    boxes=tuple(boxes),
                    pixels_sha256=text_or_none(task["data"].get("pixels_sha256")),
                    confirmed=chosen is not None,
                    refused=text_or_none(task["data"].get("refused")) or (SKIPPED if cancelled else None),
                    minutes=math.fsum(times) if times else None,
                    in_shares=True,
                )
            )
        except InputError:
            raise
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            what = "is no task as Label Studio exports it; choose the kind JSON there"
            raise InputError(f"{where} {what}: {type(error).__name__} {error}") from None
    if not images:
        raise InputError(f"{file} has no task with an annotation: nobody has labelled anything, or submitted it")
    if turned:
        remarks.append(f"{turned} rectangles are turned; the upright box around each is taken")
    if others:
        remarks.append(f"{others} results are no rectangles with a label; they are left out")
    classes = dict.fromkeys(each.name for image in images for each in image.boxes)
    return Labels(images, list(classes), remarks)


def _box(result: Mapping[str, Any]) -> tuple[Box, bool]:
    """The box (xyxy, in shares) around a rectangle, and whether it is turned."""
    value = result["value"]
    x, y, w, h = (float(value[key]) / 100 for key in ("x", "y", "width", "height"))
    angle = math.radians(float(value.get("rotation") or 0))
    if not all(map(math.isfinite, (x, y, w, h, angle))):
        raise ValueError(f"{value} is no rectangle")
    if angle % math.tau == 0:
        return (x, y, x + w, y + h), False
    # Turned in pixels, where a right angle is one.
    width, height = float(result["original_width"]), float(result["original_height"])
    along, across = (w * width, h * height)
    sine, cosine = math.sin(angle), math.cos(angle)
    corners = [(u * along, v * across) for u in (0, 1) for v in (0, 1)]
    xs, ys = [u * cosine - v * sine for u, v in corners], [u * sine + v * cosine for u, v in corners]
    return (x + min(xs) / width, y + min(ys) / height, x + max(xs) / width, y + max(ys) / height), True


def _name(data: Mapping[str, Any], where: str) -> str:
    """The path in the store that we exported; else the file in the image's address."""
    if isinstance(name := data.get("store_path"), str):
        return name
    addresses = [data[IMAGE]] if IMAGE in data else [value for value in data.values() if isinstance(value, str)]
    if not addresses or not isinstance(addresses[0], str):
        raise InputError(f"{where} names no image in its data: {', '.join(data)}")
    parts = urlsplit(addresses[0])
    return parse_qs(parts.query)["d"][0] if "d" in parse_qs(parts.query) else unquote(parts.path or addresses[0])
