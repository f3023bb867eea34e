"""Labels that a person has confirmed: variations without such labels are refused."""

from __future__ import annotations

import hashlib
import logging
import math
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from boxtwin.boxes import Box
from boxtwin.datasets.coco_boxes import ROUNDING, box_numbers, fit_box, is_turned, other_format, repeats, told_area
from boxtwin.datasets.coco_json import fault_of_name, flag, load_json, told_size, whole
from boxtwin.datasets.image_io import Pixels, pixels_sha256, read_image
from boxtwin.datasets.problems import some
from boxtwin.datasets.sample import CarriedBox, Judgement, Sample
from boxtwin.datasets.variation_names import earlier_image_name, image_name, match_names
from boxtwin.errors import InputError
from boxtwin.labels.ensemble import Member
from boxtwin.labels.method import Variations
from boxtwin.labels.options import Confirmed, LabelOptions

log = logging.getLogger(__name__)

NOT_CONFIRMED = "not confirmed by a person"
HOW = (
    "make the variations with other labels first, copy annotations.json of their store to the file, correct it and "
    'mark every image that is right with "confirmed": true, or correct it in an annotation tool, export COCO, and say '
    "labels.confirmed=all"
)
EXAMPLES = 3  # names in a message


class _Labelled(NamedTuple):
    """What the file says of one image."""

    name: str
    size: tuple[int, int] | None  # width and height, where the file tells them
    pixels: str | None  # a hash of the pixels that are meant
    minutes: float | None
    boxes: list[tuple[int, Box, int]]  # number of the annotation, xyxy, label


class Manual:
    """Take the boxes of images that a person has confirmed; refuse all others.

    The file is COCO JSON, with ``"confirmed": true`` at images where a person stands up for the labels. Its images are
    recognised by the ``file_name`` of their store's ``annotations.json``, by the base name of that, or by their pixels:
    where an image has the store's ``pixels_sha256``, or its file lies beside the label file. An image with a
    ``pixels_sha256`` must have these very pixels: a store of other settings uses the same names. Classes are matched by
    the names in the file's ``categories``; without such, ids are the data set's. An image may say how many ``minutes``
    its labels took a person; reports add them up.

    Args:
        file: what `labels.file` names.
        samples: all images of the data set.
        classes: of the data set.
        category_ids: the number that the data set's file gives each class.
        every_image: whether all images of the file count as confirmed, but those marked ``"confirmed": false``: files
            from annotation tools hold what a person has been through, and have lost the marks.

    Raises:
        InputError: no file is named, or it is missing, no COCO, has boxes of other classes or bad boxes, is about
            images of other sizes, or none of its images is a variation of one of ``samples``.
    """

    name = "manual"

    def __init__(
        self,
        *,
        file: Path | None,
        samples: Sequence[Sample],
        classes: Sequence[str],
        category_ids: Sequence[int],
        every_image: bool = False,
    ) -> None:
        if file is None:
            raise InputError(f"labels=manual takes a file of confirmed labels: say labels.file=FILE; to get one, {HOW}")
        self.file, self._classes = (
            file,
            [f"{name} ({number})" for name, number in zip(classes, category_ids, strict=True)],
        )
        try:
            encoded = file.read_bytes()
        except OSError as error:
            raise InputError(f"labels.file={file} cannot be read: {error.strerror}; to get one, {HOW}") from None
        self.sha256 = hashlib.sha256(encoded).hexdigest()
        content = load_json(file, setting="labels.file=")
        ids = {number: label for label, number in enumerate(category_ids)}
        try:
            confirmed = [image for image in content["images"] if self._is_confirmed(image, every_image)]
            labels = self._labels(content.get("categories"), classes, ids)
            self._check_owners(content)
            images = self._read(confirmed, content["annotations"], labels)
        except InputError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
            raise InputError(f"labels.file={file} is no COCO file of images and annotations: {error!r}") from None
        self._by_name, self._by_pixels = self._recognise(images, samples)
        # Whether versions that took ids as the data set's, and knew no other names than the store's and no other mark
        # than true, read it alike.
        self.read_as_before = (
            all(ids.get(number) == label for number, label in labels.items())
            and all(self._by_name.get(image.name) is image for image in images)
            and all(image.get("confirmed", True) is True for image in confirmed)
        )

    def __call__(
        self,
        source: Pixels,  # noqa: ARG002
        pixels: Pixels,
        boxes: Float[np.ndarray, "n 4"],  # noqa: ARG002
        labels: Int[np.ndarray, " n"],  # noqa: ARG002
        image: str = "",
    ) -> Judgement:
        """The confirmed boxes of the store's ``image``."""
        digest = pixels_sha256(pixels)
        found = self._by_name.get(image)
        if found is None or found.pixels not in (None, digest):
            named, found = found, self._by_pixels.get(digest)
            if found is None:
                reason = f": these are not the pixels that {self.file.name} speaks of" if named else ""
                return Judgement((), refused=f"{NOT_CONFIRMED}{reason}")
        height, width = pixels.shape[:2]
        self._check_size(found, width, height)
        taken = []
        for number, box, label in found.boxes:
            inside, overhang = fit_box(box, width, height)
            if overhang > ROUNDING:
                raise InputError(f"{self.file}, annotation {number}: [{box}] reaches outside {image}, {width}x{height}")
            taken.append(CarriedBox(inside, label, "kept", {}))
        return Judgement(tuple(taken), minutes=found.minutes)

    def _labels(
        self, categories: list[dict[str, Any]] | None, classes: Sequence[str], ids: dict[int, int]
    ) -> dict[int, int | str]:
        """The label of each of the file's category ids; the name of those that the data set lacks."""
        if not categories:
            return dict(ids)
        known = {_plain(name): label for label, name in enumerate(classes)}
        labels: dict[int, int | str] = {}
        for category in categories:
            name = _plain(str(category["name"]))
            label = known.get(name, name)
            if labels.setdefault(category["id"], label) != label:
                raise InputError(f"labels.file={self.file}: category id {category['id']} has two names")
        return labels

    def _is_confirmed(self, image: dict[str, Any], every_image: bool) -> bool:
        """Whether a person stands up for the labels; those that the store refused need a mark of their own."""
        if "confirmed" not in image:
            return every_image and not image.get("refused")
        confirmed = flag(image["confirmed"])
        if confirmed is None:
            raise InputError(
                f"labels.file={self.file}, {image['file_name']}: confirmed is neither yes nor no, "
                f"{image['confirmed']!r}"
            )
        return confirmed

    def _check_owners(self, content: dict[str, Any]) -> None:
        """An image whose boxes have another image_id would count as empty."""
        known = {image["id"] for image in content["images"]}
        lost = [one for one in content["annotations"] if one["image_id"] not in known]
        odd = [one for one in lost if whole(one["image_id"]) is None]
        if odd or (lost and len(lost) == len(content["annotations"])):
            first = (odd or lost)[0]
            raise InputError(
                f"labels.file={self.file}, annotation {first.get('id', -1)}: image_id {first['image_id']!r} is of no "
                "image of the file"
            )
        if lost:
            log.warning("labels.file=%s: %d boxes are of images that the file lacks: left out", self.file, len(lost))

    def _read(
        self, confirmed: list[dict[str, Any]], annotations: list[dict[str, Any]], labels: dict[int, int | str]
    ) -> list[_Labelled]:
        """What the file says of each confirmed image."""
        for name in (entry["file_name"] for entry in confirmed):
            if not isinstance(name, str):
                raise InputError(f"labels.file={self.file}: file_name must be text, not {name!r}")
        images = {
            image["id"]: _Labelled(
                image["file_name"], self._size(image), image.get("pixels_sha256"), _minutes(image), []
            )
            for image in confirmed
        }
        if len(images) != len(confirmed) or len({image.name for image in images.values()}) != len(confirmed):
            raise InputError(f"labels.file={self.file}: two confirmed images share an id or a file_name")
        told: list[tuple[Box, tuple[float, float], float]] = []
        suspicious: dict[str, list[str]] = defaultdict(list)
        for annotation in annotations:
            image = images.get(annotation["image_id"])
            if image is None:
                continue
            number, category = annotation.get("id", -1), annotation["category_id"]
            label = labels.get(category)
            if not isinstance(label, int):
                what = f"class {label!r} (category_id {category})" if label else f"category_id {category}"
                raise InputError(
                    f"labels.file={self.file}, annotation {number}: {what} is none of the data set's, "
                    f"{', '.join(self._classes)}"
                )
            bbox = box_numbers(annotation.get("bbox"))
            if bbox is None or min(bbox[2:]) <= 0:
                told_box = annotation.get("bbox")
                raise InputError(f"labels.file={self.file}, annotation {number}: bbox {told_box} is no box")
            x, y, w, h = bbox
            image.boxes.append((number, (x, y, x + w, y + h), label))
            told.append((bbox, image.size or (math.nan, math.nan), told_area(annotation)))
            if flag(annotation.get("iscrowd")) is not False:
                suspicious["are crowds (iscrowd 1), taken for single objects"].append(image.name)
            if is_turned(annotation):
                what = "are of turned rectangles (attributes.rotation), bbox is the one before it was turned"
                suspicious[what].append(image.name)
        boxes, sizes, areas = (
            np.array([one[place] for one in told], dtype=np.float64).reshape(len(told), *shape)
            for place, shape in enumerate(((4,), (2,), ()))
        )
        kind, cure = other_format(boxes, sizes, areas)
        if kind:
            raise InputError(f"labels.file={self.file}: {kind}. COCO boxes are [x, y, width, height] in pixels. {cure}")
        twice = [
            image.name
            for image in images.values()
            for _ in repeats(
                np.array([box for _, box, _ in image.boxes], dtype=np.float64).reshape(-1, 4),
                [label for _, _, label in image.boxes],
            )
        ]
        for what, where in {"stand there twice (same class, nearly the same place)": twice, **suspicious}.items():
            if where:
                log.warning("labels.file=%s: %d boxes %s, in %s", self.file, len(where), what, some(sorted({*where})))
        return list(images.values())

    def _recognise(
        self, images: Sequence[_Labelled], samples: Sequence[Sample]
    ) -> tuple[dict[str, _Labelled], dict[str, _Labelled]]:
        """What the file says of images of a store, by their paths in it, and by hashes of their pixels."""
        sizes = {sample.name: (sample.width, sample.height) for sample in samples}
        matched = match_names((image.name for image in images), sizes)
        by_name: dict[str, _Labelled] = {}
        by_pixels: dict[str, _Labelled] = {}
        lost = []
        for image in images:
            if image.name in matched:
                source, number = matched[image.name]
                self._check_size(image, *sizes[source])
                for path in (image_name(source, number), earlier_image_name(source, number)):
                    other = by_name.setdefault(path, image)
                    if other is not image:
                        raise InputError(
                            f"labels.file={self.file}: {other.name} and {image.name} are both variation {number} of "
                            f"{source}; keep one of them"
                        )
            digest = image.pixels or (None if image.name in matched else self._digest(image.name))
            if digest is not None:
                by_pixels.setdefault(digest, image)
            elif image.name not in matched:
                lost.append(image.name)
        if lost:
            told = (
                f"labels.file={self.file}: {len(lost)} of {len(images)} file names are of no variation of the data "
                f"set's images, such as {', '.join(lost[:EXAMPLES])}"
            )
            example = image_name(samples[0].name, 1) if samples else "NAME_v01.png"
            if len(lost) == len(images):
                raise InputError(
                    f"{told}. Names are as in the store's annotations.json ({example}); under other names, put the "
                    "image files beside the label file, and they are recognised by their pixels"
                )
            log.warning("%s; they are left out (a name that is known: %s)", told, example)
        return by_name, by_pixels

    def _digest(self, name: str) -> str | None:
        """The hash of an image's pixels, where its file lies beside the label file."""
        folder = self.file.parent
        for here in (name, f"images/{name}", Path(name).name):
            path = folder / here
            if not fault_of_name(here) and path.is_file():
                try:
                    return pixels_sha256(read_image(path))
                except OSError:
                    return None
        return None

    def _size(self, image: dict[str, Any]) -> tuple[int, int] | None:
        try:
            width, height = told_size(image.get("width")), told_size(image.get("height"))
        except ValueError as error:
            raise InputError(
                f"labels.file={self.file}, {image['file_name']}: width or height is no whole number: {error}"
            ) from None
        return None if width is None or height is None else (width, height)

    def _check_size(self, image: _Labelled, width: int, height: int) -> None:
        if image.size not in (None, (width, height)):
            told = "{} x {}".format(*image.size)
            raise InputError(
                f"labels.file={self.file}: {image.name} is said to have {told} pixels, the image has "
                f"{width} x {height}: its boxes are of another size; export the labels at the size of the images"
            )


def _minutes(image: dict[str, Any]) -> float | None:
    if image.get("minutes") is None:
        return None
    minutes = float(image["minutes"])
    if not (math.isfinite(minutes) and minutes >= 0):
        raise ValueError(f"{image['file_name']}: {minutes:g} is no number of minutes")
    return minutes


def _plain(name: str) -> str:
    """A class's name as data sets are read: letters composed, without blanks around it."""
    return unicodedata.normalize("NFC", name.strip())


class ManualLabels:
    """The way to label of `Manual`, for any generator."""

    by_hand = True
    asks_detectors = False

    def __init__(self, options: LabelOptions, variations: Variations) -> None:
        dataset, self._every_image = variations.dataset, options.confirmed is Confirmed.all
        self._judge = Manual(
            file=None if options.file is None else Path(options.file),
            samples=dataset.samples,
            classes=dataset.classes,
            category_ids=dataset.category_ids,
            every_image=self._every_image,
        )

    def identity(self) -> dict[str, Any]:
        """The content of the file, and how it is read."""
        # Earlier versions matched classes by ids, and images by the store's names.
        matched = {} if self._judge.read_as_before else {"matched": 2}
        return {"file": self._judge.sha256, **({"confirmed": "all"} if self._every_image else {}), **matched}

    def judge(self, members: Sequence[Member]) -> Manual:  # noqa: ARG002, it asks a person
        """By the file."""
        return self._judge
