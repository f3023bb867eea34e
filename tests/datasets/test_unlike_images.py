"""New images that are unlike the training images of a detector are marked."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
from trained_detectors import samples_of

from boxtwin.datasets.image_io import read_image, write_png
from boxtwin.datasets.levels import Levels
from boxtwin.datasets.training_images import TrainingImages


def test_unlike_images_are_marked(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    *sharp, new = rng.integers(0, 256, (21, 64, 64)).astype(np.uint8)
    for number, pixels in enumerate(sharp):
        write_png(tmp_path / f"{number}.png", (64 + pixels // 2).astype(np.uint8))
    samples = samples_of([tmp_path / f"{number}.png" for number in range(20)])
    known = TrainingImages.of(samples, samples, lambda sample: read_image(sample.path), Levels())
    assert TrainingImages.from_plain(json.loads(json.dumps(known.plain()))) == known
    same = (64 + new // 2).astype(np.uint8)
    assert known.differences(same) == []
    assert known.differences(cv2.GaussianBlur(same, (0, 0), 3)) == ["blurred"]
    assert known.differences(same // 3) == ["darker"]
    assert known.differences(np.full((64, 64), 250, np.uint8))[0] == "brighter"
    assert known.differences(np.tile(same, (2, 2))) == ["size"]
