"""What MLflow's runs of conditions say: the numbers of the table, and intervals that hold against a plain bootstrap."""

import math
from pathlib import Path

import numpy as np
import pytest
from test_comparison import study  # the runs of a small study, on disk

from boxtwin.studies.comparison import contrasts
from boxtwin.studies.summaries import conditions


def test_a_condition_has_mean_interval_and_number_of_seeds(tmp_path: Path) -> None:
    rows, figures = study(tmp_path, {(0, "none"): 0.5, (2, "repeat"): 0.9}, seeds=6)
    found = contrasts(rows, figures)
    plain, repeated = conditions(rows, found, figures)
    assert (plain.name, repeated.name) == ("s2-x0-none-yolov3_nano", "s2-x2-repeat-yolov3_nano")
    assert plain.key != repeated.key
    assert repeated.params == {
        "dataset": "sar_scenes",
        "split": "s2",
        "variations": 2,
        "generator": "repeat",
        "detector": "yolov3_nano",
        "steps": 300,
    }
    assert repeated.tags["boxtwin.seeds"] == "0 1 2 3 4 5"
    assert not any(name.startswith("vs_x0") for name in plain.metrics)
    metrics = repeated.metrics
    assert metrics["seeds"] == metrics["vs_x0/pairs"] == 6
    assert metrics["test/map_50"] == rows[1].estimates["map_50"].mean
    for name in ("test/map", "test/map_50", "test/count_mae", "vs_x0/map", "vs_x0/map_50", "vs_x0/count_mae"):
        assert metrics[f"{name}_low"] < metrics[name] < metrics[f"{name}_high"], name
    (contrast,) = found
    difference = contrast.differences["map_50"]
    assert metrics["vs_x0/map_50"] == pytest.approx(metrics["test/map_50"] - plain.metrics["test/map_50"])
    assert (metrics["vs_x0/map_50_p"], metrics["vs_x0/map_50_p_holm"]) == (difference.p, difference.p_holm)


def test_the_interval_of_a_mean_is_as_wide_as_seeds_and_images_make_it(tmp_path: Path) -> None:
    rows, figures = study(tmp_path, {(0, "none"): 0.6}, seeds=6)
    (condition,) = conditions(rows, [], figures)
    width = condition.metrics["test/count_mae_high"] - condition.metrics["test/count_mae_low"]
    # The count error is a plain mean, so its variance is the textbook's: of the seeds' means, and of the images' means.
    errors = np.array([np.abs(figures._evidence[run].found - figures._evidence[run].true) for run in rows[0].runs])
    seeds, images = errors.mean(axis=1), errors.mean(axis=0)
    deviation = math.sqrt(seeds.var(ddof=1) / len(seeds) + images.var(ddof=1) / len(images))
    assert width == pytest.approx(2 * 2 * deviation, rel=0.25)  # t is 2.0 to 2.6 here


def test_one_seed_has_a_mean_and_no_interval(tmp_path: Path) -> None:
    rows, figures = study(tmp_path, {(0, "none"): 0.5, (2, "repeat"): 0.9}, seeds=1)
    for condition in conditions(rows, contrasts(rows, figures), figures):
        assert condition.metrics["seeds"] == 1
        assert math.isfinite(condition.metrics["test/map"])
        assert not any(name.endswith(("_low", "_high")) for name in condition.metrics)
