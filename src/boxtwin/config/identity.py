"""What defines a run, and what it is called: names, hashes and version numbers."""

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

Config = BoxtwinConfig | DictConfig  # as Hydra composed it where a value may still be missing

# What the machine decides, or where things lie: two runs that differ in these only are the same cell.
_NOT_DEFINING = {
    # How image files are read is in the hash of the data, where it makes a difference.
    "dataset": ("root", "images", "annotations", "speckle", "orientation", "page", "channels", "max_pixels"),
    "split": ("file",),
    # What a folder holds, and which labels a person confirmed, is in the key of the store; what a call costs, and how
    # long it may take, is in no pixel.
    "generator": (
        *("device", "dtype", "path", "price_usd"),
        *("timeout", "max_tries", "first_wait", "longest_wait", "give_up_after"),
    ),
    "labels": ("file", "confirmed"),
    "detector": ("weights",),
    "trainer": ("precision", "accelerator", "threads", "workers", "cache", "compile"),
}
# Settings that came after the first release, each with the value that has the meaning runs had before there was such a
# setting. A setting is left out of a run's identity while it has this value, so that older runs are found again.
ADDED_SETTINGS: dict[str, Any] = {
    "labels.more": {},
    "split.train_size": None,
    "dataset.crowds": "ignore",
    "dataset.on_duplicate_box": "warn",
}
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
    },
    "trainer": {"ema_span": 0.1},
}
# Classes of generators, below boxtwin.synthesis: where each is now, and where it was when runs were first recorded. A
# run's identity has the latter, so that moving a class does not make its runs other runs.
FIRST_PLACES = {
    "external.folder.Folder": "folder.Folder",
    "diffusers_pipelines.img2img.Img2Img": "pretrained.Img2Img",
    "diffusers_pipelines.img2img.InpaintPretrained": "pretrained.InpaintPretrained",
    "external.openai_api.OpenAIEdit": "openai_api.OpenAIEdit",
    "external.openai_api.OpenAIVariations": "openai_api.OpenAIVariations",
    "ddpm.background.PixelBackground": "pixel_background.PixelBackground",
    "ddpm.whole_image.PixelDDPM": "pixel_ddpm.PixelDDPM",
    "ddpm.joint.PixelJoint": "pixel_joint.PixelJoint",
    "ddpm.layout.PixelLayout": "pixel_layout.PixelLayout",
    "ddpm.sketch.PixelSketch": "pixel_sketch.PixelSketch",
    "diffusers_pipelines.image_variations.SDVariations": "image_variations.SDVariations",
    "diffusers_pipelines.image_variations.UnCLIP": "image_variations.UnCLIP",
}
_PLACE = "boxtwin.synthesis."
# Settings by their present names, each with the name that it had when runs were first recorded. A run's identity has
# the latter; commands and files that use it are refused with the present name.
FIRST_NAMES = {
    "dataset.augmentation.unscaled_fraction": "dataset.augmentation.unzoomed",
    "dataset.augmentation.object_crop_fraction": "dataset.augmentation.focus",
}
# Classes of the ways to label that runs were first recorded with, when the name alone told them.
FIRST_LABELS = (
    "boxtwin.labels.carry.CarryLabels",
    "boxtwin.labels.pseudo.PseudoLabels",
    "boxtwin.labels.manual.ManualLabels",
)
# The version of what training and evaluation compute from the same settings and data. Raise it when results change.
RECIPE_VERSION = 1
# The version of how sets of several classes are evaluated: from 2 on every class is counted at its own threshold.
EVALUATION_VERSION = 2
_DEFINING = ("dataset", "split", "variations", "generator", "labels", "detector", "trainer", "seed")
# What the axes of a study's table vary; the rest is the setting, which must be the same to compare.
_AXES = ("split", "variations", "generator", "seed")


def defining_values(config: Config) -> dict[str, Any]:
    """The part of a configuration that defines a run, as plain values.

    Files are left out here and come in by their content (`boxtwin.commands.train`). Without variations, generator and
    labels define nothing: there is one baseline for all generators.
    """
    values: dict[str, Any] = {}
    for key in _DEFINING:
        value = _plain(getattr(config, key))
        if isinstance(value, dict):
            value = {name: entry for name, entry in value.items() if name not in _NOT_DEFINING.get(key, ())}
        values[key] = value
    values |= {group: removed | values[group] for group, removed in REMOVED_SETTINGS.items() if group in values}
    if "_target_" in values["generator"]:
        values["generator"] = removed_settings_of(values["generator"]["_target_"]) | values["generator"]
        values["generator"]["_target_"] = _moved(values["generator"]["_target_"], FIRST_PLACES)
    if values["labels"].get("_target_") in FIRST_LABELS:
        del values["labels"]["_target_"]
    for setting, first in FIRST_NAMES.items():
        *groups, name = setting.split(".")
        node = reduce(getitem, groups, values)
        node[first.rpartition(".")[2]] = node.pop(name)
    values["split"]["train_size"] = train_size(config)
    for setting, before in ADDED_SETTINGS.items():
        *groups, name = setting.split(".")
        node = values
        for group in groups:
            node = node[group] if isinstance(node, dict) and isinstance(node.get(group), dict) else {}
        if name in node and node[name] == before:
            del node[name]
    if config.variations.per_image == 0:
        values["generator"] = values["labels"] = None
        # What variations there are not would be drawn with makes no difference either; values as they are by default.
        values["variations"] |= {"synthetic_fraction": None, "seed": 0}
    return values


def removed_settings_of(target: str) -> dict[str, Any]:
    """The settings that the generator of this class took in earlier versions, and the constants in their place."""
    return REMOVED_SETTINGS.get(place_now(target).removeprefix(_PLACE), {})


def place_now(target: str) -> str:
    """Where the class is that ``_target_`` names, in files of older versions too."""
    return _moved(target, {first: now for now, first in FIRST_PLACES.items()})


def _moved(target: str, places: Mapping[str, str]) -> str:
    place = places.get(target.removeprefix(_PLACE)) if target.startswith(_PLACE) else None
    return target if place is None else _PLACE + place


def _plain(node: Any) -> Any:
    if OmegaConf.is_config(node):
        return OmegaConf.to_container(node, resolve=True, enum_to_str=True)
    if is_dataclass(node):
        return {field.name: _plain(getattr(node, field.name)) for field in fields(node)}
    return node.name if isinstance(node, Enum) else node


def condition_of(config: Config, data: Mapping[str, Any], *, weights: str | None) -> dict[str, Any]:
    """Everything that defines a run except its seed, as it is recorded with the run.

    Args:
        config: of the run.
        data: what defines it beside the settings, such as hashes of its data and of the store of its variations.
        weights: hash of the initial weights; None where they are random.
    """
    values = {key: value for key, value in defining_values(config).items() if key != "seed"}
    values["detector"] = values["detector"] | {"weights": weights}
    return values | dict(data)


def setting_hash(config: Config) -> str:
    """Short hash of all that a study's table does not vary: runs can be compared when it is the same."""
    values = {key: value for key, value in defining_values(config).items() if key not in (*_AXES, "labels")}
    return short_hash(values)


def short_hash(values: object) -> str:
    """Eight hexadecimal digits of the sha256 of plain values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]


def generator_name(config: Config) -> str:
    """The generator a run really uses: ``none`` without variations."""
    return str(config.generator["name"]) if config.variations.per_image else "none"


def train_size(config: Config) -> int | None:
    """How many training images of the split are used; None where all are, however that was said."""
    size = config.split.train_size
    return None if size is None or size == config.split.train else int(size)


def split_name(config: Config) -> str:
    """The split as its runs are filed under: ``s1``, or ``s1n40`` with its first 40 training images only."""
    size = train_size(config)
    return str(config.split.name) if size is None else f"{config.split.name}n{size}"


def cell_name(config: Config) -> str:
    """Such as ``s1-x10-pixel_ddpm-yolov3_tiny-seed0``; ``s1n40-…`` with fewer training images than the split has."""
    parts = (split_name(config), f"x{config.variations.per_image}", generator_name(config), config.detector.name)
    return "-".join((*parts, f"seed{config.seed}"))


def run_folder(config: Config) -> str:
    """The name of a run's folder: that of the run, and a hash of all its settings."""
    return f"{cell_name(config)}-{short_hash(defining_values(config))}"


def flat_params(config: Config) -> dict[str, object]:
    """The few flat parameters that MLflow's table shows."""
    return {
        "dataset": config.dataset.name,
        "split": split_name(config),
        "variations": config.variations.per_image,
        "generator": generator_name(config),
        "labels": config.labels.name if config.variations.per_image else "none",
        "detector": config.detector.name,
        "seed": config.seed,
        "steps": config.trainer.steps,
        **({} if (size := train_size(config)) is None else {"train_size": size}),
    }
