"""Which of the counted images detectors have learnt from."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from boxtwin.counting.ensemble import ImageCount
from boxtwin.counting.files import CountedImage
from boxtwin.counting.images import Read
from boxtwin.counting.learnt import _run_of, learnt_images
from boxtwin.datasets.image_io import write_png
from boxtwin.datasets.reading import Reading
from boxtwin.datasets.sample import Detections


@pytest.mark.parametrize("place", ["detector.safetensors", "export/detector.onnx"])
def test_the_run_of_a_detector_is_found(place: str) -> None:
    study = Path("multirun/study")
    assert _run_of(study / "s1-x0-seed0" / place) == study / "s1-x0-seed0"
    assert _run_of(study / "final-seed2" / place) == study / "final"


def test_data_sets_may_have_images_of_one_name(tmp_path: Path) -> None:
    """a.png is trained on in one data set, and another a.png validates in the other."""
    pixels = [np.random.default_rng(seed).integers(0, 256, (48, 48)).astype(np.uint8) for seed in range(5)]
    detectors = []
    for number in range(2):
        names = {"a.png": pixels[2 * number], "b.png": pixels[2 * number + 1]}
        for name, image in names.items():
            write_png(tmp_path / f"set{number}" / "images" / name, image)
        run = tmp_path / "multirun" / "study" / f"run{number}"
        run.mkdir(parents=True)
        settings = {"dataset": {"root": str(tmp_path / f"set{number}"), "images": "images"}}
        (run / "config.yaml").write_text(yaml.safe_dump(settings))
        train, val = ("a.png", "b.png") if number == 0 else ("b.png", "a.png")
        (run / "split.json").write_text(json.dumps({"s1": {"train": [train], "val": [val], "test": []}}))
        detectors.append(run / "detector.safetensors")
    write_png(tmp_path / "set1" / "images" / "a.png", pixels[0])  # and a copy of what the other was trained on
    learnt = learnt_images(detectors, Reading())
    read = [Read(f"{place}.png", Path(f"{place}.png"), None, image) for place, image in enumerate(pixels)]
    for each in read:
        learnt.look_at(each)
    nothing = Detections(np.zeros((0, 4)), np.zeros(0), np.zeros(0, dtype=np.int64))
    zero = np.zeros(2, dtype=np.int64)
    count = ImageCount(zero, None, zero, (), 1.0, 0, nothing, nothing)
    counted = [CountedImage(each.name, each.path, None, 48, 48, count) for each in read]
    marks = [image.learnt for image in learnt.marked(counted)]
    assert marks == [("training", "a.png"), ("validation", "b.png"), None, ("training", "b.png"), None]
