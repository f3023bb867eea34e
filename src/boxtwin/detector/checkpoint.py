"""A trained detector in one file: ``detector.safetensors``, weights in float32 with all that is needed to use them.

The safetensors format (github.com/huggingface/safetensors) holds tensors and text and can run no code when it is read.
Our text is the metadata entry ``boxtwin``, JSON: ``format`` (1), ``version`` of boxtwin, ``hyper_parameters`` (the
arguments of `DetectorModule`), ``count_threshold``, ``class_thresholds`` and ``origin``. A second entry, ``sha256``, is
the checksum of tensors and text. Files of older versions lack the checksum and the thresholds of classes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import boxtwin
from boxtwin.detector.module import DetectorModule
from boxtwin.detector.spec import DetectorSpec
from boxtwin.errors import InputError
from boxtwin.weights import read_weights, write_weights

FILE = "detector.safetensors"  # its name in the folder of a cell
ENTRY = "boxtwin"
FORMAT = 1


@dataclass(frozen=True, eq=False)
class TrainedDetector:
    """A detector whose training is over, in evaluation mode."""

    module: DetectorModule
    count_threshold: float  # detections with a score of at least this are counted; chosen on real validation images
    origin: Mapping[str, str] = field(default_factory=dict)  # where it was trained: "study", "cell", "identity"
    version: str = boxtwin.__version__  # of boxtwin, that trained it
    # The same for each class, at which it is counted. None: one threshold for all, as in files of older versions.
    class_thresholds: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for threshold in (self.count_threshold, *self.class_thresholds):
            if not 0 <= threshold <= 1:
                raise ValueError(f"a count threshold lies between 0 and 1, got {threshold}")
        if len(self.class_thresholds) not in (0, len(self.module.classes)):
            raise ValueError(f"{len(self.module.classes)} classes need as many thresholds, got {self.class_thresholds}")
        self.module.eval()

    @property
    def spec(self) -> DetectorSpec:
        """What must be known to use the network in another form."""
        of_module = {
            name: self.module.hparams[name]
            for name in (
                "architecture",
                "image_size",
                "tile",
                "channels",
                "white",
                "black",
                "reading",
                "nms_iou",
                "score_floor",
                "max_detections",
            )
        }
        return DetectorSpec(
            **of_module,
            classes=self.module.classes,
            category_ids=self.module.category_ids,
            count_threshold=self.count_threshold,
            boxtwin=self.version,
            class_thresholds=self.class_thresholds,
        )


def write_detector(detector: TrainedDetector, path: Path) -> None:
    """Write a detector; the file appears whole or not at all.

    Raises:
        InputError: a weight is not finite, or the disk does not take the file.
    """
    # Float32 whatever was trained in: the file is to give the same detections on machines without bfloat16.
    tensors = {
        name: value.float() if value.is_floating_point() else value
        for name, value in detector.module.state_dict().items()
    }
    about = {
        "format": FORMAT,
        "version": detector.version,
        "hyper_parameters": dict(detector.module.hparams),
        "count_threshold": detector.count_threshold,
        "class_thresholds": list(detector.spec.class_thresholds),
        "origin": dict(detector.origin),
    }
    # "pt" tells other readers of safetensors that the tensors are torch's.
    write_weights(path, tensors, {"format": "pt", ENTRY: json.dumps(about)})


def damage(path: Path) -> str | None:
    """What is wrong with the file of a detector, in words; None if it can be used."""
    try:
        read_detector(path)
    except InputError as error:
        return str(error)
    return None


def read_detector(path: Path) -> TrainedDetector:
    """Read what `write_detector` wrote; nothing else is needed.

    Raises:
        InputError: the file cannot be read, is damaged, is none of ours, or does not fit its own metadata.
    """
    tensors, metadata = read_weights(path)
    if ENTRY not in metadata:
        raise InputError(f"{path} is no detector of boxtwin: its metadata have no entry {ENTRY!r}; give a {FILE}")
    try:
        about: dict[str, Any] = json.loads(metadata[ENTRY])
        hyper_parameters, threshold, origin = (about[key] for key in ("hyper_parameters", "count_threshold", "origin"))
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path} is damaged: its metadata cannot be read") from None
    if about["format"] != FORMAT:
        raise InputError(
            f"{path} has format {about['format']}, written by boxtwin {about['version']}; "
            f"this is boxtwin {boxtwin.__version__}, which reads format {FORMAT}"
        )
    # Initial weights are drawn, then overwritten; the fork keeps the draw from leaking out.
    try:
        with torch.random.fork_rng(devices=[]):
            module = DetectorModule(**hyper_parameters)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{path}: boxtwin {boxtwin.__version__} cannot build what boxtwin {about['version']} wrote: {error}"
        ) from None
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        raise InputError(
            f"{path}: the weights do not fit the metadata: {str(error).splitlines()[-1].strip()}"
        ) from None
    thresholds = tuple(about.get("class_thresholds", ()))
    return TrainedDetector(module, threshold, origin, about["version"], thresholds)
