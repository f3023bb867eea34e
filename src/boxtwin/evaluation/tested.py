"""The test of a trained detector: thresholds from validation images, then metrics, files and plots of the test images.

The detector runs once on each set of images, and its detections are matched to the objects once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from boxtwin.datasets.sample import Detections, Sample
from boxtwin.evaluation import overlays, plots
from boxtwin.evaluation.coco_metrics import (
    DETECTIONS_FILE,
    VALIDATION_DETECTIONS_FILE,
    coco_by_class,
    write_results,
)
from boxtwin.evaluation.count_intervals import CountCalibration, calibrate
from boxtwin.evaluation.counts import Thresholds
from boxtwin.evaluation.examples import EXAMPLES_FILE, keep_examples
from boxtwin.evaluation.matching import COCO_LIMIT, match_detections, outside_crowds
from boxtwin.evaluation.resampled_ap import MATCHES_FILE, RECALLS, ResampledAP, save_matches
from boxtwin.evaluation.scoring import score_test, score_validation

log = logging.getLogger(__name__)

PICTURES = ("overlays.png", "precision_recall.png", "counts.png")
EXAMPLES = 8  # test images in overlays.png, the same in every run
MOST_LOGGED = 20  # classes with a line of their own in the log


@dataclass(frozen=True)
class Evaluation:
    """Results of a test. ``classes`` has an entry for each class in their order: name, threshold, metrics by name."""

    metrics: dict[str, float]
    counts: list[dict[str, object]]  # of each test image
    classes: list[dict[str, Any]]
    thresholds: Thresholds
    calibration: CountCalibration | None  # of the validation images; None for fewer than two


def run_test(
    detect: Callable[[Sequence[Sample], Thresholds | None], Mapping[int, Detections]],
    *,
    validation: Sequence[Sample],
    synthetic: Sequence[Sample],
    test: Sequence[Sample],
    classes: Sequence[str],
    category_ids: Sequence[int],
    folder: Path,
) -> Evaluation:
    """Test a detector, and write its detections, ``matches.npz``, ``examples.json`` and pictures into a folder.

    ``detect`` gives detections by image id, all that thresholds count where these are known. ``validation`` are the
    real images that thresholds are chosen on; ``synthetic`` ones may be none.
    """
    # 1. Thresholds, and what the kept weights give on the images that chose them.
    on_validation = detect(validation, None)
    thresholds, metrics = score_validation(validation, on_validation, classes)
    occurring = {int(label) for sample in test for label in sample.object_labels}
    for label in sorted(occurring & set(thresholds.guessed)):
        text = "class %s has no object in the validation images: it is counted at confidence %.3f, that of all classes"
        log.warning(text, classes[label], thresholds.together)
    if synthetic:
        of_synthetic, _ = coco_by_class(match_detections(synthetic, detect(synthetic, None), len(classes)))
        metrics |= {f"val_synthetic/{name}": value for name, value in of_synthetic.items()}
    # 2. The test, in one pass.
    detections = detect(test, thresholds)
    tested = score_test(test, detections, thresholds, classes, category_ids)
    metrics |= tested.metrics
    # 3. Files and pictures.
    write_results(folder / DETECTIONS_FILE, detections, category_ids)
    write_results(folder / VALIDATION_DETECTIONS_FILE, on_validation, category_ids)
    save_matches(folder / MATCHES_FILE, tested.matching)
    keep_examples(folder / EXAMPLES_FILE, test, detections, thresholds.by_class, classes)
    examples = overlays.pick_examples(test, EXAMPLES)
    overlays.side_by_side(examples, detections, thresholds.by_class, folder / PICTURES[0], classes, len(test))
    plots.precision_recall_curve(RECALLS, ResampledAP.of(tested.matching).curves(), folder / PICTURES[1], classes)
    # Counts of every image, (images, classes).
    true, counted = (
        np.array([entry.get(f"{side}_by_class", [entry[side]]) for entry in tested.counts])
        for side in ("true", "found")
    )
    plots.count_scatter(true, counted, folder / PICTURES[2], classes)
    unlimited = metrics.get("test/map_unlimited", metrics["test/map"])
    if round(unlimited, 3) != round(metrics["test/map"], 3):
        text = "COCO's AP uses %d detections a class and image, too few here; with all of them, AP is %.3f, AP50 %.3f"
        log.info(text, COCO_LIMIT, unlimited, metrics["test/map_50_unlimited"])
    shown = [entry for entry in tested.classes if np.isfinite(entry["metrics"]["map"])] if len(classes) > 1 else []
    for tested_class in shown[:MOST_LOGGED]:
        text = "AP {map:.3f}, AP50 {map_50:.3f}, count MAE {count_mae:.2f}, bias {count_bias:+.2f}"
        text = text.format(**tested_class["metrics"])
        log.info("  %s: %s, counted from confidence %.3f", tested_class["name"], text, tested_class["count_threshold"])
    if len(shown) > MOST_LOGGED:
        log.info("  and %d more classes, in result.json", len(shown) - MOST_LOGGED)
    calibration = calibrate(validation, outside_crowds(validation, on_validation), len(classes))
    return Evaluation(metrics, tested.counts, tested.classes, thresholds, calibration)
