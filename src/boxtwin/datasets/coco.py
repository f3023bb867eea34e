"""Reading and checking a COCO detection set. Everything is looked at before anything is used.

The format: https://cocodataset.org/#format-data (object detection).
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from boxtwin.boxes import clip_xyxy
from boxtwin.datasets.inspection import ImageFile as _File
from boxtwin.datasets.inspection import inspect_image
from boxtwin.datasets.reading import Reading
from boxtwin.datasets.sample import Dataset, Sample
from boxtwin.errors import InputError

log = logging.getLogger(__name__)

BadBoxPolicy = Literal["error", "clip", "drop"]

# Boxes are often written with two decimals; an overhang below that is rounding, not an error.
ROUNDING = 0.01
OFFENDERS_SHOWN = 10


@dataclass
class _Problems:
    """What is wrong with a data set, gathered so that one error can tell it all."""

    offenders: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, kind: str, offender: object) -> None:
        self.offenders[kind].append(str(offender))

    def raise_if_any(self, annotations: Path) -> None:
        if not self.offenders:
            return
        total = sum(len(found) for found in self.offenders.values())
        lines = [f"{annotations}: {total} problem(s), nothing was used:"]
        for kind, found in self.offenders.items():
            lines.append(f"  {kind}: {len(found)}")
            lines += [f"    {offender}" for offender in found[:OFFENDERS_SHOWN]]
            if len(found) > OFFENDERS_SHOWN:
                lines.append(f"    … and {len(found) - OFFENDERS_SHOWN} more")
        if any(kind.startswith("box") for kind in self.offenders):
            lines.append("Mend the file, or choose dataset.on_bad_box=clip (cut boxes at the border) or =drop.")
        else:
            lines.append("Mend the file or the folder and start again.")
        raise InputError("\n".join(lines))


@dataclass(frozen=True)
class _Object:
    """One annotation after the checks; ``box`` is xyxy in pixels."""

    category_id: int
    box: tuple[float, float, float, float]
    area: float
    crowd: bool


def _load_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"{path} does not exist; set dataset.root (and dataset.annotations) to your COCO data set"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid JSON: {error}") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    wanted: dict[str, tuple[str, ...]] = {
        "images": ("id", "file_name"),
        "annotations": ("id", "image_id", "category_id", "bbox"),
        "categories": ("id", "name"),
    }
    for key, fields in wanted.items():
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise InputError(f"{path}: a COCO detection file needs a list under '{key}'")
        for position, entry in enumerate(content[key]):
            missing = [name for name in fields if not isinstance(entry, dict) or name not in entry]
            if missing:
                raise InputError(f"{path}: {key}[{position}] lacks {', '.join(missing)}")
            for name in fields:
                if not name.endswith("id"):
                    continue
                if not _is_whole(entry[name]):
                    raise InputError(f"{path}: {key}[{position}]: {name} must be a whole number, not {entry[name]!r}")
                entry[name] = int(entry[name])
            if key == "images" and not isinstance(entry["file_name"], str):
                raise InputError(f"{path}: images[{position}]: file_name must be text, not {entry['file_name']!r}")
    return content


def _is_whole(value: object) -> bool:
    # Some tools write every number with a point: 7.0 is the id 7.
    return value.is_integer() if isinstance(value, float) else type(value) is int


def _duplicates(values: Sequence[object]) -> list[object]:
    return [value for value, times in Counter(values).items() if times > 1]


def _check_ids(content: dict[str, Any], problems: _Problems) -> None:
    for key in ("images", "annotations", "categories"):
        for duplicate in _duplicates([entry["id"] for entry in content[key]]):
            problems.add(f"duplicate ids in {key}", duplicate)
    for duplicate in _duplicates([str(PurePosixPath(entry["file_name"])) for entry in content["images"]]):
        problems.add("file names used twice", duplicate)
    images = {entry["id"] for entry in content["images"]}
    categories = {entry["id"] for entry in content["categories"]}
    for entry in content["annotations"]:
        if entry["image_id"] not in images:
            problems.add("annotations of unknown images", f"annotation {entry['id']}: image_id {entry['image_id']}")
        if entry["category_id"] not in categories:
            problems.add(
                "annotations of unknown categories", f"annotation {entry['id']}: category_id {entry['category_id']}"
            )


def _is_inside(file_name: str) -> bool:
    path = PurePosixPath(file_name.replace("\\", "/"))
    return not path.is_absolute() and ".." not in path.parts and ":" not in path.parts[0] if path.parts else False


def _check_files(content: dict[str, Any], folder: Path, problems: _Problems, reading: Reading) -> dict[int, _File]:
    """Decode every image once: a file cut short shows only then."""
    safe = []
    for entry in content["images"]:
        if not _is_inside(str(entry["file_name"])):
            problems.add("file names that point outside the image folder", entry["file_name"])
        else:
            safe.append(entry)
    with ThreadPoolExecutor(max_workers=4) as pool:
        found = pool.map(
            lambda entry: inspect_image(folder / entry["file_name"], entry.get("width"), entry.get("height"), reading),
            safe,
        )
        # Silent for the few hundred images of a small data set: they take a second or two.
        files = list(tqdm(found, total=len(safe), desc="checking images", unit="image", disable=len(safe) < 1000))
    result = {}
    for entry, file in zip(safe, files, strict=True):
        if file.error:
            missing = not (folder / entry["file_name"]).exists()
            kind = "missing from" if missing else "unreadable in"
            problems.add(f"images {kind} {folder}", entry["file_name"] if missing else file.error)
            continue
        told = (entry.get("width", file.width), entry.get("height", file.height))
        if told not in ((file.width, file.height), file.stored):
            problems.add(
                "images of another size than told",
                f"{entry['file_name']}: {told[0]} x {told[1]} told, {file.width} x {file.height} found",
            )
        result[entry["id"]] = file
    if turned := sum(file.is_turned for file in result.values()):
        log.info(
            "%d of %d images are turned as their orientation tag (EXIF) says, as labelling tools show them; if boxes "
            "refer to the pixels as they are stored: dataset.orientation=ignore",
            *(turned, len(safe)),
        )
    return result


def _numbers(bbox: object) -> tuple[float, float, float, float] | None:
    if not isinstance(bbox, list) or len(bbox) != 4:
        return None
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in bbox):
        return None
    try:
        x, y, w, h = (float(value) for value in bbox)
    except OverflowError:
        return None
    return x, y, w, h


def _area(annotation: dict[str, Any], box: tuple[float, float, float, float], *, clipped: bool) -> float | None:
    """The annotation's own area, or that of its box where it tells none; None if what it tells is no area.

    Nothing is left of what was cut off: the area of a clipped object is its clipped box's at most.
    """
    of_box = (box[2] - box[0]) * (box[3] - box[1])
    told = annotation.get("area") or of_box
    try:
        own = float(told)
    except (TypeError, ValueError, OverflowError):
        return None
    if not math.isfinite(own) or own < 0:
        return None
    return min(own, of_box) if clipped else own


def _check_box(bbox: object, file: _File) -> tuple[str, tuple[float, float, float, float] | None]:
    """Name what is wrong with an xywh box ("" if nothing), and give the xyxy box left after clipping, if any."""
    numbers = _numbers(bbox)
    if numbers is None or not all(map(math.isfinite, numbers)):
        return "boxes that are not four finite numbers", None
    x, y, w, h = numbers
    if w <= ROUNDING or h <= ROUNDING:
        return "boxes that are empty", None
    x1, y1, x2, y2 = clip_xyxy(np.array([x, y, x + w, y + h]), file.width, file.height).tolist()
    if x2 - x1 <= ROUNDING or y2 - y1 <= ROUNDING:
        return "boxes that lie outside their image", None
    overhang = max(-x, -y, x + w - file.width, y + h - file.height)
    fault = "boxes that reach outside their image" if overhang > ROUNDING else ""
    return fault, (x1, y1, x2, y2)


def read_coco(
    *,
    name: str,
    images: Path,
    annotations: Path,
    group_by: str | None = None,
    on_bad_box: BadBoxPolicy = "error",
    reading: Reading = Reading(),  # noqa: B008 (frozen)
) -> Dataset:
    """Read a COCO detection set and check all of it.

    Args:
        name: what the data set is called in runs and reports.
        images: folder that the file names start from.
        annotations: the COCO file.
        group_by: regular expression whose first group, found in the file name, names the group (scene) that must stay
            on one side of a split; None makes every image its own group.
        on_bad_box: what to do with boxes that are empty, not finite or reach outside their image. ``clip`` cuts them
            off at the border and drops those of which nothing is left; ``drop`` drops them; both count in `repairs`.
        reading: how image files become pixels; boxes refer to these.

    Raises:
        InputError: lists everything that is wrong, how many of each kind, and the first ten offenders.
    """
    content = _load_json(annotations)
    problems = _Problems()
    _check_ids(content, problems)
    files = _check_files(content, images, problems, reading)

    repairs: Counter[str] = Counter()
    objects: dict[int, list[_Object]] = defaultdict(list)
    # In the order of their ids: the same annotations are the same data in whatever order the file lists them.
    for entry in sorted(content["annotations"], key=lambda entry: entry["id"]):
        file = files.get(entry["image_id"])
        if file is None:
            continue
        fault, box = _check_box(entry["bbox"], file)
        if fault and on_bad_box == "error":
            problems.add(fault, f"annotation {entry['id']} of image {entry['image_id']}: bbox {entry['bbox']}")
        elif fault and (on_bad_box == "drop" or box is None):
            repairs["dropped"] += 1
        else:
            assert box is not None
            repairs["clipped"] += bool(fault)
            area = _area(entry, box, clipped=bool(fault))
            if area is None:
                problems.add(
                    "areas that are not finite and positive",
                    f"annotation {entry['id']} of image {entry['image_id']}: area {entry['area']}",
                )
                continue
            objects[entry["image_id"]].append(_Object(entry["category_id"], box, area, bool(entry.get("iscrowd", 0))))

    pattern = _compile_group(group_by)
    groups: dict[int, str] = {}
    for entry in content["images"]:
        match = pattern.search(entry["file_name"]) if pattern else None
        group = match.group(1) if match else None
        if pattern and not group:
            problems.add(f"file names in which group_by={group_by!r} finds nothing", entry["file_name"])
        groups[entry["id"]] = group or entry["file_name"]
    if not content["categories"]:
        problems.add("no categories", annotations)
    if not content["images"]:
        problems.add("no images", annotations)
    problems.raise_if_any(annotations)

    categories = sorted(content["categories"], key=lambda category: category["id"])
    class_of = {category["id"]: index for index, category in enumerate(categories)}
    samples = tuple(
        _sample(entry, images, files[entry["id"]], objects[entry["id"]], class_of, groups[entry["id"]], reading)
        for entry in sorted(content["images"], key=lambda entry: str(entry["file_name"]))
    )
    classes = tuple(str(category["name"]) for category in categories)
    return Dataset(
        name=name,
        classes=classes,
        category_ids=tuple(category["id"] for category in categories),
        samples=samples,
        digest=digest_of(samples, classes),
        repairs={action: count for action, count in repairs.items() if count},
    )


def _compile_group(group_by: str | None) -> re.Pattern[str] | None:
    if group_by is None:
        return None
    try:
        pattern = re.compile(group_by)
    except re.error as error:
        raise InputError(f"group_by={group_by!r} is no regular expression: {error}") from None
    if pattern.groups < 1:
        raise InputError(f"group_by={group_by!r} needs a group in brackets that picks the scene, such as '^([^_]+)_'")
    return pattern


def _sample(
    entry: dict[str, Any],
    folder: Path,
    file: _File,
    objects: list[_Object],
    class_of: dict[int, int],
    group: str,
    reading: Reading,
) -> Sample:
    return Sample(
        name=entry["file_name"],
        path=folder / entry["file_name"],
        width=file.width,
        height=file.height,
        image_id=entry["id"],
        boxes=np.array([one.box for one in objects], dtype=np.float32).reshape(-1, 4),
        labels=np.array([class_of[one.category_id] for one in objects], dtype=np.int64),
        areas=np.array([one.area for one in objects], dtype=np.float64),
        crowd=np.array([one.crowd for one in objects], dtype=bool),
        group=group,
        sha256=file.sha256,
        bits=file.bits,
        reading=reading,
    )


def digest_of(samples: Sequence[Sample], classes: Sequence[str]) -> str:
    """Sha256 over class names, image bytes and boxes: two sets with the same digest are the same data."""
    total = hashlib.sha256(json.dumps(list(classes)).encode())
    for sample in samples:
        total.update(f"{sample.name}\0{sample.sha256}\0".encode())
        for array in (sample.boxes, sample.labels, sample.areas, sample.crowd):
            total.update(array.tobytes())
    return total.hexdigest()
