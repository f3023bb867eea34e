"""What a store of variations holds, how it is named, and what it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import MakeCoco
from noise_store import Noise, assert_complete, open_library
from pycocotools.coco import COCO

from boxtwin.datasets.coco import read_coco
from boxtwin.datasets.image_io import pixels_sha256, read_image
from boxtwin.datasets.sample import Dataset, Sample
from boxtwin.errors import InputError
from boxtwin.labels.carry import Carry
from boxtwin.synthesis.controls import CopyPaste, Repeat
from boxtwin.synthesis.generator import Model, Request, Variation
from boxtwin.synthesis.store import Library


@pytest.fixture
def dataset(make_coco: MakeCoco) -> Dataset:
    return make_coco(images=3, classes=("ship", "buoy"), objects=(2, 0, 3)).read()


@pytest.fixture
def noise(tmp_path: Path) -> Noise:
    return Noise(tmp_path / "made.log")


def test_all_variations_are_those_that_are_there(dataset: Dataset, tmp_path: Path, noise: Noise) -> None:
    library = open_library(dataset, tmp_path / "stores", noise)
    assert library.all_variations(dataset.samples) == ()
    library.make(dataset.samples[:2], 2)
    library.make(dataset.samples[1:], 1)
    found = [
        (sample.lineage.source, sample.lineage.variation)
        for sample in library.all_variations(dataset.samples)
        if sample.lineage
    ]
    names = [sample.name for sample in dataset.samples]
    assert found == [(names[0], 1), (names[0], 2), (names[1], 1), (names[1], 2), (names[2], 1)]
    assert [sample.name for sample in library.all_variations(dataset.samples[:2])] == [
        sample.name for sample in library.variations(dataset.samples[:2], 2)
    ]


def test_a_store_as_the_design_has_it(dataset: Dataset, tmp_path: Path, noise: Noise) -> None:
    library = open_library(dataset, tmp_path / "stores", noise)
    made = library.make(dataset.samples, 2)
    assert (made.made, made.existing) == (6, 0)
    assert library.folder == tmp_path / "stores" / f"noise-{library.key}"
    assert_complete(library, dataset.samples, 2)
    line = library.lines()[0]
    source = dataset.samples[0]
    assert line.source == source.name
    assert line.source_sha256 == source.sha256
    assert line.variation == 1
    assert line.image == "images/S00_0_v01.png"
    assert line.generator == "noise"
    assert line.parameters == {"level": 50}
    assert line.model == Model("none", None)
    assert line.seconds >= 0
    assert line.cost_usd == 0
    assert made.peak_memory[1] > 0
    of, most = made.peak_memory
    assert most in [line.record[f"peak_memory_{of}"] for line in library.lines()]
    assert [box.decision for box in line.labels.boxes] == ["kept", "kept"]
    assert all(box.evidence for box in line.labels.boxes)
    written = json.loads((library.folder / "store.json").read_text())
    assert written == library.identity.to_json() | {"reproducible": True}
    samples = library.variations(dataset.samples, 2)
    assert [(s.lineage.source, s.lineage.variation) for s in samples if s.lineage] == [
        (source.name, number) for source in dataset.samples for number in (1, 2)
    ]
    assert len({sample.image_id for sample in samples}) == len({sample.name for sample in samples}) == 6
    for sample in samples:
        assert sample.lineage is not None
        (source,) = (real for real in dataset.samples if real.name == sample.lineage.source)
        assert sample.group == source.group
        assert sample.lineage.generator == "noise"
        np.testing.assert_array_equal(sample.boxes, source.boxes)
        np.testing.assert_array_equal(sample.labels, source.labels)
        # The seed of the lineage makes the same pixels again.
        (again,) = Noise(tmp_path / "again.log").vary([Request(source, 1, sample.lineage.seed)])
        np.testing.assert_array_equal(again.pixels, read_image(sample.path))


@pytest.mark.parametrize("kind", ["repeat", "copy_paste"])
@pytest.mark.parametrize("look", [{}, {"channels": (1, 3)}, {"dtypes": (np.uint16,), "channels": (3, 1)}])
def test_the_controls_make_stores_that_pycocotools_reads(
    make_coco: MakeCoco,
    tmp_path: Path,
    kind: str,
    look: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    dataset = make_coco(images=4, classes=("ship", "buoy"), objects=(3, 0), **look).read()
    generator = Repeat() if kind == "repeat" else CopyPaste(mirror=True, turns=True)
    library = open_library(dataset, tmp_path / "stores", generator)
    library.make(dataset.samples, 2)
    assert_complete(library, dataset.samples, 2)
    oracle = COCO(str(library.folder / "annotations.json"))
    capsys.readouterr()
    assert [(c["id"], c["name"]) for c in oracle.loadCats(oracle.getCatIds())] == [(3, "ship"), (13, "buoy")]
    samples = {(s.lineage.source, s.lineage.variation): s for s in library.variations(dataset.samples, 2) if s.lineage}
    sizes = {source.name: read_image(source.path) for source in dataset.samples}
    for image in oracle.loadImgs(oracle.getImgIds()):
        sample = samples[image["source"], image["variation"]]
        assert library.folder / image["file_name"] == sample.path
        assert (image["width"], image["height"]) == (sample.width, sample.height)
        pixels = read_image(sample.path)
        assert (pixels.shape, pixels.dtype) == (sizes[image["source"]].shape, sizes[image["source"]].dtype)
        if kind == "repeat":
            np.testing.assert_array_equal(pixels, sizes[image["source"]])
        annotations = oracle.loadAnns(oracle.getAnnIds(image["id"]))
        boxes = np.array([entry["bbox"] for entry in annotations]).reshape(-1, 4)
        np.testing.assert_allclose(np.hstack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]]), sample.boxes)
        assert [entry["category_id"] for entry in annotations] == [dataset.category_ids[n] for n in sample.labels]
    # What boxtwin writes, boxtwin reads: every check passes.
    back = read_coco(name="back", images=library.folder, annotations=library.folder / "annotations.json")
    assert len(back.samples) == 8
    assert back.repairs == {}


def test_variations_have_the_crowds_of_their_source(make_coco: MakeCoco, tmp_path: Path) -> None:
    built = make_coco(images=2, objects=(3, 0))
    built.content["annotations"][1]["iscrowd"] = 1
    dataset = built.read()
    library = open_library(dataset, tmp_path / "stores", Repeat())
    library.make(dataset.samples, 1)
    source, (varied, empty) = dataset.samples[0], library.variations(dataset.samples, 1)
    assert varied.crowd.tolist() == [False, False, True]
    np.testing.assert_array_equal(varied.object_boxes, source.object_boxes)
    for name in ("boxes", "labels", "areas"):
        np.testing.assert_array_equal(getattr(varied, name)[varied.crowd], getattr(source, name)[source.crowd])
    assert len(empty.boxes) == len(empty.crowd) == 0


def test_the_coco_file_follows_the_data_set(dataset: Dataset, tmp_path: Path, noise: Noise) -> None:
    """Boxes of a source that was corrected, renamed classes, other ids, images that are gone: none is kept."""
    library = open_library(dataset, tmp_path / "stores", noise)
    library.make(dataset.samples, 2)
    file = library.folder / "annotations.json"
    before = file.stat()
    library.make(dataset.samples, 2)
    assert file.stat().st_mtime_ns == before.st_mtime_ns  # nothing has changed, nothing is written
    # A lost image that comes out with other bytes has another hash of its pixels.
    lost = json.loads(file.read_text())["images"][0]
    (library.folder / lost["file_name"]).unlink()
    noise.level = 40
    library.make(dataset.samples, 2)
    noise.level = 50
    again = json.loads(file.read_text())["images"][0]
    assert again["pixels_sha256"] == pixels_sha256(read_image(library.folder / lost["file_name"]))
    assert again["pixels_sha256"] != lost["pixels_sha256"]
    first, _, last = dataset.samples
    moved = replace(first, boxes=first.boxes + 1)
    changed = replace(dataset, samples=(moved, last), classes=("buoy", "ship"), category_ids=(7, 8))
    library = open_library(changed, tmp_path / "stores", noise)
    library.make((moved, last), 1)
    content = json.loads(file.read_text())
    assert content["categories"] == [{"id": 7, "name": "buoy"}, {"id": 8, "name": "ship"}]
    listed = {(image["source"], image["variation"]): image["id"] for image in content["images"]}
    assert set(listed) == {(first.name, 1), (last.name, 1), (last.name, 2)}
    assert all(len(image["pixels_sha256"]) == 64 for image in content["images"])
    boxes = [each for each in content["annotations"] if each["image_id"] == listed[first.name, 1]]
    assert [each["bbox"][:2] for each in boxes] == moved.boxes[:, :2].tolist()
    assert {each["category_id"] for each in content["annotations"]} <= {7, 8}


def test_two_variations_are_the_first_two_of_ten(dataset: Dataset, tmp_path: Path, noise: Noise) -> None:
    library = open_library(dataset, tmp_path / "stores", noise)
    library.make(dataset.samples, 2)
    two = library.variations(dataset.samples, 2)
    before = [(sample.name, sample.sha256, sample.path.stat().st_mtime_ns) for sample in two]
    made = library.make(dataset.samples, 10)
    assert (made.made, made.existing) == (24, 6)
    assert len(noise.made()) == len(set(noise.made())) == 30
    assert_complete(library, dataset.samples, 10)
    again = library.variations(dataset.samples, 2)
    assert [(sample.name, sample.sha256, sample.path.stat().st_mtime_ns) for sample in again] == before
    ten = library.variations(dataset.samples, 10)
    assert {(s.name, s.sha256) for s in two} < {(s.name, s.sha256) for s in ten}
    # The other way round, another store, ten at once: the same images.
    other = open_library(dataset, tmp_path / "other", Noise(tmp_path / "other.log"))
    other.make(dataset.samples[::-1], 10)
    assert [s.sha256 for s in other.variations(dataset.samples, 10)] == [s.sha256 for s in ten]
    assert library.make(dataset.samples, 0).made == 0


def test_seeds_are_stable() -> None:
    library = Library(
        Path("x"), Repeat(), [], judge=Carry(), labels="carry", dataset=Dataset("d", (), (), (), ""), seed=0
    )
    sample = Sample("a.png", Path("a.png"), 1, 1, 1, np.zeros((0, 4)), np.zeros(0, int), np.zeros(0), np.zeros(0, bool))
    # From the hash of "0/a.png/1": a release that changes it would make every store anew.
    assert library._seed_of(sample, 1) == 0xB03C7538
    assert library._seed_of(sample, 2) != library._seed_of(sample, 1)


def test_what_the_key_depends_on(dataset: Dataset, tmp_path: Path) -> None:
    def key(learns: bool = False, level: int = 50, **changes: Any) -> str:
        generator = Noise(tmp_path / "log", learns=learns, level=level)
        return open_library(changes.pop("of", dataset), tmp_path, generator, **changes).key

    fewer = dataset.samples[:2]
    assert key() == key() == key(training=fewer)
    assert key(learns=True) == key(learns=True) != key(learns=True, training=fewer)
    keys = [
        key(),
        key(level=51),
        key(seed=1),
        key(labels="other"),
        key(of=replace(dataset, name="other")),
        key(learns=True),
    ]
    assert len(set(keys)) == len(keys)


class InAnyFormat(Noise):
    """Earlier versions recorded the setting of its number format, and not the format."""

    def parameters(self) -> dict[str, Any]:
        return super().parameters() | {"dtype": "float32"}

    def former_parameters(self) -> dict[str, Any]:
        return {"dtype": "auto"}


class InAutoFormat(Noise):
    """The earlier version of it."""

    def parameters(self) -> dict[str, Any]:
        return super().parameters() | {"dtype": "auto"}


def test_a_store_of_an_earlier_version_is_found_and_continued(dataset: Dataset, tmp_path: Path) -> None:
    now, before = InAnyFormat(tmp_path / "now.log"), InAutoFormat(tmp_path / "before.log")
    fresh = open_library(dataset, tmp_path / "stores", now)
    old = open_library(dataset, tmp_path / "stores", before)
    old.make(dataset.samples, 1)
    found = open_library(dataset, tmp_path / "stores", now)
    assert found.folder == old.folder != fresh.folder
    assert not found.missing(dataset.samples, 1)
    update = found.make(dataset.samples, 2)
    assert (update.made, update.existing) == (3, 3)
    assert {line.parameters["dtype"] for line in found.lines()} == {"auto"}


def test_a_generator_sees_the_training_images_only(dataset: Dataset, tmp_path: Path, noise: Noise) -> None:
    open_library(dataset, tmp_path / "stores", noise, training=dataset.samples[:2]).make(dataset.samples, 1)
    assert noise.seen == ["S00_0.png", "S01_0.png"]


def test_synthetic_images_are_neither_sources_nor_training(dataset: Dataset, tmp_path: Path, noise: Noise) -> None:
    library = open_library(dataset, tmp_path / "stores", noise)
    library.make(dataset.samples, 1)
    synthetic = library.variations(dataset.samples, 1)
    with pytest.raises(ValueError, match=r"learns from real images only, got noise-.*v01\.png"):
        open_library(dataset, tmp_path / "stores", noise, training=synthetic)
    with pytest.raises(ValueError, match=r"noise-.*v01\.png is synthetic"):
        library.make(synthetic, 1)


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((64, 81), None, r"S00_0\.png: \(64, 80\).*uint8 .*expected, \(64, 81\) and uint8 came"),
        ((64, 80, 3), None, r"\(64, 80, 3\) and uint8 came"),
        (None, np.uint16, r"\(64, 80\) and uint16 came"),
    ],
)
def test_pixels_unlike_the_source_are_refused(
    dataset: Dataset, tmp_path: Path, noise: Noise, shape: Any, dtype: Any, message: str
) -> None:
    noise.shape, noise.dtype = shape, dtype
    library = open_library(dataset, tmp_path / "stores", noise)
    with pytest.raises(ValueError, match=message):
        library.make(dataset.samples, 1)
    assert library.lines() == []


def test_a_generator_that_gives_another_number_or_order_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    class Short(Noise):
        def vary(self, requests: Sequence[Request]) -> Iterator[Variation]:
            yield from super().vary(requests[:-1])

    class Backwards(Noise):
        def vary(self, requests: Sequence[Request]) -> Iterator[Variation]:
            yield from super().vary(requests[::-1])

    with pytest.raises(ValueError, match="shorter"):
        open_library(dataset, tmp_path / "a", Short(tmp_path / "log")).make(dataset.samples, 1)
    with pytest.raises(ValueError, match="another order"):
        open_library(dataset, tmp_path / "b", Backwards(tmp_path / "log")).make(dataset.samples, 1)


def test_images_of_other_runs_may_need_the_same_names(make_coco: MakeCoco, tmp_path: Path) -> None:
    """The store of a generator that does not learn serves all splits."""
    built = make_coco(images=2)
    shutil.copy(built.images / "S00_0.png", built.images / "S00_0.tif")
    built.content["images"][1]["file_name"] = "S00_0.tif"
    dataset = built.read()
    for source in dataset.samples:
        with pytest.raises(InputError, match="would share names"):
            open_library(dataset, tmp_path / "stores", Repeat()).make([source], 1)


def test_names_that_differ_in_their_ending_only_are_refused(make_coco: MakeCoco, tmp_path: Path) -> None:
    built = make_coco(images=2)
    shutil.copy(built.images / "S00_0.png", built.images / "S00_0.tif")
    built.content["images"][1]["file_name"] = "S00_0.tif"
    dataset = built.read()
    with pytest.raises(InputError, match=r"S00_0\.png and S00_0\.tif would share names"):
        open_library(dataset, tmp_path / "stores", Repeat()).make(dataset.samples, 1)


def test_folders_in_file_names_are_kept_apart(make_coco: MakeCoco, tmp_path: Path) -> None:
    built = make_coco(images=2)
    for image, folder in zip(built.content["images"], ("a", "b"), strict=True):
        (built.images / folder).mkdir()
        (built.images / image["file_name"]).rename(built.images / folder / "same.png")
        image["file_name"] = f"{folder}/same.png"
    dataset = built.read()
    library = open_library(dataset, tmp_path / "stores", Repeat())
    library.make(dataset.samples, 1)
    assert [line.image for line in library.lines()] == ["images/a__same_v01.png", "images/b__same_v01.png"]
