"""Runs that are scored again: the labels that they had give their own metrics, others give those of pycocotools."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coco_reference import coco_ground_truth, coco_metrics

from boxtwin.datasets.image_io import write_png
from boxtwin.datasets.sample import Detections, Sample
from boxtwin.errors import InputError
from boxtwin.evaluation.coco_metrics import DETECTIONS_FILE, VALIDATION_DETECTIONS_FILE, read_results
from boxtwin.evaluation.counts import choose_thresholds, count_by_class
from boxtwin.evaluation.matching import outside_crowds
from boxtwin.evaluation.tested import run_test
from boxtwin.studies.relabelled import OtherLabels, relabelled
from boxtwin.studies.report.page import write_report
from boxtwin.studies.report.summary import Summary, printed
from boxtwin.studies.runs import runs_in, with_evidence
from boxtwin.studies.study import Study
from boxtwin.tracking.run_folders import RunResult

CLASSES, IDS = ("ship", "buoy"), (4, 2)
VALIDATION = 5  # of the images


def make_samples(folder: Path, number: int = 14) -> list[Sample]:
    """Grey images with boxes at thirds of pixels, of which some have no object and one a crowd."""
    rng, samples = np.random.default_rng(3), []
    folder.mkdir()
    for image in range(number):
        path, n = folder / f"scene {image}.png", image % 4
        write_png(path, rng.integers(0, 90, (80, 80)).astype(np.uint8))
        corner = (rng.integers(0, 120, (n, 2)) / 3).astype(np.float32)
        boxes = np.concatenate([corner, corner + rng.integers(20, 90, (n, 2)).astype(np.float32) / 3], axis=1)
        labels, crowd = rng.integers(0, 2, n), np.zeros(n, bool)
        crowd[:1] = image == 6
        areas = (boxes[:, 2] - boxes[:, 0]).astype(np.float64) * (boxes[:, 3] - boxes[:, 1])
        samples.append(Sample(path.name, path, 80, 80, 7 * image, boxes, labels, areas, crowd, group=f"g{image // 2}"))
    return samples


def detections_of(samples: list[Sample], seed: int) -> dict[int, Detections]:
    rng, found = np.random.default_rng(seed), {}
    for sample in samples:
        boxes = np.concatenate([sample.boxes + rng.normal(0, 1.5, sample.boxes.shape), rng.uniform(0, 30, (3, 4))])
        boxes[-3:, 2:] += boxes[-3:, :2]
        scores = np.sort(rng.random(len(boxes)).astype(np.float32))[::-1]
        found[sample.image_id] = Detections(boxes.astype(np.float32), scores, rng.integers(0, 2, len(boxes)))
    return found


def make_run(folder: Path, samples: list[Sample], seed: int, variations: int = 0) -> None:
    """The folder of a finished run, written as the product does."""
    found = detections_of(samples, 10 * variations + seed)
    folder.mkdir(parents=True)
    tested = run_test(
        lambda wanted, _: {sample.image_id: found[sample.image_id] for sample in wanted},
        validation=samples[:VALIDATION],
        synthetic=(),
        test=samples[VALIDATION:],
        classes=CLASSES,
        category_ids=IDS,
        folder=folder,
    )
    params = {"dataset": "made", "split": "s2", "variations": variations, "generator": "repeat", "detector": "nano"}
    RunResult(
        study="made",
        params=params | {"seed": seed, "steps": 10},
        metrics={name: value if np.isfinite(value) else None for name, value in tested.metrics.items()},
        classes=[
            {**entry, "metrics": {n: v if np.isfinite(v) else None for n, v in entry["metrics"].items()}}
            for entry in tested.classes
        ],
        counts=tested.counts,
        validation_images=[
            {"image_id": s.image_id, "file_name": s.name, "width": s.width, "height": s.height}
            for s in samples[:VALIDATION]
        ],
    ).write(folder)


def write_labels(path: Path, samples: list[Sample], **changes: Any) -> Path:
    path.write_text(json.dumps(coco_ground_truth(samples, CLASSES, IDS) | changes))
    return path


def study_in(folder: Path) -> Study:
    return Study.of(*with_evidence(runs_in(folder), {}))


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Sample]]:
    """Two seeds with and without variations."""
    folder = tmp_path_factory.mktemp("made")
    samples = make_samples(folder / "images")
    for variations in (0, 2):
        for seed in (0, 1):
            make_run(folder / "runs" / f"x{variations}-{seed}", samples, seed, variations)
    return folder, samples


@pytest.fixture
def made(made_once: tuple[Path, list[Sample]], tmp_path: Path) -> tuple[Path, list[Sample]]:
    """A copy of these runs, which a test may change."""
    folder, samples = made_once
    shutil.copytree(folder / "runs", tmp_path / "runs")
    return tmp_path, samples


def moved(samples: list[Sample]) -> list[Sample]:
    """The first object of each image is 4 pixels further on, the last one of another class, one is new."""
    changed = []
    for sample in samples:
        boxes, labels = sample.boxes.copy(), sample.labels.copy()
        boxes[:1] += 4
        labels[-1:] = 1 - labels[-1:]
        new = np.array([[60.0, 60.0, 72.0, 75.0]], dtype=np.float32)
        parts: dict[str, Any] = {"boxes": np.concatenate([boxes, new]), "labels": np.append(labels, 0)}
        parts |= {"areas": np.append(sample.areas, 180.0), "crowd": np.append(sample.crowd, False)}
        changed.append(replace(sample, **parts))
    return changed


def same(first: Mapping[str, float], second: Mapping[str, float]) -> bool:
    """Whether all metrics are equal to the last digit; nan is nan."""
    return first.keys() == second.keys() and all(
        first[name] == second[name] or np.isnan([first[name], second[name]]).all() for name in first
    )


def test_the_labels_that_runs_had_give_their_own_metrics_to_the_last_digit(made: tuple[Path, list[Sample]]) -> None:
    folder, samples = made
    study = study_in(folder / "runs")
    again = relabelled(study, write_labels(folder / "labels.json", samples))
    assert again.new_thresholds
    assert (again.images, again.recounted) == (len(samples) - VALIDATION, 0)
    assert again.objects[0] == again.objects[1] > 0
    for before, after in zip(study.runs, again.other.runs, strict=True):
        assert same(before.metrics, after.metrics)
        assert before.classes.keys() == after.classes.keys()
        first, second = (each[before.run_id] for each in (study.evidence, again.other.evidence))
        assert first.names == second.names
        assert first.groups == second.groups
        for field in ("true", "found", "true_by_class", "found_by_class"):
            np.testing.assert_array_equal(getattr(first, field), getattr(second, field))
    for contrast, other in zip(study.contrasts, again.other.contrasts, strict=True):
        assert contrast.differences["map_50"] == other.differences["map_50"]


def test_other_labels_give_the_metrics_of_pycocotools_and_new_thresholds(made: tuple[Path, list[Sample]]) -> None:
    folder, samples = made
    changed = moved(samples)
    # Written by another tool: other ids, another order, in a folder, with its prefix before each name.
    renamed = [replace(s, image_id=500 - s.image_id, name=f"upload/0a1b2c3d-{s.name}") for s in reversed(changed)]
    again = relabelled(study_in(folder / "runs"), write_labels(folder / "labels.json", renamed))
    validation, test = changed[:VALIDATION], changed[VALIDATION:]
    for run in again.other.runs:
        of_test, of_validation = (
            read_results(Path(run.output_dir) / name, IDS) for name in (DETECTIONS_FILE, VALIDATION_DETECTIONS_FILE)
        )
        for name, value in coco_metrics(test, of_test, IDS).items():
            assert run.metrics[f"test/{name}"] == pytest.approx(value, abs=1e-12, nan_ok=True)
        thresholds = choose_thresholds(validation, outside_crowds(validation, of_validation), 2)
        assert run.metrics["val_real/count_threshold"] == thresholds.together
        counts, _, _ = count_by_class(test, outside_crowds(test, of_test), thresholds)
        assert {name: run.metrics[f"test/{name}"] for name in counts} == counts
    assert again.recounted == len(test)
    assert again.objects[1] - again.objects[0] == len(test)


def test_without_validation_detections_thresholds_stay(made: tuple[Path, list[Sample]]) -> None:
    folder, samples = made
    (folder / "runs" / "x2-1" / VALIDATION_DETECTIONS_FILE).unlink()  # as in runs of older versions
    study = study_in(folder / "runs")
    again = relabelled(study, write_labels(folder / "labels.json", moved(samples)))
    assert not again.new_thresholds
    for before, after in zip(study.runs, again.other.runs, strict=True):
        assert before.metrics["val_real/count_threshold"] == after.metrics["val_real/count_threshold"]
        assert before.metrics["test/map"] != after.metrics["test/map"]


def test_runs_without_detections_are_left_out(
    made: tuple[Path, list[Sample]], caplog: pytest.LogCaptureFixture
) -> None:
    folder, samples = made
    labels = write_labels(folder / "labels.json", samples)
    (folder / "runs" / "x2-1" / DETECTIONS_FILE).unlink()
    again = relabelled(study_in(folder / "runs"), labels)
    assert len(again.other.runs) == len(again.given.runs) == 3
    assert "left out" in caplog.text
    for file in folder.glob(f"runs/*/{DETECTIONS_FILE}"):
        file.unlink()
    with pytest.raises(InputError, match="no finished run of made keeps its detections"):
        relabelled(study_in(folder / "runs"), labels)


def test_detections_of_another_run_are_refused(made: tuple[Path, list[Sample]]) -> None:
    folder, samples = made
    labels = write_labels(folder / "same.json", samples)
    assert len(relabelled(study_in(folder / "runs"), labels).other.runs) == 4
    other, swapped = (folder / "runs" / name / DETECTIONS_FILE for name in ("x0-0", "x2-1"))
    swapped.write_bytes(other.read_bytes())
    with pytest.raises(InputError, match="holds other detections than"):
        relabelled(study_in(folder / "runs"), labels)


def test_labels_without_any_object_are_labels(made: tuple[Path, list[Sample]]) -> None:
    folder, samples = made
    nothing: dict[str, Any] = {
        "boxes": np.zeros((0, 4)),
        "labels": np.zeros(0, int),
        "areas": np.zeros(0),
        "crowd": np.zeros(0, bool),
    }
    again = relabelled(
        study_in(folder / "runs"), write_labels(folder / "l.json", [replace(s, **nothing) for s in samples])
    )
    assert again.objects[1] == 0
    assert all(np.isnan(run.metrics["test/map"]) for run in again.other.runs)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        (
            {"categories": [{"id": 4, "name": "ship"}, {"id": 2, "name": "plane"}]},
            "classes plane, ship; those of the runs are ship, buoy",
        ),
        ({"images": 3}, "lacks 6 of 9"),
        ({"images": 0}, "lacks 9 of 9 .*scene 5.png"),
        ("not JSON", "no valid|not valid"),
    ],
)
def test_a_file_of_other_images_or_classes_is_one_error(
    made: tuple[Path, list[Sample]], wrong: Any, match: str
) -> None:
    folder, samples = made
    file = write_labels(folder / "labels.json", samples)
    if isinstance(wrong, str):
        file.write_text(wrong)
    elif "images" in wrong:
        write_labels(file, samples[VALIDATION:][: wrong["images"]])
    else:
        write_labels(file, samples, **wrong)
    with pytest.raises(InputError, match=match):
        relabelled(study_in(folder / "runs"), file)


def test_the_report_has_both_versions_side_by_side(made: tuple[Path, list[Sample]]) -> None:
    folder, samples = made
    study = study_in(folder / "runs")
    file = write_labels(folder / "labels.json", moved(samples))
    again, suspected = relabelled(study, file), relabelled(study, file, suspected=True)
    summary = Summary.of(study)
    page = write_report(study, summary, folder / "report", [again, suspected]).read_text()
    text = printed(study, summary, [again])
    for words in (page, text):
        assert "With corrected labels" in words
        assert f"hold {again.objects[1]} objects, {again.objects[0]} on those" in words
        for row in (*again.given.rows, *again.other.rows):
            assert f"{100 * row.estimates['map_50'].mean:.1f}" in words
    assert "What the labels may hide" in page
    assert "No person has confirmed" in page
    for name in ("comparison_corrected.csv", "comparison_suspects.csv"):
        assert (folder / "report" / name).read_text().count("\n") == 3


def test_brief_is_brief_with_other_labels_too(made: tuple[Path, list[Sample]]) -> None:
    folder, samples = made
    study = study_in(folder / "runs")
    labels = write_labels(folder / "labels.json", moved(samples))
    for suspected in (False, True):
        again = relabelled(study, labels, suspected=suspected)
        long, brief = (printed(study, Summary.of(study), [again], brief=brief) for brief in (False, True))
        assert {"By class", "Intervals of differences cover", "Count thresholds"} <= {
            text for text in _LONG if text in long
        }
        assert not [text for text in _LONG if text in brief]
        # A note on brackets; of the labels a title, a sentence on them, whether a sign changes; then their table.
        assert [len(block.splitlines()) for block in brief.split("\n\n")[2:]] == [1, 3, 5, 2]


def test_brief_is_brief_of_a_condition_alone(tmp_path: Path) -> None:
    """No variations and one number of real images: nothing is compared."""
    samples = make_samples(tmp_path / "images")
    for seed in (0, 1):
        make_run(tmp_path / "runs" / f"{seed}", samples, seed)
    study = study_in(tmp_path / "runs")
    brief = printed(study, Summary.of(study), brief=True)
    assert brief.splitlines()[-1].startswith("There is one condition. s2: AP50 ")
    assert not [text for text in _LONG if text in brief]


_LONG = (
    "By class",
    "Intervals of differences cover",
    "Count thresholds",
    "No person has confirmed",
    "do not record the commit",
)


def labels_of(folder: Path, file_names: list[str], images: list[str]) -> list[int]:
    """The number of objects of each image of a run, by a file whose n-th image has n + 1 of them."""
    samples = []
    for place, name in enumerate(file_names):
        boxes = np.array([[5 * at, 0, 5 * at + 4, 4] for at in range(place + 1)], dtype=np.float32)
        n, path = len(boxes), folder / name
        parts = (boxes, np.zeros(n, dtype=np.int64), np.full(n, 16.0), np.zeros(n, dtype=bool))
        samples.append(Sample(name, path, 80, 80, place + 1, *parts))
    labels = OtherLabels(write_labels(folder / "labels.json", samples), CLASSES, {})
    return [len(s.boxes) for s in labels.of([{"image_id": 9, "file_name": name} for name in images])]


@pytest.mark.parametrize(
    ("file_names", "images"),
    [
        (["harbour-1.png"], ["1.png"]),  # no prefix of Label Studio
        (["b/1.png"], ["a/1.png"]),
        (["a/1.png", "b/1.png"], ["1.png"]),  # either may be meant
        (["1.png"], ["a/1.png", "b/1.png"]),
        (["0a1b2c3d-1.png", "1a1b2c3d-1.png"], ["a/1.png"]),
    ],
)
def test_no_image_gets_the_labels_of_another(tmp_path: Path, file_names: list[str], images: list[str]) -> None:
    with pytest.raises(InputError, match=f"lacks {len(images)} of {len(images)} test or validation images"):
        labels_of(tmp_path, file_names, images)


@pytest.mark.parametrize(
    ("file_names", "images", "objects"),
    [
        (["0a1b2c3d-1.png", "harbour-1.png"], ["1.png", "harbour-1.png"], [1, 2]),
        (["b/1.png", "a/1.png"], ["a/1.png", "b/1.png"], [2, 1]),
        (["data/b/1.png", "data/a/1.png"], ["a/1.png", "b/1.png"], [2, 1]),
        (["x/1.png", "1.png"], ["1.png"], [2]),  # the equal path
    ],
)
def test_images_are_found_by_their_paths(
    tmp_path: Path, file_names: list[str], images: list[str], objects: list[int]
) -> None:
    assert labels_of(tmp_path, file_names, images) == objects


@pytest.mark.parametrize("side", ["test", "validation"])
def test_labels_of_resized_images_are_refused(made: tuple[Path, list[Sample]], side: str) -> None:
    folder, samples = made
    place = 0 if side == "validation" else VALIDATION
    resized = [replace(s, width=160, height=160) if at == place else s for at, s in enumerate(samples)]
    file = write_labels(folder / "labels.json", resized)
    message = f"1 images are of another size .*scene {place}.png: 160 x 160 stated, 80 x 80 in the runs"
    with pytest.raises(InputError, match=message):
        relabelled(study_in(folder / "runs"), file)
    # Runs of older versions keep no sizes.
    for result in folder.glob("runs/*/result.json"):
        content = json.loads(result.read_text())
        for entry in (*content["counts"], *content["validation_images"]):
            del entry["width"], entry["height"]
        result.write_text(json.dumps(content))
    assert relabelled(study_in(folder / "runs"), file).images == len(samples) - VALIDATION


@pytest.mark.parametrize("on_bad_box", ["error", "clip", "drop"])
def test_images_that_a_tag_turns_may_be_stated_as_they_are_stored(tmp_path: Path, on_bad_box: str) -> None:
    box = np.array([[5, 90, 20, 99]], dtype=np.float32)  # below the height of the stored image
    parts = (box, np.zeros(1, dtype=np.int64), np.full(1, 135.0), np.zeros(1, dtype=bool))
    file = write_labels(tmp_path / "labels.json", [Sample("1.png", tmp_path / "1.png", 100, 60, 1, *parts)])
    images = [{"image_id": 9, "file_name": "1.png", "width": 60, "height": 100}]
    (found,) = OtherLabels(file, CLASSES, {"on_bad_box": on_bad_box}, images).of(images)
    np.testing.assert_array_equal(found.boxes, box)
    assert (found.width, found.height) == (60, 100)
