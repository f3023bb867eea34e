"""Label formats of other tools: labels out to people, and back. Each module writes and reads one format.

They are written by hand because no library keeps all that has to come back; see docs/labels.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from boxtwin.boxes import Box
from boxtwin.datasets.coco_json import load_json
from boxtwin.errors import InputError
from boxtwin.labels.formats import coco, cvat, label_studio, voc, yolo
from boxtwin.labels.formats.labelled_image import LabelledBox, LabelledImage, Labels, label_files
from boxtwin.labels.formats.xml_text import read_xml

__all__ = ["FORMATS", "LabelledBox", "LabelledImage", "Labels", "format_of", "get_format", "write_labels"]


class Format(NamedTuple):
    """How a format is written and read, and by how much a box that nobody changed may differ when it comes back."""

    write: Callable[[Path, Sequence[LabelledImage], Sequence[str]], None]
    read: Callable[[Path], Labels]
    rounding: float = 0.01  # pixels
    # The box that is written for a box (xyxy) in an image of this width and height, where it may differ by more.
    as_written: Callable[[Box, int, int], Box] | None = None


FORMATS = {
    "coco": Format(coco.write, coco.read),
    "label_studio": Format(label_studio.write, label_studio.read),
    "cvat": Format(cvat.write, cvat.read),
    "yolo": Format(yolo.write, yolo.read),
    "voc": Format(voc.write, voc.read, rounding=0.5, as_written=voc.as_written),
}


def get_format(name: str) -> Format:
    """A format by its name; `InputError` if there is none."""
    if name not in FORMATS:
        raise InputError(f"there is no format {name!r}: choose one of {', '.join(FORMATS)}")
    return FORMATS[name]


def write_labels(name: str, images: Sequence[LabelledImage], classes: Sequence[str], folder: Path) -> None:
    """Write labels in the format ``name`` into ``folder``, whose ``images/`` holds, or will hold, the image files."""
    get_format(name).write(folder, images, classes)


def format_of(path: Path) -> str:
    """The format of what came back from a tool, by its content; `InputError` if it is none."""
    if path.is_dir():
        return _format_of_folder(path)
    if not path.exists():
        raise InputError(f"read={path} does not exist")
    if path.suffix.lower() == ".xml":
        root = read_xml(path).tag
        if root == "annotations":
            return "cvat"
        if root == "annotation":
            raise InputError(f"read={path} is one file of several; give its folder")
        raise InputError(f"read={path} begins with <{root}>, which no known format does")
    if path.suffix.lower() == ".zip":
        raise InputError(f"read={path} is a zip archive; unpack it first")
    if path.suffix.lower() != ".json":
        raise InputError(f"read={path}: give a .json or .xml file, or a folder of .txt or .xml files")
    content = load_json(path, setting="read=")
    if isinstance(content, dict) and "images" in content:
        return "coco"
    if isinstance(content, list) and all(isinstance(task, dict) for task in content):
        if all("data" in task for task in content):
            return "label_studio"
        raise InputError(
            f"read={path} is no list of tasks with data; export the kind JSON from Label Studio, not JSON-MIN"
        )
    raise InputError(f"read={path} is neither COCO (with images) nor Label Studio's JSON (a list of tasks)")


def _format_of_folder(folder: Path) -> str:
    for file, name in ((label_studio.TASKS, "label_studio"), (coco.FILE, "coco"), (cvat.FILE, "cvat")):
        if (folder / file).is_file():
            return name
    if label_files(folder, ".xml"):
        return "voc"
    if not all(map(yolo.is_list, label_files(folder, ".txt"))) or yolo.names_files(folder):
        return "yolo"
    raise InputError(f"read={folder} holds no labels: neither .json, .xml nor .txt files of a known format")
