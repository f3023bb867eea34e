"""The counts of one image by one detector, or by several of one condition: numbers, intervals, spread."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Int

from boxtwin.counting.detectors import Detector
from boxtwin.counting.images import Read
from boxtwin.counting.scenes import Scene
from boxtwin.datasets.levels import Levels
from boxtwin.datasets.sample import Detections
from boxtwin.datasets.training_images import TrainingImages
from boxtwin.detector.predict import detect_in_windows, detect_objects
from boxtwin.errors import InputError
from boxtwin.evaluation.count_intervals import CountCalibration, CountInterval, counts_at, intervals
from boxtwin.evaluation.counts import counted

NEAR = 0.1  # detections so near to the threshold, in confidence, might as well be counted or not


@dataclass(frozen=True, eq=False)
class ImageCount:
    """What was counted in one image: in total, then by class."""

    counts: Int[np.ndarray, " counts"]
    intervals: tuple[CountInterval, ...] | None  # None: no coverage is known
    spread: Int[np.ndarray, " counts"]  # greatest minus least count of several detectors
    unlike: tuple[str, ...]  # how the image is unlike those that the detectors were trained on
    scale: float  # pixels of the network's input for each pixel of the image
    near: int  # detections near to the threshold
    found: Detections  # the counted ones, of the detector whose counts are nearest to these
    every: Detections  # of that detector, counted or not

    @property
    def disagreement(self) -> int:
        """The widest spread: detectors that agree on the total may still disagree on the classes."""
        return int(self.spread.max())

    @property
    def doubt(self) -> tuple[int, int]:
        """To sort by: unlike images, then wide intervals, or where there are none disagreement and near thresholds."""
        width = self.disagreement if self.intervals is None else self.intervals[0].high - self.intervals[0].low
        return (width + (1_000_000 if self.unlike else 0), self.near)


class Counter:
    """Counts with one detector, or with several: see `joined`."""

    def __init__(self, detectors: Sequence[Detector], scale: float | None) -> None:
        self.detectors, self.scale = detectors, scale
        self.calibration = common_calibration(detectors)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of counts."""
        return self.detectors[0].spec.classes

    def __call__(self, image: Read) -> ImageCount:
        """Count in one image; raises `InputError` if a window of a scene has another depth than training images."""
        width, height = image.size
        every, counts, without, scales = [], [], [], []
        for place, detector in enumerate(self.detectors):
            spec = detector.spec
            scale = self.scale or spec.scale_for(width, height)
            scales.append(scale or spec.image_size / max(width, height))
            if isinstance(image.content, Scene):
                if scale is None:
                    why = "the detector's file does not say how large its training images were"
                    set_it = "set scale=, the pixels of the network's input per pixel of the image, such as scale=1"
                    raise InputError(f"{image.path} is too large to be read whole, and {why}: {set_it}")
                # Fainter ones are not kept: a scene has as many as it has tiles.
                rows = [] if self.calibration is None else [self.calibration[place].thresholds.min()]
                floor = min(*spec.class_thresholds, *rows, 1.0) - NEAR
                spec = replace(spec, score_floor=max(spec.score_floor, floor))
                found = detect_in_windows(image.content.read, (width, height), spec, detector.compute, scale)
            else:
                found = detect_objects(image.content, spec, detector.compute, scale)
            every.append(found)
            counts.append(counts_at(found, np.array(spec.class_thresholds)))
            if self.calibration is not None:
                without.append(np.array([counts_at(found, row) for row in self.calibration[place].thresholds]))
        together = joined(np.array(counts))
        nearest = int(np.abs(np.array(counts) - together).sum(axis=1).argmin())
        spec, unlike = self.detectors[nearest].spec, self._unlike(image)
        ends = None
        if self.calibration is not None and not unlike:
            residuals = -joined(-np.array([each.residuals for each in self.calibration]))
            ends = tuple(intervals(together, joined(np.array(without)), residuals))
        distance = np.abs(every[nearest].scores - np.array(spec.class_thresholds)[every[nearest].labels])
        return ImageCount(
            counts=together,
            intervals=ends,
            spread=np.ptp(np.array(counts), axis=0),
            unlike=tuple(unlike),
            scale=scales[0],
            near=int((distance <= NEAR).sum()),
            found=counted(every[nearest], spec.class_thresholds),
            every=every[nearest],
        )

    def _unlike(self, image: Read) -> list[str]:
        """How the image is unlike the training images of any detector; seeds of a condition have the same ones."""
        known = dict.fromkeys((detector.spec.images, detector.spec.levels) for detector in self.detectors)
        found = [_differences(image, images, levels) for images, levels in known if images is not None]
        reasons = dict.fromkeys(reason for each in found for reason in each)
        return [*reasons, *(["scale"] if self.scale is not None else [])]


def _differences(image: Read, images: TrainingImages, levels: Levels) -> list[str]:
    if not isinstance(image.content, Scene):
        return images.differences(levels.scaled(image.content))
    size = [] if images.has_size(*image.size) else ["size"]
    windows = [levels.scaled(pixels) for pixels in image.content.samples(images.sides[1])]
    tally = Tally(reason for pixels in windows for reason in images.differences(pixels))
    return [*size, *(reason for reason, number in tally.items() if number > len(windows) / 2 and reason != "size")]


def joined(counts: Int[np.ndarray, "detectors *n counts"]) -> Int[np.ndarray, "*n counts"]:
    """The counts of several detectors in one: the median of each class, as whole numbers, and their sum.

    The median of an even number of detectors may lie halfway between two counts. Such medians are rounded up and down
    in turn, beginning with up, so that the total is less than one object from the sum of the medians. Each rounded by
    itself would add half an object for each class. A constant that is added to a class of all detectors is added to
    the result: residuals, true minus counted, are joined as ``-joined(-residuals)``.
    """
    medians = np.median(counts[..., 1:], axis=0)
    lower = np.floor(medians).astype(np.int64)
    halfway = medians > lower
    by_class = lower + (halfway & (np.cumsum(halfway, axis=-1) % 2 == 1))
    return np.concatenate([by_class.sum(axis=-1, keepdims=True), by_class], axis=-1)


def common_calibration(detectors: Sequence[Detector]) -> list[CountCalibration] | None:
    """The calibration of each detector; None if one has none, or they are not of the same images."""
    found = [detector.spec.count_calibration for detector in detectors]
    known = [each for each in found if each is not None]
    images = {each.images for each in known}
    return known if len(known) == len(found) and len(images) == 1 else None
