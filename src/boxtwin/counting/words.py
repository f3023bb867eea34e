"""What count.py says of detectors, scale, intervals and marks, in the log and in the page."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Sequence

from boxtwin.counting.detectors import Detector
from boxtwin.counting.ensemble import Counter
from boxtwin.counting.files import CountedImage
from boxtwin.datasets.problems import some
from boxtwin.evaluation.count_intervals import LEVEL, promised_level

MOST_NAMED = 10  # classes in a line
UNLIKELY = 0.05  # probability below which it is said that a class was counted in no image


def about(detectors: Sequence[Detector]) -> list[str]:
    """A line for each detector, with the thresholds that it counts at."""
    lines = []
    for detector in detectors:
        thresholds = list(zip(detector.spec.classes, detector.spec.class_thresholds, strict=True))
        counted = ", ".join(f"{name} from confidence {threshold:.3f}" for name, threshold in thresholds[:MOST_NAMED])
        counted += f" and {len(thresholds) - MOST_NAMED} more classes" if len(thresholds) > MOST_NAMED else ""
        lines.append(f"{detector.path}: {detector.spec.architecture}, counts {counted}")
    return lines


def promise(counter: Counter) -> str:
    """What the intervals of counts promise."""
    if counter.calibration is None:
        if len(counter.detectors) > 1:
            return "Counts have no intervals: the detectors were not calibrated, or not on the same images"
        return "Counts have no intervals: the detector was not calibrated (an older version, or too few images)"
    n = len(counter.calibration[0].images)
    level = promised_level(n)
    text = f"Intervals are meant to hold the true count in {100 * level:.0f} % of images like those of training. They "
    text += f"follow from the count errors in {n} labelled images"
    text += "" if level == LEVEL else f", too few for {100 * LEVEL:.0f} %"
    return f"{text}. Each of these was counted by a detector that had not been trained on it"


def boxes_of_one(images: Sequence[CountedImage], counter: Counter) -> list[str]:
    """Where several detectors count: whose boxes are shown, and in how many images they are not as many as counted."""
    if len(counter.detectors) == 1:
        return []
    unequal = sum(len(image.count.found.labels) != image.count.counts[0] for image in images)
    text = f"Counts are the medians of {len(counter.detectors)} detectors. The boxes of an image are those of the "
    text += f"detector whose counts are nearest; in {unequal} of {several(images)} there are more or fewer than counted"
    return [text]


def marks(images: Sequence[CountedImage], counter: Counter) -> list[str]:
    """How many images are unlike the training images, and why; classes never counted; images without GeoJSON."""
    reasons = Tally(reason for image in images for reason in image.count.unlike)
    remarks = [some(found)] if (found := [image.remark for image in images if image.remark]) else []
    if lacking := _never_counted(images, counter):
        why = "these images may be unlike those of training, or the thresholds too high for them"
        remarks.insert(0, f"counted in none of {several(images)}: {some(lacking)}; {why}")
    if not reasons:
        return remarks
    unlike = sum(bool(image.count.unlike) for image in images)
    text = ", ".join(f"{reason} {number}" for reason, number in reasons.items())
    are = "is" if unlike == 1 else "are"
    have = "this count has" if unlike == 1 else "these counts have"
    line = f"{unlike} of {several(images)} {are} unlike the training images ({text}); {have} no interval"
    return [line, *remarks]


def learnt_from(images: Sequence[CountedImage]) -> str:
    """How many and which images a detector was trained or validated on; empty if none."""
    named: dict[str, list[str]] = {}
    for image in images:
        if image.learnt is not None:
            side, name = image.learnt
            named.setdefault(side, []).append(image.name if image.name == name else f"{image.name} = {name}")
    if not named:
        return ""
    number = sum(map(len, named.values()))
    sides = "; ".join(f"{len(names)} {side}: {some(names, MOST_NAMED)}" for side, names in sorted(named.items()))
    return (
        f"the detector was trained or validated on {number} of {several(images)} ({sides}): their counts, "
        "intervals and AP say nothing about new images"
    )


def _never_counted(images: Sequence[CountedImage], counter: Counter) -> list[str]:
    """Classes of which an object should have been found in images like those of training, in words.

    If a class is in the share p of the training images, n images like these have none with probability (1 - p) to the
    power of n.
    """
    spec = counter.detectors[0].spec
    number, *holding = spec.images.holding if spec.images is not None and spec.images.holding else (0,)
    lacking = []
    for label, held in enumerate(holding):
        is_unlikely = (1 - held / (number + 1)) ** len(images) < UNLIKELY  # never all: another image might have none
        if is_unlikely and not any(image.count.counts[1 + label] for image in images):
            place = f"in {held} of {number} training images, counted from confidence {spec.class_thresholds[label]:.3f}"
            lacking.append(f"{counter.classes[label]} ({place})")
    return lacking


def summary(images: Sequence[CountedImage], counter: Counter, seconds: float) -> list[str]:
    """The sums, the scale that was taken, what intervals promise, and marks."""
    sums = [sum(int(image.count.counts[place]) for image in images) for place in range(1 + len(counter.classes))]
    first = f"{sums[0]} object{'' if sums[0] == 1 else 's'} in {several(images)}, {seconds:.1f} s"
    if len(counter.classes) > 1:
        by_class = zip(sums[1:], counter.classes, strict=True)
        first += ": " + ", ".join(f"{name} {number}" for number, name in by_class)
    lines = [first, *scales(images, counter), promise(counter)]
    return [*lines, *boxes_of_one(images, counter), *marks(images, counter)]


def several(images: Sequence[CountedImage]) -> str:
    """``1 image``, ``2 images``."""
    return f"{len(images)} image{'' if len(images) == 1 else 's'}"


def scales(images: Sequence[CountedImage], counter: Counter) -> list[str]:
    """At which scale the images were processed."""
    spec = counter.detectors[0].spec
    if counter.scale is not None:
        return [f"scale: {counter.scale:g} pixels of the network's input for one of an image, as scale= says"]
    whole = f"{spec.image_size} pixels along the longer side"
    if spec.images is None:
        why = "the detector's file does not say how large its training images were"
        return [f"scale: {whole}, whatever the size of the image: {why}; scale= sets another"]
    other = [image for image in images if not spec.images.has_size(image.width, image.height)]
    same = [image for image in images if spec.images.has_size(image.width, image.height)]
    lines = [f"scale: {several(same)} as in training, {whole}"] if same else []
    if other:
        sizes = some(list(dict.fromkeys(f"{image.width} x {image.height}" for image in other)))
        scale = spec.image_size / spec.images.sides[1]
        how = f"in tiles at {scale:.4g}, the scale of training images of {spec.images.sides[1]} pixels"
        lines.append(f"scale: {several(other)} of other sizes ({sizes}) {how}; scale= sets another")
    return lines
