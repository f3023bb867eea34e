import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import MakeCoco
from PIL import Image

from boxtwin.datasets import inspection
from boxtwin.datasets.coco import read_coco
from boxtwin.datasets.image_io import decode_image
from boxtwin.datasets.options import Orientation
from boxtwin.datasets.reading import Reading
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
        samples = built.read().samples
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
    assert "another size than told" in refusal(built)
    assert decoded == ["S01_0.png"]


def test_depth_is_recorded(make_coco: MakeCoco) -> None:
    samples = make_coco(images=2, dtypes=(np.uint8, np.uint16)).read().samples
    assert [sample.bits for sample in samples] == [8, 16]
