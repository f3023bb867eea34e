"""A trained detector in one file: ``detector.safetensors``, weights in float32 with all that is needed to use them.

Initial weights are read here too: from such a file, or from one of Darknet's.

The safetensors format (github.com/huggingface/safetensors) holds tensors and text and can run no code when it is read.
Our text is the metadata entry ``boxtwin``, JSON: ``format`` (1), ``version`` of boxtwin, ``hyper_parameters`` (the
arguments of `DetectorModule`), ``count_threshold``, ``class_thresholds``, ``origin``, and where they are known
``calibration`` (`CountCalibration`) and ``training_images`` (`TrainingImages`). A second entry, ``sha256``, is the
checksum of tensors and text. Files of older versions lack the checksum, the thresholds of classes, or the last two.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32

import boxtwin
from boxtwin.datasets.training_images import TrainingImages
from boxtwin.detector.darknet import DarknetReport, check_darknet, read_darknet, tensors_of
from boxtwin.detector.module import DetectorModule
from boxtwin.detector.network import Anchors, Convolution
from boxtwin.detector.options import Architecture
from boxtwin.detector.predict import BoxesAndScores
from boxtwin.detector.spec import DetectorSpec
from boxtwin.errors import InputError
from boxtwin.evaluation.count_intervals import CountCalibration
from boxtwin.weights import read_weights, write_weights

FILE = "detector.safetensors"  # its name in the folder of a run
ENDING = Path(FILE).suffix
ENTRY = "boxtwin"
FORMAT = 1


@dataclass(frozen=True, eq=False)
class TrainedDetector:
    """A detector whose training is over, in evaluation mode."""

    module: DetectorModule
    count_threshold: float  # detections with a score of at least this are counted; chosen on real validation images
    origin: Mapping[str, str] = field(default_factory=dict)  # where it was trained: "study", "run", "identity"
    version: str = boxtwin.__version__  # of boxtwin, that trained it
    # Of each class; empty in files of older versions, where one threshold serves all.
    class_thresholds: tuple[float, ...] = ()
    calibration: CountCalibration | None = None  # None: counts have no interval
    images: TrainingImages | None = None  # None: not known

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
        return DetectorSpec(
            **vars(self.module.spec),
            count_threshold=self.count_threshold,
            boxtwin=self.version,
            class_thresholds=self.class_thresholds,
            calibration=None if self.calibration is None else self.calibration.plain(),
            training_images=None if self.images is None else self.images.plain(),
        )

    def compute(self, images: Float32[np.ndarray, "batch _channels side side"]) -> BoxesAndScores:
        """Images in [0, 1] -> boxes and scores, for `boxtwin.detector.predict.detect_objects`."""
        return self.module.compute(torch.from_numpy(images).to(self.module.device))


def write_detector(detector: TrainedDetector, path: Path) -> None:
    """Write a detector, whole or not at all; raises `InputError` if a weight is not finite, or the disk is full."""
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
    more = {"calibration": detector.calibration, "training_images": detector.images}
    about |= {name: value.plain() for name, value in more.items() if value is not None}
    # "pt" tells other readers of safetensors that the tensors are torch's.
    write_weights(path, tensors, {"format": "pt", ENTRY: json.dumps(about)})


def damage(path: Path, identities: Sequence[str] = ()) -> str | None:
    """Read the file of a detector; say what is wrong, or None if it can be used.

    With ``identities``, a detector that says to be of a training with none of them is wrong too.
    """
    try:
        found = read_detector(path).origin.get("identity")
    except InputError as error:
        return str(error)
    return f"{path} is the detector of another training" if identities and found not in (None, *identities) else None


def read_detector(path: Path) -> TrainedDetector:
    """Read what `write_detector` wrote; raises `InputError` if it is missing, damaged, or no detector."""
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
            module = DetectorModule.from_values(hyper_parameters)
        module.load_state_dict(tensors)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path}: boxtwin {boxtwin.__version__} cannot build what boxtwin {about['version']} wrote: {error}"
        ) from None
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise InputError(f"{path}: the weights do not fit the metadata: {reason}") from None
    thresholds, calibration, images = (about.get(key) for key in ("class_thresholds", "calibration", "training_images"))
    return TrainedDetector(
        module,
        threshold,
        origin,
        about["version"],
        tuple(thresholds or ()),
        None if calibration is None else CountCalibration.from_plain(calibration),
        None if images is None else TrainingImages.from_plain(images),
    )


def read_initial_weights(module: DetectorModule, path: Path) -> DarknetReport:
    """Read initial weights into a network from a run's ``detector.safetensors`` or Darknet's file.

    Predictions of another number of classes are left as they are; of as many classes, those with the same names are
    read, in whatever order. Two single classes may have different names. Between grey and colour the first convolution
    is summed over its channels, or shared out to three equal ones: grey images have the same outputs. A file that
    cannot be read, or is of another architecture, raises `InputError`.
    """
    network = module.network
    if path.suffix != ENDING:
        return read_darknet(network, path)
    other = read_detector(path).module
    source = other.network
    _check_architecture(path, source.architecture, network.architecture)
    loaded, skipped, partly = [], [], []
    with torch.no_grad():
        for index, layers in enumerate(zip(network.layers(), source.layers(), strict=True)):
            targets, values = map(tensors_of, layers)
            if len(targets[0]) == len(values[0]):
                ours = theirs = list(range(len(targets[0])))
                if not isinstance(layers[0], Convolution) and len(module.classes) > 1:
                    ours, theirs = _prediction_rows(module.classes, other.classes, len(targets[0]))
                for tensor, value in zip(targets, values, strict=True):
                    if tensor.ndim == 4 and tensor.shape[1] != value.shape[1]:
                        grey = tensor.shape[1] == 1
                        value = value.sum(dim=1, keepdim=True) if grey else value.expand_as(tensor) / tensor.shape[1]
                    tensor[ours] = value[theirs]
                loaded.append(index)
                partly += [index] if len(ours) < len(targets[0]) else []
            else:
                skipped.append(index)
    return DarknetReport(tuple(loaded), tuple(skipped), 0, tuple(partly))


def check_initial_weights(path: Path, architecture: Architecture) -> None:
    """Raise `InputError` if a file cannot give a network its initial weights, as far as size and header tell."""
    if path.suffix != ENDING:
        check_darknet(path, architecture)
        return
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            _, about = _header(file.read(min(length, path.stat().st_size)), path)
    except OSError as error:
        raise InputError(f"detector.weights={path} cannot be read: {error.strerror}") from None
    _check_architecture(path, about.get("architecture"), architecture)


def _check_architecture(path: Path, held: object, wanted: Architecture) -> None:
    if held != wanted:
        raise InputError(f"{path} holds a {held}; its weights do not fit a {wanted}")


def _header(content: bytes, path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the header of a `FILE` says of its tensors, and the arguments of its `DetectorModule`."""
    try:
        header = json.loads(content)
        return header, json.loads(header.pop("__metadata__")[ENTRY])["hyper_parameters"]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"detector.weights={path} is no {FILE}, or is damaged") from None


def _prediction_rows(classes: Sequence[str], others: Sequence[str], rows: int) -> tuple[list[int], list[int]]:
    """Rows of a prediction's tensors that mean the same: box, objectness and classes of one name, of each anchor."""
    own = [*range(5), *(5 + label for label, name in enumerate(classes) if name in others)]
    same = [*range(5), *(5 + others.index(name) for name in classes if name in others)]
    starts = range(0, rows, 5 + len(classes))
    return [start + row for start in starts for row in own], [start + row for start in starts for row in same]


def weights_digest(path: Path) -> str:
    """Sha256 of what a file of initial weights gives to a network; raises `InputError` if it cannot be read.

    Of a ``detector.safetensors`` tensors and anchors count, not the run that it comes from.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"detector.weights={path} cannot be read: {error.strerror}") from None
    if path.suffix != ENDING:
        return hashlib.sha256(content).hexdigest()
    # https://huggingface.co/docs/safetensors: length of the header (8 bytes), header, tensors.
    end = 8 + int.from_bytes(content[:8], "little")
    header, about = _header(content[8:end], path)
    given = {"tensors": header, **{key: about.get(key) for key in ("architecture", "anchors")}}
    total = hashlib.sha256(json.dumps(given, sort_keys=True).encode())
    total.update(content[end:])
    return total.hexdigest()


def weights_digests(path: Path) -> tuple[str, str]:
    """`weights_digest`, and the hash of the whole file, which older versions recorded in its place."""
    return weights_digest(path), hashlib.sha256(path.read_bytes()).hexdigest()


def anchors_of(path: Path) -> Anchors:
    """The anchors of a run's ``detector.safetensors``, in pixels as trained; raises `InputError` for another file."""
    if path.suffix != ENDING:
        raise InputError(f"{path} holds no anchors; only a {FILE} does. Choose detector.anchors=kmeans or published")
    return read_detector(path).module.network.anchors
