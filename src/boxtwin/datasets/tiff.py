"""TIFF files: their headers, and decoding by tifffile where OpenCV misreads them (planes, pages, extra channels).

tifffile: https://github.com/cgohlke/tifffile (BSD). The format: Adobe, TIFF revision 6.0 (1992).
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image
from tifffile import COMPRESSION, EXTRASAMPLE, PHOTOMETRIC, PLANARCONFIG, TiffFile, TiffPage

from boxtwin.datasets.reading import ORIENTATION_TAG, Header, Reading

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
REDUCED_OR_MASK = 0b101  # bits of tag NewSubfileType: such a page is no image of its own
ALPHA = (EXTRASAMPLE.ASSOCALPHA, EXTRASAMPLE.UNASSALPHA)
# What tifffile's samples are: brightness, or red, green and blue.
PLAIN = (PHOTOMETRIC.MINISWHITE, PHOTOMETRIC.MINISBLACK, PHOTOMETRIC.RGB, PHOTOMETRIC.LINEAR_RAW)
BELOW_ALPHA = "colours below alpha"
GREY = "three channels as grey"
LONGEST_ZEROS = 64  # bytes; compressed data has no longer runs of zeros


def is_tiff(content: bytes | Path) -> bool:
    """Whether a file, or its first bytes, is of TIFF."""
    if isinstance(content, Path):
        with content.open("rb") as file:
            content = file.read(4)
    return content[:4] in MAGIC


@contextmanager
def _opened(content: bytes | Path, name: str) -> Iterator[TiffFile]:
    try:
        with TiffFile(content if isinstance(content, Path) else BytesIO(content)) as file:
            yield file
    except OSError:
        raise
    except Exception as error:  # tifffile's own errors of damaged files share no class
        hint = "; pip install imagecodecs brings it" if "imagecodecs" in str(error) else ""
        raise OSError(f"{name} cannot be decoded as an image: {error}{hint}") from None


def read_header(content: bytes | Path, name: str, reading: Reading) -> Header:
    """The header of the page that is read; raises OSError where the file does not fit ``reading``.

    ``content`` is the bytes of the file, or its path: of a large file no more is read than the header.
    """
    with _opened(content, name) as file:
        page, _ = _page(file, name, reading)
        samples, channels = page.samplesperpixel, reading.channels
        if channels is not None and max(channels) >= samples:
            raise OSError(f"{name} has {samples} channels; dataset.channels={list(channels)} counts from 0")
        has_alpha = len(page.extrasamples) == 1 and int(page.extrasamples[0]) in ALPHA
        is_cmyk = page.photometric == PHOTOMETRIC.SEPARATED and samples == 4
        if channels is None and samples not in (1, 3) and not is_cmyk and not (has_alpha and samples in (2, 4)):
            which = "one or three to read, such as dataset.channels=[0] or [0,1,2]"
            raise OSError(f"{name} has {samples} channels; say which {which}")
        if page.dtype not in (bool, np.uint8, np.uint16):
            kind = page.dtype or f"{page.bitspersample} bit"
            raise OSError(f"{name} holds {kind} pixels; 8 and 16 bit unsigned integers are supported")
        tag = page.tags.get(ORIENTATION_TAG)
        orientation = int(tag.value) if tag is not None and int(tag.value) in range(1, 9) else 1
        how = "planes" if _has_planes(page) else _misread(page)
        if how == GREY and channels is not None:
            how = None  # channels that are chosen were read well before
        if channels is not None and page.photometric == PHOTOMETRIC.PALETTE:
            how = "palette"  # whose channels earlier versions did not choose from
        return Header(page.imagewidth, page.imagelength, orientation, is_tiff=True, how=how)


def for_opencv(content: bytes, name: str, reading: Reading) -> bytes | None:
    """The file with its orientation set to 1, so that OpenCV gives stored pixels; None if `decode` must read it."""
    with _opened(content, name) as file:
        page, _ = _page(file, name, reading)
        ends = [start + size for start, size in zip(page.dataoffsets, page.databytecounts, strict=True)]
        if max(ends, default=0) > len(content):
            raise OSError(f"{name} cannot be decoded as an image: it is cut short, {len(content)} of {max(ends)} bytes")
        _check_compressed(content, page, name)
        samples = page.samplesperpixel
        is_misread = _has_planes(page) or _misread(page) not in (None, BELOW_ALPHA) or len(_pages(file)) > 1
        has_other_channels = samples not in (1, 3, 4) or (samples == 4 and page.bitspersample == 16)
        # OpenCV 4.14 refuses tiles of some sizes: 16 x 16, say.
        is_misread |= page.is_tiled and page.compression == COMPRESSION.NONE and page.bitspersample == 8 and samples < 4
        if is_misread or has_other_channels or (reading.channels is not None and samples > 1):
            return None
        tag = page.tags.get(ORIENTATION_TAG)
        if tag is None:
            return content
        value = (1).to_bytes(2, "little" if file.byteorder == "<" else "big")
        return content[: tag.valueoffset] + value + content[tag.valueoffset + 2 :]


def _check_compressed(content: bytes, page: TiffPage, name: str) -> None:
    """Raise OSError for damaged strips or tiles, which OpenCV fills up without an error where they have 8 bit."""
    if page.compression == COMPRESSION.NONE:
        return
    for start, size in zip(page.dataoffsets, page.databytecounts, strict=True):
        segment = content[start : start + size]
        # As a download leaves it that has stopped on the way, into a file of its full length.
        if size > LONGEST_ZEROS and not segment[-LONGEST_ZEROS:].strip(b"\0"):
            raise OSError(f"{name} is damaged: a part of its pixels ends in zeros")
        if size and page.compression in (COMPRESSION.ADOBE_DEFLATE, COMPRESSION.DEFLATE):
            unpacked = zlib.decompressobj()
            try:
                unpacked.decompress(segment)
            except zlib.error as error:
                raise OSError(f"{name} is damaged: {error}") from None
            if not unpacked.eof:
                raise OSError(f"{name} is damaged: a part of its pixels is cut short")


def is_darkened(content: bytes, name: str, reading: Reading) -> bool:
    """Whether OpenCV gives other colours than `without_alpha`: it reads the file, and not all pixels are opaque."""
    readable = for_opencv(content, name, reading)
    return readable is not None and not without_alpha(readable, name)[1]


def without_alpha(content: bytes, name: str) -> tuple[np.ndarray, bool]:
    """The colours of an 8 bit file from `for_opencv` as they are stored, and whether all of them are opaque."""
    try:
        with Image.open(BytesIO(content)) as image:
            pixels = np.asarray(image.convert("RGBA"))
    except Exception as error:  # Pillow's own errors of damaged files share no class
        raise OSError(f"{name} cannot be decoded as an image: {error}") from None
    return pixels[:, :, :3], bool(pixels[:, :, 3].min() == 255)


def decode(content: bytes, name: str, reading: Reading) -> np.ndarray:
    """The stored pixels of the page and the channels that ``reading`` takes, ``(h, w)`` or ``(h, w, 3)``.

    Raises OSError where the file is damaged, or compressed in a way that is not supported.
    """
    with _opened(content, name) as file:
        page, number = _page(file, name, reading)
        if page.photometric == PHOTOMETRIC.PALETTE or page.bitspersample not in (8, 16) or page.imagedepth > 1:
            kinds = f"with a palette, with {page.bitspersample} bit or in volumes"
            raise OSError(f"{name}: pages {kinds} are not supported")
        if reading.channels is None and page.photometric not in PLAIN:
            kind = PHOTOMETRIC(page.photometric).name
            raise OSError(f"{name} holds colours as {kind}, in a form that cannot be read; convert it to RGB")
        if _is_bare(file):
            # tifffile and ImageJ write stacks as one page, with the others' pixels behind its own.
            start = page.dataoffsets[0] + number * page.nbytes
            dtype = np.dtype(page.dtype)
            stored = np.frombuffer(content, dtype.newbyteorder(file.byteorder), page.size, start)
            pixels = stored.reshape(page.shape).astype(dtype)
        else:
            pixels = page.asarray()
        if _has_planes(page):
            pixels = np.moveaxis(pixels, 0, -1)
        pixels = pixels.reshape(page.imagelength, page.imagewidth, -1)
        if page.photometric == PHOTOMETRIC.MINISWHITE:
            pixels = np.iinfo(pixels.dtype).max - pixels
        return take_channels(pixels, reading.channels or ((0,) if pixels.shape[2] < 3 else (0, 1, 2)))


def take_channels(pixels: np.ndarray, channels: Sequence[int]) -> np.ndarray:
    """One channel of ``(h, w, c)`` pixels as ``(h, w)``, or several in the order given."""
    return pixels[:, :, channels[0]] if len(channels) == 1 else pixels[:, :, list(channels)]


def _has_planes(page: TiffPage) -> bool:
    return bool(page.samplesperpixel > 1 and page.planarconfig == PLANARCONFIG.SEPARATE)


def _misread(page: TiffPage) -> str | None:
    """How OpenCV misreads a page: it takes the first one, even a preview, and reads 0 as black in 16 bit.

    It darkens colours of 8 bit by their alpha, unlike in other formats. Three channels that are not called colours, as
    GDAL writes them in 16 bit, become grey.
    """
    if page.index:
        return f"page {page.index}"
    if page.photometric in (PHOTOMETRIC.MINISBLACK, PHOTOMETRIC.MINISWHITE) and page.samplesperpixel == 3:
        return GREY
    if page.photometric == PHOTOMETRIC.RGB and page.bitspersample == 8 and page.extrasamples == (ALPHA[1],):
        return BELOW_ALPHA
    return "0 is white" if page.photometric == PHOTOMETRIC.MINISWHITE and page.bitspersample == 16 else None


def _is_bare(file: TiffFile) -> bool:
    """Whether the pixels of several pages lie behind one page's header."""
    page = file.pages[0]
    return len(file.pages) == 1 and bool(file.series) and math.prod(file.series[0].shape) > page.size


def _pages(file: TiffFile) -> list[TiffPage]:
    """The pages of the file that are images of their own."""
    pages = [page.aspage() for page in file.pages]
    if _is_bare(file):
        return pages * (math.prod(file.series[0].shape) // pages[0].size)
    return [page for page in pages if not page.subfiletype & REDUCED_OR_MASK] or pages[:1]


def windows_problem(path: Path, reading: Reading) -> str | None:
    """Why windows of a file would have other pixels than the whole file that `decode` or OpenCV reads; None: equal."""
    with _opened(path, str(path)) as file:
        page, _ = _page(file, str(path), reading)
        if page.photometric not in (PHOTOMETRIC.MINISBLACK, PHOTOMETRIC.RGB):
            return f"colours as {PHOTOMETRIC(page.photometric).name}"
        return None if page.bitspersample in (8, 16) else f"{page.bitspersample} bit"


def count_pages(content: bytes | Path, name: str) -> int:
    """How many images a file holds; raises OSError where it is damaged."""
    with _opened(content, name) as file:
        return len(_pages(file))


def _page(file: TiffFile, name: str, reading: Reading) -> tuple[TiffPage, int]:
    """The page to read, and its number."""
    pages, number = _pages(file), reading.page or 0
    if len(pages) > 1 and reading.page is None:
        which = f"dataset.page=0 to {len(pages) - 1}"
        raise OSError(f"{name} is a stack of {len(pages)} pages; say which to read, {which}, or save it alone")
    if number >= len(pages):
        raise OSError(f"{name} has {len(pages)} pages, and dataset.page={number} counts from 0")
    return pages[number], number
