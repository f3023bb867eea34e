"""Differences between conditions, from the folders that runs leave."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coco_reference import coco_metrics
from jaxtyping import Float
from simulated_study import simulate_settings, study_of
from study_runs import finished_run

from boxtwin.commands.stored_runs import conditions
from boxtwin.datasets.sample import Detections, Sample
from boxtwin.errors import InputError
from boxtwin.evaluation.matching import match_detections
from boxtwin.evaluation.resampled_ap import MATCHES_FILE, save_matches
from boxtwin.studies.comparison import RESAMPLES, Difference, ResampledMetrics, contrasts, corrected, difference
from boxtwin.studies.conditions import Row, condition_table
from boxtwin.studies.evidence import Evidence
from boxtwin.studies.report.summary import verdict
from boxtwin.studies.report.words import sentence
from boxtwin.studies.runs import StudyRun

IMAGES = 30


def samples_of(images: int) -> list[Sample]:
    rng = np.random.default_rng(0)
    samples = []
    for number in range(1, images + 1):
        n = int(rng.integers(1, 6))
        corner = rng.uniform(0, 400, (n, 2))
        samples.append(
            Sample(
                name=f"{number}.png",
                path=Path(f"{number}.png"),
                width=500,
                height=500,
                image_id=number,
                boxes=np.concatenate([corner, corner + 40], axis=1),
                labels=np.zeros(n, dtype=np.int64),
                areas=np.full(n, 1600.0),
                crowd=np.zeros(n, dtype=bool),
            )
        )
    return samples


def write_run(folder: Path, rng: np.random.Generator, share: float, images: int = IMAGES) -> dict[str, float]:
    """A run that finds each object with probability ``share``; its metrics."""
    samples, found = samples_of(images), {}
    counts: list[dict[str, Any]] = []
    for sample in samples:
        hit = rng.random(len(sample.boxes)) < share
        boxes = np.concatenate([sample.boxes[hit] + rng.normal(0, 2, (int(hit.sum()), 4)), [[450, 450, 480, 480]]])
        found[sample.image_id] = Detections(boxes, np.sort(rng.random(len(boxes)))[::-1], np.zeros(len(boxes), int))
        counts.append(
            {"image_id": sample.image_id, "file_name": sample.name, "true": len(hit), "found": int(hit.sum())}
        )
    folder.mkdir(parents=True, exist_ok=True)
    save_matches(folder / MATCHES_FILE, match_detections(samples, found, 1))
    (folder / "result.json").write_text(json.dumps({"counts": counts}))
    figures = coco_metrics(samples, found, [1])
    return {
        "map": figures["map"],
        "map_50": figures["map_50"],
        "count_mae": float(np.mean([abs(entry["true"] - entry["found"]) for entry in counts])),
    }


def test_a_run_says_the_same_from_its_folder(tmp_path: Path) -> None:
    figures = write_run(tmp_path / "a", np.random.default_rng(1), 0.7)
    evidence = Evidence.load(tmp_path / "a")
    assert evidence is not None
    again = evidence.metrics(np.ones((1, IMAGES)))
    assert {name: pytest.approx(value[0], abs=1e-9) for name, value in again.items()} == figures
    # Twice the first image and no other: its own error.
    counts = np.zeros((1, IMAGES))
    counts[0, 0] = 2
    assert evidence.metrics(counts)["count_mae"][0] == abs(int(evidence.true[0]) - int(evidence.found[0]))


def test_folders_without_matches_and_with_those_of_other_images(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert Evidence.load(tmp_path) is None
    write_run(tmp_path / "a", np.random.default_rng(1), 0.7)
    write_run(tmp_path / "b", np.random.default_rng(1), 0.7, images=10)
    (tmp_path / "b" / MATCHES_FILE).replace(tmp_path / "a" / MATCHES_FILE)
    assert Evidence.load(tmp_path / "a") is None
    assert "different test images" in caplog.text


def test_metrics_that_do_not_follow_from_matches_and_counts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Each file may be another run's, or edited: estimates would not belong to their intervals."""
    metrics = {name: write_run(tmp_path / name, np.random.default_rng(seed), 0.7) for seed, name in enumerate("ab")}

    def load(matches: str, counts: str, recorded: Mapping[str, float | None]) -> Evidence | None:
        (tmp_path / "x").mkdir(exist_ok=True)
        (tmp_path / "x" / MATCHES_FILE).write_bytes((tmp_path / matches / MATCHES_FILE).read_bytes())
        content = json.loads((tmp_path / counts / "result.json").read_text())
        content["metrics"] = {f"test/{name}": value for name, value in recorded.items()}
        (tmp_path / "x" / "result.json").write_text(json.dumps(content))
        return Evidence.load(tmp_path / "x")

    assert load("a", "a", metrics["a"]) is not None
    assert load("a", "a", dict.fromkeys(metrics["a"], None)) is not None  # undefined: nothing to compare
    assert not caplog.text
    assert load("b", "a", metrics["a"]) is None
    assert "records test/map" in caplog.text
    assert load("a", "b", metrics["a"]) is None
    assert "records test/count_mae" in caplog.text
    assert load("a", "a", metrics["a"] | {"map_50": metrics["a"]["map_50"] + 0.01}) is None


def test_matches_whose_arrays_do_not_belong_together(tmp_path: Path) -> None:
    write_run(tmp_path, np.random.default_rng(0), 0.7)
    whole = dict(np.load(tmp_path / MATCHES_FILE))
    for name in [name for name in whole if name.split("/")[-1] in ("image", "matched", "counted", "objects", "starts")]:
        shorter = whole[name][..., :-1]
        np.savez_compressed(tmp_path / MATCHES_FILE, **whole | {name: shorter})
        assert Evidence.load(tmp_path) is None, name


def study(tmp_path: Path, shares: dict[tuple[int, str], float], seeds: int) -> tuple[list[Row], ResampledMetrics]:
    """The rows of a study whose conditions (variations, generator) find so much, and what its runs keep."""
    runs, evidence = [], {}
    for (variations, generator), share in shares.items():
        for seed in range(seeds):
            run = f"{generator}-{variations}-{seed}"
            figures = write_run(tmp_path / run, np.random.default_rng([seed, variations, *generator.encode()]), share)
            loaded = Evidence.load(tmp_path / run)
            assert loaded is not None
            evidence[run] = loaded
            runs.append(run_folder(run, variations, generator, seed, figures))
    return condition_table(runs), ResampledMetrics(evidence)


def run_folder(run: str, variations: int, generator: str, seed: int, figures: dict[str, float]) -> StudyRun:
    metrics = {f"test/{name}": value for name, value in figures.items()} | {"data/real_images": 40.0}
    return finished_run(run, variations, seed, metrics=metrics, generator=generator)


def test_a_clear_gain_and_none(tmp_path: Path) -> None:
    rows, figures = study(tmp_path, {(0, "none"): 0.5, (2, "better"): 0.8}, seeds=6)
    (gain,) = contrasts(rows, figures)
    assert (gain.kind, gain.new.generator, gain.old.variations) == ("variations", "better", 0)
    for found in gain.differences.values():
        assert found.interval is not None
        assert found.mean == pytest.approx(found.interval.mean, abs=1e-9)
    ap50, errors = gain.differences["map_50"], gain.differences["count_mae"]
    assert ap50.interval is not None
    assert errors.interval is not None
    assert ap50.interval.low > 0.1
    assert errors.interval.high < 0
    assert ap50.low <= ap50.interval.mean <= ap50.high
    assert ap50.p == ap50.p_holm == 2 / 64
    assert ap50.significant
    assert ap50.could_be_significant


def test_six_seeds_cannot_carry_two_comparisons(tmp_path: Path) -> None:
    rows, figures = study(tmp_path, {(0, "none"): 0.5, (2, "better"): 0.8, (2, "repeat"): 0.5}, seeds=6)
    better, repeat, control = contrasts(rows, figures)
    assert [c.kind for c in (better, repeat, control)] == ["variations", "variations", "control"]
    ap50, nothing = better.differences["map_50"], repeat.differences["map_50"]
    assert nothing.interval is not None
    assert nothing.interval.low < 0 < nothing.interval.high
    assert ap50.p == 2 / 64
    assert ap50.p_holm == 4 / 64
    assert not ap50.significant
    assert not ap50.could_be_significant
    # Against the control is another question, and one comparison only.
    assert (control.new.generator, control.old.generator) == ("better", "repeat")
    assert control.differences["map_50"].significant
    sentences = verdict(rows, [better, repeat, control])
    assert "AP50: p 0.031 by itself; 2 such comparisons in one table need 7 seeds" in sentences[0]
    assert "95 % interval" in sentences[0]
    assert "s2 x2 better against as many of repeat" in sentences[2]
    assert "AP50: p 0.031, significant." in sentences[2]


def test_one_pair_and_runs_that_keep_nothing(tmp_path: Path) -> None:
    rows, figures = study(tmp_path, {(0, "none"): 0.5, (2, "other"): 0.6}, seeds=1)
    one = difference("map", rows[1], rows[0], figures)
    assert (one.pairs, one.interval, one.p) == (1, None, 1.0)
    rows, _ = study(tmp_path / "more", {(0, "none"): 0.5, (2, "other"): 0.6}, seeds=3)
    kept_nothing = difference("map", rows[1], rows[0], ResampledMetrics({}))
    assert kept_nothing.pairs == 3
    assert kept_nothing.interval is None
    assert kept_nothing.p == 2 / 8 or kept_nothing.p > 2 / 8
    assert not corrected([kept_nothing])[0].significant


def test_no_seed_in_common(tmp_path: Path) -> None:
    figures = {"map": 0.5, "map_50": 0.5, "count_mae": 1.0}
    rows = condition_table(
        [run_folder("a", 0, "none", 0, figures), run_folder("b", 2, "x", 1, {**figures, "map": 0.75})]
    )
    found = difference("map", rows[1], rows[0], ResampledMetrics({}))
    assert (found.mean, found.pairs) == (0.25, 0)
    assert np.isnan([found.p, found.low, found.high, corrected([found])[0].p_holm]).all()


def test_runs_on_other_images_are_not_compared(tmp_path: Path) -> None:
    runs, evidence = [], {}
    for run, variations, seed, images in (("a", 0, 0, 30), ("b", 0, 1, 30), ("c", 2, 0, 30), ("d", 2, 1, 20)):
        figures = write_run(tmp_path / run, np.random.default_rng(0), 0.5, images)
        loaded = Evidence.load(tmp_path / run)
        assert loaded is not None
        evidence[run] = loaded
        runs.append(run_folder(run, variations, "x", seed, figures))
    with pytest.raises(InputError, match="not all of their runs were tested on the same images"):
        contrasts(condition_table(runs), ResampledMetrics(evidence))


def test_every_resample_is_worked_out_once(tmp_path: Path) -> None:
    (row,), figures = study(tmp_path, {(0, "none"): 0.5}, seeds=1)
    (run,) = row.run_ids
    first = figures.of(run)
    assert first is not None
    assert figures.of(run) is first
    assert len(first["map"]) == RESAMPLES + 1
    assert figures.of("b") is None
    assert figures.images("b") == ()


def test_a_condition_has_mean_interval_and_number_of_seeds(tmp_path: Path) -> None:
    rows, figures = study(tmp_path, {(0, "none"): 0.5, (2, "repeat"): 0.9}, seeds=6)
    found = contrasts(rows, figures)
    plain, repeated = conditions(study_of([], rows, figures))
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
    (condition,) = conditions(study_of([], rows, figures))
    width = condition.metrics["test/count_mae_high"] - condition.metrics["test/count_mae_low"]
    # The count error is a plain mean, so its variance is the textbook's: of the seeds' means, and of the images' means.
    errors = np.array([np.abs(figures._evidence[run].found - figures._evidence[run].true) for run in rows[0].run_ids])
    seeds, images = errors.mean(axis=1), errors.mean(axis=0)
    deviation = math.sqrt(seeds.var(ddof=1) / len(seeds) + images.var(ddof=1) / len(images))
    assert width == pytest.approx(2 * 2 * deviation, rel=0.25)  # t is 2.0 to 2.6 here


def test_one_seed_has_a_mean_and_no_interval(tmp_path: Path) -> None:
    rows, figures = study(tmp_path, {(0, "none"): 0.5, (2, "repeat"): 0.9}, seeds=1)
    for condition in conditions(study_of([], rows, figures)):
        assert condition.metrics["seeds"] == 1
        assert math.isfinite(condition.metrics["test/map"])
        assert not any(name.endswith(("_low", "_high")) for name in condition.metrics)


def test_without_an_interval_p_decides_only_where_runs_keep_no_matches() -> None:
    change = Difference("map_50", 0.5, 0.6, 0.1, 8, 0.05, 0.15, None, 0.008, p_holm=0.008)
    assert change.significant
    assert not replace(change, undefined=True).significant
    assert not replace(change, role="primary").significant
    assert "too few test images hold objects" in sentence("certainty_of_gain", change=replace(change, undefined=True))


def test_objects_in_few_test_images_leave_no_interval() -> None:
    """The gain lies in two of 60 test images, of which two hold objects: another draw may have neither."""
    runs, figures = simulate_settings([({}, 10.0, 0.5, 8), ({"variations.per_image": "2"}, 10.0, 0.6, 8)])
    study = study_of(runs, condition_table(runs), figures)
    new, old = sorted(study.rows, key=lambda row: -row.variations)
    (whole,) = [difference("map_50", new, old, study.resampled)]
    assert whole.interval is not None
    of_row = study.resampled.of_row

    class Few(ResampledMetrics):
        def of_row(self, metric: str, row: Row, seeds: Sequence[int]) -> Float[np.ndarray, "seeds resamples"] | None:
            values = of_row(metric, row, seeds)
            assert values is not None
            values[:, 1::10] = np.nan
            return values

        def images(self, run: str) -> tuple[str, ...]:
            return study.resampled.images(run)

    few = difference("map_50", new, old, Few({}))
    assert (few.interval, few.undefined, few.p) == (None, True, whole.p)


def test_an_interval_of_two_seeds_ends_where_the_metric_does() -> None:
    runs, figures = simulate_settings([({}, 10.0, 0.5, 2), ({"variations.per_image": "2"}, 10.0, 0.6, 2)])
    study = study_of(runs, condition_table(runs), figures)
    new, old = sorted(study.rows, key=lambda row: -row.variations)

    class Contrary(ResampledMetrics):
        """One seed says that all becomes right, the other that all becomes wrong."""

        def of_row(self, metric: str, row: Row, seeds: Sequence[int]) -> Float[np.ndarray, "seeds resamples"] | None:
            values = study.resampled.of_row(metric, row, seeds)
            assert values is not None
            return np.stack([np.full_like(values[0], row is new), np.full_like(values[1], row is old)])

        def images(self, run: str) -> tuple[str, ...]:
            return study.resampled.images(run)

    ap, counts = (difference(metric, new, old, Contrary({})).interval for metric in ("map", "count_mae"))
    assert ap is not None
    assert counts is not None
    assert (ap.mean, ap.low, ap.high) == (0, -1, 1)
    assert counts.low < -10 < 10 < counts.high  # Student's t of two values: 12.7 standard errors
