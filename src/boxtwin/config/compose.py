"""Register the schemas with Hydra, and convert composed configurations to dataclasses."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from hydra.core.config_store import ConfigStore
from hydra.errors import MissingConfigException
from omegaconf import MISSING, DictConfig, ListConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, ValidationError

from boxtwin.config.identity import (
    FIRST_NAMES,
    REMOVED_SETTINGS,
    RENAMED_SETTINGS,
    WITHOUT,
    as_yaml,
    run_folder,
)
from boxtwin.config.numbers import check_finite
from boxtwin.config.schema import (
    BoxtwinConfig,
    CompareConfig,
    CountConfig,
    ExportConfig,
    GenerateConfig,
    ReviewConfig,
)
from boxtwin.errors import InputError, is_of_the_system, nearest

Schema = TypeVar("Schema")

SCHEMAS = {
    "boxtwin": BoxtwinConfig,
    "generate": GenerateConfig,
    "compare": CompareConfig,
    "export": ExportConfig,
    "count": CountConfig,
    "review": ReviewConfig,
}


def register() -> None:
    """Register the schemas with Hydra, and resolvers with OmegaConf. Safe to repeat."""
    for name, schema in SCHEMAS.items():
        ConfigStore.instance().store(name=f"{name}_schema", node=schema)
    OmegaConf.register_new_resolver("run_folder", lambda *, _root_: run_folder(_root_), replace=True)
    OmegaConf.register_new_resolver("first", lambda one, default: default if one is None else one, replace=True)
    # A default that gives way to a setting which excludes it.
    OmegaConf.register_new_resolver("unless", lambda other, default: default if other is None else None, replace=True)


def to_object(config: DictConfig, schema: type[Schema]) -> Schema:
    """The composed configuration as a dataclass such as `BoxtwinConfig`, with its defaults for settings that it lacks.

    Raises `InputError` if a setting has no value, one of another type, or a number that is not finite.
    """
    require_values(config)
    values = OmegaConf.to_container(config, resolve=True)
    try:
        typed: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), values))
    except ValueError as error:  # of a dataclass that checks its values, or of OmegaConf
        raise InputError(str(error)) from None
    except ConfigKeyError as error:
        raise unknown_setting(error) or error from None
    check_finite(typed)
    return typed


def load_yaml(file: Path, setting: str = "") -> DictConfig | ListConfig:
    """The content of a YAML file, which errors call ``setting`` (such as ``primary=``) and its path.

    Raises `InputError` if its content is not YAML.
    """
    try:
        return OmegaConf.load(file)
    except Exception as error:  # whatever readers of YAML meet
        if is_of_the_system(error):
            raise
        raise InputError(f"{setting}{file} is not readable as YAML: {error}") from error


def read_config(file: Path) -> DictConfig:
    """The configuration of a finished run, in settings of this version where it is of an older one.

    Raises `InputError` if the file holds none.
    """
    loaded = load_yaml(file)
    if not isinstance(loaded, DictConfig):
        raise InputError(f"{file} is no configuration of a run")
    values: dict[str, Any] = OmegaConf.to_container(loaded)  # type: ignore[assignment]
    for now, first in FIRST_NAMES.items():
        if (value := _taken(values, first, MISSING)) != MISSING:
            _group_of(values, now)[now.rpartition(".")[2]] = value
    removed = {f"{group}.{name}": value for group, of in REMOVED_SETTINGS.items() for name, value in of.items()}
    for key in (*WITHOUT, *removed):
        value = _taken(values, key, MISSING)
        if key in removed and value not in (MISSING, removed[key]):
            raise InputError(f"{file}: {key} is no setting any more; its value is always {as_yaml(removed[key])}")
    return OmegaConf.create(values)


def _group_of(values: dict[str, Any], setting: str) -> dict[str, Any]:
    """The dictionary that holds a setting, empty if there is none."""
    for group in setting.split(".")[:-1]:
        values = values.get(group) or {}
    return values


def _taken(values: dict[str, Any], setting: str, default: Any) -> Any:
    return _group_of(values, setting).pop(setting.rpartition(".")[2], default)


def unknown_setting(error: BaseException) -> InputError | None:
    """One line for a setting that is not known, such as one of an earlier version, or not of its type; or None.

    An option that a group lacks is named too, with those that there are.
    """
    if isinstance(error, MissingConfigException) and error.options:
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        known = f"{group} is one of {', '.join(error.options)}"
        return InputError(f"there is no {group}={option}{nearest(option, error.options, 1)}\n{known}")
    if missing := re.search(r"Missing mandatory value: (\S+)", f"{error}\n{error.__cause__}"):
        return _no_value([missing[1]])  # what another setting takes its value from
    match = re.search(r"full_key: (\S+)", f"{error}\n{error.__cause__}")
    if match is None and (key := _below_null(error)):
        group = key.rpartition(".")[0]
        return InputError(f"{key} cannot be set: {group} is null with these options; leave it out, or choose others")
    if match is None:
        return None
    key, cause = match[1], error.__cause__ or error
    if key.startswith("hydra."):
        said = str(cause).partition("\n")[0]
        return InputError(f"{key} cannot be set: {said}; --cfg hydra shows Hydra's own settings")
    if isinstance(cause, ValidationError):
        return InputError(f"{key}: {str(cause).partition(chr(10))[0]}")
    if (former := _former_name(key)) is not None:
        return former
    beside = getattr(cause, "parent_node", None)  # where it would be
    if key.startswith("generator.") and isinstance(beside, DictConfig) and "name" in beside:
        return no_setting_of_generator(str(beside.name), [key.partition(".")[2]], map(str, beside))
    return _no_setting(key)


def _below_null(error: BaseException) -> str | None:
    """The setting that was to be set below one that is null, which OmegaConf takes for an error of its own; or None."""
    if not isinstance(error, AssertionError):
        return None
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    update = OmegaConf.update.__code__
    return next((str(frame.f_locals["key"]) for frame in frames if frame.f_code is update), None)


def _former_name(key: str) -> InputError | None:
    """One line for a setting that earlier versions had, or had under this name; or None."""
    renamed = {first: now for now, first in FIRST_NAMES.items()} | RENAMED_SETTINGS
    now = renamed.get(key, key)
    group, _, name = now.rpartition(".")
    # Of generators, the settings are by class.
    settings = [of for place, of in REMOVED_SETTINGS.items() if group == ("generator" if "." in place else place)]
    values = list(dict.fromkeys(as_yaml(of[name]) for of in settings if name in of))
    if key in WITHOUT:
        return InputError(f"{key} is no setting any more; leave it out: {WITHOUT[key]}")
    if values:
        constant = " or ".join(values) + (", depending on the generator" if len(values) > 1 else "")
        return InputError(f"{key} is no setting any more; its value is always {constant}: leave it out")
    if key in renamed:
        return InputError(f"{key} has been renamed: write {now}=… instead of {key}=…")
    return None


def unknown_name(script: Path, key: str) -> InputError | None:
    """One line for the name of a setting that a root ``script`` lacks; None for one that it has or that may exist.

    It is for words that Hydra cannot parse: of those, Hydra does not look at the name.
    """
    plain = key.lstrip("+~")
    if not re.fullmatch(r"[A-Za-z_][\w./]*", plain):  # no name, but a part of a text that the shell has cut
        return None
    known = [*_settings(SCHEMAS.get(script.stem, BoxtwinConfig)), *FIRST_NAMES]
    group = plain.rpartition(".")[0]
    has_settings = not group or any(name.startswith(f"{group}.") for name in known)  # others are free dictionaries
    is_option = "/" in plain or (script.resolve().parent / "conf" / plain).is_dir()
    if plain in known or is_option or not has_settings:
        return None
    return _former_name(plain) or _no_setting(plain)


def _no_setting(key: str) -> InputError:
    known = [name for schema in SCHEMAS.values() for name in _settings(schema) if name != key]  # of another command
    return InputError(f"there is no setting {key}{nearest(key, known, 1) or '; --cfg job shows all settings'}")


def no_setting_of_generator(generator: str, settings: Sequence[str], known: Iterable[str]) -> InputError:
    """The error for ``settings`` that one generator lacks, whose own are ``known``."""
    others = [name for name in known if name not in ("name", "_target_", *settings)]
    cure = "To give one of several generators settings of its own, run it by another command with the same study=, or "
    cure += "make an option of it: docs/generators.md#an-option-of-your-own"
    advice = nearest(settings[0], others, 1).removesuffix("?") if len(settings) == 1 else ""
    lacks = f"no setting {settings[0]}" if len(settings) == 1 else f"no settings {', '.join(settings)}"
    has = f"It has {', '.join(others)}" if others else "It has none"
    return InputError(f"generator={generator} has {lacks}{advice}. {has}. {cure}")


def _settings(schema: type) -> list[str]:
    """The names of all settings of a schema, and of its groups."""
    kinds: dict[str, Any] = get_type_hints(schema)
    below = {
        name: _settings(kind) if isinstance(kind, type) and is_dataclass(kind) else [] for name, kind in kinds.items()
    }
    return [*below, *(f"{name}.{setting}" for name, settings in below.items() for setting in settings)]


def require_values(config: DictConfig, below: str = "") -> None:
    """Raise `InputError` if a setting whose name begins with ``below`` has no value."""
    missing = sorted(key for key in OmegaConf.missing_keys(config) if key.startswith(below))
    if missing:
        raise _no_value(missing)


def _no_value(missing: Sequence[str]) -> InputError:
    return InputError(f"these settings need a value: {', '.join(missing)} (say {missing[0]}=… on the command line)")
