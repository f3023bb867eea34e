"""A run without usable variations stops; a shortage is told with numbers."""

from __future__ import annotations

from typing import Any

import pytest

from boxtwin.errors import InputError
from boxtwin.synthesis.shortage import check_usable


def line(source: str, refused: str | None = None, **more: Any) -> dict[str, Any]:
    return {"source": source, "variation": 1, "labels": {"refused": refused}, **more}


def check(lines: list[dict[str, Any]], refused: list[dict[str, Any]], *, repeats: bool = False) -> None:
    wanted = len(lines) + len(refused)
    check_usable("store", lines, refused, wanted=wanted, training={"a", "b"}, repeats=repeats)


def test_a_run_without_variations_of_training_images_stops_with_the_reasons() -> None:
    lines = [line("a", "blank: all pixels are about 0"), line("b", "not confirmed"), line("validation")]
    missing = {"source": "c", "variation": 1, "reason": "no file for it"}
    with pytest.raises(InputError) as error:
        check(lines, [missing])
    assert "3 of 4 are left out" in str(error.value)
    for reason in (
        "1 blank, such as a v01: blank: all",
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


@pytest.mark.parametrize("repeats", [False, True])
def test_unchanged_variations_are_told_unless_they_are_meant_to_be(
    caplog: pytest.LogCaptureFixture, repeats: bool
) -> None:
    check([line("a", unchanged=True), line("b")], [], repeats=repeats)
    assert ("1 of 2 variations equal their sources" in caplog.text) is not repeats
