"""Counts and detections held against annotations: AP and count errors on images that were no part of a study."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
from jaxtyping import Int

from boxtwin.counting.ensemble import ImageCount
from boxtwin.counting.images import ImageList
from boxtwin.datasets import tiff
from boxtwin.datasets.coco import read_coco
from boxtwin.datasets.coco_json import fault_of_name, find_files, load_content, of_images
from boxtwin.datasets.options import label_settings
from boxtwin.datasets.problems import some
from boxtwin.datasets.reading import Reading
from boxtwin.datasets.sample import Detections, Sample
from boxtwin.errors import InputError
from boxtwin.evaluation.coco_metrics import coco_by_class
from boxtwin.evaluation.counts import count_metrics
from boxtwin.evaluation.matching import COCO_LIMIT, match, match_detections


@dataclass(frozen=True, eq=False)
class Annotated:
    """Images with their objects; ``labels[i]`` is the annotations' number of the detector's class ``i``, or -1."""

    classes: tuple[str, ...]  # of the annotations
    samples: Mapping[Path, Sample]  # by the real path of the file
    labels: tuple[int, ...]
    remarks: tuple[str, ...] = ()  # on images that are in the file or among the counted ones alone


def read_annotations(
    file: Path,
    images: ImageList,
    classes: Sequence[str],
    reading: Reading,
    read_by: Mapping[str, str] = MappingProxyType({}),
) -> Annotated:
    """The annotations of these images; classes are matched by name.

    Boxes become objects by ``read_by``, `LABEL_SETTINGS` of the detector's data set.

    Raises `InputError` where at most half of the file's images and at most half of the counted ones are in both, or
    objects are of classes that the detector lacks.
    """
    content = load_content(file)
    names = [entry["file_name"] for entry in content["images"]]
    safe = [name for name in names if not fault_of_name(name)]
    wanted = {path.resolve() for path in images.files}
    found = {name: path.resolve() for name, path in zip(safe, find_files(safe, images.folder), strict=True)}
    both = {name for name, path in found.items() if path in wanted}
    others = [name for name in names if name not in both]
    unscored = len(wanted - {found[name] for name in both})
    if 2 * len(others) >= len(names) and 2 * unscored >= len(wanted):
        raise InputError(
            f"annotations={file}: {len(both)} of its {len(names)} images are among the {len(wanted)} counted files, "
            f"whose names start in {images.folder}, and others are not, such as {some(others)}. Give the annotations "
            "of these images, or the images that are annotated: images=LIST.txt"
        )
    unconfirmed = {entry["file_name"] for entry in content["images"] if entry.get("confirmed") is False} & both
    if unconfirmed == both:
        raise InputError(
            f"annotations={file}: no person has confirmed the labels of these images, which are detections; correct "
            "them first (review.py export= and read=)"
        )
    both -= unconfirmed
    stacks = [] if reading.page is not None else [name for name in sorted(both) if _is_stack(found[name])]
    if stacks:
        raise InputError(
            f"annotations={file}: files of several pages, such as {some(stacks)}, are counted page by page, and no "
            "annotations belong to a page. Save annotated pages as files of their own, or leave out annotations="
        )
    dataset = read_coco(
        name=file.stem,
        images=images.folder,
        annotations=file,
        **label_settings(read_by),
        reading=reading,
        content=of_images(content, both),
    )
    used = {int(label) for sample in dataset.samples for label in sample.object_labels}
    known = dataset.classes
    if unknown := [name for label, name in enumerate(known) if label in used and name not in classes]:
        raise InputError(
            f"annotations={file} has objects of {', '.join(unknown)}; the detector knows {', '.join(classes)}. Give "
            "annotations of these classes, with the same names, or a detector that was trained on the others"
        )
    remarks = list(dataset.remarks)
    if others:
        remarks.append(f"not counted: {len(others)} of the {len(names)} images in {file}")
    if unscored:
        remarks.append(f"not scored: {unscored} of the {len(wanted)} counted files, which are not in {file}")
    if unconfirmed:
        remarks.append(f"not scored: {len(unconfirmed)} images whose labels no person has confirmed")
    if unlisted := [name for name in classes if name not in known]:
        remarks.append(f"not scored: {', '.join(unlisted)}, which {file} does not list as categories")
    samples = {sample.path.resolve(): sample for sample in dataset.samples}
    labels = tuple(known.index(name) if name in known else -1 for name in classes)
    return Annotated(known, samples, labels, tuple(remarks))


def _is_stack(path: Path) -> bool:
    """Whether a file holds several pages; of a damaged one `read_coco` says what is wrong."""
    try:
        return tiff.is_tiff(path) and tiff.count_pages(path, str(path)) > 1
    except OSError:
        return False


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
        if sample.crowd.any():  # what AP ignores there is not counted either
            own_counts = np.maximum(own_counts - _in_crowds(sample, counts[path].found, labels, len(own_counts)), 0)
        found.append(own_counts)
        samples.append(sample)
    if not samples:
        return ["none of the annotated images could be read", *annotated.remarks]
    true = np.array([np.bincount(sample.object_labels, minlength=len(annotated.classes)) for sample in samples])
    counted = np.array(found)
    together, by_class = coco_by_class(match_detections(samples, detections, len(annotated.classes)))
    errors = count_metrics(true.sum(axis=1), counted.sum(axis=1))
    lines = [f"on {len(samples)} annotated image{'' if len(samples) == 1 else 's'}: {_words({**together, **errors})}"]
    if len(annotated.classes) > 1:
        for label, name in enumerate(annotated.classes):
            lines.append(f"  {name}: {_words(by_class[label] | count_metrics(true[:, label], counted[:, label]))}")
    # An interval is of all that is counted, in crowds too, and how many objects a crowd has is not known.
    inside = [
        ends[0].low <= len(sample.object_boxes) <= ends[0].high
        for path, sample in annotated.samples.items()
        if path in counts and (ends := counts[path].intervals) and not sample.crowd.any()
    ]
    if inside and set(annotated.labels) >= set(range(len(annotated.labels))):
        lines.append(f"  the interval holds the true count in {sum(inside)} of {len(inside)} images")
    return [*lines, *(f"  {remark}" for remark in annotated.remarks)]


def _in_crowds(
    sample: Sample, found: Detections, labels: Int[np.ndarray, " _classes"], classes: int
) -> Int[np.ndarray, " _annotated"]:
    """How many counted detections lie in crowds, by class of the annotations."""
    own = labels[found.labels]
    known = Detections(found.boxes[own >= 0], found.scores[own >= 0], own[own >= 0])
    return np.bincount(known.labels[match(sample, known).ignored], minlength=classes)


def _words(values: Mapping[str, float]) -> str:
    text = "AP {map:.3f}, AP50 {map_50:.3f}, count MAE {count_mae:.2f}, RMSE {count_rmse:.2f}, bias {count_bias:+.2f}, "
    text = (text + "{exact:.0f} % of the images exact").format(**values, exact=100 * values["count_exact"])
    unlimited = values.get("map_unlimited", values["map"])
    if round(unlimited, 3) == round(values["map"], 3) or math.isnan(unlimited):
        return text
    of_all = f"AP {unlimited:.3f}, AP50 {values['map_50_unlimited']:.3f}"
    return f"{text}; COCO's AP uses {COCO_LIMIT} detections a class and image, too few here; with all of them {of_all}"
