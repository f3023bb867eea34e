"""Stores after crashes and kills, with damaged files, or of sources that have changed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import noise_store
import numpy as np
import pytest
from conftest import MakeCoco
from noise_store import Noise, assert_complete, open_library

from boxtwin.datasets.image_io import read_image, write_png
from boxtwin.datasets.sample import Dataset
from boxtwin.errors import InputError
from boxtwin.synthesis.constants import GIVE_UP_AFTER
from boxtwin.synthesis.generator import Refused, Request, Variation


@pytest.fixture
def dataset(make_coco: MakeCoco) -> Dataset:
    return make_coco(images=3, classes=("ship", "buoy"), objects=(2, 0, 3)).read()


@pytest.fixture
def noise(tmp_path: Path) -> Noise:
    return Noise(tmp_path / "made.log")


@pytest.mark.parametrize("dies_at", range(7))
def test_after_a_crash_nothing_is_made_twice(dataset: Dataset, tmp_path: Path, noise: Noise, dies_at: int) -> None:
    noise.dies_at = dies_at
    library = open_library(dataset, tmp_path / "stores", noise)
    with pytest.raises(RuntimeError):
        library.make(dataset.samples, 2)
    assert len(library.lines()) == dies_at
    noise.dies_at = -1
    made = open_library(dataset, tmp_path / "stores", noise).make(dataset.samples, 2)
    assert (made.made, made.existing) == (6 - dies_at, dies_at)
    assert len(noise.made()) == len(set(noise.made())) == 6
    assert_complete(library, dataset.samples, 2)


def test_a_refusal_before_anything_is_made_leaves_no_store(
    dataset: Dataset, tmp_path: Path, noise: Noise, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = open_library(dataset, tmp_path / "stores", noise)

    def refuse(*_: object) -> None:
        raise InputError("no checkpoint")

    with monkeypatch.context() as patch:
        patch.setattr(noise, "fit", refuse)
        with pytest.raises(InputError, match="no checkpoint"):
            library.make(dataset.samples, 2)
        assert not library.folder.exists()
    library.make(dataset.samples, 1)
    monkeypatch.setattr(noise, "fit", refuse)
    with pytest.raises(InputError, match="no checkpoint"):
        library.make(dataset.samples, 2)
    assert_complete(library, dataset.samples, 1)


def start(dataset_root: Path, stores: Path, per_image: int, dies_at: int) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, noise_store.__file__, str(dataset_root), str(stores), str(per_image), str(dies_at)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def test_after_sigkill_nothing_is_made_twice(make_coco: MakeCoco, tmp_path: Path) -> None:
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
    assert (made.made, made.existing) == (3, 5)
    log = (stores / "made.log").read_text().splitlines()
    assert len(log) == len(set(log)) == 8
    assert_complete(library, dataset.samples, 2)


def test_two_processes_make_one_store(make_coco: MakeCoco, tmp_path: Path) -> None:
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
    paths = [library.folder / line.image for line in library.lines()]
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
    make_coco: MakeCoco, tmp_path: Path, noise: Noise, change: str
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


class Failing(Noise):
    """Fails for some variations, for a reason that may recur."""

    failing: Sequence[tuple[str, int]] = ()
    closed = False

    def vary(self, requests: Sequence[Request]) -> Iterator[Variation | Refused]:  # type: ignore[override]
        try:
            for request in requests:
                if request.key in self.failing:
                    yield Refused(request, "no numbers", may_recur=True)
                else:
                    yield from super().vary([request])
        finally:
            self.closed = True


def test_what_failed_before_is_no_reason_to_give_up(dataset: Dataset, tmp_path: Path) -> None:
    """More failures than `GIVE_UP_AFTER`, one here and one there: the store can be continued and read."""
    noise = Failing(tmp_path / "made.log")
    noise.failing = [(dataset.samples[number % 3].name, number) for number in range(1, 8)]
    library = open_library(dataset, tmp_path / "stores", noise)
    assert library.make(dataset.samples, 7).refused == 7 > GIVE_UP_AFTER
    again = library.make(dataset.samples, 7)
    assert (again.made, again.existing, again.refused) == (0, 14, 7)
    more = library.make(dataset.samples, 8)
    assert (more.made, more.refused) == (3, 7)
    assert len(library.variations(dataset.samples, 8)) == 17


def test_new_failures_in_a_row_stop_the_rest(dataset: Dataset, tmp_path: Path) -> None:
    noise = Failing(tmp_path / "made.log")
    noise.failing = [(sample.name, number) for sample in dataset.samples for number in (1, 2, 3, 4, 5, 6)]
    library = open_library(dataset, tmp_path / "stores", noise)
    for call in (1, 2):  # those of the first call are asked for last in the second
        with pytest.raises(InputError, match=r"5 images in a row failed, so 13 more were not tried; .*no numbers"):
            library.make(dataset.samples, 6)
        assert noise.closed
        assert len(library.refused(dataset.samples)) == call * GIVE_UP_AFTER
    noise.failing = ()  # mended, the same call goes on
    assert library.make(dataset.samples, 6).made == 18
