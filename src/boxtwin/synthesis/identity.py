"""What a store is made of and with: the content of ``store.json``, and the key of its folder, which is its hash."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boxtwin.datasets.sample import Sample
from boxtwin.errors import InputError
from boxtwin.files import write_bytes_atomically
from boxtwin.synthesis.constants import former_settings_of
from boxtwin.synthesis.generator import Generator, Json, hash_of
from boxtwin.synthesis.manifest import MANIFEST, fingerprint

log = logging.getLogger(__name__)

IDENTITY = "store.json"
FORMAT = 2  # of manifest lines; an older store is left as it is, and made anew beside it
# What stores had among their parameters in place of the version of a generator, so that these keep their keys.
_BEFORE_NUMBERS: dict[tuple[str, int], dict[str, Json]] = {
    ("pixel_ddpm_sketch", 2): {"fitted": "ships to objects, sea to sea, white to white"}
}
REPRODUCIBLE = "reproducible"  # in store.json, of no influence on the key: `Generator.reproducible`, for `make clean`
UNLABELLED = "(unlabelled images)"  # their name among those that a generator has learnt from
_NOT_FROM_DATA = ("path", "device", "base_url")
_OTHER_CHECKPOINTS = ("adapter", "controlnet", "prior")


@dataclass(frozen=True, kw_only=True)
class StoreIdentity:
    """All that the images and labels of a store follow from."""

    dataset: str
    generator: str
    parameters: dict[str, Json]
    labels: Json
    seed: int
    training: tuple[tuple[str, str], ...]  # name and fingerprint of each image that the generator has learnt from
    version: int = 1  # of the generator

    def to_json(self) -> dict[str, Any]:
        """The content of ``store.json`` that the key is the hash of."""
        content = {"format": FORMAT, **vars(self), "training": [list(pair) for pair in self.training]}
        # Stores without a number are of the first version.
        if self.version == 1 or (self.generator, self.version) in _BEFORE_NUMBERS:
            del content["version"]
        return content

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> StoreIdentity:
        """The identity of a store; raises KeyError, TypeError or ValueError if it is damaged."""
        kinds = {"dataset": str, "generator": str, "parameters": dict, "labels": object, "seed": int}
        for name, kind in kinds.items():
            if not isinstance(content[name], kind):
                raise TypeError(f"{name} is no {kind.__name__}")
        training = tuple((str(name), str(digest)) for name, digest in content["training"])
        version = content.get("version", 1)
        for (name, number), parameters in _BEFORE_NUMBERS.items():
            if content["generator"] == name and parameters.items() <= content["parameters"].items():
                version = number
        return cls(**{name: content[name] for name in kinds}, training=training, version=version)

    @property
    def key(self) -> str:
        """Twelve hexadecimal digits."""
        return hash_of(self.to_json())[:12]


def identity_of(
    generator: Generator,
    training: Sequence[Sample],
    *,
    dataset: str,
    labels: Json,
    seed: int,
    unlabelled: str | None = None,
) -> StoreIdentity:
    """The identity of the store that a generator makes; ``unlabelled`` as for `boxtwin.synthesis.store.Library`."""
    learnt = [(sample.name, fingerprint(sample)) for sample in training]
    parameters = recorded_parameters(generator, training)
    if unlabelled is not None:
        learnt.append((UNLABELLED, unlabelled))
        # These images are not known yet, and change what follows from all that it learns from.
        of_training = generator.parameters_of(training)
        parameters = {name: value for name, value in parameters.items() if name not in of_training}
    return StoreIdentity(
        dataset=dataset,
        generator=generator.name,
        parameters=parameters,
        labels=labels,
        seed=seed,
        training=tuple(learnt) if generator.learns else (),
        version=generator.version(training),
    )


def recorded_parameters(generator: Generator, training: Sequence[Sample]) -> dict[str, Json]:
    """The parameters of a generator as stores record them."""
    before = _BEFORE_NUMBERS.get((generator.name, generator.version(training)), {})
    return generator.parameters() | generator.parameters_of(training) | before


def write_identity(store: Path, identity: StoreIdentity, *, reproducible: bool) -> None:
    """Write ``store.json``; again if it is damaged, or of an earlier version and without `REPRODUCIBLE`."""
    file, content = store / IDENTITY, identity.to_json()
    if file.exists():
        try:
            written = json.loads(file.read_bytes())
        except (ValueError, RecursionError):
            written = None
        if written == content | {REPRODUCIBLE: reproducible}:
            return
        if written != content:
            log.warning("%s was damaged; it is written again", file)
    write_bytes_atomically(file, json.dumps(content | {REPRODUCIBLE: reproducible}, indent=1).encode())


def read_identity(store: Path) -> StoreIdentity:
    """What a store was made of and with; raises InputError if it is missing, damaged, or of another format."""
    file = store / IDENTITY
    if not (store / MANIFEST).is_file() or not file.is_file():
        raise InputError(f"{store} is no store of variations: it must hold {MANIFEST} and {IDENTITY}")
    try:
        content = json.loads(file.read_bytes())
        content.pop(REPRODUCIBLE, None)
        if content["format"] == FORMAT:
            key = re.search(r"-([0-9a-f]{12})$", store.resolve().name)
            if key and key[1] != hash_of(content)[:12]:
                raise ValueError("its hash is not that of the folder")
            return StoreIdentity.from_json(content)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        reason = "its content does not have the hash in the folder's name"
        raise InputError(f"{file} is damaged: {reason}. The command that made the store writes it again") from None
    raise InputError(f"{store} has format {content['format']}, not {FORMAT}, and cannot be made again")


def settings_from(parameters: Mapping[str, Any], option: Mapping[str, Any]) -> dict[str, Any]:
    """Those recorded parameters that are settings of a generator, checked: a store may come from anywhere.

    ``option`` is the generator's settings as they are here. Only these can be set, with values of their types; what is
    built, and paths and addresses of this machine, cannot; of checkpoints in folders, names alone are recorded. Raises
    InputError for other values.
    """
    settings, constants, local = {}, former_settings_of(str(option.get("_target_"))), local_places(parameters)
    groups = {name: group for name, group in option.items() if isinstance(group, dict)}
    known = {**option, **{f"{name}.{key}": value for name, group in groups.items() for key, value in group.items()}}
    for key, value in _flat(parameters).items():
        if constants.get(key, value) != value:
            raise InputError(f"{IDENTITY} has {key}={value!r}, which is always {constants[key]!r} now; refused")
        if _is_code(key, value):
            raise InputError(f"{IDENTITY} has {key}={value!r} among the parameters, as no generator records; refused")
        if key not in known or key.rpartition(".")[2] in _NOT_FROM_DATA or key in local or isinstance(value, dict):
            continue
        default = known[key]
        if not (default in (None, "???") or value is None or _kind(value) == _kind(default)):
            raise InputError(f"{IDENTITY} has {key}={value!r}, where a value like {default!r} is expected; refused")
        settings[key] = value
    return settings


def _flat(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters in which other checkpoints, recorded with their revisions, are the settings that name both."""
    flat = dict(parameters)
    for place in _OTHER_CHECKPOINTS:
        if isinstance(value := parameters.get(place), dict) and "/" in str(value.get("checkpoint")):
            flat |= {place: value["checkpoint"], f"{place}_revision": value.get("revision")}
    return flat


def local_places(parameters: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Recorded parameters that a folder or a file on the machine gave: the setting that names it, and its own name.

    Ids of checkpoints have an owner; of a folder its name is recorded, with a hash as its revision, and of a file name
    and hash.
    """
    found = {}
    for place in ("checkpoint", *_OTHER_CHECKPOINTS):
        value = parameters.get(place)
        name = value.get("checkpoint") if isinstance(value, dict) else value
        if isinstance(name, str) and "/" not in name:
            found[place] = place, name
            if place == "checkpoint":
                found["revision"] = place, name
    if " " in (file := str(parameters.get("load.quantisation", ""))):
        found["load.quantisation"] = "load.quantisation", file.partition(" ")[0]
    return found


def _is_code(key: str, value: Any) -> bool:
    """Whether a parameter is one of Hydra's own, or holds one, or something for OmegaConf to look up."""
    if isinstance(value, dict):
        return any(_is_code(inner, content) for inner, content in value.items())
    if isinstance(value, list):
        return any(_is_code(key, content) for content in value)
    key = key.rpartition(".")[2]
    return key.startswith("_") or key == "name" or (isinstance(value, str) and "${" in value)


def _kind(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_kind(part) for part in value[:1]]
    return float if isinstance(value, int | float) and not isinstance(value, bool) else type(value)
