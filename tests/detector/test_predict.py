"""The loop over tiles with torch, against the data set, batches and module of a run's evaluation."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from trained_detectors import detect_as_studies_do, make_trained

from boxtwin.datasets.image_io import read_image
from boxtwin.detector.predict import detect_objects


@pytest.mark.parametrize(
    ("changes", "dtype", "scale"),
    [
        ({"channels": 1, "tile": 64, "image_size": 160, "white": 1000, "black": 200}, np.uint16, 5),
        ({"channels": 3, "max_detections": 7}, np.uint8, 1),
    ],
)
def test_an_image_has_the_same_detections_as_in_an_evaluation(
    changes: dict[str, Any], dtype: type, scale: int, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for path, shape in zip(paths, ((100, 160), (160, 90, 3), (300, 17)), strict=True):
        assert cv2.imwrite(str(path), rng.integers(0, 256 * scale, shape).astype(dtype))
    trained = make_trained(**changes)
    for path, expected in zip(paths, detect_as_studies_do(trained, paths), strict=True):
        found = detect_objects(read_image(path), trained.spec, trained.compute)
        assert len(found.scores) > 1
        np.testing.assert_array_equal(found.labels, expected.labels)
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-6)
        np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-3)
