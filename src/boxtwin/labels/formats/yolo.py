"""YOLO text files: ``class x y width height`` a line, centre and size in shares of the image.

https://docs.ultralytics.com/datasets/detect: ``labels/NAME.txt`` beside ``images/NAME.png``, class names in
``data.yaml``; other tools write them to ``classes.txt`` or ``obj.names``, one a line. Lines of three points or more are
polygons; where ``data.yaml`` has ``kpt_shape``, they are boxes with keypoints, which are left out.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from boxtwin.boxes import Box
from boxtwin.datasets.image_folder import image_files
from boxtwin.errors import InputError
from boxtwin.files import write_bytes_atomically
from boxtwin.labels.formats.labelled_image import (
    LabelledBox,
    LabelledImage,
    Labels,
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
    has_keypoints = named.suffix.lower() in YAML and "kpt_shape" in _content(named)
    images, seen, pictures = [], set(), image_files(path)
    files = label_files(path, ".txt")
    for file in sorted({*files}.difference([named], _lists(path, files, pictures))):
        stem = "/".join(part for part in file.relative_to(path).with_suffix("").parts if part != "labels")
        seen.add(stem)
        boxes = tuple(_boxes(file, names, has_keypoints=has_keypoints))
        images.append(LabelledImage(stem, width=None, height=None, boxes=boxes, in_shares=True))
    stems = ["/".join(part for part in Path(name).with_suffix("").parts if part != "images") for name in pictures]
    # Folders of images have other names too, so that a base name counts that one image and one text file have.
    bases, labelled = (Counter(Path(stem + ".txt").stem for stem in each) for each in (stems, seen))
    by_base = [Path(stem + ".txt").stem for stem in stems]
    bare = [
        stem
        for stem, base in zip(stems, by_base, strict=True)
        if stem not in seen and not bases[base] == labelled[base] == 1
    ]
    images += [LabelledImage(stem, width=None, height=None, in_shares=True) for stem in bare]
    if not images:
        raise InputError(f"{path} holds neither labels (*.txt) nor images")
    marked = read_not_confirmed(path)
    by_path = None if marked is None else {image.name for image in images if Path(image.name + ".txt").stem in marked}
    return Labels(with_marks(images, by_path), names, without_label_file(bare))


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
        lines = [line.strip() for line in read_text(file).rstrip().splitlines()]
        if not all(lines):
            raise InputError(f"{file} has an empty line between the names of classes: which number is whose?")
        return lines
    try:
        names = _content(file)["names"]
        if isinstance(names, dict):
            names = [names[str(index)] for index in range(len(names))]
        if isinstance(names, str) or not all(isinstance(name, str) and name.strip() not in ("", "~") for name in names):
            raise TypeError("they are no list of names")
        return [name.strip() for name in names]
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


def _boxes(file: Path, names: Sequence[str], *, has_keypoints: bool) -> Iterator[LabelledBox]:
    for number, line in enumerate(read_text(file).splitlines(), start=1):
        words = line.split()
        if not words:
            continue
        where = f"{file}, line {number}"
        try:
            label, values = int(words[0]), [float(word) for word in words[1:]]
        except ValueError:
            raise InputError(f"{where}: {line!r} is no class number with a box") from None
        if has_keypoints:
            values = values[:4]
        if len(values) >= 6 and len(values) % 2 == 0:  # a polygon: its points
            xs, ys = values[::2], values[1::2]
            box: Box = (min(xs), min(ys), max(xs), max(ys))
        elif len(values) in (4, 5):  # a detector's files have the score behind the box
            x, y, w, h = values[:4]
            box = (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
        else:
            raise InputError(f"{where}: {len(values)} numbers behind the class; a box has 4")
        if not all(map(math.isfinite, box)) or max(map(abs, box)) > 2:
            raise InputError(f"{where}: {line!r} is not in shares of the image's width and height")
        if not 0 <= label < len(names):
            raise InputError(f"{where}: class {label}, but there are names of {len(names)}")
        yield LabelledBox(box, names[label], values[4] if len(values) == 5 else None)
