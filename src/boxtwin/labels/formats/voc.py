"""Pascal VOC: one XML file an image, corners in whole pixels.

Files are written and read as labelImg, CVAT, Label Studio and Roboflow do it: ``xmin`` and ``ymin`` are the left and
upper border of a box, 0 at the border of the image. (The files of the VOC challenges themselves count pixels from 1:
their boxes come out one pixel narrower.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import SubElement

from boxtwin.boxes import Box
from boxtwin.datasets.image_folder import image_files
from boxtwin.datasets.image_names import without_ending
from boxtwin.errors import InputError
from boxtwin.files import write_bytes_atomically
from boxtwin.labels.formats.image_pairs import OF_LABELS, pair, without_folders
from boxtwin.labels.formats.labelled_image import (
    LabelledBox,
    LabelledImage,
    Labels,
    class_name,
    label_files,
    with_marks,
    without_label_file,
)
from boxtwin.labels.formats.xml_text import number, read_xml, xml_bytes
from boxtwin.labels.formats.yolo import read_not_confirmed, write_not_confirmed

FOLDER = "Annotations"
CORNERS = ("xmin", "ymin", "xmax", "ymax")


def write(folder: Path, images: Sequence[LabelledImage], classes: Sequence[str]) -> None:
    """Write ``Annotations/``, the class names and the list of images that nobody has confirmed."""
    for image in images:
        width, height = image.size()
        root = ElementTree.Element("annotation")
        SubElement(root, "folder").text = "images"
        SubElement(root, "filename").text = image.file
        size = SubElement(root, "size")
        for name, value in (("width", width), ("height", height), ("depth", 3)):
            SubElement(size, name).text = str(value)
        SubElement(root, "segmented").text = "0"
        for (x1, y1, x2, y2), name, *_ in image.boxes:
            entry = SubElement(root, "object")
            SubElement(entry, "name").text = name
            SubElement(entry, "pose").text = "Unspecified"
            SubElement(entry, "truncated").text = SubElement(entry, "difficult").text = "0"
            bounds = SubElement(entry, "bndbox")
            for corner, value in zip(CORNERS, as_written((x1, y1, x2, y2), width, height), strict=True):
                SubElement(bounds, corner).text = str(value)
        write_bytes_atomically(folder / FOLDER / f"{Path(image.file).stem}.xml", xml_bytes(root))
    write_bytes_atomically(folder / "classes.txt", "".join(f"{name}\n" for name in classes).encode())
    write_not_confirmed(folder, images)


def as_written(box: Box, width: int, height: int) -> tuple[int, int, int, int]:
    """A box (xyxy) in whole pixels; of one that is too narrow for it, the pixel that holds its middle."""
    (left, right), (top, bottom) = _side_of(box[0], box[2], width), _side_of(box[1], box[3], height)
    return left, top, right, bottom


def _side_of(start: float, end: float, longest: int) -> tuple[int, int]:
    first, last = math.floor(start + 0.5), math.floor(end + 0.5)
    if first >= last or first >= longest:
        first = max(min(math.floor((start + end) / 2), longest - 1), 0)
        last = first + 1
    return first, last


def read(path: Path) -> Labels:
    """Read a folder. Class names are those that its files use; images without a file are images without objects."""
    images, classes, difficult = [], set(), 0
    for file in label_files(path, ".xml"):
        root = read_xml(file)
        if root.tag != "annotation":
            raise InputError(f"{file} begins with <{root.tag}>, not with <annotation> as Pascal VOC files do")
        boxes = []
        for entry in root.iterfind("object"):
            bounds, name = entry.find("bndbox"), class_name(entry.findtext("name", ""))
            if bounds is None or not name:
                raise InputError(f"{file}: an object without {'name' if bounds is not None else 'bndbox'}")
            x1, y1, x2, y2 = (number(bounds, corner, file) for corner in CORNERS)
            difficult += entry.findtext("difficult", "").strip() == "1"
            boxes.append(LabelledBox((x1, y1, x2, y2), name))
            classes.add(name)
        # The file's own name counts: tools leave the field as it was when images are renamed.
        named = root.findtext("filename") or ""
        base = named if Path(named).stem == file.stem else file.stem
        name = without_folders((file.relative_to(path).parent / Path(base).name).as_posix(), OF_LABELS)
        width, height = (_side(root.findtext(f"size/{side}")) for side in ("width", "height"))
        images.append(LabelledImage(name, width, height, tuple(boxes)))
    files = list(image_files(path))
    matched, remarks = pair((image.name for image in images), files, of_label_files=True)
    bare = sorted({*files}.difference(matched.values()))
    images += [LabelledImage(name, None, None) for name in bare]
    if difficult:
        remarks.append(f"{difficult} objects are marked as difficult and count as any other")
    if not images:
        raise InputError(f"{path} holds neither labels (*.xml) nor images")
    marked = read_not_confirmed(path)
    by_name = (
        None if marked is None else {image.name for image in images if Path(without_ending(image.name)).name in marked}
    )
    return Labels(with_marks(images, by_name), sorted(classes), [*remarks, *without_label_file(bare)])


def _side(text: str | None) -> int | None:
    """Width or height of an image in pixels; None where the file does not say it, as scripts without the image do."""
    try:
        side = float(text or "")
    except ValueError:
        return None
    return int(side) if math.isfinite(side) and side > 0 else None
