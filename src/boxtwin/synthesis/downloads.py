"""What a checkpoint of diffusers takes before it is loaded: files, licence, and the memory of its weights."""

from __future__ import annotations

import importlib
import json
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from boxtwin.errors import InputError
from boxtwin.synthesis.diffusers_pipelines.checkpoints import INDEX, Checkpoint

FLOATS = ("F64", "F32", "F16", "BF16")  # kinds of numbers in safetensors that become the pipeline's number format
STORED = {"I64": 8, "I32": 4, "I16": 2}  # bytes of others; the rest has one
README = "README.md"  # a model card
SECONDS = 10  # that the hub has for an answer


@dataclass(kw_only=True)
class Needs:
    """What one checkpoint takes. Sizes are in bytes."""

    source: str = ""  # where this is known from
    licence: str | None = None  # as the model card names it
    gated: bool = False  # whether its owner gives access on demand only
    sizes: dict[str, int] = field(default_factory=dict)  # of the files that are loaded
    cached: set[str] = field(default_factory=set)  # those that are here already
    weights: dict[str, int] = field(default_factory=dict)  # in memory, by network


def needs_of(checkpoint: Checkpoint, bytes_of: int, variant: str | None, without: Sequence[str] = ()) -> Needs:
    """What a checkpoint takes whose numbers have ``bytes_of`` bytes in memory; it asks the hub, else the cache.

    Components ``without`` are not counted. Raises InputError if the hub has no such checkpoint, or shows no files.
    """
    hub: Any = importlib.import_module("huggingface_hub")
    errors: Any = importlib.import_module("huggingface_hub.errors")
    folder, needs, info, commit = checkpoint.folder, Needs(source="the folder"), None, ""
    if folder is None:
        try:
            info = hub.HfApi().model_info(
                checkpoint.name, revision=checkpoint.revision, files_metadata=True, timeout=SECONDS
            )
        except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError):
            with checkpoint.errors():
                raise
        except Exception:  # of the network, of a proxy, of the hub
            folder = _in_cache(checkpoint)
            needs.source = "the cache, since the hub cannot be reached" if folder else ""
            if folder is None:
                return needs
    if info is not None:
        card, commit = info.card_data or {}, str(info.sha)
        needs.source, needs.licence, needs.gated = f"the hub, commit {commit}", card.get("license"), bool(info.gated)
        if needs.licence == "other":
            needs.licence = card.get("license_name") or needs.licence
        sizes = {file.rfilename: int(file.size or 0) for file in info.siblings}
    else:
        assert folder is not None
        sizes = {file.relative_to(folder).as_posix(): file.stat().st_size for file in _files(folder)}
        if (folder / README).is_file():
            card = hub.metadata_load(folder / README) or {}
            needs.licence = card.get("license_name") or card.get("license")
    try:
        index = {} if checkpoint.parts else checkpoint.index()
    except InputError:
        if needs.gated:  # its index is shown to those with access only
            return needs
        raise
    chosen = _chosen(checkpoint, index, sizes, variant, (*checkpoint.without, *without))
    needs.sizes = {name: sizes[name] for name in sorted(chosen)}
    for name, size in needs.sizes.items():
        place = folder / name if folder else _cached(checkpoint, name, commit)
        if place is not None:
            needs.cached.add(name)
        counts = {"as stored": size} if name.endswith((".bin", ".pt", ".ckpt")) else {}
        if name.endswith(".safetensors"):
            counts = _counts(place) if place else _counts_at_hub(checkpoint, name, commit)
        if counts:
            network = name.rpartition("/")[0]
            taken = sum(
                number * (bytes_of if kind in FLOATS else STORED.get(kind, 1)) for kind, number in counts.items()
            )
            needs.weights[network] = needs.weights.get(network, 0) + taken
    return needs


def _chosen(
    checkpoint: Checkpoint,
    index: Mapping[str, Any],
    sizes: Iterable[str],
    variant: str | None,
    without: Sequence[str],
) -> set[str]:
    """The files that diffusers loads: of each component the weights of the variant, as safetensors if it can."""
    utils: Any = importlib.import_module("diffusers.pipelines.pipeline_loading_utils")
    names = set(sizes)
    if checkpoint.parts:
        folders = {part for part in checkpoint.parts if part not in names}
        listed = names & set(checkpoint.parts)
    else:
        folders = {name for name, of in index.items() if isinstance(of, list) and of[0] and name not in without}
        folders -= {"safety_checker"}
        listed = {INDEX}
    within = {name for name in names if name.rpartition("/")[0] in folders}
    weights = set(utils.filter_model_files(within))
    of_kind = {name for name in weights if name.endswith(".safetensors")}
    # Either all networks have safetensors, or none is loaded from them.
    safe = {name.rpartition("/")[0] for name in of_kind} == {name.rpartition("/")[0] for name in weights}
    ignored = ["*.bin", "*.msgpack", "*.onnx", "*.pb"] if safe else ["*.safetensors", "*.msgpack", "*.onnx", "*.pb"]
    with checkpoint.errors(variant=variant):
        usable, _ = utils.variant_compatible_siblings(sorted(within), variant=variant, ignore_patterns=ignored)
    with_weights = {name.rpartition("/")[0] for name in weights}
    other = {name for name in within - weights if name.rpartition("/")[0] not in with_weights}
    return listed | (set(usable) & within) | other | {f"{name}/config.json" for name in with_weights} & names


def _files(folder: Path) -> list[Path]:
    return [file for file in sorted(folder.rglob("*")) if file.is_file()]


def _in_cache(checkpoint: Checkpoint) -> Path | None:
    """The folder of what was downloaded of it, if anything."""
    for file in (INDEX, *checkpoint.parts, *(f"{part}/config.json" for part in checkpoint.parts)):
        if (found := _cached(checkpoint, file, checkpoint.revision or "main")) is not None:
            return found.parents[file.count("/")]
    return None


def _cached(checkpoint: Checkpoint, file: str, commit: str) -> Path | None:
    hub: Any = importlib.import_module("huggingface_hub")
    found = hub.try_to_load_from_cache(checkpoint.name, file, revision=commit)
    return Path(found) if isinstance(found, str) else None


def _counts(file: Path) -> dict[str, int]:
    """How many numbers of each kind a file of safetensors holds, from its header."""
    with file.open("rb") as content:
        (length,) = struct.unpack("<Q", content.read(8))
        header = json.loads(content.read(length))
    counts: dict[str, int] = {}
    for name, entry in header.items():
        if name != "__metadata__":
            counts[entry["dtype"]] = counts.get(entry["dtype"], 0) + math.prod(entry["shape"])
    return counts


def _counts_at_hub(checkpoint: Checkpoint, file: str, commit: str) -> dict[str, int]:
    """The same of a file that is at the hub: its first bytes are read."""
    hub: Any = importlib.import_module("huggingface_hub")
    try:
        metadata = hub.HfApi().parse_safetensors_file_metadata(checkpoint.name, file, revision=commit)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{checkpoint.asked_by}: {file} of {checkpoint.name} cannot be read: {reason}") from error
    return {str(kind): int(number) for kind, number in metadata.parameter_count.items()}
