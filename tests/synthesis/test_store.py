"""Run as a script, this file makes a store in a process of its own.

``python test_store.py <data set> <stores> <per image> <variation to be killed at, or -1>``
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO

from boxtwin.boxes import xywh_to_xyxy
from boxtwin.datasets.coco import read_coco
from boxtwin.datasets.image_io import read_image, write_png
from boxtwin.datasets.sample import CarriedBox, Dataset, Judgement, Sample
from boxtwin.errors import InputError
from boxtwin.labels.carry import Carry
from boxtwin.synthesis.controls import CopyPaste, Repeat
from boxtwin.synthesis.generator import Refused, Request, Variation
from boxtwin.synthesis.store import Library


class Noise:
    """New noise for every seed. Writes down each variation that it makes, and dies where it is told to."""

    name = "noise"
    boxes = "carried"
    remote = False

    def model(self) -> None: ...

    def match(self, samples: Sequence[Sample]) -> None: ...

    def price_usd(self, source: Sample) -> float:  # noqa: ARG002
        return 0.0

    def __init__(self, log: Path, *, learns: bool = False, level: int = 50, dies_at: int = -1, killed: bool = False):
        self.log, self.learns, self.level, self.dies_at, self.killed = log, learns, level, dies_at, killed
        self.shape: tuple[int, ...] | None = None
        self.dtype: Any = None

    def version(self, training: Sequence[Sample]) -> int:  # noqa: ARG002
        return 1

    def parameters(self) -> dict[str, Any]:
        return {"level": self.level}

    def fit(self, training: Sequence[Sample], folder: Path) -> None:
        self.seen = [sample.name for sample in training]
        assert folder.is_dir()

    def vary(self, requests: Sequence[Request]) -> Iterator[Variation]:
        for place, request in enumerate(requests):
            if place == self.dies_at:
                if self.killed:
                    os.kill(os.getpid(), signal.SIGKILL)
                raise RuntimeError("the card fell off the bus")
            source = request.source
            with self.log.open("a") as log:
                log.write(f"{source.name} v{request.variation}\n")
            original = read_image(source.path)
            noise = np.random.default_rng(request.seed).integers(0, self.level, size=self.shape or original.shape)
            yield Variation(request, noise.astype(self.dtype or original.dtype), source.boxes, source.labels)
        if self.dies_at == len(requests):
            raise RuntimeError("after the last one")

    def made(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []


def open_library(dataset: Dataset, stores: Path, generator: Any, **changes: Any) -> Library:
    settings: dict[str, Any] = {
        "judge": Carry(exact=True),  # noise holds no objects that could be found
        "labels": "carry",
        "dataset": dataset.name,
        "classes": dataset.classes,
        "category_ids": dataset.category_ids,
        "seed": 0,
        "training": dataset.samples,
    }
    return Library(stores, generator, **{**settings, **changes})


def assert_complete(library: Library, sources: Sequence[Sample], per_image: int) -> None:
    """One line for every variation, its image as recorded, and a COCO file that holds all of them."""
    wanted = {(source.name, number) for source in sources for number in range(1, per_image + 1)}
    assert sorted((line["source"], line["variation"]) for line in library.lines()) == sorted(wanted)
    assert len(library.variations(sources, per_image)) == len(wanted)
    assert len(list((library.folder / "images").glob("*_v*.png"))) == len(wanted)
    content = json.loads((library.folder / "annotations.json").read_text())
    assert {(image["source"], image["variation"]) for image in content["images"]} == wanted


@pytest.fixture
def dataset(make_coco: Callable[..., Any]) -> Dataset:
    return make_coco(images=3, classes=("ship", "buoy"), objects=(2, 0, 3)).read()  # type: ignore[no-any-return]


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
    assert (made.made, made.there) == (6, 0)
    assert library.folder == tmp_path / "stores" / f"noise-{library.key}"
    assert_complete(library, dataset.samples, 2)
    line = library.lines()[0]
    source = dataset.samples[0]
    assert line["source"] == source.name
    assert line["source_sha256"] == source.sha256
    assert line["variation"] == 1
    assert line["image"] == "images/S00_0_v01.png"
    assert line["generator"] == "noise"
    assert line["parameters"] == {"level": 50}
    assert set(line["model"]) == {"id", "revision"}
    assert line["seconds"] >= 0
    assert line["cost_usd"] == 0
    assert (line["labels"]["kept"], line["labels"]["shifted"], line["labels"]["dropped"]) == (2, 0, 0)
    assert all(box["evidence"] for box in line["labels"]["boxes"])
    assert json.loads((library.folder / "store.json").read_text()) == library.identity
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
    make_coco: Callable[..., Any], tmp_path: Path, kind: str, look: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = make_coco(images=4, classes=("ship", "buoy"), objects=(3, 0), **look).read()
    generator = (
        Repeat()
        if kind == "repeat"
        else CopyPaste(pastes=2, min_pastes=1, feather=2, tolerance=5.0, mirror=True, turns=True)
    )
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
        np.testing.assert_allclose(xywh_to_xyxy(boxes), sample.boxes)
        assert [entry["category_id"] for entry in annotations] == [dataset.category_ids[n] for n in sample.labels]
    # What boxtwin writes, boxtwin reads: every check passes.
    back = read_coco(name="back", images=library.folder, annotations=library.folder / "annotations.json")
    assert len(back.samples) == 8
    assert back.repairs == {}


def test_two_variations_are_the_first_two_of_ten(dataset: Dataset, tmp_path: Path, noise: Noise) -> None:
    library = open_library(dataset, tmp_path / "stores", noise)
    library.make(dataset.samples, 2)
    two = library.variations(dataset.samples, 2)
    before = [(sample.name, sample.sha256, sample.path.stat().st_mtime_ns) for sample in two]
    made = library.make(dataset.samples, 10)
    assert (made.made, made.there) == (24, 6)
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
        Path("x"), Repeat(), [], judge=Carry(), labels="carry", dataset="d", classes=(), category_ids=(), seed=0
    )
    sample = Sample("a.png", Path("a.png"), 1, 1, 1, np.zeros((0, 4)), np.zeros(0, int), np.zeros(0), np.zeros(0, bool))
    # From the hash of "0/a.png/1": a release that changes it would make every store anew.
    assert library._seed_of(sample, 1) == 0xB03C7538
    assert library._seed_of(sample, 2) != library._seed_of(sample, 1)


@pytest.mark.parametrize("dies_at", range(7))
def test_after_a_crash_nothing_is_made_twice(dataset: Dataset, tmp_path: Path, noise: Noise, dies_at: int) -> None:
    noise.dies_at = dies_at
    library = open_library(dataset, tmp_path / "stores", noise)
    with pytest.raises(RuntimeError):
        library.make(dataset.samples, 2)
    assert len(library.lines()) == dies_at
    noise.dies_at = -1
    made = open_library(dataset, tmp_path / "stores", noise).make(dataset.samples, 2)
    assert (made.made, made.there) == (6 - dies_at, dies_at)
    assert len(noise.made()) == len(set(noise.made())) == 6
    assert_complete(library, dataset.samples, 2)


def start(dataset_root: Path, stores: Path, per_image: int, dies_at: int) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, __file__, str(dataset_root), str(stores), str(per_image), str(dies_at)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def test_after_sigkill_nothing_is_made_twice(make_coco: Callable[..., Any], tmp_path: Path) -> None:
    built = make_coco(images=4)
    stores = tmp_path / "stores"
    stores.mkdir()
    killed = start(built.root, stores, 2, 5)
    killed.communicate(timeout=60)
    assert killed.returncode == -signal.SIGKILL
    dataset = built.read()
    library = open_library(dataset, stores, Noise(stores / "made.log"))
    assert len(library.lines()) == 5
    made = library.make(dataset.samples, 2)
    assert (made.made, made.there) == (3, 5)
    log = (stores / "made.log").read_text().splitlines()
    assert len(log) == len(set(log)) == 8
    assert_complete(library, dataset.samples, 2)


def test_two_processes_make_one_store(make_coco: Callable[..., Any], tmp_path: Path) -> None:
    built = make_coco(images=5)
    stores = tmp_path / "stores"
    stores.mkdir()
    processes = [start(built.root, stores, per_image, -1) for per_image in (3, 4)]
    for process in processes:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors.decode()
    log = (stores / "made.log").read_text().splitlines()
    assert len(log) == len(set(log)) == 20
    dataset = built.read()
    assert_complete(open_library(dataset, stores, Noise(stores / "made.log")), dataset.samples, 4)


@pytest.mark.parametrize("cut", [1, 40])
def test_a_torn_last_line(dataset: Dataset, tmp_path: Path, noise: Noise, cut: int) -> None:
    library = open_library(dataset, tmp_path / "stores", noise)
    library.make(dataset.samples, 1)
    content = library.manifest.read_bytes()
    library.manifest.write_bytes(content[:-cut])
    assert len(library.lines()) == 2
    with pytest.raises(InputError, match=r"lacks 1 variation\(s\), S02_0\.png v01: run generate\.py"):
        library.variations(dataset.samples, 1)
    assert library.make(dataset.samples, 2).made == 4
    assert_complete(library, dataset.samples, 2)
    assert library.manifest.read_bytes().startswith(content[: content.rfind(b"\n", 0, -1) + 1])


def test_images_deleted_changed_or_cut_short_are_made_again(dataset: Dataset, tmp_path: Path, noise: Noise) -> None:
    library = open_library(dataset, tmp_path / "stores", noise)
    library.make(dataset.samples, 2)
    before = [sample.sha256 for sample in library.variations(dataset.samples, 2)]
    paths = [library.folder / line["image"] for line in library.lines()]
    paths[0].unlink()
    write_png(paths[1], np.zeros((64, 80), dtype=np.uint8))
    paths[2].write_bytes(paths[2].read_bytes()[:100])
    with pytest.raises(InputError, match="lacks 3"):
        library.variations(dataset.samples, 2)
    assert library.make(dataset.samples, 2).made == 3
    assert [sample.sha256 for sample in library.variations(dataset.samples, 2)] == before
    assert len(json.loads((library.folder / "annotations.json").read_text())["images"]) == 6


def test_a_lost_image_of_another_source_is_no_obstacle(dataset: Dataset, tmp_path: Path, noise: Noise) -> None:
    library = open_library(dataset, tmp_path / "stores", noise)
    library.make(dataset.samples, 1)
    (library.folder / "images" / "S02_0_v01.png").unlink()
    library.make(dataset.samples[:2], 2)
    content = json.loads((library.folder / "annotations.json").read_text())
    assert sorted((image["source"], image["variation"]) for image in content["images"]) == [
        ("S00_0.png", 1),
        ("S00_0.png", 2),
        ("S01_0.png", 1),
        ("S01_0.png", 2),
    ]


@pytest.mark.parametrize("change", ["pixels", "boxes", "label", "crowd"])
def test_variations_of_a_changed_source_are_made_again(
    make_coco: Callable[..., Any], tmp_path: Path, noise: Noise, change: str
) -> None:
    built = make_coco(images=3, classes=("ship", "buoy"))
    before = built.read()
    open_library(before, tmp_path / "stores", noise).make(before.samples, 2)
    annotation = built.content["annotations"][0]
    if change == "pixels":
        write_png(built.images / "S00_0.png", 255 - read_image(built.images / "S00_0.png"))
    elif change == "boxes":
        annotation["bbox"][2] -= 1
    elif change == "label":
        annotation["category_id"] = 16 - annotation["category_id"]
    else:
        annotation["iscrowd"] = 1
    after = built.read()
    library = open_library(after, tmp_path / "stores", noise)
    with pytest.raises(InputError, match="lacks 2"):
        library.variations(after.samples, 2)
    assert library.make(after.samples, 2).made == 2
    assert noise.made()[6:] == ["S00_0.png v1", "S00_0.png v2"]
    assert len(library.variations(after.samples, 2)) == 6
    assert len(json.loads((library.folder / "annotations.json").read_text())["images"]) == 6
    assert library.make(after.samples, 2).made == 0


def test_annotations_lost_to_a_kill_come_back(dataset: Dataset, tmp_path: Path, noise: Noise) -> None:
    library = open_library(dataset, tmp_path / "stores", noise)
    library.make(dataset.samples, 1)
    (library.folder / "annotations.json").unlink()
    library.make(dataset.samples, 1)
    assert_complete(library, dataset.samples, 1)


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


def test_names_that_differ_in_their_ending_only_are_refused(make_coco: Callable[..., Any], tmp_path: Path) -> None:
    built = make_coco(images=2)
    shutil.copy(built.images / "S00_0.png", built.images / "S00_0.tif")
    built.content["images"][1]["file_name"] = "S00_0.tif"
    dataset = built.read()
    with pytest.raises(InputError, match=r"S00_0\.png and S00_0\.tif would share names"):
        open_library(dataset, tmp_path / "stores", Repeat()).make(dataset.samples, 1)


def test_folders_in_file_names_are_kept_apart(make_coco: Callable[..., Any], tmp_path: Path) -> None:
    built = make_coco(images=2)
    for image, folder in zip(built.content["images"], ("a", "b"), strict=True):
        (built.images / folder).mkdir()
        (built.images / image["file_name"]).rename(built.images / folder / "same.png")
        image["file_name"] = f"{folder}/same.png"
    dataset = built.read()
    library = open_library(dataset, tmp_path / "stores", Repeat())
    library.make(dataset.samples, 1)
    assert [line["image"] for line in library.lines()] == ["images/a__same_v01.png", "images/b__same_v01.png"]


def test_dropped_boxes_leave_the_labels_but_not_the_manifest(dataset: Dataset, tmp_path: Path, noise: Noise) -> None:
    def judge(source: Any, pixels: Any, boxes: Any, labels: Any, image: str) -> Judgement:
        decisions = ("dropped", "shifted", "kept")
        return Judgement(
            tuple(
                CarriedBox((box[0], box[1], box[2], box[3]), label, decisions[n], {"why": 1.0})
                for n, (box, label) in enumerate(zip(boxes.tolist(), labels.tolist(), strict=True))
            )
        )

    library = open_library(dataset, tmp_path / "stores", noise, judge=judge, labels="picky")
    library.make(dataset.samples, 1)
    assert [len(sample.boxes) for sample in library.variations(dataset.samples, 1)] == [1, 0, 2]
    labels = library.lines()[2]["labels"]
    assert (labels["kept"], labels["shifted"], labels["dropped"], len(labels["boxes"])) == (1, 1, 1, 3)
    assert len(json.loads((library.folder / "annotations.json").read_text())["annotations"]) == 3


def test_images_whose_labels_are_not_trusted_are_kept_and_not_used(
    dataset: Dataset, tmp_path: Path, noise: Noise
) -> None:
    def judge(source: Any, pixels: Any, boxes: Any, labels: Any, image: str) -> Judgement:
        return Judgement((), refused="nothing in it" if len(boxes) == 0 else None)

    library = open_library(dataset, tmp_path / "stores", noise, judge=judge, labels="strict")
    assert library.make(dataset.samples, 2).made == 6
    usable = library.variations(dataset.samples, 2)
    assert [sample.lineage.source for sample in usable if sample.lineage] == 2 * ["S00_0.png"] + 2 * ["S02_0.png"]
    assert [sample.image_id for sample in usable] == [1, 2, 3, 4]
    images = json.loads((library.folder / "annotations.json").read_text())["images"]
    marks = {(image["source"], image.get("refused"), image.get("confirmed")) for image in images}
    assert len(images) == 6
    assert marks == {
        ("S00_0.png", None, None),
        ("S01_0.png", "nothing in it", False),
        ("S02_0.png", None, None),
    }
    assert library.make(dataset.samples, 2).there == 6


def test_a_store_with_other_labels_takes_the_images_over(dataset: Dataset, tmp_path: Path, noise: Noise) -> None:
    first = open_library(dataset, tmp_path / "stores", noise)
    first.make(dataset.samples, 2)

    def nothing(source: Any, pixels: Any, boxes: Any, labels: Any, image: str) -> Judgement:
        return Judgement(())

    second = open_library(dataset, tmp_path / "stores", noise, judge=nothing, labels="nothing")
    assert second.folder != first.folder
    assert [request.variation for request in second.missing(dataset.samples, 3)] == [3, 3, 3]
    made = second.make(dataset.samples, 3)
    assert (made.made, made.taken_over, made.there) == (3, 6, 0)
    assert len(noise.made()) == len(set(noise.made())) == 9
    assert_complete(second, dataset.samples, 3)
    for before, after in zip(
        first.variations(dataset.samples, 2), second.variations(dataset.samples[:3], 3)[:2], strict=False
    ):
        assert after.sha256 == before.sha256
        assert len(after.boxes) == 0
        assert after.path.stat().st_ino == before.path.stat().st_ino  # one file under two names
    # And back: what the second store has made by itself, the first need not make.
    assert first.make(dataset.samples, 3).taken_over == 3
    # Other pixels are no business of theirs.
    other = open_library(dataset, tmp_path / "stores", Noise(tmp_path / "o.log", level=7), labels="nothing")
    assert other.make(dataset.samples, 1).taken_over == 0


def test_what_is_there_is_taken_over_without_asking_the_generator(
    dataset: Dataset, tmp_path: Path, noise: Noise
) -> None:
    open_library(dataset, tmp_path / "stores", noise).make(dataset.samples, 1)

    class Silent(Noise):
        def fit(self, training: Sequence[Sample], folder: Path) -> None:  # noqa: ARG002
            raise AssertionError("asked to learn")

        def vary(self, requests: Sequence[Request]) -> Iterator[Variation]:  # noqa: ARG002
            raise AssertionError("asked to draw")

    other = open_library(dataset, tmp_path / "stores", Silent(tmp_path / "made.log"), labels="other")
    made = other.make(dataset.samples, 2, ask=False)
    assert (made.made, made.refused, made.taken_over, made.there) == (0, 0, 3, 0)
    assert len(other.variations(dataset.samples, 1)) == 3
    assert len(other.missing(dataset.samples, 2)) == 3
    assert other.make(dataset.samples, 2, ask=False).there == 3
    assert other.make(dataset.samples, 1).there == 3


def test_a_refused_image_is_recorded_and_the_rest_go_on(dataset: Dataset, tmp_path: Path) -> None:
    class Choosy(Noise):
        refuses = True

        def vary(self, requests: Sequence[Request]) -> Iterator[Variation | Refused]:  # type: ignore[override]
            for request in requests:
                if self.refuses and request.source.name == "S01_0.png":
                    yield Refused(request, "not this one")
                else:
                    yield from super().vary([request])

    choosy = Choosy(tmp_path / "made.log")
    library = open_library(dataset, tmp_path / "stores", choosy)
    made = library.make(dataset.samples, 2)
    assert (made.made, made.refused) == (4, 2)
    assert {line["reason"] for line in library.refused(dataset.samples).values()} == {"not this one"}
    assert len(library.variations(dataset.samples, 2)) == 4
    with pytest.raises(InputError, match="lacks 3"):
        library.variations(dataset.samples, 3)
    # Asked again, and had this time: it is refused no more.
    choosy.refuses = False
    made = library.make(dataset.samples, 2)
    assert (made.made, made.there, made.refused) == (2, 4, 0)
    assert library.refused(dataset.samples) == {}
    assert_complete(library, dataset.samples, 2)


if __name__ == "__main__":
    root, stores = Path(sys.argv[1]), Path(sys.argv[2])
    read = read_coco(name="tiny", images=root / "images", annotations=root / "annotations.json")
    deadly = Noise(stores / "made.log", dies_at=int(sys.argv[4]), killed=True)
    open_library(read, stores, deadly).make(read.samples, int(sys.argv[3]))
