"""Numbers among the settings of a run: none that makes no sense gets past the check before the work."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from boxtwin.config.arguments import quote_numbers
from boxtwin.config.compose import register, to_object
from boxtwin.config.schema import CountConfig, GenerateConfig
from boxtwin.errors import InputError
from boxtwin.run.checks import check_composed

CONF = Path(__file__).parents[2] / "conf"


def numeric(schema: Any, below: str = "") -> Iterator[tuple[str, type]]:
    """The names and types of all numeric settings of a schema, with those that may be null."""
    hints = get_type_hints(schema)
    for each in fields(schema):
        kinds = {hints[each.name], *get_args(hints[each.name])}
        for kind in kinds:
            if isinstance(kind, type) and is_dataclass(kind):
                yield from numeric(kind, f"{below}{each.name}.")
        if found := kinds & {int, float}:
            yield f"{below}{each.name}", found.pop()


@pytest.fixture(scope="module")
def composed() -> dict[bool, DictConfig]:
    """On simulated images, and with a pre-training on some, which exclude each other."""
    register()
    settings = (
        ["dataset=sar_scenes"],
        ["dataset=hrsid", "dataset.root=FOLDER", "pretraining=sar_scenes", "pretraining.share=0"],
    )
    found = {}
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for own in settings:
            words = quote_numbers(["variations=2", "generator=repeat", *own], CONF / "variations")
            config = found[len(own) > 1] = compose("generate", words)
            OmegaConf.set_struct(config, False)
            check_composed(config, GenerateConfig)
    return found


@pytest.mark.parametrize("name", sorted(dict(numeric(GenerateConfig))))
def test_a_number_out_of_range_is_named(name: str, composed: dict[bool, DictConfig]) -> None:
    wrong: list[float] = [-1, 2**70] if dict(numeric(GenerateConfig))[name] is int else [-1.5, math.nan, math.inf]
    for value in wrong:
        config = composed[name.startswith("pretraining.")].copy()
        OmegaConf.update(config, name, value)
        with pytest.raises(InputError) as caught:
            check_composed(config, GenerateConfig)
        assert name.rpartition(".")[2] in str(caught.value), str(caught.value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_other_commands_take_finite_numbers_too(value: float) -> None:
    with pytest.raises(InputError, match=r"scale=\S+ must be a finite number"):
        to_object(OmegaConf.create({"images": "FOLDER", "scale": value}), CountConfig)
