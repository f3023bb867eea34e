"""Read and check a COCO detection set, all of it before any of it is used; build the content of one.

The format: https://cocodataset.org/#format-data (object detection).
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from boxtwin.datasets.coco_boxes import CocoObject, Content, read_crowds, read_objects, without_repeats
from boxtwin.datasets.coco_json import (
    NO_TEXT,
    check_content,
    fault_of_name,
    file_key,
    find_files,
    load_content,
    read_content,
)
from boxtwin.datasets.inspection import ImageFile, inspect_image, join_groups, roboflow_name
from boxtwin.datasets.options import Crowds, OnBadBox, OnDuplicateBox
from boxtwin.datasets.problems import Problems, some
from boxtwin.datasets.reading import Reading
from boxtwin.datasets.sample import Dataset, Sample
from boxtwin.errors import InputError

log = logging.getLogger(__name__)

OTHER_SIZE = "Boxes are in pixels of the images that were labelled: take those, or export the labels for these."
DOUBLED = "{}/ stands twice in the path: set dataset.images to the folder above (dataset.images=. for dataset.root)."


def _check_files(content: Content, folder: Path, problems: Problems, reading: Reading) -> dict[int, ImageFile]:
    """Decode every image once: a file cut short shows only then. Each entry gets the ``path`` of its file."""
    safe = []
    for entry in content["images"]:
        if fault := fault_of_name(entry["file_name"]):
            problems.add(fault, entry["file_name"])
        else:
            safe.append(entry)
    named: dict[Path, list[str]] = defaultdict(list)
    for entry, path in zip(safe, find_files([entry["file_name"] for entry in safe], folder), strict=True):
        named[path].append(entry["file_name"])
        entry["path"] = path
    for names in named.values():
        if len(names) > 1:
            problems.add("file names used twice", " = ".join(names))
    with ThreadPoolExecutor(max_workers=4) as pool:
        inspected = pool.map(lambda e: inspect_image(e["path"], e.get("width"), e.get("height"), reading), safe)
        # Silent for the few hundred images of a small data set: they take a second or two.
        files = list(tqdm(inspected, total=len(safe), desc="checking images", unit="image", disable=len(safe) < 1000))
    readable, unturned = {}, []
    for entry, file in zip(safe, files, strict=True):
        name = entry["file_name"]
        if file.error and entry["path"].exists():
            problems.add(f"images unreadable in {folder}", file.error)
        elif file.error:
            path = Path(file_key(name))
            is_doubled = path.parts[0] == folder.name and (folder.parent / path).exists()
            problems.add(f"images missing from {folder}", name, DOUBLED.format(folder.name) if is_doubled else "")
        else:
            stated = (entry.get("width", file.width), entry.get("height", file.height))
            if stated not in ((file.width, file.height), file.stored):
                sizes = f"{stated[0]} x {stated[1]} stated, {file.width} x {file.height} in the file"
                problems.add("images of another size than stated", f"{name}: {sizes}", OTHER_SIZE)
            elif stated == file.stored != (file.width, file.height):
                unturned.append(name)
            readable[entry["id"]] = file
    problems.remark(
        unturned,
        "images are stated to have the size that is stored, and are turned as their orientation tag (EXIF) says",
        "if boxes are of the stored pixels, all lie wrong: set dataset.orientation=ignore, or state the size as shown",
    )
    if turned := sum(file.is_turned for file in readable.values()):
        what = "%d of %d images are turned as their orientation tag (EXIF) says, as labelling tools show them; if boxes"
        log.info(f"{what} refer to the pixels as they are stored: dataset.orientation=ignore", turned, len(safe))
    return readable


def read_coco(
    *,
    name: str,
    images: Path,
    annotations: Path,
    group_by: str | None = None,
    on_bad_box: OnBadBox = OnBadBox.error,
    crowds: Crowds = Crowds.ignore,
    on_duplicate_box: OnDuplicateBox = OnDuplicateBox.warn,
    reading: Reading = Reading(),  # noqa: B008 (frozen)
    content: Content | None = None,
) -> Dataset:
    """Read a COCO detection set and check all of it; one `InputError` lists everything that is wrong.

    Args:
        images: folder that the file names in ``annotations`` start from.
        group_by: regular expression whose first group, found in the file name, names the group (scene) that must stay
            on one side of a split; None makes every image its own group, but the copies of one image that Roboflow has
            written. Images with the same pixels are always of one group.
        on_bad_box: boxes of which clipping leaves nothing are dropped; `repairs` counts both.
        reading: how image files become pixels; boxes refer to these.
        content: the part of ``annotations`` to read (`of_images`); None reads the whole file.
    """
    try:
        pattern = None if group_by is None else re.compile(group_by)
    except re.error as error:
        raise InputError(f"group_by={group_by!r} is no regular expression: {error}") from None
    if pattern is not None and pattern.groups < 1:
        raise InputError(f"group_by={group_by!r} needs a group in brackets that picks the scene, such as '^([^_]+)_'")
    problems = Problems()
    content = check_content(load_content(annotations) if content is None else content, problems)
    files = _check_files(content, images, problems, reading)
    sizes = {number: (file.width, file.height) for number, file in files.items()}
    objects, repairs = read_objects(content, sizes, on_bad_box, problems)
    read_crowds(content, objects, crowds, problems)
    repairs["merged"] = without_repeats(content, objects, on_duplicate_box, problems)
    for key in ("categories", "images"):
        if not content[key]:
            problems.add(f"no {key}", annotations)
    groups = _group(content, files, pattern, problems)
    coloured = [entry["file_name"] for entry in content["images"] if (f := files.get(entry["id"])) and f.colour]
    if len(coloured) < len(files):
        advice = "all are trained on as images with colour"
        problems.remark(coloured, f"of {len(files)} images have colour, the others are grey", advice)
    problems.raise_if_any(annotations)
    if unconfirmed := [entry["file_name"] for entry in content["images"] if entry.get("confirmed") is False]:
        text = "%s: no person has confirmed the labels of %d of its %d images (%s); they are used as they are"
        log.warning(text, annotations, len(unconfirmed), len(content["images"]), some(unconfirmed))

    categories = sorted(content["categories"], key=lambda category: category["id"])
    class_of = {category["id"]: index for index, category in enumerate(categories)}
    samples = []
    for entry in sorted(content["images"], key=lambda entry: entry["file_name"]):
        file = files[entry["id"]]
        samples.append(
            Sample(
                name=entry["file_name"],
                path=entry["path"],
                width=file.width,
                height=file.height,
                image_id=entry["id"],
                **_arrays(objects[entry["id"]], class_of),
                group=groups[entry["file_name"]],
                sha256=file.sha256,
                signature=file.signature,
                bits=file.bits,
                colour=file.colour,
                reading=reading,
            )
        )
    classes = tuple(category["name"] for category in categories)
    return Dataset(
        name=name,
        classes=classes,
        category_ids=tuple(category["id"] for category in categories),
        samples=tuple(samples),
        digest=digest_of(samples, classes),
        repairs={action: count for action, count in repairs.items() if count},
        remarks=tuple(problems.remarks),
    )


def read_labels(
    annotations: Path,
    *,
    on_bad_box: OnBadBox = OnBadBox.error,
    crowds: Crowds = Crowds.ignore,
    on_duplicate_box: OnDuplicateBox = OnDuplicateBox.warn,
    shown_size: Callable[[str], tuple[int, int] | None] = lambda _: None,
) -> Dataset:
    """Read the labels of a COCO file and check them as `read_coco` does, without the images.

    ``shown_size`` knows the width and height of some images by name. It counts where the file states the size as stored
    of an image that is turned by its orientation tag.

    Raises `InputError` for everything that is wrong, also for images whose size the file does not state.
    """
    problems = Problems()
    content = read_content(annotations, problems)
    for entry in content["images"]:
        if fault_of_name(entry["file_name"]) == NO_TEXT:
            problems.add(NO_TEXT, entry["file_name"])
        elif not (entry.get("width") and entry.get("height")):
            problems.add("images without width and height", entry["file_name"])
    problems.raise_if_any(annotations)
    for entry in content["images"]:
        if shown_size(entry["file_name"]) == (entry["height"], entry["width"]):
            entry["width"], entry["height"] = entry["height"], entry["width"]
    sizes = {entry["id"]: (entry["width"], entry["height"]) for entry in content["images"]}
    objects, repairs = read_objects(content, sizes, on_bad_box, problems)
    read_crowds(content, objects, crowds, problems)
    repairs["merged"] = without_repeats(content, objects, on_duplicate_box, problems)
    problems.raise_if_any(annotations)
    categories = sorted(content["categories"], key=lambda category: category["id"])
    class_of = {category["id"]: index for index, category in enumerate(categories)}
    samples = tuple(
        Sample(
            name=entry["file_name"],
            path=Path(entry["file_name"]),
            width=entry["width"],
            height=entry["height"],
            image_id=entry["id"],
            **_arrays(objects[entry["id"]], class_of),
        )
        for entry in content["images"]
    )
    classes = tuple(category["name"] for category in categories)
    ids = tuple(category["id"] for category in categories)
    return Dataset(annotations.name, classes, ids, samples, digest_of(samples, classes), dict(repairs))


def _arrays(ones: Sequence[CocoObject], class_of: Mapping[int, int]) -> dict[str, Any]:
    """The objects of an image as `Sample` has them."""
    return {
        "boxes": np.array([one.box for one in ones], dtype=np.float32).reshape(-1, 4),
        "labels": np.array([class_of[one.category_id] for one in ones], dtype=np.int64),
        "areas": np.array([one.area for one in ones], dtype=np.float64),
        "crowd": np.array([one.crowd for one in ones], dtype=bool),
        "annotations": tuple(one.ids for one in ones),
    }


def _group(
    content: Content, files: Mapping[int, ImageFile], pattern: re.Pattern[str] | None, problems: Problems
) -> dict[str, str]:
    """The group (scene) of every image, by its name."""
    groups: dict[str, str] = {}
    copies: dict[str, list[str]] = defaultdict(list)
    by_pixels: dict[str, list[str]] = defaultdict(list)
    for entry in content["images"]:
        name, file = entry["file_name"], files.get(entry["id"])
        match = pattern.search(name) if pattern else None
        groups[name] = (match and match.group(1)) or name
        if pattern and not (match and match.group(1)):
            problems.add(f"file names in which group_by={pattern.pattern!r} finds nothing", name)
        if pattern is None and (original := roboflow_name(name)):
            copies[original].append(name)
        if file is not None and file.signature is not None:
            by_pixels[file.signature.sha256].append(name)
    same, copied = ([names for names in alike.values() if len(names) > 1] for alike in (by_pixels, copies))
    if same:
        what = f"{sum(map(len, same))} images are {len(same)} different ones: the others are the same pixels under"
        pairs = some([" = ".join(names[:3]) for names in same])
        problems.remarks.append(f"{what} other names ({pairs}). They are kept on one side of a split")
    if copied:
        what = f"{sum(map(len, copied))} images are Roboflow's copies of {len(copied)} originals ({some(copied[0])})"
        problems.remarks.append(f"{what}: kept on one side of a split")
    return join_groups(groups, [*same, *copied])


def digest_of(samples: Sequence[Sample], classes: Sequence[str]) -> str:
    """Sha256 over class names, image bytes and boxes: two sets with the same digest are the same data."""
    total = hashlib.sha256(json.dumps(list(classes)).encode())
    for sample in samples:
        total.update(f"{sample.name}\0{sample.sha256}\0".encode())
        for array in (sample.boxes, sample.labels, sample.areas, sample.crowd):
            total.update(array.tobytes())
    return total.hexdigest()


def coco_content(
    images: Sequence[Mapping[str, Any]],
    annotations: Iterable[tuple[int, int, Sequence[int | float], int | float, bool]],
    categories: Iterable[tuple[int, str]],
) -> dict[str, Any]:
    """The content of a COCO detection file.

    Images have ``id``, ``file_name``, ``width``, ``height`` and more; annotations image id, category id, box (xywh,
    pixels), area (square pixels) and whether they are a crowd; categories id and name. Annotations are numbered from 1:
    pycocotools takes an annotation numbered 0 for "not matched".
    """
    names = ("id", "image_id", "category_id", "bbox", "area", "iscrowd")
    numbered = ((number, *values, int(crowd)) for number, (*values, crowd) in enumerate(annotations, start=1))
    return {
        "images": list(images),
        "annotations": [dict(zip(names, values, strict=True)) for values in numbered],
        "categories": [{"id": number, "name": name} for number, name in categories],
    }
