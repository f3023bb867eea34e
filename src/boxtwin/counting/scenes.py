"""Large scenes, read in windows through rasterio, and the coordinates of image files.

rasterio: https://github.com/rasterio/rasterio (BSD), an extra.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from boxtwin.boxes import Box
from boxtwin.datasets import tiff
from boxtwin.datasets.image_io import Pixels
from boxtwin.datasets.options import Orientation
from boxtwin.datasets.reading import Reading
from boxtwin.detector.predict import check_depth
from boxtwin.detector.spec import DetectorSpec
from boxtwin.errors import InputError

INSTALL = "pip install 'boxtwin[geo]'"
STRIP = 32  # rows of an overview that are read at once
GRID = 3  # windows across and down that show what a scene is like


class Scene:
    """An image file of which windows are read one by one; opened when the first is read."""

    def __init__(self, path: Path, file: Any, spec: DetectorSpec) -> None:
        self._path, self._file, self._spec = path, file, spec
        self.size = (int(file.width), int(file.height))
        self._lock = threading.Lock()
        channels = spec.how_to_read.channels
        self._bands = [channel + 1 for channel in channels] if channels else [1] if file.count < 3 else [1, 2, 3]

    def read(self, x: int, y: int, width: int, height: int) -> Pixels:
        """Pixels of a window, in pixels of the scene, as far as the scene reaches.

        Raises `InputError` for another depth than the detector's images have, and OSError for a damaged file.
        """
        from rasterio.windows import Window

        width, height = min(width, self.size[0] - x), min(height, self.size[1] - y)
        pixels = self._pixels(window=Window(x, y, width, height))
        check_depth(pixels, str(self._path), self._spec)
        return pixels

    def overview(self, longest: int) -> Pixels:
        """The whole scene, with so many pixels along its longer side at most."""
        scale = min(1.0, longest / max(self.size))
        width, height = (max(1, round(side * scale)) for side in self.size)
        # Strip by strip: what is read at once stays small.
        rows = []
        for top in range(0, height, STRIP):
            bottom = min(top + STRIP, height)
            start, end = round(top / height * self.size[1]), round(bottom / height * self.size[1])
            strip: Any = self.read(0, start, self.size[0], end - start)
            rows.append(cv2.resize(strip, (width, bottom - top), interpolation=cv2.INTER_AREA))
        return np.concatenate(rows)

    def samples(self, side: int) -> Iterator[Pixels]:
        """Windows of so many pixels a side in the middle of the parts of a grid."""
        for place in range(GRID**2):
            x, y = (
                max(0, min((2 * part + 1) * end // (2 * GRID) - side // 2, end - side))
                for part, end in zip(divmod(place, GRID), self.size, strict=True)
            )
            yield self.read(x, y, side, side)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _pixels(self, **window: Any) -> Pixels:
        with self._lock:  # a file of GDAL's is for one thread at a time
            pixels = self._file.read(self._bands, **window)
        return pixels[0] if len(pixels) == 1 else np.ascontiguousarray(np.moveaxis(pixels, 0, 2))


def open_scene(path: Path, spec: DetectorSpec) -> Scene | None:
    """A TIFF file of one page with more pixels than `Reading.max_pixels`; None for another, which is decoded whole.

    Raises OSError for a file that the usual reader refuses, `InputError` for one that windows would show otherwise, and
    where rasterio is missing.
    """
    if not tiff.is_tiff(path):
        return None
    name, reading = str(path), spec.how_to_read
    if tiff.count_pages(path, name) > 1:
        return None
    header = tiff.read_header(path, name, reading)
    if header.width * header.height <= reading.max_pixels:
        return None
    size = f"{path} has {header.width} x {header.height} pixels, more than dataset.max_pixels={reading.max_pixels}"
    problem = tiff.windows_problem(path, reading)
    if header.orientation != 1 and reading.orientation is Orientation.apply:
        problem = "an orientation tag"
    if problem is not None:
        raise InputError(f"{size}; files with {problem} cannot be read in windows: save it as upright grey or RGB")
    try:
        import rasterio  # noqa: F401
    except ImportError:
        raise InputError(f"{size}; to count in such large images, install rasterio: {INSTALL}") from None
    return Scene(path, _open(path), spec)


def places(path: Path, boxes: Sequence[Box], reading: Reading) -> list[list[tuple[float, float]]] | None:
    """The corners of boxes (pixels of a file) in degrees of longitude and latitude (WGS 84), a closed ring each.

    None for a file without a coordinate reference, and without rasterio. Raises `InputError` for a reference that
    cannot be followed.
    """
    try:
        if not tiff.is_tiff(path):
            return None
        from rasterio.warp import transform

        file = _open(path)
    except (ImportError, OSError):  # OSError: of a kind that GDAL does not know
        return None
    with file:
        if file.crs is None and not file.gcps[0]:
            return None
        if file.crs is None:
            raise InputError(
                f"{path}: no GeoJSON, the file has ground control points instead of a transform to its map"
            )
        if file.transform.is_identity:
            raise InputError(f"{path}: no GeoJSON, the file has a coordinate reference, but no transform to it")
        if tiff.read_header(path, str(path), reading).orientation != 1 and reading.orientation is Orientation.apply:
            raise InputError(f"{path}: no GeoJSON, its pixels were turned by the orientation tag")
        rings, place = [], file.transform
        for x1, y1, x2, y2 in boxes:
            corners = ((x1, y1), (x1, y2), (x2, y2), (x2, y1), (x1, y1))
            east = [place.a * x + place.b * y + place.c for x, y in corners]
            north = [place.d * x + place.e * y + place.f for x, y in corners]
            try:
                degrees = np.array(transform(file.crs, "EPSG:4326", east, north))
            except Exception as error:  # GDAL's errors share no public class
                raise InputError(f"{path}: no GeoJSON, its coordinates cannot become degrees: {error}") from None
            if not np.isfinite(degrees).all():
                raise InputError(f"{path}: no GeoJSON, its coordinates lie outside their map")
            rings.append([(longitude, latitude) for longitude, latitude in degrees.T.tolist()])
        return rings


def _open(path: Path) -> Any:
    import warnings

    import rasterio
    from rasterio.errors import NotGeoreferencedWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        return rasterio.open(path)
