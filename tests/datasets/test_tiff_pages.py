"""Files that OpenCV reads otherwise than they are meant."""

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tifffile import TiffWriter, imwrite

from boxtwin.datasets.image_io import decode_image, read_header, read_image
from boxtwin.datasets.reading import Reading

PIXELS = np.arange(40 * 60, dtype=np.uint16).reshape(40, 60)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_preview_before_the_image_is_no_image(tmp_path: Path, dtype: type[np.unsignedinteger[Any]]) -> None:
    pixels: np.ndarray = (PIXELS % 251).astype(dtype)
    with TiffWriter(tmp_path / "a.tif") as file:
        file.write(pixels[::4, ::4], subfiletype=1, photometric="minisblack")
        file.write(pixels, photometric="minisblack")
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), pixels)
    assert read_header((tmp_path / "a.tif").read_bytes(), "a.tif").how == "page 1"


def test_negatives_of_16_bit_are_turned_over(tmp_path: Path) -> None:
    imwrite(tmp_path / "a.tif", PIXELS, photometric="miniswhite")
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), 65535 - PIXELS)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_other_pictures_of_animations_than_the_first_are_refused(kind: str) -> None:
    pictures = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    stream = BytesIO()
    pictures[0].save(stream, kind, save_all=True, append_images=pictures[1:])
    assert decode_image(stream.getvalue(), "a", Reading(page=0)).shape[:2] == (8, 8)
    with pytest.raises(OSError, match=r"only the first can be read, dataset\.page=0"):
        decode_image(stream.getvalue(), "a", Reading(page=1))
