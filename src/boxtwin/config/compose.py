"""Register the schemas with Hydra, and convert composed configurations to dataclasses."""

from __future__ import annotations

import re
from typing import Any, TypeVar

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError

from boxtwin.config.identity import FIRST_NAMES, REMOVED_SETTINGS, RENAMED_SETTINGS, run_folder
from boxtwin.config.schema import BoxtwinConfig, CompareConfig, ExportConfig, GenerateConfig
from boxtwin.errors import InputError

Schema = TypeVar("Schema")

# Settings of older versions that defined no run, and what happens without them.
WITHOUT = {"trainer.coco_evaluator": "validation computes the metrics of the test, which equal those of pycocotools"}


def register() -> None:
    """Register the schemas with Hydra, and the resolver of the output folder's name with OmegaConf. Safe to repeat."""
    schemas = {"boxtwin": BoxtwinConfig, "generate": GenerateConfig, "compare": CompareConfig, "export": ExportConfig}
    for name, schema in schemas.items():
        ConfigStore.instance().store(name=f"{name}_schema", node=schema)
    OmegaConf.register_new_resolver("run_folder", lambda *, _root_: run_folder(_root_), replace=True)


def to_object(config: DictConfig, schema: type[Schema]) -> Schema:
    """The composed configuration as a dataclass such as `BoxtwinConfig`, with its defaults for settings that it lacks.

    Raises `InputError` if a setting has no value, or one of another type.
    """
    require_values(config)
    values = OmegaConf.to_container(config, resolve=True)
    try:
        typed: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), values))
    except ValueError as error:  # of a dataclass that checks its values, or of OmegaConf
        raise InputError(str(error)) from None
    except ConfigKeyError as error:
        raise former_setting(error) or error from None
    return typed


def former_setting(error: BaseException) -> InputError | None:
    """One line for a setting of an earlier version that Hydra or OmegaConf does not know; None for other errors."""
    match = re.search(r"full_key: (\S+)", f"{error}\n{error.__cause__}")
    if match is None:
        return None
    key, renamed = match[1], {first: now for now, first in FIRST_NAMES.items()} | RENAMED_SETTINGS
    now = renamed.get(key, key)
    group, _, name = now.rpartition(".")
    # Of generators, the settings are by class.
    settings = [of for place, of in REMOVED_SETTINGS.items() if group == ("generator" if "." in place else place)]
    constants = ["null" if of[name] is None else str(of[name]) for of in settings if name in of]
    values = " or ".join(dict.fromkeys(constants))
    if values:
        return InputError(f"{key} is no setting any more; its value is always {values}: leave it out")
    if key in WITHOUT:
        return InputError(f"{key} is no setting any more; leave it out: {WITHOUT[key]}")
    return InputError(f"{key} has been renamed: write {now}") if key in renamed else None


def require_values(config: DictConfig, below: str = "") -> None:
    """Raise `InputError` if a setting whose name begins with ``below`` has no value."""
    missing = sorted(key for key in OmegaConf.missing_keys(config) if key.startswith(below))
    if missing:
        raise InputError(f"these settings need a value: {', '.join(missing)} (say {missing[0]}=… on the command line)")
