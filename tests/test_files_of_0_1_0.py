"""Files that version 0.1.0 wrote (commit 4437dbc) are read, and are what the same settings give today.

The archive holds a data set of six images, a store of two variations each, and a run with its detector, most of whose
weights were set to zero afterwards so that the archive is small, and its ONNX file.
"""

import json
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from hydra import compose, initialize_config_dir

from boxtwin.config.compose import register, to_object
from boxtwin.config.schema import BoxtwinConfig
from boxtwin.datasets.options import Orientation
from boxtwin.datasets.sample import NO_CROWDS
from boxtwin.detector.checkpoint import read_detector
from boxtwin.detector.predict import OnnxDetector, detect_objects
from boxtwin.run.build import Prepared, prepare
from boxtwin.run.generators import make_labels
from boxtwin.studies.runs import runs_in

ROOT = Path(__file__).parents[1]
RUN = Path("multirun/blocks/s1-x2-copy_paste-yolov3_nano-seed0-e26b6552")
SETTINGS = (
    "dataset=coco dataset.name=blocks dataset.root=d dataset.image_size=64 detector=yolov3_nano detector.crop=null "
    "trainer.steps=4 trainer.validations=2 detector.warmup_steps=1 trainer.batch_size=2 split.train=2 "
    "split.train_pool=2 split.val=1 split.test=2 trainer.threads=1 variations='2' generator=copy_paste"
).split()


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the project that version 0.1.0 left."""
    with zipfile.ZipFile(Path(__file__).with_name("files_of_0.1.0.zip")) as archive:
        archive.extractall(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def prepared(*more: str) -> Prepared:
    register()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return prepare(to_object(compose("config", [*SETTINGS, *more]), BoxtwinConfig))


def test_the_detector_finds_what_its_onnx_file_finds(project: Path) -> None:
    trained, onnx = read_detector(project / RUN / "detector.safetensors"), OnnxDetector(RUN / "export/detector.onnx")
    assert trained.spec == onnx.spec
    assert (trained.spec.classes, trained.spec.image_size, trained.spec.how_to_read.orientation) == (
        ("block",),
        64,
        Orientation.ignore,
    )
    compared = 0
    for file in sorted((project / "d" / "images").iterdir()):
        pixels = cv2.imread(str(file), cv2.IMREAD_GRAYSCALE)
        assert pixels is not None
        ours, exported = detect_objects(pixels, trained.spec, trained.compute), onnx(pixels)
        np.testing.assert_allclose(ours.boxes, exported.boxes, atol=1e-3)
        np.testing.assert_allclose(ours.scores, exported.scores, atol=1e-5)
        compared += len(ours.scores)
    assert compared > 0


def test_the_store_is_found_whole_by_its_key(project: Path) -> None:
    run = prepared()
    assert run.library is not None
    assert run.library.folder.resolve() == next((project / "data" / "synthetic").iterdir())
    assert not run.library.missing(run.sources, 2)
    assert len(run.library.judged(run.sources, 2)) == 6


def test_the_same_settings_are_the_same_run(project: Path) -> None:
    run = prepared()
    recorded = json.loads((project / RUN / "result.json").read_text())
    assert recorded["identity"] in (run.identity, *run.earlier_identities)


def test_the_result_is_read_with_its_matches(project: Path) -> None:
    (run,) = runs_in(RUN.parent)
    recorded = json.loads((project / RUN / "result.json").read_text())
    assert run.metrics["test/map_50"] == recorded["metrics"]["test/map_50"]
    assert (run.split, run.variations, run.generator, run.seed) == ("s1", 2, "copy_paste", 0)


def test_its_annotations_serve_as_a_label_file(project: Path) -> None:
    store = next((project / "data" / "synthetic").iterdir())
    run = prepared("labels=manual", f"labels.file={store / 'annotations.json'}", "labels.confirmed=all")
    assert run.library is not None
    method = make_labels(run.config, run.dataset, run.library.generator).judge([])
    for line in map(json.loads, (store / "manifest.jsonl").read_text().splitlines()):
        pixels = cv2.imread(str(store / line["image"]), cv2.IMREAD_GRAYSCALE)
        assert pixels is not None
        judged = method(pixels, pixels, np.zeros((0, 4), np.float32), np.zeros(0, np.int64), line["image"], NO_CROWDS)
        assert judged.refused is None
        np.testing.assert_allclose([box.box for box in judged.boxes], np.array(line["claimed"]["boxes"]), atol=0.01)
