"""Variations and edits by the official client against a real server on loopback."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import openai_generators
import pytest
from conftest import MakeCoco
from image_server import Record, image_server
from kill_moments import kill_moments
from openai_generators import SECRET, edit, open_library, outcomes, reasons, variations

from boxtwin.datasets.image_io import read_image
from boxtwin.datasets.sample import Dataset
from boxtwin.errors import InputError
from boxtwin.synthesis.external.openai_api import OpenAIEdit, OpenAIVariations
from boxtwin.synthesis.generator import Generator


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def server() -> Iterator[Record]:
    with image_server() as record:
        yield record


@pytest.fixture
def dataset(make_coco: MakeCoco) -> Dataset:
    return make_coco(images=4).read()


@pytest.mark.parametrize("make", [variations, edit])
def test_every_image_is_asked_for_once_and_keeps_its_form(
    make: Any, make_coco: MakeCoco, server: Record, tmp_path: Path
) -> None:
    dataset = make_coco(
        images=4, sizes=((80, 64), (64, 80), (300, 64)), channels=(1, 3), dtypes=(np.uint8, np.uint8, np.uint16)
    ).read()
    generator = make(server)
    assert isinstance(generator, OpenAIVariations | OpenAIEdit)
    assert isinstance(generator, Generator)
    library = open_library(dataset, tmp_path / "stores", generator)
    made = library.make(dataset.samples, 2)
    assert (made.made, made.refused) == (8, 0)
    # An image 300 wide takes two squares of 256.
    assert len(server.requests) == 2 * (3 + 2) == sum(server.per_image().values())
    assert made.cost_usd == pytest.approx(10 * 0.02)
    assert made.cost_usd == pytest.approx(2 * sum(generator.price_usd(sample) for sample in dataset.samples))
    for line in library.lines():
        source = next(sample for sample in dataset.samples if sample.name == line.source)
        before, after = read_image(source.path), read_image(library.folder / line.image)
        assert (before.shape, before.dtype) == (after.shape, after.dtype)
        # The server's answer is the mirrored negative: where the image is one square, the result is that of the source.
        if source.width < 256 and before.dtype == np.uint8:
            assert np.abs(after.astype(int) - (255 - before[:, ::-1])).mean() < 8  # speckle, enlarged and reduced
        assert line.claimed == ([], [])
        assert line.model.id == f"{server.url} {generator.model_name}"
    request = server.requests[0]
    assert (request["model"], request["n"], request["size"]) == (generator.model_name, "1", "256x256")
    if make is edit:
        assert (request["prompt"], request["quality"]) == ("the same again", "high")
        assert "input_fidelity" not in request
    else:
        assert "prompt" not in request


def test_an_answer_of_another_size_is_brought_to_it(dataset: Dataset, server: Record, tmp_path: Path) -> None:
    server.always = "half size"
    assert reasons(outcomes(variations(server), dataset, tmp_path)) == [None] * 4


def test_what_was_received_is_never_asked_for_again(dataset: Dataset, server: Record, tmp_path: Path) -> None:
    stores = tmp_path / "stores"
    library = open_library(dataset, stores, variations(server))
    library.make(dataset.samples, 2)
    before = {line.image: line.image_sha256 for line in library.lines()}
    # Neither for a store that was lost, nor for one whose labels are found in another way, whatever else changed.
    for path in library.folder.rglob("*"):
        if path.is_file():
            path.unlink()
    again = open_library(dataset, stores, variations(server, price_usd=0.5, timeout=9.0))
    assert again.folder == library.folder
    made = again.make(dataset.samples, 2)
    assert made.made == 8
    assert made.cost_usd == pytest.approx(8 * 0.5)
    assert {line.image: line.image_sha256 for line in again.lines()} == before
    assert {line.record["from_spool"] for line in again.lines()} == {1}
    assert len(server.requests) == 8
    # An answer that was cut short by a full disk or a power cut does not count.
    spooled = sorted((stores / "models" / "openai_variations-spool").glob("*.json"))
    assert len(spooled) == 8
    spooled[0].write_bytes(spooled[0].read_bytes()[:1000])
    (library.folder / "manifest.jsonl").unlink()
    again.make(dataset.samples, 2)
    assert len(server.requests) == 9


def test_two_stores_at_once_pay_once(dataset: Dataset, server: Record, tmp_path: Path) -> None:
    """Their labels are found in different ways, their images are the same."""
    server.delay = 0.02
    libraries = [open_library(dataset, tmp_path, variations(server), labels) for labels in ("carry", "other")]
    with ThreadPoolExecutor() as pool:
        made = list(pool.map(lambda library: library.make(dataset.samples, 2), libraries))
    assert len(server.requests) == 8
    assert all(each.made + each.reused == 8 for each in made)
    hashes = [{line.image: line.image_sha256 for line in library.lines()} for library in libraries]
    assert hashes[0] == hashes[1]


def test_other_settings_are_other_requests(dataset: Dataset, server: Record, tmp_path: Path) -> None:
    outcomes(edit(server), dataset, tmp_path)
    outcomes(edit(server, prompt="something else"), dataset, tmp_path)
    outcomes(edit(server, model="other"), dataset, tmp_path)
    assert len(server.requests) == 12
    outcomes(edit(server), dataset, tmp_path)
    assert len(server.requests) == 12


def test_the_key_is_nowhere(
    dataset: Dataset,
    server: Record,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level("DEBUG")
    server.plan = [None, "drop", "server error", None, "moderation", "bad key"]
    library = open_library(dataset, tmp_path / "stores", variations(server))
    with pytest.raises(InputError) as error:
        library.make(dataset.samples, 1)
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    printed = capfd.readouterr()
    texts = [str(error.value), repr(error.getrepr(style="long")), caplog.text, printed.out, printed.err]
    assert len(written) > 5
    for part in (SECRET, SECRET[:12], SECRET[-8:]):
        assert not any(part.encode() in content for content in written)
        assert not any(part in text for text in texts)


@pytest.mark.parametrize(
    ("key", "message"), [("", "in the environment variable OPENAI_API_KEY"), ("sk-a b\n", "holds spaces")]
)
def test_a_key_that_is_missing_or_broken_is_told_before_any_call(
    dataset: Dataset, server: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, message: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(InputError, match=message) as error:
        outcomes(variations(server), dataset, tmp_path)
    assert "sk-a" not in str(error.value)
    assert server.requests == []


def test_a_client_that_is_missing_is_told_before_any_call(
    dataset: Dataset, server: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)  # as if it were not installed
    with pytest.raises(InputError, match=r"pip install 'boxtwin\[openai\]'"):
        outcomes(variations(server), dataset, tmp_path)
    assert server.requests == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base_url": "api.openai.com"}, "base_url must be an address"),
        ({"base_url": f"http://me:{SECRET}@host/v1"}, "must hold no user, password or query"),
        ({"base_url": f"http://host/v1?key={SECRET}"}, "must hold no user, password or query"),
        ({"size": 300}, r"size=300: image variations have 256, 512 or 1024"),
        ({"overlap": 200}, r"overlap=200 must lie between 0 and half of generator\.size=256"),
        ({"max_tries": 0}, r"max_tries=0 must be at least 1"),
        ({"timeout": 0.0}, r"timeout=0\.0 must be above 0"),
        ({"first_wait": -1.0}, r"first_wait=-1\.0 must be at least 0"),
        ({"price_usd": float("nan")}, r"price_usd=nan must not be negative"),
    ],
)
def test_bad_settings_are_told_when_it_is_made(server: Record, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        variations(server, **changes)
    assert SECRET not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"), [({"size": 300}, "multiple of 16"), ({"prompt": " "}, "prompt must not be empty")]
)
def test_bad_settings_of_an_edit(server: Record, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        edit(server, **changes)


@pytest.mark.parametrize(
    ("changes", "price"),
    [
        ({"model": "gpt-image-2", "quality": "high"}, 0.211 + 4354 * 8e-6),
        ({"model": "gpt-image-1.5", "quality": "low"}, 0.009 + 194 * 8e-6),
        ({"model": "gpt-image-1", "quality": "medium", "input_fidelity": "high"}, 0.042 + 4354 * 10e-6),
        ({"model": "gpt-image-1-mini", "quality": "low", "input_fidelity": "low"}, None),
        ({"model": "gpt-image-2.5-flare"}, None),
        ({"quality": "max"}, None),
        ({"quality": None}, None),
        ({"size": 2048}, None),
        ({"size": None}, None),
        ({"base_url": "http://127.0.0.1:8000/v1"}, None),
    ],
)
def test_the_list_price_is_taken_or_asked_for(
    make_coco: MakeCoco, server: Record, changes: dict[str, Any], price: float | None
) -> None:
    (sample,) = make_coco(images=1, sizes=((1500, 700),)).read().samples
    settings = {"base_url": "https://api.openai.com/v1", "model": "gpt-image-2", "size": 1024, "price_usd": None}
    generator = edit(server, **(settings | changes))
    if price is None:
        with pytest.raises(InputError, match=r"is not known: say generator\.price_usd=USD.*2026-11-28"):
            generator.price_usd(sample)
        assert edit(server, **(settings | changes | {"price_usd": 0.0})).price_usd(sample) == 0
    else:
        assert generator.price_usd(sample) == pytest.approx(2 * price, abs=2e-4)  # two squares
        assert edit(server, **(settings | changes | {"price_usd": 0.5})).price_usd(sample) == 1


def test_what_is_sent_is_in_the_key_and_the_price_is_not(dataset: Dataset, server: Record, tmp_path: Path) -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"size": None},
        {"size": 512},
        {"quality": None},
        {"input_fidelity": "low"},
        {"model": "x"},
    ]
    folders = [open_library(dataset, tmp_path, edit(server, **change)).folder for change in changes]
    assert len(set(folders)) == len(changes)
    assert open_library(dataset, tmp_path, edit(server, price_usd=None)).folder == folders[0]


def test_killed_at_any_moment_nothing_that_came_is_asked_for_again(
    make_coco: MakeCoco, server: Record, tmp_path: Path
) -> None:
    """The moments are drawn anew in every run of the test."""
    built = make_coco(images=5)
    stores, moments, lost = tmp_path / "stores", kill_moments(), 0
    spool = stores / "models" / "openai_variations-spool"
    server.delay = 0.03

    def start() -> subprocess.Popen[bytes]:
        arguments = [sys.executable, openai_generators.__file__, str(built.root), str(stores), server.url, "4"]
        return subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    for _ in range(3):
        before, process = len(server.requests), start()
        while len(server.requests) == before and process.poll() is None:
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        server.wait_until_idle()
        # All that was asked for and did not come: the one at the moment of the kill.
        now_lost = len(server.requests) - len(list(spool.glob("*.json")))
        assert now_lost - lost in (0, 1)
        lost = now_lost
    process = start()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors.decode()
    assert len(server.requests) == 20 + lost
    dataset = built.read()
    library = open_library(dataset, stores, variations(server))
    assert len(library.lines()) == len(library.variations(dataset.samples, 4)) == 20
    images = sorted(path.relative_to(library.folder).as_posix() for path in library.folder.rglob("*.png"))
    assert images == sorted(line.image for line in library.lines())
    assert json.loads((library.folder / "annotations.json").read_text())["images"]
