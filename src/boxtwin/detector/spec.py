"""What must be known of a trained network to use it, whatever form it is in. Imports no torch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from functools import cached_property
from typing import Any

from boxtwin.datasets.levels import Levels
from boxtwin.datasets.options import Orientation
from boxtwin.datasets.reading import Reading
from boxtwin.datasets.training_images import TrainingImages
from boxtwin.detector.options import Postprocessing
from boxtwin.errors import InputError
from boxtwin.evaluation.count_intervals import CountCalibration


@dataclass(frozen=True, kw_only=True)
class NetworkSpec(Postprocessing):
    """How images go into a network, and how its outputs become detections."""

    architecture: str
    classes: tuple[str, ...]  # label `i` is `classes[i]`
    category_ids: tuple[int, ...]  # the numbers that the COCO file gives the classes
    image_size: int  # what the longer side of an image is scaled to, pixels
    tile: int | None = None  # side of the squares that images are cut into; None for whole images
    channels: int = 3  # 1 for grey images, 3 for RGB
    white: int  # the pixel value that is scaled to 1.0; above 255 only where images have 16 bit
    black: int = 0  # the pixel value that is scaled to 0
    reading: Mapping[str, Any] | None = None  # fields of `Reading`; older files have none and mean pixels as stored

    def __post_init__(self) -> None:
        if len(self.classes) != len(self.category_ids):
            raise ValueError(f"{len(self.classes)} classes need as many category ids, got {len(self.category_ids)}")

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


@dataclass(frozen=True, kw_only=True)
class DetectorSpec(NetworkSpec):
    """A trained network with the thresholds at which its detections are counted."""

    count_threshold: float  # of all classes together, chosen on real validation images
    class_thresholds: tuple[float, ...] = ()  # of each class; older files have the one threshold for all
    boxtwin: str  # version that trained it
    calibration: Mapping[str, Any] | None = None  # fields of `CountCalibration`; None: counts have no interval
    training_images: Mapping[str, Any] | None = None  # fields of `TrainingImages`; older files have none

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.class_thresholds:
            object.__setattr__(self, "class_thresholds", (self.count_threshold,) * len(self.classes))

    @property
    def always_kept(self) -> float:
        """Detections that are counted, or were with thresholds that intervals come from, are never too many."""
        others = (
            [] if self.count_calibration is None else [float(self.count_calibration.thresholds.min(initial=math.inf))]
        )
        return min(*self.class_thresholds, *others, math.inf)

    @cached_property
    def count_calibration(self) -> CountCalibration | None:
        """What intervals of counts are computed from."""
        return None if self.calibration is None else CountCalibration.from_plain(self.calibration)

    @cached_property
    def images(self) -> TrainingImages | None:
        """What the images were like that it was trained on."""
        return None if self.training_images is None else TrainingImages.from_plain(self.training_images)

    def scale_for(self, width: int, height: int) -> float | None:
        """Pixels of the network input for each pixel of an image of this size, as in training.

        None where the whole image is fitted into the network's input, as those of its data set are: it is as large as
        these, or their size is not known.
        """
        fits = self.images is None or self.images.has_size(width, height)
        return None if fits or self.images is None else self.image_size / self.images.sides[1]

    def to_text(self) -> dict[str, str]:
        """Each field as JSON, for metadata that hold nothing but text."""
        return {name: json.dumps(value) for name, value in asdict(self).items()}

    @classmethod
    def from_text(cls, texts: Mapping[str, str], file: str) -> DetectorSpec:
        """The inverse of `to_text`, leaving other entries alone; raises `InputError` if ``file`` lacks a field."""
        missing = [field.name for field in fields(cls) if field.default is MISSING and field.name not in texts]
        if missing:
            raise InputError(f"{file} is no detector of boxtwin: its metadata lack {', '.join(missing)}")
        values: dict[str, Any] = {
            field.name: json.loads(texts[field.name]) for field in fields(cls) if field.name in texts
        }
        values |= {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
        return cls(**values)
