"""Reading and writing image files without losing bits: grey or colour, 8 or 16 bit."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8, UInt16

from boxtwin.files import whole_file

# Underscores: two images in one signature may differ in size.
Pixels = (
    UInt8[np.ndarray, "_h _w"]
    | UInt8[np.ndarray, "_h _w 3"]
    | UInt16[np.ndarray, "_h _w"]
    | UInt16[np.ndarray, "_h _w 3"]
)


def read_image(path: Path) -> Pixels:
    """Read an image as ``(h, w)`` grey or ``(h, w, 3)`` RGB, uint8 or uint16 as in the file.

    Alpha channels are dropped. EXIF rotation is not applied: COCO boxes refer to the stored pixels.

    Raises:
        OSError: the file is missing, or is not an image that OpenCV can decode to the end.
    """
    return decode_image(np.fromfile(path, dtype=np.uint8), str(path))


def decode_image(encoded: UInt8[np.ndarray, " bytes"], name: str) -> Pixels:
    """As `read_image`, from the bytes of a file; ``name`` is what errors call it.

    Raises:
        OSError: OpenCV cannot decode them to the end.
    """
    try:
        pixels = None if encoded.size == 0 else cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED)
    except cv2.error as error:  # such as a header that tells of more pixels than OpenCV takes
        raise OSError(f"{name} cannot be decoded as an image: {error}") from None
    if pixels is None:
        raise OSError(f"{name} cannot be decoded as an image")
    if pixels.dtype not in (np.uint8, np.uint16):
        raise OSError(f"{name} holds {pixels.dtype} pixels; 8 and 16 bit unsigned integers are supported")
    if pixels.ndim == 2:
        return pixels
    if pixels.shape[2] == 1:
        return np.ascontiguousarray(pixels[:, :, 0])
    return np.ascontiguousarray(pixels[:, :, 2::-1])


def as_grey(pixels: Pixels) -> Pixels:
    """Colour pixels whose three channels are equal as ``(h, w)`` grey; any others as they are.

    Grey sensors' images are often stored as colour files, HRSID's among them; they need a third of the memory and work.
    """
    if pixels.ndim == 2:
        return pixels
    # Whole channels, next to each other in memory, are compared many times faster than every third value.
    first, *others = (cv2.extractChannel(pixels, channel) for channel in range(3))
    return first if all(np.array_equal(first, other) for other in others) else pixels


def pixels_sha256(pixels: Pixels) -> str:
    """A hash of what an image shows, whatever file it is stored in."""
    return hashlib.sha256(f"{pixels.shape} {pixels.dtype}".encode() + pixels.tobytes()).hexdigest()


def write_png(path: Path, pixels: Pixels) -> None:
    """Write pixels losslessly; the file appears whole or not at all (temporary file, then rename)."""
    write_bytes_atomically(path, encode_png(pixels))


def encode_png(pixels: Pixels) -> bytes:
    """The bytes of the file that `write_png` writes."""
    stored = pixels if pixels.ndim == 2 else np.ascontiguousarray(pixels[:, :, ::-1])
    done, encoded = cv2.imencode(".png", stored)
    if not done:
        raise OSError(f"pixels of shape {pixels.shape} and type {pixels.dtype} cannot be written as PNG")
    return encoded.tobytes()


def write_bytes_atomically(path: Path, content: bytes) -> None:
    """Write a file so that no reader, and no kill, ever meets half of it.

    Raises:
        InputError: the disk or the folder does not take it.
    """
    with whole_file(path) as temporary:
        temporary.write_bytes(content)


def link_file(there: Path, here: Path) -> None:
    """One file under two names; a copy where the disk has no links. A file at ``here`` is replaced."""
    with whole_file(here) as temporary:
        temporary.unlink(missing_ok=True)
        try:
            os.link(there, temporary)
        except OSError:
            shutil.copyfile(there, temporary)
    temporary.unlink(missing_ok=True)  # renaming does nothing where both are links to one file (POSIX, rename)


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files that killed writers left in a folder; only for the holder of the folder's lock."""
    for path in folder.rglob(".*.part"):
        path.unlink()
