"""Boxes of a COCO file: check each, recognise data sets whose boxes are written in another way, and remove repeats.

``bbox`` is [x, y, width, height] in pixels of the image, from its left upper corner.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float

from boxtwin.boxes import Box, clip_xyxy, iou_matrix
from boxtwin.datasets.problems import Problems, shown, some

# Boxes are often written with two decimals; an overhang below that is rounding, not an error.
ROUNDING = 0.01
# Two boxes of one class that overlap so much are one object: of two objects, one would hide the other.
SAME_OBJECT = 0.95
AT_ONCE = 256  # boxes that are held against all others of their image: bounded memory
HUGE = 1e9  # pixels; numbers beyond are no sizes, and must not overflow
FEW = 5  # boxes below which nothing can be said of how all of them are written

NOT_FINITE = "boxes that are not four finite numbers [x, y, width, height]"
EMPTY = "boxes that are empty"
OUTSIDE = "boxes that lie outside their image"
OVERHANGING = "boxes that reach outside their image"
NORMALISED = "boxes that look normalised"
SHARES_CURE = "Multiply x and width by the image's width, y and height by its height, for pixels."
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
    told = [(box, entry) for entry in entries if (box := box_numbers(entry["bbox"])) is not None]
    boxes = np.array([box for box, _ in told], dtype=np.float64).reshape(-1, 4)
    shapes = np.array([sizes[entry["image_id"]] for _, entry in told], dtype=np.float64).reshape(-1, 2)
    areas = np.array([told_area(entry) for _, entry in told], dtype=np.float64)
    kind, cure = other_format(boxes, shapes, areas)
    if kind:
        for _, entry in told:
            problems.add(kind, f"{names[entry['image_id']]}: bbox {entry['bbox']} (annotation {entry['id']})")
        problems.cures[kind] = f"COCO boxes are [x, y, width, height] in pixels. {cure}"
        return objects, repairs
    if reach := left_upper_part(boxes, shapes):
        remarks.append(
            "no box reaches beyond {:.0%} of the width and {:.0%} of the height of its image: are the labels for "
            "images of another size?".format(*reach)
        )
    if ratio := area_ratio(boxes, areas):
        remarks.append(
            f"areas are {ratio:.2g} times those of their boxes: COCO sorts objects into small, medium and large by them"
        )
    lines = [outline(entry.get("segmentation")) for _, entry in told]
    drawn = np.array([place for place, line in enumerate(lines) if line is not None], dtype=np.int64)
    far = far_from(boxes[drawn], np.array([lines[place] for place in drawn]).reshape(-1, 4))
    if far.any():
        images = sorted({names[told[place][1]["image_id"]] for place in drawn[far]})
        remarks.append(
            f"{far.sum()} of {len(far)} boxes are not those around their segmentation, in {some(images)}: one of the "
            "two is of another object, another size of the image, or written in another way. bbox is what is used"
        )
    bad: dict[str, list[str]] = defaultdict(list)
    for entry in entries:
        image = names[entry["image_id"]]
        fault, box = check_box(entry["bbox"], *sizes[entry["image_id"]])
        if fault and on_bad_box == "error":
            cure = SHARES_CURE if fault == NORMALISED else BOX_CURE
            problems.add(fault, f"{image}: bbox {entry['bbox']} (annotation {entry['id']})", cure)
        elif fault and (on_bad_box == "drop" or box is None):
            bad["dropped"].append(image)
        else:
            assert box is not None
            if fault:
                bad["clipped"].append(image)
            area = area_of(entry, box, clipped=bool(fault))
            if area is None:
                kind = "areas that are not finite and positive"
                problems.add(kind, f"{image}: area {shown(entry['area'])} (annotation {entry['id']})")
                continue
            objects[entry["image_id"]].append(CocoObject(entry["category_id"], box, area, entry["iscrowd"]))
    if OVERHANGING in problems.offenders and look_like_centres(boxes, shapes):
        problems.cures[OVERHANGING] += " All would lie inside if x and y were their centres; are they?"
    for action, where in bad.items():
        repairs[action] = len(where)
        remarks.append(f"dataset.on_bad_box={on_bad_box}: {len(where)} bad boxes {action}, in {some(sorted({*where}))}")
    turned = [names[entry["image_id"]] for entry in entries if is_turned(entry)]
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
        repeated = repeats(boxes, [(one.category_id, one.crowd) for one in ones])
        elsewhere = set(repeats(boxes, [one.crowd for one in ones])).difference(repeated)
        in_two_classes += [entry["file_name"]] * sum(not ones[place].crowd for place in elsewhere)
        where += [entry["file_name"]] * len(repeated)
        for place in repeated if policy == "error" else ():
            box = [round(value, 2) for value in ones[place].box]
            cure = "Delete one of each, or set dataset.on_duplicate_box=merge or =warn."
            problems.add(
                "boxes that stand there twice", f"{entry['file_name']}: {box} (left, top, right, bottom)", cure
            )
        if policy == "merge":
            kept[entry["id"]] = [one for place, one in enumerate(ones) if place not in repeated]
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


def check_box(bbox: object, width: int, height: int) -> tuple[str, Box | None]:
    """Name what is wrong with an xywh box ("" if nothing), and give the xyxy box left after clipping, if any."""
    numbers = box_numbers(bbox)
    if numbers is None:
        return NOT_FINITE, None
    if _is_share(numbers):
        return NORMALISED, None
    x, y, w, h = numbers
    if w <= ROUNDING or h <= ROUNDING:
        return EMPTY, None
    inside, overhang = fit_box((x, y, x + w, y + h), width, height)
    if inside[2] - inside[0] <= ROUNDING or inside[3] - inside[1] <= ROUNDING:
        return OUTSIDE, None
    return OVERHANGING if overhang > ROUNDING else "", inside


def fit_box(box: Box, width: int, height: int) -> tuple[Box, float]:
    """An xyxy box cut off at the border of its image, and by how many pixels it reached outside at most."""
    x1, y1, x2, y2 = clip_xyxy(np.array(box), width, height).tolist()
    return (x1, y1, x2, y2), max(-box[0], -box[1], box[2] - width, box[3] - height)


def box_numbers(bbox: object) -> Box | None:
    """The four numbers of a box; None if they are not four, or not finite."""
    if not isinstance(bbox, list) or len(bbox) != 4:
        return None
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in bbox):
        return None
    try:
        x, y, w, h = (float(value) for value in bbox)
    except OverflowError:
        return None
    return (x, y, w, h) if all(map(math.isfinite, (x, y, w, h))) else None


def _is_share(numbers: Box) -> bool:
    """Whether a box is within the first pixel and not of whole numbers: no object is so small, a share of 1 is."""
    low, high = -ROUNDING, 1 + ROUNDING
    return all(low <= value <= high for value in numbers) and max(numbers[2:]) > 0 and any(v % 1 for v in numbers)


def other_format(
    boxes: Float[np.ndarray, "n 4"], sizes: Float[np.ndarray, "n 2"], areas: Float[np.ndarray, " n"]
) -> tuple[str, str]:
    """How the boxes of a whole data set seem to be written, and how to mend it; "" and "" if as [x, y, width, height].

    Args:
        boxes: the numbers of all annotations that have four finite ones.
        sizes: width and height of the image of each, pixels.
        areas: as the file tells them, nan where it does not.
    """
    boxes = boxes.clip(-HUGE, HUGE)
    if not len(boxes):
        return "", ""
    # 1. Shares of the image: objects in the first pixel alone are no objects.
    real = boxes[(boxes[:, 2:] > 0).all(axis=1)]  # some tools write [0, 0, 0, 0] where there is no object
    if len(real) and (np.abs(real - 0.5) <= 0.5 + ROUNDING).all(axis=1).mean() > 0.5:
        return NORMALISED, SHARES_CURE
    # 2. Corners lie inside the image and are in order; taken for sizes, many of them lead far out of it, or the file's
    # own areas are not theirs. Of boxes that are what they should be, small ones have corners out of order.
    if len(boxes) < FEW:
        return "", ""
    first, second = boxes[:, :2], boxes[:, 2:]
    beyond = (first + second > 1.05 * sizes).any(axis=1)  # more than a sloppy border
    as_corners = _inside(first, second, sizes)
    matches_area = np.isclose(np.prod(second - first, axis=1), areas, rtol=0.05) & as_corners
    of_size = np.isclose(np.prod(second, axis=1), areas, rtol=0.05)
    if as_corners.mean() > 0.99 and (beyond.mean() > 0.1 or (matches_area & ~of_size).mean() > 0.5):
        return "boxes that look like corners [x1, y1, x2, y2]", "Write [x1, y1, x2 - x1, y2 - y1] in their place."
    return "", ""


def look_like_centres(boxes: Float[np.ndarray, "n 4"], sizes: Float[np.ndarray, "n 2"]) -> bool:
    """Whether boxes that reach outside their images would all lie inside if x and y were their centres."""
    first, second = np.split(boxes.clip(-HUGE, HUGE), 2, axis=1)
    inside = _inside(first - second / 2, first + second / 2, sizes)
    return len(boxes) >= FEW and bool(inside.mean() > 0.99)


def _inside(
    low: Float[np.ndarray, "n 2"], high: Float[np.ndarray, "n 2"], sizes: Float[np.ndarray, "n 2"]
) -> Bool[np.ndarray, " n"]:
    inside = (low >= -1) & (high <= sizes + 1) & (high > low)
    return np.asarray(inside.all(axis=1))


def left_upper_part(boxes: Float[np.ndarray, "n 4"], sizes: Float[np.ndarray, "n 2"]) -> tuple[float, float] | None:
    """The part of width and height beyond which no box of a data set reaches, where it is suspiciously small."""
    boxes = boxes.clip(-HUGE, HUGE)
    reach = ((boxes[:, :2] + boxes[:, 2:]) / sizes).max(axis=0) if len(boxes) >= 50 else np.ones(2)
    return (float(reach[0]), float(reach[1])) if reach.max() < 0.7 else None


def outline(segmentation: object) -> Box | None:
    """The xyxy box around the polygons of an annotation; None where it has none (run lengths) or no numbers."""
    if not isinstance(segmentation, list) or not segmentation:
        return None
    try:
        polygons = [np.array(polygon, dtype=np.float64).reshape(-1, 2) for polygon in segmentation]
    except (TypeError, ValueError, OverflowError):
        return None
    points = np.concatenate(polygons)
    if min(map(len, polygons)) < 3 or not np.isfinite(points).all():
        return None
    (x1, y1), (x2, y2) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
    return x1, y1, x2, y2


def far_from(boxes: Float[np.ndarray, "n 4"], outlines: Float[np.ndarray, "n 4"]) -> Bool[np.ndarray, " n"]:
    """Which xywh boxes are not those around their xyxy outlines, not even nearly: they overlap by less than half."""
    low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    inside = np.clip(np.minimum(high, outlines[:, 2:]) - np.maximum(low, outlines[:, :2]), 0, None).prod(axis=1)
    both = boxes[:, 2:].prod(axis=1) + (outlines[:, 2:] - outlines[:, :2]).prod(axis=1)
    return np.asarray(2 * inside < both - inside)


def area_ratio(boxes: Float[np.ndarray, "n 4"], areas: Float[np.ndarray, " n"]) -> float | None:
    """The median ratio of told areas to those of xywh boxes, where it is none of masks in boxes; else None."""
    own = boxes[:, 2:].clip(-HUGE, HUGE).prod(axis=1)
    told = np.isfinite(areas) & (own > 0)
    ratio = float(np.median(areas[told] / own[told])) if told.sum() >= FEW else 1.0
    return None if 0.02 <= ratio <= 2 else ratio


def repeats(boxes: Float[np.ndarray, "n 4"], kinds: Sequence[object]) -> list[int]:
    """The places of those xyxy boxes of an image that repeat an earlier one of the same kind."""
    found: list[int] = []
    for kind in dict.fromkeys(kinds):
        places = np.array([place for place, other in enumerate(kinds) if other == kind])
        those = boxes[places]
        for start in range(0, len(those), AT_ONCE):
            overlaps = iou_matrix(those[start : start + AT_ONCE], those) >= SAME_OBJECT
            found += places[start : start + AT_ONCE][np.tril(overlaps, start - 1).any(axis=1)].tolist()
    return sorted(found)


def is_turned(annotation: Mapping[str, Any]) -> bool:
    """Whether an annotation is a rectangle that CVAT shows turned: its ``bbox`` is the one before it was turned."""
    attributes = annotation.get("attributes")
    angle = attributes.get("rotation") if isinstance(attributes, dict) else None
    try:
        return bool(float(angle or 0) % 180)
    except (TypeError, ValueError):
        return False


def told_area(annotation: Mapping[str, Any]) -> float:
    """The area that an annotation tells; nan if it tells none."""
    try:
        return float(annotation.get("area") or math.nan)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def area_of(annotation: Mapping[str, Any], box: Box, *, clipped: bool) -> float | None:
    """The annotation's own area, or that of its box where it tells none; None if what it tells is no area.

    Nothing is left of what was cut off: the area of a clipped object is its clipped box's at most.
    """
    of_box = (box[2] - box[0]) * (box[3] - box[1])
    try:
        own = float(annotation.get("area") or of_box)
    except (TypeError, ValueError, OverflowError):
        return None
    if not math.isfinite(own) or own < 0:
        return None
    return min(own, of_box) if clipped else own
