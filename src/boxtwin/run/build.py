"""From a configuration to objects: data, split, store, datamodule, detector; all checked before any work starts."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import torch
from hydra.errors import InstantiationException

from boxtwin.config.identity import (
    EVALUATION_VERSION,
    RECIPE_VERSION,
    condition_of,
    defining_values,
    place_now,
    removed_settings_of,
    train_size,
)
from boxtwin.config.schema import BoxtwinConfig
from boxtwin.datasets.coco import digest_of, read_coco
from boxtwin.datasets.image_cache import DecodedImages
from boxtwin.datasets.levels import Levels, check_depth, measure_levels
from boxtwin.datasets.sample import Dataset, Sample
from boxtwin.datasets.simulated_sar import scenes as sar_scenes
from boxtwin.datasets.splits import SIDES, Split, describe_classes, make_split, nested_order, read_split
from boxtwin.detector.anchors import anchors_from_samples
from boxtwin.detector.checkpoint import anchors_of, read_initial_weights, weights_digest
from boxtwin.detector.module import DetectorModule
from boxtwin.detector.network import PUBLISHED_ANCHORS, STRIDES
from boxtwin.detector.nms import DETECTIONS, detection_limit
from boxtwin.detector.options import Anchors, Architecture
from boxtwin.detector.spec import NetworkSpec
from boxtwin.errors import DataError, InputError
from boxtwin.files import check_name
from boxtwin.hardware import lightning_accelerator, lightning_precision
from boxtwin.labels.method import LabelMethod, Variations
from boxtwin.mixing.datamodule import StudyDataModule, check_variations, input_channels
from boxtwin.mixing.options import BatchOptions, InputOptions
from boxtwin.mixing.plan import Plan
from boxtwin.run.checks import (
    check_settings,
    make_reading,
    warn_of_object_sizes,
)
from boxtwin.synthesis.generator import Generator, Json
from boxtwin.synthesis.store import Library

log = logging.getLogger(__name__)

ANCHORS_PER_HEAD = 3  # YOLOv3, section 2.3


@dataclass(frozen=True)
class Prepared:
    """A checked configuration: everything a run needs, before any work starts."""

    config: BoxtwinConfig
    dataset: Dataset
    split: Split
    library: Library | None  # None without variations
    identity: str  # sha256 of all that defines the cell: settings, data, split, store, initial weights
    earlier_identities: tuple[str, ...]  # of the same run by older versions
    condition: dict[str, Any]  # the same but for the seed, in the open
    detector: tuple[str, ...]  # `identity` and earlier ones without how it is evaluated: what its detector follows from

    @property
    def sources(self) -> tuple[Sample, ...]:
        """The real images that get variations."""
        return (*self.split.train, *self.split.val)

    @property
    def per_image(self) -> int:
        """Variations of each source."""
        return self.config.variations.per_image

    @property
    def accelerator(self) -> str:
        """Where networks run, as Lightning calls it."""
        return lightning_accelerator(self.config.trainer.accelerator)

    @property
    def precision(self) -> str:
        """The numbers that training computes in, as Lightning calls them."""
        return lightning_precision(self.config.trainer.precision.value, self.accelerator)

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
    def levels(self) -> Levels:
        """The pixel values that mean 0 and 1."""
        measured = measure_levels(self.split.train, self.images.read)
        if measured.levels != Levels():
            log.info("16 bit images: black %d, white %d", measured.levels.black, measured.levels.white)
        for remark in measured.remarks:
            log.warning("%s: %s", self.dataset.name, remark)
        return measured.levels

    @cached_property
    def channels(self) -> int:
        """Channels of the network's input."""
        return input_channels(self.split.train, self.images)


def prepare(config: BoxtwinConfig) -> Prepared:
    """Load and check everything that the configuration names.

    Raises:
        InputError: anything is wrong with data, split or settings. Nothing has been trained or generated then.
    """
    check_settings(config)
    dataset = load_dataset(config)
    split = _load_split(config, dataset)
    for side in ("train", "val", "test"):
        if not sum(len(sample.object_boxes) for sample in split.side(side)):
            raise InputError(f"split {split.name}: no object in any of the {len(split.side(side))} {side} images")
    check_depth([sample for side in SIDES for sample in split.side(side)])
    if copies := split.near_copies():
        log.warning(
            "split %s: %d pairs of images look nearly the same and stand on two sides: %s",
            *(split.name, len(copies), "; ".join(copies[:3])),
        )
    _tell_classes(dataset, split)
    warn_of_object_sizes(config, split)
    library = _library(config, dataset, split) if config.variations.per_image else None
    return _prepared(config, dataset, split, library)


def _tell_classes(dataset: Dataset, split: Split) -> None:
    lines, warnings = describe_classes(split, dataset.classes)
    for line in lines if len(dataset.classes) > 1 else ():
        log.info("%s", line)
    for warning in warnings:
        log.warning("split %s: %s", split.name, warning)


def labelling_cells(config: BoxtwinConfig, dataset: Dataset, split: Split) -> list[Prepared]:
    """The runs without variations whose detectors look at the labels of variations, with seeds from 0.

    Their training sees the split's real images and nothing else; who has trained such a run has its detector.
    """
    cells = []
    for seed in range(config.labels.detectors):
        steps = config.trainer.steps if config.labels.steps is None else config.labels.steps
        alone = replace(
            config,
            seed=seed,
            variations=replace(config.variations, per_image=0),
            trainer=replace(config.trainer, steps=steps),
        )
        cells.append(_prepared(alone, dataset, split, None))
    return cells


def detector_file(cell: Prepared) -> Path:
    """Where the detector of a run without variations is kept for the labels; under an earlier name if it is there."""
    folder = Path(cell.config.data) / "detectors"
    files = [folder / f"{identity}.safetensors" for identity in cell.detector]
    return next((file for file in files if file.exists()), files[0])


def _prepared(config: BoxtwinConfig, dataset: Dataset, split: Split, library: Library | None) -> Prepared:
    weights = config.detector.weights and weights_digest(Path(config.detector.weights))
    defining: dict[str, Any] = {
        "values": defining_values(config),
        "dataset": dataset.digest,
        "split": split.digest,
        "store": library.key if library else None,
        "weights": weights,
    }
    if RECIPE_VERSION > 1:  # the first version is that of runs from before there were versions
        defining["recipe"] = RECIPE_VERSION
    if any(sample.bits > 8 for sample in split.train):
        defining["levels"] = "percentiles"  # before, 0 and the largest value were black and white
    if (limit := detection_limit(split.train)) != DETECTIONS:
        defining["max_detections"] = limit
    if config.detector.anchors is Anchors.published and config.detector.architecture is Architecture.yolov3_tiny:
        defining["anchors"] = "1,2,3"  # of its finer head; runs of before had 0, 1 and 2 there
    # Older versions took the hash of the whole file of weights for that of its tensors.
    of_file = config.detector.weights and hashlib.sha256(Path(config.detector.weights).read_bytes()).hexdigest()
    detector = tuple(dict.fromkeys(_hash_of(defining | {"weights": digest}) for digest in (weights, of_file)))
    if len(dataset.classes) > 1:
        defining["evaluation"] = EVALUATION_VERSION
    identity, earlier = (_hash_of(defining | {"weights": digest}) for digest in (weights, of_file))
    # The images and labels of each side by themselves: training images may be added, and the test stays the same.
    sides = {side: digest_of(split.side(side), dataset.classes) for side in SIDES}
    extra = {key: value for key, value in defining.items() if key not in ("values", "dataset", "split", "weights")}
    return Prepared(
        *(config, dataset, split, library, identity),
        () if earlier == identity else (earlier,),
        condition_of(config, {"data": sides, "recipe": RECIPE_VERSION, **extra}, weights=weights),
        detector,
    )


def load_dataset(config: BoxtwinConfig) -> Dataset:
    """Read the data set of a configuration; build it first if it is one of ours and missing."""
    node = config.dataset
    root = Path(node.root)
    if node.build is not None:
        sar_scenes.build(root, **node.build)
    try:
        dataset = read_coco(
            name=node.name,
            images=root / node.images,
            annotations=root / node.annotations,
            group_by=config.split.group_by,
            on_bad_box=node.on_bad_box.value,
            reading=make_reading(config),
            crowds=node.crowds.value,
            on_duplicate_box=node.on_duplicate_box.value,
        )
    except InputError as error:
        raise DataError(str(error)) from None
    for remark in dataset.remarks:
        log.warning("%s: %s", dataset.name, remark)
    return dataset


def make_data(cell: Prepared, plan: Plan) -> StudyDataModule:
    """The datamodule of a cell."""
    config = cell.config
    trainer = config.trainer
    if cell.library:
        variations = [sample for sample in (*plan.train, *plan.val_synthetic) if sample.lineage]
        cell.images.add(cell.library.folder.name, variations)
        check_variations(variations, cell.images, cell.split.train[0].bits)
    size = config.detector.image_size
    return StudyDataModule(
        plan,
        InputOptions(
            image_size=size,
            crop=min(config.detector.crop or size, size),
            tile=config.detector.tile,
            channels=cell.channels,
        ),
        BatchOptions(
            steps=trainer.steps,
            steps_per_epoch=trainer.steps // trainer.validations,
            batch_size=trainer.batch_size,
            seed=config.seed,
            synthetic_fraction=config.variations.synthetic_fraction,
            workers=trainer.workers,
            pin_memory=cell.accelerator in ("cuda", "gpu"),
        ),
        config.dataset.augmentation,
        cell.levels,
        cell.images,
    )


def make_detector(cell: Prepared) -> DetectorModule:
    """The untrained detector of a run; its initial weights depend on the seed and the weights file alone."""
    detector = cell.config.detector
    # Initial weights are drawn from torch's global generator; the fork keeps the draw from leaking out.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cell.config.seed)
        module = DetectorModule(
            NetworkSpec(
                architecture=detector.architecture.value,
                classes=cell.dataset.classes,
                category_ids=cell.dataset.category_ids,
                image_size=detector.image_size,
                tile=detector.tile,
                channels=cell.channels,
                white=cell.levels.white,
                black=cell.levels.black,
                reading=make_reading(cell.config).plain(),
                nms_iou=detector.nms_iou,
                max_detections=detection_limit(cell.split.train),
            ),
            _anchors(cell.config, cell.split.train),
            loss=detector,
            optimizer=detector,
            steps=cell.config.trainer.steps,
        )
    if detector.weights is not None:
        log.info("%s: %s", detector.weights, read_initial_weights(module.network, Path(detector.weights)))
    return module


def _load_split(config: BoxtwinConfig, dataset: Dataset) -> Split:
    node, size = config.split, train_size(config)
    if node.file is not None:
        split = read_split(dataset, Path(node.file), node.name)
        if node.train_size is not None and node.train != len(split.train):
            raise InputError(
                f"split.file={node.file}: {node.name} has {len(split.train)} training images. To use some of them "
                f"(split.train_size={node.train_size}), say split.train={len(split.train)} too, which is {node.train}"
            )
        return split if size is None else split.first(size, nested_order(Path(node.file), node.name, node.seed))
    split = make_split(
        dataset,
        name=node.name,
        train=node.train,
        val=node.val,
        test=node.test,
        train_pool=node.train_pool,
        seed=node.seed,
    )
    return split if size is None else split.first(size)


def make_generator(config: BoxtwinConfig) -> Generator:
    """The generator of a configuration.

    Raises:
        InputError: its settings are wrong.
    """
    arguments = {key: value for key, value in config.generator.items() if key != "name"}
    if "_target_" in arguments:
        arguments["_target_"] = place_now(arguments["_target_"])
        for name in removed_settings_of(arguments["_target_"]).keys() & arguments.keys():
            raise InputError(f"generator.{name} is no setting any more: leave it out")
    try:
        generator: Generator = hydra.utils.instantiate(arguments, _convert_="all")
    except InstantiationException as error:
        if isinstance(error.__cause__, InputError):  # what the generator has to say, without Hydra's words around it
            raise error.__cause__ from None
        raise
    # Two files of one class are two generators.
    generator.name = str(config.generator["name"])
    check_name(generator.name, "generator.name")
    return generator


def _library(config: BoxtwinConfig, dataset: Dataset, split: Split) -> Library:
    generator = make_generator(config)
    generator.match(dataset.samples)
    return Library(
        Path(config.data) / "synthetic",
        generator,
        split.train,
        judge=None,  # boxtwin.run.label_detectors sets it where something is to be made: it may have detectors to train
        labels=_identity_of_labels(config, dataset, split, generator),
        dataset=dataset.name,
        classes=dataset.classes,
        category_ids=dataset.category_ids,
        seed=config.variations.seed,
    )


def _identity_of_labels(config: BoxtwinConfig, dataset: Dataset, split: Split, generator: Generator) -> Json:
    """All that the labels of a store follow from."""
    method = make_labels(config, dataset, generator)
    identity: dict[str, Any] = {"name": config.labels.name, **method.identity()}
    if method.asks_detectors:
        identity["detectors"] = [detector_file(cell).stem for cell in labelling_cells(config, dataset, split)]
    return identity


def make_labels(config: BoxtwinConfig, dataset: Dataset, generator: Generator) -> LabelMethod:
    """The way to label of a configuration.

    Raises:
        InputError: its settings are wrong, or it does not suit the generator.
    """
    method: type[LabelMethod] = hydra.utils.get_class(config.labels._target_)
    return method(config.labels, Variations(dataset, generator.name, generator.boxes))


def _anchors(config: BoxtwinConfig, real: Sequence[Sample]) -> Any:
    architecture = config.detector.architecture.value
    if config.detector.anchors is Anchors.published:
        scale = config.detector.image_size / 416  # the size they are published for
        return [[[w * scale, h * scale] for w, h in head] for head in PUBLISHED_ANCHORS[architecture]]
    if config.detector.anchors is Anchors.weights:
        return anchors_of(Path(str(config.detector.weights)))  # `check_settings` says if there are none
    # Real images only, and a fixed seed: every run of a split has the same anchors.
    return anchors_from_samples(
        real,
        image_size=config.detector.image_size,
        heads=len(STRIDES[architecture]),
        per_head=ANCHORS_PER_HEAD,
        rng=np.random.default_rng(0),
    )


def _hash_of(values: object) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
