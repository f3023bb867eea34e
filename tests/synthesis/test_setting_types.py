"""Types of generators' settings: a wrong value is an `InputError` that names the setting, whatever the generator."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from boxtwin.config.arguments import quote_numbers
from boxtwin.config.compose import register, to_object
from boxtwin.config.schema import BoxtwinConfig
from boxtwin.errors import InputError
from boxtwin.run.generators import make_generator
from boxtwin.synthesis.setting_types import check_types

CONF = Path(__file__).parents[2] / "conf"
GENERATORS = sorted(path.stem for path in (CONF / "generator").glob("*.yaml") if path.stem != "folder")
NEEDED = {"gligen": ["generator.phrases=[ship]"], "text_to_image": ["generator.prompt=ships at sea"]}
WRONG: tuple[Any, ...] = ("some words", None, [1], True, {}, math.nan, -1.5)


@pytest.fixture
def config(request: pytest.FixtureRequest) -> Iterator[BoxtwinConfig]:
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        needed = NEEDED.get(request.param, [])
        words = quote_numbers([f"generator={request.param}", "variations=2", *needed], CONF / "variations")
        yield to_object(compose("config", words), BoxtwinConfig)


def places(settings: dict[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The path of every setting, and of every group of settings."""
    for name, value in settings.items():
        if not above and name in ("name", "_target_"):
            continue
        yield (*above, name)
        if isinstance(value, dict):
            yield from places(value, (*above, name))


@pytest.mark.parametrize("config", GENERATORS, indirect=True)
def test_a_value_of_any_type_is_taken_or_named(config: BoxtwinConfig) -> None:
    typed, refused = json.dumps(config.generator), []
    for place in places(config.generator):
        for value in WRONG:
            config.generator = json.loads(typed)
            group = config.generator
            for name in place[:-1]:
                group = group[name]
            group[place[-1]] = value
            try:
                make_generator(config)
            except InputError as error:
                refused.append((place[-1], value, str(error)))
    assert [each for each in refused if each[0] not in each[2]] == []
    assert refused or config.generator["name"] == "repeat"  # which has no settings


@pytest.mark.parametrize(
    ("option", "word", "message"),
    [
        ("pixel_ddpm", "strength=high", "generator.strength=high must be a number"),
        ("pixel_ddpm", "steps=2.5", "generator.steps=2.5 must be a whole number"),
        ("pixel_ddpm", "channels=[8,wide]", "generator.channels=[8, 'wide'] must be a list of whole numbers"),
        ("copy_paste", "mirror=off", "generator.mirror=off must be true or false"),  # not an option of Hydra's
        ("copy_paste", "angle=null", "generator.angle=null must be a number"),
        ("ip_adapter", "strength=true", "generator.strength=true must be a number or null"),
        ("img2img", "prompt=3", "generator.prompt=3 must be text"),
        ("img2img", "load.slicing=maybe", "generator.load.slicing=maybe must be true or false"),
        ("openai_edit", "max_tries=some", "generator.max_tries=some must be a whole number"),
        ("repeat", "_target_=boxtwin.nothing.Here", "generator._target_=boxtwin.nothing.Here cannot be imported"),
    ],
)
def test_the_setting_is_named_with_what_it_takes(option: str, word: str, message: str) -> None:
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        words = quote_numbers([f"generator={option}", "variations=2", f"generator.{word}"], CONF / "variations")
        config = to_object(compose("config", words), BoxtwinConfig)
    with pytest.raises(InputError, match=re.escape(message)):
        make_generator(config)


class Base:
    """Takes the settings that its heir passes on."""

    def __init__(self, *, size: int | None) -> None:
        self.size = size


class Heir(Base):
    def __init__(self, *, shares: Sequence[float], **others: Any) -> None:
        super().__init__(**others)
        self.shares = shares


@dataclass
class WithOwnClass:
    path: Path
    sides: tuple[int, int] = (1, 1)
    other: Base | None = None


def test_parameters_of_base_classes_have_types_too() -> None:
    check_types(Heir, {"shares": [0, 0.5], "size": None, "unknown": object()}, "x")
    for values, message in (
        ({"size": "large"}, "x.size=large must be a whole number or null"),
        ({"size": True}, "x.size=true must be a whole number or null"),
        ({"shares": [math.inf]}, "x.shares=[inf] must be a list of numbers"),
        ({"shares": 0.5}, "x.shares=0.5 must be a list of numbers"),
    ):
        with pytest.raises(InputError, match=re.escape(message)):
            check_types(Heir, values, "x")


def test_a_class_without_a_known_type_decides_by_itself() -> None:
    check_types(WithOwnClass, {"path": "images", "sides": [2, 3], "other": 3}, "x")
    with pytest.raises(InputError, match=r"x.sides=\[2\]"):
        check_types(WithOwnClass, {"sides": [2]}, "x")
