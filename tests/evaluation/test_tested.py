"""The test of a detector from what it finds to the files of a run; the detector is a table of detections."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from coco_reference import coco_metrics

from boxtwin.datasets.image_io import write_png
from boxtwin.datasets.sample import Detections, Sample
from boxtwin.evaluation.coco_metrics import coco_results
from boxtwin.evaluation.counts import Thresholds
from boxtwin.evaluation.examples import EXAMPLES_FILE, load_examples
from boxtwin.evaluation.matching import match_detections
from boxtwin.evaluation.resampled_ap import MATCHES_FILE, ResampledAP, load_matches
from boxtwin.evaluation.tested import PICTURES, Evaluation, run_test

CLASSES, IDS = ("a/b", "rare"), (4, 2)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Sample], dict[int, Detections]]:
    """Twelve images; only the last six hold objects of the second class."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    samples, found = [], {}
    for number in range(12):
        path, n = folder / f"{number}.png", int(rng.integers(1, 5))
        write_png(path, rng.integers(0, 90, (64, 64)).astype(np.uint8))
        corner, labels = rng.uniform(0, 44, (n, 2)), rng.integers(0, 2 if number > 5 else 1, n)
        boxes = np.concatenate([corner, corner + 16], axis=1)
        samples.append(Sample(path.name, path, 64, 64, number, boxes, labels, np.full(n, 256.0), np.zeros(n, bool)))
        scores = np.sort(rng.random(2 * n))[::-1]
        places = rng.permutation(np.concatenate([boxes, boxes + 30]))
        found[number] = Detections(places, scores, rng.integers(0, 2, 2 * n))
    return samples, found


def evaluated(images: tuple[list[Sample], dict[int, Detections]], folder: Path, asked: list[int]) -> Evaluation:
    samples, found = images

    def detect(wanted: Sequence[Sample], thresholds: Thresholds | None) -> dict[int, Detections]:
        assert (thresholds is not None) == (wanted == samples[6:])  # known in the test
        asked.extend(sample.image_id for sample in wanted)
        return {sample.image_id: found[sample.image_id] for sample in wanted}

    return run_test(
        detect,
        validation=samples[:4],
        synthetic=samples[4:6],
        test=samples[6:],
        classes=CLASSES,
        category_ids=IDS,
        folder=folder,
    )


def test_one_look_at_each_image_gives_all_files_and_metrics(
    images: tuple[list[Sample], dict[int, Detections]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[int] = []
    with caplog.at_level(logging.INFO):
        result = evaluated(images, tmp_path, asked)
    assert sorted(asked) == list(range(12))
    samples, found = images[0][6:], {number: images[1][number] for number in range(6, 12)}
    expected = coco_metrics(samples, found, IDS)
    assert {name: result.metrics[f"test/{name}"] for name in expected} == pytest.approx(expected, nan_ok=True)
    assert result.metrics["val_real/map"] == pytest.approx(
        coco_metrics(images[0][:4], {n: images[1][n] for n in range(4)}, IDS)["map"]
    )
    assert "val_synthetic/map" in result.metrics
    # The class that validation images lack.
    assert result.thresholds.guessed == (1,)
    assert result.metrics["val_real/rare/count_threshold"] == result.metrics["val_real/count_threshold"]
    assert [record.levelno for record in caplog.records if "class rare" in record.message] == [logging.WARNING]
    assert [entry["name"] for entry in result.classes] == list(CLASSES)
    for entry, name in zip(result.classes, ("a_b", "rare"), strict=True):
        assert result.metrics[f"test/{name}/count_mae"] == entry["metrics"]["count_mae"]
        assert result.metrics[f"val_real/{name}/count_threshold"] == entry["count_threshold"]
    # Files: what outside tools read, what intervals need, what was counted.
    assert json.loads((tmp_path / "detections.json").read_text()) == coco_results(found, IDS)
    kept, fresh = load_matches(tmp_path / MATCHES_FILE), match_detections(samples, found, 2)
    once = np.ones((1, 6))
    np.testing.assert_array_equal(kept["small"](once), ResampledAP.of(fresh, "small")(once))
    examples = load_examples(tmp_path / EXAMPLES_FILE)
    assert examples is not None
    for entry in result.counts:
        image = cast(int, entry["image_id"])
        assert entry["found"] == (len(examples.found[image].boxes) if image in examples.found else 0)
    assert all((tmp_path / name).stat().st_size > 1000 for name in PICTURES)


def test_nothing_found_gives_an_empty_list(images: tuple[list[Sample], dict[int, Detections]], tmp_path: Path) -> None:
    nothing = {number: Detections(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int)) for number in range(12)}
    result = evaluated((images[0], nothing), tmp_path, [])
    assert json.loads((tmp_path / "detections.json").read_text()) == []
    assert result.metrics["test/map"] == 0
    assert result.metrics["test/count_bias"] < 0
