"""Which variations of a store a run can use, and what they cost."""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Container, Iterable, Sequence
from pathlib import Path

from boxtwin.errors import InputError
from boxtwin.synthesis.manifest import LEARNING, RefusedRecord, VariationRecord, whole_lines

log = logging.getLogger(__name__)


def check_usable(
    store: str,
    lines: Sequence[VariationRecord],
    refused: Iterable[RefusedRecord],
    *,
    wanted: int,
    training: Container[str],
    repeats: bool,
) -> None:
    """Log how many of the ``wanted`` variations of a run can be used, if not all can.

    Args:
        store: its folder, for messages.
        lines: of the variations that are there.
        refused: of the variations that could not be made.
        wanted: the number of variations that was asked for.
        training: names of the training images, of which there must be some.
        repeats: whether the generator gives its sources back on purpose.

    Raises:
        InputError: none can be used; training would be on real images alone.
    """
    examples: dict[str, list[str]] = defaultdict(list)  # by kind of reason, which stands before a colon
    reasons = {line.key: line.labels.refused for line in lines if line.labels.refused}
    for (source, number), reason in (reasons | {line.key: line.reason for line in refused}).items():
        examples[reason.split(":")[0]].append(f"{source} v{number:02d}: {reason}")
    left_out = sum(map(len, examples.values()))
    by_number = sorted(examples.items(), key=lambda item: -len(item[1]))
    summary = "\n".join(f"  {len(some)} {kind}, such as {some[0]}" for kind, some in by_number)
    if not any(line.source in training and not line.labels.refused for line in lines):
        raise InputError(
            f"{store}: no variation of a training image can be used, so training would be on real images alone. "
            f"{left_out} of {wanted} are left out:\n"
            f"{summary}\n  Refused images are marked in annotations.json there: correct and confirm them "
            "(labels=manual), or make variations in another way"
        )
    if left_out:
        log.warning("%s: %d of %d variations are left out:\n%s", store, left_out, wanted, summary)
    unchanged = [line for line in lines if line.unchanged]
    if unchanged and not repeats:
        example = f"{unchanged[0].source} v{unchanged[0].variation:02d}"
        log.warning(
            f"{store}: {len(unchanged)} of {wanted} variations equal their sources in every pixel, such as {example}: "
            "they bring nothing new"
        )


def store_costs(folder: Path, lines: Sequence[VariationRecord], *, by_hand: bool) -> dict[str, float]:
    """Metrics of what the variations of ``lines`` cost, whichever run or command paid for it; unknown ones are missing.

    Args:
        folder: of the store. The learning that images reused from another store needed is not known.
        lines: of its manifest.
        by_hand: whether a person made the labels. Then each line records the minutes, or they are unknown.
    """
    costs = {
        "time/store_vary": math.fsum(line.seconds for line in lines),
        "data/cost_usd": math.fsum(line.cost_usd for line in lines),
    }
    learning = whole_lines(folder / LEARNING)
    if learning:
        costs["time/store_fit"] = math.fsum(call["seconds"] for call in learning)
    minutes = [line.labels.minutes for line in lines if line.labels.refused is None] if by_hand else []
    known = [value for value in minutes if value is not None]
    if len(known) == len(minutes):
        costs["data/label_minutes"] = math.fsum(known)
    return costs
