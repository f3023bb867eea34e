"""Decoded images in memory-mapped files: decoded once, then shared by every run of a sweep and every process.

Decoding a JPEG of 800 x 800 pixels takes a few milliseconds, and a training image is read hundreds of times. There is
one ``.npy`` file for each image, named by the sha256 of the image file, so that it cannot be stale, with a checksum at
its end, which `add` compares. Of a grey image stored as colour, one channel is kept.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import shutil
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from boxtwin.datasets.image_io import Pixels, as_grey
from boxtwin.datasets.problems import some
from boxtwin.datasets.sample import Sample
from boxtwin.errors import InputError
from boxtwin.files import exclusive_lock, remove_leftovers, write_bytes_atomically

log = logging.getLogger(__name__)

CHECKSUM_BYTES = 4
OPEN = 128  # files that a process keeps mapped: systems allow about a thousand
CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


class DecodedImages:
    """The pixels of image files, decoded once if there is a folder for them, otherwise whenever they are read.

    The folder holds one for each set of images, which may be deleted when no process is at work. Any number of
    processes may add and read at once: one adds while the others wait, and files are replaced, never changed. Another
    version of OpenCV, which may decode differently, has files of its own.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._sets: list[Path] = []

    def add(self, name: str, samples: Sequence[Sample]) -> None:
        """Decode those of the images that are not in the set ``name`` yet, and open the set for `read`.

        `InputError` if pixels do not fit on the disk, or cannot be written; what was written before stays usable.
        """
        if self._folder is None:
            return
        folder = self._folder / name / f"opencv{cv2.__version__}"
        try:
            waiting = f"another process decodes images into {folder.parent}; waiting for it"
            with exclusive_lock(folder.with_name(".lock"), waiting):
                _write_missing(folder, {sample.sha256: sample for sample in samples})
        except (OSError, InputError) as error:
            cause = error if isinstance(error, OSError) else error.__cause__
            if not isinstance(cause, OSError) or cause.errno not in CANNOT_WRITE:
                raise
            raise _refused(folder.parent, str(cause.strerror)) from error
        _mapped.cache_clear()
        if folder not in self._sets:
            self._sets.append(folder)

    def read(self, sample: Sample) -> Pixels:
        """The pixels of an image, not to be written to: what `read_image` gives, in grey where the file is grey."""
        for folder in self._sets:
            try:
                return _mapped(_file(folder, sample))
            except FileNotFoundError:
                continue
        return as_grey(sample.read())


@lru_cache(maxsize=OPEN)
def _mapped(file: Path) -> Pixels:
    pixels: Pixels = np.load(file, mmap_mode="r").view(np.ndarray)
    return pixels


def _file(folder: Path, sample: Sample) -> Path:
    return folder / f"{sample.sha256}.npy"


def _write_missing(folder: Path, wanted: dict[str, Sample]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder)
    missing = [sample for sample in wanted.values() if not _is_intact(_file(folder, sample))]
    if damaged := [sample.name for sample in missing if _file(folder, sample).exists()]:
        text = "%s: the pixels of %d images are damaged (%s); they are decoded anew"
        log.warning(text, folder, len(damaged), some(damaged))
    # At most three channels.
    needed = sum(sample.width * sample.height * 3 * sample.bits // 8 for sample in missing)
    if needed > shutil.disk_usage(folder).free:
        raise _refused(folder.parent, f"{needed / 1e9:.1f} GB may be needed, more than the disk has left")

    def write(sample: Sample) -> None:
        # Of a real image, the sha256 may cover more than the file.
        if sample.lineage and hashlib.sha256(sample.path.read_bytes()).hexdigest() != sample.sha256:
            raise InputError(f"{sample.path} has changed since its store was read; run the command again")
        encoded = BytesIO()
        np.save(encoded, as_grey(sample.read()))
        content = encoded.getvalue()
        write_bytes_atomically(_file(folder, sample), content + zlib.crc32(content).to_bytes(CHECKSUM_BYTES, "big"))

    # Threads, since OpenCV releases the interpreter's lock while it decodes.
    with ThreadPoolExecutor(max_workers=4) as pool:
        silent = len(missing) < 1000
        list(tqdm(pool.map(write, missing), "decoding images", len(missing), unit="image", disable=silent))


def _is_intact(file: Path) -> bool:
    content = file.read_bytes() if file.exists() else b""
    pixels, checksum = content[:-CHECKSUM_BYTES], content[-CHECKSUM_BYTES:]
    return len(pixels) > 0 and zlib.crc32(pixels) == int.from_bytes(checksum, "big")


def _refused(folder: Path, reason: str) -> InputError:
    cure = "Make room, choose another place (data=FOLDER), or set trainer.cache=false to decode them as they are drawn"
    return InputError(f"{folder}: decoded images cannot be kept here: {reason}. {cure}")
