"""Damage to a store is found and named; what comes from a foreign store is never run."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import MakeCoco
from hypothesis import given
from hypothesis import strategies as st
from noise_store import Noise, open_library

from boxtwin.datasets.image_io import read_image, write_png
from boxtwin.datasets.sample import Dataset
from boxtwin.errors import InputError
from boxtwin.synthesis import manifest
from boxtwin.synthesis.fitness import unfit
from boxtwin.synthesis.identity import identity_of, local_places, read_identity, settings_from
from boxtwin.synthesis.regenerate import reproduce


@pytest.fixture
def dataset(make_coco: MakeCoco) -> Dataset:
    return make_coco(images=3).read()


@pytest.fixture
def noise(tmp_path: Path) -> Noise:
    return Noise(tmp_path / "made.log")


@given(
    line=st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=8) | st.floats(allow_nan=False)),
    place=st.integers(0),
    bit=st.integers(0, 7),
)
def test_no_flipped_bit_of_a_line_goes_unnoticed(
    tmp_path_factory: pytest.TempPathFactory, line: dict[str, Any], place: int, bit: int
) -> None:
    file = tmp_path_factory.mktemp("lines") / "manifest.jsonl"
    manifest.append_line(file, {"first": 1})
    first = file.read_bytes()
    manifest.append_line(file, line)
    assert manifest.whole_lines(file) == [{"first": 1}, line]
    second = bytearray(file.read_bytes()[len(first) :])
    second[place % (len(second) - 1)] ^= 1 << bit
    file.write_bytes(first + second)
    # Left out, or the same: a flipped bit may turn one space into another kind of white space.
    assert manifest.whole_lines(file) in ([{"first": 1}], [{"first": 1}, line])


def test_lines_without_a_checksum_are_those_of_earlier_versions(tmp_path: Path) -> None:
    file = tmp_path / "manifest.jsonl"
    file.write_text('{"source": "a.png"}\n')
    manifest.append_line(file, {"source": "b.png"})
    assert manifest.whole_lines(file) == [{"source": "a.png"}, {"source": "b.png"}]


@pytest.mark.parametrize("damage", [b"\0" * 40, b"[1, 2]", b'{"source": ', b'{"source": "S00_0.png"', b"\xff\xfe"])
def test_a_damaged_line_is_named_and_its_variation_made_again(
    dataset: Dataset, tmp_path: Path, noise: Noise, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    library = open_library(dataset, tmp_path / "stores", noise)
    library.make(dataset.samples, 1)
    lines = library.manifest.read_bytes().splitlines()
    library.manifest.write_bytes(b"\n".join([lines[0], damage, lines[2], b""]))
    made = library.make(dataset.samples, 1)
    assert (made.made, made.existing) == (1, 2)
    assert "1 damaged line(s)" in caplog.text
    assert "line 2" in caplog.text


def test_lost_images_are_named(
    dataset: Dataset, tmp_path: Path, noise: Noise, caplog: pytest.LogCaptureFixture
) -> None:
    library = open_library(dataset, tmp_path / "stores", noise)
    library.make(dataset.samples, 1)
    (library.folder / library.lines()[1].image).write_bytes(b"")
    assert library.make(dataset.samples, 1).made == 1
    assert "1 image(s) are missing or damaged and are made again, such as images/S01_0_v01.png" in caplog.text


def test_a_damaged_identity_is_named_and_written_again(
    dataset: Dataset, tmp_path: Path, noise: Noise, caplog: pytest.LogCaptureFixture
) -> None:
    library = open_library(dataset, tmp_path / "stores", noise)
    library.make(dataset.samples, 1)
    file = library.folder / "store.json"
    whole = file.read_bytes()
    for damage in (whole[:-5], whole.replace(b'"seed": 0', b'"seed": 1'), b"{}", b"[" * 100_000):
        file.write_bytes(damage)
        with pytest.raises(InputError, match=r"store\.json is damaged"):
            read_identity(library.folder)
        caplog.clear()
        library.make(dataset.samples, 1)
        assert "store.json was damaged" in caplog.text
        assert file.read_bytes() == whole
        assert read_identity(library.folder) == library.identity
    # A damaged neighbour does not stop another store.
    file.write_bytes(b"\0")
    other = open_library(dataset, tmp_path / "stores", noise, labels="other")
    assert other.make(dataset.samples, 1).made == 3
    assert "nothing is reused" in caplog.text


def test_each_image_is_read_for_its_hash_once(dataset: Dataset, tmp_path: Path, noise: Noise) -> None:
    library = open_library(dataset, tmp_path / "stores", noise)
    manifest.sha256_of.cache_clear()
    library.make(dataset.samples, 2)
    for _ in range(3):
        library.variations(dataset.samples, 2)
        library.judged(dataset.samples, 2)
        library.missing(dataset.samples, 2)
    assert manifest.sha256_of.cache_info().misses == 6


def test_blank_variations_are_refused_and_unchanged_ones_noted(dataset: Dataset, tmp_path: Path, noise: Noise) -> None:
    class Odd(Noise):
        def vary(self, requests: Any) -> Any:
            for number, variation in enumerate(super().vary(requests)):
                source = read_image(variation.request.source.path)
                dots = np.zeros_like(source)
                dots[3, 5] = 9  # of JPEG
                pixels = (dots, np.full_like(source, 255), source)[number]
                yield type(variation)(variation.request, pixels, variation.boxes, variation.labels)

    library = open_library(dataset, tmp_path / "stores", Odd(tmp_path / "made.log"))
    library.make(dataset.samples, 1)
    lines = library.lines()
    assert [(line.labels.refused or "").split(":")[0] for line in lines] == ["blank", "blank", ""]
    assert [line.unchanged for line in lines] == [False, False, True]
    assert len(library.variations(dataset.samples, 1)) == 1


def test_blank_variations_of_earlier_versions_are_refused_by_name_once(
    dataset: Dataset, tmp_path: Path, noise: Noise, caplog: pytest.LogCaptureFixture
) -> None:
    library = open_library(dataset, tmp_path / "stores", noise)
    library.make(dataset.samples, 2)
    lines = library.lines()
    black, other = lines[1], lines[3]
    assert black.source == "S01_0.png"
    path = library.folder / black.image
    write_png(path, np.zeros_like(read_image(path)))
    lines[1] = replace(black, image_sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    lines[3] = replace(other, labels=replace(other.labels, refused="unsure"))
    # As earlier versions wrote them.
    library.manifest.write_text("".join(json.dumps(line.to_json()) + "\n" for line in lines))
    some = [sample for sample in dataset.samples if sample.name != "S02_0.png"]
    assert len(library.variations(some, 2)) == 3
    made = library.make(some, 2)
    assert (made.made, made.existing) == (0, 4)
    assert black.image in caplog.text
    assert "1 of 4 image(s)" in caplog.text
    assert len(library.variations(some, 2)) == 2
    newest = {line.image: line.labels.refused for line in library.lines()}
    assert (newest[black.image] or "").startswith("blank")
    assert newest[other.image] == "unsure"
    marked = {image["file_name"]: image.get("refused") for image in library_annotations(library.folder)["images"]}
    assert (marked[black.image] or "").startswith("blank")
    # Looked at once, and those of other sources when these are asked for.
    caplog.clear()
    before = library.manifest.read_bytes()
    library.make(some, 2)
    assert library.manifest.read_bytes() == before
    library.make(dataset.samples, 2)
    assert not caplog.text
    assert manifest.lines_without_checksum(library.folder) == set()
    assert len(library.variations(dataset.samples, 2)) == 4


def library_annotations(folder: Path) -> Any:
    return json.loads((folder / "annotations.json").read_text())


@pytest.mark.parametrize(("shift", "refused"), [(0, False), (4, True)])
def test_levels_on_another_scale_are_refused(make_coco: MakeCoco, tmp_path: Path, shift: int, refused: bool) -> None:
    built = make_coco(images=1, dtypes=(np.uint16,))
    rng = np.random.default_rng(0)
    write_png(built.images / "S00_0.png", rng.integers(300, 4096, (64, 80)).astype(np.uint16))

    class Scaled(Noise):
        def vary(self, requests: Any) -> Any:
            for variation in super().vary(requests):
                pixels = rng.integers(500, 3500, (64, 80)).astype(np.uint16) << shift
                yield type(variation)(variation.request, pixels, variation.boxes, variation.labels)

    dataset = built.read()
    library = open_library(dataset, tmp_path / "stores", Scaled(tmp_path / "made.log"))
    library.make(dataset.samples, 1)
    assert (library.lines()[0].labels.refused or "").startswith("levels:") is refused


def test_version_numbers_leave_the_keys_of_stores_before_them(dataset: Dataset, tmp_path: Path, noise: Noise) -> None:
    about: dict[str, Any] = {"dataset": "tiny", "labels": "carry", "seed": 0}
    first = identity_of(noise, dataset.samples, **about).to_json()
    assert "version" not in first

    class Second(Noise):
        def version(self, training: Any) -> int:  # noqa: ARG002
            return 2

    second = identity_of(Second(tmp_path / "log"), dataset.samples, **about)
    assert second.to_json() == first | {"version": 2}
    assert second.key != identity_of(noise, dataset.samples, **about).key

    class Sketch(Second):
        name = "pixel_ddpm_sketch"

    # Stores of this version were told from earlier ones by a parameter, which their keys have to keep.
    fitted = {"fitted": "ships to objects, sea to sea, white to white"}
    sketched = identity_of(Sketch(tmp_path / "log"), dataset.samples, **about)
    assert sketched.to_json() == first | {"generator": Sketch.name, "parameters": first["parameters"] | fitted}


def test_boxes_are_propagated_to_images_that_came_without(dataset: Dataset, tmp_path: Path, noise: Noise) -> None:
    """As in stores of `Folder` by earlier versions, which claim no boxes."""
    first = open_library(dataset, tmp_path / "stores", noise)
    first.make(dataset.samples, 1)
    lines = [entry.to_json() | {"claimed": {"boxes": [], "labels": []}} for entry in first.lines()]
    older = [entry | {"image": f"images/{Path(entry['source']).stem}/v01.png"} for entry in lines]
    for entry, moved in zip(lines, older, strict=True):
        (first.folder / moved["image"]).parent.mkdir()
        (first.folder / entry["image"]).rename(first.folder / moved["image"])
    first.manifest.write_text("".join(json.dumps(entry) + "\n" for entry in older))
    second = open_library(dataset, tmp_path / "stores", noise, labels="other")
    assert second.make(dataset.samples, 1).reused == 3
    for source, sample in zip(dataset.samples, second.variations(dataset.samples, 1), strict=True):
        np.testing.assert_array_equal(sample.boxes, source.boxes)
        assert sample.path.name == f"{Path(source.name).stem}_v01.png"


OPTION = {
    "strength": 0.7,
    "steps": 4,
    "mirror": True,
    "channels": [48, 72],
    "revision": None,
    "tone": "log",
    "path": "x",
}


@pytest.mark.parametrize(
    "parameters",
    [
        {"_target_": "builtins.open", "file": "PWNED", "mode": "w"},
        {"_target_": "numpy.load", "file": "evil.npy", "allow_pickle": True},
        {"strength": {"_target_": "builtins.open", "file": "PWNED", "mode": "w"}},
        {"channels": [{"_target_": "builtins.open", "file": "PWNED", "mode": "w"}]},
        {"prior": {"inner": {"_partial_": True}}},
        {"_args_": [1]},
        {"name": "other"},
        {"tone": "${oc.env:HOME}"},
        {"strength": "0.7"},
        {"steps": True},
        {"mirror": 1},
        {"channels": ["a"]},
        {"tone": ["log"]},
    ],
)
def test_what_no_generator_records_is_refused(parameters: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="refused"):
        settings_from(parameters, OPTION)


def test_known_parameters_are_taken_and_places_are_not() -> None:
    recorded = {"strength": 1, "steps": 2, "mirror": False, "channels": [8], "revision": "v2", "path": "/etc", "new": 1}
    assert settings_from(recorded, OPTION) == {
        key: value for key, value in recorded.items() if key not in ("path", "new")
    }


def test_settings_within_others_are_taken_too() -> None:
    load: dict[str, Any] = {"variant": None, "slicing": False}
    option: dict[str, Any] = {**OPTION, "load": load}
    assert settings_from({"load.variant": "fp16", "load.other": 1}, option) == {"load.variant": "fp16"}
    load |= {"_target_": "os.system", "path": "a"}
    assert settings_from({"load.path": "/etc"}, option) == {}
    for evil in ({"load.slicing": "yes"}, {"load._target_": "os.abort"}):
        with pytest.raises(InputError, match="refused"):
            settings_from(evil, option)


def test_other_checkpoints_become_the_settings_that_name_them() -> None:
    option = {"controlnet": "owner/a", "controlnet_revision": None, "prior": None, "prior_revision": None}
    recorded = {"controlnet": {"checkpoint": "owner/b", "revision": "v2"}, "prior": {"checkpoint": "folder"}}
    assert settings_from(recorded, option) == {"controlnet": "owner/b", "controlnet_revision": "v2"}


def test_what_was_local_is_not_taken_from_a_store() -> None:
    """Of folders and files a store has names and hashes alone; ids of checkpoints have an owner."""
    option = {"checkpoint": "owner/a", "revision": None, "load": {"quantisation": None}, "controlnet": "owner/b"}
    recorded = {"checkpoint": "sd", "revision": "0123", "load.quantisation": "q.gguf 4567", "controlnet": {"x": 1}}
    assert settings_from(recorded, option) == {}
    assert set(local_places(recorded).values()) == {("checkpoint", "sd"), ("load.quantisation", "q.gguf")}
    hub = {"checkpoint": "owner/c", "revision": "main", "load.quantisation": "bitsandbytes_8bit"}
    assert settings_from(hub, option) == hub
    assert local_places({**hub, "controlnet": {"checkpoint": "net", "revision": "0"}}) == {
        "controlnet": ("controlnet", "net")
    }


def test_a_store_of_another_value_of_a_former_setting_is_refused() -> None:
    option = {"_target_": "boxtwin.synthesis.controls.CopyPaste", "mirror": True}
    with pytest.raises(InputError, match="feather=4, which is always 8 now"):
        settings_from({"feather": 4, "mirror": False}, option)
    assert settings_from({"feather": 8, "mirror": False}, option) == {"mirror": False}


def test_a_foreign_manifest_writes_nothing_outside_its_store(dataset: Dataset, tmp_path: Path, noise: Noise) -> None:
    library = open_library(dataset, tmp_path / "stores", noise)
    library.make(dataset.samples, 1)
    lines = library.lines()
    for outside in ("../../outside.png", str(tmp_path / "outside.png"), "images/../../outside.png"):
        library.manifest.write_text(json.dumps(lines[0].to_json() | {"image": outside}) + "\n")
        with pytest.raises(InputError, match="outside of its store"):
            reproduce(library.folder, noise, dataset)
        assert not list(tmp_path.rglob("outside.png"))
        assert library.missing(dataset.samples[:1], 1)


RNG = np.random.default_rng(0)
SCENE = RNG.integers(1000, 1200, (64, 64)).astype(np.uint16)
FLAT = np.full((64, 64), 500, np.uint16)
FLAT[30:34, 30:34] = 3000  # fewer than 1 % of the pixels


def test_hot_pixels_do_not_make_variations_blank() -> None:
    hot = SCENE.copy()
    hot[5, 5] = hot[40, 20] = 65535
    assert hot.std() > 10 * SCENE.std()
    assert unfit(hot, SCENE[::-1]) is None
    assert (unfit(hot, np.full_like(hot, 1100)) or "").startswith("blank")
    black = np.zeros_like(hot)
    black[9, 9] = 60000
    assert (unfit(SCENE, black) or "").startswith("blank")


@pytest.mark.parametrize("shift", [0, 1, 40])
def test_images_that_are_mostly_of_one_value_may_be_shifted(shift: int) -> None:
    assert unfit(FLAT, FLAT + np.uint16(shift)) is None


DARK = RNG.integers(0, 4096, (64, 64)).astype(np.uint16)  # from 0, as microscopes write


@pytest.mark.parametrize("source", [FLAT, SCENE, DARK])
def test_levels_of_another_scale_are_refused(source: np.ndarray) -> None:
    assert (unfit(source, source * 16) or "").startswith("levels")
    assert unfit(source, source // 2 * 2) is None
    assert unfit(DARK, DARK // 2) is None


def test_colour_is_judged_too() -> None:
    colour = np.stack([SCENE, SCENE, SCENE + 5], axis=2)
    assert unfit(colour, colour[::-1]) is None
    assert (unfit(colour, np.full_like(colour, 1000)) or "").startswith("blank")
