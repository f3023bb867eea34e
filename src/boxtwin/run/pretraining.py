"""Train a detector on other images first; training on the real images of a study starts from it.

A pre-trained detector is trained once and shared by all runs that need it. It is kept in ``data/detectors`` by the
identity of its training, which is a run of its own: on another data set, or on the variations of the study's split.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from boxtwin.config.identity import NO_PRETRAINING
from boxtwin.config.schema import DatasetConfig
from boxtwin.datasets.coco_json import load_json
from boxtwin.datasets.options import SplitOptions
from boxtwin.datasets.problems import some
from boxtwin.datasets.sample import Dataset, Sample
from boxtwin.datasets.simulated_sar import scenes as sar_scenes
from boxtwin.datasets.splits import Split, scenes_of
from boxtwin.detector.checkpoint import read_detector
from boxtwin.errors import InputError
from boxtwin.evaluation.coco_metrics import coco_by_class
from boxtwin.evaluation.matching import match_detections
from boxtwin.files import write_bytes_atomically
from boxtwin.run.build import Prepared, load_dataset, prepared_from
from boxtwin.run.generators import fit_key, make_redrawing
from boxtwin.run.label_detectors import detect_all
from boxtwin.synthesis.sensor import fit_to
from boxtwin.synthesis.store import MODELS

HELD_OUT = 0.05  # share of the other images on which checkpoints are chosen; as many measure the result


def pretraining_run(prepared: Prepared) -> Prepared | None:
    """The training that comes before that of a run, as a run of its own; None where there is none.

    A simulated data set is built first if it is missing.

    Raises:
        InputError: the other data set cannot be read, has other classes, or shows validation or test images of the run.
    """
    config, options = prepared.config, prepared.config.pretraining
    if options.name == NO_PRETRAINING:
        return None
    trainer = replace(config.trainer, steps=options.steps, epochs=None, batch_size=options.batch_size)
    if options.per_image:
        made = variations_run(prepared)
        config = replace(made.config, trainer=trainer, seed=options.seed)
        return prepared_from(config, prepared.dataset, prepared.split, library=made.store)
    plain, alone = replace(options, name=NO_PRETRAINING), replace(config.variations, per_image=0)
    labelled = replace(config.dataset, unlabelled=None, empty=None)
    config = replace(config, dataset=labelled, trainer=trainer, seed=options.seed, variations=alone, pretraining=plain)
    # The numbers and seed of the study's split are no part of its identity: all splits share one pre-training.
    no_numbers = SplitOptions("pretraining", train=0, val=0, test=0, train_pool=0, group_by=options.dataset.group_by)
    side, detector = options.dataset.image_size, config.detector
    config = replace(
        config,
        dataset=options.dataset,
        split=no_numbers,
        detector=replace(detector, image_size=side, crop=min(detector.crop or side, side), tile=None),
    )
    dataset = in_order_of(load_dataset(replace(config, dataset=_changed(prepared))), prepared.dataset.classes)
    # Simulated scenes are none of the study's, whatever their names.
    group_by = None if options.simulates else prepared.config.split.group_by
    check_other_images(dataset, prepared.dataset, prepared.split, group_by)
    return prepared_from(config, dataset, hold_out(dataset))


def _changed(prepared: Prepared) -> DatasetConfig:
    """The data set of a run's pre-training, made and changed as the settings say if it is simulated."""
    node, config = prepared.config.pretraining.dataset, prepared.config
    training = prepared.split.train
    redrawing, fitted = make_redrawing(config, training), fit_key(config, training)
    if redrawing is None and fitted is None:
        return node
    assert node.build is not None
    root = Path(f"{node.root}-{fitted}" if fitted else node.root)

    def simulate() -> Path:
        fit = fit_to(training, config.detector.image_size) if fitted else None
        return sar_scenes.build(root, **vars(node.build), fit=fit)

    models = Path(config.data) / "synthetic" / MODELS
    return replace(node, root=str(redrawing.make(root, simulate, models) if redrawing else simulate()), build=None)


def hold_out(dataset: Dataset) -> Split:
    """Divide a data set by scenes: `HELD_OUT` for validation, as much for the test, the rest for training.

    Each side has an object, without which no checkpoint is better than another.

    Raises:
        InputError: there are fewer than three scenes with objects.
    """
    groups: dict[str, list[Sample]] = {}
    for sample in dataset.samples:
        groups.setdefault(sample.group or sample.name, []).append(sample)
    names = [str(name) for name in np.random.default_rng(0).permutation(sorted(groups))]
    shown = [name for name in names if _has_objects(groups[name])]
    if len(shown) < 3:
        what = f"{len(groups)} scenes, {len(shown)} of them with objects"
        raise InputError(f"pretraining: {dataset.name} has {what}; training, validation and test need one each")
    least = max(1, round(len(dataset.samples) * HELD_OUT))

    def dealt(val: list[Sample], test: list[Sample], train: list[Sample], others: list[str]) -> list[list[Sample]]:
        for name in others:
            (val if len(val) < least else test if len(test) < least else train).extend(groups[name])
        return [train, val, test]

    sides = dealt([], [], [], names)
    if not all(map(_has_objects, sides)):  # objects are rare
        val, test, train = (list(groups[name]) for name in shown[:3])
        sides = dealt(val, test, train, [name for name in names if name not in shown[:3]])
    return Split("pretraining", *map(tuple, sides))


def _has_objects(samples: Sequence[Sample]) -> bool:
    return any(len(sample.object_boxes) for sample in samples)


def in_order_of(other: Dataset, classes: tuple[str, ...]) -> Dataset:
    """A data set with its classes in another order, if it has the same ones; else as it is."""
    if other.classes == classes or sorted(other.classes) != sorted(classes):
        return other
    places = np.array([classes.index(name) for name in other.classes])
    samples = tuple(replace(sample, labels=places[sample.labels]) for sample in other.samples)
    ids = tuple(other.category_ids[other.classes.index(name)] for name in classes)
    return replace(other, classes=classes, category_ids=ids, samples=samples)


def check_other_images(other: Dataset, dataset: Dataset, split: Split, group_by: str | None) -> None:
    """Check that a detector may see another data set before the images of a split.

    ``group_by`` finds a scene of the split in a file name; None: scenes are not told by names.

    Raises:
        InputError: its classes differ (two single classes may have different names), or one of its images equals,
            nearly equals, or shows the scene of a validation or test image.
    """
    if other.classes != dataset.classes and len(other.classes) + len(dataset.classes) > 2:
        raise InputError(
            f"pretraining: {other.name} has the classes {', '.join(other.classes)}, and {dataset.name} has "
            f"{', '.join(dataset.classes)}; give the categories of {other.name} the same names in its annotation file"
        )
    if names := split.held_out_among(other.samples):
        raise InputError(
            f"pretraining: {other.name} holds equal or nearly equal copies of {len(names)} validation or test images "
            f"of split {split.name}: {some(names)}; remove the copies from its annotation file"
        )
    held_out = scenes_of((*split.val, *split.test), group_by)
    scenes = {sample.name: re.search(group_by, sample.name) for sample in other.samples} if group_by else {}
    if shared := [name for name, scene in scenes.items() if scene and scene[1] in held_out]:
        raise InputError(
            f"pretraining: by their names, {len(shared)} images of {other.name} show scenes of validation or test "
            f"images of split {split.name}, such as {some(shared)}; remove them from its annotation file (or, "
            "if they show others, give them other names)"
        )


def variations_run(prepared: Prepared) -> Prepared:
    """The run that makes and labels the variations of a pre-training: with the trainer of the run itself.

    Detectors that label them are those of the run, so that variations made by generate.py are found.
    """
    config, options = prepared.config, prepared.config.pretraining
    plain = replace(options, name=NO_PRETRAINING, per_image=0)
    alone = replace(config.variations, per_image=options.per_image, synthetic_fraction=1.0, validation=False)
    labelled = replace(config.dataset, unlabelled=None, empty=None)
    config = replace(config, dataset=labelled, variations=alone, pretraining=plain)
    return prepared_from(config, prepared.dataset, prepared.split, prepared.extra)  # for variations.learn_unlabelled


def pretraining_metrics(run: Prepared, file: Path) -> dict[str, float]:
    """AP and AP50 of a pre-trained detector, and the seconds of its training; measured once and kept beside it.

    They are measured on the test images of the other data set, or, after variations, on the real validation images.

    Args:
        run: of `pretraining_run`.
        file: its detector.
    """
    kept = file.with_suffix(".json")
    if not kept.exists():
        trained = read_detector(file)
        samples = run.split.val if run.library else run.split.test
        metrics, seconds = {"map": math.nan, "map_50": math.nan}, float(trained.origin.get("seconds", "nan"))
        if samples:  # a final detector has no validation images
            detections = detect_all(run, trained, samples)
            metrics, _ = coco_by_class(match_detections(samples, detections, len(run.dataset.classes)))
        measured = {"map": metrics["map"], "map_50": metrics["map_50"], "seconds": seconds}
        finite = {f"pretraining/{name}": value for name, value in measured.items() if math.isfinite(value)}
        write_bytes_atomically(kept, json.dumps(finite).encode())
    return dict(load_json(kept, damaged="remove the file, and it is made again"))
