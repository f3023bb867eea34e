"""Seconds of the COCO figures: pycocotools beside faster-coco-eval, on the same simulated detections.

    python benchmarks/evaluation.py --images 5000

Both evaluators take turns in one process, and their twelve figures are compared; more than 1e-12 apart ends with 1.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from pathlib import Path

import numpy as np

from boxtwin.datasets.sample import Detections, Sample
from boxtwin.evaluation.coco_metrics import CocoEvaluator, coco_figures

SIZE = 640  # pixels, both sides of an image
EVALUATORS: tuple[CocoEvaluator, ...] = ("pycocotools", "faster")


def simulate(
    images: int, classes: int, objects: int, found: int, seed: int
) -> tuple[list[Sample], dict[int, Detections]]:
    """Images with up to ``2 * objects`` objects, a tenth of them crowds, and up to ``2 * found`` detections each."""
    rng = np.random.default_rng(seed)
    samples, detections = [], {}
    for image_id in range(1, images + 1):
        n, m = int(rng.integers(0, 2 * objects + 1)), int(rng.integers(0, 2 * found + 1))
        corner = rng.uniform(0, SIZE - 160, (n, 2))
        side = rng.choice([16, 60, 140], (n, 1)) * rng.uniform(0.6, 1.1, (n, 2))
        boxes, labels = np.concatenate([corner, corner + side], axis=1), rng.integers(0, classes, n)
        samples.append(
            Sample(
                name=f"{image_id}.png",
                path=Path(f"{image_id}.png"),
                width=SIZE,
                height=SIZE,
                image_id=image_id,
                boxes=boxes,
                labels=labels,
                areas=side.prod(axis=1),
                crowd=rng.random(n) < 0.1,
            )
        )
        if n:
            near = rng.integers(0, n, m)
            places = boxes[near] + rng.normal(0, 0.06, (m, 4)) * np.repeat(side[near], 2, axis=1)
            places[:, 2:] = np.maximum(places[:, 2:], places[:, :2] + 1)
            guesses = np.where(rng.random(m) < 0.8, labels[near], rng.integers(0, classes, m))
        else:
            corner = rng.uniform(0, SIZE - 40, (m, 2))
            places, guesses = np.concatenate([corner, corner + 40], axis=1), rng.integers(0, classes, m)
        detections[image_id] = Detections(places, np.sort(rng.random(m).round(3))[::-1].copy(), guesses)
    return samples, detections


def main() -> int:
    """Measure, print, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--objects", type=int, default=7, help="an image, on average")
    parser.add_argument("--found", type=int, default=20, help="detections an image, on average")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    settings = parser.parse_args()
    samples, detections = simulate(settings.images, settings.classes, settings.objects, settings.found, settings.seed)
    ids = list(range(1, settings.classes + 1))
    cpu: dict[str, list[float]] = {name: [] for name in EVALUATORS}
    wall: dict[str, list[float]] = {name: [] for name in EVALUATORS}
    figures: dict[str, dict[str, float]] = {}
    for name in EVALUATORS:  # imports and caches are warm when it counts
        coco_figures(samples[:10], {s.image_id: detections[s.image_id] for s in samples[:10]}, ids, evaluator=name)
    for _ in range(settings.repeats):
        for name in EVALUATORS:
            started = time.process_time(), time.perf_counter()
            figures[name] = coco_figures(samples, detections, ids, evaluator=name)
            cpu[name].append(time.process_time() - started[0])
            wall[name].append(time.perf_counter() - started[1])
    boxes = sum(len(found.boxes) for found in detections.values())
    print(f"{settings.images} images, {settings.classes} classes, {boxes} detections; median of {settings.repeats}\n")
    print("| evaluator | CPU-seconds | wall-seconds |\n|---|---|---|")
    for name in EVALUATORS:
        print(f"| {name} | {statistics.median(cpu[name]):.2f} | {statistics.median(wall[name]):.2f} |")
    ratio = statistics.median(a / b for a, b in zip(*(cpu[name] for name in EVALUATORS), strict=True))
    print(f"\npycocotools / faster, CPU-seconds of the same round: {ratio:.1f}")
    apart = 0.0
    for figure, reference in figures["pycocotools"].items():
        mine = figures["faster"][figure]
        if not (math.isnan(reference) and math.isnan(mine)):
            apart = max(apart, abs(mine - reference) if not math.isnan(mine - reference) else math.inf)
    print(f"the twelve figures are at most {apart:.1e} apart")
    return int(apart > 1e-12)


if __name__ == "__main__":
    sys.exit(main())
