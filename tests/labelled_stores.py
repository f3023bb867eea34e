"""Small stores of images with labels."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from boxtwin.datasets.image_io import Pixels, pixels_sha256, write_png

Boxes = Sequence[tuple[str, Sequence[float]]]  # class and xywh
CLASSES = ("red blood cell", "größe & <co>")
FOUR: dict[str, Boxes] = {f"images/{name}_v01.png": [(CLASSES[0], (10, 20, 8, 9))] for name in "abcd"}  # a box each


def pixels_of(number: int, width: int = 80, height: int = 60) -> Pixels:
    """Pixels that no other number has."""
    return np.random.default_rng(number).integers(0, 256, (height, width), dtype=np.uint8)


def write_store(
    folder: Path,
    boxes: Mapping[str, Boxes],
    marks: Mapping[str, Mapping[str, Any]] = {},
    *,
    classes: Sequence[str] = CLASSES,
    images: Mapping[str, Pixels] = {},
) -> Path:
    """A store as generators leave it: ``annotations.json`` with hashes, and its images."""
    entries: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    folder.mkdir(parents=True, exist_ok=True)
    for number, (name, ones) in enumerate(boxes.items(), start=1):
        pixels = images.get(name, pixels_of(number))
        write_png(folder / name, pixels)
        size = {"width": pixels.shape[1], "height": pixels.shape[0]}
        more = {"source": f"{name}.jpg", "pixels_sha256": pixels_sha256(pixels), **marks.get(name, {})}
        entries.append({"id": number * 7, "file_name": name, **size, **more})
        for label, (x, y, w, h) in ones:
            box = {"bbox": [x, y, w, h], "area": w * h, "iscrowd": 0, "category_id": 3 + 5 * classes.index(label)}
            annotations.append({"id": len(annotations) + 1, "image_id": number * 7, **box})
    categories = [{"id": 3 + 5 * index, "name": name} for index, name in enumerate(classes)]
    content = {"images": entries, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(content))
    return folder


def boxes_in(content: Mapping[str, Any]) -> dict[str, list[tuple[str, list[float]]]]:
    """Class and box of each image's objects, by file name."""
    names = {category["id"]: category["name"] for category in content["categories"]}
    found: dict[str, list[tuple[str, list[float]]]] = {image["file_name"]: [] for image in content["images"]}
    files = {image["id"]: image["file_name"] for image in content["images"]}
    for one in content["annotations"]:
        found[files[one["image_id"]]].append((names[one["category_id"]], one["bbox"]))
    return found
