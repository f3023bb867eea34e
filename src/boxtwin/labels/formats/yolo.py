"""YOLO text files: ``class x y width height`` a line, centre and size in shares of the image.

https://docs.ultralytics.com/datasets/detect: ``labels/NAME.txt`` beside ``images/NAME.png``, class names in
``data.yaml``; other tools write them to ``classes.txt`` or ``obj.names``, one a line. Lines of three points or more are
polygons; where a YAML file has ``kpt_shape`` or ``task: pose``, they are boxes with keypoints, which are left out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from boxtwin.boxes import Box
from boxtwin.datasets.image_folder import image_files
from boxtwin.datasets.image_names import without_ending
from boxtwin.errors import InputError
from boxtwin.files import write_bytes_atomically
from boxtwin.labels.formats.image_pairs import OF_IMAGES, OF_LABELS, pair, without_folders
from boxtwin.labels.formats.labelled_image import (
    LabelledBox,
    LabelledImage,
    Labels,
    class_name,
    label_files,
    with_marks,
    without_label_file,
)

NAMES = ("data.yaml", "data.yml", "dataset.yaml", "classes.txt", "obj.names", "labels/classes.txt")
YAML = (".yaml", ".yml")
NOT_CONFIRMED = "not_confirmed.txt"
NO_LABELS = ("classes.txt", NOT_CONFIRMED, "notes.txt", "train.txt", "val.txt", "valid.txt", "test.txt")


def write(folder: Path, images: Sequence[LabelledImage], classes: Sequence[str]) -> None:
    """Write ``labels/``, ``data.yaml``, ``classes.txt`` and the list of images that nobody has confirmed."""
    if unwritable := [name for name in classes if len(name.splitlines()) != 1]:
        raise InputError(f"classes {unwritable} cannot stand in a line of classes.txt")
    for image in images:
        width, height = image.size()
        lines = []
        for (x1, y1, x2, y2), name, *_ in image.boxes:
            shares = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
            lines.append(" ".join([str(classes.index(name)), *(f"{share:.8f}" for share in shares)]) + "\n")
        write_bytes_atomically(folder / "labels" / f"{Path(image.file).stem}.txt", "".join(lines).encode())
    names = "".join(f"  {index}: {json.dumps(name, ensure_ascii=False)}\n" for index, name in enumerate(classes))
    data = f"path: .\ntrain: images\nval: images\nnames:\n{names}"
    write_bytes_atomically(folder / "data.yaml", data.encode())
    write_bytes_atomically(folder / "classes.txt", "".join(f"{name}\n" for name in classes).encode())
    write_not_confirmed(folder, images)


def write_not_confirmed(folder: Path, images: Sequence[LabelledImage]) -> None:
    """Write the list of images that are marked as not confirmed, from which a person deletes those that are right."""
    names = [f"{image.file}\n" for image in images if image.confirmed is False]
    write_bytes_atomically(folder / NOT_CONFIRMED, "".join(names).encode())


def read_not_confirmed(folder: Path) -> set[str] | None:
    """The names in that list, without their endings; None without a list."""
    file = folder / NOT_CONFIRMED
    return {Path(line).stem for line in read_text(file).split("\n") if line.strip()} if file.is_file() else None


def read(path: Path) -> Labels:
    """Read a folder. Images without a text file, and text files without lines, are images without objects."""
    named, names = class_names(path)
    has_keypoints = _has_keypoints(path)
    images, seen, pictures = [], set(), image_files(path)
    longer: list[_Line] = []
    files = label_files(path, ".txt")
    for file in sorted({*files}.difference([named], _lists(path, files, pictures))):
        stem = without_folders(file.relative_to(path).with_suffix("").as_posix(), OF_LABELS[:1])
        seen.add(stem)
        lines = _lines(file, len(names))
        longer += [line for line in lines if len(line.values) >= 6]
        boxes = tuple(_box(line, names, has_keypoints=has_keypoints) for line in lines)
        images.append(LabelledImage(stem, width=None, height=None, boxes=boxes, in_shares=True))
    if has_keypoints is None and _may_be_keypoints([line.values for line in longer]):
        raise InputError(
            f"{longer[0].where}: the numbers behind the class may be a polygon, or a box with keypoints; put "
            "task: segment or task: pose into data.yaml"
        )
    matched, remarks = pair(seen, list(pictures), of_label_files=True)
    bare = [without_folders(without_ending(name), OF_IMAGES[:1]) for name in {*pictures}.difference(matched.values())]
    images += [LabelledImage(stem, width=None, height=None, in_shares=True) for stem in sorted(bare)]
    if not images:
        raise InputError(f"{path} holds neither labels (*.txt) nor images")
    marked = read_not_confirmed(path)
    by_path = None if marked is None else {image.name for image in images if Path(image.name + ".txt").stem in marked}
    return Labels(with_marks(images, by_path), names, [*remarks, *without_label_file(sorted(bare))])


def _lists(folder: Path, files: Sequence[Path], images: Iterable[str]) -> list[Path]:
    """Lists that tools put beside the labels; their lines are no boxes. Images may have such names too."""
    stems = {Path(name).stem for name in images}
    labels = [file for file in files if "labels" in (folder.name, *file.relative_to(folder).parent.parts)]
    in_labels = {file.stem for file in labels}
    beside = [file for file in files if file not in labels and (file.stem not in stems or file.stem in in_labels)]
    found = [file for file in beside if labels or is_list(file) or file.name.lower().startswith("readme")]
    return found + [file for file in labels if file.name.lower() == "classes.txt" and file.stem not in stems]


def is_list(file: Path) -> bool:
    """Whether a text file has the name of a list that tools write, in capitals or not."""
    return file.name.lower() in NO_LABELS


def names_files(folder: Path) -> list[Path]:
    """The files of a folder that may list the names of its classes, those that count first at the beginning."""
    there = {
        file.relative_to(folder).as_posix().lower(): file
        for place in (folder, folder / "labels")
        for file in sorted(place.glob("*"))
        if file.is_file()
    }
    return [there[name] for name in NAMES if name in there]


def class_names(folder: Path) -> tuple[Path, list[str]]:
    """The file of a folder's class names, and the names by their numbers.

    Raises `InputError` if there is none, or if two files give one number different names.
    """
    stems = {Path(name).stem for name in image_files(folder)}  # a text file may be an image's own
    files = names_files(folder)
    files = [file for file in files if file.suffix.lower() in YAML or file.stem not in stems] or files[:1]
    if not files:
        raise InputError(f"{folder} has no class names: put data.yaml, or classes.txt with one a line, there")
    first, names = files[0], _names_in(files[0])
    for file in files[1:]:
        try:
            others = _names_in(file)
        except InputError:  # it lists something else
            continue
        if differing := [pair for pair in zip(names, others, strict=False) if pair[0] != pair[1]]:
            one, other = differing[0]
            raise InputError(
                f"{first} and {file} name the classes differently, such as {one} and {other} for one number; "
                "remove the file that is wrong"
            )
    return first, names


def _content(file: Path) -> Any:
    """What a YAML file holds, with all values as they are written: no and 010 are names of classes."""
    return yaml.load(read_text(file), yaml.BaseLoader)


def _names_in(file: Path) -> list[str]:
    if file.suffix.lower() not in YAML:
        lines = [class_name(line) for line in read_text(file).rstrip().splitlines()]
        if not all(lines):
            raise InputError(f"{file} has an empty line between the names of classes: which number is whose?")
        return lines
    try:
        names = _content(file)["names"]
        if isinstance(names, dict):
            names = [names[str(index)] for index in range(len(names))]
        if isinstance(names, str) or not all(isinstance(name, str) and name.strip() not in ("", "~") for name in names):
            raise TypeError("they are no list of names")
        return [class_name(name) for name in names]
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise InputError(f"{file} lists no class names under names, numbered from 0: {error}") from None


def read_text(file: Path) -> str:
    """The text of a file in UTF-8."""
    try:
        return file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"{file} is no text in UTF-8") from None


class _Line(NamedTuple):
    """A line of a label file: the number of a class, and the numbers behind it."""

    where: str
    label: int
    values: list[float]


def _lines(file: Path, classes: int) -> list[_Line]:
    lines = []
    for number, text in enumerate(read_text(file).splitlines(), start=1):
        words = text.split()
        if not words:
            continue
        where = f"{file}, line {number}"
        try:
            line = _Line(where, int(words[0]), [float(word) for word in words[1:]])
        except ValueError:
            raise InputError(f"{where}: {text!r} must be a class number and numbers (x y width height)") from None
        if not 0 <= line.label < classes:
            raise InputError(f"{where}: class number {line.label}, but class names end at number {classes - 1}")
        lines.append(line)
    return lines


def _box(line: _Line, names: Sequence[str], *, has_keypoints: bool | None) -> LabelledBox:
    """The box of a line, with the score that a detector's files have behind it."""
    values = line.values[:4] if has_keypoints else line.values
    if has_keypoints is None and len(values) == 6 and values[5] >= 1 and values[5].is_integer():
        raise InputError(
            f"{line.where}: 6 numbers behind the class, of which the last is whole, may be a box, a score and the "
            "number of a track: write the labels without tracks. If it is a polygon, put task: segment into data.yaml"
        )
    if len(values) >= 6 and len(values) % 2 == 0:  # a polygon: its points
        xs, ys = values[::2], values[1::2]
        box: Box = (min(xs), min(ys), max(xs), max(ys))
    elif len(values) in (4, 5):
        x, y, w, h = values[:4]
        box = (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
    else:
        raise InputError(f"{line.where}: {len(values)} numbers behind the class; a box has 4")
    if not all(map(math.isfinite, box)) or max(map(abs, box)) > 2:
        raise InputError(f"{line.where}: {line.values} are not in shares of the image's width and height")
    return LabelledBox(box, names[line.label], values[4] if len(values) == 5 else None)


def _has_keypoints(folder: Path) -> bool | None:
    """What the YAML files of a folder say of lines with more numbers than a box has; None if they say nothing."""
    for file in sorted(each for each in folder.glob("*") if each.suffix.lower() in YAML and each.is_file()):
        try:
            content = _content(file)
        except (InputError, yaml.YAMLError):  # it is of something else
            continue
        if isinstance(content, dict) and ("kpt_shape" in content or "task" in content):
            return "kpt_shape" in content or content["task"] == "pose"
    return None


def _may_be_keypoints(lines: Sequence[Sequence[float]]) -> bool:
    """Whether lines of more than a box may be boxes with keypoints, and not polygons.

    All have as many numbers, and the first four are a box that holds the points behind it, with or without their
    visibility. Four corners of a quadrilateral, as of a turned box, are no keypoints.
    """
    if len({len(values) for values in lines}) != 1:
        return False
    rest = len(lines[0]) - 4
    steps = [step for step in (2, 3) if rest % step == 0]
    quadrilaterals = len(lines[0]) == 8 and all(map(_is_convex, lines))
    return not quadrilaterals and any(all(_holds(values, step) for values in lines) for step in steps)


def _holds(values: Sequence[float], step: int) -> bool:
    x, y, w, h = values[:4]
    points = [values[first : first + step] for first in range(4, len(values), step)]
    if step == 3 and not all(visible in (0, 1, 2) for *_, visible in points):
        return False
    shown = [each for each in points if any(each[:2])]  # a point that nobody marked is at 0, 0
    inside = (abs(px - x) <= w / 2 + 1e-6 and abs(py - y) <= h / 2 + 1e-6 for px, py, *_ in shown)
    return x - w / 2 >= -1e-3 and y - h / 2 >= -1e-3 and x + w / 2 <= 1.001 and y + h / 2 <= 1.001 and all(inside)


def _is_convex(values: Sequence[float]) -> bool:
    points = [values[first : first + 2] for first in range(0, 8, 2)]
    turns = []
    for (ax, ay), (bx, by), (cx, cy) in zip(points, points[1:] + points[:1], points[2:] + points[:2], strict=True):
        turns.append((bx - ax) * (cy - by) - (by - ay) * (cx - bx))
    return all(turn > 0 for turn in turns) or all(turn < 0 for turn in turns)
