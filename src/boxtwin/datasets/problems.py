"""Problems of a data set, collected so that one error names them all, and remarks on it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from boxtwin.errors import InputError

OFFENDERS_SHOWN = 10
KINDS_IN_FIRST_LINE = 3
LONGEST_SHOWN = 250  # characters of a text from a file


@dataclass
class Problems:
    """Offenders by kind of problem, how to repair each kind where that is not plain, and remarks on what is allowed."""

    offenders: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    cures: dict[str, str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    def add(self, kind: str, offender: object, cure: str = "") -> None:
        """Add an offender of a kind."""
        self.offenders[kind].append(shown(offender))
        if cure:
            self.cures[kind] = cure

    def remark(self, images: Sequence[str], what: str, advice: str) -> None:
        """Remark on annotations, by the names of their images; no remark if there are none."""
        if images:
            self.remarks.append(f"{len(images)} {what}, in {some(sorted({*images}))}: {advice}")

    def raise_if_any(self, annotations: Path) -> None:
        """Raise one `InputError` that tells everything; its first line names the kinds."""
        if not self.offenders:
            return
        kinds = [f"{kind}: {len(offenders)}" for kind, offenders in self.offenders.items()]
        first = "; ".join(kinds[:KINDS_IN_FIRST_LINE])
        if len(kinds) > KINDS_IN_FIRST_LINE:
            first += f"; and {len(kinds) - KINDS_IN_FIRST_LINE} other kinds of problem"
        lines = [f"{annotations}: {first}. Nothing was used."]
        for kind, offenders in zip(kinds, self.offenders.values(), strict=True):
            lines += [f"  {kind}", *(f"    {offender}" for offender in offenders[:OFFENDERS_SHOWN])]
            if len(offenders) > OFFENDERS_SHOWN:
                lines.append(f"    … and {len(offenders) - OFFENDERS_SHOWN} more")
        lines += dict.fromkeys(self.cures.values()) or ["Mend the file or the folder and start again."]
        raise InputError("\n".join(lines))


def shown(value: object) -> str:
    """A value from a file as it can be printed on one line: no control characters, and not too long."""
    text = str(value)
    if len(text) > LONGEST_SHOWN:
        text = f"{text[:LONGEST_SHOWN]}… ({len(text)} characters)"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def some(names: list[str], most: int = 3) -> str:
    """The first few of many names."""
    listed = ", ".join(shown(name) for name in names[:most])
    return listed if len(names) <= most else f"{listed} and {len(names) - most} more"
