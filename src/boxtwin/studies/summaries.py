"""One MLflow run for every condition of a study: mean, 95 % interval and number of seeds, beside its runs."""

from __future__ import annotations

from collections.abc import Mapping

from boxtwin.config.identity import short_hash
from boxtwin.studies.comparison import Difference, ResampledMetrics, against_none
from boxtwin.studies.conditions import Row
from boxtwin.studies.evidence import COMPARED
from boxtwin.studies.inference import Interval, interval_of
from boxtwin.studies.study import Study
from boxtwin.tracking.mlflow_runs import Condition

PARAMS = ("dataset", "split", "variations", "generator", "detector", "steps")


def conditions(study: Study) -> list[Condition]:
    """Means are named as the metrics of runs are, so that MLflow has both in one column: ``test/map_50``, with
    ``test/map_50_low`` and ``test/map_50_high``. Differences to no variations are ``vs_x0/map_50`` with ``_low``,
    ``_high``, ``_p`` and ``_p_holm``, over ``vs_x0/pairs`` seeds.
    """
    differences = against_none(study.contrasts)
    return [_condition(row, differences.get(row.runs, {}), study.resampled) for row in study.rows]


def _condition(row: Row, differences: Mapping[str, Difference], resampled: ResampledMetrics) -> Condition:
    metrics = {
        "seeds": float(len(row.seeds)),
        "data/real_images": row.real_images,
        "data/synthetic_images": row.synthetic_images,
        "minutes": row.minutes,
    }
    for metric in COMPARED:
        metrics[f"test/{metric}"] = row.estimates[metric].mean
        metrics |= _ends(f"test/{metric}", _interval(row, metric, resampled))
    for metric, each in differences.items():
        name = f"vs_x0/{metric}"
        metrics |= {name: each.mean, f"{name}_p": each.p, f"{name}_p_holm": each.p_holm}
        metrics |= _ends(name, each.interval) | {"vs_x0/pairs": float(each.pairs)}
    name = f"{row.split}-x{row.variations}-{row.generator}-{row.detector}"  # of a run, without its seed
    return Condition(
        key=f"{row.dataset}-{row.setting}-{row.steps}-{name}-{short_hash(dict(row.values))}",
        name=name,
        params={param: getattr(row, param) for param in PARAMS},
        metrics=metrics,
        tags={"boxtwin.setting": row.setting, "boxtwin.seeds": " ".join(map(str, row.seeds))},
    )


def _ends(name: str, interval: Interval | None) -> dict[str, float]:
    return {} if interval is None else {f"{name}_low": interval.low, f"{name}_high": interval.high}


def _interval(row: Row, metric: str, resampled: ResampledMetrics) -> Interval | None:
    """Of the mean itself, over seeds and test images; None where one seed or no evidence gives none."""
    values, images = resampled.of_row(metric, row, row.seeds), {resampled.images(run) for run in row.runs}
    return interval_of(values, len(images.pop())) if values is not None and len(images) == 1 else None
