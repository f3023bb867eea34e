import csv
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from scipy import stats

from boxtwin.datasets.image_io import read_image
from boxtwin.errors import InputError
from boxtwin.studies.comparison import Difference, ResampledMetrics, contrasts
from boxtwin.studies.condition_values import COUNT
from boxtwin.studies.conditions import Row, condition_table
from boxtwin.studies.evidence import change_limits
from boxtwin.studies.inference import mean_interval
from boxtwin.studies.next_runs import choice
from boxtwin.studies.report.page import write_report
from boxtwin.studies.report.plots import curve_plot, curve_text, draw_curve, plot_curves
from boxtwin.studies.report.summary import Summary, printed, verdict
from boxtwin.studies.report.tables import text_table, write_csv
from boxtwin.studies.report.words import sentence
from boxtwin.studies.runs import StudyRun
from boxtwin.studies.study import Study


def make_run(
    split: str = "s2",
    variations: int = 0,
    seed: int = 0,
    ap50: float = 0.4,
    mae: float = 1.0,
    real: int = 40,
    generator: str = "pixel_ddpm",
    **changes: Any,
) -> StudyRun:
    run = StudyRun(
        study="demo",
        dataset="sar_scenes",
        split=split,
        variations=variations,
        generator=generator if variations else "none",
        detector="yolov3_nano",
        seed=seed,
        steps=300,
        setting="3f2a",
        metrics={
            "test/map": ap50 / 2,
            "test/map_50": ap50,
            "test/count_mae": mae,
            "test/count_bias": -0.25,
            "data/real_images": float(real),
            "data/synthetic_images": float(real * variations),
            "time/total": 60.0,
        },
        run_id=f"{split}-{variations}-{generator}-{seed}",
        minutes=1.5,
        output_dir="",
        status="FINISHED",
        overrides=f"split={split} variations={variations} seed={seed}",
    )
    return replace(run, **changes)


def said(rows: list[Row]) -> list[str]:
    return verdict(rows, contrasts(rows, ResampledMetrics({})))


def row_of(rows: list[Row], split: str, variations: int, generator: str | None = None) -> Row:
    found = [r for r in rows if (r.split, r.variations) == (split, variations) and generator in (None, r.generator)]
    assert len(found) == 1
    return found[0]


def ap50_change(rows: list[Row], *names: Any) -> Difference:
    (change,) = [
        c.differences["map_50"] for c in contrasts(rows, ResampledMetrics({})) if c.new is row_of(rows, *names)
    ]
    return change


def test_differences_are_taken_seed_by_seed() -> None:
    old, new = {0: 0.40, 1: 0.60, 2: 0.10}, {0: 0.45, 1: 0.58, 3: 0.99}
    runs = [make_run(seed=s, ap50=v) for s, v in old.items()]
    runs += [make_run(variations=10, seed=s, ap50=v) for s, v in new.items()]
    row = row_of(condition_table(runs), "s2", 10)
    assert row.seeds == (0, 1, 3)
    estimate = row.estimates["map_50"]
    assert estimate.mean == pytest.approx(np.mean(list(new.values())))
    assert (estimate.low, estimate.high) == (0.45, 0.99)
    change = ap50_change(condition_table(runs), "s2", 10)
    assert change.pairs == 2
    assert change.mean == pytest.approx((0.05 - 0.02) / 2)
    assert (change.low, change.high) == pytest.approx((-0.02, 0.05))
    assert (change.before, change.after) == pytest.approx((0.5, 0.515))
    # the sentence speaks of the two pairs only
    (sentence,) = said(condition_table(runs))
    assert "AP50 50.0 -> 51.5 (+1.5; -2.0 to +5.0 over seeds)" in sentence
    assert "2 paired seeds: not enough runs to tell" in sentence


def test_without_a_common_seed_means_are_compared_and_that_is_said() -> None:
    rows = condition_table([make_run(seed=0, ap50=0.4), make_run(variations=2, seed=1, ap50=0.5)])
    change = ap50_change(rows, "s2", 2)
    assert change.pairs == 0
    assert change.mean == pytest.approx(0.1)
    assert "No seed in common: not enough runs to tell" in said(rows)[0]


def test_one_baseline_serves_every_generator_but_no_other_setting() -> None:
    runs = [make_run(), make_run(variations=2), make_run(variations=2, generator="repeat", ap50=0.3)]
    runs += [make_run(variations=2, setting="other", ap50=0.9), make_run(split="s1", variations=2)]
    runs += [make_run(variations=2, steps=600), make_run(variations=2, detector="yolov3")]
    rows = condition_table(runs)
    assert len(rows) == 7
    gains = [c for c in contrasts(rows, ResampledMetrics({})) if c.kind == "variations"]
    compared = [(c.new.generator, c.differences["map_50"].mean) for c in gains]
    assert dict(compared) == pytest.approx({"pixel_ddpm": 0.0, "repeat": -0.1})
    assert len(compared) == 2


def test_the_sentence_of_a_single_run() -> None:
    rows = condition_table([make_run(ap50=0.412, mae=1.15), make_run(variations=10, ap50=0.43, mae=1.47)])
    assert said(rows) == [
        "s2 x10 pixel_ddpm: AP50 41.2 -> 43.0 (+1.8), AP 20.6 -> 21.5 (+0.9), "
        "count MAE 1.15 -> 1.47 (+0.32). "
        "One seed: not enough runs to tell chance from effect."
    ]


@pytest.mark.parametrize("seeds", [1, 2, 5, 6, 9])
def test_fewer_than_six_seeds_claim_nothing(seeds: int) -> None:
    runs = [make_run(seed=s, ap50=0.4) for s in range(seeds)]
    runs += [make_run(variations=10, seed=s, ap50=0.9) for s in range(seeds)]
    rows = condition_table(runs)
    assert ("not enough runs to tell" in " ".join(said(rows))) == (seeds < 6)
    assert ap50_change(rows, "s2", 10).significant == (seeds >= 6)


def test_positive_control_is_more_real_data() -> None:
    rows = condition_table([make_run(ap50=0.4, mae=1.2), make_run("s1", real=80, ap50=0.5, mae=0.9)])
    assert said(rows)[0].startswith(
        "Twice the real data (s1 with 80 instead of s2 with 40 real images): "
        "AP50 40.0 -> 50.0 (+10.0), AP 20.0 -> 25.0 (+5.0), count MAE 1.20 -> 0.90 (-0.30)."
    )


def test_missing_baseline_no_change_and_unknown_figures_are_said() -> None:
    (alone,) = said(condition_table([make_run(variations=2)]))
    assert "No finished run without variations" in alone
    (same,) = said(condition_table([make_run(), make_run(variations=1)]))
    assert "s2 x1 pixel_ddpm: AP50 40.0 -> 40.0 (no change)" in same
    (unknown,) = said(condition_table([make_run(ap50=math.nan), make_run(variations=2)]))
    assert "AP50 - -> 40.0 (unknown), AP - -> 20.0 (unknown), count MAE 1.00 -> 1.00 (no change)" in unknown
    (base,) = said(condition_table([make_run()]))
    assert base == "There is one condition. s2: AP50 40.0, count MAE 1.00."
    assert said([]) == ["No finished run: there is nothing to compare."]


def test_only_finished_runs_enter_and_no_run_counts_twice() -> None:
    runs = [make_run(), make_run(seed=1, ap50=0.9, status="FAILED"), make_run(seed=2, status="RUNNING", metrics={})]
    (row,) = condition_table(runs)
    assert row.seeds == (0,)
    with pytest.raises(InputError, match=r"s2-x0-none-yolov3_nano-seed0 has two finished runs .* a and b"):
        condition_table([make_run(run_id="a"), make_run(run_id="b")])


def test_labels_are_told_apart_where_a_study_has_several() -> None:
    runs = [make_run(), make_run(variations=2, labels="carry"), make_run(variations=2, generator="repeat")]
    assert [row.generator for row in condition_table(runs)] == ["none", "pixel_ddpm", "repeat"]
    runs.append(make_run(variations=2, labels="pseudo", run_id="other"))
    rows = condition_table(runs)
    assert [(row.generator, row.first.generator) for row in rows] == [
        ("none", "none"),
        ("pixel_ddpm labels=carry", "pixel_ddpm"),
        ("pixel_ddpm labels=pseudo", "pixel_ddpm"),
        ("repeat", "repeat"),
    ]
    assert choice(rows[2].generator) == ["generator=pixel_ddpm", "labels=pseudo"]


def test_text_table_is_aligned_and_names_what_differs() -> None:
    runs = [make_run(), make_run(variations=10, seed=0), make_run(variations=10, seed=1, ap50=0.6)]
    lines = text_table(condition_table(runs))
    assert len(lines) == 3
    assert "dataset" not in lines[0]
    assert "50.0 [40.0, 60.0]" in lines[2]
    end = lines[0].index("AP50") + len("AP50")
    assert lines[1][:end].endswith(" 40.0")
    assert len({len(line) for line in lines}) == 1
    assert "dataset" in text_table(condition_table([*runs, make_run(dataset="hrsid")]))[0]
    assert text_table([])[0].startswith("split")


def test_differences_of_other_seeds_are_no_entries_of_the_table() -> None:
    runs = [make_run(seed=seed) for seed in (3, 4)] + [make_run(variations=10, seed=seed, ap50=0.6) for seed in (0, 1)]
    rows = condition_table(runs)
    found = contrasts(rows, ResampledMetrics({}))
    assert "+20.0" not in "".join(text_table(rows, found))
    paired = condition_table([*runs, make_run(variations=10, seed=3, ap50=0.6)])
    assert "+20.0" in "".join(text_table(paired, contrasts(paired, ResampledMetrics({}))))


@pytest.mark.parametrize(("p", "shown"), [(0.2, "0.20"), (0.0312, "0.031"), (0.00051, "0.001"), (2 / 2**12, "<0.001")])
def test_p_values_are_never_shown_as_zero(p: float, shown: str) -> None:
    assert sentence("p_value", p=p) == shown


@pytest.mark.parametrize(
    ("metric", "limits"), [("account_holder/map_50", 1.0), ("ship/map", 1.0), ("discount_x/count_mae", math.inf)]
)
def test_the_limits_of_a_metric_follow_from_its_own_name(metric: str, limits: float) -> None:
    assert change_limits(metric) == (-limits, limits)


def test_csv_holds_the_unrounded_figures(tmp_path: Path) -> None:
    rows = condition_table([make_run(ap50=1 / 3), make_run(variations=2, ap50=math.nan)])
    write_csv(rows, tmp_path / "c.csv", contrasts(rows, ResampledMetrics({})))
    with (tmp_path / "c.csv").open(newline="") as file:
        base, varied = csv.DictReader(file)
    assert float(base["map_50_mean"]) == 1 / 3
    assert (base["map_50_change"], varied["map_50_mean"]) == ("", "")
    assert float(varied["count_mae_change"]) == 0
    assert varied["synthetic_images"] == "80.0"


class Reader(HTMLParser):
    """Collects what matters about a page: its addresses, alternative texts, and whether tags are balanced."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.alt: list[str | None] = []
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag == "img":
            self.alt.append(dict(attrs).get("alt", ""))
        if tag not in ("meta", "img", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def written(runs: list[StudyRun], folder: Path) -> Path:
    study = Study.of(runs)
    return write_report(study, Summary.of(study), folder)


def read_page(path: Path) -> Reader:
    reader = Reader()
    reader.feed(path.read_text())
    assert reader.open == []
    return reader


def test_report_is_one_file_that_needs_nothing_else(tmp_path: Path) -> None:
    conditions = (("s1", 0), ("s2", 0), ("s2", 2), ("s2", 10))
    runs = [make_run(split, variations, real=80 if split == "s1" else 40) for split, variations in conditions]
    runs.append(make_run("s1", 10, status="FAILED", metrics={}, run_id="broken<1>"))
    runs.append(make_run("s1", 2, overrides="", run_id="old"))
    path = written(runs, tmp_path / "report")
    assert path == tmp_path / "report/index.html"
    assert sorted(p.name for p in path.parent.iterdir()) == ["comparison.csv", "curves.png", "index.html"]
    page = read_page(path)
    assert all(address.startswith(("data:", "#")) for address in page.addresses)
    assert len(page.alt) == 2
    assert all(page.alt)
    assert "<script" not in path.read_text()
    for words in (
        "s2 x10 pixel_ddpm",
        "Positive control",
        "1 of 6 runs did not finish",
        "FAILED",
        "broken<1>",
        "seed 0",
    ):
        assert words in re.sub(r"\s+", " ", page.text)
    assert "python train.py split=s1 variations=0 seed=0\n" in page.text
    # Paths are rewritten, and a run of a sweep has its own values.
    assert "as it was typed" not in page.text
    assert "absolute paths are given relative to it" in re.sub(r"\s+", " ", page.text)
    # What a run of an older version was started with is not known; its parameters are.
    assert (
        "python train.py study=demo dataset=sar_scenes split=s1 variations=2 generator=pixel_ddpm "
        "detector=yolov3_nano seed=0 trainer.steps=300  # from its parameters\n"
    ) in page.text


@pytest.mark.parametrize(
    "runs",
    [
        [],
        [make_run(status="FAILED", metrics={})],
        [make_run(variations=2, ap50=math.nan, mae=math.nan)],
        [make_run(), make_run(variations=2, setting="other")],
        [
            make_run(seed=s, variations=v, generator=g)
            for s in (0, 1)
            for v in (0, 2)
            for g in ("a", "b")
            if v or g == "a"
        ],
    ],
)
def test_report_of_incomplete_studies(runs: list[StudyRun], tmp_path: Path) -> None:
    page = read_page(written(runs, tmp_path))
    asked = "do the variations help?" if any(run.variations for run in runs) else ": results"
    assert asked in page.text
    assert read_image(tmp_path / "curves.png").shape[1] > 800


def test_a_study_of_more_real_images_says_nothing_of_variations(tmp_path: Path) -> None:
    def of_size(seed: int, size: int, ap50: float) -> StudyRun:
        condition = {"split.name": "s1", "split.test": f"{size}", "data.train": f"{size}" * 32, COUNT: "0"}
        return make_run("s1", seed=seed, real=size, ap50=ap50, condition=condition, run_id=f"{size}-{seed}")

    runs = [of_size(seed, size, ap50) for seed in (0, 1) for size, ap50 in ((80, 0.4), (90, 0.5), (100, 0.6))]
    page = read_page(written(runs, tmp_path))
    text = re.sub(r"\s+", " ", page.text)
    assert "demo: do more real images help?" in text
    assert "90 instead of 80 real images change AP50 by +10.0 points (2 seeds): not enough runs to tell" in text
    shown = text[text.index("do more real images help?") :]
    shown = shown[: shown.index("How to reproduce", 500)]
    assert not re.search("variations|synthetic|ositive control|x0|vs |data.train|split.test", shown)
    study = Study.of(runs)
    assert [row.name for row in study.rows] == [f"s1 ({size} real images)" for size in (80, 90, 100)]
    printed_text = printed(study, Summary.of(study))
    assert not re.search("variations|ositive control|x0|generator", printed_text)


@pytest.mark.parametrize(
    ("changes", "title"),
    [
        ([{"pretraining_seed": 0}], "does the pre-training help?"),
        ([{"pretraining_seed": 0}, {"variations": 2}], "do the variations and the pre-training help?"),
        ([{}], "results"),
    ],
)
def test_the_title_asks_what_the_study_compares(changes: list[dict[str, Any]], title: str, tmp_path: Path) -> None:
    runs = [make_run(), *(make_run(setting=f"other {n}", run_id=str(n), **each) for n, each in enumerate(changes))]
    assert f"demo: {title}" in read_page(written(runs, tmp_path)).text


def test_curves_show_every_line(tmp_path: Path) -> None:
    runs = [make_run(s, v, real=80) for s in ("s1", "s2") for v in (0, 2, 10)]
    plot_curves(condition_table(runs[:1]), tmp_path / "one.png")
    plot_curves(condition_table(runs), tmp_path / "all.png")
    assert (read_image(tmp_path / "all.png") < 250).sum() > (read_image(tmp_path / "one.png") < 250).sum()


def test_bands_are_students_intervals_over_seeds_and_the_words_say_the_same() -> None:
    values = [0.40, 0.44, 0.47]
    rows = condition_table([make_run(seed=s, ap50=v) for s, v in enumerate(values)] + [make_run(variations=2)])
    low, high = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
    assert mean_interval(values) == pytest.approx((low, high))
    assert mean_interval(values[:1]) is None
    text = curve_text(rows, "map_50")
    assert f"s2 pixel_ddpm: 0: 43.7 ({100 * low:.1f} to {100 * high:.1f}), 2: 40.0." in text
    drawn = curve_plot(rows, "map_50")
    assert drawn.text == text
    assert drawn.svg == curve_plot(rows, "map_50").svg  # the same metric gives the same bytes
    assert "<svg" in drawn.svg
    assert "http" not in re.sub(r'(xmlns[:a-z]*|rdf:resource)="[^"]*"|<!DOCTYPE[^>]*>', "", drawn.svg)


@pytest.mark.parametrize(("seeds", "is_whole"), [(2, False), (3, True)])
def test_the_axis_shows_values_whatever_an_interval_of_two_seeds_spans(seeds: int, is_whole: bool) -> None:
    values = [0.50, 0.56, 0.53][:seeds]
    (row,) = condition_table([make_run(seed=seed, ap50=value) for seed, value in enumerate(values)])
    axes = Figure().add_subplot()
    draw_curve(axes, [row], "map_50")
    low, high = axes.get_ylim()
    least, most = (100 * end for end in row.estimates["map_50"].interval or ())
    assert low < 50 < 56 < high
    assert (low < least < most < high) == is_whole
    assert high - low < 1.2 * max(most - least if is_whole else 0.0, 10.0)


def test_the_pages_table_has_intervals_and_corrected_p(tmp_path: Path) -> None:
    runs = [make_run(seed=s, ap50=0.4 + 0.01 * s) for s in range(6)]
    runs += [make_run(variations=2, seed=s, ap50=0.45 + 0.01 * s) for s in range(6)]
    runs += [make_run(variations=10, seed=s) for s in range(3)]
    page = written(runs, tmp_path).read_text()
    body = page[page.index('aria-label="Table of conditions"') :].partition("</tbody>")[0].partition("<tbody>")[2]
    lines = [re.split(r"<t[dh][^>]*>", line)[1:] for line in body.split("<tr>")[1:]]
    plain, two, ten = ([re.findall(r"[^<>]+(?=<)", entry) for entry in line] for line in lines)
    assert two[3:5] == [["+5.0"], ["0.062", "of 2"]]  # 2 x 2 / 2^6
    assert two[0][:2] == ["s2 x2 pixel_ddpm", "6 seeds"]
    assert ten[4] == ["too few", "3 pairs"]
    assert plain[3:5] == [[], []]
