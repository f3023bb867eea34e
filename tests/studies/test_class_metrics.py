"""The table of a study by class, from runs that were never trained."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from study_runs import finished_run

from boxtwin.datasets.sample import Detections, Sample
from boxtwin.evaluation.coco_metrics import coco_by_class
from boxtwin.evaluation.counts import Thresholds, count_by_class
from boxtwin.evaluation.matching import match_detections
from boxtwin.evaluation.resampled_ap import MATCHES_FILE, save_matches
from boxtwin.studies.conditions import condition_table
from boxtwin.studies.evidence import Evidence
from boxtwin.studies.inference import hierarchical_interval, image_counts
from boxtwin.studies.report.page import write_report
from boxtwin.studies.report.summary import Summary
from boxtwin.studies.report.tables import class_text, write_csv
from boxtwin.studies.runs import StudyRun, runs_in
from boxtwin.studies.slices import class_metrics
from boxtwin.studies.study import Study

CLASSES = ("red cell", '<b>船, "x"')


def write_run(folder: Path, variations: int, seed: int) -> None:
    """A run on 20 images that finds more of its second class the more variations it has."""
    truth, rng = np.random.default_rng(0), np.random.default_rng([variations, seed])
    samples, found = [], {}
    for number in range(1, 21):
        corner, labels = truth.uniform(0, 400, (6, 2)), np.array([0, 0, 0, 1, 1, 1])
        boxes = np.concatenate([corner, corner + 30], axis=1)
        sample = Sample(
            f"{number}", Path(f"{number}"), 500, 500, number, boxes, labels, np.full(6, 900.0), np.zeros(6, bool)
        )
        samples.append(sample)
        seen = rng.random(6) < np.where(labels == 0, 0.8, 0.3 + 0.1 * variations)
        found[number] = Detections(boxes[seen], np.sort(rng.random(int(seen.sum())))[::-1], labels[seen])
    matching = match_detections(samples, found, 2)
    together, by_class = coco_by_class(matching)
    counts, counts_by_class, entries = count_by_class(samples, found, Thresholds(0.2, (0.1, 0.3)))
    folder.mkdir(parents=True)
    save_matches(folder / MATCHES_FILE, matching)
    generator = "repeat" if variations else "none"
    params = {"dataset": "t", "split": "s1", "variations": variations, "generator": generator, "detector": "d"}
    content: dict[str, Any] = {
        "study": "by class",
        "params": {**params, "seed": seed, "steps": 3, "labels": ""},
        "metrics": {f"test/{name}": value for name, value in {**together, **counts}.items()},
        "classes": [
            {"name": name, "count_threshold": (0.1, 0.3)[label], "metrics": by_class[label] | counts_by_class[label]}
            for label, name in enumerate(CLASSES)
        ],
        "data": {},
        "counts": entries,
    }
    (folder / "result.json").write_text(json.dumps(content).replace("NaN", "null"))


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[StudyRun], dict[str, Evidence]]:
    folder = tmp_path_factory.mktemp("study")
    for variations, seed in ((0, 0), (0, 1), (2, 0), (2, 1)):
        write_run(folder / f"x{variations}-{seed}", variations, seed)
    runs = runs_in(folder)
    kept = {this_run.run_id: Evidence.load(Path(this_run.output_dir)) for this_run in runs}
    return runs, {run: each for run, each in kept.items() if each is not None}


def test_differences_of_a_class_are_its_own_with_their_interval(
    study: tuple[list[StudyRun], dict[str, Evidence]],
) -> None:
    runs, evidence = study
    rows = condition_table(runs)
    found = class_metrics(rows, runs, evidence)
    assert list(found) == list(CLASSES)
    results = {run: json.loads((Path(c.output_dir) / "result.json").read_text()) for c in runs for run in [c.run_id]}
    for label, name in enumerate(CLASSES):
        none, two = found[name]
        assert (none.row.variations, two.row.variations, none.changes) == (0, 2, {})
        for figure in ("map", "map_50", "count_mae", "count_bias"):
            values = {run: result["classes"][label]["metrics"][figure] for run, result in results.items()}
            pairs = [values[f"x2-{seed}"] - values[f"x0-{seed}"] for seed in (0, 1)]
            assert two.changes[figure].mean == pytest.approx(np.mean(pairs))
            assert two.estimates[figure].mean == pytest.approx((values["x2-0"] + values["x2-1"]) / 2)
        # The interval, from the counts of the images themselves.
        errors = {
            run: np.array([abs(e["found_by_class"][label] - e["true_by_class"][label]) for e in result["counts"]])
            for run, result in results.items()
        }
        counts = np.concatenate([np.ones((1, 20)), image_counts(20, 400, 0)])
        drawn = np.stack([counts @ (errors[f"x2-{seed}"] - errors[f"x0-{seed}"]) / 20 for seed in (0, 1)])
        expected = hierarchical_interval(drawn[:, 0], drawn[:, 1:], images=20)
        interval = two.changes["count_mae"].interval
        assert interval is not None
        assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high))
        assert two.changes["map_50"].interval is not None
    assert abs(found[CLASSES[0]][1].changes["map_50"].mean) < found[CLASSES[1]][1].changes["map_50"].mean


def test_the_page_the_terminal_and_the_csv_have_every_class(
    study: tuple[list[StudyRun], dict[str, Evidence]], tmp_path: Path
) -> None:
    runs, evidence = study
    whole = Study.of(runs, evidence)
    page = write_report(whole, Summary.of(whole), tmp_path).read_text()
    assert 'id="classes"' in page
    assert "&lt;b&gt;船, &#34;x&#34;" in page
    assert "<b>船" not in page
    rows = condition_table(runs)
    said = class_text(class_metrics(rows, runs, {}))
    assert [line for line in said if line in CLASSES] == list(CLASSES)
    lines = list(csv.DictReader(io.StringIO((tmp_path / "comparison.csv").read_text())))
    found = class_metrics(rows, runs, evidence)
    for name in CLASSES:
        for line, each in zip(lines, found[name], strict=True):
            assert float(line[f"{name}/map_50_mean"]) == each.estimates["map_50"].mean
            assert float(line[f"{name}/count_bias_max"]) == each.estimates["count_bias"].high
            assert float(line[f"{name}/count_threshold_mean"]) == pytest.approx(0.1 + 0.2 * CLASSES.index(name))
        assert lines[0][f"{name}/count_mae_change"] == ""
        assert float(lines[1][f"{name}/count_mae_change_low95"]) == found[name][1].changes["count_mae"].interval.low  # type: ignore[union-attr]


def test_one_class_or_runs_that_do_not_tell_have_no_table_by_class(tmp_path: Path) -> None:
    metrics = {"test/map": 0.5, "test/map_50": 0.7, "test/count_mae": 1.0, "test/count_bias": 0.0}
    for classes in ({}, {"ship": {"map": 0.5}}):
        runs = [finished_run("a", 0, 0, metrics=metrics, classes=classes)]
        rows = condition_table(runs)
        assert class_metrics(rows, runs, {}) == {}
        assert class_text({}) == []
        write_csv(rows, tmp_path / "c.csv", (), {})
        assert "ship" not in (tmp_path / "c.csv").read_text()
