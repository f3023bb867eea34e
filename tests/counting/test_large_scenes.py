"""Scenes that are read in windows: a detector of bright spots shows what tiles and windows do to counts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import tifffile
from affine import Affine
from rasterio.control import GroundControlPoint
from rasterio.errors import NotGeoreferencedWarning
from scipy import ndimage
from trained_detectors import make_trained

from boxtwin.counting.detectors import Detector
from boxtwin.counting.ensemble import Counter
from boxtwin.counting.files import geojson
from boxtwin.counting.images import ImageList, Read, read_all
from boxtwin.counting.scenes import Scene, open_scene
from boxtwin.datasets.image_io import read_image
from boxtwin.datasets.reading import ORIENTATION_TAG, Reading
from boxtwin.datasets.simulated_sar import scenes as simulated
from boxtwin.datasets.training_images import TrainingImages
from boxtwin.detector.predict import BoxesAndScores, Compute
from boxtwin.detector.spec import DetectorSpec
from boxtwin.errors import InputError

ROOT = Path(__file__).parents[2]
REAL = ROOT / "../shared/data/hrsid200/JPEGImages"
SIDE = 96  # of chips, and of the training images: the scale is 1
SMALL = Reading(max_pixels=SIDE * SIDE)  # more are read in windows
DARK = 20  # of the sea between chips


def bright_spots(images: np.ndarray) -> BoxesAndScores:
    """Boxes around connected pixels above 0.7, a classical detector of ships; as many places for each image."""
    boxes, scores = np.zeros((len(images), 400, 4), np.float32), np.zeros((len(images), 400, 1), np.float32)
    for image, its_boxes, its_scores in zip(images, boxes, scores, strict=True):
        spots, _ = ndimage.label(image[0] > 0.7)
        for place, (rows, columns) in enumerate(ndimage.find_objects(spots)):
            its_boxes[place] = columns.start, rows.start, columns.stop, rows.stop
            its_scores[place] = 0.9
    return boxes, scores


def spec_of(**changes: Any) -> DetectorSpec:
    trained = make_trained(0.5, classes=["ship"], category_ids=[1], image_size=SIDE)
    known = TrainingImages((SIDE, SIDE, SIDE), (0.0, 1.0), (-9.0, 9.0))
    return replace(trained.spec, **{"training_images": known.plain(), "reading": SMALL.plain(), **changes})


def faint_spots(brightness: float) -> Compute:
    """As `bright_spots`, with lower scores."""

    def compute(images: np.ndarray) -> BoxesAndScores:
        boxes, scores = bright_spots(images)
        return boxes, scores * np.float32(brightness)

    return compute


def counter(compute: Compute | None = None, **changes: Any) -> Counter:
    return Counter([Detector(Path("spots"), spec_of(**changes), compute or bright_spots)], None)


@pytest.fixture(scope="module")
def chips(tmp_path_factory: pytest.TempPathFactory) -> list[np.ndarray]:
    """Real chips where they are at hand, shrunk by taking every eighth pixel; simulated ones otherwise."""
    if REAL.is_dir():
        files = sorted(REAL.iterdir())[:60:5]
        return [read_image(file)[4::8, 4::8][:SIDE, :SIDE][..., :1].reshape(SIDE, SIDE) for file in files]
    folder = tmp_path_factory.mktemp("chips")
    simulated.build(folder, images=12, image_size=SIDE, chips_per_scene=2, seed=0)
    return [read_image(file) for file in sorted((folder / "images").iterdir())]


def write_scene(path: Path, pixels: np.ndarray, **more: Any) -> None:
    """A tiled GeoTIFF in UTM zone 31, a metre a pixel."""
    bands = pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, 2, 0)
    place = {"crs": "EPSG:32631", "transform": Affine(1, 0, 500_000, 0, -1, 5_000_000)} | more
    profile = {"driver": "GTiff", "tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "deflate"}
    height, width = pixels.shape[:2]
    with rasterio.open(
        path, "w", count=len(bands), height=height, width=width, dtype=pixels.dtype, **profile, **place
    ) as file:
        file.write(bands)


def read_one(path: Path, spec: DetectorSpec) -> Read:
    ((_, content),) = read_all(ImageList(path.parent, (path,)), spec)
    assert not isinstance(content, str), content
    return content[0]


def test_a_scene_of_chips_with_margins_counts_what_the_chips_do(chips: list[np.ndarray], tmp_path: Path) -> None:
    """Tiles are 72 pixels apart and answer for their middle 72: every second one falls on a chip of 72 pixels."""
    step, chip, margin = 72, 72, 12
    scene = np.full((step * 7 + SIDE - step, step * 5 + SIDE - step), DARK, np.uint8)
    count, expected = counter(), 0
    for number, pixels in enumerate(chips):
        alone = np.full((SIDE, SIDE), DARK, np.uint8)
        alone[margin : margin + chip, margin : margin + chip] = pixels[:chip, :chip]
        expected += int(count(Read("chip", tmp_path, None, alone)).counts[0])
        top, left = 2 * step * (number // 3), 2 * step * (number % 3)
        scene[top : top + SIDE, left : left + SIDE] = alone
    write_scene(tmp_path / "scene.tif", scene)
    read = read_one(tmp_path / "scene.tif", count.detectors[0].spec)
    assert isinstance(read.content, Scene)
    assert expected > 10
    counted = count(read)
    assert counted.counts[0] == expected
    assert (counted.scale, counted.unlike, counted.intervals) == (1.0, ("size",), None)
    # In one piece, it is the same image.
    whole = count(Read("scene", tmp_path, None, scene))
    np.testing.assert_array_equal(np.sort(whole.found.boxes, axis=0), np.sort(counted.found.boxes, axis=0))
    read.content.close()


def test_an_object_on_a_seam_counts_once(tmp_path: Path) -> None:
    rng, scene = np.random.default_rng(0), np.full((500, 700), DARK, np.uint8)
    boxes: list[tuple[int, ...]] = []
    while len(boxes) < 60:
        x, y, w, h = *rng.integers(0, (690, 490)), *rng.integers(3, 12, 2)
        if (scene[max(y - 2, 0) : y + h + 2, max(x - 2, 0) : x + w + 2] == DARK).all():
            scene[y : y + h, x : x + w] = 250
            boxes.append((x, y, min(x + w, 700), min(y + h, 500)))
    write_scene(tmp_path / "scene.tif", scene)
    count = counter()
    read = read_one(tmp_path / "scene.tif", count.detectors[0].spec)
    found = count(read).found
    assert sorted(map(tuple, found.boxes.tolist())) == sorted(tuple(map(float, box)) for box in boxes)


def test_places_of_detections_are_longitude_and_latitude(tmp_path: Path) -> None:
    scene = np.full((300, 200), DARK, np.uint8)
    scene[100:110, 50:70] = 250
    write_scene(tmp_path / "scene.tif", scene)
    count = counter()
    read = read_one(tmp_path / "scene.tif", count.detectors[0].spec)
    content = geojson(read.path, SMALL, count(read).found, ["ship"])
    assert content is not None
    (feature,) = content["features"]
    assert feature["properties"]["class"] == "ship"
    (ring,) = feature["geometry"]["coordinates"]
    assert ring[0] == ring[-1]
    # 500,000 m east is the central meridian of zone 31, 3 degrees east; a degree of longitude there is 78.8 km.
    longitudes, latitudes = zip(*ring, strict=True)
    assert min(longitudes) == pytest.approx(3 + 50 / 78_800, abs=5e-6)
    assert max(longitudes) == pytest.approx(3 + 70 / 78_800, abs=5e-6)
    assert max(latitudes) - min(latitudes) == pytest.approx(10 / 111_150, rel=0.01)
    assert 45.1 < min(latitudes) < 45.2


def test_a_small_image_with_coordinates_counts_as_one_without(tmp_path: Path) -> None:
    """It is decoded whole: AP has all detections, and brightness and sharpness are compared."""
    pixels = np.full((SIDE, SIDE), DARK, np.uint8)
    pixels[10:14, 10:20] = 250
    write_scene(tmp_path / "place.tif", pixels)
    write_scene(tmp_path / "plain.tif", pixels, crs=None)
    known = TrainingImages((SIDE, SIDE, SIDE), (0.6, 1.0), (-9.0, 9.0))
    count = counter(compute=faint_spots(0.1), training_images=known.plain())
    both = [count(read_one(tmp_path / f"{name}.tif", count.detectors[0].spec)) for name in ("place", "plain")]
    for each in both:
        assert (each.every.scores.tolist(), each.unlike) == ([pytest.approx(0.09)], ("darker",))
    assert len(geojson(tmp_path / "place.tif", SMALL, both[0].every, ["ship"])["features"]) == 1  # type: ignore[index]
    assert geojson(tmp_path / "plain.tif", SMALL, both[0].every, ["ship"]) is None


def test_a_scene_keeps_the_detections_near_to_the_threshold(tmp_path: Path) -> None:
    pixels = np.full((200, 200), DARK, np.uint8)
    pixels[100:104, 10:20] = 250
    write_scene(tmp_path / "scene.tif", pixels)
    for brightness, near in ((0.1, 0), (0.5, 1)):  # scores of 0.09 and 0.45; the threshold is 0.5
        count = counter(compute=faint_spots(brightness))
        read = read_one(tmp_path / "scene.tif", count.detectors[0].spec)
        assert (count(read).near, len(count(read).every.scores)) == (near, near)


def test_a_scene_unlike_the_training_images_is_marked(tmp_path: Path) -> None:
    known = TrainingImages((SIDE, SIDE, SIDE), (0.6, 1.0), (-9.0, 9.0))
    count = counter(training_images=known.plain())
    pixels = np.full((400, 300), DARK, np.uint8)
    write_scene(tmp_path / "dark.tif", pixels)
    pixels[100:] = 220  # what most of it is like counts, not its margin
    write_scene(tmp_path / "bright.tif", pixels)
    found = {
        name: count(read_one(tmp_path / name, count.detectors[0].spec)).unlike for name in ("dark.tif", "bright.tif")
    }
    assert found == {"dark.tif": ("size", "darker"), "bright.tif": ("size",)}


def written_as(kind: str, path: Path) -> None:
    """A TIFF file of 30 x 40 pixels."""
    rng = np.random.default_rng(0)
    grey, colour = rng.integers(0, 256, (30, 40), np.uint8), rng.integers(0, 256, (30, 40, 5), np.uint8)
    if kind == "12 bit":
        write_scene(path, grey.astype(np.uint16), nbits=12)
    elif kind == "palette":
        table = rng.integers(0, 65536, (3, 256), np.uint16)
        tifffile.imwrite(path, grey, photometric="palette", colormap=table)
    elif kind in ("miniswhite", "1 bit", "16 bit"):
        stored = {"miniswhite": grey, "1 bit": grey > 99, "16 bit": grey.astype(np.uint16) * 9}[kind]
        tifffile.imwrite(path, stored, photometric="miniswhite" if kind == "miniswhite" else "minisblack")
    elif kind == "orientation":
        tifffile.imwrite(path, grey, extratags=[(ORIENTATION_TAG, "H", 1, 6, True)])
    elif kind == "alpha":
        tifffile.imwrite(path, colour[..., :4], photometric="rgb", extrasamples=["unassalpha"])
    elif kind == "planes":
        tifffile.imwrite(path, np.moveaxis(colour[..., :3], 2, 0), photometric="rgb", planarconfig="separate")
    else:
        bands = int(kind.split()[0])
        stored = grey if bands == 1 else colour[..., :bands]
        tifffile.imwrite(path, stored, photometric="rgb" if bands == 3 else "minisblack", planarconfig="contig")


@pytest.mark.parametrize(
    ("kind", "channels", "is_the_same"),
    [
        ("1 band", None, True),
        ("3 bands", None, True),
        ("3 bands", (2,), True),
        ("5 bands", (4, 0, 1), True),
        ("planes", None, True),
        ("alpha", None, True),
        ("16 bit", None, True),
        ("2 bands", None, False),
        ("5 bands", None, False),
        ("5 bands", (5,), False),
        ("palette", None, False),
        ("miniswhite", None, False),
        ("1 bit", None, False),
        ("12 bit", None, False),
        ("orientation", None, False),
    ],
)
def test_windows_hold_the_pixels_of_the_whole_file_or_are_refused(
    tmp_path: Path, kind: str, channels: tuple[int, ...] | None, is_the_same: bool
) -> None:
    path = tmp_path / "image.tif"
    written_as(kind, path)
    reading = Reading(channels=channels)
    windowed = spec_of(reading=replace(reading, max_pixels=500).plain(), white=65535 if kind == "16 bit" else 255)
    if is_the_same:
        scene = open_scene(path, windowed)
        assert scene is not None
        np.testing.assert_array_equal(scene.read(5, 7, 50, 20), read_image(path, reading)[7:27, 5:])
        scene.close()
        return
    with pytest.raises((InputError, OSError)) as caught:
        open_scene(path, windowed)
    try:
        read_image(path, reading)
    except OSError as error:
        assert str(caught.value) == str(error)  # noqa: PT017
    else:
        assert "cannot be read in windows" in str(caught.value)


def test_windows_are_for_large_scenes_alone(tmp_path: Path) -> None:
    spec = spec_of()
    write_scene(tmp_path / "plain.tif", np.full((90, 90), DARK, np.uint8))
    assert isinstance(read_one(tmp_path / "plain.tif", spec).content, np.ndarray)
    small = replace(spec, reading=replace(SMALL, max_pixels=5000).plain())
    large = read_one(tmp_path / "plain.tif", small).content
    assert isinstance(large, Scene)
    assert large.overview(45).shape == (45, 45)
    unknown = Counter([Detector(Path("old"), replace(small, training_images=None), bright_spots)], None)
    with pytest.raises(ValueError, match=r"such as scale=1"):
        unknown(Read("plain", tmp_path, None, large))
    write_scene(tmp_path / "deep.tif", np.full((90, 90), 3000, np.uint16))
    deep = read_one(tmp_path / "deep.tif", replace(small, white=255))
    with pytest.raises(ValueError, match="has 16 bit"):
        counter()(deep)


def test_coordinates_that_lead_to_no_degrees_are_named(tmp_path: Path) -> None:
    """The image is counted all the same."""
    pixels = np.full((90, 90), DARK, np.uint8)
    pixels[10:14, 10:20] = 250
    write_scene(tmp_path / "local.tif", pixels, crs='LOCAL_CS["plant",UNIT["metre",1]]')
    points = [
        GroundControlPoint(row, column, 3 + column / 1e4, 45 - row / 1e4) for row in (0, 90) for column in (0, 90)
    ]
    write_scene(tmp_path / "radar.tif", pixels, gcps=points, transform=None, crs="EPSG:4326")
    with pytest.warns(NotGeoreferencedWarning):
        write_scene(tmp_path / "cropped.tif", pixels, transform=None, crs="EPSG:32632")
    count = counter()
    reasons = {"local": "cannot become degrees", "radar": "ground control points", "cropped": "no transform to it"}
    for name, reason in reasons.items():
        found = count(read_one(tmp_path / f"{name}.tif", count.detectors[0].spec)).found
        assert len(found.scores) == 1
        with pytest.raises(InputError, match=f"{name}.tif: no GeoJSON, .*{reason}"):
            geojson(tmp_path / f"{name}.tif", SMALL, found, ["ship"])
