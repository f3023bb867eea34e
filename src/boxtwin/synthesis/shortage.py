"""What a run's variations lack: those that are missing or refused, by reason, with numbers and examples."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

from boxtwin.errors import InputError

log = logging.getLogger(__name__)


def check_usable(
    store: str,
    lines: Sequence[Mapping[str, Any]],
    refused: Iterable[Mapping[str, Any]],
    *,
    wanted: int,
    training: Container[str],
    repeats: bool,
) -> None:
    """Say how many of the variations that a run asks for can be used, where not all can.

    Args:
        store: its folder, for messages.
        lines: of the manifest, of the variations that are there.
        refused: what the generator could not have: source, variation and reason.
        wanted: the number of variations that was asked for.
        training: names of the training images, of which there must be some.
        repeats: whether the generator gives its sources back on purpose.

    Raises:
        InputError: none can be used; training would be on real images alone.
    """
    reasons: dict[str, list[str]] = defaultdict(list)
    for line, reason in (
        *((line, line["labels"]["refused"]) for line in lines if line["labels"]["refused"]),
        *((line, line["reason"]) for line in refused),
    ):
        # What stands before a colon is the kind of the reason.
        reasons[reason.split(":")[0]].append(f"{line['source']} v{line['variation']:02d}: {reason}")
    left_out = sum(map(len, reasons.values()))
    told = "\n".join(
        f"  {len(examples)} {kind}, such as {examples[0]}"
        for kind, examples in sorted(reasons.items(), key=lambda item: -len(item[1]))
    )
    if not any(line["source"] in training and not line["labels"]["refused"] for line in lines):
        raise InputError(
            f"{store}: no variation of a training image can be used, so training would be on real images alone. "
            f"{left_out} of {wanted} are left out:\n"
            f"{told}\n  Refused images are marked in annotations.json there: correct and confirm them (labels=manual), "
            "or make variations in another way"
        )
    if left_out:
        log.warning("%s: %d of %d variations are left out:\n%s", store, left_out, wanted, told)
    unchanged = [line for line in lines if line.get("unchanged")]
    if unchanged and not repeats:
        log.warning(
            "%s: %d of %d variations equal their sources in every pixel, such as %s v%02d: they bring nothing new",
            *(store, len(unchanged), wanted, unchanged[0]["source"], unchanged[0]["variation"]),
        )
