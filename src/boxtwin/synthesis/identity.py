"""What a store is made of and with: the content of ``store.json``, and the key of its folder, which is its hash."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from boxtwin.datasets.sample import Sample
from boxtwin.errors import InputError
from boxtwin.files import write_bytes_atomically
from boxtwin.synthesis.generator import Generator, Json
from boxtwin.synthesis.manifest import MANIFEST, fingerprint

log = logging.getLogger(__name__)

IDENTITY = "store.json"
FORMAT = 2  # of manifest lines; an older store is left alone, and made anew beside it
# What stores had among their parameters for a version of a generator before there were version numbers. It stands for
# the number, so that these stores keep their keys.
_BEFORE_NUMBERS: dict[tuple[str, int], dict[str, Json]] = {
    ("pixel_ddpm_sketch", 2): {"fitted": "ships to objects, sea to sea, white to white"},
}


def identity_of(
    generator: Generator, training: Sequence[Sample], *, dataset: str, labels: Json, seed: int
) -> dict[str, Any]:
    """All that the images and labels of a store follow from."""
    version = generator.version(training)
    numbered = version > 1 and (generator.name, version) not in _BEFORE_NUMBERS
    return {
        "format": FORMAT,
        "dataset": dataset,
        "generator": generator.name,
        "parameters": recorded_parameters(generator, training),
        "labels": labels,
        "seed": seed,
        "training": [[sample.name, fingerprint(sample)] for sample in training] if generator.learns else [],
        # Stores without a number are of the first version.
        **({"version": version} if numbered else {}),
    }


def recorded_parameters(generator: Generator, training: Sequence[Sample]) -> dict[str, Json]:
    """The parameters of a generator as stores record them."""
    return generator.parameters() | _BEFORE_NUMBERS.get((generator.name, generator.version(training)), {})


def version_of(identity: Mapping[str, Any]) -> int:
    """The version of the generator that made a store."""
    for (name, number), said in _BEFORE_NUMBERS.items():
        if identity["generator"] == name and said.items() <= identity["parameters"].items():
            return number
    return int(identity.get("version", 1))


def key_of(identity: dict[str, Any]) -> str:
    """Twelve hexadecimal digits."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]


def write_identity(store: Path, identity: dict[str, Any]) -> None:
    """Write ``store.json``; again where it is damaged."""
    file = store / IDENTITY
    if file.exists():
        try:
            if json.loads(file.read_bytes()) == identity:
                return
        except (ValueError, RecursionError):
            pass
        log.warning("%s was damaged; it is written again", file)
    write_bytes_atomically(file, json.dumps(identity, indent=1).encode())


def read_identity(store: Path) -> dict[str, Any]:
    """What a store was made of and with.

    Raises:
        InputError: there is no store, it has another version of the format, or its identity is damaged.
    """
    file = store / IDENTITY
    if not (store / MANIFEST).is_file() or not file.is_file():
        raise InputError(f"{store} is no store of variations: it must hold {MANIFEST} and {IDENTITY}")
    damaged = InputError(
        f"{file} is damaged: its content does not have the hash in the folder's name. The command that made the store "
        "writes it again"
    )
    try:
        identity = json.loads(file.read_bytes())
        version = identity["format"]
        whole = all(isinstance(identity[key], kind) for key, kind in _TYPES.items())
        whole = whole and all(
            len(pair) == 2 and all(isinstance(text, str) for text in pair) for pair in identity["training"]
        )
    except (ValueError, KeyError, TypeError, RecursionError):
        raise damaged from None
    if version != FORMAT:
        raise InputError(f"{store} has format {version}, not {FORMAT}, and cannot be made again")
    key = re.search(r"-([0-9a-f]{12})$", store.resolve().name)
    if not whole or (key and key[1] != key_of(identity)):
        raise damaged
    return identity


def settings_from(parameters: Mapping[str, Any], option: Mapping[str, Any]) -> dict[str, Any]:
    """Those recorded parameters that are settings of a generator, checked: a store may come from anywhere.

    Args:
        parameters: as a store records them.
        option: the generator's settings as they are here. Only these can be set, with values of their types; what is
            built, and where things lie on this machine, cannot.

    Raises:
        InputError: a value is of another type, or names something to be built or looked up.
    """
    found = {}
    for key, value in parameters.items():
        if _is_code(key, value):
            raise InputError(f"{IDENTITY} has {key}={value!r} among the parameters, as no generator records; refused")
        if key not in option or key in _NOT_FROM_DATA or isinstance(value, dict):
            continue
        default = option[key]
        if not (default in (None, "???") or value is None or _kind(value) == _kind(default)):
            raise InputError(f"{IDENTITY} has {key}={value!r}, where a value like {default!r} is expected; refused")
        found[key] = value
    return found


def _is_code(key: str, value: Any) -> bool:
    """Whether a parameter is one of Hydra's own, or holds one, or something for OmegaConf to look up."""
    if isinstance(value, dict):
        return any(_is_code(inner, content) for inner, content in value.items())
    if isinstance(value, list):
        return any(_is_code(key, content) for content in value)
    return key.startswith("_") or key == "name" or (isinstance(value, str) and "${" in value)


def _kind(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_kind(part) for part in value[:1]]
    return float if isinstance(value, int | float) and not isinstance(value, bool) else type(value)


_NOT_FROM_DATA = ("path", "device", "base_url")
_TYPES: dict[str, Any] = {"dataset": str, "generator": str, "parameters": dict, "seed": int, "training": list}
