"""Boxes of a COCO file: check each, recognise data sets whose boxes are written in another way, and remove repeats.

``bbox`` is [x, y, width, height] in pixels of the image, from its left upper corner.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from boxtwin.boxes import Box, clip_xyxy, iou_matrix
from boxtwin.datasets.options import Crowds, OnBadBox, OnDuplicateBox
from boxtwin.datasets.problems import Problems, shown, some

ROUNDING = 0.01  # pixels: boxes are often written with two decimals
SAME_OBJECT = 0.95  # overlap from which two boxes of a class are one object: of two, one would hide the other
AT_ONCE = 256  # boxes that are compared with all others of their image: bounded memory
HUGE = 1e9  # pixels; numbers beyond are no sizes, and must not overflow
FEW = 5  # boxes below which nothing can be said of how all of them are written

NOT_FINITE = "boxes that are not four finite numbers [x, y, width, height]"
EMPTY = "boxes that are empty"
OUTSIDE = "boxes that lie outside their image"
OVERHANGING = "boxes that reach outside their image"
NORMALISED = "boxes that look normalised"
SHARES_CURE = "Multiply x and width by the image's width, y and height by its height, for pixels."
BOX_CURE = "Mend the file, or choose dataset.on_bad_box=clip (cut boxes at the border) or =drop."

Content = dict[str, list[dict[str, Any]]]
Boxes = Float[np.ndarray, "n 4"]
Sizes = Float[np.ndarray, "n 2"]  # width and height of the image of each box


@dataclass(frozen=True)
class CocoObject:
    """One object after the checks: ``box`` is xyxy in pixels, ``ids`` its annotations (of merged repeats several)."""

    category_id: int
    box: Box
    area: float
    crowd: bool
    ids: tuple[int, ...]


def read_objects(
    content: Content, sizes: Mapping[int, tuple[int, int]], on_bad_box: OnBadBox, problems: Problems
) -> tuple[dict[int, list[CocoObject]], Counter[str]]:
    """The checked objects of every image, by its id, and how many bad boxes were clipped or dropped.

    ``content`` is what `read_content` gives, ``sizes`` the width and height of the images that could be read, by id.
    """
    repairs: Counter[str] = Counter()
    objects: dict[int, list[CocoObject]] = defaultdict(list)
    names = {entry["id"]: entry["file_name"] for entry in content["images"]}
    # In the order of their ids: the same annotations are the same data in whatever order the file lists them.
    entries = sorted((e for e in content["annotations"] if e["image_id"] in sizes), key=lambda entry: entry["id"])
    numeric = [(box, entry) for entry in entries if (box := box_numbers(entry["bbox"])) is not None]
    boxes = np.array([box for box, _ in numeric], dtype=np.float64).reshape(-1, 4)
    shapes = np.array([sizes[entry["image_id"]] for _, entry in numeric], dtype=np.float64).reshape(-1, 2)
    areas = np.array([stated_area(entry) for _, entry in numeric], dtype=np.float64)

    def refuse(kind: str, entry: Mapping[str, Any], what: str, cure: str = "") -> None:
        problems.add(kind, f"{names[entry['image_id']]}: {what} (annotation {entry['id']})", cure)

    kind, cure = other_format(boxes, shapes, areas)
    if kind:
        for _, entry in numeric:
            refuse(kind, entry, f"bbox {entry['bbox']}", f"COCO boxes are [x, y, width, height] in pixels. {cure}")
        return objects, repairs
    if reach := left_upper_part(boxes, shapes):
        part = f"{reach[0]:.0%} of the width and {reach[1]:.0%} of the height of its image"
        problems.remarks.append(f"no box reaches beyond {part}: are the labels for images of another size?")
    own_areas = boxes[:, 2:].clip(-HUGE, HUGE).prod(axis=1)
    stated = np.isfinite(areas) & (own_areas > 0)
    ratio = float(np.median(areas[stated] / own_areas[stated])) if stated.sum() >= FEW else 1.0
    if not 0.02 <= ratio <= 2:  # masks in boxes have less than 1
        what = f"areas are {ratio:.2g} times those of their boxes"
        problems.remarks.append(f"{what}: COCO sorts objects into small, medium and large by them")
    drawn = [(entry, box, line) for box, entry in numeric if (line := outline(entry)) is not None]
    problems.remark(
        [names[entry["image_id"]] for entry, box, line in drawn if _is_far_from(box, line)],
        f"of {len(drawn)} boxes are not those around their segmentation",
        "one of the two is of another object, another size of the image, or written in another way. bbox is used",
    )
    repaired: dict[str, list[str]] = defaultdict(list)
    for entry in entries:
        fault, box = check_box(entry["bbox"], *sizes[entry["image_id"]])
        if fault and on_bad_box is OnBadBox.error:
            refuse(fault, entry, f"bbox {entry['bbox']}", SHARES_CURE if fault == NORMALISED else BOX_CURE)
            continue
        if fault:
            box = None if on_bad_box is OnBadBox.drop else box
            repaired["clipped" if box else "dropped"].append(names[entry["image_id"]])
        if box is None:
            continue
        of_box = (box[2] - box[0]) * (box[3] - box[1])
        area = stated_area(entry) if entry.get("area") else of_box
        if not (math.isfinite(area) and area >= 0):
            refuse("areas that are not finite and positive", entry, f"area {shown(entry['area'])}")
            continue
        area = min(area, of_box) if fault else area
        objects[entry["image_id"]].append(CocoObject(entry["category_id"], box, area, entry["iscrowd"], (entry["id"],)))
    first, second = np.split(boxes.clip(-HUGE, HUGE), 2, axis=1)
    as_centres = _inside(first - second / 2, first + second / 2, shapes)
    if OVERHANGING in problems.offenders and len(boxes) >= FEW and as_centres.mean() > 0.99:
        problems.cures[OVERHANGING] += " All would lie inside if x and y were their centres; are they?"
    for action, images in repaired.items():
        repairs[action] = len(images)
        what = f"{len(images)} bad boxes {action}, in {some(sorted({*images}))}"
        problems.remarks.append(f"dataset.on_bad_box={on_bad_box}: {what}")
    problems.remark(
        [names[entry["image_id"]] for entry in entries if is_turned(entry)],
        "boxes of turned rectangles (attributes.rotation, as CVAT writes it)",
        "bbox is the rectangle before it was turned, not the box around the object",
    )
    return objects, repairs


def read_crowds(content: Content, objects: dict[int, list[CocoObject]], policy: Crowds, problems: Problems) -> None:
    """Remark how many annotations are crowds, and make objects of them if that is the policy."""
    crowds = [entry["file_name"] for entry in content["images"] for one in objects.get(entry["id"], ()) if one.crowd]
    consequence = {
        Crowds.objects: "taken for single objects, dataset.crowds=objects",
        Crowds.ignore: "neither learnt, as objects or as background, nor counted. If they are single objects drawn as "
        "masks, as CVAT's brush writes them, set dataset.crowds=objects",
    }
    what = f"of {sum(map(len, objects.values()))} annotations are crowds (iscrowd 1)"
    problems.remark(crowds, what, consequence[policy])
    for number, ones in objects.items() if policy is Crowds.objects else ():
        objects[number] = [replace(one, crowd=False) for one in ones]


def without_repeats(
    content: Content, objects: dict[int, list[CocoObject]], policy: OnDuplicateBox, problems: Problems
) -> int:
    """Remark on objects that repeat another one of their image; with ``merge``, remove them and return how many."""
    repeating: list[str] = []  # names of images
    in_two_classes: list[str] = []
    for entry in content["images"]:
        name, ones = entry["file_name"], objects.get(entry["id"], [])
        boxes = np.array([one.box for one in ones], dtype=np.float64).reshape(-1, 4)
        repeated = repeats(boxes, [(one.category_id, one.crowd) for one in ones])
        elsewhere = set(repeats(boxes, [one.crowd for one in ones])).difference(repeated)
        in_two_classes += [name] * sum(not ones[index].crowd for index in elsewhere)
        repeating += [name] * len(repeated)
        for index in repeated if policy is OnDuplicateBox.error else ():
            box = [round(value, 2) for value in ones[index].box]
            cure = "Delete one of each, or set dataset.on_duplicate_box=merge or =warn."
            problems.add("boxes that stand there twice", f"{name}: {box} (left, top, right, bottom)", cure)
        if policy is OnDuplicateBox.merge and repeated:
            objects[entry["id"]] = _merged(ones, boxes, repeated)
    what = "boxes lie on a box of another class (nearly the same place)"
    problems.remark(in_two_classes, what, "each counts as an object")
    consequence = {
        OnDuplicateBox.merge: "one of each is kept",
        OnDuplicateBox.warn: "each counts as an object. Set dataset.on_duplicate_box=merge to keep one of each",
    }
    if policy in consequence:
        what = "boxes stand there twice (same class, nearly the same place)"
        problems.remark(repeating, what, consequence[policy])
    return len(repeating) if policy is OnDuplicateBox.merge else 0


def _merged(ones: Sequence[CocoObject], boxes: Boxes, repeated: Sequence[int]) -> list[CocoObject]:
    """The objects that do not repeat another one, each with the annotations of those that repeat it."""
    kept = {index: one for index, one in enumerate(ones) if index not in repeated}
    for index in repeated:
        one = ones[index]
        alike = [k for k, other in kept.items() if (other.category_id, other.crowd) == (one.category_id, one.crowd)]
        nearest = alike[int(iou_matrix(boxes[[index]], boxes[alike])[0].argmax())]
        kept[nearest] = replace(kept[nearest], ids=(*kept[nearest].ids, *one.ids))
    return list(kept.values())


def check_box(bbox: object, width: int, height: int) -> tuple[str, Box | None]:
    """Name what is wrong with an xywh box ("" if nothing), and give the xyxy box left after clipping, if any."""
    numbers = box_numbers(bbox)
    if numbers is None:
        return NOT_FINITE, None
    x, y, w, h = numbers
    # Within the first pixel and not of whole numbers: no object is so small, a share of 1 is.
    in_first_pixel = all(-ROUNDING <= value <= 1 + ROUNDING for value in numbers)
    if in_first_pixel and max(w, h) > 0 and any(value % 1 for value in numbers):
        return NORMALISED, None
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
    if not isinstance(bbox, list) or len(bbox) != 4 or any(type(value) not in (int, float) for value in bbox):
        return None
    try:
        x, y, w, h = map(float, bbox)
    except OverflowError:
        return None
    return (x, y, w, h) if all(map(math.isfinite, (x, y, w, h))) else None


def other_format(boxes: Boxes, sizes: Sizes, areas: Float[np.ndarray, " n"]) -> tuple[str, str]:
    """How the boxes of a whole data set are written, and how to repair it; "" and "" if as [x, y, width, height].

    ``areas`` are as the file states them, nan where it does not.
    """
    boxes = boxes.clip(-HUGE, HUGE)
    # 1. Shares of the image: objects in the first pixel alone are no objects.
    real = boxes[(boxes[:, 2:] > 0).all(axis=1)]  # some tools write [0, 0, 0, 0] where there is no object
    if len(real) and (np.abs(real - 0.5) <= 0.5 + ROUNDING).all(axis=1).mean() > 0.5:
        return NORMALISED, SHARES_CURE
    # 2. Corners lie inside the image and are in order; read as sizes, many of them lead far out of it, or the file's
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


def _inside(low: Float[np.ndarray, "n 2"], high: Float[np.ndarray, "n 2"], sizes: Sizes) -> Bool[np.ndarray, " n"]:
    return np.asarray(((low >= -1) & (high <= sizes + 1) & (high > low)).all(axis=1))


def left_upper_part(boxes: Boxes, sizes: Sizes) -> tuple[float, float] | None:
    """The part of width and height beyond which no box of a data set reaches, where it is suspiciously small."""
    boxes = boxes.clip(-HUGE, HUGE)
    reach = ((boxes[:, :2] + boxes[:, 2:]) / sizes).max(axis=0) if len(boxes) >= 50 else np.ones(2)
    return (float(reach[0]), float(reach[1])) if reach.max() < 0.7 else None


def outline(annotation: Mapping[str, Any]) -> Box | None:
    """The xyxy box around the polygons of an annotation; None where it has none (run lengths) or no numbers."""
    segmentation = annotation.get("segmentation")
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


def _is_far_from(box: Box, line: Box) -> bool:
    """Whether an xywh box overlaps by less than half with its xyxy outline."""
    x, y, w, h = box
    x1, y1, x2, y2 = line
    inside = max(min(x + w, x2) - max(x, x1), 0) * max(min(y + h, y2) - max(y, y1), 0)
    return 3 * inside < w * h + (x2 - x1) * (y2 - y1)


def repeats(boxes: Boxes, kinds: Sequence[object]) -> list[int]:
    """Indices of those xyxy boxes of an image that repeat an earlier one of the same kind."""
    repeated: list[int] = []
    for kind in dict.fromkeys(kinds):
        indices = np.array([index for index, other in enumerate(kinds) if other == kind])
        alike = boxes[indices]
        for start in range(0, len(alike), AT_ONCE):
            overlaps = iou_matrix(alike[start : start + AT_ONCE], alike) >= SAME_OBJECT
            repeated += indices[start : start + AT_ONCE][np.tril(overlaps, start - 1).any(axis=1)].tolist()
    return sorted(repeated)


def is_turned(annotation: Mapping[str, Any]) -> bool:
    """Whether an annotation is a rectangle that CVAT shows turned: its ``bbox`` is the one before it was turned."""
    attributes = annotation.get("attributes")
    return isinstance(attributes, dict) and _number(attributes.get("rotation") or 0) % 180 > 0


def stated_area(annotation: Mapping[str, Any]) -> float:
    """The area that an annotation states; nan if it states none, or what is no number."""
    return _number(annotation.get("area") or math.nan)


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan
