"""Classes of which nothing is found: shown on the page, and named where that is unlikely."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from trained_detectors import make_trained, samples_of

from boxtwin.commands.count import count_images
from boxtwin.config.schema import CountConfig
from boxtwin.datasets.image_io import read_image, write_png
from boxtwin.datasets.levels import Levels
from boxtwin.datasets.training_images import TrainingImages
from boxtwin.detector.checkpoint import write_detector

LIKE_ALL = TrainingImages((64, 64, 64), (0.0, 1.0), (-9.0, 9.0))
NEVER = 1.0  # a threshold that no confidence reaches


@pytest.fixture(autouse=True)
def _images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for seed in range(3):
        pixels = np.random.default_rng(seed).integers(0, 256, (64, 64)).astype(np.uint8)
        write_png(Path(f"images/{seed}.png"), pixels)


def count(holding: Sequence[int], thresholds: tuple[float, float]) -> str:
    """The page of counts by a detector of ships and buoys."""
    trained = make_trained(class_thresholds=thresholds)
    write_detector(replace(trained, images=replace(LIKE_ALL, holding=tuple(holding))), Path("detector.safetensors"))
    config = CountConfig(run="detector.safetensors", images="images", device="cpu")
    return (count_images(OmegaConf.structured(config)) / "index.html").read_text()


def test_a_class_that_most_training_images_hold_and_no_new_one_is_named(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        page = count((20, 20, 15), (0.3, NEVER))
    line = "counted in none of 3 images: buoy (in 15 of 20 training images, counted from confidence 1.000); "
    assert line in caplog.text
    assert line in page


@pytest.mark.parametrize(
    ("holding", "thresholds"),
    [
        ((20, 20, 5), (0.3, NEVER)),  # three images have none with a probability of 0.44
        ((20, 20), (0.3, NEVER)),
        ((20,), (NEVER, NEVER)),  # no object at all
        ((), (0.3, NEVER)),  # a detector of an older version
        ((20, 20, 20), (0.0, 0.0)),
    ],
)
def test_other_classes_are_not(
    holding: Sequence[int], thresholds: tuple[float, float], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        page = count(holding, thresholds)
    assert "counted in none" not in caplog.text + page


def test_the_page_shows_classes_with_a_count_of_zero() -> None:
    page = re.sub(r"\s+", " ", count((20, 20, 15), (0.3, NEVER)))
    total = re.search(r"<p>(\d+) objects in 3 images: ship (\d+), buoy 0\.</p>", page)
    assert total is not None
    assert total[1] == total[2] != "0"
    assert len(re.findall(r"> ship&nbsp;\d+, buoy&nbsp;0 </div>", page)) == 3


def test_images_that_hold_a_class_are_counted_once() -> None:
    boxes = [[[1, 1, 9, 9], [20, 20, 29, 29]], [], [[1, 1, 9, 9]]]
    samples = [
        replace(
            sample,
            boxes=np.array(of_image, np.float32).reshape(-1, 4),
            labels=np.full(len(of_image), 1),
            areas=np.full(len(of_image), 64.0),
            crowd=np.zeros(len(of_image), bool),
        )
        for sample, of_image in zip(samples_of(sorted(Path("images").iterdir())), boxes, strict=True)
    ]
    known = TrainingImages.of(samples, samples, lambda sample: read_image(sample.path), Levels())
    assert known.holding == (3, 0, 2)
    assert TrainingImages.from_plain(known.plain()) == known
