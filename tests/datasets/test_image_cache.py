import errno
import json
import multiprocessing
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import MakeCoco

from boxtwin.datasets import image_cache
from boxtwin.datasets import sample as sample_module
from boxtwin.datasets.image_cache import DecodedImages
from boxtwin.datasets.image_io import read_image, write_png
from boxtwin.datasets.reading import Reading
from boxtwin.datasets.sample import Sample
from boxtwin.errors import InputError


@pytest.fixture
def samples(make_coco: MakeCoco) -> tuple[Sample, ...]:
    """Grey and colour, several sizes, 8 and 16 bit."""
    built = make_coco(images=9, sizes=((80, 64), (51, 33)), channels=(1, 3, 1), dtypes=(np.uint8, np.uint16, np.uint8))
    return built.read().samples


@pytest.fixture
def decodings(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were decoded, one by one."""
    read: list[Path] = []

    def counting(path: Path, reading: Reading) -> np.ndarray:
        read.append(path)
        return read_image(path, reading)

    monkeypatch.setattr(sample_module, "read_image", counting)
    return read


def check(images: DecodedImages, samples: tuple[Sample, ...]) -> None:
    for sample in samples:
        pixels, expected = images.read(sample), read_image(sample.path)
        assert pixels.dtype == expected.dtype
        np.testing.assert_array_equal(pixels, expected)


def files(folder: Path) -> tuple[Path, Path]:
    (data,), (index,) = folder.glob("*.bin"), folder.glob("*.json")
    return data, index


def test_pixels_are_the_files(samples: tuple[Sample, ...], tmp_path: Path, decodings: list[Path]) -> None:
    images = DecodedImages(tmp_path)
    images.add("some", samples[:4])
    images.add("some", samples)
    images.add("more", samples[:2])
    made = len(decodings)
    assert made == 9 + 2
    check(images, samples)
    again = DecodedImages(tmp_path)
    again.add("some", samples)
    check(again, samples)
    assert len(decodings) == made
    with pytest.raises(ValueError, match="read-only"):
        again.read(samples[0])[0, 0] = 1


def test_images_that_were_released_are_read_again(samples: tuple[Sample, ...], tmp_path: Path) -> None:
    images = DecodedImages(tmp_path)
    images.release(samples[0])
    images.add("some", samples)
    views = [images.read(sample) for sample in samples]
    for sample in samples:
        images.release(sample)
    check(images, samples)
    assert all(np.array_equal(view, read_image(sample.path)) for view, sample in zip(views, samples, strict=True))


def test_grey_stored_as_colour_is_grey(samples: tuple[Sample, ...], tmp_path: Path) -> None:
    plane = np.arange(6000, dtype=np.uint8).reshape(100, 60)
    path = tmp_path / "grey.png"
    write_png(path, np.repeat(plane[:, :, None], 3, axis=2))
    sample = Sample(**{**vars(samples[0]), "path": path, "sha256": "grey"})
    images = DecodedImages(tmp_path / "cache")
    np.testing.assert_array_equal(images.read(sample), plane)
    images.add("some", [sample])
    np.testing.assert_array_equal(images.read(sample), plane)
    data, _ = files(tmp_path / "cache" / "some")
    assert data.stat().st_size == plane.nbytes


def test_an_image_that_changed_is_another(samples: tuple[Sample, ...], tmp_path: Path) -> None:
    images = DecodedImages(tmp_path)
    images.add("some", samples)
    changed = Sample(**{**vars(samples[0]), "sha256": "of its new bytes", "path": samples[4].path})
    images.add("some", [changed])
    np.testing.assert_array_equal(images.read(changed), read_image(samples[4].path))
    check(images, samples)


def test_without_a_folder_every_reading_decodes(samples: tuple[Sample, ...], decodings: list[Path]) -> None:
    images = DecodedImages(None)
    images.add("some", samples)
    check(images, samples)
    check(images, samples)
    assert len(decodings) == 18


def test_what_a_killed_process_left_is_written_over(
    samples: tuple[Sample, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_cache, "BATCH", 2)
    broken = list(samples[:5])
    # Stops in the third batch, as a kill would: two batches are safe, and of the third nothing may be used.
    broken[4] = Sample(**{**vars(samples[4]), "path": tmp_path / "missing"})
    with pytest.raises(FileNotFoundError):
        DecodedImages(tmp_path / "cache").add("some", broken)
    data, index = files(tmp_path / "cache" / "some")
    assert list(json.loads(index.read_text())) == [sample.sha256 for sample in samples[:4]]
    with data.open("ab") as file:
        file.write(b"half an image")
    images = DecodedImages(tmp_path / "cache")
    images.add("some", samples)
    check(images, samples)


@pytest.mark.parametrize("damage", ["cut", "pixels gone", "index gone", "index empty"])
def test_damaged_files_are_made_anew(samples: tuple[Sample, ...], tmp_path: Path, damage: str) -> None:
    DecodedImages(tmp_path).add("some", samples)
    data, index = files(tmp_path / "some")
    match damage:
        case "cut":
            data.write_bytes(data.read_bytes()[:-1])
        case "pixels gone":
            data.unlink()
        case "index gone":
            index.unlink()
        case "index empty":
            index.write_text("")
    images = DecodedImages(tmp_path)
    images.add("some", samples)
    check(images, samples)


def test_zeroed_pixels_are_found_named_and_made_again(
    samples: tuple[Sample, ...], tmp_path: Path, decodings: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    images = DecodedImages(tmp_path)
    images.add("some", samples)
    check(images, samples)  # another process, which has the file open
    data, index = files(tmp_path / "some")
    before = data.stat().st_size
    for sample in (samples[2], samples[-1]):
        offset = json.loads(index.read_text())[sample.sha256]["offset"]
        with data.open("r+b") as file:
            file.seek(offset + 100)
            file.write(bytes(500))
    decodings.clear()
    again = DecodedImages(tmp_path)
    again.add("some", samples)
    assert decodings == [samples[2].path, samples[-1].path]
    (message,) = [record.getMessage() for record in caplog.records]
    assert all(sample.name in message for sample in (samples[2], samples[-1]))
    assert samples[0].name not in message
    check(again, samples)
    assert data.stat().st_size > before  # what others have open is never cut or moved
    DecodedImages(tmp_path).add("some", samples)
    assert len(caplog.records) == 1


@pytest.mark.parametrize("change", [{"offset": 64}, {"dtype": "nothing"}, {"crc32": None}, {"shape": "wide"}])
def test_a_changed_index_is_noticed(samples: tuple[Sample, ...], tmp_path: Path, change: dict[str, Any]) -> None:
    DecodedImages(tmp_path).add("some", samples)
    _, index = files(tmp_path / "some")
    entries = json.loads(index.read_text())
    entries[samples[0].sha256] |= change
    index.write_text(json.dumps(entries))
    images = DecodedImages(tmp_path)
    images.add("some", samples)
    check(images, samples)


def test_loader_processes_get_names_not_pixels(samples: tuple[Sample, ...], tmp_path: Path) -> None:
    images = DecodedImages(tmp_path)
    images.add("some", samples)
    sent = pickle.dumps(images)
    assert len(sent) < 1000
    check(pickle.loads(sent), samples)


def _add(folder: Path, samples: tuple[Sample, ...]) -> None:
    DecodedImages(folder).add("some", samples)


def test_processes_take_turns(samples: tuple[Sample, ...], tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    parts = (samples[:6], samples[3:], samples)
    processes = [context.Process(target=_add, args=(tmp_path, part)) for part in parts]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    images = DecodedImages(tmp_path)
    images.add("some", ())
    check(images, samples)
    data, index = files(tmp_path / "some")
    assert len(json.loads(index.read_text())) == 9
    assert data.stat().st_size < sum(read_image(sample.path).nbytes + 64 for sample in samples)  # each once


def test_a_full_disk_is_told_before_anything_is_written(
    samples: tuple[Sample, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with pytest.raises(InputError, match=r"GB may be needed.*trainer\.cache=false"):
        DecodedImages(tmp_path).add("some", samples)
    assert not list((tmp_path / "some").glob("pixels*"))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_takes_no_more_is_told(
    samples: tuple[Sample, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def full(file: object) -> None:
        raise OSError(number, "so it is")

    monkeypatch.setattr(image_cache, "_flush", full)
    with pytest.raises(InputError, match=r"some: decoded images cannot be kept here: so it is\. Make room"):
        DecodedImages(tmp_path).add("some", samples)
    monkeypatch.undo()
    images = DecodedImages(tmp_path)
    images.add("some", samples)
    check(images, samples)
