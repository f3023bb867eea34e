"""From a configuration to objects: data, split, store, datamodule, detector; all checked before any work starts."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import torch
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf

from boxtwin.config import Anchors, Precision, defining_values
from boxtwin.datasets import sar_scenes
from boxtwin.datasets.coco import read_coco
from boxtwin.datasets.decoded import DecodedImages
from boxtwin.datasets.sample import Dataset, Sample
from boxtwin.datasets.splits import Split, make_split, read_split
from boxtwin.detector.anchors import anchors_from_samples
from boxtwin.detector.module import DetectorModule
from boxtwin.detector.pretrained import anchors_of, read_weights
from boxtwin.detector.yolov3 import PUBLISHED_ANCHORS, STRIDES
from boxtwin.errors import InputError
from boxtwin.labels.manual import Manual
from boxtwin.mixing.augment import Augmentation
from boxtwin.mixing.datamodule import StudyDataModule, input_channels, white_level
from boxtwin.mixing.plan import Plan
from boxtwin.synthesis.generator import Generator, Json
from boxtwin.synthesis.library import Library

log = logging.getLogger(__name__)

ANCHORS_PER_HEAD = 3  # YOLOv3, section 2.3
# An object that spans fewer cells of the finest head is told apart from its neighbours and its ground with difficulty.
CELLS_PER_OBJECT = 2
# The options of the labels group, and the settings that labels of each follow from, apart from detectors and files.
LABELS = {
    "carry": ("new_objects", "sure", "gone", "match", "better", "search"),
    "pseudo": ("agree", "iou", "tolerance"),
    "manual": (),
}
LARGE = 0.9  # the quantile of lengths that crops should still show whole most of the time


@dataclass(frozen=True)
class Prepared:
    """A checked configuration: everything a cell needs, before any work starts."""

    config: DictConfig
    dataset: Dataset
    split: Split
    library: Library | None  # None without variations
    identity: str  # sha256 of all that defines the cell: settings, data, split, store, initial weights

    @property
    def sources(self) -> tuple[Sample, ...]:
        """The real images that get variations."""
        return (*self.split.train, *self.split.val)

    @property
    def per_image(self) -> int:
        """Variations of each source."""
        return int(self.config.variations.per_image)

    @cached_property
    def images(self) -> DecodedImages:
        """Decoded images, those of the split at hand.

        Raises:
            InputError: the disk does not take them.
        """
        images = DecodedImages(Path(self.config.data) / "cache" if self.config.trainer.cache else None)
        images.add(self.dataset.name, [*self.split.train, *self.split.val, *self.split.test])
        return images

    @cached_property
    def white(self) -> int:
        """The pixel value that means 1.0."""
        return white_level(self.split.train, self.images)

    @cached_property
    def channels(self) -> int:
        """Channels of the network's input."""
        return input_channels(self.split.train, self.images)


def prepare(config: DictConfig) -> Prepared:
    """Load and check everything that the configuration names.

    Raises:
        InputError: anything is wrong with data, split or settings. Nothing has been trained or generated then.
    """
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise InputError(f"these settings need a value: {', '.join(missing)} (say {missing[0]}=… on the command line)")
    _check_settings(config)
    dataset = load_dataset(config)
    split = _load_split(config, dataset)
    for side in ("train", "val", "test"):
        if not sum(len(sample.object_boxes) for sample in split.side(side)):
            raise InputError(f"split {split.name}: no object in any of the {len(split.side(side))} {side} images")
    _warn_of_object_sizes(config, split)
    library = _library(config, dataset, split) if config.variations.per_image else None
    return Prepared(config, dataset, split, library, _identity(config, dataset, split, library))


def labelling_cells(config: DictConfig, dataset: Dataset, split: Split) -> list[Prepared]:
    """The cells without variations whose detectors look at the labels of variations, with seeds from 0.

    Their training sees the split's real images and nothing else; who has trained such a cell has its detector.
    """
    cells = []
    for seed in range(config.labels.detectors):
        alone = OmegaConf.merge(config, {"seed": seed, "variations": {"per_image": 0}})
        assert isinstance(alone, DictConfig)
        alone.trainer.steps = config.trainer.steps if config.labels.steps is None else config.labels.steps
        cells.append(Prepared(alone, dataset, split, None, _identity(alone, dataset, split, None)))
    return cells


def _identity(config: DictConfig, dataset: Dataset, split: Split, library: Library | None) -> str:
    defining = {
        "values": defining_values(config),
        "dataset": dataset.digest,
        "split": split.digest,
        "store": library.key if library else None,
        "weights": _digest_of_file(config.detector.weights),
    }
    return hashlib.sha256(json.dumps(defining, sort_keys=True).encode()).hexdigest()


def load_dataset(config: DictConfig) -> Dataset:
    """Read the data set of a configuration; build it first if it is one of ours and missing."""
    node = config.dataset
    root = Path(node.root)
    if node.build is not None:
        sar_scenes.build(root, **OmegaConf.to_container(node.build))  # type: ignore[arg-type]
    dataset = read_coco(
        name=node.name,
        images=root / node.images,
        annotations=root / node.annotations,
        group_by=config.split.group_by,
        on_bad_box=node.on_bad_box.value,
    )
    if dataset.repairs:
        done = ", ".join(f"{count} {action}" for action, count in dataset.repairs.items())
        log.warning("%s: bad boxes, on_bad_box=%s: %s", dataset.name, node.on_bad_box.value, done)
    return dataset


def make_data(cell: Prepared, plan: Plan) -> StudyDataModule:
    """The datamodule of a cell."""
    config = cell.config
    trainer = config.trainer
    if cell.library:
        cell.images.add(
            cell.library.folder.name, [sample for sample in (*plan.train, *plan.val_synthetic) if sample.lineage]
        )
    return StudyDataModule(
        plan,
        image_size=config.detector.image_size,
        crop=min(config.detector.crop or config.detector.image_size, config.detector.image_size),
        tile=config.detector.tile,
        channels=cell.channels,
        batch_size=trainer.batch_size,
        steps=trainer.steps,
        steps_per_epoch=trainer.steps // trainer.validations,
        augmentation=_augmentation(config),
        synthetic_fraction=config.variations.synthetic_fraction,
        white=cell.white,
        seed=config.seed,
        images=cell.images,
        workers=trainer.workers,
        pin_memory=accelerator(config) in ("cuda", "gpu"),
    )


def make_detector(cell: Prepared) -> DetectorModule:
    """The untrained detector of a cell; its initial weights depend on the seed and the weights file alone."""
    detector = cell.config.detector
    # Initial weights are drawn from torch's global generator; the fork keeps the draw from leaking out.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cell.config.seed)
        module = DetectorModule(
            architecture=detector.architecture,
            classes=cell.dataset.classes,
            category_ids=cell.dataset.category_ids,
            anchors=_anchors(cell.config, cell.split.train),
            image_size=detector.image_size,
            tile=detector.tile,
            channels=cell.channels,
            white=cell.white,
            learning_rate=detector.learning_rate,
            weight_decay=detector.weight_decay,
            steps=cell.config.trainer.steps,
            warmup_steps=detector.warmup_steps,
            optimizer=detector.optimizer.value,
            box_loss=detector.box_loss.value,
            objectness_target=detector.objectness_target.value,
            anchors_per_object=detector.anchors_per_object.value,
            cells_per_object=detector.cells_per_object,
            scale_xy=detector.scale_xy,
            ignore_iou=detector.ignore_iou,
            focal_gamma=detector.focal_gamma,
            box_weight=detector.box_weight,
            objectness_weight=detector.objectness_weight,
            class_weight=detector.class_weight,
            nms_iou=detector.nms_iou,
            freeze=detector.freeze,
            coco_evaluator=cell.config.trainer.coco_evaluator.value,
        )
    if detector.weights is not None:
        log.info("%s: %s", detector.weights, read_weights(module.network, Path(detector.weights)))
    return module


def accelerator(config: DictConfig) -> str:
    """What Lightning is to run on."""
    wanted = config.trainer.accelerator
    if wanted != "auto":
        return str(wanted)
    return "cuda" if torch.cuda.is_available() else "cpu"


def precision(config: DictConfig) -> str:
    """What Lightning calls the arithmetic; bfloat16 only where the hardware has it, emulated it is slower.

    float16 is never chosen: it needs a gradient scaler, which bfloat16's wider exponent does without.
    """
    wanted = config.trainer.precision
    if wanted is Precision.auto:
        on_gpu = accelerator(config) in ("cuda", "gpu")
        has_it = torch.cuda.is_bf16_supported() if on_gpu else torch.cpu._is_avx512_bf16_supported()
        wanted = Precision.bfloat16 if has_it else Precision.float32
    return {Precision.bfloat16: "bf16-mixed", Precision.float16: "16-mixed", Precision.float32: "32-true"}[wanted]


def _check_settings(config: DictConfig) -> None:
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
    if trainer.precision is Precision.float16 and accelerator(config) not in ("cuda", "gpu"):
        raise InputError("trainer.precision=float16 needs a GPU; CPUs take float32 or bfloat16")
    if not 0 <= trainer.ema_span < 1:
        raise InputError(f"trainer.ema_span={trainer.ema_span} must lie between 0 (no average) and 1")
    if trainer.steps == 0 and detector.weights is None:
        raise InputError("trainer.steps=0 tests initial weights as they are; say which: detector.weights=FILE")
    if trainer.steps and not 0 <= detector.warmup_steps < trainer.steps:
        raise InputError(f"detector.warmup_steps={detector.warmup_steps} must be below trainer.steps={trainer.steps}")
    if detector.architecture not in STRIDES:
        raise InputError(f"detector.architecture={detector.architecture} is none of {', '.join(STRIDES)}")
    stride = max(STRIDES[detector.architecture])
    for name in ("image_size", "crop", "tile"):
        side = detector[name]
        # Cut into tiles and crops, an image may have any size itself.
        is_input = name != "image_size" or detector.crop is None or detector.tile is None
        if side is not None and (side < stride or (is_input and side % stride)):
            raise InputError(f"detector.{name}={side} must be a multiple of {stride}")
    if config.variations.per_image < 0:
        raise InputError(f"variations.per_image={config.variations.per_image} must not be negative")
    fraction = config.variations.synthetic_fraction
    if fraction is not None and not 0 <= fraction <= 1:
        raise InputError(f"variations.synthetic_fraction={fraction} must lie between 0 and 1")
    _check_labels(config)
    if detector.cells_per_object not in (1, 3):
        raise InputError(f"detector.cells_per_object={detector.cells_per_object} must be 1 or 3")
    if detector.scale_xy < 1 or (detector.cells_per_object == 3 and detector.scale_xy < 2):
        raise InputError(
            f"detector.scale_xy={detector.scale_xy} must be at least 1, and 2 with detector.cells_per_object=3"
        )
    if detector.anchors is Anchors.weights and detector.weights is None:
        raise InputError("detector.anchors=weights takes the anchors of detector.weights, which is not set")
    if detector.anchors is Anchors.published and detector.architecture not in PUBLISHED_ANCHORS:
        raise InputError(f"there are no published anchors for {detector.architecture}; choose detector.anchors=kmeans")
    _augmentation(config)


def _check_labels(config: DictConfig) -> None:
    labels, trainer = config.labels, config.trainer
    if labels.name not in LABELS:
        raise InputError(f"labels={labels.name} is unknown; there are: {', '.join(LABELS)}")
    if labels.detectors < 0:
        raise InputError(f"labels.detectors={labels.detectors} must not be negative")
    if labels.steps is not None and (
        labels.steps <= config.detector.warmup_steps or labels.steps % trainer.validations
    ):
        raise InputError(
            f"labels.steps={labels.steps} must be above detector.warmup_steps={config.detector.warmup_steps} and a "
            f"multiple of trainer.validations={trainer.validations}"
        )
    if not 0 <= labels.gone <= labels.sure:
        raise InputError(f"labels.gone={labels.gone} must lie between 0 and labels.sure={labels.sure}")
    if labels.search < 0:
        raise InputError(f"labels.search={labels.search} must not be negative")
    if labels.name == "pseudo" and not 1 <= labels.agree <= labels.detectors:
        raise InputError(
            f"labels.agree={labels.agree} must lie between 1 and labels.detectors={labels.detectors}, of which so many "
            "must see an object"
        )
    if not 0 < labels.iou <= 1:
        raise InputError(f"labels.iou={labels.iou} must lie between 0 and 1")
    if labels.tolerance < 0:
        raise InputError(f"labels.tolerance={labels.tolerance} must not be negative")


def _warn_of_object_sizes(config: DictConfig, split: Split) -> None:
    """Say so when most objects are too small to be found in the shrunk images, or too large for a crop of them."""
    size, finest = config.detector.image_size, min(STRIDES[config.detector.architecture])
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
            *(largest, crop, _multiple(size * crop / 2 / largest, max(STRIDES[config.detector.architecture]))),
        )


def _multiple(value: float, of: int) -> int:
    return max(of, int(value // of) * of)


def _load_split(config: DictConfig, dataset: Dataset) -> Split:
    node = config.split
    if node.file is not None:
        return read_split(dataset, Path(node.file), node.name)
    return make_split(
        dataset,
        name=node.name,
        train=node.train,
        val=node.val,
        test=node.test,
        train_pool=node.train_pool,
        seed=node.seed,
    )


def make_generator(config: DictConfig) -> Generator:
    """The generator of a configuration.

    Raises:
        InputError: its settings are wrong.
    """
    arguments = {key: value for key, value in config.generator.items() if key != "name"}
    try:
        generator: Generator = hydra.utils.instantiate(arguments, _convert_="all")
    except InstantiationException as error:
        if isinstance(error.__cause__, InputError):  # what the generator has to say, without Hydra's words around it
            raise error.__cause__ from None
        raise
    return generator


def _library(config: DictConfig, dataset: Dataset, split: Split) -> Library:
    generator = make_generator(config)
    return Library(
        Path(config.data) / "synthetic",
        generator,
        split.train,
        judge=None,  # boxtwin.labelling sets it where something is to be made: it may have detectors to train
        labels=_identity_of_labels(config, dataset, split, generator),
        dataset=dataset.name,
        classes=dataset.classes,
        category_ids=dataset.category_ids,
        seed=config.variations.seed,
    )


def _identity_of_labels(config: DictConfig, dataset: Dataset, split: Split, generator: Generator) -> Json:
    """All that the labels of a store follow from."""
    labels = config.labels
    if labels.name == "manual":
        file = None if labels.file is None else Path(labels.file)
        return {"name": labels.name, "file": Manual(file=file, category_ids=dataset.category_ids).sha256}
    if labels.name == "carry" and generator.boxes == "none":
        raise InputError(
            f"generator={config.generator.name} moves things about, so boxes cannot be carried over: choose "
            "labels=pseudo (detectors find them) or labels=manual (a person does)"
        )
    if labels.name == "carry" and generator.boxes == "exact":
        return {"name": labels.name, "boxes": "exact"}
    settings = {key: labels[key] for key in LABELS[labels.name]}
    return {
        "name": labels.name,
        **{key: value.name if isinstance(value, Enum) else value for key, value in settings.items()},
        "detectors": [cell.identity for cell in labelling_cells(config, dataset, split)],
    }


def _augmentation(config: DictConfig) -> Augmentation:
    values: dict[str, Any] = OmegaConf.to_container(config.dataset.augmentation)  # type: ignore[assignment]
    try:
        return Augmentation(**values)
    except ValueError as error:
        raise InputError(f"dataset.augmentation: {error}") from None


def _anchors(config: DictConfig, real: Sequence[Sample]) -> Any:
    architecture = config.detector.architecture
    if config.detector.anchors is Anchors.published:
        scale = config.detector.image_size / 416  # the size they are published for
        return [[[w * scale, h * scale] for w, h in head] for head in PUBLISHED_ANCHORS[architecture]]
    if config.detector.anchors is Anchors.weights:
        return anchors_of(Path(config.detector.weights))
    # Real images only, and a fixed seed: every cell of a split has the same anchors.
    return anchors_from_samples(
        real,
        image_size=config.detector.image_size,
        heads=len(STRIDES[architecture]),
        per_head=ANCHORS_PER_HEAD,
        rng=np.random.default_rng(0),
    )


def _digest_of_file(path: str | None) -> str | None:
    if path is None:
        return None
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"detector.weights={path} cannot be read: {error.strerror}") from None
