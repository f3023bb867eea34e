"""One MLflow run for every condition of a study: mean, 95 % interval and number of seeds, beside its runs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from boxtwin.config.identity import short_hash
from boxtwin.studies.comparison import FIELDS, Contrast, Figures
from boxtwin.studies.conditions import Row
from boxtwin.studies.evidence import FIGURES
from boxtwin.studies.inference import Interval, hierarchical_interval
from boxtwin.tracking.mlflow_runs import Condition


def conditions(rows: Sequence[Row], contrasts: Sequence[Contrast], figures: Figures) -> list[Condition]:
    """What `boxtwin.tracking.mlflow_runs.Store.write_conditions` takes.

    Means are named as the figures of runs are, so that MLflow's table and charts have both in one column:
    ``test/map_50``, ``test/map_50_low``, ``test/map_50_high`` and ``seeds``. Differences to no variations are
    ``vs_x0/map_50`` with ``_low``, ``_high``, ``_p`` and ``_p_holm``, over ``vs_x0/pairs`` seeds.
    """
    against = {contrast.new.runs: contrast for contrast in contrasts if contrast.kind == "variations"}
    return [_condition(row, against.get(row.runs), figures) for row in rows]


def _condition(row: Row, contrast: Contrast | None, figures: Figures) -> Condition:
    metrics = {
        "seeds": float(len(row.seeds)),
        "data/real_images": row.real_images,
        "data/synthetic_images": row.synthetic_images,
        "minutes": row.minutes,
    }
    for figure in FIGURES:
        name = f"test/{figure}"
        metrics[name] = getattr(row, FIELDS[figure]).mean
        interval = _interval(row, figure, figures)
        if interval is not None:
            metrics |= {f"{name}_low": interval.low, f"{name}_high": interval.high}
        if contrast is None:
            continue
        name, found = f"vs_x0/{figure}", contrast.differences[figure]
        metrics |= {name: found.mean, f"{name}_p": found.p, f"{name}_p_holm": found.p_holm}
        if found.interval is not None:
            metrics |= {f"{name}_low": found.interval.low, f"{name}_high": found.interval.high}
        metrics["vs_x0/pairs"] = float(found.pairs)
    params = ("dataset", "split", "variations", "generator", "detector", "steps")
    return Condition(
        key=f"{row.dataset}-{row.setting}-{row.steps}-{_name(row)}-{short_hash(dict(row.values))}",
        name=_name(row),
        params={name: getattr(row, name) for name in params},
        metrics=metrics,
        tags={"boxtwin.setting": row.setting, "boxtwin.seeds": " ".join(map(str, row.seeds))},
    )


def _interval(row: Row, figure: str, figures: Figures) -> Interval | None:
    """Of the mean itself, over seeds and test images; None where one seed or no evidence gives none."""
    known = [values[figure] for run in row.runs if (values := figures.of(run)) is not None]
    images = {figures.images(run) for run in row.runs}
    if len(known) < max(2, len(row.runs)) or len(images) != 1:
        return None
    together = np.stack(known)
    return hierarchical_interval(together[:, 0], together[:, 1:], images=len(images.pop()))


def _name(row: Row) -> str:
    """A run's name without its seed."""
    return f"{row.split}-x{row.variations}-{row.generator}-{row.detector}"
