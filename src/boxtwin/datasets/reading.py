"""How the pixels of an image file are read: orientation, page, channels."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from boxtwin.datasets.options import Orientation

# EXIF 2.32, tag Orientation (0x0112): where row 0 and column 0 of the stored pixels are on the screen.
ORIENTATION_TAG = 0x0112
MAX_PIXELS = 100_000_000


@dataclass(frozen=True)
class Reading:
    """How image files become pixels."""

    # Whether pixels are turned as the file's orientation tag says, as browsers and labelling tools do, or taken as they
    # are stored. The same for JPEG, PNG, TIFF and WebP.
    orientation: Orientation = Orientation.apply
    page: int | None = None  # of a TIFF file with several pages, from 0; None refuses such files
    channels: Sequence[int] | None = None  # one or three to take, in this order, from 0; None takes grey or RGB
    max_pixels: int = MAX_PIXELS  # images of more are refused before they are decoded

    def __post_init__(self) -> None:
        if self.channels is not None:
            if len(self.channels) not in (1, 3) or min(self.channels) < 0:
                raise ValueError(f"one or three channels can be taken, numbered from 0, got {list(self.channels)}")
            object.__setattr__(self, "channels", tuple(self.channels))
        if self.page is not None and self.page < 0:
            raise ValueError(f"pages are numbered from 0, got {self.page}")
        if self.max_pixels < 1:
            raise ValueError(f"max_pixels is a number of pixels, got {self.max_pixels}")

    def plain(self) -> dict[str, Any]:
        """The fields as JSON has them."""
        channels = None if self.channels is None else list(self.channels)
        return {**vars(self), "orientation": str(self.orientation), "channels": channels}

    def stated(self) -> dict[str, Any]:
        """What the entry of an image in a COCO file says of how it was read."""
        fields = self.plain()
        return {name: fields[name] for name in ("orientation", "page", "channels") if fields[name] is not None}

    @classmethod
    def from_plain(cls, fields: Mapping[str, Any]) -> Reading:
        """The inverse of `plain`."""
        return cls(**{**fields, "orientation": Orientation(fields["orientation"])})


@dataclass(frozen=True)
class Header:
    """What a file says of its image before it is decoded. Sizes in pixels, as stored."""

    width: int
    height: int
    orientation: int = 1  # EXIF's number; 1 is upright
    is_tiff: bool = False
    how: str | None = None  # how OpenCV would misread it; None: OpenCV reads it

    def shown(self, reading: Reading) -> tuple[int, int]:
        """Width and height of the pixels that are read."""
        swaps = self.orientation >= 5 and reading.orientation is Orientation.apply
        return (self.height, self.width) if swaps else (self.width, self.height)


def exif_orientation(exif: bytes) -> int:
    """The orientation in an EXIF block, which is a TIFF directory, ``Exif\\0\\0`` before it or not; 1 where none is."""
    body = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(body[:2])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(order + "I", body, 4)
        (entries,) = struct.unpack_from(order + "H", body, start)
        for place in range(entries):
            tag, kind, count, value = struct.unpack_from(order + "HHIH", body, start + 2 + 12 * place)
            if (tag, kind, count) == (ORIENTATION_TAG, 3, 1):
                return value if 1 <= value <= 8 else 1
    except struct.error:  # cut short: browsers show such files as they are stored
        pass
    return 1


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Stored pixels as an EXIF orientation (1 to 8) says that they are shown."""
    if orientation >= 5:  # rows and columns change places
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels[:, ::-1] if orientation in (2, 3, 6, 7) else pixels
