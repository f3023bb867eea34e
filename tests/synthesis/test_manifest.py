"""A run without usable variations stops; a shortage is reported with numbers; costs add up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from boxtwin.datasets.sample import DECISIONS, Judgement, PropagatedBox
from boxtwin.errors import InputError
from boxtwin.synthesis.generator import Model
from boxtwin.synthesis.manifest import LEARNING, Claimed, RefusedRecord, VariationRecord, check_usable, store_costs

KEPT, LOST = (PropagatedBox((0.0, 0.0, 1.0, 1.0), 0, decision, {}) for decision in DECISIONS[:3:2])
REQUEST: dict[str, Any] = {
    "source_sha256": "",
    "source_fingerprint": "",
    "variation": 1,
    "seed": 0,
    "generator": "repeat",
}


def line(
    source: str, refused: str | None = None, *, minutes: float | None = None, left: int = 0, lost: int = 0, **more: Any
) -> VariationRecord:
    rest = {"image": "", "image_sha256": "", "parameters": {}, "seconds": 0.0, "cost_usd": 0.0, **more}
    return VariationRecord(
        **REQUEST,
        **rest,
        source=source,
        model=Model("none", None),
        claimed=Claimed([], []),
        labels=Judgement((KEPT,) * left + (LOST,) * lost, refused, minutes),
    )


def check(
    lines: list[VariationRecord], refused: list[RefusedRecord], *, repeats: bool = False, objects: int = 0
) -> None:
    wanted, training = len(lines) + len(refused), {"a": objects, "b": 0}
    check_usable("store", lines, refused, wanted=wanted, training=training, repeats=repeats)


def test_a_run_without_variations_of_training_images_stops_with_the_reasons() -> None:
    lines = [line("a", "blank: all pixels are about 0"), line("b", "not confirmed"), line("validation")]
    missing = RefusedRecord(**REQUEST, source="c", reason="no file for it")
    with pytest.raises(InputError) as error:
        check(lines, [missing])
    assert "3 of 4 are left out" in str(error.value)
    for reason in (
        "1 blank, such as a v01: all",
        "1 not confirmed, such as b v01",
        "1 no file for it, such as c",
    ):
        assert reason in str(error.value)
    with pytest.raises(InputError):
        check([], [missing])


def test_a_partial_shortage_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    check([line("a"), line("b", "not confirmed"), line("c", "not confirmed")], [])
    assert "2 of 3 variations are left out" in caplog.text
    assert "2 not confirmed, such as b v01" in caplog.text
    caplog.clear()
    check([line("a"), line("b")], [])
    assert caplog.text == ""


def test_variations_that_lose_their_objects_are_told(caplog: pytest.LogCaptureFixture) -> None:
    lines = [line("a", left=1), line("a", lost=10), line("b", left=3, lost=2), line("validation", left=7)]
    check(lines, [], objects=10)  # 4 of 20 are left
    assert caplog.text == ""
    check(lines, [], objects=21)
    assert "have 4 boxes; with all objects of their sources they would have 42" in caplog.text
    caplog.clear()
    check([line("a"), line("b")], [], objects=1)
    assert "have 0 boxes; with all objects of their sources they would have 1" in caplog.text


@pytest.mark.parametrize("repeats", [False, True])
def test_unchanged_variations_are_told_unless_they_are_meant_to_be(
    caplog: pytest.LogCaptureFixture, repeats: bool
) -> None:
    check([line("a", unchanged=True), line("b")], [], repeats=repeats)
    assert ("1 of 2 variations equal their sources" in caplog.text) is not repeats


def test_seconds_dollars_and_minutes_add_up(tmp_path: Path) -> None:
    (tmp_path / LEARNING).write_text(json.dumps({"seconds": 4.5}) + "\n" + json.dumps({"seconds": 0.5}) + "\n")
    lines = [
        line("a", seconds=1.5, cost_usd=0.02, minutes=2.0),
        line("b", seconds=0.5, cost_usd=0.02, minutes=0.25),
        line("c", "blurred", seconds=1.0, cost_usd=0.02),
    ]
    assert store_costs(tmp_path, lines, by_hand=True) == {
        "time/store_fit": 5.0,
        "time/store_vary": 3.0,
        "data/cost_usd": pytest.approx(0.06),
        "data/label_minutes": 2.25,
    }


def test_unknown_costs_are_left_out(tmp_path: Path) -> None:
    assert set(store_costs(tmp_path, [line("a", minutes=1.0), line("b")], by_hand=True)) == {
        "time/store_vary",
        "data/cost_usd",
    }
    # Labels that nobody made by hand took nobody's time.
    assert store_costs(tmp_path, [line("a")], by_hand=False)["data/label_minutes"] == 0.0
    assert store_costs(tmp_path, [], by_hand=False)["time/store_vary"] == 0.0
