"""What a person changed in the labels of an image: boxes kept, moved, added and removed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from boxtwin.boxes import Box, iou_matrix
from boxtwin.labels.formats.labelled_image import LabelledBox

SAME_OBJECT = 0.3  # overlap from which a box of the same class is taken for the one that was there, moved


class Change(NamedTuple):
    """One box after a person has seen it, and what was there before it; ``box`` None: the box was removed."""

    box: LabelledBox | None
    before: LabelledBox | None

    @property
    def kind(self) -> str:
        """``kept``, ``moved``, ``added`` or ``removed``."""
        if self.box is None or self.before is None:
            return "removed" if self.box is None else "added"
        return "kept" if self.box.box == self.before.box else "moved"


KINDS = ("kept", "moved", "added", "removed")


def changes(
    before: Sequence[LabelledBox],
    after: Sequence[LabelledBox],
    rounding: float,
    size: tuple[int, int],
    as_written: Callable[[Box, int, int], Box] | None = None,
) -> list[Change]:
    """Pair the boxes of each class that overlap most, one with one, in an image of a ``size`` (width, height).

    A box whose sides inside the image all differ by at most ``rounding`` pixels was kept, and has the very numbers that
    it had before: tools cut off what overhangs the border. So was one that came back as a format writes it
    (``as_written``).
    A box of another class is another box. Kept and moved crowds stay crowds, which most tools do not know.
    """
    old = np.array([inside(each.box, *size) or each.box for each in before], dtype=np.float64).reshape(-1, 4)
    new = np.array([each.box for each in after], dtype=np.float64).reshape(-1, 4)
    alike = np.array([one.name == other.name for one in before for other in after], bool).reshape(len(old), len(new))
    same = (np.abs(old[:, None] - new[None]).max(axis=2, initial=0) <= rounding) & alike
    if as_written is not None:
        written = np.array([as_written(each.box, *size) for each in before], dtype=np.float64).reshape(-1, 4)
        same |= (written[:, None] == new[None]).all(axis=2) & alike
    overlaps = np.where(alike, iou_matrix(old, new), 0.0) + 2.0 * same
    partner: dict[int, int] = {}  # of new boxes
    for place in np.argsort(-overlaps, axis=None, kind="stable"):
        first, second = divmod(int(place), len(new))
        if overlaps[first, second] >= SAME_OBJECT and first not in partner.values() and second not in partner:
            partner[second] = first
    result = []
    for index, box in enumerate(after):
        was = before[partner[index]] if index in partner else None
        if was is not None:
            crowd = was.crowd or box.crowd
            is_kept = same[partner[index], index]
            box = was._replace(crowd=crowd) if is_kept else box._replace(crowd=crowd, area=None)
        result.append(Change(box, was))
    result += [Change(None, box) for index, box in enumerate(before) if index not in partner.values()]
    return result


def tally(all_changes: Sequence[Change]) -> dict[str, int]:
    """How many boxes each kind of change has."""
    kinds = [change.kind for change in all_changes]
    return {kind: kinds.count(kind) for kind in KINDS}


def inside(box: Box, width: int, height: int) -> Box | None:
    """A box cut off at the border of its image; None if nothing is left."""
    x1, y1, x2, y2 = box
    x1, y1, x2, y2 = max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))
    return (x1, y1, x2, y2) if x2 - x1 > 0 and y2 - y1 > 0 else None
