"""Labels that a person has confirmed: variations without such labels are refused."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from boxtwin.boxes import Box
from boxtwin.datasets.coco_boxes import ROUNDING, box_numbers, fit_box, is_turned, other_format, repeats, stated_area
from boxtwin.datasets.coco_json import fault_of_name, flag, load_json, stated_size, whole
from boxtwin.datasets.image_io import Pixels, pixels_sha256, read_image
from boxtwin.datasets.problems import Problems, some
from boxtwin.datasets.sample import Dataset, Decision, Judgement, PropagatedBox, Sample
from boxtwin.datasets.variation_names import earlier_image_name, image_name, match_names
from boxtwin.errors import InputError
from boxtwin.labels.ensemble import Member
from boxtwin.labels.formats.labelled_image import class_name
from boxtwin.labels.method import Variations
from boxtwin.labels.options import Confirmed, LabelOptions

log = logging.getLogger(__name__)

NOT_CONFIRMED = "not confirmed by a person"
_CUT = "cut off what is outside"
HOW = (
    "make the variations with other labels first, copy annotations.json of their store to the file, correct it and "
    'mark every image that is right with "confirmed": true, or correct it in an annotation tool, export COCO, and say '
    "labels.confirmed=all"
)


class _Labelled(NamedTuple):
    """One image of the file."""

    name: str
    size: tuple[int | None, int | None]  # width and height, where the file states them
    pixels: str | None  # a hash of the pixels that are meant
    minutes: float | None
    # Number of the annotation, xyxy, label, what a person did to it, and by how many pixels it was moved.
    boxes: list[tuple[int, Box, int, Decision, dict[str, float | None]]]
    removed: list[tuple[Box, int]]  # that a person has removed


class ManualLabels:
    """The way to label that takes the boxes of images that a person has confirmed, and refuses all others.

    ``labels.file`` is COCO JSON, with ``"confirmed": true`` at images that a person has confirmed. Its images are
    recognised by the ``file_name`` of their store's ``annotations.json``, by the base name of that, or by their pixels:
    where an image has the store's ``pixels_sha256``, or its file lies beside the label file. An image with a
    ``pixels_sha256`` must have these very pixels: a store of other settings uses the same names. Classes are matched by
    the names in the file's ``categories``; without such, ids are the data set's. An image may say how many ``minutes``
    its labels took a person.
    What a person changed, where ``review.py read=`` has recorded it, is kept with the boxes, for the label card.
    With ``labels.confirmed=all`` all images of the file count as confirmed, but those marked ``"confirmed": false``:
    files from annotation tools hold what a person has checked, and have lost the marks.
    `InputError` if no file is named, or it is missing, no COCO, has boxes of other classes or bad boxes, is about
    images of other sizes, or none of its images is a variation of one of the data set.
    """

    by_hand = True
    asks_detectors = False

    def __init__(self, options: LabelOptions, variations: Variations) -> None:
        if options.file is None:
            raise InputError(f"labels=manual takes a file of confirmed labels: say labels.file=FILE; to get one, {HOW}")
        dataset, self._every_image = variations.dataset, options.confirmed is Confirmed.all
        self.file = file = Path(options.file)
        self._start = f"labels.file={file}"  # of messages
        try:
            self.sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
        except OSError as error:
            raise InputError(f"{self._start} cannot be read: {error.strerror}; to get one, {HOW}") from None
        content = load_json(file, setting="labels.file=")
        ids = {number: label for label, number in enumerate(dataset.category_ids)}
        try:
            confirmed = [image for image in content["images"] if self._is_confirmed(image)]
            labels = self._labels(content.get("categories"), dataset.classes, ids)
            images = self._read(confirmed, content, labels, dataset)
            self._labels_of = labels
        except InputError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
            raise InputError(f"{self._start} is no COCO file of images and annotations: {error!r}") from None
        self._by_name: dict[str, _Labelled] = {}  # by paths in a store
        self._by_pixels: dict[str, _Labelled] = {}  # by hashes
        self._beside: dict[str, str] = {}  # hashes by name, of images that are recognised by their files
        self._recognise(images, dataset.samples)
        # Whether first versions, which took ids as the data set's, and knew no other names than the store's and no
        # other mark than true, read it alike.
        self.read_as_before = (
            all(ids.get(number) == label for number, label in labels.items())
            and all(self._by_name.get(image.name) is image for image in images)
            and all(image.get("confirmed", True) is True for image in confirmed)
        )

    def identity(self) -> dict[str, Any]:
        """The content of the file, and how it is read."""
        identity: dict[str, Any] = {"file": self.sha256} | ({"confirmed": "all"} if self._every_image else {})
        if self.read_as_before:
            return identity
        # Older versions recorded neither, so what is as they took it is left out, and their stores are found.
        labels = [*self._labels_of.values()]
        if labels != list(range(len(labels))):  # names of the file are in another order in the data set, or not in it
            identity["classes"] = [[str(number), label] for number, label in self._labels_of.items()]
        if self._beside:
            identity["beside"] = hashlib.sha256(json.dumps(sorted(self._beside.items())).encode()).hexdigest()
        return identity | {"matched": 2}

    def judge(self, members: Sequence[Member]) -> ManualLabels:  # noqa: ARG002, it asks a person
        """By the file."""
        return self

    def __call__(self, source: Any, pixels: Pixels, boxes: Any, labels: Any, image: str = "", *_: Any) -> Judgement:  # noqa: ARG002
        """The confirmed boxes of the store's ``image``."""
        digest = pixels_sha256(pixels)
        named = self._by_name.get(image)
        labelled = named if named and named.pixels in (None, digest) else self._by_pixels.get(digest)
        if labelled is None:
            reason = f": these are not the pixels of which {self.file.name} has labels" if named else ""
            return Judgement((), refused=f"{NOT_CONFIRMED}{reason}")
        height, width = pixels.shape[:2]
        self._check_size(labelled, width, height)
        propagated = []
        for number, box, label, decision, evidence in labelled.boxes:
            inside, overhang = fit_box(box, width, height)
            if overhang > ROUNDING:
                where = _outside(number, box, image, width, height)
                raise InputError(f"{self.file}: a box reaches outside its image: {where}; {_CUT}")
            propagated.append(PropagatedBox(inside, label, decision, evidence))
        lost = [PropagatedBox(fit_box(box, width, height)[0], label, "dropped", {}) for box, label in labelled.removed]
        return Judgement((*propagated, *lost), minutes=labelled.minutes)

    def _labels(self, categories: Any, classes: Sequence[str], ids: dict[int, int]) -> dict[int, int | str]:
        """The label of each of the file's category ids; the name of those that the data set lacks."""
        known = {class_name(name): label for label, name in enumerate(classes)}
        labels: dict[int, int | str] = {} if categories else {**ids}
        for category in categories or ():
            name = class_name(category["name"])
            label = known.get(name, name)
            if labels.setdefault(category["id"], label) != label:
                raise InputError(f"{self._start}: category id {category['id']} has two names")
        return labels

    def _is_confirmed(self, image: dict[str, Any]) -> bool:
        """Whether a person has confirmed the labels; images that the store refused need a mark of their own."""
        if "confirmed" not in image:
            return self._every_image and not image.get("refused")
        confirmed = flag(image["confirmed"])
        if confirmed is None:
            mark = f"confirmed is neither yes nor no, {image['confirmed']!r}"
            raise InputError(f"{self._start}, {image['file_name']}: {mark}")
        return confirmed

    def _read(
        self, confirmed: list[Any], content: dict[str, Any], labels: Mapping[int, int | str], dataset: Dataset
    ) -> list[_Labelled]:
        """The confirmed images with their boxes."""
        # An image whose boxes have another image_id would count as empty.
        known = {image["id"] for image in content["images"]}
        lost = [one for one in content["annotations"] if one["image_id"] not in known]
        odd = [one for one in lost if whole(one["image_id"]) is None]
        if odd or (lost and len(lost) == len(content["annotations"])):
            first = (odd or lost)[0]
            place = f"annotation {first.get('id', -1)}: image_id {first['image_id']!r}"
            raise InputError(f"{self._start}, {place} is of no image of the file")
        if lost:
            log.warning("%s: %d boxes are of images that the file lacks: left out", self._start, len(lost))
        images: dict[Any, _Labelled] = {}
        for image in confirmed:
            name = image["file_name"]
            if not isinstance(name, str):
                raise InputError(f"{self._start}: file_name must be text, not {name!r}")
            try:
                size = (stated_size(image.get("width")), stated_size(image.get("height")))
            except ValueError as error:
                what = f"{name}: width or height is no whole number: {error}"
                raise InputError(f"{self._start}, {what}") from None
            minutes = None if image.get("minutes") is None else float(image["minutes"])
            if minutes is not None and not 0 <= minutes < math.inf:
                raise ValueError(f"{name}: {minutes:g} is no number of minutes")
            taken = [box for each in image.get("removed", ()) if (box := _removed(each, labels)) is not None]
            images[image["id"]] = _Labelled(name, size, image.get("pixels_sha256"), minutes, [], taken)
        if len(images) != len(confirmed) or len({image.name for image in images.values()}) != len(confirmed):
            raise InputError(f"{self._start}: two confirmed images share an id or a file_name")
        boxes, sizes, areas = [], [], []
        crowds, turned, repeating = [], [], []  # names of images
        for annotation in content["annotations"]:
            if (labelled := images.get(annotation["image_id"])) is None:
                continue
            number, category = annotation.get("id", -1), annotation["category_id"]
            place = f"{self._start}, annotation {number}"
            label = labels.get(category)
            if not isinstance(label, int):
                what = f"class {label!r} (category_id {category})" if label else f"category_id {category}"
                classes = zip(dataset.classes, dataset.category_ids, strict=True)
                known_classes = ", ".join(f"{name} ({number})" for name, number in classes)
                raise InputError(f"{place}: {what} is none of the data set's, {known_classes}")
            bbox = box_numbers(annotation.get("bbox"))
            if bbox is None or min(bbox[2:]) <= 0:
                raise InputError(f"{place}: bbox {annotation.get('bbox')} is no box")
            x, y, w, h = bbox
            labelled.boxes.append((number, (x, y, x + w, y + h), label, *_change(annotation, bbox)))
            boxes.append(bbox)
            sizes.append([side or math.nan for side in labelled.size])
            areas.append(stated_area(annotation))
            crowds += [labelled.name] * (flag(annotation.get("iscrowd")) is not False)
            turned += [labelled.name] * is_turned(annotation)
        shapes = np.array(sizes, np.float64).reshape(-1, 2)
        kind, cure = other_format(np.array(boxes, np.float64).reshape(-1, 4), shapes, np.array(areas, np.float64))
        if kind:
            raise InputError(f"{self._start}: {kind}. COCO boxes are [x, y, width, height] in pixels. {cure}")
        beyond = [
            _outside(number, box, labelled.name, width, height)
            for labelled in images.values()
            for width, height in [labelled.size]
            for number, box, *_ in labelled.boxes
            if width and height and fit_box(box, width, height)[1] > ROUNDING
        ]
        if beyond:
            raise InputError(f"{self._start}: {len(beyond)} boxes reach outside their images: {some(beyond)}; {_CUT}")
        for labelled in images.values():
            corners = np.array([box for _, box, *_ in labelled.boxes], dtype=np.float64).reshape(-1, 4)
            repeating += [labelled.name] * len(repeats(corners, [label for _, _, label, *_ in labelled.boxes]))
        problems = Problems()
        what = "boxes stand there twice (same class, nearly the same place)"
        problems.remark(repeating, what, "each counts as an object")
        problems.remark(crowds, "boxes are crowds (iscrowd 1)", "taken for single objects")
        what = "boxes are of turned rectangles (attributes.rotation)"
        problems.remark(turned, what, "bbox is the one before it was turned")
        for remark in problems.remarks:
            log.warning("%s: %s", self._start, remark)
        return list(images.values())

    def _recognise(self, images: Sequence[_Labelled], samples: Sequence[Sample]) -> None:
        """Find which images of a store the file's are, by name or by pixels."""
        sizes = {sample.name: (sample.width, sample.height) for sample in samples}
        matched = match_names((image.name for image in images), sizes)
        unknown = []
        for image in images:
            if image.name in matched:
                source, number = matched[image.name]
                self._check_size(image, *sizes[source])
                for path in (image_name(source, number), earlier_image_name(source, number)):
                    other = self._by_name.setdefault(path, image)
                    if other is not image:
                        both = f"{other.name} and {image.name} are both variation {number} of {source}"
                        raise InputError(f"{self._start}: {both}; keep one of them")
            digest = image.pixels
            if digest is None and image.name not in matched and (digest := self._digest(image.name)) is not None:
                self._beside[image.name] = digest
            if digest is not None:
                self._by_pixels.setdefault(digest, image)
            elif image.name not in matched:
                unknown.append(image.name)
        if unknown:
            what = f"{len(unknown)} of {len(images)} file names are of no variation of the data set's images"
            text = f"{self._start}: {what}, such as {some(unknown)}"
            example = image_name(samples[0].name, 1) if samples else "NAME_v01.png"
            if len(unknown) == len(images):
                names = f"Names are as in the store's annotations.json ({example})"
                cure = "put image files of other names beside the label file, to be recognised by their pixels"
                raise InputError(f"{text}. {names}; {cure}")
            log.warning("%s; they are left out (a name that is known: %s)", text, example)

    def _digest(self, name: str) -> str | None:
        """The hash of an image's pixels, where its file lies beside the label file."""
        paths = [path for path in (name, f"images/{name}", Path(name).name) if not fault_of_name(path)]
        file = next((self.file.parent / path for path in paths if (self.file.parent / path).is_file()), None)
        try:
            return None if file is None else pixels_sha256(read_image(file))
        except OSError:
            return None

    def _check_size(self, image: _Labelled, width: int, height: int) -> None:
        if None not in image.size and image.size != (width, height):
            sizes = "{} x {} pixels, the image has {} x {}".format(*image.size, width, height)
            cure = "its boxes are of another size; export the labels at the size of the images"
            raise InputError(f"{self._start}: {image.name} is said to have {sizes}: {cure}")


def _outside(number: int, box: Box, image: str, width: int, height: int) -> str:
    return f"annotation {number}, [{', '.join(f'{side:g}' for side in box)}] in {image} of {width} x {height} pixels"


def _change(annotation: Mapping[str, Any], bbox: Box) -> tuple[Decision, dict[str, float | None]]:
    """What a person did to a box, as `exchange.read_back` records it, and by how many pixels it was moved at most."""
    before = box_numbers(annotation.get("before"))
    if annotation.get("change") == "moved" and before is not None:
        old, new = ((x, y, x + w, y + h) for x, y, w, h in (before, bbox))
        return "shifted", {"moved": round(max(abs(a - b) for a, b in zip(old, new, strict=True)), 4)}
    return ("added" if annotation.get("change") == "added" else "kept"), {}


def _removed(entry: Mapping[str, Any], labels: Mapping[int, int | str]) -> tuple[Box, int] | None:
    """A box that a person has removed; None if it is of no class of the data set."""
    bbox, label = box_numbers(entry.get("bbox")), labels.get(entry["category_id"])
    if bbox is None or not isinstance(label, int):
        return None
    x, y, w, h = bbox
    return (x, y, x + w, y + h), label
