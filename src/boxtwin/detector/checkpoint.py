"""A trained detector in one file: ``detector.safetensors``, weights in float32 with all that is needed to use them.

The safetensors format (github.com/huggingface/safetensors) holds tensors and text and can run no code when it is read.
Our text is the metadata entry ``boxtwin``, JSON: ``format`` (1), ``version`` of boxtwin, ``hyper_parameters`` (the
arguments of `DetectorModule`), ``count_threshold``, ``class_thresholds``, ``origin`` and ``sha256`` of the tensors;
files of older versions lack the thresholds of classes and the hash.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

import boxtwin
from boxtwin.datasets.image_io import write_bytes_atomically
from boxtwin.detector.module import DetectorModule
from boxtwin.detector.spec import DetectorSpec
from boxtwin.errors import InputError

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
    bad = sum(int((~torch.isfinite(value)).sum()) for value in detector.module.state_dict().values())
    if bad:
        raise InputError(f"{path} is not written: {bad:,} of the weights are not finite (NaN or infinite)")
    tensors = {
        name: (value.float() if value.is_floating_point() else value).cpu().contiguous()
        for name, value in detector.module.state_dict().items()
    }
    about = {
        "format": FORMAT,
        "version": detector.version,
        "hyper_parameters": dict(detector.module.hparams),
        "count_threshold": detector.count_threshold,
        "class_thresholds": list(detector.spec.class_thresholds),
        "origin": dict(detector.origin),
        "sha256": _digest(tensors),
    }
    # "pt" tells other readers of safetensors that the tensors are torch's.
    write_bytes_atomically(path, save(tensors, {"format": "pt", ENTRY: json.dumps(about)}))


def _digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """A hash of all tensors with their names, types and shapes."""
    found = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        found.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        found.update(value.numpy().tobytes())
    return found.hexdigest()


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
        InputError: the file cannot be read, is no safetensors file, or none of ours, or does not fit its own metadata.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    except SafetensorError as error:
        raise InputError(f"{path} is no safetensors file, or is cut off: {error}") from None
    if ENTRY not in metadata:
        raise InputError(f"{path} is no detector of boxtwin: its metadata have no entry {ENTRY!r}; give a {FILE}")
    about: dict[str, Any] = json.loads(metadata[ENTRY])
    if about["format"] != FORMAT:
        raise InputError(
            f"{path} has format {about['format']}, written by boxtwin {about['version']}; "
            f"this is boxtwin {boxtwin.__version__}, which reads format {FORMAT}"
        )
    # Initial weights are drawn, then overwritten; the fork keeps the draw from leaking out.
    try:
        with torch.random.fork_rng(devices=[]):
            module = DetectorModule(**about["hyper_parameters"])
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
    if "sha256" in about and about["sha256"] != _digest(tensors):  # older files have none
        raise InputError(f"{path} is damaged: its weights do not have the checksum that was written with them")
    thresholds = tuple(about.get("class_thresholds", ()))
    return TrainedDetector(module, about["count_threshold"], about["origin"], about["version"], thresholds)
