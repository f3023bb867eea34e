"""Counts and detections held against annotations: AP and count errors on images that were no part of a study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from boxtwin.counting.ensemble import ImageCount
from boxtwin.counting.images import ImageList
from boxtwin.datasets.coco import read_coco
from boxtwin.datasets.reading import Reading
from boxtwin.datasets.sample import Detections, Sample
from boxtwin.errors import InputError
from boxtwin.evaluation.coco_metrics import coco_by_class
from boxtwin.evaluation.counts import count_metrics
from boxtwin.evaluation.matching import match_detections


@dataclass(frozen=True, eq=False)
class Annotated:
    """Images with their objects; ``labels[i]`` is the annotations' number of the detector's class ``i``, or -1."""

    classes: tuple[str, ...]  # of the annotations
    samples: Mapping[Path, Sample]  # by the real path of the file
    labels: tuple[int, ...]


def read_annotations(file: Path, images: ImageList, classes: Sequence[str], reading: Reading) -> Annotated:
    """The annotations of these images; classes are matched by name.

    Raises `InputError` where none of the images is annotated, or objects are of classes that the detector lacks.
    """
    dataset = read_coco(name=file.stem, images=images.folder, annotations=file, reading=reading)
    used = {int(label) for sample in dataset.samples for label in sample.object_labels}
    names = dataset.classes
    if unknown := [name for label, name in enumerate(names) if label in used and name not in classes]:
        raise InputError(
            f"annotations={file} has objects of {', '.join(unknown)}; the detector knows {', '.join(classes)}. Give "
            "annotations of these classes, with the same names, or a detector that was trained on the others"
        )
    wanted = {path.resolve() for path in images.files}
    samples = {one.path.resolve(): one for one in dataset.samples if one.path.resolve() in wanted}
    if not samples:
        raise InputError(
            f"annotations={file} names none of the {len(wanted)} images, whose names start in {images.folder}"
        )
    return Annotated(names, samples, tuple(names.index(name) if name in names else -1 for name in classes))


def score(annotated: Annotated, counts: Mapping[Path, ImageCount]) -> list[str]:
    """Lines that say AP and count errors, in total and by class."""
    samples, detections, found = [], {}, []
    for path, sample in annotated.samples.items():
        if path not in counts:  # unreadable
            continue
        labels = np.array(annotated.labels, dtype=np.int64)
        every = counts[path].every
        own = labels[every.labels]
        kept = own >= 0
        detections[sample.image_id] = Detections(every.boxes[kept], every.scores[kept], own[kept])
        own_counts = np.zeros(len(annotated.classes), dtype=np.int64)
        own_counts[labels[labels >= 0]] = counts[path].counts[1:][labels >= 0]
        found.append(own_counts)
        samples.append(sample)
    if not samples:
        return ["none of the annotated images could be read"]
    true = np.array([np.bincount(sample.object_labels, minlength=len(annotated.classes)) for sample in samples])
    counted = np.array(found)
    together, by_class = coco_by_class(match_detections(samples, detections, len(annotated.classes)))
    errors = count_metrics(true.sum(axis=1), counted.sum(axis=1))
    lines = [f"on {len(samples)} annotated images: {_words({**together, **errors})}"]
    if len(annotated.classes) > 1:
        for label, name in enumerate(annotated.classes):
            lines.append(f"  {name}: {_words(by_class[label] | count_metrics(true[:, label], counted[:, label]))}")
    ends = [counts[path].intervals for path in annotated.samples if path in counts]
    inside = [each[0].low <= total <= each[0].high for each, total in zip(ends, true.sum(axis=1), strict=True) if each]
    if inside and set(annotated.labels) >= set(range(len(annotated.labels))):
        lines.append(f"  the interval holds the true count in {sum(inside)} of {len(inside)} images")
    return lines


def _words(values: Mapping[str, float]) -> str:
    text = "AP {map:.3f}, AP50 {map_50:.3f}, count MAE {count_mae:.2f}, RMSE {count_rmse:.2f}, bias {count_bias:+.2f}, "
    return (text + "{exact:.0f} % of the images exact").format(**values, exact=100 * values["count_exact"])
