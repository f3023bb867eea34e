"""Image files as browsers show them: 8 bit PNG or JPEG of the same size, in the same orientation."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from boxtwin.datasets.image_io import decode_image, pixels_sha256, read_header, write_png
from boxtwin.datasets.levels import black_and_white, to_8_bit
from boxtwin.datasets.reading import Reading
from boxtwin.errors import InputError
from boxtwin.files import link_file

SHOWN = frozenset((".png", ".jpg", ".jpeg", ".webp", ".bmp"))


class Exported(NamedTuple):
    """What is recorded of an exported image; black and white are the values that became 0 and 255."""

    pixels_sha256: str  # of the image, not of the exported file
    width: int
    height: int
    black: int = 0
    white: int = 255


def is_shown(path: Path, reading: Reading) -> bool:
    """Whether browsers show a file, by its ending, all its channels, and upright as it is stored."""
    if path.suffix.lower() not in SHOWN or reading.channels is not None:
        return False
    try:
        return read_header(path.read_bytes(), str(path), reading).orientation == 1
    except OSError:
        return True  # missing or damaged: exporting it says so


def export_image(path: Path, reading: Reading, target: Path) -> Exported:
    """Link an image to ``target`` if browsers show it as it is read here; else write it there as an 8 bit PNG.

    Black and white of 16 bit images are the 0.1th and 99.9th percentile of each. InputError if it cannot be read.
    """
    try:
        pixels = decode_image(path.read_bytes(), str(path), reading)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    height, width = pixels.shape[:2]
    digest = pixels_sha256(pixels)
    if pixels.dtype == np.uint8 and is_shown(path, reading):
        target.parent.mkdir(parents=True, exist_ok=True)
        link_file(path, target)
        return Exported(digest, width, height)
    ends = black_and_white(pixels)
    write_png(target, to_8_bit(pixels, ends))
    return Exported(digest, width, height, *ends)
