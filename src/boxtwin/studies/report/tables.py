"""The tables of a study in plain text and as CSV; those of the page are laid out in ``parts.html``."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Collection, Mapping, Sequence
from functools import reduce
from pathlib import Path
from types import MappingProxyType

from boxtwin.files import write_bytes_atomically
from boxtwin.studies.comparison import Contrast, Difference, against_none
from boxtwin.studies.condition_values import EPOCHS
from boxtwin.studies.conditions import ESTIMATED, Estimate, Row, varied_settings
from boxtwin.studies.evidence import COMPARED
from boxtwin.studies.next_runs import Candidate
from boxtwin.studies.relabelled import Relabelled
from boxtwin.studies.report.words import METRICS, number, sentence
from boxtwin.studies.slices import CLASS_METRICS, ClassMetrics
from boxtwin.studies.slices import COMPARED as SLICED

NO_CLASSES: Mapping[str, Sequence[ClassMetrics]] = MappingProxyType({})
MOST_CLASSES = 30  # that the page and the terminal show; comparison.csv has all
OF_VARIATIONS = ("variations", "generator", "synthetic", "vs x0", "AP50 vs x0", "MAE vs x0")  # headings in plain text
# Columns of comparison.csv for a metric, and the attributes of estimates and differences that they hold.
SPREAD = {"mean": "mean", "min": "low", "max": "high"}
CHANGE = {"change": "mean", "change_min": "low", "change_max": "high", "change_pairs": "pairs"}
INTERVAL = {"change_low95": "interval.low", "change_high95": "interval.high"}
TEST = {"change_p": "p", "change_p_holm": "p_holm"}


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
    if isinstance(value, Difference) and not value.pairs:
        return ""  # a difference of means of other seeds is none of pairs
    return "" if value is None else METRICS[metric].form(value.mean, signed=True)


def text_table(rows: Sequence[Row], contrasts: Sequence[Contrast] = ()) -> list[str]:
    """The table in plain text; AP in percent, ranges in brackets are least and greatest over seeds."""
    varied, by_row = varied_settings(rows), against_none(contrasts)
    headings = [*varied, "split", "variations", "generator", "seeds", "AP", "AP50", "vs x0", "count MAE", "vs x0"]
    with_steps = any(EPOCHS in row.values for row in rows)  # else they are among the settings that vary
    lines = [[*headings, "bias", "real", "synthetic", *(["steps"] if with_steps else []), "minutes"]]
    for row in rows:
        changes, estimates = by_row.get(row.run_ids, {}), row.estimates
        described = [*(row.setup.get(setting, "") for setting in varied), row.split, str(row.variations), row.generator]
        measured = [_ranged("map", estimates["map"])]
        for metric in ("map_50", "count_mae"):
            measured += [_ranged(metric, estimates[metric]), _signed(metric, changes.get(metric))]
        images = [number(amount, 0) for amount in (row.real_images, row.synthetic_images)]
        images += [str(row.first.steps)] if with_steps else []
        rest = [_signed("count_bias", estimates["count_bias"]), *images, number(row.minutes, 1)]
        lines.append([*described, str(len(row.seeds)), *measured, *rest])
    alone = bool(rows) and rows[0].alone
    return aligned(_compared(lines, alone), {*range(len(varied) + 1), *([] if alone else [len(varied) + 2])})


def _compared(lines: Sequence[Sequence[str]], alone: bool) -> list[list[str]]:
    """Lines below headings, of a study without variations without the columns that say something of them."""
    return [
        [each for each, head in zip(line, lines[0], strict=True) if not (alone and head in OF_VARIATIONS)]
        for line in lines
    ]


def class_text(by_class: Mapping[str, Sequence[ClassMetrics]]) -> list[str]:
    """The table by class in plain text, a line for each condition below the name of the class; none for one class."""
    headings = ("condition", "AP", "AP50", "AP50 vs x0", "count MAE", "MAE vs x0", "bias", "threshold")
    lines, shown = [headings], list(by_class.items())[:MOST_CLASSES]
    for each in (each for _, conditions in shown for each in conditions):
        means = {metric: METRICS[metric].form(estimate.mean) for metric, estimate in each.estimates.items()}
        ap50_change, mae_change = (_signed(metric, each.changes.get(metric)) for metric in ("map_50", "count_mae"))
        bias, threshold = _signed("count_bias", each.estimates["count_bias"]), means["count_threshold"]
        changed = (means["map_50"], ap50_change, means["count_mae"], mae_change)
        lines.append((each.row.name, means["map"], *changed, bias, threshold))
    alone = bool(shown) and shown[0][1][0].row.alone
    heading, *rest = (f"  {line}" for line in aligned(_compared(lines, alone), {0}))
    text, body = ["By class", heading], iter(rest)
    for name, conditions in shown:
        text += [name, *(next(body) for _ in conditions)]
    return text if shown else []


def relabelled_text(each: Relabelled) -> list[str]:
    """Each condition under both versions of the labels, in plain text."""
    words = ("as given", "suspects right" if each.suspected else "corrected")
    lines = [("condition", "labels", "AP", "AP50", "vs x0", "count MAE", "vs x0", "bias")]
    for before, changes_before, after, changes_after in each.pairs:
        for name, version, row, changes in (
            (before.name, words[0], before, changes_before),
            ("", words[1], after, changes_after),
        ):
            means = {metric: METRICS[metric].form(row.estimates[metric].mean) for metric in ("map", *SLICED)}
            bias = _signed("count_bias", row.estimates["count_bias"])
            ap50, mae = ((means[metric], _signed(metric, changes.get(metric))) for metric in SLICED)
            lines.append((name, version, means["map"], *ap50, *mae, bias))
    return aligned(_compared(lines, bool(each.pairs) and each.pairs[0][0].alone), {0, 1})


def write_csv(
    rows: Sequence[Row],
    path: Path,
    contrasts: Sequence[Contrast] = (),
    by_class: Mapping[str, Sequence[ClassMetrics]] = NO_CLASSES,
) -> None:
    """One line per condition, unrounded; AP in [0, 1] as in MLflow. Empty: not known.

    What ``by_class`` has (see `boxtwin.studies.slices.class_metrics`) stands in columns such as ``NAME/map_50_mean``.
    """
    by_row = against_none(contrasts)
    of_run, plain = ("dataset", "detector", "setting", "steps"), ("split", "generator", "variations")
    varied = sorted({key for row in rows for key in row.varied} - {*of_run, *plain})
    lines: list[dict[str, object]] = []
    for row in rows:
        line: dict[str, object] = {name: getattr(row.first, name) for name in of_run}
        line |= {name: getattr(row, name) for name in plain}
        line |= {name: row.varied.get(name) for name in varied} | {"seeds": " ".join(map(str, row.seeds))}
        line |= {name: getattr(row, name) for name in ("real_images", "synthetic_images", "minutes")}
        changes = by_row.get(row.run_ids, {})
        line |= _columns(row.estimates, ESTIMATED, SPREAD) | _columns(changes, COMPARED, CHANGE)
        line |= _columns(changes, COMPARED, INTERVAL | TEST)
        for name, conditions in by_class.items():
            of_row = next((each for each in conditions if each.row.run_ids == row.run_ids), None)
            estimates, changes = (of_row.estimates, of_row.changes) if of_row else ({}, {})
            for metric in CLASS_METRICS:
                line |= _columns(estimates, [metric], SPREAD, name)
                line |= _columns(changes, [metric], {key: CHANGE[key] for key in ("change", "change_pairs")}, name)
            line |= _columns(changes, SLICED, INTERVAL, name)
        lines.append(line)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]) if lines else [*of_run, *plain], lineterminator="\n")
    writer.writeheader()
    for line in lines:
        writer.writerow({k: None if isinstance(v, float) and math.isnan(v) else v for k, v in line.items()})
    write_bytes_atomically(path, text.getvalue().encode())


def _columns(
    values: Mapping[str, object], metrics: Sequence[str], columns: Mapping[str, str], name: str = ""
) -> dict[str, object]:
    """Entries of a line of comparison.csv by column; None where a metric, or a part of it, is not known."""
    return {
        f"{name and name + '/'}{metric}_{column}": reduce(
            lambda value, part: getattr(value, part, None), path.split("."), values.get(metric)
        )
        for metric in metrics
        for column, path in columns.items()
    }


def candidates_table(candidates: Sequence[Candidate]) -> list[str]:
    """Half widths, number of runs and minutes of each candidate; empty without any."""
    lines = [["", "± now", "± then", "runs", "minutes", "what to run"]]
    for place, each in enumerate(candidates, start=1):
        widths = ("-" if width is None else METRICS["map_50"].form(width) for width in (each.now, each.after))
        additions = sentence("additions", candidate=each)
        lines.append([str(place), *widths, str(each.runs), number(each.minutes, 0), additions])
    return aligned(lines, {5}) if candidates else []
