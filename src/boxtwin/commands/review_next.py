"""From a folder of unlabelled images, those whose labels would help most, pre-labelled by the detectors of a study."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from omegaconf import DictConfig
from tqdm import tqdm

from boxtwin.boxes import area_xyxy, xyxy_to_xywh
from boxtwin.commands.recommended import Recommended, final_command, recommended_condition
from boxtwin.config.compose import read_config, to_object
from boxtwin.config.schema import BoxtwinConfig, ReviewConfig
from boxtwin.counting.detectors import finals_of
from boxtwin.counting.next_page import ShownImage, write_page
from boxtwin.datasets.coco import coco_content
from boxtwin.datasets.copies import alike, repeated
from boxtwin.datasets.image_folder import read_folder
from boxtwin.datasets.image_io import Pixels
from boxtwin.datasets.problems import some
from boxtwin.datasets.sample import Detections, Sample
from boxtwin.detector.checkpoint import FILE, TrainedDetector, read_detector
from boxtwin.detector.predict import check_depth, detect_objects
from boxtwin.errors import InputError
from boxtwin.evaluation.matching import RESULT_DECIMALS
from boxtwin.files import atomic_path, check_target, link_file
from boxtwin.hardware import choose_device
from boxtwin.labels.next_images import Disagreement, choose
from boxtwin.run.build import load_dataset
from boxtwin.studies.condition_values import flatten
from boxtwin.tracking.run_folders import CONFIGURATION, FINAL, read_result

log = logging.getLogger(__name__)

TABLE, LABELS, IMAGES, PAGE = "next.csv", "annotations.json", "images", "index.html"
LEAST_DETECTORS = 2
# The parts of a condition by which two are told apart here.
SETTINGS = ("variations", "generator", "labels", "detector", "pretraining")


@dataclass(frozen=True)
class Chosen:
    """An image to label, and why."""

    sample: Sample
    found: Disagreement
    distance: float  # to the nearest image that is labelled or was chosen before


def choose_next(composed: DictConfig) -> Path:
    """Write the images to label next into a folder, which appears whole; returns it.

    Raises:
        InputError: before any work, for a folder without images or with labelled ones alone, a study with fewer than
            two detectors of one condition, or a target that exists.
    """
    config = to_object(composed, ReviewConfig)
    source = Path(str(config.next))
    if config.number < 1:
        raise InputError(f"number={config.number} must be at least 1")
    folder = Path(config.folder or f"{source.absolute()}-next")
    check_target(folder, "folder")
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder} exists, and may hold labels of people; give another: folder=FOLDER")
    if not source.is_dir():
        raise InputError(f"next={source} is no folder")
    found = recommended_condition(composed, config.study)
    files = detectors_of(found)
    detectors = [read_detector(file) for file in files]
    condition, settings = trained_as(files, found)
    dataset = load_dataset(to_object(settings, BoxtwinConfig))
    reading = detectors[0].spec.how_to_read
    empty = settings.dataset.get("empty")  # a person has looked at these
    known = list(dataset.samples)
    if empty is not None and not Path(empty).is_dir():
        log.warning("dataset.empty=%s is no folder any more; its images may be offered again", empty)
    elif empty is not None:
        known += read_folder(Path(empty), setting="dataset.empty", group_by=None, reading=reading)
    new = unlabelled(read_folder(source, setting="next", group_by=None, reading=reading), known, source)
    log.info("%d detectors of %s, study %s", len(detectors), condition, found.study)
    chosen = rank(detectors, new, dataset.samples, config.number)
    if len(chosen) < config.number:
        log.warning("next=%s has %d images without labels, fewer than number=%d", source, len(new), config.number)
    notes = [
        f"{len(chosen)} of {len(new)} images in {source.name}, the most useful first: those on which {len(detectors)} "
        f"detectors of {condition} (study {found.study}) disagree, and which are unlike the labelled ones and one "
        "another.",
    ]
    if not any(each.found.bits for each in chosen):
        notes.append(
            f"The {len(detectors)} detectors disagree on none of these images, so the order follows from diversity "
            "alone. More seeds disagree more often: final_seeds=5 of train.py final=STUDY."
        )
        log.warning("%s", notes[-1])
    with atomic_path(folder, new_folder=True) as temporary:  # people may have begun to label in it
        temporary.mkdir()
        write(temporary, chosen, detectors[0], notes)
    agreed, doubtful = (sum(len(getattr(each.found, name)) for each in chosen) for name in ("agreed", "doubtful"))
    log.info("%d images to label, %d boxes on which detectors agree, %d in doubt", len(chosen), agreed, doubtful)
    log.info("written: %s, %s", folder / TABLE, folder / PAGE)
    return folder


def detectors_of(found: Recommended) -> list[Path]:
    """The final detectors of a study, or those of its recommended condition; `InputError` for fewer than two."""
    folders = [Path(run.output_dir) for run in found.row.runs if run.output_dir]
    finals = [file for folder in folders[:1] for file in finals_of(folder.parent)]
    files = [folder / FILE for folder in folders if (folder / FILE).is_file()]
    files = finals if len(finals) >= LEAST_DETECTORS else files
    if len(files) < LEAST_DETECTORS:
        raise InputError(
            f"next= needs several detectors, to find where they disagree, and study {found.study} has {len(files)} of "
            f"{found.row.name}. Train the study with more seeds (-m seed=0,1,2), or train its final detectors:\n"
            f"{final_command(found.study, found.tracking)}"
        )
    return files


def trained_as(files: Sequence[Path], found: Recommended) -> tuple[str, DictConfig]:
    """The condition of the detectors, and the settings that they were trained with.

    Final detectors may have been trained on a larger data set than the runs of their study, and of a condition that was
    recommended then.
    """
    final = files[0].parents[1] / FINAL
    result = read_result(final)
    if not files[0].parent.name.startswith(f"{FINAL}-seed") or result is None:
        return found.row.name, found.settings
    condition = str(result.data["condition"])
    ours, theirs = flatten(result.condition or {}), found.row.first.condition
    # Names follow from all rows of a table, and hashes from data, of which the final detectors have more.
    if any(ours.get(key) != theirs.get(key) for key in {*ours, *theirs} if key.partition(".")[0] in SETTINGS):
        log.warning(
            "the final detectors are of %s, and study %s recommends %s now; to train these: %s",
            *(condition, found.study, found.row.name, final_command(found.study, found.tracking)),
        )
    return condition, read_config(final / CONFIGURATION)


def unlabelled(samples: Sequence[Sample], known: Sequence[Sample], source: Path) -> list[Sample]:
    """The images that are not labelled yet, one of each that look the same; the log names those that are left out."""
    near = alike(samples, known)
    if near:
        listed = some([f"{name} = {other}" for name, other in near.items()], 10)
        log.info("%d images are left out, equal or nearly equal to known ones: %s", len(near), listed)
    left = [sample for sample in samples if sample.name not in near]
    if not left:
        raise InputError(f"next={source}: all {len(samples)} images are labelled already, or known to be empty")
    if copies := repeated(left, known):
        listed = some([f"{name} = {other}" for name, other in copies.items()], 10)
        log.info("%d images are left out, equal or nearly equal to others of the folder: %s", len(copies), listed)
    return [sample for sample in left if sample.name not in copies]


def rank(
    detectors: Sequence[TrainedDetector], new: Sequence[Sample], labelled: Sequence[Sample], number: int
) -> list[Chosen]:
    """The images to label, the most useful first; `InputError` for images of another depth than the labelled ones."""
    for sample in new:
        if (sample.bits > 8) != (detectors[0].spec.white > 255):  # 16 bit may hold 8 bit values
            check_depth(sample.read(), sample.name, detectors[0].spec)
    device = str(choose_device("auto", "next"))
    for each in detectors:
        each.module.to(device)
    thresholds = [each.spec.class_thresholds for each in detectors]
    found, features = [], []
    for sample in tqdm(new, "detecting objects", unit="image"):
        pixels = sample.read()
        first, of_image = detect_with_features(detectors[0], pixels)
        others = [_detect(each, pixels) for each in detectors[1:]]
        found.append(Disagreement.of([first, *others], thresholds))
        features.append(of_image)
    known = [
        detect_with_features(detectors[0], sample.read())[1]
        for sample in tqdm(labelled, "labelled images", unit="image")
    ]
    bits = np.array([each.bits for each in found])
    order = choose(bits, np.array(features), np.array(known).reshape(len(known), -1), number)
    return [Chosen(new[place], found[place], distance) for place, distance in order]


def _detect(detector: TrainedDetector, pixels: Pixels) -> Detections:
    scale = detector.spec.scale_for(pixels.shape[1], pixels.shape[0])
    return detect_objects(pixels, detector.spec, detector.compute, scale)


def detect_with_features(detector: TrainedDetector, pixels: Pixels) -> tuple[Detections, Float[np.ndarray, " values"]]:
    """Detections in an image, and its features: those of the deepest stage of the network, averaged over all places."""
    features: list[Any] = []
    stage = detector.module.network.stages[-1]
    hook = stage.register_forward_hook(lambda _module, _inputs, output: features.extend(output.mean((2, 3)).float()))
    try:
        found = _detect(detector, pixels)
    finally:
        hook.remove()
    return found, np.mean([each.cpu().numpy() for each in features], axis=0)


def write(folder: Path, chosen: Sequence[Chosen], detector: TrainedDetector, notes: Sequence[str]) -> None:
    """Write table, pre-labels, links to the images, and the page."""
    spec = detector.spec
    entries, annotations, scores, rows = [], [], [], []
    for number, each in enumerate(chosen, start=1):
        sample, places = each.sample, each.found.agreed
        link_file(sample.path, folder / IMAGES / sample.name)
        entry: dict[str, Any] = {"id": number, "file_name": sample.name, "width": sample.width, "height": sample.height}
        entry |= spec.how_to_read.stated()
        entries.append({**entry, "rank": number, "disagreement": round(each.found.bits, 4), "confirmed": False})
        boxes = np.array([place.box for place in places], dtype=np.float64).reshape(-1, 4)
        boxes = boxes.clip(0, [sample.width, sample.height] * 2).round(RESULT_DECIMALS)
        for place, box, area in zip(places, xyxy_to_xywh(boxes).tolist(), area_xyxy(boxes).tolist(), strict=True):
            annotations.append((number, spec.category_ids[place.label], box, area, False))
            scores.append(place.score)
        rows.append([number, sample.name, f"{each.found.bits:.4f}", len(places), len(each.found.doubtful)])
    content = coco_content(entries, annotations, zip(spec.category_ids, spec.classes, strict=True))
    for annotation, score in zip(content["annotations"], scores, strict=True):
        annotation["score"] = score
    (folder / LABELS).write_text(json.dumps(content))
    with (folder / TABLE).open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["rank", "file", "disagreement", "pre_labelled", "doubtful"], *rows])
    shown = [
        ShownImage(
            each.sample.name,
            f"{IMAGES}/{each.sample.name}",
            spec.levels.in_8_bit(each.sample.read()),
            each.found,
            each.distance,
        )
        for each in chosen
    ]
    title = f"{len(chosen)} images to label next"
    write_page(folder / PAGE, shown, title=title, classes=spec.classes, notes=notes)
