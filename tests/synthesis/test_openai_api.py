"""The official client against a real server on loopback that has every fault in it.

Run as a script, this file makes a store in a process of its own, to be killed:
``python test_openai_api.py <data set> <stores> <base url> <per image>``
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from image_server import Record, image_server

from boxtwin.datasets.coco import read_coco
from boxtwin.datasets.image_io import read_image
from boxtwin.datasets.sample import Dataset
from boxtwin.errors import InputError
from boxtwin.labels.carry import Carry
from boxtwin.synthesis.external.openai_api import OpenAIEdit, OpenAIVariations
from boxtwin.synthesis.generator import Generator, Refused, Request, Variation
from boxtwin.synthesis.store import Library

SECRET = "sk-proj-abcdefghijklmnopqrstuvwxyz0123456789"
SETTINGS: dict[str, Any] = {
    "model": "dall-e-2",
    "size": 256,
    "overlap": 32,
    "price_usd": 0.02,
    "timeout": 5.0,
    "max_tries": 3,
    "first_wait": 0.01,
    "longest_wait": 2.0,
    "give_up_after": 3,
}


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def server() -> Iterator[Record]:
    with image_server() as record:
        yield record


@pytest.fixture
def dataset(make_coco: Callable[..., Any]) -> Dataset:
    return make_coco(images=4).read()  # type: ignore[no-any-return]


def variations(server: Record, **changes: Any) -> OpenAIVariations:
    return OpenAIVariations(**{"base_url": server.url, **SETTINGS, **changes})


def edit(server: Record, **changes: Any) -> OpenAIEdit:
    settings = {"base_url": server.url, "prompt": "the same again", "quality": "high", "input_fidelity": None}
    return OpenAIEdit(**{**settings, **SETTINGS, "model": "gpt-image-2", **changes})


def open_library(dataset: Dataset, stores: Path, generator: Any, labels: str = "carry") -> Library:
    return Library(
        stores,
        generator,
        dataset.samples,
        judge=Carry(),
        labels=labels,
        dataset=dataset.name,
        classes=dataset.classes,
        category_ids=dataset.category_ids,
        seed=0,
    )


def outcomes(generator: Any, dataset: Dataset, folder: Path) -> list[Variation | Refused]:
    generator.fit(dataset.samples, folder)
    return list(generator.vary([Request(sample, 1, 7) for sample in dataset.samples]))


def reasons(found: list[Variation | Refused]) -> list[str | None]:
    return [outcome.reason if isinstance(outcome, Refused) else None for outcome in found]


@pytest.mark.parametrize("make", [variations, edit])
def test_every_image_is_asked_for_once_and_keeps_its_form(
    make: Any, make_coco: Callable[..., Any], server: Record, tmp_path: Path
) -> None:
    dataset = make_coco(
        images=4, sizes=((80, 64), (64, 80), (300, 64)), channels=(1, 3), dtypes=(np.uint8, np.uint8, np.uint16)
    ).read()
    generator = make(server)
    assert isinstance(generator, Generator)
    library = open_library(dataset, tmp_path / "stores", generator)
    made = library.make(dataset.samples, 2)
    assert (made.made, made.refused) == (8, 0)
    # An image 300 wide takes two squares of 256.
    assert len(server.requests) == 2 * (3 + 2) == sum(server.per_image().values())
    assert made.cost_usd == pytest.approx(10 * 0.02)
    assert made.cost_usd == pytest.approx(2 * sum(generator.price_usd(sample) for sample in dataset.samples))
    for line in library.lines():
        source = next(sample for sample in dataset.samples if sample.name == line["source"])
        before, after = read_image(source.path), read_image(library.folder / line["image"])
        assert (before.shape, before.dtype) == (after.shape, after.dtype)
        # The server's answer is the mirrored negative: where the image is one square, the result is that of the source.
        if source.width < 256 and before.dtype == np.uint8:
            assert np.abs(after.astype(int) - (255 - before[:, ::-1])).mean() < 8  # speckle, enlarged and reduced
        assert line["claimed"] == {"boxes": [], "labels": []}
        assert line["model"]["id"] == f"{server.url} {generator.model_name}"
    request = server.requests[0]
    assert (request["model"], request["n"], request["size"]) == (generator.model_name, "1", "256x256")
    if make is edit:
        assert (request["prompt"], request["quality"]) == ("the same again", "high")
        assert "input_fidelity" not in request
    else:
        assert "prompt" not in request


def test_what_may_pass_is_tried_again(dataset: Dataset, server: Record, tmp_path: Path) -> None:
    server.plan = ["rate limit", "server error", None, "drop", "truncated", None, "cut short", "garbage", None, "empty"]
    found = outcomes(variations(server), dataset, tmp_path)
    assert reasons(found) == [None] * 4
    assert len(server.requests) == 11
    assert all(server.per_image()[sha] > 1 for sha in server.per_image())
    # What came damaged was paid for all the same.
    assert [round(outcome.cost_usd / 0.02) for outcome in found if isinstance(outcome, Variation)] == [1, 2, 2, 2]


@pytest.mark.parametrize("retry_after", ["0.4", "date"])
def test_retry_after_is_waited_for(dataset: Dataset, server: Record, tmp_path: Path, retry_after: str) -> None:
    least = 0.4
    if retry_after == "date":  # of whole seconds
        moment = time.time() + 2
        retry_after, least = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(moment)), int(moment) - time.time()
    server.plan, server.retry_after = ["rate limit"], retry_after
    outcomes(variations(server, first_wait=0.0), dataset, tmp_path)
    assert server.times[1] - server.times[0] >= least - 0.1


def test_a_host_that_wants_too_long_a_wait_is_not_waited_for(dataset: Dataset, server: Record, tmp_path: Path) -> None:
    server.plan, server.retry_after = ["rate limit"], "3600"
    found = outcomes(variations(server), dataset, tmp_path)
    assert reasons(found)[1:] == [None] * 3
    assert "3600 s, over longest_wait=2" in str(reasons(found)[0])
    assert server.times[-1] - server.times[0] < 10


def test_waits_grow_and_are_never_the_same(
    dataset: Dataset, server: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", lambda seconds: waits.append(seconds))
    server.always = "overloaded"
    generator = variations(server, max_tries=6, first_wait=1.0, longest_wait=5.0, give_up_after=1)
    with pytest.raises(InputError, match="gave nothing for 1 images in a row"):
        outcomes(generator, dataset, tmp_path)
    waits = [wait for wait in waits if wait > 0]  # the server's own are of no length
    assert len(waits) == 5
    assert all(most / 2 <= wait <= most for wait, most in zip(waits, (1, 2, 4, 5, 5), strict=True))


@pytest.mark.parametrize("fault", ["drop", "truncated", "overloaded", "rate limit", "oblong", "cut short"])
def test_an_image_that_cannot_be_had_is_refused_and_the_rest_go_on(
    dataset: Dataset, server: Record, tmp_path: Path, fault: str
) -> None:
    server.plan = [fault] * 3
    found = outcomes(variations(server), dataset, tmp_path)
    assert reasons(found)[1:] == [None] * 3
    assert str(reasons(found)[0]).startswith("not had in 3 tries: ")
    assert len(server.requests) == 3 + 3


def test_an_answer_that_takes_too_long_is_given_up(dataset: Dataset, server: Record, tmp_path: Path) -> None:
    server.delay = 0.6
    generator = variations(server, timeout=0.2, max_tries=2, give_up_after=9)
    assert set(reasons(outcomes(generator, dataset, tmp_path))) == {"not had in 2 tries: no answer within 0.2 s"}


@pytest.mark.parametrize("fault", ["moderation", "policy"])
def test_moderation_is_no_reason_to_try_again_or_to_stop(
    dataset: Dataset, server: Record, tmp_path: Path, fault: str
) -> None:
    server.plan = [fault] * 3
    found = outcomes(variations(server, give_up_after=1), dataset, tmp_path)
    assert [str(reason).startswith("refused by the host's moderation (400") for reason in reasons(found)] == [
        *([True] * 3),
        False,
    ]
    assert len(server.requests) == 4


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("bad key", r"does not take the key in OPENAI_API_KEY \(401 invalid_api_key\)"),
        ("forbidden", r"refuses images/\w+ with .* \(403\): Not for \[OPENAI_API_KEY\]"),
        ("unverified", r"refuses images/\w+ with .* \(403\): Your organization must be verified"),
        (
            "not a member",
            r"\(401\): You must be a member of an organization .*; \[OPENAI_API_KEY\] or \[OPENAI_API_KEY\]",
        ),
        ("quota", r"wants money first \(429 insufficient_quota\): You exceeded"),
        (
            "gone",
            r"no images/variations with dall-e-2 .*closed.*2026-05-12.*generator\.base_url=.*generator=openai_edit",
        ),
        ("retired", r"no images/variations with dall-e-2 \(400 invalid_value\)\. OpenAI closed image variations"),
        ("no endpoint", r"\(410\)\. OpenAI closed image variations"),
        ("address", r"sends no b64_json, only url"),
    ],
)
def test_what_holds_for_all_images_stops_at_once_with_one_error(
    dataset: Dataset, server: Record, tmp_path: Path, fault: str, message: str
) -> None:
    server.plan = [None, fault]
    library = open_library(dataset, tmp_path / "stores", variations(server))
    with pytest.raises(InputError, match=message) as error:
        library.make(dataset.samples, 1)
    assert SECRET not in str(error.value)
    assert len(server.requests) == 2
    assert len(library.lines()) == 1
    # Mended, the same call goes on.
    assert library.make(dataset.samples, 1).made == 3
    assert len(server.requests) == 5


def test_an_edit_model_that_is_gone_needs_another_name(dataset: Dataset, server: Record, tmp_path: Path) -> None:
    server.always = "gone"
    with pytest.raises(InputError, match=r"no images/edits with gpt-image-2 .*generator\.model=NAME"):
        outcomes(edit(server), dataset, tmp_path)


def test_a_host_that_is_down_is_given_up(dataset: Dataset, server: Record, tmp_path: Path) -> None:
    server.always = "bad request"
    generator = variations(server, give_up_after=3)
    with pytest.raises(InputError, match=r"nothing for 3 images in a row, so 1 more were not tried.*400 invalid_image"):
        outcomes(generator, dataset, tmp_path)
    assert len(server.requests) == 3
    # With nothing left to try, the refusals are all that there is to say.
    assert len(outcomes(variations(server, give_up_after=4), dataset, tmp_path)) == 4


def test_an_answer_of_another_size_is_brought_to_it(dataset: Dataset, server: Record, tmp_path: Path) -> None:
    server.always = "half size"
    assert reasons(outcomes(variations(server), dataset, tmp_path)) == [None] * 4


def test_what_was_received_is_never_asked_for_again(dataset: Dataset, server: Record, tmp_path: Path) -> None:
    stores = tmp_path / "stores"
    library = open_library(dataset, stores, variations(server))
    library.make(dataset.samples, 2)
    before = {line["image"]: line["image_sha256"] for line in library.lines()}
    # Neither for a store that was lost, nor for one whose labels are found in another way, whatever else changed.
    for path in library.folder.rglob("*"):
        if path.is_file():
            path.unlink()
    again = open_library(dataset, stores, variations(server, price_usd=0.5, timeout=9.0))
    assert again.folder == library.folder
    made = again.make(dataset.samples, 2)
    assert made.made == 8
    assert made.cost_usd == pytest.approx(8 * 0.5)
    assert {line["image"]: line["image_sha256"] for line in again.lines()} == before
    assert {line["record"]["from_spool"] for line in again.lines()} == {1}
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
    assert all(each.made + each.taken_over == 8 for each in made)
    hashes = [{line["image"]: line["image_sha256"] for line in library.lines()} for library in libraries]
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
        ({"first_wait": -1.0}, r"first_wait=-1\.0 must not be negative"),
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


def test_killed_at_any_moment_nothing_that_came_is_asked_for_again(
    make_coco: Callable[..., Any], server: Record, tmp_path: Path
) -> None:
    """The moments are drawn anew in every run of the test."""
    built = make_coco(images=5)
    stores, moments, lost = tmp_path / "stores", random.Random(), 0
    spool = stores / "models" / "openai_variations-spool"
    server.delay = 0.03

    def start() -> subprocess.Popen[bytes]:
        arguments = [sys.executable, __file__, str(built.root), str(stores), server.url, "4"]
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
    assert images == sorted(line["image"] for line in library.lines())
    assert json.loads((library.folder / "annotations.json").read_text())["images"]


if __name__ == "__main__":
    os.environ |= {"OPENAI_API_KEY": SECRET, "NO_PROXY": "127.0.0.1"}
    root, where, url, per_image = sys.argv[1:]
    data = read_coco(name="tiny", images=Path(root) / "images", annotations=Path(root) / "annotations.json")
    open_library(data, Path(where), OpenAIVariations(base_url=url, **SETTINGS)).make(data.samples, int(per_image))
