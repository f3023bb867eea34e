"""Checks of settings before any work starts."""

from __future__ import annotations

import functools
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
from omegaconf import DictConfig

from boxtwin.config.compose import to_object
from boxtwin.config.identity import NO_PRETRAINING, uses_generator
from boxtwin.config.launch import runs_here
from boxtwin.config.numbers import check_ranges
from boxtwin.config.schema import BoxtwinConfig
from boxtwin.datasets.image_folder import check_folder
from boxtwin.datasets.reading import Reading
from boxtwin.datasets.splits import Split
from boxtwin.detector.checkpoint import ENDING, check_initial_weights
from boxtwin.detector.darknet import DarknetReport
from boxtwin.detector.network import PUBLISHED_ANCHORS, STRIDES
from boxtwin.detector.options import Anchors, Architecture, Precision, Redraw
from boxtwin.errors import InputError
from boxtwin.hardware import ACCELERATORS, has_accelerator, lightning_accelerator, on_gpu
from boxtwin.run.generators import check_generators

log = logging.getLogger(__name__)

CELLS_PER_OBJECT = 2  # of the finest head: smaller objects are hard to find
VARIATIONS = "variations"  # the pre-training on the split's own variations
LARGE = 0.9  # quantile of the lengths of objects that crops should show whole
# Darknet's weights for COCO, from which an architecture can start: those of its own, or of one that it extends.
PUBLISHED_WEIGHTS = {
    "yolov3": "yolov3.weights",
    "yolov3_spp": "yolov3-spp.weights",
    "yolov3_tiny": "yolov3-tiny.weights",
    "yolov3_tiny_3l": "yolov3-tiny.weights",
}


def make_reading(config: BoxtwinConfig, place: str = "dataset") -> Reading:
    """The settings for decoding the image files of a data set; raises `InputError` if one is wrong."""
    node = config.dataset if place == "dataset" else config.pretraining.dataset
    try:
        return Reading(node.orientation, node.page, node.channels, node.max_pixels)
    except ValueError as error:
        raise InputError(f"{place}.page, {place}.channels or {place}.max_pixels: {error}") from None


def _check_pretraining(config: BoxtwinConfig) -> None:
    options = config.pretraining
    if options.name == NO_PRETRAINING:
        return
    if options.simulates and config.dataset.build is not None:
        raise InputError(
            f"pretraining={options.name} simulates the scenes that dataset={config.dataset.name} consists of, so it "
            "would show images of the test set's kind and answer nothing; take pretraining=none"
        )
    if options.steps < 1 or options.steps % config.trainer.validations:
        raise InputError(
            f"pretraining.steps={options.steps} must be a positive multiple of "
            f"trainer.validations={config.trainer.validations}, so that it ends with a validation"
        )
    if options.steps <= (warmup := config.detector.warmup_steps):
        fewest = (warmup // config.trainer.validations + 1) * config.trainer.validations
        raise InputError(
            f"pretraining.steps={options.steps} must be above detector.warmup_steps={warmup}: set "
            f"pretraining.steps={fewest} or a greater multiple of trainer.validations, or shorten warm-up"
        )
    if options.batch_size % config.trainer.devices:
        raise InputError(
            f"pretraining.batch_size={options.batch_size} must be a multiple of "
            f"trainer.devices={config.trainer.devices}, which share every batch equally"
        )
    if options.name == VARIATIONS and options.per_image == 0:
        raise InputError(
            f"pretraining.per_image=0: pretraining={VARIATIONS} takes so many variations of each image, at least 1; "
            "pretraining=none does without"
        )
    if options.per_image < 0:
        raise InputError(f"pretraining.per_image={options.per_image} must not be negative")
    if options.batch_size < 1:
        raise InputError(f"pretraining.batch_size={options.batch_size} must be at least 1")
    if options.per_image and options.dataset.name != NO_PRETRAINING and options.name != VARIATIONS:
        raise InputError(
            f"pretraining.per_image={options.per_image} is for pretraining={VARIATIONS}; with it, "
            f"pretraining={options.name} would not see its own images: set pretraining.per_image=0 (and compare it "
            f"with pretraining={VARIATIONS} by a command for each)"
        )
    make_reading(config, "pretraining.dataset")
    for name, folder in (("unlabelled", options.dataset.unlabelled), ("empty", options.dataset.empty)):
        if folder is not None:
            raise InputError(
                f"pretraining.dataset.{name}={folder}: a pre-training takes labelled images alone; set it to null"
                + (", and add the images to the annotation file, without boxes" if name == "empty" else "")
            )
    if (options.fit or options.redraw is not Redraw.none) and not options.simulates:
        raise InputError(
            f"pretraining.fit and pretraining.redraw change simulated images, and pretraining={options.name} has none; "
            "take pretraining=sar_scenes, or pretraining.fit=false pretraining.redraw=none"
        )
    if options.redraw is Redraw.diffusion and not 0 < options.redraw_strength <= 1:
        raise InputError(f"pretraining.redraw_strength={options.redraw_strength} must be above 0 and at most 1")
    if not 0 <= options.share < 1 or (options.share and options.per_image):
        raise InputError(
            f"pretraining.share={options.share} must be at least 0 and less than 1, and 0 where variations precede "
            "(variations.synthetic_fraction is their share in the later training)"
        )


def _check_steps(config: BoxtwinConfig) -> None:
    trainer, warmup = config.trainer, config.detector.warmup_steps
    if warmup < 0:
        raise InputError(f"detector.warmup_steps={warmup} must not be negative")
    if trainer.steps is None or trainer.steps < 0 or trainer.steps % trainer.validations:
        intervals = -(-max(trainer.steps or 0, warmup + 1) // trainer.validations)
        raise InputError(
            f"trainer.steps={trainer.steps} must be a multiple of trainer.validations={trainer.validations}, "
            f"so that training ends with a validation, such as {intervals * trainer.validations}"
        )
    if trainer.steps == 0 and config.detector.weights is None and config.pretraining.name == NO_PRETRAINING:
        raise InputError(
            "trainer.steps=0 tests initial weights as they are; say which: detector.weights=FILE, or a pretraining"
        )
    weights, anchors = config.detector.weights, config.detector.anchors
    if trainer.steps == 0 and config.pretraining.name == NO_PRETRAINING and weights is not None:
        is_darknet = Path(weights).suffix != ENDING
        if is_darknet and anchors is not Anchors.published:
            raise InputError(
                f"trainer.steps=0 tests {weights} as it is, and a Darknet file holds no anchors, without which it "
                "predicts something else: of a published file, set detector.anchors=published; of your own, test the "
                "detector.safetensors of its run"
            )
        if not is_darknet and anchors is not Anchors.weights:
            raise InputError(
                f"trainer.steps=0 tests {weights} as it is, and detector.anchors={anchors.value} would change what it "
                "predicts; set detector.anchors=weights"
            )
    if trainer.steps and not 0 <= warmup < trainer.steps:
        fewest = (warmup // trainer.validations + 1) * trainer.validations
        cure = f"set trainer.steps={fewest}, or a greater multiple of trainer.validations={trainer.validations}"
        if trainer.epochs is not None:
            cure = f"raise trainer.epochs={trainer.epochs} until there are {fewest} steps or more"
        raise InputError(
            f"detector.warmup_steps={warmup} must be below trainer.steps={trainer.steps}: {cure}, or shorten warm-up"
        )


def with_steps(config: BoxtwinConfig, labelled: int, extra: int) -> BoxtwinConfig:
    """The configuration with the steps that ``trainer.epochs`` take; unchanged where these are not set.

    An epoch has the labelled images, all variations that are asked for, and the images beside the data set (``extra``).
    Those that are refused later do not make a training shorter, so that generators and controls take equal steps.
    Raises `InputError` if the steps are too few for the warm-up.
    """
    trainer = config.trainer
    if trainer.epochs is None:
        return config
    drawn, interval = trainer.epochs * (labelled * (1 + config.variations.per_image) + extra), trainer.validations
    steps = -(-drawn // (trainer.batch_size * interval)) * interval
    config = replace(config, trainer=replace(trainer, steps=steps))
    _check_steps(config)
    return config


def check_whole(steps: int, path: Path, report: DarknetReport) -> None:
    """Raise `InputError` if initial weights that are tested as they are leave a part of the network random."""
    if steps == 0 and not report.whole:
        raise InputError(
            f"trainer.steps=0 tests {path} as it is, but a part of the network would stay random ({report}): the file "
            "has other classes or fewer heads, or is cut off. Train, or give weights of the same network and classes"
        )


def _check_sizes(config: BoxtwinConfig) -> None:
    """Check that all that goes into the network has whole cells of its coarsest grid."""
    detector, stride = config.detector, max(STRIDES[config.detector.architecture.value])
    size = detector.image_size
    for name, side in (("image_size", size), ("crop", detector.crop), ("tile", detector.tile)):
        # An image that is cut into tiles and crops may have any size that holds a crop.
        is_input = name != "image_size" or detector.crop is None or detector.crop > size or detector.tile is None
        if side is not None and (side < stride or (is_input and side % stride)):
            group = "dataset" if name == "image_size" and side == config.dataset.image_size else "detector"
            fitting = max(stride, round(side / stride) * stride)
            raise InputError(f"{group}.{name}={side} must be a multiple of {stride}, such as {fitting}")
    options = config.pretraining
    side = options.dataset.image_size
    if options.name != NO_PRETRAINING and not options.per_image and (side < stride or side % stride):
        raise InputError(f"pretraining.dataset.image_size={side} must be a multiple of {stride}")


def check_settings(config: BoxtwinConfig, *, here: bool = True) -> None:
    """Raise `InputError` if the value of a setting is wrong, or two settings contradict each other.

    Whether the machine has what they ask for is checked where the run is made ``here``.
    """
    trainer, detector = config.trainer, config.detector
    architecture, fraction = detector.architecture.value, config.variations.synthetic_fraction
    size = config.split.train_size
    if config.final is not None:
        raise InputError(f"final={config.final} is a setting of train.py alone")
    if trainer.steps is not None and trainer.epochs is not None:
        raise InputError(
            f"trainer.steps={trainer.steps} and trainer.epochs={trainer.epochs} are both set, and the one follows from "
            "the other; leave one out, or set it to null"
        )
    if trainer.epochs is not None and (
        config.pretraining.share or (fraction is not None and config.variations.per_image)
    ):
        raise InputError(
            f"trainer.epochs={trainer.epochs} shows every real image and every variation once an epoch, and "
            "variations.synthetic_fraction or pretraining.share would show real images more or less often: set "
            "trainer.steps instead, or variations.synthetic_fraction=null and pretraining.share=0"
        )
    if trainer.validations < 1:
        raise InputError(f"trainer.validations={trainer.validations} must be at least 1")
    if trainer.epochs is not None and trainer.epochs < 1:
        raise InputError(f"trainer.epochs={trainer.epochs} must be at least 1")
    if trainer.epochs is None:
        _check_steps(config)
    if trainer.batch_threads is not None and trainer.batch_threads < 1:
        raise InputError(f"trainer.batch_threads={trainer.batch_threads} must be at least 1")
    if trainer.devices < 1:
        raise InputError(f"trainer.devices={trainer.devices} must be at least 1: the number of GPUs")
    if trainer.batch_size % trainer.devices:
        raise InputError(
            f"trainer.batch_size={trainer.batch_size} must be a multiple of trainer.devices={trainer.devices}, "
            "which share every batch equally"
        )
    if trainer.accelerator not in ACCELERATORS:
        raise InputError(f"trainer.accelerator={trainer.accelerator} is none of {', '.join(ACCELERATORS)}")
    if here and not has_accelerator(trainer.accelerator):
        raise InputError(
            f"trainer.accelerator={trainer.accelerator}: PyTorch finds no such device here; take auto or cpu"
        )
    if here and trainer.precision is Precision.float16 and not on_gpu(lightning_accelerator(trainer.accelerator)):
        raise InputError("trainer.precision=float16 needs a GPU; CPUs take float32 or bfloat16")
    _check_sizes(config)
    _check_pretraining(config)
    make_reading(config)
    if config.variations.per_image < 0:
        raise InputError(f"variations.per_image={config.variations.per_image} must not be negative")
    if config.variations.learn_unlabelled and config.dataset.unlabelled is None:
        raise InputError("variations.learn_unlabelled=true needs dataset.unlabelled=FOLDER, the images to learn from")
    if fraction is not None and not 0 <= fraction <= 1:
        raise InputError(f"variations.synthetic_fraction={fraction} must lie between 0 and 1")
    if size is not None and not 1 <= size <= config.split.train:
        raise InputError(
            f"split.train_size={size} must lie between 1 and split.train={config.split.train}, all training images of "
            f"{config.split.name}"
        )
    if detector.anchors is Anchors.weights and detector.weights is None:
        raise InputError("detector.anchors=weights takes the anchors of detector.weights, which is not set")
    if detector.anchors is Anchors.published and architecture not in PUBLISHED_ANCHORS:
        raise InputError(f"there are no published anchors for {architecture}; choose detector.anchors=kmeans")
    check_ranges(config)


def check_composed(composed: DictConfig, schema: type[BoxtwinConfig] = BoxtwinConfig) -> None:
    """`check_settings` of a composed configuration, and whether the files and folders that it names can be used.

    What takes reading images is found when the run is made.
    """
    config, here = to_object(composed, schema), runs_here()
    check_settings(config, here=here)
    weights = config.detector.weights
    labels = config.labels.file if uses_generator(config) else None
    files = {"detector.weights": weights, "split.file": config.split.file, "labels.file": labels}
    for setting, file in files.items():
        if file is not None and not Path(file).is_file():
            raise InputError(f"{setting}={file}: there is no such file")
    if weights is not None:
        _check_weights(Path(weights), config.detector.architecture, Path(weights).stat().st_mtime_ns)
    for setting, folder in (("unlabelled", config.dataset.unlabelled), ("empty", config.dataset.empty)):
        if folder is not None:
            check_folder(Path(folder), f"dataset.{setting}")
    if here:  # generators look for their device and packages, too
        check_generators(config)


@functools.cache  # the runs of a sweep share them
def _check_weights(path: Path, architecture: Architecture, _changed: int) -> None:
    check_initial_weights(path, architecture)


def warn_of_random_weights(config: BoxtwinConfig) -> None:
    """Warn if training on real images starts from random weights, though published ones fit the architecture."""
    published = PUBLISHED_WEIGHTS.get(config.detector.architecture.value)
    if config.detector.weights is None and config.dataset.build is None and published is not None:
        log.warning(
            f"training starts from random weights; with few images it is better to start from published ones: "
            f"detector.weights=FOLDER/{published} (docs/your-data.md#initial-weights)"
        )


def warn_of_object_sizes(config: BoxtwinConfig, split: Split) -> None:
    """Warn if most objects are too small to be found in the resized images, or too large for a crop of them."""
    size, crop, strides = config.detector.image_size, config.detector.crop, STRIDES[config.detector.architecture.value]
    scaled = [sample.object_boxes * size / max(sample.width, sample.height) for sample in split.train]
    sides = np.concatenate([boxes[:, 2:] - boxes[:, :2] for boxes in scaled])
    median, full = float(np.median(np.sqrt(sides.prod(axis=1)))), max(max(s.width, s.height) for s in split.train)
    largest_size = -(-full // max(strides)) * max(strides)
    if size < full and median < CELLS_PER_OBJECT * min(strides):
        log.warning(
            f"half of the training objects have a side (square root of the area) below {median:.0f} pixels when images "
            f"are resized to {size}: a larger dataset.image_size, up to {largest_size}, shows them better; with "
            "training on crops (detector.crop) it takes no more time"
        )
    largest = float(np.quantile(sides.max(axis=1), LARGE))
    if crop is not None and crop < size and largest > crop / 2:
        coarsest = max(strides)
        better = max(coarsest, int(size * crop / 2 / largest // coarsest) * coarsest)
        log.warning(
            f"one training object in ten is over {largest:.0f} pixels long, and crops of {crop} pixels will cut many "
            f"of them off: try dataset.image_size={better}, or detector.crop=null for whole images"
        )
