"""Build the parts of a run from its configuration: data, split, store, data module, detector."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning.loggers import Logger

from boxtwin.config import identity
from boxtwin.config.schema import BoxtwinConfig
from boxtwin.datasets.coco import digest_of, read_coco
from boxtwin.datasets.image_cache import DecodedImages
from boxtwin.datasets.levels import Levels, measure_levels
from boxtwin.datasets.sample import Dataset, Sample
from boxtwin.datasets.simulated_sar import scenes as sar_scenes
from boxtwin.datasets.splits import SIDES, Split
from boxtwin.detector.anchors import anchors_from_samples
from boxtwin.detector.checkpoint import anchors_of, read_initial_weights, weights_digests
from boxtwin.detector.module import DetectorModule
from boxtwin.detector.network import ANCHORS_PER_HEAD, PUBLISHED_ANCHORS, STRIDES
from boxtwin.detector.nms import DETECTIONS, detection_limit
from boxtwin.detector.options import Anchors, Architecture, DetectorOptions
from boxtwin.detector.spec import NetworkSpec
from boxtwin.detector.training import Trained, fit
from boxtwin.errors import DataError, InputError
from boxtwin.hardware import batch_threads, lightning_accelerator, lightning_precision, on_gpu
from boxtwin.mixing.datamodule import StudyDataModule, check_variations
from boxtwin.mixing.options import BatchOptions, InputOptions
from boxtwin.mixing.plan import Plan
from boxtwin.run.checks import check_settings, check_whole, make_reading, with_steps
from boxtwin.run.extra_images import DETECTORS, ExtraImages, label_method, read_extra_images, scales
from boxtwin.run.generators import fit_key, make_generator, make_labels, make_redrawing
from boxtwin.run.split import load_split
from boxtwin.synthesis.store import Library

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """A run whose configuration and data are checked."""

    config: BoxtwinConfig
    dataset: Dataset
    split: Split
    library: Library | None  # None without variations
    identity: str  # sha256 of all that defines the run: settings, data, split, store, initial weights
    earlier_identities: tuple[str, ...]  # of the same run in older versions
    condition: dict[str, Any]  # all that defines the run except its seed, as plain values
    detector_identities: tuple[str, ...]  # sha256 of all that its detector follows from, as in this and older versions
    accelerator: str  # the device, as Lightning calls it
    precision: str  # the number format of the training, as Lightning calls it
    extra: ExtraImages  # real images beside the split

    @property
    def store(self) -> Library:
        """The store of a run with variations."""
        assert self.library is not None, "a run without variations has no store"
        return self.library

    @property
    def sources(self) -> tuple[Sample, ...]:
        """The real images that get variations."""
        return (*self.split.train, *(self.split.val if self.config.variations.validation else ()))

    @property
    def per_image(self) -> int:
        """Variations of each source."""
        return self.config.variations.per_image

    @property
    def steps(self) -> int:
        """Optimiser steps of its training."""
        assert self.config.trainer.steps is not None, "epochs have been resolved"
        return self.config.trainer.steps

    @property
    def wanted(self) -> int:
        """Variations of all sources."""
        return len(self.sources) * self.per_image

    @property
    def identities(self) -> tuple[str, ...]:
        """What the file of its detector may say to be of: the run in any version, or the same training for labels."""
        return (self.identity, *self.earlier_identities, *self.detector_identities)

    @property
    def origin(self) -> dict[str, str]:
        """What the file of the run's detector says of its training."""
        return {"study": self.config.study, "run": identity.run_name(self.config), "identity": self.identity}

    @cached_property
    def images(self) -> DecodedImages:
        """Decoded images, those of the split added."""
        images = DecodedImages(Path(self.config.data) / "cache" if self.config.trainer.cache else None)
        images.add(self.dataset.name, [*self.split.train, *self.split.val, *self.split.test])
        return images

    @cached_property
    def levels(self) -> Levels:
        """The pixel values that mean 0 and 1."""
        measured = measure_levels(self.split.train, self.images.read)
        if measured.levels != Levels():
            log.info("16 bit images: black %d, full scale %d", measured.levels.black, measured.levels.full_scale)
        for remark in measured.remarks:
            log.warning("%s: %s", self.dataset.name, remark)
        return measured.levels


def prepare(config: BoxtwinConfig) -> Prepared:
    """Load and check everything that the configuration names; raises `InputError` if data or settings are wrong."""
    check_settings(config)
    dataset = load_dataset(config)
    split = load_split(config, dataset)
    return prepared_from(config, dataset, split, read_extra_images(config, dataset, split))


def labelling_runs(config: BoxtwinConfig, dataset: Dataset, split: Split) -> list[Prepared]:
    """The runs on real labelled images alone, with seeds from 0, whose detectors label other images."""
    if not split.val:  # of a final detector: it leaves some training images out
        split = split.with_validation()
    # Runs with and without pre-training train on the same variations.
    pretraining = replace(config.pretraining, name=identity.NO_PRETRAINING)
    labelled = replace(config.dataset, unlabelled=None, empty=None)
    variations = replace(config.variations, per_image=0)
    config = replace(config, dataset=labelled, variations=variations, pretraining=pretraining)
    if config.trainer.steps == 0 and config.detector.weights is None:
        raise InputError(
            "detectors that label images learn from the real images alone, and with trainer.steps=0 and without "
            "detector.weights they would be random; set more steps, or weights"
        )
    seeds = range(config.labels.detectors)
    return [prepared_from(replace(config, seed=seed), dataset, split) for seed in seeds]


def runs_for_unlabelled(config: BoxtwinConfig, dataset: Dataset, split: Split) -> list[Prepared]:
    """The runs whose detectors label unlabelled images."""
    return labelling_runs(replace(config, labels=replace(config.labels, detectors=DETECTORS)), dataset, split)


def unlabelled_key(config: BoxtwinConfig, dataset: Dataset, split: Split, more: ExtraImages) -> str:
    """A hash of unlabelled images and of all that their labels follow from."""
    detectors = [run.detector_identities[0] for run in runs_for_unlabelled(config, dataset, split)]
    files = [(sample.name, sample.sha256) for sample in more.unlabelled]
    return identity.long_hash([files, detectors, label_method(dataset).identity(), *scales(more.unlabelled)])[:12]


def detector_file(prepared: Prepared) -> Path:
    """Where labelling keeps the detector of a run without variations; under an earlier name if that file exists."""
    files = [Path(prepared.config.data) / "detectors" / f"{name}.safetensors" for name in prepared.detector_identities]
    return next((file for file in files if file.exists()), files[0])


def prepared_from(
    config: BoxtwinConfig,
    dataset: Dataset,
    split: Split,
    more: ExtraImages = ExtraImages(),  # noqa: B008 (frozen)
    library: Library | None = None,
) -> Prepared:
    """A run on data that is read and checked; the store of its variations follows from the settings, or is given."""
    config = with_steps(config, len(split.train), more.number)
    if library is None and config.variations.per_image:
        library = _library(config, dataset, split, more)
    weights = config.detector.weights
    digests: tuple[str | None, ...] = (None,) if weights is None else weights_digests(Path(weights))
    # What older versions did not have is left out where it changes nothing, so that their runs are found.
    extra: dict[str, Any] = {"store": library.key if library else None, **more.values}
    if config.pretraining.name != identity.NO_PRETRAINING:
        extra["pretraining_images"] = _pretraining_data(config, dataset, split, more)
    if identity.RECIPE_VERSION > 1:
        extra["recipe"] = identity.RECIPE_VERSION
    if any(sample.bits > 8 for sample in split.train):
        extra["levels"] = "percentiles"
    if (limit := detection_limit(split.train)) != DETECTIONS:
        extra["max_detections"] = limit
    if any(sample.crowd.any() for sample in dataset.samples):
        extra["crowds"] = "ignored"  # older versions learnt them as background
    if config.detector.anchors is Anchors.published and config.detector.architecture is Architecture.yolov3_tiny:
        extra["anchors"] = "1,2,3"  # of its finer head
    # Older versions took 1 channel, as these training images have.
    colour = {"channels": 3} if dataset.channels == 3 and not any(sample.colour for sample in split.train) else {}
    defining: dict[str, Any] = {"dataset": dataset.digest, "split": split.digest, **colour}
    defining["values"] = identity.defining_values(config)

    def hashes() -> tuple[str, ...]:
        """Of this version and of older ones."""
        return tuple(dict.fromkeys(identity.long_hash({**defining, **extra, "weights": each}) for each in digests))

    detectors = hashes()
    if len(dataset.classes) > 1:
        extra["evaluation"] = identity.EVALUATION_VERSION
    current, *earlier = hashes()
    # Images and labels of each side by themselves: training images may be added, and the test stays the same.
    sides = {side: digest_of(split.side(side), dataset.classes) for side in SIDES}
    data = {"data": sides, "recipe": identity.RECIPE_VERSION, **colour, **extra}
    condition = identity.condition_of(config, data, weights=digests[0])
    accelerator = lightning_accelerator(config.trainer.accelerator)
    precision = lightning_precision(config.trainer.precision.value, accelerator)
    return Prepared(
        config, dataset, split, library, current, tuple(earlier), condition, detectors, accelerator, precision, more
    )


def _pretraining_data(config: BoxtwinConfig, dataset: Dataset, split: Split, more: ExtraImages) -> str:
    """The images of a pre-training: the key of a store, the hash of a data set, or the version of the simulation.

    Simulated images follow from settings, which are in the identity of a run; they need not be made to know it. What
    changed them follows from training images too.
    """
    if config.pretraining.per_image:
        return _library(config, dataset, split, more).key
    other = config.pretraining.dataset
    if not other.build:
        own = replace(config, dataset=other, split=replace(config.split, group_by=other.group_by))
        return load_dataset(own).digest
    redrawing, fitted = make_redrawing(config, split.train), fit_key(config, split.train)
    changes = {"fitted": fitted, "changed": redrawing.key if redrawing else None}
    named = [f"{how} {key}" for how, key in changes.items() if key]
    return ", ".join([f"simulation {sar_scenes.SIMULATION}", *named])


def load_dataset(config: BoxtwinConfig) -> Dataset:
    """Read the data set of a configuration; a simulated one is built if it is missing."""
    node, root = config.dataset, Path(config.dataset.root)
    if node.build is not None:
        sar_scenes.build(root, **vars(node.build))
    try:
        dataset = read_coco(
            name=node.name,
            images=root / node.images,
            annotations=root / node.annotations,
            group_by=config.split.group_by,
            on_bad_box=node.on_bad_box,
            reading=make_reading(config),
            crowds=node.crowds,
            on_duplicate_box=node.on_duplicate_box,
        )
    except InputError as error:
        raise DataError(str(error)) from None
    for remark in dataset.remarks:
        log.warning("%s: %s", dataset.name, remark)
    return dataset


def make_data(
    prepared: Prepared,
    plan: Plan,
    pretraining_levels: Levels = Levels(),  # noqa: B008 (frozen)
) -> StudyDataModule:
    """The data module of a run; images of its pre-training have pixel values of their own that mean 0 and 1."""
    config, trainer = prepared.config, prepared.config.trainer
    if plan.extra:
        prepared.images.add(prepared.dataset.name, plan.extra)
    if prepared.library:
        variations = [sample for sample in (*plan.train, *plan.val_synthetic) if sample.lineage]
        prepared.images.add(prepared.library.folder.name, variations)
        check_variations(variations, prepared.images, prepared.split.train[0].bits)
    if plan.pretraining:
        prepared.images.add(config.pretraining.dataset.name, plan.pretraining)
    size = config.detector.image_size
    return StudyDataModule(
        plan,
        InputOptions(
            image_size=size,
            crop=min(config.detector.crop or size, size),
            tile=config.detector.tile,
            channels=prepared.dataset.channels,
            pretraining_size=config.pretraining.dataset.image_size,
        ),
        BatchOptions(
            steps=prepared.steps,
            steps_per_epoch=prepared.steps // trainer.validations,
            batch_size=trainer.batch_size,
            seed=config.seed,
            synthetic_fraction=config.variations.synthetic_fraction,
            pretraining_share=config.pretraining.share,
            pretraining_share_falls=config.pretraining.share_falls,
            threads=trainer.batch_threads or batch_threads(prepared.accelerator, (config.jobs or 1) * trainer.devices),
            pin_memory=on_gpu(prepared.accelerator),
        ),
        config.dataset.augmentation,
        prepared.levels,
        prepared.images,
        pretraining_levels,
    )


def make_detector(prepared: Prepared, pretrained: Path | None = None) -> DetectorModule:
    """The untrained detector of a run; its initial weights depend on the seed and the weights file only.

    Weights and anchors of a ``pretrained`` detector replace those that the settings name.
    """
    detector = prepared.config.detector
    if pretrained is not None:
        detector = replace(detector, weights=str(pretrained), anchors=Anchors.weights)
    # Initial weights are drawn from torch's global generator; the fork restores its state.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(prepared.config.seed)
        module = DetectorModule(
            NetworkSpec(
                architecture=detector.architecture.value,
                classes=prepared.dataset.classes,
                category_ids=prepared.dataset.category_ids,
                image_size=detector.image_size,
                tile=detector.tile,
                channels=prepared.dataset.channels,
                white=prepared.levels.full_scale,
                black=prepared.levels.black,
                reading=make_reading(prepared.config).plain(),
                nms_iou=detector.nms_iou,
                max_detections=detection_limit(prepared.split.train),
            ),
            _anchors(detector, prepared.split.train),
            loss=detector,
            optimizer=detector,
            steps=prepared.steps,
        )
    if detector.weights is not None:
        log.info("%s: %s", detector.weights, report := read_initial_weights(module, Path(detector.weights)))
        check_whole(prepared.steps, Path(detector.weights), report)
    return module


def train(
    prepared: Prepared,
    data: StudyDataModule,
    module: DetectorModule,
    checkpoints: Path,
    title: str,
    logger: Logger | None,
) -> Trained:
    """Train a detector, or continue from ``checkpoints``; without steps the module stays as it is."""
    options = prepared.config.trainer
    if not prepared.steps:
        return Trained(0.0, (), module)
    return fit(
        module,
        data,
        options,
        log_every=max(1, min(50, prepared.steps // options.validations)),
        accelerator=prepared.accelerator,
        precision=prepared.precision,
        logger=logger,
        checkpoints=checkpoints,
        title=title,
        identity=prepared.identity,
    )


def _library(config: BoxtwinConfig, dataset: Dataset, split: Split, more: ExtraImages) -> Library:
    generator = make_generator(config)
    generator.match(dataset.samples)
    method = make_labels(config, dataset, generator)
    read = {} if generator.learns else config.dataset.reading_identity()  # what is learnt from tells stores apart
    labels: dict[str, Any] = {"name": config.labels.name, **method.identity(), **read}
    learns = generator.learns and config.variations.learn_unlabelled and more.unlabelled
    if method.asks_detectors:
        labels["detectors"] = [detector_file(prepared).stem for prepared in labelling_runs(config, dataset, split)]
    return Library(
        Path(config.data) / "synthetic",
        generator,
        split.train,
        judge=None,  # set by boxtwin.run.label_detectors, which may have to train detectors
        labels=labels,
        dataset=dataset,
        seed=config.variations.seed,
        unlabelled=unlabelled_key(config, dataset, split, more) if learns else None,
    )


def _anchors(detector: DetectorOptions, real: Sequence[Sample]) -> Any:
    architecture = detector.architecture.value
    if detector.anchors is Anchors.published:
        scale = detector.image_size / 416  # the size they are published for
        return [[[w * scale, h * scale] for w, h in head] for head in PUBLISHED_ANCHORS[architecture]]
    if detector.anchors is Anchors.weights:
        return anchors_of(Path(str(detector.weights)))  # `check_settings` has found the file
    # Real images and a fixed seed: every run of a split has the same anchors.
    return anchors_from_samples(
        real,
        image_size=detector.image_size,
        heads=len(STRIDES[architecture]),
        per_head=ANCHORS_PER_HEAD,
        rng=np.random.default_rng(0),
    )
