"""What the images were like that a detector was trained on: size, level and sharpness; and how a new image differs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from boxtwin.datasets.image_io import Pixels
from boxtwin.datasets.levels import Levels
from boxtwin.datasets.sample import Sample

# Ranges of level and sharpness are those of the images, longer by this share of their length on either side. Of 20
# images the range leaves out one new image in ten or so; longer by half, one in a hundred (normally distributed).
ROOM = 0.5
LEAST_LEVEL, LEAST_SHARPNESS = 0.02, 0.1  # room where all images are alike: of full scale, and in natural logarithms

Range = tuple[float, float]
Sides = tuple[int, int, int]


def range_of_sides(typical: Sequence[Sample], every: Sequence[Sample]) -> Sides:
    """Longer sides in pixels: the least of all images, the median of the ``typical`` ones, the greatest of all."""
    sides = [max(sample.width, sample.height) for sample in every]
    median = float(np.median([max(sample.width, sample.height) for sample in typical]))
    return min(sides), round(median), max(sides)


def relative_size(width: int, height: int, sides: Sides) -> float:
    """How long an image is beside a typical one of a data set (`range_of_sides`); 1 if it is as large as its images.

    A network shows it at the scale of the typical one, so that objects are as large as in training. It is fitted into
    the input only if it is as large as the images of the data set, as those are.
    """
    longer = max(width, height)
    return 1.0 if sides[0] <= longer <= sides[2] else longer / sides[1]


@dataclass(frozen=True)
class TrainingImages:
    """Ranges of what the images of a detector's data set are like.

    ``sides`` are the longer sides, in pixels, of the smallest, a typical (median) and the largest image. ``level`` is
    the mean of an image, 0 at black and 1 at full scale; ``sharpness`` the logarithm of its contrast from pixel to
    pixel (standard deviation of the Laplacian) over its contrast as a whole. ``holding`` is the number of images, then
    of those that hold an object of each class, up to the last class that occurs; older files have none.
    """

    sides: Sides
    level: Range
    sharpness: Range
    holding: tuple[int, ...] = ()

    @classmethod
    def of(
        cls, images: Sequence[Sample], same_sized: Sequence[Sample], read: Callable[[Sample], Pixels], levels: Levels
    ) -> TrainingImages:
        """Of the images that a detector learns from; ``same_sized`` are all that it is tested on as they are."""
        measured = np.array([measure(levels.scaled(read(sample))) for sample in images])
        ranges = []
        for values, least in zip(measured.T, (LEAST_LEVEL, LEAST_SHARPNESS), strict=True):
            room = max(ROOM * float(np.ptp(values)), least)
            ranges.append((float(values.min()) - room, float(values.max()) + room))
        labels = [label for sample in images for label in set(sample.object_labels.tolist())]
        holding = (len(images), *np.bincount(labels).tolist()) if labels else (len(images),)
        return cls(range_of_sides(images, same_sized), ranges[0], ranges[1], holding)

    def plain(self) -> dict[str, Any]:
        """The fields as JSON has them."""
        return {name: list(value) for name, value in vars(self).items()}

    @classmethod
    def from_plain(cls, fields: Mapping[str, Any]) -> TrainingImages:
        """The inverse of `plain`."""
        return cls(**{name: tuple(value) for name, value in fields.items()})

    def has_size(self, width: int, height: int) -> bool:
        """Whether an image is as large as those of the data set."""
        return self.sides[0] <= max(width, height) <= self.sides[2]

    def differences(self, scaled: Pixels) -> list[str]:
        """How a new image, from black to full scale over its whole type, is unlike them; empty if it is like them."""
        height, width = scaled.shape[:2]
        texts = [] if self.has_size(width, height) else ["size"]
        names = {"level": ("darker", "brighter"), "sharpness": ("blurred", "sharper")}
        for value, (name, (below, above)) in zip(measure(scaled), names.items(), strict=True):
            low, high = getattr(self, name)
            texts += [below] if value < low else [above] if value > high else []
        return texts


def measure(scaled: Pixels) -> tuple[float, float]:
    """Level and sharpness of an image, see `TrainingImages`; an image of one value is as sharp as noise."""
    grey = scaled if scaled.ndim == 2 else cv2.cvtColor(scaled, cv2.COLOR_RGB2GRAY)
    mean, deviation = (float(each[0, 0]) for each in cv2.meanStdDev(grey))
    edges = float(cv2.meanStdDev(cv2.Laplacian(grey, cv2.CV_32F))[1][0, 0])
    level = mean / float(np.iinfo(scaled.dtype).max)
    # Independent noise has sqrt(20), the norm of the Laplacian's kernel.
    return level, math.log(edges / deviation) if edges and deviation else math.log(20) / 2
