import hashlib
import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import MakeCoco
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from boxtwin.datasets import inspection
from boxtwin.datasets.coco import read_coco
from boxtwin.datasets.image_io import Pixels, decode_image, read_image, write_png
from boxtwin.datasets.inspection import Signature, join_groups, nearly_same, roboflow_name, signature_of
from boxtwin.datasets.options import Orientation
from boxtwin.datasets.reading import Reading
from boxtwin.datasets.splits import make_split, read_split
from boxtwin.errors import InputError


def refusal(built: Any, **settings: Any) -> str:
    with pytest.raises(InputError) as caught:
        built.read(**settings)
    return str(caught.value)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the images that are decoded, in a process that has seen none yet."""
    names: list[str] = []

    def read(encoded: bytes, name: str, reading: Reading) -> Any:
        names.append(Path(name).name)
        return decode_image(encoded, name, reading)

    monkeypatch.setattr(inspection, "_inspected", {})
    monkeypatch.setattr(inspection, "decode_image", read)
    return names


def test_images_that_have_rested_are_decoded_once(
    make_coco: MakeCoco, decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspection, "RESTED_NS", -1)
    built = make_coco(images=4)
    first = built.read()
    assert sorted(decoded) == [f"S0{n}_0.png" for n in range(4)]
    monkeypatch.chdir(built.root.parent)
    again = read_coco(name="tiny", images=Path("coco/images"), annotations=Path("coco/annotations.json"))
    assert len(decoded) == 4
    assert again.digest == first.digest
    assert [sample.sha256 for sample in again.samples] == [sample.sha256 for sample in first.samples]


def test_a_changed_image_is_noticed_whatever_its_size_and_date_say(
    make_coco: MakeCoco, decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspection, "RESTED_NS", -1)
    built = make_coco(images=2, ending=".bmp")  # not compressed: other pixels, same size
    path = built.images / "S00_0.bmp"
    before, content, first = path.stat(), bytearray(path.read_bytes()), built.read()
    content[-1] ^= 255
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    again = built.read()
    assert decoded.count("S00_0.bmp") == 2
    assert decoded.count("S01_0.bmp") == 1
    assert again.digest != first.digest
    path.write_bytes(content[:100])
    assert "unreadable" in refusal(built)
    path.unlink()
    assert "missing" in refusal(built)


def test_an_image_written_a_moment_ago_is_decoded_again(make_coco: MakeCoco, decoded: list[str]) -> None:
    built = make_coco(images=2)
    built.read()
    built.read()
    assert len(decoded) == 4


def turned_jpegs(make_coco: MakeCoco, orientation: int) -> Any:
    """Images whose boxes refer to the pixels as shown; half of the files hold them turned, with the tag for it."""
    built = make_coco(images=4, ending=".jpg", channels=(3,))
    for image in built.content["images"][::2]:
        path = built.images / image["file_name"]
        with Image.open(path) as opened:
            pixels = np.asarray(opened)
        exif = Image.Exif()
        exif[0x0112] = orientation
        undo = {6: 1, 3: 2, 8: 3}[orientation]  # quarter turns counter-clockwise from shown to stored
        Image.fromarray(np.rot90(pixels, undo)).save(path, exif=exif, quality=95)
    return built


@pytest.mark.parametrize("orientation", [3, 6, 8])
@pytest.mark.parametrize("as_stored", [False, True])
def test_sizes_may_be_told_as_stored_or_as_shown(
    make_coco: MakeCoco, orientation: int, as_stored: bool, caplog: pytest.LogCaptureFixture
) -> None:
    built = turned_jpegs(make_coco, orientation)
    if as_stored and orientation != 3:
        for image in built.content["images"][::2]:
            image["width"], image["height"] = image["height"], image["width"]
    with caplog.at_level("INFO"):
        dataset = built.read()
    samples = dataset.samples
    # Boxes may be of the stored pixels then: tools that know of the tag state the size as shown.
    assert [remark.startswith("2 images are stated to have") for remark in dataset.remarks] == [True] * (
        as_stored and orientation != 3
    )
    assert {(sample.width, sample.height) for sample in samples} == {(80, 64)}
    for sample in samples:
        assert sample.read().shape == (64, 80, 3)
        for x1, y1, x2, y2 in sample.boxes.astype(int):
            assert sample.read()[y1 + 2 : y2 - 2, x1 + 2 : x2 - 2].min() > 150  # objects have 220, ground below 40
    assert any("2 of 4 images are turned" in record.getMessage() for record in caplog.records)


def test_orientation_is_in_the_digest_only_where_it_matters(make_coco: MakeCoco) -> None:
    plain = make_coco(images=2, folder="plain")
    assert plain.read().digest == plain.read(reading=Reading(Orientation.ignore)).digest
    turned = turned_jpegs(make_coco, 3)
    as_before, shown = turned.read(reading=Reading(Orientation.ignore)), turned.read()
    assert as_before.digest != shown.digest
    content = (turned.images / "S00_0.jpg").read_bytes()
    assert as_before.samples[0].sha256 == hashlib.sha256(content).hexdigest()  # that of runs from before the setting


def test_another_size_and_too_many_pixels_are_refused_undecoded(
    make_coco: MakeCoco, decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    built = make_coco(images=2)
    assert "5119" in refusal(built, reading=Reading(max_pixels=5119))
    assert decoded == []
    built.content["images"][0]["width"] = 81
    assert "another size than stated" in refusal(built)
    assert decoded == ["S01_0.png"]


def test_depth_is_recorded(make_coco: MakeCoco) -> None:
    samples = make_coco(images=2, dtypes=(np.uint8, np.uint16)).read().samples
    assert [sample.bits for sample in samples] == [8, 16]


def as_jpeg(pixels: Pixels, quality: int) -> Pixels:
    encoded = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    decoded = cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED)
    assert decoded is not None
    return decoded


def known_look(pixels: Pixels) -> Signature:
    look = signature_of(pixels)
    assert look is not None
    return look


COPIES: dict[str, Callable[[Pixels], Pixels]] = {
    "compressed": lambda pixels: as_jpeg(pixels, 50),
    "smaller": lambda pixels: cv2.resize(pixels, (416, 416), interpolation=cv2.INTER_LINEAR),
    "16 bit": lambda pixels: pixels.astype(np.uint16) * 257,
    "darker": lambda pixels: (pixels * 0.8).astype(np.uint8),
    "colour": lambda pixels: np.dstack([pixels] * 3),
}


@pytest.fixture(scope="module")
def chips(request: pytest.FixtureRequest) -> list[Pixels]:
    folder: Path = request.getfixturevalue("hrsid200")
    return [read_image(path) for path in sorted((folder / "JPEGImages").iterdir())[::4]]


@pytest.mark.parametrize("copy", COPIES)
def test_copies_of_radar_chips_are_found_and_no_others(chips: list[Pixels], copy: str) -> None:
    chips = [chip if chip.ndim == 2 else chip[:, :, 0] for chip in chips]
    looks = [known_look(chip) for chip in chips]
    copies = [known_look(COPIES[copy](chip)) for chip in chips]
    assert nearly_same(looks[:25], looks[25:]) == []
    assert nearly_same(looks, copies) == [(n, n) for n in range(len(chips))]
    assert nearly_same(looks, looks) == []  # the same pixels are said elsewhere


def test_what_a_fixed_camera_sees_every_time_is_no_copy() -> None:
    rng = np.random.default_rng(0)
    view = cv2.GaussianBlur(rng.uniform(0, 255, (240, 320)).astype(np.float32), (0, 0), 6)
    view = 200 * (view - view.min()) / np.ptp(view)
    looks = []
    for _ in range(30):
        image = view + rng.normal(0, 3, view.shape)
        for x, y in rng.integers(0, 200, size=(5, 2)):
            image[y : y + 30, x : x + 30] = 250
        looks.append(known_look(image.clip(0, 255).astype(np.uint8)))
    assert nearly_same(looks[:10], looks[10:]) == []


@given(st.lists(st.integers(0, 9), min_size=1, max_size=12), st.lists(st.lists(st.integers(0, 11), min_size=1)))
def test_groups_are_joined_as_a_graph_says(groups: list[int], together: list[list[int]]) -> None:
    size = len(groups)
    of = {f"i{n:02}": f"g{group}" for n, group in enumerate(groups)}
    sets = [[f"i{n % size:02}" for n in names] for names in together]
    links = [(n, groups.index(group)) for n, group in enumerate(groups)]
    links += [(a % size, b % size) for names in together for a, b in pairwise(names)]
    rows, columns = zip(*links, strict=True)
    _, parts = connected_components(coo_array((np.ones(len(links)), (rows, columns)), shape=(size, size)))
    joined = list(join_groups(of, sets).values())
    for a in range(size):
        assert joined[a] in {of[f"i{b:02}"] for b in range(size) if parts[b] == parts[a]}
        assert [joined[b] == joined[a] for b in range(size)] == (parts == parts[a]).tolist()
    # What nothing joins keeps its name, so that its split stays as it is.
    assert join_groups(of, [[name] for name in of]) == of


@pytest.mark.parametrize(
    ("name", "original"),
    [
        ("a_jpg.rf.0123456789abcdef0123456789abcdef.jpg", "a_jpg"),
        ("train/a.b_png.rf.Q3xYzAbCdEfGhIjKlMnO.png", "train/a.b_png"),
        ("a.jpg", None),
        ("a.rf.jpg", None),
        ("a.rf.12.jpg", None),
    ],
)
def test_names_of_roboflow(name: str, original: str | None) -> None:
    assert roboflow_name(name) == original


def rename(built: Any, names: list[str]) -> None:
    for image, name in zip(built.content["images"], names, strict=True):
        (built.images / image["file_name"]).rename(built.images / name)
        image["file_name"] = name


def test_copies_by_roboflow_are_one_group_unless_groups_are_named(make_coco: MakeCoco) -> None:
    built = make_coco(images=4)
    names = [f"{stem}_jpg.rf.{n:032x}.png" for n, stem in enumerate("aabc")]
    rename(built, names)
    dataset = built.read()
    assert [sample.group for sample in dataset.samples] == [names[0], names[0], names[2], names[3]]
    assert ["Roboflow" in remark for remark in dataset.remarks] == [True]
    assert len({sample.group for sample in built.read(group_by="(.+)").samples}) == 4


def with_copies(make_coco: MakeCoco) -> Any:
    """Six images, of which the last two are the first again: byte for byte, and as other bytes."""
    built = make_coco(images=6, objects=(1,))
    first = built.images / "S00_0.png"
    (built.images / "S04_0.png").write_bytes(first.read_bytes())
    pixels = read_image(first)
    cv2.imwrite(str(built.images / "S05_0.png"), pixels, [cv2.IMWRITE_PNG_COMPRESSION, 0])
    assert first.read_bytes() != (built.images / "S05_0.png").read_bytes()
    return built


def test_images_with_the_same_pixels_are_one_group(make_coco: MakeCoco) -> None:
    dataset = with_copies(make_coco).read()
    groups = {sample.name: sample.group for sample in dataset.samples}
    assert {name for name, group in groups.items() if group == "S00_0.png"} == {"S00_0.png", "S04_0.png", "S05_0.png"}
    (remark,) = dataset.remarks
    assert "S00_0.png = S04_0.png = S05_0.png" in remark
    for seed in range(9):
        split = make_split(dataset, name="s", train=1, val=1, test=1, train_pool=1, seed=seed)
        sides = [side for side in ("train", "val", "test") for one in split.side(side) if one.group == "S00_0.png"]
        assert len(set(sides)) <= 1


def test_images_of_one_value_are_no_copies_of_each_other(make_coco: MakeCoco) -> None:
    built = make_coco(images=4, objects=(0,))
    for image in built.content["images"]:
        write_png(built.images / image["file_name"], np.zeros((64, 80), np.uint8))
    dataset = built.read()
    assert len({sample.group for sample in dataset.samples}) == 4
    assert dataset.remarks == ()


def test_a_split_that_has_an_image_on_two_sides_is_refused(make_coco: MakeCoco, tmp_path: Path) -> None:
    dataset = with_copies(make_coco).read()
    file = tmp_path / "splits.json"
    file.write_text('{"a": {"train": ["S00_0.png", "S01_0.png"], "val": ["S02_0.png"], "test": ["S04_0.png"]}}')
    with pytest.raises(InputError, match=r"S00_0\.png \(train\) = S04_0\.png \(test\)"):
        read_split(dataset, file, "a")
    file.write_text('{"a": {"train": ["S00_0.png", "S04_0.png"], "val": ["S02_0.png"], "test": ["S03_0.png"]}}')
    assert len(read_split(dataset, file, "a").train) == 2


def test_images_that_look_nearly_the_same_are_named(make_coco: MakeCoco, tmp_path: Path) -> None:
    built = make_coco(images=5, objects=(3,))
    pixels = read_image(built.images / "S00_0.png")
    write_png(built.images / "S04_0.png", as_jpeg(pixels, 80))
    file = tmp_path / "splits.json"
    file.write_text('{"a": {"train": ["S00_0.png", "S01_0.png"], "val": ["S02_0.png"], "test": ["S04_0.png"]}}')
    split = read_split(built.read(), file, "a")
    assert split.near_copies() == ["S00_0.png (train) ~ S04_0.png (test)"]


def test_no_pair_of_the_real_chips_is_said_to_be_one(hrsid200: Path) -> None:
    labels = hrsid200 / "annotations" / "train_test2017.json"
    dataset = read_coco(name="hrsid", images=hrsid200 / "JPEGImages", annotations=labels, group_by="^([^_]+)_")
    looks = [sample.signature for sample in dataset.samples if sample.signature is not None]
    assert nearly_same(looks, looks) == []
    assert dataset.remarks == ()
    split = make_split(dataset, name="s1", train=80, val=20, test=100, train_pool=80)
    assert split.near_copies() == []
    # As published studies have it.
    assert (dataset.digest[:12], split.digest[:12]) == ("a488e40e7505", "ffd90f318390")
