"""What settings must hold to, before any work starts; and what of them the machine decides."""

from __future__ import annotations

import logging

import numpy as np

from boxtwin.config.schema import BoxtwinConfig
from boxtwin.datasets.reading import Reading
from boxtwin.datasets.splits import Split
from boxtwin.detector.network import PUBLISHED_ANCHORS, STRIDES
from boxtwin.detector.options import Anchors, Precision
from boxtwin.errors import InputError
from boxtwin.hardware import lightning_accelerator

log = logging.getLogger(__name__)

# An object that spans fewer cells of the finest head is told apart from its neighbours and its ground with difficulty.
CELLS_PER_OBJECT = 2
LARGE = 0.9  # the quantile of lengths that crops should still show whole most of the time


def make_reading(config: BoxtwinConfig) -> Reading:
    """How image files become pixels.

    Raises:
        InputError: a value is wrong.
    """
    node = config.dataset
    channels = None if node.channels is None else tuple(node.channels)
    try:
        return Reading(node.orientation.value, node.page, channels, node.max_pixels)
    except ValueError as error:
        raise InputError(f"dataset.page, dataset.channels or dataset.max_pixels: {error}") from None


def check_settings(config: BoxtwinConfig) -> None:
    """What the values alone tell.

    Raises:
        InputError: a value is wrong, or two do not go together.
    """
    trainer, detector = config.trainer, config.detector
    if trainer.steps < 0 or trainer.validations < 1 or trainer.steps % trainer.validations:
        raise InputError(
            f"trainer.steps={trainer.steps} must be a multiple of trainer.validations={trainer.validations}, "
            "so that training ends with a validation"
        )
    if trainer.devices < 1 or trainer.batch_size % trainer.devices:
        raise InputError(
            f"trainer.batch_size={trainer.batch_size} must be a multiple of trainer.devices={trainer.devices}, "
            "which share every batch equally"
        )
    on_gpu = lightning_accelerator(trainer.accelerator) in ("cuda", "gpu")
    if trainer.precision is Precision.float16 and not on_gpu:
        raise InputError("trainer.precision=float16 needs a GPU; CPUs take float32 or bfloat16")
    if trainer.steps == 0 and detector.weights is None:
        raise InputError("trainer.steps=0 tests initial weights as they are; say which: detector.weights=FILE")
    if trainer.steps and not 0 <= detector.warmup_steps < trainer.steps:
        raise InputError(f"detector.warmup_steps={detector.warmup_steps} must be below trainer.steps={trainer.steps}")
    architecture = detector.architecture.value
    stride = max(STRIDES[architecture])
    for name, side in (("image_size", detector.image_size), ("crop", detector.crop), ("tile", detector.tile)):
        # Cut into tiles and crops, an image may have any size itself.
        is_input = name != "image_size" or detector.crop is None or detector.tile is None
        if side is not None and (side < stride or (is_input and side % stride)):
            raise InputError(f"detector.{name}={side} must be a multiple of {stride}")
    if config.variations.per_image < 0:
        raise InputError(f"variations.per_image={config.variations.per_image} must not be negative")
    fraction = config.variations.synthetic_fraction
    if fraction is not None and not 0 <= fraction <= 1:
        raise InputError(f"variations.synthetic_fraction={fraction} must lie between 0 and 1")
    size = config.split.train_size
    if size is not None and not 1 <= size <= config.split.train:
        raise InputError(
            f"split.train_size={size} must lie between 1 and split.train={config.split.train}, all training images of "
            f"{config.split.name}"
        )
    _check_labels(config)
    if detector.anchors is Anchors.weights and detector.weights is None:
        raise InputError("detector.anchors=weights takes the anchors of detector.weights, which is not set")
    if detector.anchors is Anchors.published and architecture not in PUBLISHED_ANCHORS:
        raise InputError(f"there are no published anchors for {architecture}; choose detector.anchors=kmeans")


def _check_labels(config: BoxtwinConfig) -> None:
    labels, trainer = config.labels, config.trainer
    if labels.steps is not None and (
        labels.steps <= config.detector.warmup_steps or labels.steps % trainer.validations
    ):
        raise InputError(
            f"labels.steps={labels.steps} must be above detector.warmup_steps={config.detector.warmup_steps} and a "
            f"multiple of trainer.validations={trainer.validations}"
        )


def warn_of_object_sizes(config: BoxtwinConfig, split: Split) -> None:
    """Say so when most objects are too small to be found in the shrunk images, or too large for a crop of them."""
    size, finest = config.detector.image_size, min(STRIDES[config.detector.architecture.value])
    sides = np.concatenate(
        [
            (sample.object_boxes[:, 2:] - sample.object_boxes[:, :2]) * size / max(sample.width, sample.height)
            for sample in split.train
        ]
    )
    median, full = float(np.median(np.sqrt(sides.prod(axis=1)))), max(max(s.width, s.height) for s in split.train)
    if size < full and median < CELLS_PER_OBJECT * finest:
        log.warning(
            "half of the training objects are under %.0f pixels in images shrunk to %d: a larger image size shows them "
            "better, up to dataset.image_size=%d; learnt in crops (detector.crop) it takes no more time",
            *(median, size, full),
        )
    crop = config.detector.crop
    largest = float(np.quantile(sides.max(axis=1), LARGE))
    if crop is not None and crop < size and largest > crop / 2:
        log.warning(
            "one training object in ten is over %.0f pixels long, and crops of %d pixels will cut many of them off: "
            "try dataset.image_size=%d, or detector.crop=null for whole images",
            *(largest, crop, _multiple(size * crop / 2 / largest, max(STRIDES[config.detector.architecture.value]))),
        )


def _multiple(value: float, of: int) -> int:
    return max(of, int(value // of) * of)
