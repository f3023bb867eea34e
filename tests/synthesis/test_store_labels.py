"""Labels in a store: dropped boxes, refused images, and images that another store has."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
from conftest import MakeCoco
from noise_store import Noise, assert_complete, open_library

from boxtwin.datasets.sample import Dataset, Judgement, PropagatedBox, Sample
from boxtwin.errors import InputError
from boxtwin.synthesis.generator import Refused, Request, Variation


@pytest.fixture
def dataset(make_coco: MakeCoco) -> Dataset:
    return make_coco(images=3, classes=("ship", "buoy"), objects=(2, 0, 3)).read()


@pytest.fixture
def noise(tmp_path: Path) -> Noise:
    return Noise(tmp_path / "made.log")


def test_dropped_boxes_leave_the_labels_but_not_the_manifest(dataset: Dataset, tmp_path: Path, noise: Noise) -> None:
    def judge(source: Any, pixels: Any, boxes: Any, labels: Any, image: str, crowds: Any) -> Judgement:
        decisions: tuple[Literal["dropped", "shifted", "kept"], ...] = ("dropped", "shifted", "kept")
        return Judgement(
            tuple(
                PropagatedBox((box[0], box[1], box[2], box[3]), label, decisions[n], {"why": 1.0})
                for n, (box, label) in enumerate(zip(boxes.tolist(), labels.tolist(), strict=True))
            )
        )

    library = open_library(dataset, tmp_path / "stores", noise, judge=judge, labels="picky")
    library.make(dataset.samples, 1)
    assert [len(sample.boxes) for sample in library.variations(dataset.samples, 1)] == [1, 0, 2]
    labels = library.lines()[2].to_json()["labels"]
    assert (labels["kept"], labels["shifted"], labels["dropped"], len(labels["boxes"])) == (1, 1, 1, 3)
    assert len(json.loads((library.folder / "annotations.json").read_text())["annotations"]) == 3


def test_images_whose_labels_are_not_trusted_are_kept_and_not_used(
    dataset: Dataset, tmp_path: Path, noise: Noise
) -> None:
    def judge(source: Any, pixels: Any, boxes: Any, labels: Any, image: str, crowds: Any) -> Judgement:
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
    assert library.make(dataset.samples, 2).existing == 6


def test_a_store_with_other_labels_takes_the_images_over(dataset: Dataset, tmp_path: Path, noise: Noise) -> None:
    first = open_library(dataset, tmp_path / "stores", noise)
    first.make(dataset.samples, 2)

    def nothing(source: Any, pixels: Any, boxes: Any, labels: Any, image: str, crowds: Any) -> Judgement:
        return Judgement(())

    second = open_library(dataset, tmp_path / "stores", noise, judge=nothing, labels="nothing")
    assert second.folder != first.folder
    assert [request.variation for request in second.missing(dataset.samples, 3)] == [3, 3, 3]
    made = second.make(dataset.samples, 3)
    assert (made.made, made.reused, made.existing) == (3, 6, 0)
    assert len(noise.made()) == len(set(noise.made())) == 9
    assert_complete(second, dataset.samples, 3)
    for before, after in zip(
        first.variations(dataset.samples, 2), second.variations(dataset.samples[:3], 3)[:2], strict=False
    ):
        assert after.sha256 == before.sha256
        assert len(after.boxes) == 0
        assert after.path.stat().st_ino == before.path.stat().st_ino  # one file under two names
    # And back: what the second store has made by itself, the first need not make.
    assert first.make(dataset.samples, 3).reused == 3
    # Other pixels are no business of theirs.
    other = open_library(dataset, tmp_path / "stores", Noise(tmp_path / "o.log", level=7), labels="nothing")
    assert other.make(dataset.samples, 1).reused == 0


def test_what_is_there_is_reused_without_asking_the_generator(dataset: Dataset, tmp_path: Path, noise: Noise) -> None:
    open_library(dataset, tmp_path / "stores", noise).make(dataset.samples, 1)

    class Silent(Noise):
        def fit(self, training: Sequence[Sample], folder: Path) -> None:  # noqa: ARG002
            raise AssertionError("asked to learn")

        def vary(self, requests: Sequence[Request]) -> Iterator[Variation]:  # noqa: ARG002
            raise AssertionError("asked to draw")

    other = open_library(dataset, tmp_path / "stores", Silent(tmp_path / "made.log"), labels="other")
    made = other.make(dataset.samples, 2, use_generator=False)
    assert (made.made, made.refused, made.reused, made.existing) == (0, 0, 3, 0)
    assert len(other.variations(dataset.samples, 1)) == 3
    assert len(other.missing(dataset.samples, 2)) == 3
    assert other.make(dataset.samples, 2, use_generator=False).existing == 3
    assert other.make(dataset.samples, 1).existing == 3


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
    assert {line.reason for line in library.refused(dataset.samples).values()} == {"not this one"}
    assert len(library.variations(dataset.samples, 2)) == 4
    with pytest.raises(InputError, match="lacks 3"):
        library.variations(dataset.samples, 3)
    # Asked again, and had this time: it is refused no more.
    choosy.refuses = False
    made = library.make(dataset.samples, 2)
    assert (made.made, made.existing, made.refused) == (2, 4, 0)
    assert library.refused(dataset.samples) == {}
    assert_complete(library, dataset.samples, 2)
