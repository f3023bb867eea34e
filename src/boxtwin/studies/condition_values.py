"""What defines the condition of a run, and how conditions are named: by the settings in which they differ.

A condition is everything that defines a run except its seed, as flat settings such as ``detector.learning_rate``. They
fall into three parts. ``setup`` is what all conditions that are compared with each other must share, the test images
and their labels among them. ``split`` is how many and which real images are trained on. ``variations`` is what is
mixed in. A comparison asks about one of the last two; whatever else differs keeps two conditions apart.
"""

from __future__ import annotations

import json
import shlex
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, Literal

from boxtwin.config.identity import NO_PRETRAINING

Part = Literal["setup", "split", "variations"]
Values = Mapping[str, str]

COUNT = "variations.per_image"  # has a column of its own
PRETRAINING = "pretraining.name"
DEVICE = "device"  # in a table where a condition has runs of one seed on several kinds
EPOCHS = "trainer.epochs"  # conditions that share them may differ in their steps
EXTRA = ("unlabelled_images", "empty_images")  # number and hash of images beside the data set
IN_WORDS = ("pretraining", *EXTRA, "trainer.steps")  # settings that `in_words` knows, as they are named in a row
REDRAW, FIT = "pretraining.redraw", "pretraining.fit"
OF_REDRAW = ("pretraining.redraw_strength", "pretraining.model", "pretraining_images")  # follow from it, or refine it
OF_TRAINING_IMAGES = ("data.train", "max_detections", "channels")  # follow from which images are trained on
SPLIT_NAMES = ("dataset.name", "split.name", "split.train_size")
NAMES = ("split.name", "split.train_size", "generator.name", COUNT)  # shown in any case
DIGITS = 8


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested plain values as ``{"detector.learning_rate": "0.001"}``, written as Hydra reads them."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value)
    return flat


def part_of(key: str) -> Part:
    """The part of a condition that a setting belongs to."""
    if key in OF_TRAINING_IMAGES or key.startswith("split."):
        return "split"
    return "variations" if key == "store" or key.split(".")[0] in ("variations", "generator", "labels") else "setup"


def part(values: Values, name: Part) -> dict[str, str]:
    """The settings of one part."""
    return {key: value for key, value in values.items() if part_of(key) == name}


def shown(key: str, value: str | None) -> str:
    """A value as people read it: hashes cut short, ``null`` where a setting is not there."""
    if value is None:
        return "null"
    return value[:DIGITS] if (_is_hash(key) or key == "store") and len(value) > 2 * DIGITS else value


def differences(conditions: Sequence[Values], leave_out: Iterable[str] = ()) -> list[dict[str, str]]:
    """For each condition, the settings in which it differs from others, with its own values.

    Where the options of a group differ (``detector.name``), the group stands for its settings (``detector``); these
    are told apart among the conditions of the same option only.
    """
    varied: list[dict[str, str]] = [{} for _ in conditions]
    keys, left_out = sorted({key for values in conditions for key in values}), set(leave_out)
    one = [""] * len(conditions)
    options: dict[str, Sequence[Hashable]] = {}
    for group in sorted({key.removesuffix(".name") for key in keys if key.endswith(".name")}):
        names = [values.get(f"{group}.name") for values in conditions]
        options[group] = [name or "" for name in names]
        # A group within another (pretraining.dataset) is told apart among the conditions of one option of that.
        for places in places_of(options[group.split(".")[0]] if "." in group else one):
            if len({names[place] for place in places}) > 1 and f"{group}.name" not in left_out:
                for place in places:
                    varied[place][group] = shown(group, names[place])
    # Which images are in a data set follows from which data set it is, and those trained on from the split too.
    options["data"] = options.get("dataset", one)
    changed = [tuple(values.get(key) for key in (PRETRAINING, REDRAW, FIT)) for values in conditions]
    trained_on = [tuple(values.get(key) for key in SPLIT_NAMES) for values in conditions]
    for key in keys:
        group = key.split(".")[0]
        if key in left_out or key == f"{group}.name":
            continue
        among = options.get(group, one)
        if key in OF_REDRAW:
            among = changed
        elif key in OF_TRAINING_IMAGES:
            among = trained_on
        for places in places_of(among):
            if len({conditions[place].get(key) for place in places}) > 1:
                for place in places:
                    varied[place][key] = shown(key, conditions[place].get(key))
    return varied


def places_of(keys: Sequence[Hashable]) -> list[list[int]]:
    """The places of each key that is not None."""
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for place, key in enumerate(keys):
        groups[key].append(place)
    return [places for key, places in groups.items() if key is not None]


def as_overrides(values: Mapping[str, str]) -> str:
    """``labels=pseudo variations.synthetic_fraction=0.25``: settings as on a command line."""
    return shlex.join(f"{key}={value}" for key, value in values.items())


def in_words(key: str, value: str) -> str:
    """``pre-training on sar_scenes``, ``1314 steps``, ``70 unlabelled images``, ``no empty images``."""
    if key == "pretraining":
        return "no pre-training" if value == NO_PRETRAINING else f"pre-training on {value}"
    if key == "trainer.steps":
        return f"{value} steps"
    return f"{'no' if value == 'null' else value} {key.replace('_', ' ')}"


def not_known_to_all(conditions: Sequence[Values]) -> set[str]:
    """Hashes that some of the runs, of older versions, did not record."""
    keys = {key for values in conditions for key in values if _is_hash(key)}
    return {key for key in keys if any(key not in values for values in conditions)}


def is_hash_of_data(key: str) -> bool:
    """Whether a setting is a hash of images and labels."""
    return key == "data" or key.startswith("data.")


def _is_hash(key: str) -> bool:
    """Whether a setting is a hash of data or weights, of which the first digits tell enough."""
    return key == "detector.weights" or is_hash_of_data(key)
