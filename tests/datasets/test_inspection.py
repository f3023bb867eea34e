import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from boxtwin.datasets import inspection
from boxtwin.datasets.coco import read_coco
from boxtwin.datasets.images import decode_image
from boxtwin.datasets.reading import Reading
from boxtwin.errors import InputError

MakeCoco = Callable[..., Any]


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
