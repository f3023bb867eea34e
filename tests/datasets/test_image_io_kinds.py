"""Image files of all the kinds that one data set may mix, and those of which pixels would come out wrong."""

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from conftest import MakeCoco
from PIL import Image

from boxtwin.datasets.image_io import as_grey, decode_image
from boxtwin.datasets.inspection import inspect_image
from boxtwin.datasets.options import Orientation
from boxtwin.datasets.reading import Reading

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
