"""CVAT for images 1.1: one XML file. https://docs.cvat.ai/docs/dataset_management/formats/format-cvat/

An image that is not confirmed has a tag, which a person removes in CVAT when its boxes are right.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import SubElement

from boxtwin.boxes import Box
from boxtwin.errors import InputError
from boxtwin.files import write_bytes_atomically
from boxtwin.labels.formats.labelled_image import LabelledBox, LabelledImage, Labels, class_name
from boxtwin.labels.formats.xml_text import number, read_xml, xml_bytes

FILE, LABELS = "annotations.xml", "labels.json"
TAG = "not confirmed"
CORNERS = ("xtl", "ytl", "xbr", "ybr")


def write(folder: Path, images: Sequence[LabelledImage], classes: Sequence[str]) -> None:
    """Write ``annotations.xml``, and ``labels.json``: the labels that a task in CVAT needs, for its field Raw."""
    root = ElementTree.Element("annotations")
    SubElement(root, "version").text = "1.1"
    labels = SubElement(SubElement(SubElement(root, "meta"), "task"), "labels")
    kinds = [(name, "rectangle") for name in classes] + [(TAG, "tag")]
    for name, kind in kinds:
        label = SubElement(labels, "label")
        SubElement(label, "name").text = name
        SubElement(label, "type").text = kind
        SubElement(label, "attributes")
    for index, image in enumerate(images):
        width, height = image.size()
        entry = SubElement(root, "image", id=str(index), name=image.file, width=str(width), height=str(height))
        for box, name, *_ in image.boxes:
            corners = dict(zip(CORNERS, (f"{value:.6f}" for value in box), strict=True))
            SubElement(entry, "box", {"label": name, "source": "auto", "occluded": "0", **corners, "z_order": "0"})
        if image.confirmed is False:
            SubElement(entry, "tag", label=TAG, source="auto")
    write_bytes_atomically(folder / FILE, xml_bytes(root))
    raw = [{"name": name, "type": kind, "attributes": []} for name, kind in kinds]
    write_bytes_atomically(folder / LABELS, json.dumps(raw, indent=1, ensure_ascii=False).encode())


def read(path: Path) -> Labels:
    """Read an export of the kind "CVAT for images 1.1", or ``annotations.xml`` of a folder."""
    file = path / FILE if path.is_dir() else path
    root = read_xml(file)
    if root.tag != "annotations":
        raise InputError(f"{file} begins with <{root.tag}>, not with <annotations> as CVAT's files do")
    if root.find("track") is not None:
        raise InputError(f"{file} is in the format CVAT for video; export CVAT for images 1.1")
    names = [class_name(label.findtext("name", "")) for label in root.iterfind("meta/*/labels/label")]
    names += [class_name(label.findtext("name", "")) for label in root.iterfind("meta/*/*/labels/label")]
    images, turned, others = [], 0, 0
    for entry in root.iterfind("image"):
        boxes = []
        for shape in entry:
            if shape.tag == "box":
                box, is_turned = _box(shape, file)
                turned += is_turned
                boxes.append(LabelledBox(box, class_name(shape.get("label", ""))))
            others += shape.tag not in ("box", "tag")
        is_tagged = any(tag.get("label") == TAG for tag in entry.iterfind("tag"))
        images.append(
            LabelledImage(
                entry.get("name", ""),
                int(number(entry, "width", file)),
                int(number(entry, "height", file)),
                tuple(boxes),
                # In a project without the tag, a missing tag says nothing.
                confirmed=not is_tagged if is_tagged or TAG in names else None,
            )
        )
    remarks = [f"{turned} rectangles are turned; the upright box around each is taken"] if turned else []
    remarks += [f"{others} shapes are no rectangles; they are left out"] if others else []
    used = [each.name for image in images for each in image.boxes]
    return Labels(images, [name for name in dict.fromkeys([*names, *used]) if name != TAG], remarks)


def _box(shape: ElementTree.Element, file: Path) -> tuple[Box, bool]:
    """The box (xyxy) around a rectangle, and whether it is turned about its centre."""
    x1, y1, x2, y2 = (number(shape, side, file) for side in CORNERS)
    angle = math.radians(number(shape, "rotation", file) if "rotation" in shape.attrib else 0.0)
    if angle % math.pi == 0:
        return (x1, y1, x2, y2), False
    sine, cosine = abs(math.sin(angle)), abs(math.cos(angle))
    half = ((x2 - x1) * cosine + (y2 - y1) * sine) / 2, ((x2 - x1) * sine + (y2 - y1) * cosine) / 2
    x, y = (x1 + x2) / 2, (y1 + y2) / 2
    return (x - half[0], y - half[1], x + half[0], y + half[1]), True
