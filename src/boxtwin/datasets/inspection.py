"""Inspect each image file once (size, depth, hash, damage), and find images that occur more than once in a data set."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, Float16

from boxtwin.datasets import tiff
from boxtwin.datasets.image_io import Pixels, decode_image, pixels_sha256, read_header
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


class Look(NamedTuple):
    """What an image looks like: a hash of its pixels, and a small version without its coarse brightness."""

    sha256: str
    small: Float16[np.ndarray, " 1024"]


def look_of(pixels: Pixels) -> Look | None:
    """The look of an image; None where it is of one value, and so the same as nothing."""
    if pixels.min() == pixels.max():
        return None
    small = cv2.resize(pixels.astype(np.float32), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    small = small if small.ndim == 2 else small.mean(axis=2)
    small = _normalised((small - cv2.GaussianBlur(small, (0, 0), COARSE)).reshape(1, -1))[0]
    return Look(pixels_sha256(pixels), small.astype(np.float16))


def _normalised(values: Float[np.ndarray, "n pixels"]) -> Float[np.ndarray, "n pixels"]:
    values = values - values.mean(axis=1, keepdims=True)
    return np.asarray(values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-6))


@dataclass(frozen=True)
class ImageFile:
    """What reading an image file found."""

    width: int = 0  # as shown
    height: int = 0
    sha256: str = ""
    error: str = ""
    stored: tuple[int, int] = (0, 0)  # width and height as stored, before it is turned
    bits: int = 8
    is_turned: bool = False
    look: Look | None = None


# Every run of a sweep checks the data set, in one process: an image that has not been touched since an earlier run
# looked at it is not decoded again. Of the four, only the time of the last change cannot be set by a program.
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
        # A relative path is another file in another folder.
        known = _inspected.get((path.absolute(), reading))
        if known is not None and known[0] == state:
            return known[1]
        content = path.read_bytes()
        header = read_header(content, str(path), reading)
        file = ImageFile(*header.shown(reading), stored=(header.width, header.height))
        is_told = isinstance(width, int) and isinstance(height, int)
        if is_told and (width, height) not in (file.stored, (file.width, file.height)):
            return file
        pixels = decode_image(content, str(path), reading)
    except OSError as error:
        return ImageFile(error=str(error))
    file = replace(
        file,
        width=pixels.shape[1],
        height=pixels.shape[0],
        sha256=_digest_of_file(content, header, reading),
        bits=8 * pixels.dtype.itemsize,
        look=look_of(pixels),
        is_turned=header.orientation != 1 and reading.orientation == "apply",
    )
    # Two writes within one tick of the file system's clock leave the same times; a file that has rested is past that.
    if time.time_ns() - max(before.st_mtime_ns, before.st_ctime_ns) > RESTED_NS:
        _inspected[path.absolute(), reading] = (state, file)
    return file


def _digest_of_file(content: bytes, header: Header, reading: Reading) -> str:
    """Sha256 of a file, and of how it is read where that gives other pixels than the file's hash alone used to mean."""
    is_as_before = header.how == tiff.BELOW_ALPHA and not tiff.is_darkened(content, "", reading)
    how: list[object] = [] if header.how is None or is_as_before else [header.how]
    # Stored pixels of all formats but TIFF were read, the first page, and all channels.
    if header.orientation != 1 and header.is_tiff != (reading.orientation == "apply"):
        how.append(reading.orientation)
    if reading.page or reading.channels is not None:
        how += [reading.page or 0, reading.channels]
    return hashlib.sha256(content + json.dumps(how).encode() if how else content).hexdigest()


def nearly_same(a: Sequence[Look], b: Sequence[Look], others: Sequence[Look] = ()) -> list[tuple[int, int]]:
    """The places of those images of ``a`` and ``b`` that show one picture, the same pixels left out.

    ``others`` count for what all images share.
    """
    if not a or not b:
        return []
    small = np.stack([look.small for look in (*a, *b, *others)]).astype(np.float32)
    if len(small) >= COMMON:
        small = _normalised(small - small.mean(axis=0))
    first, second = small[: len(a)], small[len(a) : len(a) + len(b)]
    found = []
    for start in range(0, len(a), 1024):  # bounded memory
        pairs = np.argwhere(first[start : start + 1024] @ second.T >= NEARLY_SAME)
        found += [(start + int(i), int(j)) for i, j in pairs]
    return [(i, j) for i, j in found if a[i].sha256 != b[j].sha256]


def roboflow_name(name: str) -> str | None:
    """What the copies of one image that Roboflow has written have in common; None for names of other forms."""
    match = ROBOFLOW.match(name)
    return match["name"] if match else None


def same_pixels(looks: Mapping[str, Look | None]) -> list[list[str]]:
    """The names of images with equal pixels, those of each in one list."""
    by_hash: dict[str, list[str]] = defaultdict(list)
    for name, look in looks.items():
        if look is not None:
            by_hash[look.sha256].append(name)
    return [names for names in by_hash.values() if len(names) > 1]


def join_groups(groups: Mapping[str, str], together: Sequence[Sequence[str]]) -> dict[str, str]:
    """Join the groups of images that belong together, each named as the first of them; all others stay as they are.

    Args:
        groups: of each image, by name.
        together: names of images that must be in one group.
    """
    joined: dict[str, str] = {}

    def root(group: str) -> str:
        while group in joined:
            group = joined[group]
        return group

    for names in together:
        first, *others = sorted({root(groups[name]) for name in names})
        joined |= dict.fromkeys(others, first)
    return {name: root(group) for name, group in groups.items()}
