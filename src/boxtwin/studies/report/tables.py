"""The tables of a study: in plain text, for the page, and as CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from boxtwin.files import write_bytes_atomically
from boxtwin.studies.class_figures import ClassChange, ClassFigures, class_columns
from boxtwin.studies.comparison import Contrast, Difference, against_none
from boxtwin.studies.conditions import Estimate, Row, varied_settings
from boxtwin.studies.inference import LEAST_PAIRS
from boxtwin.studies.next_runs import Candidate
from boxtwin.studies.report.words import METRICS, number, sentence, several

NO_CLASSES: Mapping[str, Sequence[ClassFigures]] = MappingProxyType({})
MOST_CLASSES = 30  # that the page and the terminal show; comparison.csv has all
CHANGED = ("map", "map_50", "count_mae")  # in the order of comparison.csv


@dataclass(frozen=True)
class Entry:
    """One entry of the page's table: what it says, and smaller below, how sure that is."""

    main: str
    detail: str = ""


Group = tuple[str, tuple[tuple[Entry, ...], ...]]


@dataclass(frozen=True)
class Table:
    """A table of the page; ``groups`` are parts of its body, each below a line of its own where it has a title."""

    headings: tuple[str, ...]
    groups: tuple[Group, ...]


def _spread(estimate: Estimate, metric: str) -> Entry:
    """A mean over seeds, above the least and the greatest."""
    low, mean, high = (METRICS[metric].form(value) for value in (estimate.low, estimate.mean, estimate.high))
    return Entry(mean, f"{low} to {high}" if len(estimate.by_seed) > 1 else "")


def _signed(metric: str, value: float) -> str:
    return METRICS[metric].form(value, signed=True)


def _change(metric: str, change: Difference | ClassChange | None) -> Entry:
    """A mean change above its interval; empty for a condition that is compared with nothing."""
    if change is None:
        return Entry("")
    interval = change.interval
    detail = f"{_signed(metric, interval.low)} to {_signed(metric, interval.high)}" if interval else ""
    return Entry(_signed(metric, change.mean), detail)


def _compared(metric: str, differences: Mapping[str, Difference]) -> tuple[Entry, Entry]:
    """A difference with its interval, and its p; empty for a condition that is compared with nothing."""
    change = differences.get(metric)
    if change is None:
        return Entry(""), Entry("")
    if change.pairs < LEAST_PAIRS or math.isnan(change.p_holm):
        p = Entry("too few", several(change.pairs, "pair"))
    else:
        text = sentence("p_value", p=change.p_holm)
        p = Entry(text, f"of {change.family}" if change.family > 1 else "")
    return _change(metric, change), p


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


def text_table(rows: Sequence[Row], contrasts: Sequence[Contrast] = ()) -> list[str]:
    """The table in plain text; AP in percent, ranges in brackets are least and greatest over seeds."""
    varied = varied_settings(rows)
    headings = [*varied, "split", "variations", "generator", "seeds", "AP", "AP50", "vs x0", "count MAE", "vs x0"]
    lines = [[*headings, "bias", "real", "synthetic", "minutes"]]
    entries = [line for _, body in page_table(rows, contrasts).groups for line in body]
    for row, (_, ap, ap50, ap50_change, _, mae, mae_change, _, bias, _, minutes) in zip(rows, entries, strict=True):
        names = [*(row.setup.get(setting, "") for setting in varied), row.split, str(row.variations), row.generator]
        ap_ranged, ap50_ranged, mae_ranged = (
            f"{each.main} [{each.detail.replace(' to ', ', ')}]" if each.detail else each.main
            for each in (ap, ap50, mae)
        )
        figures = [ap_ranged, ap50_ranged, ap50_change.main, mae_ranged, mae_change.main, bias.main]
        images = [number(row.real_images, 0), number(row.synthetic_images, 0)]
        lines.append([*names, str(len(row.seeds)), *figures, *images, minutes.main])
    return aligned(lines, {*range(len(varied) + 1), len(varied) + 2})


def page_table(rows: Sequence[Row], contrasts: Sequence[Contrast]) -> Table:
    """The page's table, each difference to no variations with its interval and corrected p."""
    by_row = against_none(contrasts)
    headings = ("condition", "AP", "AP50", "AP50 vs x0", "p", "count MAE", "MAE vs x0", "p", "bias", "images")
    lines = tuple(
        (
            Entry(row.name, several(len(row.seeds), "seed")),
            _spread(row.estimates["map"], "map"),
            _spread(row.estimates["map_50"], "map_50"),
            *_compared("map_50", by_row.get(row.runs, {})),
            _spread(row.estimates["count_mae"], "count_mae"),
            *_compared("count_mae", by_row.get(row.runs, {})),
            Entry(_signed("count_bias", row.estimates["count_bias"].mean)),
            Entry(
                f"{number(row.real_images, 0)} real",
                f"{number(row.synthetic_images, 0)} synthetic" if row.variations else "",
            ),
            Entry(number(row.minutes, 1)),
        )
        for row in rows
    )
    return Table((*headings, "minutes"), (("", lines),) if lines else ())


def write_csv(
    rows: Sequence[Row],
    path: Path,
    contrasts: Sequence[Contrast] = (),
    by_class: Mapping[str, Sequence[ClassFigures]] = NO_CLASSES,
) -> None:
    """One line per condition, unrounded; AP in [0, 1] as in MLflow. Empty: not known.

    What ``by_class`` has (see `boxtwin.studies.class_figures`) stands in columns such as ``NAME/map_50_mean``.
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


def class_table(by_class: Mapping[str, Sequence[ClassFigures]]) -> Table:
    """A group for each class, with a line for each condition; empty for one class."""
    headings = ("condition", "AP", "AP50", "AP50 vs x0", "count MAE", "MAE vs x0", "bias", "threshold")
    groups = [
        (
            name,
            tuple(
                (
                    Entry(each.row.name),
                    _spread(each.estimates["map"], "map"),
                    _spread(each.estimates["map_50"], "map_50"),
                    _change("map_50", each.changes.get("map_50")),
                    _spread(each.estimates["count_mae"], "count_mae"),
                    _change("count_mae", each.changes.get("count_mae")),
                    Entry(_signed("count_bias", each.estimates["count_bias"].mean)),
                    _spread(each.estimates["count_threshold"], "count_threshold"),
                )
                for each in conditions
            ),
        )
        for name, conditions in list(by_class.items())[:MOST_CLASSES]
    ]
    return Table(headings, tuple(groups))


def class_text(by_class: Mapping[str, Sequence[ClassFigures]]) -> list[str]:
    """The table by class in plain text, a line for each condition below the name of the class; none for one class."""
    table = class_table(by_class)
    if not table.groups:
        return []
    entries = [[entry.main for entry in line] for _, lines in table.groups for line in lines]
    heading, *body = (f"  {line}" for line in aligned([table.headings, *entries], {0}))
    text, rest = ["By class", heading], iter(body)
    for name, lines in table.groups:
        text += [name, *(next(rest) for _ in lines)]
    return text


def candidates_table(candidates: Sequence[Candidate]) -> list[str]:
    """What the candidates would settle and take; empty without any."""
    lines = [["", "± now", "± then", "runs", "minutes", "what to run"]]
    for place, each in enumerate(candidates, start=1):
        widths = ("-" if width is None else METRICS["map_50"].form(width) for width in (each.now, each.after))
        additions = sentence("additions", candidate=each)
        lines.append([str(place), *widths, str(each.runs), number(each.minutes, 0), additions])
    return aligned(lines, {5}) if candidates else []
