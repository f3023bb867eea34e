import json
from pathlib import Path
from typing import Any

import pytest

from boxtwin.synthesis.costs import LEARNING, store_costs


def line(
    seconds: float, usd: float = 0.0, *, minutes: float | None = None, refused: str | None = None
) -> dict[str, Any]:
    labels = {"refused": refused} | ({} if minutes is None else {"minutes": minutes})
    return {"seconds": seconds, "cost_usd": usd, "labels": labels}


def test_seconds_dollars_and_minutes_add_up(tmp_path: Path) -> None:
    (tmp_path / LEARNING).write_text(json.dumps({"seconds": 4.5}) + "\n" + json.dumps({"seconds": 0.5}) + "\n")
    lines = [line(1.5, 0.02, minutes=2.0), line(0.5, 0.02, minutes=0.25), line(1.0, 0.02, refused="blurred")]
    assert store_costs(tmp_path, lines, by_hand=True) == {
        "time/store_fit": 5.0,
        "time/store_vary": 3.0,
        "data/cost_usd": pytest.approx(0.06),
        "data/label_minutes": 2.25,
    }


def test_what_nobody_wrote_down_is_left_out(tmp_path: Path) -> None:
    assert set(store_costs(tmp_path, [line(1.0, minutes=1.0), line(1.0)], by_hand=True)) == {
        "time/store_vary",
        "data/cost_usd",
    }
    # Labels that nobody made by hand took nobody's time.
    assert store_costs(tmp_path, [line(1.0)], by_hand=False)["data/label_minutes"] == 0.0
    assert store_costs(tmp_path, [], by_hand=False)["time/store_vary"] == 0.0
