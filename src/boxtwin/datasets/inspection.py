"""What an image file holds, found out once: its size, its bits, its hash, and whether it is whole."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path

from boxtwin.datasets import tiff
from boxtwin.datasets.doubles import Look, look_of
from boxtwin.datasets.image_io import decode_image, read_header
from boxtwin.datasets.reading import Header, Reading

RESTED_NS = 3_000_000_000  # the coarsest clock of a file system in use, FAT's, ticks every 2 s


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


# Every cell of a sweep checks the data set, in one process: an image that has not been touched since an earlier cell
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
