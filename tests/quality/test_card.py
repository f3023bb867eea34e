"""Cards of stores that are known to look real or not, to be new or not, to hold test images or not."""

import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from boxtwin.datasets.image_io import read_image, write_png
from boxtwin.datasets.options import Speckle
from boxtwin.datasets.sample import Lineage, Sample
from boxtwin.quality.card import QualityCard, metrics_of, summarise, write_quality_card
from boxtwin.quality.measure import gather
from boxtwin.quality.record import QualityReport, describe

SIZE = 128
NO_OBJECTS = np.zeros((0, 4)), np.zeros(0, int), np.zeros(0), np.zeros(0, bool)  # boxes, labels, areas, crowd


def sea(
    scene: int, look: int, *, size: tuple[int, int] = (SIZE, SIZE), colour: bool = False, deep: bool = False
) -> np.ndarray:
    """A scene of two patches of sea with a few ships, under single-look speckle of its own for every ``look``."""
    rng = np.random.default_rng(scene)
    level = np.full(size, rng.uniform(10, 25))
    level[:, : int(rng.integers(size[1] // 4, size[1] // 2))] *= 1.5
    for _ in range(4):
        y, x = (int(rng.integers(0, side - 8)) for side in size)
        level[y : y + 6, x : x + 12] = 180
    speckle = np.random.default_rng((scene, look)).exponential(size=(*size, 3) if colour else size)
    pixels = np.clip((level[:, :, None] if colour else level) * np.sqrt(speckle), 0, 255)
    return (pixels * 257).astype(np.uint16) if deep else pixels.astype(np.uint8)


class Sets:
    """Real images of three sides, and variations of the first two."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.training: list[Sample] = []
        self.validation: list[Sample] = []
        self.test: list[Sample] = []
        self.variations: list[Sample] = []

    def add(self, side: str, name: str, pixels: np.ndarray, lineage: Lineage | None = None) -> None:
        path = self.folder / name
        write_png(path, pixels)
        samples = getattr(self, side)
        height, width = pixels.shape[:2]
        sample = Sample(name, path, width, height, len(samples) + 1, *NO_OBJECTS)
        group, digest = "" if lineage else name, f"{name} {pixels.sum()}"
        bits = 8 * pixels.itemsize
        samples.append(replace(sample, group=group, lineage=lineage, sha256=digest, bits=bits))

    def vary(self, make: Callable[[np.ndarray, int, int], np.ndarray], per_image: int = 2) -> None:
        """``make(source pixels, scene, variation)`` gives the pixels of each variation."""
        for scene, source in enumerate([*self.training, *self.validation]):
            for number in range(1, per_image + 1):
                pixels = make(read_image(source.path), scene, number)
                self.add("variations", f"v/{scene}-{number}.png", pixels, Lineage(source.name, "made", number, 0))

    @property
    def sides(self) -> tuple[list[Sample], list[Sample], list[Sample], list[Sample]]:
        return self.variations, self.training, self.validation, self.test

    def card(self, speckle: Speckle | None = Speckle.amplitude) -> QualityCard:
        return write_quality_card(self.folder / "store", *self.sides, speckle=speckle)

    def summary(self, speckle: Speckle | None = Speckle.amplitude) -> QualityReport:
        """What the card says, without its files."""
        return summarise(gather(*self.sides, speckle))


MakeSets = Callable[..., Sets]


@pytest.fixture
def make_sets(tmp_path: Path) -> MakeSets:
    def make(
        *,
        train: int = 8,
        val: int = 4,
        test: int = 10,
        sizes: Sequence[tuple[int, int]] = ((SIZE, SIZE),),
        **kind: bool,
    ) -> Sets:
        sets = Sets(tmp_path)
        for scene in range(train + val + test):
            side = "training" if scene < train else "validation" if scene < train + val else "test"
            sets.add(side, f"real{scene}.png", sea(scene, 0, size=sizes[scene % len(sizes)], **kind))
        return sets

    return make


@pytest.fixture
def sets(make_sets: MakeSets) -> Sets:
    return make_sets()


def verdicts(card: Any) -> dict[str, str]:
    return {name: metric["verdict"] for name, metric in card["figures"].items()}


def test_copies_are_alike_however_many_each_source_has(sets: Sets) -> None:
    """Bright sources have five variations each, dark ones one."""
    for scene, sample in enumerate(sets.training):
        pixels = read_image(sample.path) // (1 if scene % 2 else 3)
        write_png(sample.path, pixels)
        for number in range(1, 6 if scene % 2 else 2):
            sets.add("variations", f"v/{scene}-{number}.png", pixels, Lineage(sample.name, "made", number, 0))
    figures: Any = sets.summary()["figures"]
    assert figures["grey_levels"]["value"] == 0
    assert figures["grey_levels"]["verdict"] == figures["fine_detail"]["verdict"] == "alike"
    assert figures["fine_detail"]["value"] == pytest.approx(1, abs=1e-6)
    assert figures["looks"]["variations"] == pytest.approx(figures["looks"]["real"])


def test_the_same_scenes_seen_again_are_alike_and_neither_copies_nor_leaks(sets: Sets) -> None:
    sets.vary(lambda _, scene, number: sea(scene, number))
    card = sets.summary()
    assert verdicts(card) == {
        "grey_levels": "alike",
        "looks": "alike",
        "fine_detail": "alike",
        "nearest_real": "alike",
        "siblings": "alike",
        "test": "unlike",
    }
    assert card["verdict"] == "alike"
    metrics = card["figures"]
    assert metrics["looks"]["variations"] == pytest.approx(1, rel=0.1)
    assert metrics["looks"]["real"] == pytest.approx(1, rel=0.1)
    assert metrics["nearest_real"]["repeated_grain"] == pytest.approx(0, abs=0.05)
    assert metrics["test"]["matches"] == []
    assert card["images"] == {"variations": 24, "sources": 12, "real": 12, "test": 10}


def test_repeated_images_are_copies(sets: Sets) -> None:
    sets.vary(lambda source, *_: source)
    card = sets.summary()
    assert card["verdict"] == "copy"
    assert verdicts(card)["nearest_real"] == verdicts(card)["siblings"] == "copy"
    assert card["figures"]["grey_levels"]["value"] == 0
    for metric in (card["figures"]["looks"], card["figures"]["fine_detail"]):
        assert metric["value"] == metric["typical"] == 1
    assert card["figures"]["nearest_real"]["value"] == pytest.approx(0, abs=1e-5)
    assert card["figures"]["nearest_real"]["copies"] == 1
    assert verdicts(card)["test"] == "unlike"


def test_one_remembered_training_image_among_ten_is_a_copy_whoever_it_is_of(sets: Sets) -> None:
    """The variation of one source is another source, moved: memorised, and not seen by looking at its own source."""
    other = read_image(sets.training[1].path)

    def make(_: np.ndarray, scene: int, number: int) -> np.ndarray:
        return np.roll(other, (20, 30), (0, 1)) if number == 1 and scene in (5, 6) else sea(scene, number)

    sets.vary(make)
    card = sets.summary()
    assert card["figures"]["nearest_real"]["copies"] == pytest.approx(2 / 24, abs=1e-6)
    assert card["verdict"] == "copy"


def test_variations_that_repeat_each_other_are_copies(sets: Sets) -> None:
    sets.vary(lambda _, scene, __: sea(scene, 1))
    card = sets.summary()
    assert verdicts(card)["nearest_real"] == "alike"
    assert verdicts(card)["siblings"] == "copy"


@pytest.mark.parametrize("moved", [(0, 0), (40, 0)])
def test_a_store_with_one_test_image_in_it_leaks(sets: Sets, moved: tuple[int, int]) -> None:
    stolen = np.roll(read_image(sets.test[3].path), moved, (0, 1))
    sets.vary(lambda _, scene, number: stolen if (scene, number) == (4, 2) else sea(scene, number))
    card = sets.summary()
    assert card["verdict"] == "leak"
    (match,) = card["figures"]["test"]["matches"]
    assert (match["variation"], match["test"]) == ("v/4-2.png", sets.test[3].name)
    assert card["nearest_pairs"][0]["test"] == sets.test[3].name
    assert metrics_of(card)["quality_test_matches"] == 1


def test_scenes_of_the_test_images_seen_again_leak_without_any_pixel_of_theirs(sets: Sets) -> None:
    first_test = len(sets.training) + len(sets.validation)
    sets.vary(lambda _, scene, number: sea(first_test + scene % 10, number))
    card = sets.summary()
    assert card["figures"]["test"]["matches"] == []
    assert card["figures"]["test"]["probability"] < 0.01
    assert card["verdict"] == "leak"


def test_a_split_that_tears_overlapping_chips_apart_is_not_the_generators_fault(sets: Sets) -> None:
    """The third test image and a training image are cut from one picture; `repeat` shows no more of it than that."""
    wide = sea(500, 0, size=(SIZE, SIZE + SIZE // 2))
    write_png(sets.training[2].path, wide[:, :SIZE])
    write_png(sets.test[3].path, wide[:, SIZE // 2 :])
    sets.vary(lambda source, *_: source)
    card = sets.summary()
    assert card["figures"]["test"]["matches_among_real"] == 1
    assert card["figures"]["test"]["matches"] == []
    assert card["verdict"] == "copy"


@pytest.mark.parametrize(
    ("spoil", "metric"),
    [
        (lambda pixels: cv2.GaussianBlur(pixels, (0, 0), 0.8), "looks"),
        (lambda pixels: cv2.GaussianBlur(pixels, (0, 0), 0.8), "fine_detail"),
        (lambda pixels: pixels // 2 + 60, "grey_levels"),
    ],
    ids=["looks", "detail", "levels"],
)
def test_what_does_not_look_like_the_sensor_is_unlike(
    sets: Sets, spoil: Callable[[np.ndarray], np.ndarray], metric: str
) -> None:
    sets.vary(lambda _, scene, number: spoil(sea(scene, number)))
    card = sets.summary()
    assert verdicts(card)[metric] == "unlike"
    assert card["verdict"] == "unlike"


def test_errors_to_either_side_cancel_in_the_ratio_and_show_in_the_typical_factor(sets: Sets) -> None:
    gains = (1.6, 1 / 1.6)
    sets.vary(lambda _, scene, number: np.clip(sea(scene, number) * gains[scene % 2], 0, 255).astype(np.uint8))
    metric = sets.summary()["figures"]["fine_detail"]
    assert metric["value"] == pytest.approx(1, abs=0.2)
    assert metric["typical"] == pytest.approx(1.6**2, rel=0.2)


def test_photographs_have_no_looks(make_sets: MakeSets) -> None:
    sets = make_sets(colour=True)
    sets.vary(lambda _, scene, number: sea(scene, number, colour=True))
    card = sets.summary(speckle=None)
    assert card["figures"]["looks"]["value"] is None
    assert verdicts(card)["looks"] == "undecided"
    assert card["verdict"] == "alike"
    assert math.isnan(metrics_of(card)["quality_enl_ratio"])
    assert "looks" not in describe(card).replace("look like", "")
    assert "calm sea" not in describe(card)


def test_sixteen_bits_of_different_sizes(make_sets: MakeSets) -> None:
    sizes = ((SIZE, SIZE), (96, 160), (70, 70))
    sets = make_sets(sizes=sizes, deep=True)
    sets.vary(lambda _, scene, number: sea(scene, number, size=sizes[scene % 3], deep=True))
    card = sets.summary()
    assert card["verdict"] == "alike"
    assert card["figures"]["looks"]["variations"] == pytest.approx(1, rel=0.15)


@pytest.mark.parametrize("blur", [0.0, 2.0])
def test_detail_of_a_sensor_that_uses_few_of_its_values_is_seen(tmp_path: Path, blur: float) -> None:
    """Noise of 12 values of 65,536, of which a floor of 1/12 of a value of 8 bit would leave nothing."""
    sets, rng = Sets(tmp_path), np.random.default_rng(0)

    def field(scene: int, _: int) -> np.ndarray:
        smooth = cv2.GaussianBlur(np.random.default_rng(scene).normal(0, 1, (SIZE, SIZE)), (0, 0), 12)
        return np.round(7600 + 400 * smooth / smooth.std() + rng.normal(0, 12, (SIZE, SIZE))).astype(np.uint16)

    for side, scenes in (("training", range(8)), ("validation", range(8, 12)), ("test", range(20, 24))):
        for scene in scenes:
            sets.add(side, f"{side}/{scene}.png", field(scene, 0))
    sets.vary(lambda _, scene, look: cv2.GaussianBlur(field(scene, look), (0, 0), blur) if blur else field(scene, look))
    detail = sets.summary(None)["figures"]["fine_detail"]
    assert detail["verdict"] == ("unlike" if blur else "alike")
    assert detail["value"] == pytest.approx(0.05 if blur else 1, abs=0.1)


def test_one_image_on_each_side(make_sets: MakeSets) -> None:
    sets = make_sets(train=1, val=0, test=1)
    sets.vary(lambda _, scene, number: sea(scene, number), per_image=1)
    card = sets.summary()
    assert verdicts(card) == {
        "grey_levels": "undecided",
        "looks": "undecided",
        "fine_detail": "undecided",
        "nearest_real": "undecided",
        "siblings": "undecided",
        "test": "unlike",
    }
    assert card["verdict"] == "undecided"


def test_flat_images(make_sets: MakeSets) -> None:
    sets = make_sets(train=4, val=1, test=2)
    for sample in [*sets.training, *sets.validation, *sets.test]:
        write_png(sample.path, np.full((SIZE, SIZE), 30, np.uint8))
    sets.vary(lambda source, *_: source)
    card = sets.summary()
    assert card["figures"]["nearest_real"]["value"] == 0
    assert card["figures"]["grey_levels"]["value"] == 0
    assert card["figures"]["looks"]["value"] is None
    assert card["verdict"] == "alike"


def test_a_card_is_made_once_and_again_when_the_store_grows(sets: Sets) -> None:
    sets.vary(lambda _, scene, number: sea(scene, number), per_image=1)
    first = sets.card()
    times = {path: path.stat().st_mtime_ns for path in (first.report, first.picture)}
    again = sets.card()
    assert again == first
    assert {path: path.stat().st_mtime_ns for path in (again.report, again.picture)} == times
    copied = sets.folder / "store" / "quality_card.json"
    assert json.loads(copied.read_text()) == first.summary

    sets.add("variations", "v/late.png", sea(0, 9), Lineage(sets.training[0].name, "made", 2, 0))
    grown = sets.card()
    assert grown.summary["images"]["variations"] == first.summary["images"]["variations"] + 1
    assert json.loads(copied.read_text()) == grown.summary
    assert first.report.exists()  # of another split that shares the store, it may be asked for again
    assert (sets.folder / "store" / "quality_card.png").read_bytes() == grown.picture.read_bytes()


def test_what_changes_an_answer_changes_the_card(sets: Sets) -> None:
    sets.vary(lambda _, scene, number: sea(scene, number), per_image=1)
    sets.variations, sets.training, sets.validation, sets.test = sets.variations[:2], sets.training[:2], [], sets.test
    known = {sets.card().summary["made_of"], sets.card(speckle=None).summary["made_of"]}
    sets.test = sets.test[:1]
    known.add(sets.card().summary["made_of"])
    sets.variations[0] = replace(sets.variations[0], sha256="other pixels")
    known.add(sets.card().summary["made_of"])
    assert len(known) == 4


def test_a_card_that_a_kill_left_half_made_is_made(sets: Sets) -> None:
    sets.vary(lambda _, scene, number: sea(scene, number), per_image=1)
    first = sets.card()
    picture = first.picture.read_bytes()
    first.report.unlink()  # written last
    shutil.copy(sets.test[0].path, first.picture)
    assert sets.card().summary == first.summary
    assert first.picture.read_bytes() == picture


@pytest.mark.parametrize("kind", [{}, {"colour": True}, {"deep": True}, {"train": 1, "val": 0, "test": 1}])
def test_the_picture_is_a_picture(make_sets: MakeSets, kind: dict[str, Any]) -> None:
    sets = make_sets(**{"train": 4, "val": 1, "test": 2} | kind)
    looks = {key: kind[key] for key in ("colour", "deep") if key in kind}
    sets.vary(lambda _, scene, number: sea(scene, number, **looks), per_image=1 if "train" in kind else 2)
    shown = read_image(sets.card(speckle=None if "colour" in kind else Speckle.amplitude).picture)
    assert min(shown.shape[:2]) > 1000
    assert shown.std() > 20


def test_other_labels_of_the_same_pixels_make_no_new_card(sets: Sets) -> None:
    """Neither in the store nor in one beside it, which names the same images otherwise."""
    sets.vary(lambda _, scene, number: sea(scene, number), per_image=1)
    first = sets.card()
    boxes, labels, areas = np.array([[1.0, 2.0, 30.0, 40.0]]), np.zeros(1, int), np.full(1, 1064.0)
    sets.variations = [
        replace(sample, boxes=boxes, labels=labels, areas=areas, crowd=np.zeros(1, bool)) for sample in sets.variations
    ]
    written = first.report.stat().st_mtime_ns
    assert sets.card().summary == first.summary
    assert first.report.stat().st_mtime_ns == written

    sets.variations = [replace(sample, name=f"beside/{sample.name}") for sample in sets.variations]
    beside = write_quality_card(sets.folder / "beside", *sets.sides, speckle=Speckle.amplitude)
    assert beside.summary == first.summary
    assert beside.picture.samefile(first.picture)
    assert (sets.folder / "beside" / "quality_card.png").exists()


@pytest.mark.parametrize(("file", "content"), [("report", b""), ("report", b"[1]"), ("picture", b"")])
def test_a_damaged_card_is_made_again(file: str, content: bytes, sets: Sets) -> None:
    sets.vary(lambda _, scene, number: sea(scene, number), per_image=1)
    first = sets.card()
    kept = {name: getattr(first, name).read_bytes() for name in ("report", "picture")}
    getattr(first, file).write_bytes(content)
    again = sets.card()
    assert again.summary == first.summary
    assert {name: getattr(again, name).read_bytes() for name in kept} == kept


def test_an_image_is_read_as_often_whatever_the_number_of_images(
    make_sets: MakeSets, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every image has half of its pixels in common with all others, as a fixed pattern of the sensor."""
    rng = np.random.default_rng(0)
    decided, pattern = rng.random((SIZE, SIZE)) < 0.6, sea(99, 9)
    reads: list[str] = []

    read = Sample.read

    def counted(sample: Sample) -> np.ndarray:
        reads.append(sample.name)
        return read(sample)

    monkeypatch.setattr(Sample, "read", counted)
    counts = []
    for size in (4, 16):
        sets = make_sets(train=size, val=0, test=size)
        for sample in [*sets.training, *sets.test]:
            write_png(sample.path, np.where(decided, pattern, read_image(sample.path)))
        sets.vary(lambda _, scene, number: np.where(decided, pattern, sea(scene, number)))
        reads.clear()
        evidence = gather(*sets.sides, None)
        assert min(one.repeats for one in evidence.real_measured) > 0.1  # the pattern is seen
        counts.append(len(reads))
    assert counts[1] == 4 * counts[0] == 4 * (3 * 4 + 4 + 2 * 4)


def test_what_is_nearly_its_source_is_said_to_be(make_sets: MakeSets) -> None:
    sets = make_sets(colour=True)
    rng = np.random.default_rng(3)
    sets.vary(lambda source, *_: np.clip(source + rng.integers(-9, 10, source.shape), 0, 255).astype(np.uint8))
    card = sets.summary(speckle=None)
    distance = card["figures"]["nearest_real"]["value"]
    assert distance is not None
    assert distance < 0.03
    assert "Almost nothing is new" in card["advice"]
    assert card["advice"] in describe(card)


def test_new_scenes_are_not_said_to_be_old(make_sets: MakeSets) -> None:
    sets = make_sets(colour=True)
    sets.vary(lambda _, scene, number: sea(700 + 10 * scene + number, 0, colour=True))
    assert "nothing is new" not in sets.summary(speckle=None)["advice"]


def test_a_variation_of_something_else_is_refused(sets: Sets) -> None:
    with pytest.raises(ValueError, match="at least one variation"):
        sets.card()
    sets.add("variations", "v/x.png", sea(0, 1), Lineage(sets.test[0].name, "made", 1, 0))
    with pytest.raises(ValueError, match="no variation of a training or validation image"):
        sets.card()


def test_without_test_images_there_is_no_card(sets: Sets) -> None:
    sets.vary(lambda source, *_: source, per_image=1)
    sets.test = []
    with pytest.raises(ValueError, match="needs test images"):
        sets.card()
