import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from boxtwin.datasets.image_io import as_grey, read_image, write_png
from boxtwin.datasets.options import Orientation
from boxtwin.datasets.reading import Reading


def random_pixels(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    return np.random.default_rng(0).integers(0, int(np.iinfo(dtype).max) + 1, size=shape).astype(dtype)


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    """A PNG file by the book (RFC 2083), for kinds that OpenCV does not write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3), (1, 1), (1, 9, 3)])
def test_png_round_trip_keeps_every_bit(tmp_path: Path, shape: tuple[int, ...], dtype: Any) -> None:
    pixels = random_pixels(shape, dtype)
    write_png(tmp_path / "made" / "here" / "a.png", pixels)
    back = read_image(tmp_path / "made" / "here" / "a.png")
    assert back.dtype == dtype
    np.testing.assert_array_equal(back, pixels)
    assert [path.name for path in (tmp_path / "made" / "here").iterdir()] == ["a.png"]


def test_colour_is_rgb(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(1, 1, 8, 2, b"\0\xff\x80\x01"))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), [[[255, 128, 1]]])


def test_alpha_is_dropped(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(2, 1, 8, 6, b"\0\x01\x02\x03\x00\x04\x05\x06\xff"))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), [[[1, 2, 3], [4, 5, 6]]])


def test_one_bit_images_become_eight_bit(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(8, 1, 1, 0, b"\0\xaa"))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), [[255, 0] * 4])


def test_orientation_ignored(tmp_path: Path) -> None:
    pixels = np.zeros((16, 32), dtype=np.uint8)
    pixels[:, :8] = 255
    jpeg = cv2.imencode(".jpg", pixels)[1].tobytes()
    # APP1: one entry, tag 0x0112 (orientation), SHORT, value 6 (a quarter turn).
    entry = struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0)
    exif = b"Exif\0\0MM\0*" + struct.pack(">IH", 8, 1) + entry + struct.pack(">I", 0)
    turned = jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:]
    (tmp_path / "a.jpg").write_bytes(turned)
    by_opencv = cv2.imread(str(tmp_path / "a.jpg"), cv2.IMREAD_GRAYSCALE)  # which does apply it
    assert by_opencv is not None
    assert by_opencv.shape == (32, 16)
    assert read_image(tmp_path / "a.jpg").shape == (32, 16)
    assert read_image(tmp_path / "a.jpg", Reading(Orientation.ignore)).shape == (16, 32)


@pytest.mark.parametrize("ending", [".png", ".jpg", ".tif", ".bmp"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_file_cut_short_is_refused(tmp_path: Path, ending: str, share: float) -> None:
    encoded = cv2.imencode(ending, random_pixels((40, 50), np.uint8))[1].tobytes()
    path = tmp_path / f"a{ending}"
    path.write_bytes(encoded[: int(len(encoded) * share)])
    with pytest.raises(OSError, match="a" + ending):
        read_image(path)


def test_what_is_no_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(OSError, match="cannot be decoded"):
        read_image(tmp_path / "text.png")
    with pytest.raises(FileNotFoundError):
        read_image(tmp_path / "missing.png")
    with pytest.raises(OSError, match="directory"):
        read_image(tmp_path)
    (tmp_path / "float.tif").write_bytes(cv2.imencode(".tif", np.zeros((4, 4), np.float32))[1].tobytes())
    with pytest.raises(OSError, match="float32"):
        read_image(tmp_path / "float.tif")


def test_an_image_beyond_what_opencv_decodes_is_an_unreadable_one(tmp_path: Path) -> None:
    (tmp_path / "huge.png").write_bytes(png(70000, 70000, 8, 0, b""))
    with pytest.raises(OSError, match=r"huge\.png"):
        read_image(tmp_path / "huge.png")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_colour_files_of_grey_images_are_told(dtype: Any) -> None:
    grey = np.arange(24, dtype=dtype).reshape(4, 6) * 7
    equal = np.stack([grey] * 3, axis=2)
    np.testing.assert_array_equal(as_grey(equal), grey)
    assert as_grey(grey) is grey
    for channel in range(3):
        tinted = equal.copy()
        tinted[3, 5, channel] += 1
        assert as_grey(tinted) is tinted
