"""Files of learnt weights: safetensors with a checksum, and the states from which interrupted training continues."""

from __future__ import annotations

import hashlib
import io
import logging
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from boxtwin.errors import InputError
from boxtwin.files import atomic_path

log = logging.getLogger(__name__)

CHECKSUM = "sha256"  # in the metadata: of all tensors and the rest of the metadata; older files have none


class DamagedError(InputError):
    """The content of a file is damaged, so that it has to be made again."""


def write_weights(path: Path, tensors: Mapping[str, torch.Tensor], about: Mapping[str, str]) -> None:
    """Write tensors and metadata, atomically; raises `InputError` if a weight is not finite."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    if bad := count_not_finite(tensors):
        raise InputError(f"{path} is not written: {bad:,} of the weights are not finite (NaN or infinite)")
    content = save(tensors, {**about, CHECKSUM: _digest(tensors, about)})
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def read_weights(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors and the metadata of a safetensors file; raises `InputError` if it cannot be read.

    One that is no such file, is damaged, or has weights that are not finite, raises `DamagedError`.
    """
    try:
        # Opened first, since safetensors reports every error as a missing file.
        with path.open("rb"), safe_open(path, framework="pt") as file:
            about = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    except SafetensorError as error:
        raise DamagedError(f"{path} is no safetensors file, or is cut off: {error}") from None
    checksum = about.pop(CHECKSUM, None)
    if checksum is not None and checksum != _digest(tensors, about):
        raise DamagedError(f"{path} is damaged: its content does not have the checksum that was written with it")
    if bad := count_not_finite(tensors):
        raise DamagedError(f"{path} is damaged: {bad:,} of its weights are not finite (NaN or infinite)")
    return tensors, about


def are_usable(path: Path) -> bool:
    """Whether the file exists and is whole; a damaged one is logged and removed. Raises `InputError` if unreadable."""
    if not path.exists():
        return False
    try:
        read_weights(path)
    except DamagedError as error:
        log.warning("%s; it is learnt again", error)
        path.unlink()
        return False
    return True


def save_state(state: dict[str, Any], path: Path) -> None:
    """Save what a training needs to continue, atomically."""
    with atomic_path(path) as temporary:
        torch.save(state, temporary)


def load_state(path: Path) -> dict[str, Any] | None:
    """What `save_state` saved, in main memory; None if the file is missing, or damaged, which is logged.

    One that cannot be read is kept, and raises `InputError`.
    """
    try:
        content = io.BytesIO(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    try:
        check_archive(content)
        content.seek(0)
        return dict(torch.load(content, map_location="cpu", weights_only=True))
    except MemoryError:
        raise
    except Exception as error:  # of any kind: zip reader and unpickler read foreign bytes
        log.warning("%s is damaged (%s); the training begins again", path, " ".join(str(error).split())[:200])
        path.unlink()
        return None


def check_archive(file: Path | io.BytesIO) -> None:
    """Check the CRC-32 of each member of a file of PyTorch's, a zip archive; raises `ValueError` if one is wrong."""
    with zipfile.ZipFile(file) as archive:
        if (member := archive.testzip()) is not None:
            raise ValueError(f"the checksum of {member} is wrong")


def count_not_finite(tensors: Mapping[str, torch.Tensor]) -> int:
    """How many numbers are NaN or infinite."""
    return sum(int((~torch.isfinite(value)).sum()) for value in tensors.values())


def _digest(tensors: Mapping[str, torch.Tensor], about: Mapping[str, str]) -> str:
    """A hash of all tensors with their names, types and shapes, and of the metadata."""
    digest = hashlib.sha256()
    for key, text in sorted(about.items()):
        digest.update(f"{key} {len(text)} {text}\n".encode())
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
