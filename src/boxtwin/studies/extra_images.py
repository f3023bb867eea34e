"""The conditions that show the effect of images beside the data set: the same with and without them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

from boxtwin.studies.conditions import Row

Kind = Literal["unlabelled images", "empty images"]
# By the kind of a comparison, the value of a condition that its runs record (`boxtwin.run.extra_images`).
RECORDED: dict[Kind, str] = {"unlabelled images": "unlabelled_images", "empty images": "empty_images"}


def extra_image_pairs(rows: Sequence[Row]) -> list[tuple[Kind, Row, Row]]:
    """Each row with such images, and the row that differs in nothing but having none."""
    return [
        (kind, row, other)
        for (kind, key), row, other in itertools.product(RECORDED.items(), rows, rows)
        if key in row.values and other.values == {k: v for k, v in row.values.items() if k != key}
    ]
