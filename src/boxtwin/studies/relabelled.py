"""Finished runs scored again on other labels of the same images: nothing is trained, and no detector is run.

What a run found in its test and validation images lies in its folder. Matches, AP and counts follow from that and the
labels. Count thresholds are chosen again on the other labels of the validation images if every run keeps what it found
there; runs of older versions do not, and then every run keeps its thresholds.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from boxtwin.datasets.coco import read_labels
from boxtwin.datasets.coco_json import file_key
from boxtwin.datasets.image_names import ImageNames
from boxtwin.datasets.options import LABEL_SETTINGS, label_settings
from boxtwin.datasets.problems import some
from boxtwin.datasets.sample import Sample
from boxtwin.errors import InputError
from boxtwin.evaluation.coco_metrics import DETECTIONS_FILE, VALIDATION_DETECTIONS_FILE, read_results
from boxtwin.evaluation.counts import Thresholds
from boxtwin.evaluation.resampled_ap import ResampledAP
from boxtwin.evaluation.scoring import score_test, score_validation
from boxtwin.studies.comparison import Difference, against_none
from boxtwin.studies.conditions import Row
from boxtwin.studies.evidence import Evidence
from boxtwin.studies.runs import FINISHED, StudyRun, find_file
from boxtwin.studies.study import Study
from boxtwin.tracking.run_folders import RESULT_FILE, RunResult, read_result

log = logging.getLogger(__name__)

NEEDED = (RESULT_FILE, DETECTIONS_FILE, VALIDATION_DETECTIONS_FILE)  # of a run


@dataclass(frozen=True, eq=False)
class Relabelled:
    """Runs under the labels that they were tested with, and the same runs under other ones."""

    given: Study
    other: Study
    file: Path  # the other labels
    new_thresholds: bool  # chosen again, on the other labels of the validation images
    images: int  # test images
    recounted: int  # of them, those whose number of objects is another one
    objects: tuple[int, int]  # in all test images: their number under the runs' labels, and under the other ones
    suspected: bool  # the other labels are those that the runs' own detections suggest, seen by no person

    @property
    def pairs(self) -> list[tuple[Row, Mapping[str, Difference], Row, Mapping[str, Difference]]]:
        """Each condition with its differences to no variations, under the first and under the second labels."""
        rows = {row.run_ids: row for row in self.other.rows}
        first, second = (against_none(study.contrasts) for study in (self.given, self.other))
        return [
            (row, first.get(row.run_ids, {}), rows[row.run_ids], second.get(row.run_ids, {})) for row in self.given.rows
        ]

    @property
    def turned(self) -> list[Row]:
        """Conditions whose difference in AP50 to no variations has another sign under the second labels."""
        return [
            row
            for row, before, _, after in self.pairs
            if "map_50" in before and "map_50" in after and before["map_50"].mean * after["map_50"].mean < 0
        ]


class OtherLabels:
    """The labels of a COCO file for the images of runs, found by file name."""

    def __init__(
        self,
        annotations: Path,
        classes: Sequence[str],
        settings: Mapping[str, Any],
        images: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """Read and check them; ``settings`` say how a run's data set was read, ``images`` are those of runs.

        Raises `InputError` if the file is wrong, or has other ``classes``.
        """
        sizes = {str(each["file_name"]): (each["width"], each["height"]) for each in images if "width" in each}
        known, listed = ImageNames([[name] for name in sizes]), list(sizes.values())

        def shown_size(name: str) -> tuple[int, int] | None:
            place = known.find(name)
            return None if place is None else listed[place]

        dataset = read_labels(annotations, **label_settings(settings), shown_size=shown_size)
        used = {dataset.classes[label] for sample in dataset.samples for label in np.unique(sample.labels)}
        if not set(classes) <= set(dataset.classes) or not used <= set(classes):
            there, wanted = ", ".join(dataset.classes), ", ".join(classes)
            raise InputError(f"annotations={annotations} has the classes {there}; those of the runs are {wanted}")
        self.annotations = annotations
        self._label = np.array([[*classes, name].index(name) for name in dataset.classes], dtype=np.int64)
        self._samples = dataset.samples

    def of(self, images: Sequence[Mapping[str, Any]]) -> list[Sample]:
        """Images of a run (``image_id``, ``file_name``, ``group``, and, if it is known, size) with these labels.

        `InputError` if one is missing, or of another size.
        """
        found = self._find(images)
        missing = [str(entry["file_name"]) for entry, sample in zip(images, found, strict=True) if sample is None]
        if missing:
            raise InputError(
                f"annotations={self.annotations} lacks {len(missing)} of {len(images)} test or validation images of "
                f"the runs: {some(missing)}. It must list each one once, by its file name, those without objects too"
            )
        resized = [
            f"{sample.name}: {sample.width} x {sample.height} stated, {entry['width']} x {entry['height']} in the runs"
            for entry, sample in zip(images, found, strict=True)
            # Images that are turned as their tag says may be stated as they are stored.
            if sample and "width" in entry and {sample.width, sample.height} != {entry["width"], entry["height"]}
        ]
        if resized:
            raise InputError(
                f"annotations={self.annotations}: {len(resized)} images are of another size than those of the runs: "
                f"{some(resized)}. Export the labels at the size of the data set's images"
            )
        return [
            replace(
                sample,
                name=str(entry["file_name"]),
                image_id=entry["image_id"],
                labels=self._label[sample.labels],
                group=str(entry.get("group", "")),
            )
            for entry, sample in zip(images, found, strict=True)
            if sample is not None
        ]

    def knows(self, images: Sequence[Mapping[str, Any]]) -> bool:
        """Whether the file has any of these images."""
        return any(sample is not None for sample in self._find(images))

    def _find(self, images: Sequence[Mapping[str, Any]]) -> list[Sample | None]:
        """The labels of each image; None where no image of the file may be it, or several."""
        names = [str(entry["file_name"]) for entry in images]
        known, fitting = ImageNames([[name] for name in names]), defaultdict[int, list[Sample]](list)
        for sample in self._samples:
            if (place := known.find(sample.name)) is not None:
                fitting[place].append(sample)
        found = []
        for place, name in enumerate(names):
            equal = [sample for sample in fitting[place] if file_key(sample.name) == file_key(name)]
            possible = equal or fitting[place]
            found.append(possible[0] if len(possible) == 1 else None)
        return found


def relabelled(study: Study, annotations: Path, *, suspected: bool = False) -> Relabelled:
    """Score the finished runs of a study again on the labels of a COCO file.

    Raises:
        InputError: the file is wrong, lacks images or has other classes; or no run keeps its detections, or one has
            those of another run.
    """
    kept = [each for run in study.runs if run.status == FINISHED and (each := finished_run(run, study.copies))]
    if not kept:
        raise InputError(
            f"annotations={annotations}: no finished run of {study.name} keeps its {DETECTIONS_FILE}, without which it "
            "cannot be scored again"
        )
    # 1. All labels that are needed, before anything is scored.
    read: dict[tuple[object, ...], OtherLabels] = {}
    images = [entry for each in kept for entry in (*each.result.counts, *each.result.validation_images)]
    labels = []
    for each in kept:
        settings = tuple(each.run.condition.get(f"dataset.{name}") for name in LABEL_SETTINGS)
        key = (*each.classes, *settings)
        if key not in read:
            by_name = dict(zip(LABEL_SETTINGS, settings, strict=True))
            read[key] = OtherLabels(annotations, each.classes, by_name, images)
        of_validation = each.result.validation_images if each.validation else ()
        known = read[key].knows(of_validation)
        labels.append((read[key].of(each.result.counts), read[key].of(of_validation) if known else None))
    again = all(validation is not None for _, validation in labels)
    if not again:
        log.info(
            "count thresholds are those of the runs: some keep no %s (older versions), or the file has no validation "
            "images",
            VALIDATION_DETECTIONS_FILE,
        )
    # 2. The runs with their new metrics, and what these follow from.
    runs, evidence = [], {}
    for each, other in zip(kept, labels, strict=True):
        run, after = rescored(each, other[0], other[1] if again else None)
        of_run = study.evidence.get(each.run.run_id)
        if of_run is not None and not of_run.matches["all"].has_detections_of(after.matches["all"]):
            raise InputError(
                f"{each.test} holds other detections than {each.run.name} was tested with: it was changed, or is "
                "another run's. Bring it back, from MLflow for example, or move the folder of the run elsewhere"
            )
        evidence[each.run.run_id] = after
        runs.append(run)
    second = evidence[kept[0].run.run_id]
    true = {entry["image_id"]: int(entry["true"]) for entry in kept[0].result.counts}
    before = np.array([true[image_id] for image_id in second.matches["all"].image_ids], dtype=np.int64)
    return Relabelled(
        given=Study.of(
            [each.run for each in kept],
            {each.run.run_id: study.evidence[each.run.run_id] for each in kept if each.run.run_id in study.evidence},
            study.copies,
            study.primary,
        ),
        other=Study.of(runs, evidence, study.copies, study.primary),
        file=annotations,
        new_thresholds=again,
        images=len(before),
        recounted=int((before != second.true).sum()),
        objects=(int(before.sum()), int(second.true.sum())),
        suspected=suspected,
    )


@dataclass(frozen=True)
class FinishedRun:
    """A finished run with its result and the files of what it found; ``validation`` is None in older versions."""

    run: StudyRun
    result: RunResult
    test: Path
    validation: Path | None

    @property
    def classes(self) -> list[str]:
        return [str(entry["name"]) for entry in self.result.classes]

    @property
    def category_ids(self) -> list[int]:
        return [int(entry["category_id"]) for entry in self.result.classes]


def finished_run(run: StudyRun, copies: Mapping[str, Path]) -> FinishedRun | None:
    """What a run keeps; None, and a warning, if that is too little to score it again."""
    file, test, validation = (find_file(run, name, copies) for name in NEEDED)
    result = read_result(file.parent) if file else None
    if result is None or test is None or not all("category_id" in entry for entry in result.classes or [{}]):
        log.warning("%s keeps no %s, or is of an older version: left out", run.name, DETECTIONS_FILE)
        return None
    return FinishedRun(run, result, test, validation if result.validation_images else None)


def rescored(
    kept: FinishedRun, test: Sequence[Sample], validation: Sequence[Sample] | None
) -> tuple[StudyRun, Evidence]:
    """A run and its evidence under other labels of its test images; ``validation`` is None to keep its thresholds."""
    result, classes = kept.result, kept.classes
    thresholds = Thresholds(
        float(result.metrics["val_real/count_threshold"] or 0),
        tuple(float(entry["count_threshold"]) for entry in result.classes),
    )
    metrics = {name: value for name, value in kept.run.metrics.items() if not name.startswith("test/")}
    if validation is not None and kept.validation is not None:
        metrics = {name: value for name, value in metrics.items() if not name.startswith("val_real/")}
        found = read_results(kept.validation, kept.category_ids)
        thresholds, on_validation = score_validation(validation, found, classes)
        metrics |= on_validation
    scores = score_test(test, read_results(kept.test, kept.category_ids), thresholds, classes, kept.category_ids)
    evidence = Evidence.of(
        {area: ResampledAP.of(scores.matching, area) for area in scores.matching.areas}, scores.counts, scores.classes
    )
    of_classes = {
        str(entry["name"]): {**entry["metrics"], "count_threshold": entry["count_threshold"]}
        for entry in scores.classes
    }
    run = replace(kept.run, metrics=metrics | scores.metrics, classes=of_classes)
    return run, evidence
