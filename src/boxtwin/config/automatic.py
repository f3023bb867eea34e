"""Resolve the value ``auto`` of settings on the command line, before Hydra reads it.

``auto`` becomes what was best for as many real images in trials (docs/pretraining.md). It is resolved once for a
command, from its data set and its smallest split, so that all runs of a sweep get the same value, and the runs record
that value. What a command sets otherwise stays as it is.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from boxtwin.config.compose import unknown_setting
from boxtwin.config.identity import NO_PRETRAINING
from boxtwin.errors import InputError

AUTO = re.compile(r"(?<![\w./-])auto(?![\w./-])")
SIMULATION = "sar_scenes"
SCRIPTS = {"train": "config", "generate": "generate"}  # that take such values: their configurations


class Best(NamedTuple):
    """The settings that were best for a number of real images."""

    up_to: float  # real training images
    generator: str
    synthetic_fraction: float
    steps: int
    simulation: bool  # simulated scenes first, where they look like the data


# Rows of docs/pretraining.md. Simulation is not measured with more images.
BEST = (
    Best(20, "copy_paste", 0.5, 1314, True),
    Best(40, "copy_paste", 0.25, 804, True),
    Best(float("inf"), "copy_paste", 0.25, 804, False),
)
SHARE = 0.25


def resolve_auto(script: Path, words: Sequence[str], config_dir: str | None = None) -> tuple[list[str], str]:
    """The words of a command line with values instead of ``auto``, and a line that says what they became.

    Raises:
        InputError: the data set or split of the command cannot be read from its settings.
    """
    keys = ("generator", "variations.synthetic_fraction", "trainer.steps", "pretraining", "pretraining.share")
    asking = [
        word for word in words if word.partition("=")[0].lstrip("+") in keys and AUTO.search(word.partition("=")[2])
    ]
    if script.stem not in SCRIPTS or not asking:
        return list(words), ""
    try:
        return _resolved(words, asking, _composed(script, words, config_dir))
    except (HydraException, OmegaConfBaseException, AssertionError) as error:
        raise unknown_setting(error) or InputError(f"auto cannot be resolved: {error}") from None


def _resolved(words: Sequence[str], asking: Sequence[str], configs: Sequence[DictConfig]) -> tuple[list[str], str]:
    images = min(_training_images(config) for config in configs)
    best = next(row for row in BEST if images <= row.up_to)
    validations = max(math.lcm(*(config.trainer.validations for config in configs)), 1)  # 0 is refused later
    simulated = best.simulation and all(_is_like_simulation(config) for config in configs)
    typed = next((word.partition("=")[2] for word in words if word.lstrip("+").startswith("pretraining=")), "auto")
    has_scenes = bool(re.search(rf"\b{SIMULATION}\b", typed))
    values: Mapping[str, object] = {
        "generator": best.generator,
        "variations.synthetic_fraction": best.synthetic_fraction,
        "trainer.steps": -(-best.steps // validations) * validations,
        "pretraining": SIMULATION if simulated else NO_PRETRAINING,
        "pretraining.share": SHARE if has_scenes or (simulated and AUTO.search(typed)) else 0.0,
    }
    resolved = [_with_value(word, values) if word in asking else word for word in words]
    became = " ".join(word for word, before in zip(resolved, words, strict=True) if word != before)
    row = f"up to {best.up_to:g}" if best.up_to < float("inf") else f"more than {BEST[-2].up_to:g}"
    return resolved, f"auto: {became}, the best known for {row} real images (docs/pretraining.md); there are {images}"


def _with_value(word: str, values: Mapping[str, object]) -> str:
    key, _, value = word.partition("=")
    return f"{key}={AUTO.sub(str(values[key.lstrip('+')]), value)}"


def _composed(script: Path, words: Sequence[str], config_dir: str | None) -> list[DictConfig]:
    """The configurations of all data sets and splits that a command combines."""
    of_data = re.compile(r"\+{0,2}(?:dataset|split|experiment|trainer\.validations)(?:[.@]\S*?)?=", re.DOTALL)
    listed = [word for word in words if of_data.match(word)]
    extra = [f"hydra.searchpath=[file://{Path(config_dir).absolute()}]"] if config_dir else []
    parser = OverridesParser.create()

    def composed(overrides: Sequence[str], *, whole: bool = False) -> list[DictConfig]:
        (combinations,) = BasicSweeper.split_arguments(parser.parse_overrides(list(overrides)), None)
        name = SCRIPTS[script.stem]
        return [compose(name, [*extra, *each], return_hydra_config=whole) for each in combinations]

    with initialize_config_dir(str(script.absolute().parent / "conf"), version_base="1.3"):
        if {"-m", "--multirun"} & set(words):  # an experiment may list values, which the command line may replace
            params = composed(listed, whole=True)[0].hydra.sweeper.params or {}
            typed = {word.partition("=")[0].lstrip("+") for word in words}
            swept = [f"{key}={value}" for key, value in params.items() if key not in typed]
            listed += [word for word in swept if of_data.match(word)]
        return composed(listed)


def _training_images(config: DictConfig) -> int:
    """How many real training images a run has."""
    split = config.split
    if split.train_size is None and split.file is not None:
        try:
            return len(json.loads(Path(split.file).read_bytes())[split.name]["train"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = getattr(error, "strerror", None) or f"it has no training images of a split {split.name}"
            raise InputError(f"auto cannot be resolved: split.file={split.file} cannot be used: {reason}") from None
    return int(split.train_size or split.train)


def _is_like_simulation(config: DictConfig) -> bool:
    """Whether simulated radar scenes look like a data set: radar images of one class, not simulated themselves."""
    dataset = config.dataset
    if dataset.speckle is None or dataset.build is not None:
        return False
    annotations = Path(dataset.root, dataset.annotations)
    try:
        content: Any = json.loads(annotations.read_bytes())
        return len(content["categories"]) == 1
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = getattr(error, "strerror", None) or "it is not a COCO annotation file with a list of categories"
        raise InputError(f"auto cannot be resolved: {annotations} cannot be used: {reason}") from None
