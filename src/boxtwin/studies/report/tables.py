"""The tables of a study in plain text and as CSV; those of the page are laid out in ``parts.html``."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from boxtwin.files import write_bytes_atomically
from boxtwin.studies.class_metrics import ClassMetrics, class_columns
from boxtwin.studies.comparison import Contrast, Difference, against_none
from boxtwin.studies.conditions import Estimate, Row, varied_settings
from boxtwin.studies.next_runs import Candidate
from boxtwin.studies.report.words import METRICS, number, sentence

NO_CLASSES: Mapping[str, Sequence[ClassMetrics]] = MappingProxyType({})
MOST_CLASSES = 30  # that the page and the terminal show; comparison.csv has all
CHANGED = ("map", "map_50", "count_mae")  # in the order of comparison.csv


def aligned(lines: Sequence[Sequence[str]], words: Collection[int]) -> list[str]:
    """Lines of equal columns: those with the numbers in ``words`` to the left, others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(
            entry.ljust(width) if place in words else entry.rjust(width)
            for place, (entry, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]


def _ranged(metric: str, estimate: Estimate) -> str:
    low, mean, high = (METRICS[metric].form(value) for value in (estimate.low, estimate.mean, estimate.high))
    return f"{mean} [{low}, {high}]" if len(estimate.by_seed) > 1 else mean


def _signed(metric: str, value: Estimate | Difference | None) -> str:
    return "" if value is None else METRICS[metric].form(value.mean, signed=True)


def text_table(rows: Sequence[Row], contrasts: Sequence[Contrast] = ()) -> list[str]:
    """The table in plain text; AP in percent, ranges in brackets are least and greatest over seeds."""
    varied, by_row = varied_settings(rows), against_none(contrasts)
    headings = [*varied, "split", "variations", "generator", "seeds", "AP", "AP50", "vs x0", "count MAE", "vs x0"]
    lines = [[*headings, "bias", "real", "synthetic", "minutes"]]
    for row in rows:
        changes = by_row.get(row.runs, {})
        lines.append(
            [
                *(row.setup.get(setting, "") for setting in varied),
                row.split,
                str(row.variations),
                row.generator,
                str(len(row.seeds)),
                _ranged("map", row.estimates["map"]),
                _ranged("map_50", row.estimates["map_50"]),
                _signed("map_50", changes.get("map_50")),
                _ranged("count_mae", row.estimates["count_mae"]),
                _signed("count_mae", changes.get("count_mae")),
                _signed("count_bias", row.estimates["count_bias"]),
                number(row.real_images, 0),
                number(row.synthetic_images, 0),
                number(row.minutes, 1),
            ]
        )
    return aligned(lines, {*range(len(varied) + 1), len(varied) + 2})


def class_text(by_class: Mapping[str, Sequence[ClassMetrics]]) -> list[str]:
    """The table by class in plain text, a line for each condition below the name of the class; none for one class."""
    lines = [["condition", "AP", "AP50", "AP50 vs x0", "count MAE", "MAE vs x0", "bias", "threshold"]]
    shown = dict(list(by_class.items())[:MOST_CLASSES])
    for each in (each for conditions in shown.values() for each in conditions):
        means = {metric: METRICS[metric].form(estimate.mean) for metric, estimate in each.estimates.items()}
        ap50_change, mae_change = (_signed(metric, each.changes.get(metric)) for metric in ("map_50", "count_mae"))
        bias = _signed("count_bias", each.estimates["count_bias"])
        line = [each.row.name, means["map"], means["map_50"], ap50_change, means["count_mae"], mae_change, bias]
        lines.append([*line, means["count_threshold"]])
    heading, *rest = (f"  {line}" for line in aligned(lines, {0}))
    text, body = ["By class", heading], iter(rest)
    for name, conditions in shown.items():
        text += [name, *(next(body) for _ in conditions)]
    return text if shown else []


def write_csv(
    rows: Sequence[Row],
    path: Path,
    contrasts: Sequence[Contrast] = (),
    by_class: Mapping[str, Sequence[ClassMetrics]] = NO_CLASSES,
) -> None:
    """One line per condition, unrounded; AP in [0, 1] as in MLflow. Empty: not known.

    What ``by_class`` has (see `boxtwin.studies.class_metrics`) stands in columns such as ``NAME/map_50_mean``.
    """
    by_row = against_none(contrasts)
    plain = ("dataset", "detector", "setting", "steps", "split", "generator", "variations")
    varied = sorted({key for row in rows for key in row.varied} - set(plain))
    lines: list[dict[str, object]] = []
    for row in rows:
        line: dict[str, object] = {name: getattr(row, name) for name in plain}
        line |= {name: row.varied.get(name) for name in varied} | {"seeds": " ".join(map(str, row.seeds))}
        line |= {name: getattr(row, name) for name in ("real_images", "synthetic_images", "minutes")}
        for name, estimate in row.estimates.items():
            line |= {f"{name}_mean": estimate.mean, f"{name}_min": estimate.low, f"{name}_max": estimate.high}
        changes = by_row.get(row.runs, {})
        for name in CHANGED:
            for column, field in {"": "mean", "_min": "low", "_max": "high", "_pairs": "pairs"}.items():
                line[f"{name}_change{column}"] = getattr(changes[name], field) if changes else None
        for name in CHANGED:
            interval = changes[name].interval if changes else None
            line |= {f"{name}_change_{end}95": getattr(interval, end, None) for end in ("low", "high")}
            line |= {f"{name}_change_{p}": getattr(changes[name], p) if changes else None for p in ("p", "p_holm")}
        lines.append(line | class_columns(by_class, row))
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]) if lines else plain, lineterminator="\n")
    writer.writeheader()
    for line in lines:
        writer.writerow({k: None if isinstance(v, float) and math.isnan(v) else v for k, v in line.items()})
    write_bytes_atomically(path, text.getvalue().encode())


def candidates_table(candidates: Sequence[Candidate]) -> list[str]:
    """Half widths, number of runs and minutes of each candidate; empty without any."""
    lines = [["", "± now", "± then", "runs", "minutes", "what to run"]]
    for place, each in enumerate(candidates, start=1):
        widths = ("-" if width is None else METRICS["map_50"].form(width) for width in (each.now, each.after))
        additions = sentence("additions", candidate=each)
        lines.append([str(place), *widths, str(each.runs), number(each.minutes, 0), additions])
    return aligned(lines, {5}) if candidates else []
