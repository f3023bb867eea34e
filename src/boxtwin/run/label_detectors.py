"""Detectors that label variations, and the label card of a store.

They are the detectors of runs without variations with the same settings, trained on real images only and kept below
``data/detectors`` by their identity: a finished run without variations leaves its detector there.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from boxtwin.config.identity import NO_PRETRAINING, long_hash, run_name
from boxtwin.datasets.image_io import Pixels
from boxtwin.datasets.sample import DECISIONS, Detections, Judge, Sample
from boxtwin.datasets.training_images import range_of_sides, relative_size
from boxtwin.detector.checkpoint import TrainedDetector, damage, read_detector, write_detector
from boxtwin.detector.predict import detect_objects
from boxtwin.evaluation.coco_metrics import coco_by_class
from boxtwin.evaluation.counts import THRESHOLD_WITHOUT_DETECTIONS, best_threshold, choose_thresholds
from boxtwin.evaluation.matching import match_detections, outside_crowds
from boxtwin.files import exclusive_lock, link_file
from boxtwin.hardware import torch_device
from boxtwin.labels.card import tally, write_card
from boxtwin.labels.ensemble import Member, new_object_threshold
from boxtwin.memory import keep_freed_blocks
from boxtwin.mixing.plan import make_plan
from boxtwin.run.build import Prepared, detector_file, labelling_runs, make_data, make_detector, train
from boxtwin.run.generators import make_labels
from boxtwin.synthesis.manifest import refused_lines, store_costs

log = logging.getLogger(__name__)

CARDS = "label_cards"  # folder of a store
# AP50 on validation images below which a warning is logged. Detectors of ten HRSID images reach about 0.55.
LEAST_AP50 = 0.3


def prepare_labelling(prepared: Prepared) -> None:
    """Give the run's store what labels its images, if any has to be labelled; train the detectors that it needs.

    A killed training is continued from its last checkpoint. Processes that need the same detector share one training.
    """
    library = prepared.store
    if library.judge is None and len(library.judged(prepared.sources, prepared.per_image)) < prepared.wanted:
        library.generator.check_early()  # before detectors are trained for it
        library.judge = make_judge(prepared)


def make_judge(prepared: Prepared) -> Judge:
    """What decides on the labels of a run's variations, with its detectors trained."""
    method = make_labels(prepared.config, prepared.dataset, prepared.store.generator)
    if not method.asks_detectors:
        return method.judge([])
    return method.judge(make_members(labelling_runs(prepared.config, prepared.dataset, prepared.split)))


def detectors_to_train(prepared: Prepared) -> list[Prepared]:
    """The runs whose detectors label a run's variations and are missing, broken or other ones."""
    method = make_labels(prepared.config, prepared.dataset, prepared.store.generator)
    runs = labelling_runs(prepared.config, prepared.dataset, prepared.split) if method.asks_detectors else []
    return [each for each in runs if damage(detector_file(each), each.identities) is not None]


def keep_detector(prepared: Prepared, file: Path) -> None:
    """Keep the detector of a run without variations for labelling."""
    path = detector_file(prepared)
    is_plain = prepared.config.pretraining.name == NO_PRETRAINING and not prepared.extra.number
    if prepared.per_image == 0 and is_plain and damage(path, prepared.identities) is not None:
        link_file(file, path)


def write_label_card(prepared: Prepared) -> list[Path]:
    """Write the label card of the store as the run's split sees it, unless it is there; its files.

    Splits may share a store, so cards are kept by a hash of what they are made of. The store's own folder has the last.
    """
    library = prepared.store
    most = max((line.variation for line in library.lines()), default=0)
    lines = [line.to_json() for line in library.judged(prepared.sources, most)]
    read = {source.name: source.read for source in prepared.sources}
    objects = {source.name: len(source.object_boxes) for source in prepared.sources}
    folder = library.folder / CARDS / long_hash([sorted(objects.items()), lines, prepared.dataset.classes])[:16]
    files = [folder / name for name in ("label_card.json", "label_card.png")]
    if most and not all(file.exists() and file.stat().st_size for file in files):
        write_card(library.folder, lines, read, prepared.dataset.classes, objects, to=folder)
    for file in files if most else ():
        link_file(file, library.folder / file.name)
    return files


def label_metrics(prepared: Prepared) -> dict[str, float]:
    """Outcome and cost of labelling a run's variations, as metrics."""
    if prepared.library is None:
        return {}
    lines = prepared.library.judged(prepared.sources, prepared.per_image)
    counted = tally([line.to_json() for line in lines])
    counts = {f"data/labels_{name}": float(count) for name, count in counted.items() if isinstance(count, int)}
    by_hand = make_labels(prepared.config, prepared.dataset, prepared.library.generator).by_hand
    names = {source.name for source in prepared.sources}
    attempts = [line for line in refused_lines(prepared.library.folder) if line.variation <= prepared.per_image]
    refused = [line for line in attempts if line.source in names]
    return counts | store_costs(prepared.library.folder, lines, refused, by_hand=by_hand)


def describe(prepared: Prepared) -> str:
    """The outcome of labelling a run's variations, in one line."""
    counts = tally([line.to_json() for line in prepared.store.judged(prepared.sources, prepared.per_image)])
    boxes = ", ".join(f"{counts[name]} {name}" for name in DECISIONS)
    return f"boxes {boxes}; images {counts['images']} used, {counts['refused']} refused"


def trained_file(prepared: Prepared, title: str, training: Callable[[Prepared, Path, str], None] | None = None) -> Path:
    """The file of a detector that several runs share; it is trained first if the file is missing, broken or
    another training's.

    ``training`` writes the file; None for training on images of the split alone.
    """
    path = detector_file(prepared)
    if damage(path, prepared.identities) is not None:  # it is missing, broken or another one
        with exclusive_lock(path.with_suffix(".lock"), f"{title}: another process is training it; waiting"):
            if path.exists() and (wrong := damage(path, prepared.identities)) is not None:
                log.warning("%s; it is trained again", wrong)
                path.unlink()
            if not path.exists():
                (training or _train)(prepared, path, title)
    return path


def make_members(runs: Sequence[Prepared]) -> list[Member]:
    """The detectors of `labelling_runs`, which are trained first if they are missing."""
    return [_member(each, f"labels: detector {n} of {len(runs)}") for n, each in enumerate(runs, start=1)]


def _member(prepared: Prepared, title: str) -> Member:
    trained = read_detector(trained_file(prepared, title))
    detect = on_device(prepared, trained)
    on_validation = detect_all(prepared, trained, prepared.split.val)
    matching = match_detections(prepared.split.val, on_validation, len(prepared.dataset.classes))
    ap50 = coco_by_class(matching)[0]["map_50"]
    log.info("%s: AP50 %.2f on %d validation images", title, ap50, len(prepared.split.val))
    if ap50 < LEAST_AP50:
        log.warning(
            "%s has learnt little (AP50 %.2f, below %.1f), and many of its boxes will be wrong: raise "
            "trainer.steps, or let people draw the boxes (labels=manual)",
            *(title, ap50, LEAST_AP50),
        )
    classes, validation = len(prepared.dataset.classes), prepared.split.val
    thresholds: tuple[float, ...] = (trained.count_threshold,)
    if classes > 1:  # a file that was written for labelling alone has one for all classes
        thresholds = choose_thresholds(validation, outside_crowds(validation, on_validation), classes).by_class
    new = new_object_threshold(validation, on_validation, trained.count_threshold)
    return Member(detect, thresholds, tuple(max(new, each) for each in thresholds))


def _train(prepared: Prepared, path: Path, title: str) -> None:
    library = prepared.library
    plan = make_plan(prepared.split, library.variations(prepared.sources, prepared.per_image) if library else ())
    images = f"{plan.synthetic_train} variations" if library else f"the {plan.real_train} training images"
    log.info("%s: %s, on %s alone", title, run_name(prepared.config), images)
    keep_freed_blocks()
    checkpoints, data = path.with_suffix(".checkpoints"), make_data(prepared, plan)
    trained = train(prepared, data, make_detector(prepared), checkpoints, title, logger=None)
    threshold, validation = THRESHOLD_WITHOUT_DETECTIONS, prepared.split.val
    if validation:
        # No threshold is chosen yet: at 1 nothing is counted, and the limit of detections holds (`always_kept`).
        found = detect_all(prepared, TrainedDetector(trained.best, 1.0), validation)
        threshold = best_threshold(validation, outside_crowds(validation, found))
    origin = {**prepared.origin, "seconds": f"{trained.seconds:.1f}"}
    write_detector(TrainedDetector(trained.best, threshold, origin), path)
    shutil.rmtree(checkpoints, ignore_errors=True)


def on_device(prepared: Prepared, trained: TrainedDetector) -> Callable[[Pixels], Detections]:
    """The detections of a detector in one image, on the device of a run.

    An image of another size than those of the data set is shown at their scale; see `relative_size`.
    """
    trained.module.to(torch_device(prepared.accelerator))
    spec, sides = trained.spec, range_of_sides(prepared.dataset.samples, prepared.dataset.samples)

    def detect(pixels: Pixels) -> Detections:
        height, width = pixels.shape[:2]
        is_as_large = relative_size(width, height, sides) == 1.0
        return detect_objects(pixels, spec, trained.compute, None if is_as_large else spec.image_size / sides[1])

    return detect


def detect_all(prepared: Prepared, trained: TrainedDetector, samples: Sequence[Sample]) -> dict[int, Detections]:
    """The detections in images of a run, by image id."""
    detect = on_device(prepared, trained)
    return {sample.image_id: detect(prepared.images.read(sample)) for sample in samples}
