"""Between Hydra and the typed configuration: schemas are registered, and what Hydra composed becomes plain objects."""

from __future__ import annotations

import re
from typing import Any, TypeVar

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError

from boxtwin.config.identity import FIRST_NAMES, run_folder
from boxtwin.config.schema import BoxtwinConfig, CompareConfig, ExportConfig, GenerateConfig
from boxtwin.errors import InputError

Schema = TypeVar("Schema")

# Settings of older versions that defined no run, and what happens without them.
WITHOUT = {"trainer.coco_evaluator": "validation computes the metrics of the test, which equal those of pycocotools"}


def register() -> None:
    """Tell Hydra about the schemas and OmegaConf about the resolver of the output folder's name. Safe to repeat."""
    store = ConfigStore.instance()
    store.store(name="boxtwin_schema", node=BoxtwinConfig)
    store.store(name="generate_schema", node=GenerateConfig)
    store.store(name="compare_schema", node=CompareConfig)
    store.store(name="export_schema", node=ExportConfig)

    def cell_folder(*, _root_: DictConfig) -> str:
        return run_folder(_root_)

    OmegaConf.register_new_resolver("cell_folder", cell_folder, replace=True)


def to_object(config: DictConfig, schema: type[Schema]) -> Schema:
    """What Hydra composed, as an instance of one of the schema's dataclasses. It is not changed afterwards.

    Args:
        config: as composed; settings of ``schema`` that it lacks keep their defaults.
        schema: the dataclass, such as `BoxtwinConfig`.

    Raises:
        InputError: a setting has no value, or one of another type.
    """
    require_values(config)
    values = OmegaConf.to_container(config, resolve=True)
    try:
        whole: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), values))
    except ValueError as error:  # of a dataclass that checks its values, or of OmegaConf
        raise InputError(str(error)) from None
    except ConfigKeyError as error:
        raise renamed_setting(error) or error from None
    return whole


def renamed_setting(error: BaseException) -> InputError | None:
    """What to say where Hydra or OmegaConf does not know a setting because it has been renamed or removed."""
    keys = re.findall(r"full_key: ([\w.]+)", f"{error}\n{error.__cause__}")
    if gone := [f"{key} is no setting any more; leave it out: {WITHOUT[key]}" for key in keys if key in WITHOUT]:
        return InputError(gone[0])
    renamed = (f"{first} has been renamed: write {now}" for now, first in FIRST_NAMES.items() if first in keys)
    return next(map(InputError, renamed), None)


def require_values(config: DictConfig, below: str = "") -> None:
    """Check that every setting whose name begins with ``below`` has a value.

    Raises:
        InputError: some have none.
    """
    missing = sorted(key for key in OmegaConf.missing_keys(config) if key.startswith(below))
    if missing:
        raise InputError(f"these settings need a value: {', '.join(missing)} (say {missing[0]}=… on the command line)")
