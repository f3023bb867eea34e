"""Detectors for tests of what leaves a run, and what the run itself finds with them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from boxtwin.datasets.image_cache import DecodedImages
from boxtwin.datasets.image_io import read_image
from boxtwin.datasets.sample import Detections, Sample
from boxtwin.detector.checkpoint import TrainedDetector
from boxtwin.detector.module import DetectorModule
from boxtwin.detector.network import PUBLISHED_ANCHORS, STRIDES, Convolution, YOLOv3
from boxtwin.detector.nms import detections_in_file, merge_tiles
from boxtwin.mixing.datamodule import LetterboxedImages, collate


def make_trained(
    count_threshold: float = 0.3, class_thresholds: tuple[float, ...] = (), **changes: Any
) -> TrainedDetector:
    """A detector of random weights whose predictions differ from place to place, as if it had learnt something."""
    arguments: dict[str, Any] = {
        "architecture": "yolov3_nano",
        "classes": ["ship", "buoy"],
        "category_ids": [3, 7],
        "image_size": 64,
        "white": 255,
        "channels": 1,
        "learning_rate": 1e-3,
        "steps": 2,
        "warmup_steps": 1,
    } | changes
    heads = len(STRIDES[arguments["architecture"]])
    arguments.setdefault("anchors", PUBLISHED_ANCHORS["yolov3_tiny" if heads == 2 else "yolov3"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = DetectorModule.from_values(arguments)
        for layer in module.network.layers():
            if isinstance(layer, Convolution):
                randomise_norm(layer)
            else:
                assert layer.bias is not None
                layer.weight.data.normal_(std=0.3)
                layer.bias.data.zero_()
    origin = {"study": "tiny", "run": "random", "identity": "0123"}
    return TrainedDetector(module, count_threshold, origin, class_thresholds=class_thresholds)


def randomise_norm(layer: Convolution) -> None:
    """Statistics that are no identity, and scales that keep residual sums small."""
    norm = layer.norm
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.weight.data.uniform_(0.2, 0.8)
    norm.bias.data.normal_(std=0.2)
    norm.running_mean.uniform_(-0.1, 0.1)
    norm.running_var.uniform_(0.5, 1.5)


def predictions(network: YOLOv3) -> list[torch.nn.Conv2d]:
    """The last convolution of each head."""
    return [layer for layer in network.layers() if isinstance(layer, torch.nn.Conv2d)]


def samples_of(paths: Sequence[Path]) -> list[Sample]:
    """Image files as samples without objects."""
    nothing = np.zeros(0)
    samples = []
    for number, path in enumerate(paths):
        height, width = read_image(path).shape[:2]
        boxes, labels, crowd = np.zeros((0, 4)), nothing.astype(int), nothing.astype(bool)
        samples.append(Sample(path.name, path, width, height, number, boxes, labels, nothing, crowd))
    return samples


def detect_as_studies_do(detector: TrainedDetector, paths: Sequence[Path]) -> list[Detections]:
    """What a run finds in image files: the data set, batches and module of its evaluation."""
    samples = samples_of(paths)
    spec = detector.spec
    images = LetterboxedImages(
        samples, size=spec.image_size, tile=spec.tile, levels=spec.levels, images=DecodedImages(None)
    )
    parts = []
    for index in range(len(images)):
        batch = collate([images[index]], spec.channels)
        (boxes,), (scores,) = detector.module.compute(batch.images)
        parts.append((batch.image_ids[0], detections_in_file(boxes, scores, batch.letterbox[0], spec)))
    merged = merge_tiles(parts, spec)
    return [merged[number] for number in range(len(paths))]
