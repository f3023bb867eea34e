"""Faults of a server on loopback: what is tried again, what is refused, and what stops at once."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import MakeCoco
from image_server import Record, image_server
from openai_generators import SECRET, SETTINGS, edit, open_library, outcomes, reasons, variations

from boxtwin.datasets.sample import Dataset
from boxtwin.errors import InputError
from boxtwin.synthesis import store
from boxtwin.synthesis.generator import Variation
from boxtwin.synthesis.manifest import refused_lines, store_costs


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


def test_what_may_pass_is_tried_again(dataset: Dataset, server: Record, tmp_path: Path) -> None:
    server.plan = ["rate limit", "server error", None, "drop", "truncated", None, "cut short", "garbage", None, "empty"]
    found = outcomes(variations(server), dataset, tmp_path)
    assert reasons(found) == [None] * 4
    assert len(server.requests) == 11
    assert all(server.per_image()[sha] > 1 for sha in server.per_image())
    # What came damaged was paid for all the same.
    assert [round(outcome.cost_usd / 0.02) for outcome in found if isinstance(outcome, Variation)] == [1, 2, 2, 2]


def test_retry_after_is_waited_for(dataset: Dataset, server: Record, tmp_path: Path) -> None:
    server.plan, server.retry_after = ["rate limit"], "0.4"
    outcomes(variations(server, first_wait=0.0), dataset, tmp_path)
    assert server.times[1] - server.times[0] >= 0.4 - 0.1


def test_date_of_retry_after_is_waited_for(dataset: Dataset, server: Record, tmp_path: Path) -> None:
    monotonic, date = time.monotonic(), int(time.time()) + 2  # dates are of whole seconds
    until = monotonic + date - time.time()
    server.plan, server.retry_after = ["rate limit"], time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(date))
    outcomes(variations(server, first_wait=0.0), dataset, tmp_path)
    assert server.times[1] >= until - 0.1


def test_a_host_that_wants_too_long_a_wait_is_not_waited_for(dataset: Dataset, server: Record, tmp_path: Path) -> None:
    server.plan, server.retry_after = ["rate limit"], "3600"
    found = outcomes(variations(server), dataset, tmp_path)
    assert reasons(found)[1:] == [None] * 3
    assert "3600 s, over 120 s" in str(reasons(found)[0])
    assert server.times[-1] - server.times[0] < 10


def test_waits_grow_and_are_never_the_same(
    dataset: Dataset, server: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", lambda seconds: waits.append(seconds))
    server.always = "overloaded"
    generator = variations(server, max_tries=6, first_wait=30.0)
    monkeypatch.setattr(store, "GIVE_UP_AFTER", 1)
    with pytest.raises(InputError, match="1 images in a row failed"):
        open_library(dataset, tmp_path, generator).make(dataset.samples, 1)
    waits = [wait for wait in waits if wait > 0]  # the server's own are of no length
    assert len(waits) == 5
    assert all(most / 2 <= wait <= most for wait, most in zip(waits, (30, 60, 120, 120, 120), strict=True))


@pytest.mark.parametrize("fault", ["drop", "truncated", "overloaded", "rate limit", "cut short"])
def test_an_image_that_cannot_be_had_is_refused_and_the_rest_go_on(
    dataset: Dataset, server: Record, tmp_path: Path, fault: str
) -> None:
    server.plan = [fault] * 3
    found = outcomes(variations(server), dataset, tmp_path)
    assert reasons(found)[1:] == [None] * 3
    assert str(reasons(found)[0]).startswith("failed in 3 tries: ")
    assert len(server.requests) == 3 + 3


def test_images_of_another_shape_are_paid_for_once(dataset: Dataset, server: Record, tmp_path: Path) -> None:
    """The next one would have the same shape; what was made before is kept."""
    server.plan, server.always = [None], "oblong"
    library = open_library(dataset, tmp_path, variations(server))
    with pytest.raises(InputError, match=r"a square of 256 pixels was asked for, 256 x 128 came; .*generator\.size"):
        library.make(dataset.samples, 1)
    assert len(server.requests) == 2
    assert len(library.lines()) == 1


def test_an_answer_that_takes_too_long_is_given_up(dataset: Dataset, server: Record, tmp_path: Path) -> None:
    server.delay = 0.6
    generator = variations(server, timeout=0.2, max_tries=2)
    assert set(reasons(outcomes(generator, dataset, tmp_path))) == {"failed in 2 tries: no answer within 0.2 s"}


def test_a_black_answer_is_refused_and_recorded_and_never_an_image(
    make_coco: MakeCoco, server: Record, tmp_path: Path
) -> None:
    """Also where one square of several is black: the image as a whole would pass."""
    dataset = make_coco(images=3, sizes=((80, 64), (300, 64), (64, 80))).read()
    server.plan = ["black", None, "black"]
    library = open_library(dataset, tmp_path, edit(server))
    made = library.make(dataset.samples, 1)
    assert (made.made, made.refused) == (1, 2)
    reasons = {line.source: line.reason for line in library.refused(dataset.samples).values()}
    assert len(reasons) == 2
    assert all(reason.startswith("blank: all pixels are about 0") for reason in reasons.values())
    assert len(list((library.folder / "images").iterdir())) == len(library.lines()) == 1
    # The same call asks for what was black again, and for nothing else.
    asked = len(server.requests)
    again = library.make(dataset.samples, 1)
    assert (again.made, again.existing, len(server.requests) - asked) == (2, 1, 2)
    # What was black was paid for, too; the good squares beside it are counted with their image.
    assert round((made.cost_usd + again.cost_usd) / SETTINGS["price_usd"]) == len(server.requests)
    assert not library.refused(dataset.samples)
    attempts = refused_lines(library.folder)
    costs = store_costs(library.folder, library.judged(dataset.samples, 1), attempts, by_hand=False)
    assert costs["data/cost_usd"] == pytest.approx(made.cost_usd + again.cost_usd)


def test_a_host_that_sends_black_images_only_is_given_up(make_coco: MakeCoco, server: Record, tmp_path: Path) -> None:
    server.always = "black"
    dataset = make_coco(images=6).read()
    with pytest.raises(InputError, match=r"5 images in a row failed, so 1 more were not tried.*blank"):
        open_library(dataset, tmp_path, edit(server)).make(dataset.samples, 1)
    assert len(server.requests) == 5


@pytest.mark.parametrize("schema", [False, True])
@pytest.mark.parametrize("setting", ["size", "quality", "input_fidelity"])
def test_a_setting_that_a_host_refuses_is_named_and_can_be_left_out(
    dataset: Dataset, server: Record, tmp_path: Path, setting: str, schema: bool
) -> None:
    server.unknown, server.schema = setting, schema
    chosen = {"size": 1024, "quality": "high", "input_fidelity": "low"}
    cure = rf"does not take generator\.{setting} as it is \(4.*generator\.{setting}=null"
    with pytest.raises(InputError, match=cure):
        outcomes(edit(server, **chosen), dataset, tmp_path)
    assert len(server.requests) == 1
    assert reasons(outcomes(edit(server, **(chosen | {setting: None})), dataset, tmp_path)) == [None] * 4
    assert setting not in server.requests[-1]
    assert chosen.keys() - {setting} < server.requests[-1].keys()


@pytest.mark.parametrize("fault", ["moderation", "policy"])
def test_moderation_is_no_reason_to_try_again_or_to_stop(
    dataset: Dataset, server: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setattr(store, "GIVE_UP_AFTER", 1)
    server.plan = [fault] * 3
    library = open_library(dataset, tmp_path, variations(server))
    made = library.make(dataset.samples, 1)
    assert (made.made, made.refused) == (1, 3)
    said = [line.reason for line in library.refused(dataset.samples).values()]
    assert all(reason.startswith("refused by the host's moderation (400") for reason in said)
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


def test_a_host_that_is_down_is_given_up(
    dataset: Dataset, server: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.always = "bad request"
    library = open_library(dataset, tmp_path, variations(server))
    monkeypatch.setattr(store, "GIVE_UP_AFTER", 3)
    message = rf"{server.url} dall-e-2: 3 images in a row failed, so 1 more were not tried.*400 invalid_image"
    with pytest.raises(InputError, match=message):
        library.make(dataset.samples, 1)
    assert len(server.requests) == 3
    # With nothing left to try, the refusals are all that there is to say.
    monkeypatch.setattr(store, "GIVE_UP_AFTER", 4)
    assert library.make(dataset.samples, 1).refused == 4
