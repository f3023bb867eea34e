"""Scenes that are read in windows: a detector of bright spots shows what tiles and windows do to counts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from scipy import ndimage
from trained_detectors import make_trained

from boxtwin.counting.detectors import Detector
from boxtwin.counting.ensemble import Counter
from boxtwin.counting.files import geojson
from boxtwin.counting.images import ImageList, Read, list_images, read_all
from boxtwin.counting.scenes import Scene
from boxtwin.datasets.image_io import read_image
from boxtwin.datasets.simulated_sar import scenes as simulated
from boxtwin.datasets.training_images import TrainingImages
from boxtwin.detector.predict import BoxesAndScores
from boxtwin.detector.spec import DetectorSpec

ROOT = Path(__file__).parents[2]
REAL = ROOT / "../shared/data/hrsid200/JPEGImages"
SIDE = 96  # of chips, and of the training images: the scale is 1
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
    return replace(trained.spec, training_images=known.plain(), **changes)


def counter(**changes: Any) -> Counter:
    return Counter([Detector(Path("spots"), spec_of(**changes), bright_spots)], None)


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
    assert isinstance(read.content, Scene)
    content = geojson(read.content, count(read).found, ["ship"])
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


def test_windows_are_for_scenes_alone(tmp_path: Path) -> None:
    spec = spec_of()
    write_scene(tmp_path / "plain.tif", np.full((90, 90), DARK, np.uint8), crs=None)
    assert isinstance(read_one(tmp_path / "plain.tif", spec).content, np.ndarray)
    # More pixels than `dataset.max_pixels`, which binds what is read whole.
    small = replace(spec, reading={**spec.how_to_read.plain(), "max_pixels": 5000})
    large = read_one(tmp_path / "plain.tif", small).content
    assert isinstance(large, Scene)
    unknown = Counter([Detector(Path("old"), replace(small, training_images=None), bright_spots)], None)
    with pytest.raises(ValueError, match=r"give their scale, such as scale=1"):
        unknown(Read("plain", tmp_path, None, large))
    assert geojson(large, counter()(Read("plain", tmp_path, None, large)).found, ["ship"]) is None
    assert large.overview(45).shape == (45, 45)
    write_scene(tmp_path / "deep.tif", np.full((90, 90), 3000, np.uint16))
    deep = read_one(tmp_path / "deep.tif", spec)
    with pytest.raises(ValueError, match="has 16 bit"):
        counter()(deep)
    write_scene(tmp_path / "colour.tif", np.full((90, 90, 4), DARK, np.uint8))
    assert list_images(str(tmp_path / "*.tif")).files
    colour = read_one(tmp_path / "colour.tif", spec).content
    assert isinstance(colour, Scene)
    assert colour.read(80, 80, 50, 50).shape == (10, 10, 3)
