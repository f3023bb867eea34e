"""Inspect each image file once (size, depth, hash, damage), and find images that occur more than once in a data set."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, Float16

from boxtwin.datasets import tiff
from boxtwin.datasets.image_io import Pixels, as_grey, decode_image, pixels_sha256, read_header
from boxtwin.datasets.options import Orientation
from boxtwin.datasets.reading import Header, Reading

RESTED_NS = 3_000_000_000  # the coarsest clock of a file system in use, FAT's, ticks every 2 s
SIDE = 32  # pixels a side of the small versions that are compared
COARSE = 3.0  # of those pixels, deviation of the Gaussian that is taken off: what neighbours share says little
# Correlation of two small versions from which on they are one picture. Copies of 200 HRSID chips and 200 microscope
# fields, written again as JPEG of quality 50 or resized, have 0.97 and more; of their 39,800 other pairs one has 0.89.
NEARLY_SAME = 0.93
COMMON = 20  # images from which on what all of them share (a dish, a fixed camera's view) is taken off first

# Roboflow names the copies that it makes of an image (augmented ones, too) NAME_EXTENSION.rf.HASH.EXTENSION.
ROBOFLOW = re.compile(r"^(?P<name>.+)\.rf\.[0-9A-Za-z]{16,}\.\w+$")


class Signature(NamedTuple):
    """Identifies what an image shows: a hash of its pixels, and a small version without its coarse brightness."""

    sha256: str
    small: Float16[np.ndarray, " 1024"]


def signature_of(pixels: Pixels) -> Signature | None:
    """The signature of an image; None where all pixels are of one value."""
    if pixels.min() == pixels.max():
        return None
    small = cv2.resize(pixels.astype(np.float32), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    small = np.atleast_3d(small).mean(axis=2)
    small = _normalised((small - cv2.GaussianBlur(small, (0, 0), COARSE)).reshape(1, -1))[0]
    return Signature(pixels_sha256(pixels), small.astype(np.float16))


def _normalised(values: Float[np.ndarray, "n pixels"]) -> Float[np.ndarray, "n pixels"]:
    values = values - values.mean(axis=1, keepdims=True)
    return np.asarray(values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-6))


@dataclass(frozen=True)
class ImageFile:
    """What inspecting an image file found."""

    width: int = 0  # as shown
    height: int = 0
    sha256: str = ""
    error: str = ""
    stored: tuple[int, int] = (0, 0)  # width and height as stored, before it is turned
    bits: int = 8
    colour: bool = False  # False for grey stored as colour
    is_turned: bool = False
    signature: Signature | None = None


# Every run of a sweep checks the data set, in one process: an image that has not changed since an earlier run is not
# decoded again. Of the four, only the time of the last change cannot be set by a program.
_State = tuple[int, int, int, int]  # inode, size, time written, time changed; nanoseconds
_inspected: dict[tuple[Path, Reading], tuple[_State, ImageFile]] = {}


def inspect_image(path: Path, width: object, height: object, reading: Reading) -> ImageFile:
    """Decode and hash an image file; one that this process has seen in the same state is not read again.

    One that is not ``width`` x ``height`` pixels large, as stored or as shown, is not decoded; anything but whole
    numbers stands for a size that is not known.
    """
    try:
        before = path.stat()
        state = (before.st_ino, before.st_size, before.st_mtime_ns, before.st_ctime_ns)
        key = (path.absolute(), reading)  # a relative path is another file in another folder
        if key in _inspected and _inspected[key][0] == state:
            return _inspected[key][1]
        content = path.read_bytes()
        header = read_header(content, str(path), reading)
        shown, stored = header.shown(reading), (header.width, header.height)
        if isinstance(width, int) and isinstance(height, int) and (width, height) not in (stored, shown):
            return ImageFile(*shown, stored=stored)
        pixels = decode_image(content, str(path), reading)
    except OSError as error:
        return ImageFile(error=str(error))
    file = ImageFile(
        width=pixels.shape[1],
        height=pixels.shape[0],
        sha256=_digest_of_file(content, header, reading),
        stored=stored,
        bits=8 * pixels.dtype.itemsize,
        colour=as_grey(pixels).ndim == 3,
        is_turned=header.orientation != 1 and reading.orientation is Orientation.apply,
        signature=signature_of(pixels),
    )
    # Two writes within one tick of the file system's clock leave the same times; a file that has rested is past that.
    if time.time_ns() - max(before.st_mtime_ns, before.st_ctime_ns) > RESTED_NS:
        _inspected[key] = (state, file)
    return file


def _digest_of_file(content: bytes, header: Header, reading: Reading) -> str:
    """Sha256 of a file, and of how it is read where that gives other pixels than in first versions."""
    is_as_before = header.how == tiff.BELOW_ALPHA and not tiff.is_darkened(content, "", reading)
    how: list[object] = [] if header.how is None or is_as_before else [header.how]
    # First versions read stored pixels of all formats but TIFF, the first page, and all channels.
    if header.orientation != 1 and header.is_tiff != (reading.orientation is Orientation.apply):
        how.append(reading.orientation.value)
    if reading.page or reading.channels is not None:
        how += [reading.page or 0, reading.channels]
    return hashlib.sha256(content + json.dumps(how).encode() if how else content).hexdigest()


def nearly_same(
    a: Sequence[Signature], b: Sequence[Signature], others: Sequence[Signature] = ()
) -> list[tuple[int, int]]:
    """Indices of images of ``a`` and ``b`` that show one picture, not of equal pixels; see `COMMON` for ``others``."""
    if not a or not b:
        return []
    small = np.stack([signature.small for signature in (*a, *b, *others)]).astype(np.float32)
    if len(small) >= COMMON:
        small = _normalised(small - small.mean(axis=0))
    first, second = small[: len(a)], small[len(a) : len(a) + len(b)]
    pairs: list[tuple[int, int]] = []
    for start in range(0, len(a), 1024):  # bounded memory
        rows, columns = np.nonzero(first[start : start + 1024] @ second.T >= NEARLY_SAME)
        pairs += zip((start + rows).tolist(), columns.tolist(), strict=True)
    return [(i, j) for i, j in pairs if a[i].sha256 != b[j].sha256]


def roboflow_name(name: str) -> str | None:
    """What the names of Roboflow's copies of one image have in common; None for names of other forms."""
    return match["name"] if (match := ROBOFLOW.match(name)) else None


def join_groups(groups: Mapping[str, str], together: Sequence[Sequence[str]]) -> dict[str, str]:
    """Join the groups (by image) of images that must be together; each joined group is named as the first of them."""
    joined: dict[str, str] = {}

    def root(group: str) -> str:
        while group in joined:
            group = joined[group]
        return group

    for names in together:
        first, *others = sorted({root(groups[name]) for name in names})
        joined |= dict.fromkeys(others, first)
    return {name: root(group) for name, group in groups.items()}
