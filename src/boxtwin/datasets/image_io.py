"""Read and write image files without losing bits: grey or colour, 8 or 16 bit."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8, UInt16
from PIL import Image, UnidentifiedImageError

from boxtwin.datasets import tiff
from boxtwin.datasets.options import Orientation
from boxtwin.datasets.reading import Header, Reading, exif_orientation, upright
from boxtwin.files import write_bytes_atomically

# Underscores: two images in one signature may differ in size.
Pixels = (
    UInt8[np.ndarray, "_h _w"]
    | UInt8[np.ndarray, "_h _w 3"]
    | UInt16[np.ndarray, "_h _w"]
    | UInt16[np.ndarray, "_h _w 3"]
)

_QUALITY = {"jpg": cv2.IMWRITE_JPEG_QUALITY, "webp": cv2.IMWRITE_WEBP_QUALITY}

# Headers are checked against `Reading.max_pixels`, which may be more than Pillow's own limit.
Image.MAX_IMAGE_PIXELS = None

_UPRIGHT = Reading()
# WebP and JPEG 2000: decoders fill in grey or black for missing data.
_COMPRESSED = (b"RIFF", b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51")
# In the compressed data of a JPEG, 0xFF is followed by 0 or by the number of a restart; all else is a marker (T.81).
_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])")
_END_OF_IMAGE, _WITHOUT_LENGTH = 0xD9, (0x01, 0xD8)
# The greatest value of a binary Netpbm file stands for white. OpenCV scales values in text (P2, P3) to it, not these.
_NETPBM = re.compile(rb"P[56](?:(?:\s|#[^\n]*\n)+(\d+)){3}\s")
_TO_WHITE = "values up to white"


def read_image(path: Path, reading: Reading = _UPRIGHT) -> Pixels:
    """Read an image as ``(h, w)`` grey or ``(h, w, 3)`` RGB without alpha, uint8 or uint16 as in the file.

    OSError if the file is missing, damaged or too large, or holds something else than ``reading`` expects.
    """
    return decode_image(path.read_bytes(), str(path), reading)


def decode_image(encoded: bytes, name: str, reading: Reading = _UPRIGHT) -> Pixels:
    """As `read_image`, from the bytes of a file; ``name`` is what errors call it."""
    header = read_header(encoded, name, reading)
    content = tiff.for_opencv(encoded, name, reading) if header.is_tiff else None
    if content is not None:
        is_darkened = header.how == tiff.BELOW_ALPHA
        stored = tiff.without_alpha(content, name)[0] if is_darkened else _stored(content, name, reading.channels)
    elif header.is_tiff:
        stored = tiff.decode(encoded, name, reading)
    else:
        if encoded[:2] == b"\xff\xd8":
            _check_jpeg(encoded, name)
        elif encoded.startswith(_COMPRESSED) and not encoded[-tiff.LONGEST_ZEROS :].strip(b"\0"):
            raise OSError(f"{name} is damaged: it ends in zeros, as a download does that stopped on the way")
        stored = _stored(encoded, name, reading.channels)
        if header.how == _TO_WHITE:
            stored = np.rint(np.minimum(stored * (255 / (_whitest(encoded) or 255)), 255)).astype(np.uint8)
    if stored.dtype not in (np.uint8, np.uint16):
        raise OSError(f"{name} holds {stored.dtype} pixels; 8 and 16 bit unsigned integers are supported")
    if reading.orientation is Orientation.apply:
        stored = upright(stored, header.orientation)
    return np.ascontiguousarray(stored)


def read_header(encoded: bytes, name: str, reading: Reading = _UPRIGHT) -> Header:
    """What a file says of its image, without decoding it.

    OSError if it is no image, has more pixels than ``reading`` allows, or several pages where none is chosen.
    """
    read = tiff.read_header if tiff.is_tiff(encoded) else _header
    header = read(encoded, name, reading)
    if header.width * header.height > reading.max_pixels:
        size = f"{header.width} x {header.height}"
        raise OSError(f"{name} has {size} pixels, more than dataset.max_pixels={reading.max_pixels}")
    return header


def _header(encoded: bytes, name: str, reading: Reading) -> Header:
    try:
        with Image.open(BytesIO(encoded)) as image:
            if getattr(image, "is_animated", False) and image.format in ("GIF", "PNG", "WEBP") and reading.page != 0:
                first = "read the first" if reading.page is None else "read the first (no other can be read)"
                raise OSError(f"{name} is an animation; save one of its pictures, or {first} with dataset.page=0")
            exif = image.info.get("exif", b"")
            if image.format == "PNG":
                late = encoded.rfind(b"eXIf", encoded.find(b"IDAT"))  # may follow the pixels, where Pillow has not been
                exif = exif or encoded[late + 4 :] if late >= 0 else exif
                image.verify()  # the checksums of its parts
            how = None if _whitest(encoded) is None else _TO_WHITE
            return Header(*image.size, exif_orientation(exif), how=how)
    except UnidentifiedImageError:
        raise OSError(f"{name} cannot be decoded as an image") from None
    except Exception as error:
        if isinstance(error, OSError) and str(error).startswith(name):
            raise
        # Pillow's errors of damaged files share no class: SyntaxError, struct.error, ...
        raise OSError(f"{name} cannot be decoded as an image: {error}") from None


def _whitest(encoded: bytes) -> int | None:
    """The value of white in a binary Netpbm file of 8 bit, where it is not 255; None for all others."""
    match = _NETPBM.match(encoded)
    return int(match[1]) if match and 0 < int(match[1]) < 255 else None


def _stored(encoded: bytes, name: str, channels: Sequence[int] | None) -> np.ndarray:
    """Pixels as OpenCV decodes them, in the file's order of rows and columns; RGB, without alpha."""
    try:
        pixels = cv2.imdecode(np.frombuffer(encoded, dtype=np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise OSError(f"{name} cannot be decoded as an image: {error}") from None
    if pixels is None:
        raise OSError(f"{name} cannot be decoded as an image")
    pixels = np.atleast_3d(pixels)
    if pixels.shape[2] >= 3:
        pixels = pixels[:, :, [2, 1, 0, *range(3, pixels.shape[2])]]
    if channels is None:
        return pixels[:, :, 0] if pixels.shape[2] < 3 else pixels[:, :, :3]
    if max(channels) >= pixels.shape[2]:
        raise OSError(f"{name} has {pixels.shape[2]} channels; dataset.channels={list(channels)} counts from 0")
    return tiff.take_channels(pixels, channels)


def _check_jpeg(encoded: bytes, name: str) -> None:
    """Raise OSError where the end marker is missing: the file was cut off or overwritten, and decoders fill in grey."""
    place = 2
    while marker := _MARKER.search(encoded, place):
        kind, place = marker[1][0], marker.end()
        if kind == _END_OF_IMAGE:
            return
        if kind not in _WITHOUT_LENGTH and place + 2 <= len(encoded):
            place += int.from_bytes(encoded[place : place + 2], "big")
    raise OSError(f"{name} is damaged: the JPEG's end marker is missing, so that its lower part would be grey")


def as_grey(pixels: Pixels) -> Pixels:
    """Colour pixels whose three channels are equal, as many grey sensors' are stored, as ``(h, w)``; others as is."""
    if pixels.ndim == 2:
        return pixels
    # Whole channels, next to each other in memory, are compared many times faster than every third value.
    first, *others = (cv2.extractChannel(pixels, channel) for channel in range(3))
    return first if all(np.array_equal(first, other) for other in others) else pixels


def pixels_sha256(pixels: Pixels) -> str:
    """A hash of what an image shows, whatever file it is stored in."""
    return hashlib.sha256(f"{pixels.shape} {pixels.dtype}".encode() + pixels.tobytes()).hexdigest()


def write_png(path: Path, pixels: Pixels) -> None:
    """Write pixels losslessly and atomically."""
    write_bytes_atomically(path, encode_png(pixels))


def encode_png(pixels: Pixels) -> bytes:
    """The bytes of the file that `write_png` writes."""
    return encode(pixels, "png")


def encode(pixels: Pixels, kind: str, quality: int | None = None) -> bytes:
    """Pixels as a PNG, or with a quality in percent as a JPEG (``jpg``) or WebP (``webp``)."""
    stored = pixels if pixels.ndim == 2 else np.ascontiguousarray(pixels[:, :, ::-1])
    done, encoded = cv2.imencode(f".{kind}", stored, [] if quality is None else [_QUALITY[kind], quality])
    if not done:
        raise OSError(f"pixels of shape {pixels.shape} and type {pixels.dtype} cannot be written as {kind.upper()}")
    return encoded.tobytes()
