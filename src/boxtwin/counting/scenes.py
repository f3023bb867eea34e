"""Large scenes, read in windows through rasterio, and their coordinates.

rasterio: https://github.com/rasterio/rasterio (BSD), an extra.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tifffile import TiffFile

from boxtwin.boxes import Box
from boxtwin.datasets.image_io import Pixels
from boxtwin.detector.predict import check_depth
from boxtwin.detector.spec import DetectorSpec
from boxtwin.errors import InputError

SUFFIXES = (".tif", ".tiff")
INSTALL = "pip install 'boxtwin[geo]'"
CACHE_MB = 256  # of blocks that GDAL keeps: a row of blocks of a wide scene


class Scene:
    """An image file of which windows are read one by one; opened when the first is read."""

    def __init__(self, path: Path, file: Any, spec: DetectorSpec) -> None:
        self._path, self._file, self._spec = path, file, spec
        self.size = (int(file.width), int(file.height))
        self._lock = threading.Lock()
        channels = spec.how_to_read.channels
        grey = file.count < 3
        self._bands = [channel + 1 for channel in channels] if channels else [1] if grey else [1, 2, 3]
        if max(self._bands) > file.count:
            raise InputError(f"{path} has {file.count} channels; the detector takes {self._bands}, counted from 1")
        if any(kind not in ("uint8", "uint16") for kind in file.dtypes):
            raise InputError(f"{path} holds {file.dtypes[0]} pixels; 8 and 16 bit unsigned integers are supported")

    def read(self, x: int, y: int, width: int, height: int) -> Pixels:
        """A window, as far as the scene reaches."""
        from rasterio.windows import Window

        width, height = min(width, self.size[0] - x), min(height, self.size[1] - y)
        pixels = self._pixels(window=Window(x, y, width, height))  # type: ignore[no-untyped-call]
        check_depth(pixels, str(self._path), self._spec)
        return pixels

    def overview(self, longest: int) -> Pixels:
        """The whole scene, with so many pixels along its longer side at most."""
        scale = min(1.0, longest / max(self.size))
        width, height = (max(1, round(side * scale)) for side in self.size)
        # Strip by strip: what is read at once stays small.
        rows = []
        for top in range(0, height, 64):
            bottom = min(top + 64, height)
            start, end = round(top / height * self.size[1]), round(bottom / height * self.size[1])
            strip: Any = self.read(0, start, self.size[0], end - start)
            rows.append(cv2.resize(strip, (width, bottom - top), interpolation=cv2.INTER_AREA))
        return np.concatenate(rows)

    def places(self, boxes: Sequence[Box]) -> list[list[tuple[float, float]]] | None:
        """The corners of boxes in longitude and latitude (WGS 84), a closed ring each; None without a reference."""
        if self._file.crs is None:
            return None
        from rasterio.warp import transform

        rings, place = [], self._file.transform
        for x1, y1, x2, y2 in boxes:
            corners = ((x1, y1), (x1, y2), (x2, y2), (x2, y1), (x1, y1))
            east = [place.a * x + place.b * y + place.c for x, y in corners]
            north = [place.d * x + place.e * y + place.f for x, y in corners]
            rings.append(list(zip(*transform(self._file.crs, "EPSG:4326", east, north), strict=True)))
        return rings

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _pixels(self, **window: Any) -> Pixels:
        with self._lock:  # a file of GDAL's is for one thread at a time
            pixels = self._file.read(self._bands, **window)
        return pixels[0] if len(pixels) == 1 else np.ascontiguousarray(np.moveaxis(pixels, 0, 2))


def open_scene(path: Path, spec: DetectorSpec) -> Scene | None:
    """An image file that is to be read in windows; None for one that is decoded as a whole.

    Windows are for TIFF files of more pixels than `Reading.max_pixels`, and for those with a coordinate reference. The
    first need rasterio (`InputError`); the second are decoded as a whole without it.
    """
    if path.suffix.lower() not in SUFFIXES:
        return None
    limit = spec.how_to_read.max_pixels
    try:
        import rasterio
    except ImportError:
        if (size := _pixels_of(path)) > limit:
            raise InputError(f"{path} has {size} pixels; scenes of more than {limit} need: {INSTALL}") from None
        return None
    import warnings

    from rasterio.errors import NotGeoreferencedWarning, RasterioIOError

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        try:
            with rasterio.Env(GDAL_CACHEMAX=CACHE_MB):
                file = rasterio.open(path)
        except RasterioIOError:
            return None  # damaged, or of a kind that GDAL does not know: the usual reader says what is wrong
    pages = len(file.subdatasets) or 1
    if pages > 1 or (file.crs is None and file.width * file.height <= limit):
        file.close()
        return None
    return Scene(path, file, spec)


def _pixels_of(path: Path) -> int:
    try:
        with TiffFile(path) as file:
            page = file.pages[0].aspage()
            return int(page.imagewidth) * int(page.imagelength)
    except Exception:  # damaged: the usual reader says what is wrong; tifffile's own errors share no class
        return 0
