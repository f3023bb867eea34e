"""Labels that a person has confirmed: variations without such labels are refused."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from boxtwin.boxes import Box, xywh_to_xyxy
from boxtwin.datasets.coco_boxes import ROUNDING, fit_box
from boxtwin.datasets.coco_json import load_json
from boxtwin.datasets.images import Pixels, pixels_sha256
from boxtwin.datasets.sample import CarriedBox, Judgement
from boxtwin.errors import InputError

NOT_CONFIRMED = "not confirmed by a person"
HOW = (
    "make the variations with other labels first, copy annotations.json of their store to the file, correct it and "
    'mark every image that is right with "confirmed": true, or correct it in an annotation tool, export COCO, and say '
    "labels.confirmed=all"
)


class Manual:
    """Take the boxes of images that a person has confirmed; refuse all others.

    The file is COCO JSON whose images carry the ``file_name`` they have in their store's ``annotations.json``, and
    ``"confirmed": true`` where a person stands up for the labels. An image that also carries the store's
    ``pixels_sha256`` must have these very pixels: a store of other settings uses the same names. An image may say how
    many ``minutes`` its labels took a person; reports add them up.

    Args:
        file: what `labels.file` names.
        category_ids: the number that the data set's file gives each class.
        every_image: whether all images of the file count as confirmed, but those marked ``"confirmed": false``: files
            from annotation tools hold what a person has been through, and have lost the marks.

    Raises:
        InputError: no file is named, or it is missing, no COCO, of other categories, or holds bad boxes.
    """

    name = "manual"

    def __init__(self, *, file: Path | None, category_ids: Sequence[int], every_image: bool = False) -> None:
        if file is None:
            raise InputError(f"labels=manual takes a file of confirmed labels: say labels.file=FILE; to get one, {HOW}")
        self.file = file
        try:
            encoded = file.read_bytes()
        except OSError as error:
            raise InputError(f"labels.file={file} cannot be read: {error.strerror}; to get one, {HOW}") from None
        self.sha256 = hashlib.sha256(encoded).hexdigest()
        content = load_json(file, setting="labels.file=")
        try:
            confirmed = [image for image in content["images"] if image.get("confirmed", every_image) is True]
            self._minutes = {image["file_name"]: _minutes(image) for image in confirmed}
            self._pixels = {image["file_name"]: image.get("pixels_sha256") for image in confirmed}
            labels = {number: label for label, number in enumerate(category_ids)}
            self._boxes = self._read(confirmed, content["annotations"], labels)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"labels.file={file} is no COCO file of images and annotations: {error!r}") from None

    def __call__(
        self,
        source: Pixels,  # noqa: ARG002
        pixels: Pixels,
        boxes: Float[np.ndarray, "n 4"],  # noqa: ARG002
        labels: Int[np.ndarray, " n"],  # noqa: ARG002
        image: str = "",
    ) -> Judgement:
        """The confirmed boxes of the store's ``image``."""
        if image not in self._pixels:
            return Judgement((), refused=NOT_CONFIRMED)
        if self._pixels[image] not in (None, pixels_sha256(pixels)):
            return Judgement((), refused=f"{NOT_CONFIRMED}: these are not the pixels that {self.file.name} speaks of")
        height, width = pixels.shape[:2]
        taken = []
        for number, box, label in self._boxes[image]:
            inside, overhang = fit_box(box, width, height)
            if overhang > ROUNDING:
                raise InputError(f"{self.file}, annotation {number}: [{box}] reaches outside {image}, {width}x{height}")
            taken.append(CarriedBox(inside, label, "kept", {}))
        return Judgement(tuple(taken), minutes=self._minutes[image])

    def _read(
        self, confirmed: list[dict[str, Any]], annotations: list[dict[str, Any]], labels: dict[int, int]
    ) -> dict[str, list[tuple[int, Box, int]]]:
        """Number, box and label of the annotations of each confirmed image."""
        names = {image["id"]: image["file_name"] for image in confirmed}
        if len(names) != len(self._pixels):
            raise InputError(f"labels.file={self.file}: two confirmed images share an id or a file_name")
        found: dict[str, list[tuple[int, Box, int]]] = {name: [] for name in names.values()}
        for annotation in annotations:
            if annotation["image_id"] not in names:
                continue
            number = annotation.get("id", -1)
            if annotation["category_id"] not in labels:
                raise InputError(
                    f"labels.file={self.file}, annotation {number}: category_id {annotation['category_id']} is none of "
                    f"the data set's, {', '.join(map(str, labels))}"
                )
            corners = xywh_to_xyxy(np.array(annotation["bbox"], dtype=np.float64))
            x1, y1, x2, y2 = corners.tolist()
            if not np.isfinite(corners).all() or x1 >= x2 or y1 >= y2:
                raise InputError(f"labels.file={self.file}, annotation {number}: bbox {annotation['bbox']} is no box")
            name = names[annotation["image_id"]]
            found[name].append((number, (x1, y1, x2, y2), labels[annotation["category_id"]]))
        return found


def _minutes(image: dict[str, Any]) -> float | None:
    if image.get("minutes") is None:
        return None
    minutes = float(image["minutes"])
    if not (math.isfinite(minutes) and minutes >= 0):
        raise ValueError(f"{image['file_name']}: {minutes:g} is no number of minutes")
    return minutes
