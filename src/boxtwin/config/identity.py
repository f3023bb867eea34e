"""Names, hashes and version numbers of runs, and the settings that they follow from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import reduce
from operator import getitem
from typing import Any

from omegaconf import DictConfig, OmegaConf

from boxtwin.config.schema import BoxtwinConfig
from boxtwin.synthesis.constants import ADDED_SETTINGS as ADDED_GENERATOR_SETTINGS
from boxtwin.synthesis.constants import FORMER_SETTINGS
from boxtwin.tracking.run_folders import FINAL

Config = BoxtwinConfig | DictConfig  # a DictConfig where a value may still be missing

EXTRA_IMAGES = ("unlabelled", "empty")  # settings of a data set that name folders of more training images
# Settings of the machine, places, prices and waiting times: two runs that differ in these only are the same run. The
# contents of files are in the hashes of data, store and weights.
_NOT_DEFINING = {
    "dataset": (
        *("root", "images", "annotations", "speckle", "orientation", "page", "channels", "max_pixels"),
        *EXTRA_IMAGES,
    ),
    "split": ("file",),
    # It decides whether there is a metric of variations of validation images. Training and all other results are the
    # same, so that runs with and without it are one run: a finished one is not run again for that metric.
    "variations": ("validation",),
    "generator": (
        *("device", "dtype", "load", "path", "price_usd"),
        *("timeout", "max_tries", "first_wait", "longest_wait", "give_up_after"),
    ),
    "labels": ("file", "confirmed"),
    "detector": ("weights",),
    "trainer": ("precision", "accelerator", "threads", "batch_threads", "cache", "compile"),
}
# Settings added after the first release, with the value that equals the behaviour before. A setting with this value is
# left out of a run's identity, so that older runs are found again.
ADDED_SETTINGS: dict[str, Any] = {
    "labels.more": {},
    "split.train_size": None,
    "dataset.crowds": "ignore",
    "dataset.on_duplicate_box": "warn",
    **{f"generator.{name}": value for name, value in ADDED_GENERATOR_SETTINGS.items()},
    "trainer.epochs": None,
    "variations.learn_unlabelled": False,
}
# Settings of earlier versions, by their names now: an old command is refused with the new name.
RENAMED_SETTINGS = {"cell": "run", "cells": "runs"}
# Settings of earlier versions that are constants now, with the constant, by group; those of generators by class, below
# boxtwin.synthesis. They stay in the identity of a run, so that older runs are found again.
REMOVED_SETTINGS: dict[str, dict[str, Any]] = {
    "detector": {
        "box_loss": "ciou",
        "box_weight": 5.0,
        "objectness_weight": 1.0,
        "class_weight": 1.0,
        "ignore_iou": 0.5,
        "focal_gamma": 0.0,
        "weight_decay": 0.05,
        "freeze": 0,
        "anchors_per_object": "iou_above",
    },
    "trainer": {"ema_span": 0.1},
    **FORMER_SETTINGS,
    "labels": {
        "present_response": 0.6,
        "absent_response": 0.3,
        "shift_correlation": 0.5,
        "shift_gain": 0.15,
        "search_radius": 12,
        "iou": 0.5,
        "tolerance": 0.25,
        "steps": None,
    },
}
# Settings of older versions, and what happens or helps without them.
WITHOUT = {
    "trainer.coco_evaluator": "validation computes the metrics of the test, which equal those of pycocotools",
    "trainer.workers": "threads make the batches; trainer.batch_threads says how many",
    "generator.local_files_only": "the environment variable HF_HUB_OFFLINE=1 keeps diffusers offline",
}
# Modules of generators, below boxtwin.synthesis: where each is now, and where it was when runs were first recorded. A
# run's identity has the latter, so that moving a class does not make its runs other runs.
FIRST_PLACES = {
    "external.folder": "folder",
    "external.openai_api": "openai_api",
    "ddpm.background": "pixel_background",
    "ddpm.joint": "pixel_joint",
    "ddpm.layout": "pixel_layout",
    "ddpm.sketch": "pixel_sketch",
    "ddpm.whole_image": "pixel_ddpm",
    "diffusers_pipelines.image_variations": "image_variations",
    "diffusers_pipelines.img2img": "pretrained",
    # Classes that came later from another module.
    "diffusers_pipelines.img2img.TextToImage": "diffusers_pipelines.from_text.TextToImage",
    "diffusers_pipelines.img2img.Edit": "diffusers_pipelines.from_text.Edit",
}
_PLACE = "boxtwin.synthesis."
# Settings by their present names, each with the name that it had when runs were first recorded. A run's identity has
# the latter; commands and files that use it are refused with the present name.
FIRST_NAMES = {
    "labels.present_response": "labels.sure",
    "labels.absent_response": "labels.gone",
    "labels.shift_correlation": "labels.match",
    "labels.shift_gain": "labels.better",
    "labels.search_radius": "labels.search",
    "dataset.augmentation.unscaled_fraction": "dataset.augmentation.unzoomed",
    "dataset.augmentation.object_crop_fraction": "dataset.augmentation.focus",
}
# Classes of the ways to label that runs were first recorded with, when the name alone told them.
FIRST_LABELS = [
    f"boxtwin.labels.{place}" for place in ("carry.CarryLabels", "pseudo.PseudoLabels", "manual.ManualLabels")
]
# The version of what training and evaluation compute from the same settings and data. Raise it when results change.
RECIPE_VERSION = 1
# The version of the evaluation of sets with several classes: from 2 on every class is counted at its own threshold.
EVALUATION_VERSION = 2
NO_PRETRAINING = "none"
_DEFINING = ("dataset", "split", "variations", "generator", "labels", "detector", "trainer", "seed")
# What a study's table varies; the rest is the setting, which must be the same to compare.
_AXES = ("split", "variations", "generator", "labels", "seed")


def defining_values(config: Config) -> dict[str, Any]:
    """The part of a configuration that defines a run, as plain values.

    Files are left out: their contents are hashed in `boxtwin.run.build`. Without variations, generator and labels
    define nothing: there is one baseline for all generators.
    """
    values: dict[str, Any] = {}
    for key in _DEFINING:
        value = _plain(getattr(config, key))
        if isinstance(value, dict):
            value = {name: entry for name, entry in value.items() if name not in _NOT_DEFINING.get(key, ())}
        values[key] = value
    load = (_plain(config.generator) or {}).get("load") or {}
    changing = {f"load.{name}": load.get(name) for name in ("variant", "quantisation") if load.get(name)}
    values["generator"] |= changing
    values |= {group: removed | values[group] for group, removed in REMOVED_SETTINGS.items() if group in values}
    if "_target_" in values["generator"]:
        removed = removed_settings_of(values["generator"]["_target_"])
        values["generator"] |= {name: removed[name] for name in removed.keys() - _NOT_DEFINING["generator"]}
        values["generator"]["_target_"] = _moved(values["generator"]["_target_"], FIRST_PLACES)
    if values["labels"].get("_target_") in FIRST_LABELS:
        del values["labels"]["_target_"]
    for setting, first in FIRST_NAMES.items():
        *groups, name = setting.split(".")
        node = reduce(getitem, groups, values)
        node[first.rpartition(".")[2]] = node.pop(name)
    values["split"]["train_size"] = train_size(config)
    if values["trainer"].get("epochs") is not None:
        del values["trainer"]["steps"]  # they follow from the epochs and the numbers of images
    for setting, before in ADDED_SETTINGS.items():
        group, name = setting.split(".")
        if values[group].get(name, before) == before:
            values[group].pop(name, None)
    if config.variations.per_image == 0:
        values["variations"]["synthetic_fraction"] = None
    if not uses_generator(config):
        values["generator"] = values["labels"] = None
        values["variations"]["seed"] = 0
        values["variations"].pop("learn_unlabelled", None)
    if config.pretraining.name != NO_PRETRAINING:
        values["pretraining"] = pretraining = _plain(config.pretraining)
        dataset, model = pretraining.pop("dataset"), pretraining.pop("model")
        if pretraining["redraw"] == "diffusion":
            settings = {name: value for name, value in model.items() if name not in _NOT_DEFINING["generator"]}
            pretraining["model"] = short_hash(settings)  # one column of a table
        else:
            del pretraining["redraw_strength"]
        for name, before in {"redraw": "none", "fit": False}.items():
            if pretraining[name] == before:
                del pretraining[name]
        if not config.pretraining.per_image:
            left_out = _NOT_DEFINING["dataset"]
            pretraining["dataset"] = {name: entry for name, entry in dataset.items() if name not in left_out}
    return values


def uses_generator(config: Config) -> bool:
    """Whether a run trains on variations, or begins with a detector that was pre-trained on some."""
    pretraining = config.pretraining
    return bool(config.variations.per_image or (pretraining.name != NO_PRETRAINING and pretraining.per_image))


def current_name(setting: str) -> str:
    """The present name of a setting, which may be given by that of an older version."""
    return {first: now for now, first in FIRST_NAMES.items()}.get(setting, setting)


def removed_settings_of(target: str) -> dict[str, Any]:
    """Removed settings of a class of generators, with the constants in their place."""
    return REMOVED_SETTINGS.get(current_target(target).removeprefix(_PLACE), {})


def as_yaml(value: Any) -> str:
    """A value as a configuration file has it: ``null``, ``false``, ``0.5``."""
    return value if isinstance(value, str) else json.dumps(value)


def current_target(target: str) -> str:
    """The module and class of a ``_target_``, which may be of an older version."""
    return _moved(target, {first: now for now, first in FIRST_PLACES.items()})


def _moved(target: str, places: Mapping[str, str]) -> str:
    place = target.removeprefix(_PLACE)
    module, _, name = place.rpartition(".")
    if place == target or not {place, module} & places.keys():
        return target
    return f"{_PLACE}{places.get(place) or f'{places[module]}.{name}'}"


def _plain(node: Any) -> Any:
    if OmegaConf.is_config(node):
        return OmegaConf.to_container(node, resolve=True, enum_to_str=True)
    if is_dataclass(node):
        return {field.name: _plain(getattr(node, field.name)) for field in fields(node)}
    return node.name if isinstance(node, Enum) else node


def condition_of(config: Config, data: Mapping[str, Any], *, weights: str | None) -> dict[str, Any]:
    """Everything that defines a run except its seed and that of its pre-training, as recorded with the run.

    It adds to the settings ``data``, such as hashes of data and variation store, and the hash of the initial weights.
    """
    values = defining_values(config)
    del values["seed"]
    values.get("pretraining", {}).pop("seed", None)
    values["detector"] |= {"weights": weights}
    return values | dict(data)


def setting_hash(config: Config) -> str:
    """Short hash of all that a study's table does not vary: runs with the same hash can be compared."""
    return short_hash({key: value for key, value in defining_values(config).items() if key not in _AXES})


def long_hash(values: object) -> str:
    """The sha256 of plain values, hexadecimal."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def short_hash(values: object) -> str:
    """Eight hexadecimal digits of `long_hash`."""
    return long_hash(values)[:8]


def generator_name(config: Config) -> str:
    """The name of a run's generator: ``none`` without variations."""
    return str(config.generator["name"]) if uses_generator(config) else "none"


def train_size(config: Config) -> int | None:
    """How many training images of the split are used; None for all."""
    size = config.split.train_size
    return None if size is None or size == config.split.train else int(size)


def split_name(config: Config) -> str:
    """The name of the split: ``s1``, or ``s1n40`` with its first 40 training images only."""
    return config.split.name if (size := train_size(config)) is None else f"{config.split.name}n{size}"


def extra_images(config: Config) -> str:
    """The kinds of images beside the data set that a run trains on, as in ``unlabelled_empty``; may be empty."""
    return "_".join(name for name in EXTRA_IMAGES if getattr(config.dataset, name) is not None)


def run_name(config: Config) -> str:
    """Such as ``s1-x10-pixel_ddpm-yolov3_tiny-seed0``; ``s1n40-…`` with fewer training images than the split has."""
    parts = [split_name(config), f"x{config.variations.per_image}", generator_name(config), config.detector.name]
    if config.pretraining.name != NO_PRETRAINING:
        parts.insert(3, f"after_{config.pretraining.name}")
    if extra := extra_images(config):
        parts.insert(3, f"with_{extra}")
    return "-".join([*parts, f"seed{config.seed}"])


def run_folder(config: Config) -> str:
    """The name of a run's folder: that of the run, and a hash of all its settings; or that of a final detector."""
    if config.final is not None:
        return FINAL
    return f"{run_name(config)}-{short_hash(defining_values(config))}"


def flat_params(config: Config) -> dict[str, object]:
    """The flat parameters that MLflow's table shows."""
    size = train_size(config)
    return {
        "dataset": config.dataset.name,
        "split": split_name(config),
        "variations": config.variations.per_image,
        "generator": generator_name(config),
        "labels": config.labels.name if uses_generator(config) else "none",
        "detector": config.detector.name,
        "seed": config.seed,
        "steps": config.trainer.steps,
        **({} if size is None else {"train_size": size}),
        **(
            {}
            if config.pretraining.name == NO_PRETRAINING
            else {"pretraining": config.pretraining.name, "pretraining_seed": config.pretraining.seed}
        ),
        **({"extra_images": extra} if (extra := extra_images(config)) else {}),
    }
