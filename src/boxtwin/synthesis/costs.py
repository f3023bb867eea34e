"""What variations cost: seconds of learning and drawing, dollars, minutes of a person, from their store's files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from boxtwin.synthesis.manifest import whole_lines

LEARNING = "learning.jsonl"  # in a store: the seconds that each call of its generator's `fit` took


def store_costs(folder: Path, lines: Sequence[Mapping[str, Any]], *, by_hand: bool) -> dict[str, float]:
    """Metrics of what the variations of ``lines`` cost, whichever run or command paid for it; without the unknown.

    Args:
        folder: of the store. Where it took its images over from another one, what that had learnt is not known.
        lines: of its manifest.
        by_hand: whether labels are a person's. Then each line says how many minutes they took, or nobody knows.
    """
    costs = {
        "time/store_vary": math.fsum(line["seconds"] for line in lines),
        "data/cost_usd": math.fsum(line["cost_usd"] for line in lines),
    }
    learning = whole_lines(folder / LEARNING)
    if learning:
        costs["time/store_fit"] = math.fsum(call["seconds"] for call in learning)
    minutes = [line["labels"].get("minutes") for line in lines if line["labels"]["refused"] is None]
    if not by_hand:
        costs["data/label_minutes"] = 0.0
    elif None not in minutes:
        costs["data/label_minutes"] = math.fsum(minutes)
    return costs
