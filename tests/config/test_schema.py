"""The files under conf/ hold every value, and the dataclasses' defaults are the same values."""

from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf

from boxtwin.config import schema
from boxtwin.config.compose import register
from boxtwin.datasets.options import SplitOptions
from boxtwin.detector.options import DetectorOptions, TrainerOptions
from boxtwin.mixing.options import VariationsOptions

CONF = Path(__file__).parents[2] / "conf"
# Each of the schema's groups, and the file with the values that its options share.
GROUPS = {
    "dataset": (schema.DatasetConfig, "dataset_defaults"),
    "split": (SplitOptions, "split/s1"),
    "variations": (VariationsOptions, "variations/0"),
    "detector": (DetectorOptions, "detector_defaults"),
    "trainer": (TrainerOptions, "trainer/default"),
}


def values_of(*names: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name in reversed(names):
        values |= yaml.safe_load((CONF / f"{name}.yaml").read_text())
    return values


def default_of(field: Any) -> Any:
    default = field.default if field.default is not MISSING else field.default_factory()
    if is_dataclass(default):
        return {inner.name: default_of(inner) for inner in fields(default)}
    return default.value if isinstance(default, Enum) else default


@pytest.mark.parametrize("file", [file for group in GROUPS for file in sorted((CONF / group).glob("*.yaml"))], ids=str)
def test_files_name_every_setting(file: Path) -> None:
    group = file.parent.name
    kind, shared = GROUPS[group]
    assert values_of(f"{group}/{file.stem}", shared).keys() == {field.name for field in fields(kind)}


@pytest.mark.parametrize("group", GROUPS)
def test_defaults_of_files_and_dataclasses_are_equal(group: str) -> None:
    kind, shared = GROUPS[group]
    values = values_of(shared)
    for field in fields(kind):
        if (default := default_of(field)) != "???":
            assert values[field.name] == default, field.name


@pytest.mark.parametrize("script", ["config", "generate", "compare", "export"])
def test_defaults_of_scripts_are_equal(script: str) -> None:
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        composed = compose(script)
    kind = {"generate": schema.GenerateConfig, "compare": schema.CompareConfig, "export": schema.ExportConfig}
    for field in fields(kind.get(script, schema.BoxtwinConfig)):
        default = default_of(field)
        if default not in ("???", MISSING):
            value = composed[field.name]
            assert (OmegaConf.to_container(value) if OmegaConf.is_config(value) else value) == default


def test_settings_that_do_not_exist_are_refused_by_name() -> None:
    register()
    with (
        initialize_config_dir(str(CONF), version_base="1.3"),
        pytest.raises(ConfigCompositionException, match=r"trainer\.stepz"),
    ):
        compose("config", ["trainer.stepz=7"])
