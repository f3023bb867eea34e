"""The same comparison on several draws of as many training images: their choice is in no interval on one draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from boxtwin.studies.comparison import PRIMARY_METRIC, Contrast, Difference, ResampledMetrics, difference
from boxtwin.studies.condition_values import part_of
from boxtwin.studies.conditions import Row, paired_seeds
from boxtwin.studies.evidence import change_limits
from boxtwin.studies.inference import Interval, interval_of
from boxtwin.studies.label_versions import LabelVersions

OF_DRAW = ("store", "pretraining_images")  # may follow from which images are trained on


@dataclass(frozen=True)
class Draws:
    """A comparison, by AP50, on each draw, and the interval of its mean over draws, seeds and test images."""

    contrast: Contrast
    changes: Sequence[Difference]  # that of the contrast first
    interval: Interval | None

    @property
    def mean(self) -> float:
        return float(np.mean([change.mean for change in self.changes]))


def repeated_draws(rows: Sequence[Row], contrasts: Sequence[Contrast], resampled: ResampledMetrics) -> list[Draws]:
    """Comparisons that were made on several draws: the primary ones, or else all with variations or pre-training."""
    primary = [each for each in contrasts if each.kind == "primary"]
    asked = primary or [each for each in contrasts if each.kind in ("variations", "pretraining")]
    found: dict[object, Draws] = {}
    for contrast in sorted(asked, key=lambda each: -each.differences[PRIMARY_METRIC].pairs):
        new, old = contrast.new, contrast.old
        others = [_on_other_draws(row, rows) for row in (new, old)]
        same = [(others[0][draw], others[1][draw]) for draw in others[0] if draw in others[1]]
        pairs = [(new, old), *(pair for pair in same if paired_seeds(*pair))]
        key = frozenset((pair[0].run_ids, pair[1].run_ids) for pair in pairs)
        if len(pairs) > 1 and paired_seeds(new, old) and key not in found and _draw(new) == _draw(old):
            changes = [difference(PRIMARY_METRIC, *pair, resampled, tested=False) for pair in pairs]
            found[key] = Draws(contrast, changes, _interval(pairs, resampled))
    return list(found.values())


def _draw(row: Row) -> str | None:
    return row.values.get("data.train")


def _on_other_draws(row: Row, rows: Sequence[Row]) -> dict[str | None, Row]:
    """The same condition on other images, as many, by their hash; the same images with other labels are none."""
    versions = LabelVersions(rows)

    def shared(row: Row) -> dict[str, str]:
        return {key: value for key, value in row.values.items() if part_of(key) != "split" and key not in OF_DRAW}

    return {
        _draw(other): other
        for other in rows
        if _draw(other) != _draw(row)
        and (other.first.images != row.first.images or not row.first.images)
        and versions.of(other) == versions.of(row)
        and other.real_images == row.real_images
        and shared(other) == shared(row)
    }


def _interval(pairs: Sequence[tuple[Row, Row]], resampled: ResampledMetrics) -> Interval | None:
    by_draw = []
    for pair in pairs:
        after, before = (resampled.of_row(PRIMARY_METRIC, row, paired_seeds(*pair)) for row in pair)
        if after is None or before is None:
            return None
        by_draw.append((after - before).mean(axis=0))
    images = len(resampled.images(pairs[0][0].run_ids[0]))
    return interval_of(np.stack(by_draw), images, limits=change_limits(PRIMARY_METRIC))
