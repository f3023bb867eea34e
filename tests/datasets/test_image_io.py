import hashlib
import io
import struct
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from conftest import MakeCoco
from PIL import Image
from tifffile import TiffWriter, imwrite

from boxtwin.datasets.image_io import as_grey, decode_image, read_header, read_image, write_png
from boxtwin.datasets.inspection import inspect_image
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


@pytest.mark.parametrize("tile", [(16, 16), (16, 64), (64, 16), (48, 32)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_tiles_of_any_size_are_read(tile: tuple[int, int], dtype: Any, channels: int, compression: str | None) -> None:
    shape = (70, 90) if channels == 1 else (70, 90, 3)
    pixels = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape).astype(dtype)
    file = BytesIO()
    kind = "minisblack" if channels == 1 else "rgb"
    tifffile.imwrite(file, pixels, tile=tile, compression=compression, photometric=kind)
    np.testing.assert_array_equal(decode_image(file.getvalue(), "a.tif"), pixels)


@pytest.mark.parametrize("white", [1, 15, 100, 254, 255, 4095])
@pytest.mark.parametrize("channels", [1, 3])
def test_netpbm_in_bytes_is_read_as_in_text(white: int, channels: int) -> None:
    """Values count up to the greatest of the header, with or without a comment; of 16 bit they stay as they are."""
    values = np.random.default_rng(0).integers(0, white + 1, 4 * 5 * channels)
    values[0] = white
    kind = {1: (b"P2", b"P5"), 3: (b"P3", b"P6")}[channels]
    head = b"\n# made by 7 tools\n5 4\n%d\n" % white
    text = decode_image(kind[0] + head + b" ".join(b"%d" % value for value in values) + b"\n", "a.pgm")
    in_bytes = decode_image(kind[1] + head + values.astype("u1" if white < 256 else ">u2").tobytes(), "a.pgm")
    assert in_bytes.shape == ((4, 5) if channels == 1 else (4, 5, 3))
    if white < 256:
        assert np.abs(text.astype(int) - in_bytes).max() <= 1  # OpenCV rounds down
        assert in_bytes.max() == 255
    else:
        assert in_bytes.ravel().tolist() == values.tolist()


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


RNG = np.random.default_rng(0)
# Blocks of 8 x 8 pixels with few values: compression with losses keeps them nearly as they are.
COLOUR = np.kron(RNG.integers(0, 8, (6, 8, 3)) * 32, np.ones((8, 8, 1), int)).astype(np.uint8)
PICTURE = Image.fromarray(COLOUR)
NOISE = RNG.integers(0, 256, (64, 64, 3)).astype(np.uint8)


def encoded(picture: Image.Image, kind: str, **settings: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **settings)
    return file.getvalue()


def tiff(pixels: np.ndarray, **settings: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, **settings)
    return file.getvalue()


FEW = PICTURE.quantize(16)
KINDS: dict[str, tuple[Image.Image, str, dict[str, Any]]] = {
    "palette": (FEW, "PNG", {}),
    "palette of 4 colours": (PICTURE.quantize(4), "PNG", {"bits": 2}),
    "palette with transparency": (FEW, "PNG", {"transparency": 3}),
    "1 bit": (PICTURE.convert("1"), "PNG", {}),
    "grey": (PICTURE.convert("L"), "PNG", {}),
    "grey with a transparent value": (PICTURE.convert("L"), "PNG", {"transparency": 64}),
    "grey with alpha": (PICTURE.convert("LA"), "PNG", {}),
    "colour with alpha": (PICTURE.convert("RGBA"), "PNG", {}),
    "CMYK": (PICTURE.convert("CMYK"), "JPEG", {"quality": 95}),
    "JPEG": (PICTURE, "JPEG", {"quality": 95}),
    "progressive": (PICTURE, "JPEG", {"quality": 95, "progressive": True}),
    "grey JPEG": (PICTURE.convert("L"), "JPEG", {"quality": 95}),
    "BMP": (PICTURE, "BMP", {}),
    "BMP with a palette": (FEW, "BMP", {}),
    "WebP": (PICTURE, "WEBP", {"lossless": True}),
    "GIF": (FEW, "GIF", {}),
    "TIFF with a palette": (FEW, "TIFF", {}),
    "TIFF of 1 bit": (PICTURE.convert("1"), "TIFF", {}),
    "TIFF of CMYK": (PICTURE.convert("CMYK"), "TIFF", {}),
    "TIFF by LZW": (PICTURE, "TIFF", {"compression": "tiff_lzw"}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_are_those_that_pillow_reads(kind: str) -> None:
    picture, format_, settings = KINDS[kind]
    content = encoded(picture, format_, **settings)
    with Image.open(io.BytesIO(content)) as image:
        expected = np.asarray(image.convert("RGB")).astype(int)
    read = decode_image(content, "a")
    assert read.dtype == np.uint8
    read = np.dstack([read] * 3) if read.ndim == 2 else read
    np.testing.assert_allclose(read.astype(int), expected, atol=4 if format_ == "JPEG" else 0)
    assert (as_grey(read).ndim == 2) == (picture.mode in ("1", "L", "LA"))


def with_alpha(alpha: int) -> np.ndarray:
    pixels = np.dstack([COLOUR, np.full(COLOUR.shape[:2], 255, np.uint8)])
    pixels[:20, :, 3] = alpha
    return pixels


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate"])
@pytest.mark.parametrize("alpha", [0, 128, 255])
def test_alpha_darkens_nothing_in_any_format(alpha: int, compression: str) -> None:
    picture = Image.fromarray(with_alpha(alpha))
    for orientation in (1, 6):
        content = encoded(picture, "TIFF", compression=compression, tiffinfo={0x0112: orientation})
        np.testing.assert_array_equal(decode_image(content, "a", Reading(Orientation.ignore)), COLOUR)
        shown = COLOUR if orientation == 1 else np.rot90(COLOUR, -1)
        np.testing.assert_array_equal(decode_image(content, "a"), shown)
    np.testing.assert_array_equal(decode_image(encoded(picture, "PNG"), "a"), COLOUR)


@pytest.mark.parametrize(("alpha", "same"), [(255, True), (0, False)])
def test_alpha_is_in_the_digest_only_where_it_matters(make_coco: MakeCoco, alpha: int, same: bool) -> None:
    built = make_coco(images=1, sizes=((64, 48),), ending=".tif", objects=(0,))
    content = encoded(Image.fromarray(with_alpha(alpha)), "TIFF")
    (built.images / "S00_0.tif").write_bytes(content)
    (sample,) = built.read().samples
    assert (sample.sha256 == hashlib.sha256(content).hexdigest()) == same


@pytest.mark.parametrize(
    ("pages", "reading", "how"),
    [(2, Reading(page=0), ""), (1, Reading(channels=(2, 1, 0)), "[0, [2, 1, 0]]")],
)
def test_alpha_is_not_in_the_digest_of_files_that_it_never_darkened(
    tmp_path: Path, pages: int, reading: Reading, how: str
) -> None:
    """Those that tifffile reads: their pixels, and so their runs, are the same as in earlier versions."""
    content = tiff(np.stack([with_alpha(0)] * pages), photometric="rgb", extrasamples=["unassalpha"])
    (tmp_path / "a.tif").write_bytes(content)
    found = inspect_image(tmp_path / "a.tif", 64, 48, reading)
    assert found.sha256 == hashlib.sha256(content + how.encode()).hexdigest()


INKS = np.dstack([COLOUR, COLOUR[:, :, :1]])
PLANES = np.ascontiguousarray(INKS.transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("pixels", "settings"),
    [
        (PLANES, {"photometric": "separated", "planarconfig": "separate"}),
        (INKS.astype(np.uint16) * 257, {"photometric": "separated"}),
        (PLANES[:3], {"photometric": "cielab", "planarconfig": "separate"}),
    ],
)
def test_inks_are_not_taken_for_red_green_and_blue(pixels: np.ndarray, settings: dict[str, Any]) -> None:
    content = tiff(pixels, **settings)
    with pytest.raises(OSError, match=r"a\.tif holds colours as (SEPARATED|CIELAB)"):
        decode_image(content, "a.tif")
    # Who says which channel is meant gets it.
    first = pixels[0] if settings.get("planarconfig") else pixels[:, :, 0]
    np.testing.assert_array_equal(decode_image(content, "a.tif", Reading(channels=[0])), first)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int8", "int16", "int32", "uint32"])
@pytest.mark.parametrize("pages", [1, 2])
def test_what_is_not_8_or_16_bit_is_told_by_its_type(dtype: str, pages: int) -> None:
    content = tiff(np.zeros((pages, 24, 32), dtype), photometric="minisblack")
    with pytest.raises(OSError, match=rf"a\.tif holds {dtype} pixels; 8 and 16 bit"):
        decode_image(content, "a.tif", Reading(page=pages - 1))


@pytest.mark.parametrize(("kind", "settings"), [("WEBP", {}), ("WEBP", {"lossless": True}), ("JPEG2000", {})])
@pytest.mark.parametrize("share", [0.5, 0.9, 0.98])
def test_compressed_files_that_end_in_zeros_are_damaged(kind: str, settings: dict[str, Any], share: float) -> None:
    whole = encoded(Image.fromarray(NOISE), kind, **settings)
    assert decode_image(whole, "a").shape == NOISE.shape
    kept = int(len(whole) * share)
    with pytest.raises(OSError, match="a is damaged"):
        decode_image(whole[:kept] + bytes(len(whole) - kept), "a")
    # Pixels of one value take few bytes, and are no damage.
    flat = encoded(Image.new("RGB", (640, 480)), kind, **settings)
    assert decode_image(flat, "a").max() == 0


@pytest.mark.parametrize("compression", ["tiff_adobe_deflate", "tiff_lzw", "packbits", "jpeg"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_compressed_tiff_that_ends_in_zeros_is_damaged(compression: str, share: float) -> None:
    """OpenCV fills up what is missing of 8 bit without an error."""
    whole = encoded(Image.fromarray(NOISE), "TIFF", compression=compression)
    assert decode_image(whole, "a").shape == NOISE.shape
    with tifffile.TiffFile(io.BytesIO(whole)) as file:
        page = file.pages[0].aspage()
        first, last = min(page.dataoffsets), max(map(sum, zip(page.dataoffsets, page.databytecounts, strict=True)))
    kept = first + int((last - first) * share)
    with pytest.raises(OSError, match="a is damaged"):
        decode_image(whole[:kept] + bytes(last - kept) + whole[last:], "a")
    flat = encoded(Image.new("RGB", (640, 480)), "TIFF", compression=compression)
    assert decode_image(flat, "a").max() == 0


def test_deflated_tiff_with_a_wrong_checksum_is_damaged() -> None:
    whole = bytearray(encoded(Image.fromarray(NOISE), "TIFF", compression="tiff_adobe_deflate"))
    with tifffile.TiffFile(io.BytesIO(whole)) as file:
        (start, *_), (size, *_) = (file.pages[0].aspage().dataoffsets, file.pages[0].aspage().databytecounts)
    whole[start + size // 2] ^= 0xFF
    with pytest.raises(OSError, match="a is damaged"):
        decode_image(bytes(whole), "a")


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
    with pytest.raises(OSError, match=r"read the first \(no other can be read\) with dataset\.page=0"):
        decode_image(stream.getvalue(), "a", Reading(page=1))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_a_channel_of_a_palette_image_is_taken(kind: str) -> None:
    picture = Image.fromarray(COLOUR).convert("P", palette=Image.Palette.ADAPTIVE)
    content = BytesIO()
    picture.save(content, kind)
    red = np.asarray(picture.convert("RGB"))[:, :, 0]
    np.testing.assert_array_equal(decode_image(content.getvalue(), "a", Reading(channels=(0,))), red)
    # Earlier versions took no channel of a TIFF file: what they kept under a hash is of other pixels.
    header = read_header(content.getvalue(), "a", Reading(channels=(0,)))
    assert header.how == ("palette" if kind == "TIFF" else None)
