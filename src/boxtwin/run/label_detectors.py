"""Getting the judge of a store's labels ready: the detectors that look at variations, trained on real images only.

They are the runs without variations of the same settings, trained as such and kept below ``data/detectors`` by their
identity: a finished run without variations leaves its detector there, and is asked instead of trained again.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import torch

from boxtwin.config.identity import cell_name
from boxtwin.datasets.image_io import Pixels
from boxtwin.datasets.sample import Detections
from boxtwin.detector.checkpoint import TrainedDetector, damage, read_detector, write_detector
from boxtwin.detector.predict import detect_objects
from boxtwin.detector.training import fit
from boxtwin.evaluation.counts import best_threshold
from boxtwin.files import exclusive_lock, link_file
from boxtwin.hardware import keep_freed_blocks
from boxtwin.labels.card import DECISIONS, tally, write_card
from boxtwin.labels.ensemble import Member, surprise_threshold
from boxtwin.labels.method import Transfer
from boxtwin.mixing.plan import make_plan
from boxtwin.run.build import Prepared, detector_file, labelling_cells, make_data, make_detector, make_labels
from boxtwin.synthesis.usage import store_costs

log = logging.getLogger(__name__)


def make_ready(cell: Prepared) -> None:
    """Give the run's store its judge if any of its images has to be judged; train the detectors that it asks.

    Killed in the middle, the next call goes on from the last checkpoint. Two processes that need the same detector
    share one training.
    """
    library = cell.library
    if library is None or library.judge is not None:
        return
    if len(library.judged(cell.sources, cell.per_image)) < len(cell.sources) * cell.per_image:
        library.judge = make_judge(cell)


def make_judge(cell: Prepared) -> Transfer:
    """What decides about the labels of a run's variations, its detectors trained."""
    assert cell.library is not None
    method, members = make_labels(cell.config, cell.dataset, cell.library.generator), []
    if method.asks_detectors:
        cells = labelling_cells(cell.config, cell.dataset, cell.split)
        members = [_member(alone, f"labels: detector {n} of {len(cells)}") for n, alone in enumerate(cells, start=1)]
    return method.judge(members)


def keep_detector(cell: Prepared, file: Path) -> None:
    """Leave the detector of a run without variations where labels look for it."""
    path = detector_file(cell)
    if cell.per_image == 0 and damage(path) is not None:  # it is missing, or broken
        link_file(file, path)


def write_label_card(cell: Prepared) -> list[Path]:
    """Write the label card of the run's store if its images have changed since; its files."""
    library = cell.library
    assert library is not None
    files = [library.folder / name for name in ("label_card.json", "label_card.png")]
    newest = library.manifest.stat().st_mtime_ns if library.manifest.exists() else None
    if newest is not None and not all(file.exists() and file.stat().st_mtime_ns >= newest for file in files):
        lines = library.judged(cell.sources, max((line.variation for line in library.lines()), default=0))
        read = {source.name: source.read for source in cell.sources}
        write_card(library.folder, [line.to_json() for line in lines], read, cell.dataset.classes)
    return files


def label_figures(cell: Prepared) -> dict[str, float]:
    """What became of the labels of a run's variations, and what these cost, as metrics."""
    library = cell.library
    if library is None:
        return {}
    lines = library.judged(cell.sources, cell.per_image)
    counts = {f"data/labels_{name}": float(count) for name, count in tally([line.to_json() for line in lines]).items()}
    by_hand = make_labels(cell.config, cell.dataset, library.generator).by_hand
    return counts | store_costs(library.folder, lines, by_hand=by_hand)


def describe(cell: Prepared) -> str:
    """What became of the labels of a run's variations, in one line."""
    assert cell.library is not None
    counts = tally([line.to_json() for line in cell.library.judged(cell.sources, cell.per_image)])
    boxes = ", ".join(f"{counts[name]} {name}" for name in DECISIONS)
    return f"boxes {boxes}; images {counts['images']} used, {counts['refused']} refused"


class Look:
    """A trained detector as a function of pixels: letterboxed or in tiles, as in its training's validation."""

    def __init__(self, trained: TrainedDetector, device: str) -> None:
        trained.module.to(device)
        self._trained = trained

    def __call__(self, pixels: Pixels) -> Detections:
        """All detections from the score floor on, best first, boxes xyxy in pixels of the image."""
        return detect_objects(pixels, self._trained.spec, self._trained.compute)


def _member(alone: Prepared, title: str) -> Member:
    trained = _trained(alone, title)
    look = Look(trained, _device(alone))
    surprise = surprise_threshold(alone.split.val, _on_validation(alone, look), trained.count_threshold)
    return Member(look, trained.count_threshold, surprise)


def _trained(alone: Prepared, title: str) -> TrainedDetector:
    path = detector_file(alone)
    if damage(path) is not None:  # it is missing, or broken
        with exclusive_lock(path.with_suffix(".lock"), f"{title}: another process is training it; waiting"):
            if path.exists() and (wrong := damage(path)) is not None:
                log.warning("%s; it is trained again", wrong)
                path.unlink()
            if not path.exists():
                _train(alone, path, title)
    return read_detector(path)


def _train(alone: Prepared, path: Path, title: str) -> None:
    config, settings = alone.config, alone.config.trainer
    log.info("%s: %s, on the %d real training images alone", title, cell_name(config), len(alone.split.train))
    keep_freed_blocks()
    checkpoints = path.with_suffix(".checkpoints")
    module = make_detector(alone)
    if settings.steps:
        module = fit(
            module,
            make_data(alone, make_plan(alone.split, ())),
            settings,
            log_every=settings.steps,
            accelerator=alone.accelerator,
            precision=alone.precision,
            logger=None,
            checkpoints=checkpoints,
            title=title,
        ).best
    look = Look(TrainedDetector(module, 0.0), _device(alone))
    threshold = best_threshold(alone.split.val, _on_validation(alone, look))
    origin = {"study": config.study, "cell": cell_name(config), "identity": alone.identity}
    write_detector(TrainedDetector(module, threshold, origin), path)
    shutil.rmtree(checkpoints, ignore_errors=True)


def _on_validation(alone: Prepared, look: Look) -> dict[int, Detections]:
    return {sample.image_id: look(alone.images.read(sample)) for sample in alone.split.val}


def _device(cell: Prepared) -> str:
    return "cuda" if cell.accelerator in ("cuda", "gpu") and torch.cuda.is_available() else "cpu"
