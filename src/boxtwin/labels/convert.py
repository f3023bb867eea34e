"""Data sets of other formats as COCO data sets, which all readers of this project take."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

from boxtwin.datasets.coco import coco_content
from boxtwin.datasets.image_folder import image_files
from boxtwin.datasets.image_io import read_header
from boxtwin.datasets.problems import some
from boxtwin.datasets.reading import Reading
from boxtwin.errors import InputError
from boxtwin.files import atomic_path, link_file, write_bytes_atomically
from boxtwin.labels.formats import format_of, get_format
from boxtwin.labels.store_images import without_ending


def convert(path: Path, folder: Path) -> tuple[str, list[str]]:
    """Write ``annotations.json`` and ``images/`` of a data set into a new ``folder``; what it holds, and remarks.

    Image files are found in and below the folder of the labels, by their names, and linked. Raises `InputError` where
    labels have no image, or several could be meant.
    """
    name = format_of(path)
    labels = get_format(name).read(path)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"folder={folder} exists; choose another, or remove it first")
    root = path if path.is_dir() else path.parent
    files = image_files(root)
    by_name: dict[str, set[str]] = defaultdict(set)
    for file in files:
        short = "/".join(part for part in Path(without_ending(file)).parts if part != "images")
        for key in (file, Path(file).name, without_ending(Path(file).name), short):
            by_name[key].add(file)
    found: dict[str, str] = {}
    lost = []
    for image in labels.images:
        candidates = [
            by_name[key] for key in (image.name, Path(image.name).name, without_ending(Path(image.name).name))
        ]
        exact = next((each for each in candidates if len(each) == 1), None)
        if exact is None:
            lost.append(image.name)
        else:
            found[image.name] = next(iter(exact))
    if lost:
        raise InputError(f"read={path}: {len(lost)} labelled images have no image file below {root}: {some(lost)}")
    if len({*found.values()}) < len(labels.images):
        raise InputError(f"read={path}: several label files are of one image; put each set into a folder of its own")
    entries, annotations = [], []
    numbers = {each: number for number, each in enumerate(labels.classes, start=1)}
    for number, image in enumerate(sorted(labels.images, key=lambda each: found[each.name]), start=1):
        file = found[image.name]
        try:
            width, height = read_header((root / file).read_bytes(), file).shown(Reading())
        except OSError as error:
            raise InputError(str(error)) from None
        sized = image.in_pixels(width, height)
        if None not in (image.width, image.height) and (image.width, image.height) != (width, height):
            sizes = f"{image.width} x {image.height} pixels, the image has {width} x {height}"
            raise InputError(f"read={path}: {image.name} is said to have {sizes}")
        marks = {} if image.confirmed is None else {"confirmed": image.confirmed}
        entries.append({"id": number, "file_name": file, "width": width, "height": height, **marks})
        for (x1, y1, x2, y2), label, _ in sized.boxes:
            box = [x1, y1, x2 - x1, y2 - y1]
            annotations.append((number, numbers[label], box, box[2] * box[3], False))
    content = coco_content(entries, annotations, ((number, each) for each, number in numbers.items()))
    with atomic_path(folder) as temporary:
        for file in found.values():
            (temporary / "images" / file).parent.mkdir(parents=True, exist_ok=True)
            link_file(root / file, temporary / "images" / file)
        write_bytes_atomically(temporary / "annotations.json", json.dumps(content).encode())
        if folder.exists():
            folder.rmdir()
    described = f"{len(entries)} images, {len(annotations)} boxes, classes: {', '.join(labels.classes)}"
    return f"{name}: {described}\n{folder / 'annotations.json'}", list(labels.remarks)
