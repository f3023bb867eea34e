"""The table of a study: in plain text, for the page, and as CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from boxtwin.files import write_bytes_atomically
from boxtwin.studies.class_figures import MOST_CLASSES, ClassChange, ClassFigures, class_columns
from boxtwin.studies.comparison import Contrast, Difference
from boxtwin.studies.conditions import Estimate, Row, prefixes, varied_settings
from boxtwin.studies.costs import costs
from boxtwin.studies.inference import LEAST_PAIRS
from boxtwin.studies.report.numbers import count, number, percent
from boxtwin.studies.runs import Cell
from boxtwin.studies.slices import CountErrors, SliceFigure, Slicing

SLICE_TITLES = {"size": "By size of the objects", "crowding": "By crowding", "scene": "By scene"}
NO_CLASSES: Mapping[str, Sequence[ClassFigures]] = MappingProxyType({})
WORDS = ("split", "generator")  # columns that are no numbers, beside the settings that differ


@dataclass(frozen=True)
class Entry:
    """One entry of the page's table: what it says, and smaller below, how sure that is."""

    main: str
    detail: str = ""


def table_columns(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Headings and formatted entries; AP in percent, ranges in brackets are least and greatest over seeds."""
    varied = varied_settings(rows)
    headings = [
        *varied,
        "split",
        "variations",
        "generator",
        "seeds",
        "AP",
        "AP50",
        "vs x0",
        "count MAE",
        "vs x0",
        "bias",
    ]
    headings += ["real", "synthetic", "minutes"]
    body = []
    for row in rows:
        changes = (row.ap50_change, percent), (row.count_mae_change, count)
        ap50_change, mae_change = ("" if c is None else form(c.mean, signed=True) for c, form in changes)
        body.append(
            [
                *(row.setup.get(setting, "") for setting in varied),
                row.split,
                str(row.variations),
                row.generator,
                str(len(row.seeds)),
                _ranged(row.ap, percent),
                _ranged(row.ap50, percent),
                ap50_change,
                _ranged(row.count_mae, count),
                mae_change,
                count(row.count_bias.mean, signed=True),
                number(row.real_images, 0, False),
                number(row.synthetic_images, 0, False),
                number(row.minutes, 1, False),
            ]
        )
    return headings, body


def _ranged(estimate: Estimate, form: Callable[[float], str]) -> str:
    if len(estimate.by_seed) < 2:
        return form(estimate.mean)
    return f"{form(estimate.mean)} [{form(estimate.low)}, {form(estimate.high)}]"


def text_table(rows: Sequence[Row]) -> str:
    """The table in plain text, columns aligned; words to the left, numbers to the right."""
    headings, body = table_columns(rows)
    lines, words = [headings, *body], {*WORDS, *varied_settings(rows)}
    widths = [max(len(line[column]) for line in lines) for column in range(len(headings))]
    return "\n".join(
        "  ".join(
            entry.ljust(width) if heading in words else entry.rjust(width)
            for entry, width, heading in zip(line, widths, headings, strict=True)
        ).rstrip()
        for line in lines
    )


def page_table(rows: Sequence[Row], contrasts: Sequence[Contrast]) -> tuple[tuple[str, ...], list[tuple[Entry, ...]]]:
    """Headings and entries of the page's table, each difference to no variations with its interval and corrected p."""
    name, by_row = named(rows), against_none(contrasts)
    headings = (
        "condition",
        "AP",
        "AP50",
        "AP50 vs x0",
        "p",
        "count MAE",
        "MAE vs x0",
        "p",
        "bias",
        "images",
        "minutes",
    )
    body: list[tuple[Entry, ...]] = []
    for row in rows:
        differences = by_row.get(row.runs, {})
        real, synthetic = (number(images, 0, False) for images in (row.real_images, row.synthetic_images))
        body.append(
            (
                Entry(name(row), f"{len(row.seeds)} seed{'' if len(row.seeds) == 1 else 's'}"),
                _spread(row.ap, percent),
                _spread(row.ap50, percent),
                *difference_entries(differences.get("map_50"), percent),
                _spread(row.count_mae, count),
                *difference_entries(differences.get("count_mae"), count),
                Entry(count(row.count_bias.mean, signed=True)),
                Entry(f"{real} real", f"{synthetic} synthetic" if row.variations else ""),
                Entry(number(row.minutes, 1, False)),
            )
        )
    return headings, body


def named(rows: Sequence[Row]) -> Callable[[Row], str]:
    """A condition in a few words, such as ``s1 x10 pixel_ddpm``; more where that does not tell the rows apart."""
    prefix = prefixes(rows)
    return lambda row: f"{prefix(row)}{row.split} x{row.variations}" + (f" {row.generator}" if row.variations else "")


def against_none(contrasts: Sequence[Contrast]) -> dict[tuple[str, ...], dict[str, Difference]]:
    """The differences of each condition to no variations, by the runs of its row."""
    return {each.new.runs: dict(each.differences) for each in contrasts if each.kind == "variations"}


def difference_entries(found: Difference | None, form: Callable[..., str]) -> tuple[Entry, Entry]:
    """A difference with its interval, and its p; empty for what is held against nothing."""
    if found is None:
        return Entry(""), Entry("")
    detail = ""
    if found.interval is not None:
        detail = f"{form(found.interval.low, signed=True)} to {form(found.interval.high, signed=True)}"
    return Entry(form(found.mean, signed=True), detail), _p_entry(found)


def _p_entry(found: Difference) -> Entry:
    if found.pairs < LEAST_PAIRS or math.isnan(found.p_holm):
        return Entry("too few", f"{found.pairs} pair{'' if found.pairs == 1 else 's'}")
    text = f"{found.p_holm:.3f}" if found.p_holm < 0.1 else f"{found.p_holm:.2f}"
    return Entry(text, f"of {found.family}" if found.family > 1 else "")


def _spread(estimate: Estimate, form: Callable[[float], str]) -> Entry:
    detail = f"{form(estimate.low)} to {form(estimate.high)}" if len(estimate.by_seed) > 1 else ""
    return Entry(form(estimate.mean), detail)


def write_csv(
    rows: Sequence[Row],
    path: Path,
    contrasts: Sequence[Contrast] = (),
    by_class: Mapping[str, Sequence[ClassFigures]] = NO_CLASSES,
) -> None:
    """One line per condition, unrounded; AP in [0, 1] as in MLflow. Empty: not known.

    What ``by_class`` has (see `boxtwin.studies.class_figures`) stands in columns such as ``NAME/map_50_mean``.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    by_row = against_none(contrasts)
    plain = ("dataset", "detector", "setting", "steps", "split", "generator", "variations")
    sizes = ("real_images", "synthetic_images", "minutes")
    estimates = {"map": "ap", "map_50": "ap50", "count_mae": "count_mae", "count_bias": "count_bias"}
    changes = {"map": "ap_change", "map_50": "ap50_change", "count_mae": "count_mae_change"}
    varied = sorted({key for row in rows for key in row.varied} - set(plain))
    header = [*plain, *varied, "seeds", *sizes]
    header += [f"{name}_{part}" for name in estimates for part in ("mean", "min", "max")]
    header += [f"{name}_change{part}" for name in changes for part in ("", "_min", "_max", "_pairs")]
    header += [f"{name}_change_{part}" for name in changes for part in ("low95", "high95", "p", "p_holm")]
    of_classes, entries = class_columns(by_class)
    writer.writerow([*header, *of_classes])
    for row in rows:
        values: list[object] = [getattr(row, name) for name in plain]
        values += [row.varied.get(name) for name in varied]
        values += [" ".join(map(str, row.seeds)), *(getattr(row, name) for name in sizes)]
        for field in estimates.values():
            estimate = getattr(row, field)
            values += [estimate.mean, estimate.low, estimate.high]
        for field in changes.values():
            change = getattr(row, field)
            values += [None] * 4 if change is None else [change.mean, change.low, change.high, change.pairs]
        for name in changes:
            found = by_row.get(row.runs, {}).get(name)
            interval = None if found is None else found.interval
            values += [None] * 2 if interval is None else [interval.low, interval.high]
            values += [None] * 2 if found is None else [found.p, found.p_holm]
        values += [entries.get(row.runs, {}).get(heading) for heading in of_classes]
        writer.writerow([None if isinstance(v, float) and math.isnan(v) else v for v in values])
    write_bytes_atomically(path, text.getvalue().encode())


def class_lines(
    rows: Sequence[Row], by_class: Mapping[str, Sequence[ClassFigures]]
) -> tuple[tuple[str, ...], list[tuple[str, tuple[tuple[Entry, ...], ...]]]]:
    """Headings, and for each class its name and the entries of every condition."""
    name = named(rows)
    headings = ("condition", "AP", "AP50", "AP50 vs x0", "count MAE", "MAE vs x0", "bias", "threshold")
    groups: list[tuple[str, tuple[tuple[Entry, ...], ...]]] = []
    for of_class, each in list(by_class.items())[:MOST_CLASSES]:
        lines = tuple(
            (
                Entry(name(found.row)),
                _spread(found.estimates["map"], percent),
                _spread(found.estimates["map_50"], percent),
                _class_change(found.changes.get("map_50"), percent),
                _spread(found.estimates["count_mae"], count),
                _class_change(found.changes.get("count_mae"), count),
                Entry(count(found.estimates["count_bias"].mean, signed=True)),
                _spread(found.estimates["count_threshold"], "{:.3f}".format),
            )
            for found in each
        )
        groups.append((of_class, lines))
    return headings, groups


def class_text(rows: Sequence[Row], by_class: Mapping[str, Sequence[ClassFigures]]) -> list[str]:
    """The table by class in plain text, a line for each condition below the name of the class; none for one class."""
    headings, groups = class_lines(rows, by_class)
    if not groups:
        return []
    table = [list(headings), *([entry.main for entry in line] for _, lines in groups for line in lines)]
    widths = [max(len(line[column]) for line in table) for column in range(len(headings))]

    def aligned(line: Sequence[str]) -> str:
        cells = [
            line[0].ljust(widths[0]),
            *(text.rjust(width) for text, width in zip(line[1:], widths[1:], strict=True)),
        ]
        return f"  {'  '.join(cells)}".rstrip()

    said = ["By class", aligned(headings)]
    for of_class, lines in groups:
        said += [of_class, *(aligned([entry.main for entry in line]) for line in lines)]
    return said


def _class_change(change: ClassChange | None, form: Callable[..., str]) -> Entry:
    if change is None or math.isnan(change.mean):
        return Entry("")
    interval = change.interval
    detail = f"{form(interval.low, signed=True)} to {form(interval.high, signed=True)}" if interval else ""
    return Entry(form(change.mean, signed=True), detail)


@dataclass(frozen=True)
class Table:
    """A table of the page; ``groups`` are parts of its body, each below a line of its own where it has a title."""

    title: str
    sentence: str
    headings: tuple[str, ...]
    groups: tuple[tuple[str, tuple[tuple[Entry, ...], ...]], ...]


def cost_table(rows: Sequence[Row], cells: Sequence[Cell], found: Sequence[Contrast]) -> Table:
    name, gains = named(rows), against_none(found)

    def known(value: float, decimals: int = 0) -> Entry:
        text = number(value, decimals, False)
        return Entry("not known" if text == "-" else text)

    lines = []
    for cost in costs(rows, cells):
        ap50, _ = difference_entries(gains.get(cost.row.runs, {}).get("map_50"), percent)
        mae, _ = difference_entries(gains.get(cost.row.runs, {}).get("count_mae"), count)
        lines.append(
            (
                Entry(name(cost.row)),
                *(known(value) for value in (cost.fit_seconds, cost.vary_seconds, cost.train_seconds)),
                known(cost.usd, 2),
                known(cost.label_minutes, 1),
                ap50,
                mae,
            )
        )
    headings = ("condition", "learning, s", "drawing, s", "training, s", "API, USD", "labelling, min", "AP50 vs x0")
    return Table("", "", (*headings, "MAE vs x0"), (("", tuple(lines)),))


def slice_tables(rows: Sequence[Row], found: Sequence[Slicing]) -> list[Table]:
    name = named(rows)
    tables = []
    for slicing in found:
        groups = []
        for table in slicing.tables:
            part, images = table.slice, int(table.slice.images.sum())
            sizes = f"{_several(images, 'image')}, {_several(part.objects, 'object')}"
            warning = {
                (True, True): "",
                (False, True): f"; objects in {part.with_objects} of them: too few to tell for AP50",
                (True, False): "; too few images to tell",
                (False, False): "; too few to tell",
            }[part.tells_ap, part.tells_counts]
            if not part.objects:
                warning = "; AP is not defined without objects" + ("" if part.tells_counts else ", too few to tell")
            lines = tuple(
                (
                    Entry(name(row)),
                    Entry(percent(ap50.value)),
                    _slice_change(row, ap50, percent, part.tells_ap),
                    Entry(count(mae.value)),
                    _slice_change(row, mae, count, part.tells_counts),
                )
                for row, ap50, mae in table.figures
            )
            groups.append((f"{part.name}: {sizes}{warning}", lines))
        headings = ("condition", "AP50", "vs x0", "count MAE", "vs x0")
        # Scenes can be many: they are opened by whoever wants them.
        large = sum(table.slice.tells_counts for table in slicing.tables)
        sentence = f"{large} of {len(groups)} shown are large enough to tell" if slicing.kind == "scene" else ""
        tables.append(Table(SLICE_TITLES[slicing.kind], sentence, headings, tuple(groups)))
    return tables


def _slice_change(row: Row, figure: SliceFigure, form: Callable[..., str], tells: bool) -> Entry:
    if not row.variations or not math.isfinite(figure.change):
        return Entry("")
    if not tells:
        return Entry("too few")
    detail = ""
    if figure.interval:
        detail = f"{form(figure.interval.low, signed=True)} to {form(figure.interval.high, signed=True)}"
    return Entry(form(figure.change, signed=True), detail)


def count_table(rows: Sequence[Row], found: CountErrors) -> Table:
    name = named(rows)
    sentence = f"{found.exact} of {found.images} test images are counted right in every run."
    if found.worst:
        sentence += (
            f" The {len(found.worst)} below hold {100 * found.share:.0f} % of all absolute error"
            if len(found.worst) > 1
            else " The one below holds all error there is"
        ) + ", the worst first."
    headings = ("image", "true", *(name(row) for row in found.rows))
    lines = tuple(
        (Entry(image.name), Entry(str(image.true)), *(Entry(f"{each:.1f}") for each in image.found))
        for image in found.worst
    )
    return Table("", sentence, headings, (("", lines),) if lines else ())


def _several(amount: int, word: str) -> str:
    return f"{amount} {word}{'' if amount == 1 else 's'}"
