"""Orientation, pages, planes, channels and damage: pixels are those that were stored, turned as Pillow turns them."""

import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from boxtwin.datasets.image_io import decode_image, read_header, read_image
from boxtwin.datasets.options import Orientation
from boxtwin.datasets.reading import Reading, exif_orientation

RNG = np.random.default_rng(0)
GREY16 = RNG.integers(0, 65536, (24, 32)).astype(np.uint16)
COLOUR8 = np.repeat(np.repeat(RNG.integers(0, 256, (3, 4, 3)).astype(np.uint8), 8, axis=0), 8, axis=1)  # 24 x 32


def with_pillow(pixels: np.ndarray, kind: str, orientation: int, **settings: Any) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    if kind == "TIFF":  # Pillow writes the tag into the directory itself
        settings = {"tiffinfo": {0x0112: orientation}}
    Image.fromarray(pixels).save(file, kind, **({} if kind == "TIFF" else {"exif": exif}), **settings)
    return file.getvalue()


def with_tifffile(pixels: np.ndarray, **settings: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, **settings)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_format_is_turned_as_its_tag_says(kind: str, orientation: int) -> None:
    settings = {"lossless": True} if kind == "WEBP" else {}
    encoded = with_pillow(COLOUR8, kind, orientation, **settings)
    with Image.open(io.BytesIO(encoded)) as image:
        shown = np.asarray(ImageOps.exif_transpose(image))
    # Pillow turns TIFF by itself when it decodes.
    stored = COLOUR8 if kind == "TIFF" else np.asarray(Image.open(io.BytesIO(encoded)))
    tolerance = 3 if kind == "JPEG" else 0  # decoders round differently
    np.testing.assert_allclose(decode_image(encoded, "a").astype(int), shown, atol=tolerance)
    np.testing.assert_allclose(
        decode_image(encoded, "a", Reading(Orientation.ignore)).astype(int), stored, atol=tolerance
    )
    header = read_header(encoded, "a")
    assert header.shown(Reading()) == shown.shape[1::-1]
    assert header.shown(Reading(Orientation.ignore)) == (32, 24)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_tiff_of_all_depths_is_turned_alike(orientation: int, dtype: Any) -> None:
    pixels = GREY16.astype(dtype)
    encoded = with_tifffile(pixels, extratags=[(274, 3, 1, orientation, True)])
    jpeg = with_pillow(COLOUR8, "JPEG", orientation)
    np.testing.assert_array_equal(decode_image(encoded, "a", Reading(Orientation.ignore)), pixels)
    assert read_header(encoded, "a").shown(Reading()) == read_header(jpeg, "a").shown(Reading())
    view = Image.fromarray(np.arange(24 * 32, dtype=np.int32).reshape(24, 32))
    view.getexif()[0x0112] = orientation
    places = np.asarray(ImageOps.exif_transpose(view))
    np.testing.assert_array_equal(decode_image(encoded, "a"), pixels.reshape(-1)[places])


def test_a_png_may_say_so_behind_its_pixels(tmp_path: Path) -> None:
    encoded = with_pillow(COLOUR8, "PNG", 6)
    start = encoded.index(b"eXIf") - 4
    chunk = encoded[start : start + 12 + int.from_bytes(encoded[start : start + 4], "big")]
    late = encoded.replace(chunk, b"")
    late = late[:-12] + chunk + late[-12:]  # before IEND
    np.testing.assert_array_equal(decode_image(late, "a"), decode_image(encoded, "a"))


@pytest.mark.parametrize("exif", [b"", b"MM", b"MM\0*\0\0\0\x08\0\x01", b"II*\0\xff\xff\xff\xff", b"Exif\0\0junk"])
def test_a_damaged_exif_block_turns_nothing(exif: bytes) -> None:
    assert exif_orientation(exif) == 1
    nine = with_pillow(COLOUR8, "JPEG", 9)
    assert read_header(nine, "a").orientation == 1


@pytest.mark.parametrize("settings", [{}, {"compression": "zlib", "predictor": True}, {"tile": (16, 16)}])
def test_planes_are_read_as_pixels(settings: dict[str, Any]) -> None:
    pixels = RNG.integers(0, 65536, (48, 32, 3)).astype(np.uint16)
    planes = with_tifffile(
        np.ascontiguousarray(pixels.transpose(2, 0, 1)), photometric="rgb", planarconfig="separate", **settings
    )
    np.testing.assert_array_equal(decode_image(planes, "a"), pixels)
    np.testing.assert_array_equal(decode_image(with_tifffile(pixels, photometric="rgb"), "a"), pixels)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
def test_three_channels_that_are_not_called_colours_are_read_as_such(photometric: str, dtype: Any) -> None:
    """As GDAL writes them in 16 bit; OpenCV makes them grey."""
    pixels = RNG.integers(0, np.iinfo(dtype).max, (48, 32, 3)).astype(dtype)
    encoded = with_tifffile(pixels, photometric=photometric, planarconfig="contig", metadata=None)
    stored = pixels if photometric == "minisblack" else np.iinfo(dtype).max - pixels
    np.testing.assert_array_equal(decode_image(encoded, "a"), stored)
    np.testing.assert_array_equal(decode_image(encoded, "a", Reading(channels=(1,))), stored[:, :, 1])
    assert read_header(encoded, "a").how is not None
    assert read_header(encoded, "a", Reading(channels=(1,))).how is None


@pytest.mark.parametrize("settings", [{}, {"imagej": True}, {"metadata": None}])
def test_a_stack_is_refused_until_a_page_is_chosen(settings: dict[str, Any]) -> None:
    pages = RNG.integers(0, 65536, (3, 24, 32)).astype(np.uint16)
    encoded = with_tifffile(pages, photometric="minisblack", **settings)
    with pytest.raises(OSError, match=r"z\.tif is a stack of 3 pages; .*dataset\.page=0 to 2"):
        decode_image(encoded, "z.tif")
    for number, page in enumerate(pages):
        np.testing.assert_array_equal(decode_image(encoded, "z.tif", Reading(page=number)), page)
    with pytest.raises(OSError, match="has 3 pages"):
        decode_image(encoded, "z.tif", Reading(page=3))


def test_a_thumbnail_is_no_page() -> None:
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        writer.write(GREY16, metadata=None)
        writer.write(GREY16[::4, ::4], subfiletype=1, metadata=None)
    np.testing.assert_array_equal(decode_image(file.getvalue(), "a"), GREY16)


@pytest.mark.parametrize("count", [2, 4, 5])
def test_channels_are_refused_until_some_are_chosen(count: int) -> None:
    pixels = RNG.integers(0, 65536, (24, 32, count)).astype(np.uint16)
    encoded = with_tifffile(
        pixels, photometric="minisblack", planarconfig="contig", extrasamples=["unspecified"] * (count - 1)
    )
    with pytest.raises(OSError, match=rf"m\.tif has {count} channels; .*dataset\.channels"):
        decode_image(encoded, "m.tif")
    np.testing.assert_array_equal(decode_image(encoded, "a", Reading(channels=[1])), pixels[:, :, 1])
    np.testing.assert_array_equal(decode_image(encoded, "a", Reading(channels=[1, 0, 1])), pixels[:, :, [1, 0, 1]])
    with pytest.raises(OSError, match="counts from 0"):
        decode_image(encoded, "a", Reading(channels=[count]))


def test_alpha_is_no_channel() -> None:
    colour = RNG.integers(0, 65536, (24, 32, 4)).astype(np.uint16)
    encoded = with_tifffile(colour, photometric="rgb", extrasamples=["unassalpha"])
    np.testing.assert_array_equal(decode_image(encoded, "a"), colour[:, :, :3])
    grey = with_tifffile(colour[:, :, :2], photometric="minisblack", planarconfig="contig", extrasamples=["unassalpha"])
    np.testing.assert_array_equal(decode_image(grey, "a"), colour[:, :, 0])


def test_channels_of_other_formats() -> None:
    encoded = with_pillow(COLOUR8, "PNG", 1)
    np.testing.assert_array_equal(decode_image(encoded, "a", Reading(channels=[2, 1, 0])), COLOUR8[:, :, ::-1])
    np.testing.assert_array_equal(decode_image(encoded, "a", Reading(channels=[1])), COLOUR8[:, :, 1])


@pytest.mark.parametrize("settings", [{"channels": [0, 1]}, {"channels": [-1]}, {"page": -1}, {"max_pixels": 0}])
def test_impossible_readings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="got"):
        Reading(**settings)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
@pytest.mark.parametrize("fill", [b"", b"\0"])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_without_its_end_is_damaged(share: float, fill: bytes, progressive: bool) -> None:
    pixels = RNG.integers(0, 256, (64, 64, 3)).astype(np.uint8)
    encoded = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_PROGRESSIVE, int(progressive)])[1].tobytes()
    kept = int(len(encoded) * share)
    with pytest.raises(OSError, match=r"p\.jpg (is damaged|cannot be decoded)"):
        decode_image(encoded[:kept] + fill * (len(encoded) - kept), "p.jpg")
    # What cameras append after the end is no damage.
    assert decode_image(encoded + b"\0" * 100, "p.jpg").shape == (64, 64, 3)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_other_files_with_a_zeroed_tail_or_cut_off_are_damaged(kind: str) -> None:
    encoded = with_pillow(RNG.integers(0, 256, (64, 64)).astype(np.uint8), kind, 1)
    half = len(encoded) // 2
    with pytest.raises(OSError, match="it cannot be decoded"):
        decode_image(encoded[:half], "it")
    if kind == "PNG":
        with pytest.raises(OSError, match="it cannot be decoded"):
            decode_image(encoded[:half] + bytes(len(encoded) - half), "it")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "BMP"])
def test_too_many_pixels_are_refused_by_the_header(kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.fromarray(COLOUR8).save(file, kind)
    (tmp_path / "a").write_bytes(file.getvalue())
    assert read_image(tmp_path / "a", Reading(max_pixels=24 * 32)).shape == (24, 32, 3)
    monkeypatch.delattr(cv2, "imdecode")  # nothing is decoded
    with pytest.raises(OSError, match=r"32 x 24 pixels, more than dataset\.max_pixels=767"):
        read_image(tmp_path / "a", Reading(max_pixels=767))


def test_an_animation_is_refused_until_its_first_picture_is_chosen() -> None:
    file = io.BytesIO()
    frames = [Image.fromarray(COLOUR8), Image.fromarray(255 - COLOUR8)]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    with pytest.raises(OSError, match=r"a\.gif is an animation"):
        decode_image(file.getvalue(), "a.gif")
    assert decode_image(file.getvalue(), "a.gif", Reading(page=0)).shape == (24, 32, 3)
