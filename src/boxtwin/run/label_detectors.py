"""Detectors that label variations, and the label card of a store.

They are the detectors of runs without variations with the same settings, trained on real images only and kept below
``data/detectors`` by their identity: a finished run without variations leaves its detector there.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

from boxtwin.config.identity import cell_name
from boxtwin.datasets.image_io import Pixels
from boxtwin.datasets.sample import DECISIONS, Detections
from boxtwin.detector.checkpoint import TrainedDetector, damage, read_detector, write_detector
from boxtwin.detector.predict import detect_objects
from boxtwin.evaluation.counts import best_threshold
from boxtwin.files import exclusive_lock, link_file
from boxtwin.hardware import keep_freed_blocks, on_gpu
from boxtwin.labels.card import tally, write_card
from boxtwin.labels.ensemble import Member, new_object_threshold
from boxtwin.labels.method import Judge
from boxtwin.mixing.plan import make_plan
from boxtwin.run.build import Prepared, detector_file, labelling_cells, make_data, make_detector, make_labels, train
from boxtwin.synthesis.usage import store_costs

log = logging.getLogger(__name__)


def prepare_labelling(cell: Prepared) -> None:
    """Give the run's store what labels its images, if any has to be labelled; train the detectors that it needs.

    A killed training is continued from its last checkpoint. Processes that need the same detector share one training.
    """
    library = cell.store
    if library.judge is None and len(library.judged(cell.sources, cell.per_image)) < cell.wanted:
        library.judge = make_judge(cell)


def make_judge(cell: Prepared) -> Judge:
    """What decides on the labels of a run's variations, with its detectors trained."""
    method, members = make_labels(cell.config, cell.dataset, cell.store.generator), []
    if method.asks_detectors:
        cells = labelling_cells(cell.config, cell.dataset, cell.split)
        members = [_member(each, f"labels: detector {n} of {len(cells)}") for n, each in enumerate(cells, start=1)]
    return method.judge(members)


def keep_detector(cell: Prepared, file: Path) -> None:
    """Keep the detector of a run without variations for labelling."""
    path = detector_file(cell)
    if cell.per_image == 0 and damage(path) is not None:  # it is missing, or broken
        link_file(file, path)


def write_label_card(cell: Prepared) -> list[Path]:
    """Write the label card of the run's store if its images have changed since; its files."""
    library = cell.store
    files = [library.folder / name for name in ("label_card.json", "label_card.png")]
    newest = library.manifest.stat().st_mtime_ns if library.manifest.exists() else None
    if newest is not None and not all(file.exists() and file.stat().st_mtime_ns >= newest for file in files):
        lines = library.judged(cell.sources, max((line.variation for line in library.lines()), default=0))
        read = {source.name: source.read for source in cell.sources}
        write_card(library.folder, [line.to_json() for line in lines], read, cell.dataset.classes)
    return files


def label_figures(cell: Prepared) -> dict[str, float]:
    """Outcome and cost of labelling a run's variations, as metrics."""
    if cell.library is None:
        return {}
    lines = cell.library.judged(cell.sources, cell.per_image)
    counted = tally([line.to_json() for line in lines])
    counts = {f"data/labels_{name}": float(count) for name, count in counted.items() if isinstance(count, int)}
    by_hand = make_labels(cell.config, cell.dataset, cell.library.generator).by_hand
    return counts | store_costs(cell.library.folder, lines, by_hand=by_hand)


def describe(cell: Prepared) -> str:
    """The outcome of labelling a run's variations, in one line."""
    counts = tally([line.to_json() for line in cell.store.judged(cell.sources, cell.per_image)])
    boxes = ", ".join(f"{counts[name]} {name}" for name in DECISIONS)
    return f"boxes {boxes}; images {counts['images']} used, {counts['refused']} refused"


def _member(cell: Prepared, title: str) -> Member:
    path = detector_file(cell)
    if damage(path) is not None:  # it is missing, or broken
        with exclusive_lock(path.with_suffix(".lock"), f"{title}: another process is training it; waiting"):
            if path.exists() and (wrong := damage(path)) is not None:
                log.warning("%s; it is trained again", wrong)
                path.unlink()
            if not path.exists():
                _train(cell, path, title)
    trained = read_detector(path)
    detect = _on_device(cell, trained)
    surprise = new_object_threshold(cell.split.val, _on_validation(cell, detect), trained.count_threshold)
    return Member(detect, trained.count_threshold, surprise)


def _train(cell: Prepared, path: Path, title: str) -> None:
    log.info("%s: %s, on the %d real training images alone", title, cell_name(cell.config), len(cell.split.train))
    keep_freed_blocks()
    checkpoints = path.with_suffix(".checkpoints")
    module = make_detector(cell)
    module = train(cell, make_data(cell, make_plan(cell.split, ())), module, checkpoints, title, logger=None).best
    detect = _on_device(cell, TrainedDetector(module, 0.0))
    threshold = best_threshold(cell.split.val, _on_validation(cell, detect))
    write_detector(TrainedDetector(module, threshold, cell.origin), path)
    shutil.rmtree(checkpoints, ignore_errors=True)


def _on_device(cell: Prepared, trained: TrainedDetector) -> Callable[[Pixels], Detections]:
    trained.module.to("cuda" if on_gpu(cell.accelerator) else "cpu")
    return partial(detect_objects, spec=trained.spec, compute=trained.compute)


def _on_validation(cell: Prepared, detect: Callable[[Pixels], Detections]) -> dict[int, Detections]:
    return {sample.image_id: detect(cell.images.read(sample)) for sample in cell.split.val}
