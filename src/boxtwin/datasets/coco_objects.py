"""From the annotations of a COCO file to the checked objects of each image."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from boxtwin.boxes import Box
from boxtwin.datasets import coco_boxes
from boxtwin.datasets.problems import Problems, shown, some

BadBoxPolicy = Literal["error", "clip", "drop"]
DuplicateBoxPolicy = Literal["warn", "merge", "error"]

BOX_CURE = "Mend the file, or choose dataset.on_bad_box=clip (cut boxes at the border) or =drop."
Content = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class CocoObject:
    """One annotation after the checks; ``box`` is xyxy in pixels."""

    category_id: int
    box: Box
    area: float
    crowd: bool


def read_objects(
    content: Content,
    sizes: Mapping[int, tuple[int, int]],
    on_bad_box: BadBoxPolicy,
    problems: Problems,
    remarks: list[str],
) -> tuple[dict[int, list[CocoObject]], Counter[str]]:
    """The checked objects of every image, by its id, and how many bad boxes were clipped or dropped.

    Args:
        content: of the file, as `boxtwin.datasets.coco_json.read_content` gives it.
        sizes: width and height of the images that could be read, by id.
        on_bad_box: as in `boxtwin.datasets.coco.read_coco`.
        problems: gets what is wrong.
        remarks: gets what a user should know.
    """
    repairs: Counter[str] = Counter()
    objects: dict[int, list[CocoObject]] = defaultdict(list)
    names = {entry["id"]: entry["file_name"] for entry in content["images"]}
    # In the order of their ids: the same annotations are the same data in whatever order the file lists them.
    entries = sorted((e for e in content["annotations"] if e["image_id"] in sizes), key=lambda entry: entry["id"])
    told = [(box, entry) for entry in entries if (box := coco_boxes.box_numbers(entry["bbox"])) is not None]
    boxes = np.array([box for box, _ in told], dtype=np.float64).reshape(-1, 4)
    shapes = np.array([sizes[entry["image_id"]] for _, entry in told], dtype=np.float64).reshape(-1, 2)
    areas = np.array([coco_boxes.told_area(entry) for _, entry in told], dtype=np.float64)
    kind, cure = coco_boxes.other_format(boxes, shapes, areas)
    if kind:
        for _, entry in told:
            problems.add(kind, f"{names[entry['image_id']]}: bbox {entry['bbox']} (annotation {entry['id']})")
        problems.cures[kind] = f"COCO boxes are [x, y, width, height] in pixels. {cure}"
        return objects, repairs
    if reach := coco_boxes.left_upper_part(boxes, shapes):
        remarks.append(
            "no box reaches beyond {:.0%} of the width and {:.0%} of the height of its image: are the labels for "
            "images of another size?".format(*reach)
        )
    if ratio := coco_boxes.area_ratio(boxes, areas):
        remarks.append(
            f"areas are {ratio:.2g} times those of their boxes: COCO sorts objects into small, medium and large by them"
        )
    lines = [coco_boxes.outline(entry.get("segmentation")) for _, entry in told]
    drawn = np.array([place for place, line in enumerate(lines) if line is not None], dtype=np.int64)
    far = coco_boxes.far_from(boxes[drawn], np.array([lines[place] for place in drawn]).reshape(-1, 4))
    if far.any():
        images = sorted({names[told[place][1]["image_id"]] for place in drawn[far]})
        remarks.append(
            f"{far.sum()} of {len(far)} boxes are not those around their segmentation, in {some(images)}: one of the "
            "two is of another object, another size of the image, or written in another way. bbox is what is used"
        )
    bad: dict[str, list[str]] = defaultdict(list)
    for entry in entries:
        image = names[entry["image_id"]]
        fault, box = coco_boxes.check_box(entry["bbox"], *sizes[entry["image_id"]])
        if fault and on_bad_box == "error":
            cure = coco_boxes.SHARES_CURE if fault == coco_boxes.NORMALISED else BOX_CURE
            problems.add(fault, f"{image}: bbox {entry['bbox']} (annotation {entry['id']})", cure)
        elif fault and (on_bad_box == "drop" or box is None):
            bad["dropped"].append(image)
        else:
            assert box is not None
            if fault:
                bad["clipped"].append(image)
            area = coco_boxes.area_of(entry, box, clipped=bool(fault))
            if area is None:
                kind = "areas that are not finite and positive"
                problems.add(kind, f"{image}: area {shown(entry['area'])} (annotation {entry['id']})")
                continue
            objects[entry["image_id"]].append(CocoObject(entry["category_id"], box, area, entry["iscrowd"]))
    if coco_boxes.OVERHANGING in problems.offenders and coco_boxes.look_like_centres(boxes, shapes):
        problems.cures[coco_boxes.OVERHANGING] += " All would lie inside if x and y were their centres; are they?"
    for action, where in bad.items():
        repairs[action] = len(where)
        remarks.append(f"dataset.on_bad_box={on_bad_box}: {len(where)} bad boxes {action}, in {some(sorted({*where}))}")
    turned = [names[entry["image_id"]] for entry in entries if coco_boxes.is_turned(entry)]
    if turned:
        remarks.append(
            f"{len(turned)} boxes of turned rectangles (attributes.rotation, as CVAT writes it), in "
            f"{some(sorted({*turned}))}: bbox is the rectangle before it was turned, not the box around the object"
        )
    return objects, repairs


def without_repeats(
    content: Content,
    objects: Mapping[int, list[CocoObject]],
    policy: DuplicateBoxPolicy,
    repairs: Counter[str],
    problems: Problems,
    remarks: list[str],
) -> dict[int, list[CocoObject]]:
    """The objects of every image, those that repeat another one named or left out."""
    kept: dict[int, list[CocoObject]] = defaultdict(list, objects)
    where: list[str] = []
    in_two_classes: list[str] = []
    for entry in content["images"]:
        ones = objects.get(entry["id"], [])
        boxes = np.array([one.box for one in ones], dtype=np.float64).reshape(-1, 4)
        repeats = coco_boxes.repeats(boxes, [(one.category_id, one.crowd) for one in ones])
        elsewhere = set(coco_boxes.repeats(boxes, [one.crowd for one in ones])).difference(repeats)
        in_two_classes += [entry["file_name"]] * sum(not ones[place].crowd for place in elsewhere)
        where += [entry["file_name"]] * len(repeats)
        for place in repeats if policy == "error" else ():
            box = [round(value, 2) for value in ones[place].box]
            cure = "Delete one of each, or set dataset.on_duplicate_box=merge or =warn."
            problems.add(
                "boxes that stand there twice", f"{entry['file_name']}: {box} (left, top, right, bottom)", cure
            )
        if policy == "merge":
            kept[entry["id"]] = [one for place, one in enumerate(ones) if place not in repeats]
    if in_two_classes:
        remarks.append(
            f"{len(in_two_classes)} boxes lie on a box of another class (nearly the same place), in "
            f"{some(sorted({*in_two_classes}))}: each counts as an object"
        )
    if where and policy != "error":
        said = f"{len(where)} boxes stand there twice (same class, nearly the same place), in {some(sorted({*where}))}"
        if policy == "merge":
            repairs["merged"] = len(where)
            remarks.append(f"{said}: one of each is kept")
        else:
            remarks.append(f"{said}: each counts as an object. Set dataset.on_duplicate_box=merge to keep one of each")
    return kept
