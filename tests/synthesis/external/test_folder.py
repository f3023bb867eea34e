"""Variations that were made elsewhere find their sources by name."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from conftest import MakeCoco
from PIL import Image

from boxtwin.datasets.image_io import read_image, write_png
from boxtwin.datasets.options import Orientation
from boxtwin.datasets.reading import ORIENTATION_TAG, Reading
from boxtwin.datasets.sample import Dataset
from boxtwin.errors import InputError
from boxtwin.labels.carry import Carry
from boxtwin.synthesis.external.folder import Folder, _parse
from boxtwin.synthesis.generator import Generator, Refused, Request, Variation
from boxtwin.synthesis.store import Library


@pytest.fixture
def dataset(make_coco: MakeCoco) -> Dataset:
    return make_coco(images=3).read()


def picture(
    path: Path, value: int, height: int = 64, width: int = 80, channels: int = 1, dtype: Any = np.uint8
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (height, width) if channels == 1 else (height, width, channels)
    assert cv2.imwrite(str(path), np.full(shape, value, dtype=dtype))


def vary(folder: Path, dataset: Dataset, variation: int = 1, **settings: Any) -> list[Variation | Refused]:
    generator = Folder(path=str(folder), **{"resize": False, **settings})
    generator.match(dataset.samples)
    generator.fit(dataset.samples, folder)
    return list(generator.vary([Request(sample, variation, 0) for sample in dataset.samples]))


@pytest.mark.parametrize(
    ("name", "stem", "number"),
    [
        ("S00_0_v01.png", "S00_0", 1),
        ("S00_0-1.jpg", "S00_0", 1),
        ("S00_0.2.png", "S00_0", 2),
        ("S00_0 3.png", "S00_0", 3),
        ("S00_0 (4).png", "S00_0", 4),
        ("S00_0(4).png", "S00_0", 4),
        ("S00_0_V12.tif", "S00_0", 12),
        ("S00_0/v07.png", "S00_0", 7),
        ("S00_0/10.png", "S00_0", 10),
        ("a/b/S00_0/1.png", "a/b/S00_0", 1),
        ("a/S00_0_v1.png", "a/S00_0", 1),
        ("P0001_0_800_9000_9800_v01.png", "P0001_0_800_9000_9800", 1),
        ("a.b.c_v1.png", "a.b.c", 1),
        ("x-1-2.png", "x-1", 2),
    ],
)
def test_names(name: str, stem: str, number: int) -> None:
    assert _parse(Path(name)) == (stem, number)


@pytest.mark.parametrize(
    "name", ["picture.png", "picture_v0.png", "picture_00.png", "picture7.png", "7.png", "a/b.png"]
)
def test_names_without_a_number_of_a_variation(name: str) -> None:
    assert _parse(Path(name)) is None


def test_files_go_to_the_sources_that_their_names_tell(dataset: Dataset, tmp_path: Path) -> None:
    folder = tmp_path / "made"
    picture(folder / "S00_0_v01.png", 1)
    picture(folder / "S00_0-2.png", 2)
    picture(folder / "S01_0" / "v01.png", 3)
    picture(folder / "S02_0 (2).png", 4)
    (folder / "notes.txt").write_text("no image")
    picture(folder / ".hidden" / "odd.png", 9)
    generator = Folder(path=str(folder), resize=False)
    assert isinstance(generator, Generator)
    library = Library(
        tmp_path / "stores",
        generator,
        dataset.samples,
        judge=Carry(),
        labels="carry",
        dataset=dataset,
        seed=0,
    )
    generator.match(dataset.samples)
    made = library.make(dataset.samples, 2)
    assert (made.made, made.refused, made.cost_usd) == (4, 2, 0.0)
    found = {(line.source, line.variation): line for line in library.lines()}
    values = {key: read_image(library.folder / line.image).mean() for key, line in found.items()}
    assert values == {("S00_0.png", 1): 1, ("S00_0.png", 2): 2, ("S01_0.png", 1): 3, ("S02_0.png", 2): 4}
    assert found["S02_0.png", 2].record["file"] == "S02_0 (2).png"
    # Where the objects are is the source's: colour, blur and stains leave them there.
    claimed = found["S02_0.png", 2].claimed
    np.testing.assert_array_equal(claimed.boxes, dataset.samples[2].boxes)
    np.testing.assert_array_equal(claimed.labels, dataset.samples[2].labels)
    assert set(library.refused(dataset.samples)) == {("S01_0.png", 2), ("S02_0.png", 1)}
    assert {line.reason for line in library.refused(dataset.samples).values()} == {f"no file for it in {folder}"}


def test_all_files_without_a_source_are_told_at_once(dataset: Dataset, tmp_path: Path) -> None:
    folder = tmp_path / "made"
    for name in ("S00_0_v01.png", "S00_0-1.jpg", "other_v01.png", "S01_0.png"):
        picture(folder / name, 1)
    with pytest.raises(InputError) as error:
        vary(folder, dataset)
    message = str(error.value)
    assert "3 problem(s), nothing was used" in message
    assert "other_v01.png: no image of the data set is called other" in message
    assert "S01_0.png: no number of a variation at its end" in message
    assert "S00_0-1.jpg, S00_0_v01.png: each is variation 1 of S00_0.png" in message


def test_a_long_list_is_cut(dataset: Dataset, tmp_path: Path) -> None:
    for number in range(1, 31):
        picture(tmp_path / "made" / f"other_v{number}.png", 1)
    with pytest.raises(InputError, match=r"30 problem\(s\)") as error:
        vary(tmp_path / "made", dataset)
    assert str(error.value).endswith("… and 20 more")


def test_a_source_outside_folders_is_named_by_its_path(make_coco: MakeCoco, tmp_path: Path) -> None:
    built = make_coco(images=2)
    (built.images / "sub").mkdir()
    for image, name in zip(built.content["images"], ("same.png", "sub/same.png"), strict=True):
        (built.images / image["file_name"]).rename(built.images / name)
        image["file_name"] = name
    picture(tmp_path / "made" / "same_v1.png", 1)
    picture(tmp_path / "made" / "sub" / "same_v1.png", 2)
    found = [each for each in vary(tmp_path / "made", built.read()) if isinstance(each, Variation)]
    assert [(each.request.source.name, int(each.pixels.mean())) for each in found] == [
        ("same.png", 1),
        ("sub/same.png", 2),
    ]


def test_sources_of_one_name_in_two_folders_need_their_folders(make_coco: MakeCoco, tmp_path: Path) -> None:
    built = make_coco(images=2)
    for image, folder in zip(built.content["images"], ("a", "b"), strict=True):
        (built.images / folder).mkdir()
        (built.images / image["file_name"]).rename(built.images / folder / "same.png")
        image["file_name"] = f"{folder}/same.png"
    dataset = built.read()
    picture(tmp_path / "made" / "a" / "same_v1.png", 1)
    picture(tmp_path / "made" / "b" / "same" / "1.png", 2)
    assert [int(found.pixels.mean()) for found in vary(tmp_path / "made", dataset) if isinstance(found, Variation)] == [
        1,
        2,
    ]
    picture(tmp_path / "made" / "same_v2.png", 1)
    with pytest.raises(
        InputError, match=r"same_v2\.png: may be of a/same\.png or b/same\.png; name it with its folder"
    ):
        vary(tmp_path / "made", dataset)


@pytest.mark.parametrize(
    ("written", "resize", "reason"),
    [
        ({"height": 32, "width": 40}, False, r"40 x 32 pixels, the source has 80 x 64 (generator.resize=true resizes)"),
        ({"height": 64, "width": 64}, True, "64 x 64 pixels are of another shape than the source's 80 x 64"),
        ({"height": 32, "width": 40}, True, None),
        ({"height": 1000, "width": 1250}, True, None),
        ({"height": 21, "width": 27}, True, None),  # 80 x 64, reduced to a third and rounded
        ({"channels": 3}, False, None),
        ({"dtype": np.uint16}, False, None),
    ],
)
def test_size_depth_and_channels(
    dataset: Dataset, tmp_path: Path, written: dict[str, Any], resize: bool, reason: str | None
) -> None:
    picture(tmp_path / "made" / "S00_0_v1.png", 100 * (257 if written.get("dtype") else 1), **written)
    found, *_ = vary(tmp_path / "made", dataset, resize=resize)
    if reason is not None:
        assert isinstance(found, Refused)
        assert found.reason == f"S00_0_v1.png: {reason}"
        return
    assert isinstance(found, Variation)
    assert found.pixels.shape == (64, 80)
    assert found.pixels.dtype == np.uint8
    assert (found.pixels == 100).all()


@pytest.mark.parametrize("bits", [10, 12, 16])
def test_eight_bits_become_as_bright_as_their_source(make_coco: MakeCoco, tmp_path: Path, bits: int) -> None:
    built = make_coco(images=1, channels=(3,), dtypes=(np.uint16,))
    path = built.images / "S00_0.png"
    eight = np.random.default_rng(0).integers(0, 256, (64, 80, 3)).astype(np.uint8)
    write_png(path, (eight.astype(np.uint16) << (bits - 8)).astype(np.uint16))
    noisy = np.clip(eight + np.random.default_rng(1).normal(0, 4, eight.shape), 0, 255).astype(np.uint8)
    write_png(tmp_path / "made" / "S00_0_v1.png", noisy)
    (found,) = vary(tmp_path / "made", built.read())
    assert isinstance(found, Variation)
    assert found.pixels.shape == (64, 80, 3)
    assert found.pixels.dtype == np.uint16
    assert found.pixels.mean() / read_image(path).mean() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_deep_variations_of_8_bit_sources_are_as_bright_or_refused(
    make_coco: MakeCoco, tmp_path: Path, bits: int
) -> None:
    dataset = make_coco(images=1).read()
    source = read_image(dataset.samples[0].path)
    write_png(tmp_path / "made" / "S00_0_v1.png", np.rint(source * ((2**bits - 1) / 255)).astype(np.uint16))
    (found,) = vary(tmp_path / "made", dataset)
    if bits == 16:
        assert isinstance(found, Variation)
        np.testing.assert_array_equal(found.pixels, source)
    else:
        assert isinstance(found, Refused)
        assert f"{bits} of 16 bit" in found.reason


@pytest.mark.parametrize(
    ("source", "file"),
    [
        ("ü.png", "u\u0308_v01.png"),
        ("u\u0308.png", "ü_v01.png"),
        ("sub\\a.png", "sub/a_v01.png"),
        ("sub\\a.png", "a_v01.png"),
        ("./a.png", "a/v01.png"),
    ],
)
def test_names_are_the_same_however_they_are_written(
    make_coco: MakeCoco, tmp_path: Path, source: str, file: str
) -> None:
    built = make_coco(images=1)
    there = built.images / source.replace("\\", "/")
    there.parent.mkdir(exist_ok=True)
    (built.images / "S00_0.png").rename(there)
    built.content["images"][0]["file_name"] = source
    picture(tmp_path / "made" / file, 7)
    (found,) = vary(tmp_path / "made", built.read())
    assert isinstance(found, Variation)


@pytest.mark.parametrize(("dtype", "version"), [(np.uint8, 1), (np.uint16, 2)])
def test_only_stores_of_16_bit_sources_are_made_anew(
    make_coco: MakeCoco, tmp_path: Path, dtype: Any, version: int
) -> None:
    picture(tmp_path / "made" / "S00_0_v1.png", 1)
    generator = Folder(path=str(tmp_path / "made"), resize=False)
    assert generator.version(make_coco(images=1, dtypes=(dtype,)).read().samples) == version


@pytest.mark.parametrize("channels", [1, 3])
def test_a_tint_is_taken_from_images_of_a_grey_sensor(make_coco: MakeCoco, tmp_path: Path, channels: int) -> None:
    built = make_coco(images=1)
    if channels == 3:  # grey stored as colour
        path = built.images / "S00_0.png"
        write_png(path, np.repeat(read_image(path)[:, :, None], 3, axis=2))
    folder = tmp_path / "made"
    write_png(folder / "S00_0_v1.png", np.full((64, 80, 3), (90, 100, 113), dtype=np.uint8))
    (found,) = vary(folder, built.read())
    assert isinstance(found, Variation)
    assert found.pixels.shape == ((64, 80, 3) if channels == 3 else (64, 80))
    assert (found.pixels == 101).all()


def test_colour_stays_colour(make_coco: MakeCoco, tmp_path: Path) -> None:
    dataset = make_coco(images=1, channels=(3,)).read()
    pixels = np.random.default_rng(0).integers(0, 255, (64, 80, 3), dtype=np.uint8)
    write_png(tmp_path / "made" / "S00_0_v1.png", pixels)
    (found,) = vary(tmp_path / "made", dataset)
    assert isinstance(found, Variation)
    np.testing.assert_array_equal(found.pixels, pixels)


def test_what_is_no_image_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "S01_0_v1.png").write_bytes(b"no image")
    found = vary(tmp_path / "made", dataset)
    assert [isinstance(outcome, Refused) for outcome in found] == [True] * 3
    assert "S01_0_v1.png" in found[1].reason  # type: ignore[union-attr]
    assert "cannot be decoded" in found[1].reason  # type: ignore[union-attr]


def test_the_content_of_the_folder_makes_the_store_wherever_it_lies(dataset: Dataset, tmp_path: Path) -> None:
    picture(tmp_path / "a" / "S00_0_v1.png", 1)
    shutil.copytree(tmp_path / "a", tmp_path / "b")

    def parameters(name: str) -> Any:
        return Folder(path=str(tmp_path / name), resize=False).parameters()

    before = parameters("a")
    assert parameters("b") == before
    picture(tmp_path / "b" / "S00_0_v1.png", 2)
    assert parameters("b") != before
    picture(tmp_path / "a" / "S01_0_v1.png", 1)
    assert parameters("a") != before


def test_a_folder_that_is_not_there_or_empty(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no folder"):
        Folder(path=str(tmp_path / "nowhere"), resize=False)
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(InputError, match="holds no images"):
        Folder(path=str(tmp_path), resize=False)
    picture(tmp_path / "a_v1.png", 1)
    with pytest.raises(ValueError, match="match comes before vary"):
        next(Folder(path=str(tmp_path), resize=False).vary([]))


@pytest.mark.parametrize("channels", [(2, 1, 0), (1,), (0, 0, 2)])
@pytest.mark.parametrize("orientation", list(Orientation))
def test_files_are_read_as_their_sources_are(
    make_coco: MakeCoco, tmp_path: Path, channels: tuple[int, ...], orientation: Orientation
) -> None:
    """A copy of a source, with its channels and its mark of a turned camera, is the source."""
    made = make_coco(images=1)
    source = made.read().samples[0]
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = 6
    picture.save(source.path, exif=exif)
    sample = replace(source, width=64, height=64, reading=Reading(orientation, channels=channels))
    (folder := tmp_path / "made").mkdir()
    shutil.copy(source.path, folder / f"{source.path.stem}_v01.png")
    generator = Folder(path=str(folder), resize=False)
    generator.match([sample])
    (variation,) = generator.vary([Request(sample, 1, 0)])
    assert isinstance(variation, Variation)
    np.testing.assert_array_equal(variation.pixels, sample.read())
    assert generator.version([sample]) > generator.version([source])


@pytest.mark.parametrize(
    ("channels", "file", "expected"),
    [
        ((1,), (77,), (77,)),  # of one channel, a grey file is that channel
        ((2, 1, 0), (77,), (77, 77, 77)),
        ((4, 3, 2), (10, 20, 60), (10, 20, 60)),  # RGB of a source of five bands
        ((4,), (10, 20, 60), (30,)),  # as any colour becomes grey
    ],
)
def test_files_without_the_channels_of_their_source_are_read_as_they_are(
    make_coco: MakeCoco, tmp_path: Path, channels: tuple[int, ...], file: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    source = make_coco(images=1).read().samples[0]
    bands = np.random.default_rng(0).integers(0, 256, (64, 64, 5), dtype=np.uint8)
    path = source.path.with_suffix(".tif")
    tifffile.imwrite(path, bands, photometric="minisblack", planarconfig="contig")
    sample = replace(source, path=path, width=64, height=64, reading=Reading(channels=channels))
    (folder := tmp_path / "made").mkdir()
    pixels = np.full((64, 64, len(file)), file[::-1], dtype=np.uint8)
    cv2.imwrite(str(folder / f"{source.path.stem}_v01.png"), pixels[:, :, 0] if len(file) == 1 else pixels)
    generator = Folder(path=str(folder), resize=False)
    generator.match([sample])
    (variation,) = generator.vary([Request(sample, 1, 0)])
    assert isinstance(variation, Variation)
    assert variation.pixels.shape == sample.read().shape
    assert {tuple(np.atleast_1d(pixel).tolist()) for row in variation.pixels for pixel in row} == {expected}
