"""How often intervals of counts hold the true count: many draws of a few calibration images from those not trained on.

python benchmarks/count_coverage.py --run multirun/STUDY/RUN
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from measuring import report

import numpy as np  # isort: skip  (measuring sets the environment that torch reads)
from omegaconf import DictConfig, OmegaConf

from boxtwin.config.compose import register, to_object
from boxtwin.config.schema import BoxtwinConfig
from boxtwin.counting.detectors import DETECTOR_FILE, open_detectors
from boxtwin.datasets.sample import Detections, Sample
from boxtwin.detector.predict import detect_objects
from boxtwin.evaluation.count_intervals import calibrate, counts_at, intervals
from boxtwin.evaluation.counts import choose_thresholds
from boxtwin.hardware import use_threads
from boxtwin.run.build import load_dataset

Found = dict[int, Detections]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    options.add_argument("--run", type=Path, required=True, help="folder of a finished run")
    options.add_argument("--draws", type=int, default=1000)
    options.add_argument("--number", type=int, default=20, help="calibration images of each draw")
    options.add_argument("--seed", type=int, default=0)
    arguments = options.parse_args()
    register()
    use_threads(1)
    composed = OmegaConf.load(arguments.run / "config.yaml")
    assert isinstance(composed, DictConfig)
    config = to_object(composed, BoxtwinConfig)
    dataset = load_dataset(config)
    (split,) = json.loads((arguments.run / "split.json").read_text()).values()
    names = {*split["val"], *split["test"]}
    samples = [sample for sample in dataset.samples if sample.name in names]
    (detector,) = open_detectors([arguments.run / DETECTOR_FILE], "cpu")
    found = {sample.image_id: detect_objects(sample.read(), detector.spec, detector.compute) for sample in samples}
    classes = len(dataset.classes)
    rng = np.random.default_rng(arguments.seed)
    held: dict[str, list[np.ndarray]] = {"jackknife+": [], "same thresholds": []}
    widths: dict[str, list[np.ndarray]] = {name: [] for name in held}
    for _ in range(arguments.draws):
        chosen = set(rng.choice(len(samples), arguments.number, replace=False).tolist())
        own = [samples[place] for place in sorted(chosen)]
        others = [sample for place, sample in enumerate(samples) if place not in chosen]
        for name, (inside, width) in one_draw(own, others, found, classes).items():
            held[name].append(inside)
            widths[name].append(width)
    rows: list[list[str | float]] = []
    for place, counted in enumerate(["total", *(dataset.classes if classes > 1 else ())]):
        for name in held:
            coverage = np.array(held[name])[:, place]
            low, high = np.percentile(coverage, [5, 95])
            width = float(np.mean([each[place] for each in widths[name]]))
            rows.append([counted, name, f"{100 * coverage.mean():.1f}", f"{100 * low:.0f} to {100 * high:.0f}", width])
    draws = f"{arguments.draws} draws of {arguments.number} of {len(samples)} images"
    report(
        f"{dataset.name}: {draws}, the others counted; level 90 %",
        ("count", "residuals", "coverage, %", "of 90 % of the draws", "mean width"),
        rows,
    )


def one_draw(
    own: list[Sample], others: list[Sample], found: Found, classes: int
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """By method: the share of images whose interval holds the true count, and the mean width; in total and by class.

    ``same thresholds`` is plain split conformal prediction with thresholds chosen on the images whose residuals are
    taken: too narrow, as these thresholds fit these images.
    """
    mine = {sample.image_id: found[sample.image_id] for sample in own}
    calibration = calibrate(own, mine, classes)
    assert calibration is not None
    thresholds = np.array(choose_thresholds(own, mine, classes).by_class)
    residuals = np.array([true_of(one, classes) - counts_at(found[one.image_id], thresholds) for one in own])
    results: dict[str, tuple[list[list[bool]], list[list[int]]]] = {"jackknife+": ([], []), "same thresholds": ([], [])}
    for sample in others:
        detections, true = found[sample.image_id], true_of(sample, classes)
        counts = counts_at(detections, thresholds)
        without = np.array([counts_at(detections, row) for row in calibration.thresholds])
        ends = {
            "jackknife+": intervals(counts, without, calibration.residuals),
            "same thresholds": intervals(counts, np.repeat(counts[None], len(own), axis=0), residuals),
        }
        for name, each in ends.items():
            results[name][0].append([end.low <= value <= end.high for end, value in zip(each, true, strict=True)])
            results[name][1].append([end.high - end.low for end in each])
    return {name: (np.mean(inside, axis=0), np.mean(width, axis=0)) for name, (inside, width) in results.items()}


def true_of(sample: Sample, classes: int) -> np.ndarray:
    by_class = np.bincount(sample.object_labels, minlength=classes)
    return np.array([by_class.sum(), *by_class])


if __name__ == "__main__":
    main()
