"""What must be known of a trained network to use it, whatever form it is in. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any

from boxtwin.datasets.levels import Levels
from boxtwin.datasets.options import Orientation
from boxtwin.datasets.reading import Reading
from boxtwin.errors import InputError


@dataclass(frozen=True)
class DetectorSpec:
    """How images go into a trained network, and how its outputs become detections and counts."""

    architecture: str
    classes: tuple[str, ...]  # label `i` is `classes[i]`
    category_ids: tuple[int, ...]  # the numbers that the COCO file gives the classes
    image_size: int  # what the longer side of an image is scaled to, pixels
    tile: int | None  # side of the squares that images are looked at in; None for whole images
    channels: int  # 1 for grey images, 3 for RGB
    white: int  # the pixel value that is scaled to 1.0; above 255 only where images have 16 bit
    nms_iou: float  # detections of one class that overlap by more are one
    score_floor: float  # detections below are left out
    max_detections: int  # per image
    count_threshold: (
        float  # chosen on real validation images for the classes together; the one threshold if there is one
    )
    boxtwin: str  # version that trained it
    black: int = 0  # the pixel value that is scaled to 0
    reading: Mapping[str, Any] | None = None  # fields of `Reading`; None: from before there were any, as stored
    # The same for each class, at which it is counted; files of older versions have one threshold for all classes.
    class_thresholds: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.class_thresholds:
            object.__setattr__(self, "class_thresholds", (self.count_threshold,) * len(self.classes))

    @property
    def levels(self) -> Levels:
        """The pixel values that mean 0 and 1."""
        return Levels(self.black, self.white)

    @property
    def how_to_read(self) -> Reading:
        """How image files become pixels."""
        return Reading(Orientation.ignore) if self.reading is None else Reading.from_plain(self.reading)

    @property
    def side(self) -> int:
        """Side of the square that the network takes, pixels."""
        return self.image_size if self.tile is None else self.tile

    def to_text(self) -> dict[str, str]:
        """Each field as JSON, for metadata that hold nothing but text."""
        return {name: json.dumps(value) for name, value in asdict(self).items()}

    @classmethod
    def from_text(cls, texts: Mapping[str, str], file: str) -> DetectorSpec:
        """The inverse of `to_text`; other entries are left alone.

        Raises:
            InputError: fields are missing from the metadata of ``file``.
        """
        there = [field for field in fields(cls) if field.name in texts]
        missing = [field.name for field in fields(cls) if field not in there and field.default is MISSING]
        if missing:
            raise InputError(f"{file} is no detector of boxtwin: its metadata lack {', '.join(missing)}")
        values: dict[str, Any] = {field.name: json.loads(texts[field.name]) for field in there}
        values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
        return cls(**values)
