"""Decoded images in memory-mapped files: decoded once, then shared by every run of a sweep and every process.

Decoding a JPEG of 800 x 800 pixels takes a few milliseconds, and a training image is read hundreds of times. One file
holds the pixels of many images one after the other; an index beside it has the place and the checksum of each, under
the sha256 of the image file, so that no entry can be stale. Of a grey image stored as colour, one channel is kept.
"""

from __future__ import annotations

import errno
import json
import logging
import mmap
import os
import shutil
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import IO, Any

import cv2
import numpy as np
from tqdm import tqdm

from boxtwin.datasets.image_io import Pixels, as_grey
from boxtwin.datasets.sample import Sample
from boxtwin.errors import InputError
from boxtwin.files import exclusive_lock, write_bytes_atomically

log = logging.getLogger(__name__)

BATCH = 500  # images between two writings of the index: a process that is killed loses so many at most
NAMED = 5  # of damaged images
AT_ONCE = 8  # images that are in memory while they are decoded
ALIGNMENT = 64  # bytes: a cache line


class DecodedImages:
    """The pixels of image files, decoded once if there is a folder for them, otherwise whenever they are read.

    Any number of processes may add and read at once: one adds while the others wait, and no entry is ever changed.
    Pixels beyond the last entry of an index are what a killed process was writing; the next one overwrites them.
    Another version of OpenCV, which may decode differently, has files of its own.

    Args:
        folder: holds a subfolder for each set of images, which may be deleted when no process is at work; None keeps
            nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._sets: list[str] = []
        self._pixels: dict[str, Pixels] = {}  # by the sha256 of the image file

    def __getstate__(self) -> dict[str, Any]:
        # For loader processes that do not inherit memory: maps travel as their files' names, not as their bytes.
        return {**vars(self), "_pixels": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        for name in self._sets:
            self._open(name)

    def add(self, name: str, samples: Sequence[Sample]) -> None:
        """Decode those of the images that are not in the set ``name`` yet, and open the set for `read`.

        Raises:
            InputError: the pixels do not fit on the disk, or cannot be written. What was written before stays usable.
        """
        if self._folder is None:
            return
        folder = self._folder / name
        try:
            with exclusive_lock(folder / ".lock", f"another process decodes images into {folder}; waiting for it"):
                self._write_missing(name, samples)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM):
                raise
            raise _refused(folder, str(error.strerror)) from error
        if name not in self._sets:
            self._sets.append(name)
        self._open(name)

    def read(self, sample: Sample) -> Pixels:
        """The pixels of an image, not to be written to: what `read_image` gives, in grey where the file is grey."""
        pixels = self._pixels.get(sample.sha256)
        return as_grey(sample.read()) if pixels is None else pixels

    def release(self, sample: Sample) -> None:
        """Free the memory that an image takes in this process, for images that are read once."""
        pixels = self._pixels.get(sample.sha256)
        file = None if pixels is None else pixels.base
        if pixels is None or not isinstance(file, np.memmap) or not hasattr(mmap, "MADV_DONTNEED"):
            return
        start = pixels.ctypes.data - file.ctypes.data
        first = start - start % mmap.PAGESIZE
        file._mmap.madvise(mmap.MADV_DONTNEED, first, start + pixels.nbytes - first)  # type: ignore[attr-defined]

    def _write_missing(self, name: str, samples: Sequence[Sample]) -> None:
        assert self._folder is not None
        data, index = _files(self._folder / name)
        entries = _entries(data, index)
        wanted = {sample.sha256: sample for sample in samples}
        damaged = _damaged(data, {sha256: entries[sha256] for sha256 in wanted if sha256 in entries})
        if damaged:
            names = ", ".join(wanted[sha256].name for sha256 in damaged[:NAMED])
            text = "%s: the pixels of %d images are damaged (%s); they are decoded anew"
            log.warning(text, data, len(damaged), names)
        missing = [sample for sha256, sample in wanted.items() if sha256 not in entries or sha256 in damaged]
        if not missing:
            return
        # At most three channels.
        needed = sum(sample.width * sample.height for sample in missing) * 3 * max(one.bits for one in missing) // 8
        if needed > shutil.disk_usage(data.parent).free:
            raise _refused(data.parent, f"{needed / 2**30:.1f} GB may be needed, more than the disk has left")
        end = max((entry["offset"] + _size(entry) for entry in entries.values()), default=0)
        with data.open("r+b" if data.exists() else "w+b") as file:
            file.truncate(end)
            for batch in _batches(missing):
                for sample, pixels in batch:
                    offset = -(-end // ALIGNMENT) * ALIGNMENT
                    file.seek(offset)
                    file.write(content := pixels.tobytes())
                    kind = {"shape": pixels.shape, "dtype": str(pixels.dtype)}
                    entries[sample.sha256] = {"offset": offset, **kind, "crc32": zlib.crc32(content)}
                    end = offset + len(content)
                _flush(file)  # an entry is written when its pixels are safe
                write_bytes_atomically(index, json.dumps(entries).encode())

    def _open(self, name: str) -> None:
        assert self._folder is not None
        data, index = _files(self._folder / name)
        entries = _entries(data, index)
        if not entries:
            return
        file = np.memmap(data, dtype=np.uint8, mode="r")
        for sha256, entry in entries.items():
            self._pixels[sha256] = np.ndarray(entry["shape"], entry["dtype"], file, entry["offset"])


def _damaged(data: Path, entries: dict[str, Any]) -> list[str]:
    """The entries whose pixels do not have their checksum."""
    if not entries:
        return []
    file = np.memmap(data, dtype=np.uint8, mode="r")
    return [
        sha256
        for sha256, entry in entries.items()
        if zlib.crc32(file[entry["offset"] : entry["offset"] + _size(entry)].tobytes()) != entry["crc32"]
    ]


def _files(folder: Path) -> tuple[Path, Path]:
    # Earlier versions kept no checksums, under names without the 2.
    stem = f"pixels2-opencv{cv2.__version__}"
    return folder / f"{stem}.bin", folder / f"{stem}.json"


def _entries(data: Path, index: Path) -> dict[str, Any]:
    """The index; empty where a file is missing or damaged, as a power cut may leave it."""
    try:
        entries: dict[str, Any] = json.loads(index.read_text())
        held = data.stat().st_size
        whole = all(entry["offset"] + _size(entry) <= held and entry["crc32"] >= 0 for entry in entries.values())
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, KeyError, AttributeError):  # not JSON, or not what we write
        whole = False
    if not whole:
        log.warning("%s is damaged; images are decoded anew", index)
    return entries if whole else {}


def _size(entry: dict[str, Any]) -> int:
    return int(np.prod(entry["shape"])) * np.dtype(entry["dtype"]).itemsize


def _batches(samples: Sequence[Sample]) -> Iterator[Iterator[tuple[Sample, Pixels]]]:
    """Samples with their pixels, decoded by a few threads: OpenCV releases the interpreter's lock."""
    remaining = iter(tqdm(samples, desc="decoding images", unit="image", disable=len(samples) < 1000))
    with ThreadPoolExecutor(max_workers=4) as pool:

        def decoded(batch: Sequence[Sample]) -> Iterator[tuple[Sample, Pixels]]:
            for start in range(0, len(batch), AT_ONCE):
                part = batch[start : start + AT_ONCE]
                yield from zip(part, pool.map(lambda sample: as_grey(sample.read()), part), strict=True)

        while batch := list(islice(remaining, BATCH)):
            yield decoded(batch)


def _flush(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _refused(folder: Path, reason: str) -> InputError:
    return InputError(
        f"{folder}: decoded images cannot be kept here: {reason}. Make room, choose another place (data=FOLDER), or "
        "set trainer.cache=false to decode images whenever they are drawn"
    )
