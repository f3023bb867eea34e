"""From a run to counts over HTTP, with the commands of docs/export.md."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import cv2
import numpy as np
import pytest
from commands import ROOT, run, runs
from mlflow.tracking import MlflowClient
from omegaconf import OmegaConf
from trained_detectors import detect_as_studies_do, make_trained

from boxtwin.commands.export import export_detector
from boxtwin.config.schema import ExportConfig
from boxtwin.detector.checkpoint import TrainedDetector, write_detector
from boxtwin.detector.darknet import read_darknet
from boxtwin.errors import InputError

SERVE, ASK = (
    re.findall(rf"^{start}.*$", (ROOT / "docs" / "export.md").read_text().replace("\\\n", " "), re.M)[0]
    for start in ("mlflow models serve", "printf")
)


def test_a_trained_run_is_exported_and_registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("train.py experiment=tiny_control variations=0", tmp_path)
    (run_folder,) = tmp_path.glob("multirun/*/*/")
    printed = run(f"export.py run={run_folder.relative_to(tmp_path)} register=ships", tmp_path)
    assert re.search(r"export/detector\.onnx +[\d,]+\.\d kB\n", printed)
    assert re.search(r"export/mlflow +[\d,]+\.\d kB\n", printed)
    assert "INFO" not in printed
    assert "initializer" not in printed
    assert "registered: models:/ships/1 in sqlite:///" in printed
    assert sorted(path.name for path in (run_folder / "export").iterdir()) == ["detector.onnx", "mlflow"]
    version = MlflowClient(f"sqlite:///{tmp_path / 'mlruns' / 'mlflow.db'}").get_model_version("ships", "1")
    assert [version.run_id] == [r.info.run_id for r in runs(tmp_path)]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=re.escape(str(run_folder.relative_to(tmp_path)))):
        export_detector(OmegaConf.structured(ExportConfig(run="multirun/nothing", formats=["onnx"])))


def published_or_random(folder: Path) -> TrainedDetector:
    """YOLOv3-tiny with the published weights where they are at hand."""
    weights = ROOT / "../shared/weights"
    if not (weights / "yolov3-tiny.weights").exists():
        return make_trained(architecture="yolov3_tiny", channels=3, image_size=416)
    names = (weights / "coco.names").read_text().split("\n")[:80]
    detector = make_trained(
        architecture="yolov3_tiny", channels=3, image_size=416, classes=names, category_ids=list(range(80))
    )
    read_darknet(detector.module.network, weights / "yolov3-tiny.weights")
    return detector


def chip(folder: Path) -> Path:
    """A real image where one is at hand: one in which a network for photographs finds something."""
    real = ROOT / "../shared/data/hrsid200/JPEGImages/P0007_1200_2000_8400_9200.jpg"
    if real.exists():
        return real
    path = folder / "chip.png"
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 256, (300, 400)).astype(np.uint8))
    return path


def test_the_served_model_answers_with_what_a_run_finds(tmp_path: Path) -> None:
    image = chip(tmp_path)
    detector = published_or_random(tmp_path)
    (expected,) = detect_as_studies_do(detector, [image])
    assert len(expected.scores) > 8
    # Half way between two scores, so that rounding decides nothing.
    detector = TrainedDetector(detector.module, float(expected.scores[4:6].mean()))
    write_detector(detector, tmp_path / "run_folder" / "detector.safetensors")
    export_detector(OmegaConf.structured(ExportConfig(run=str(tmp_path / "run_folder"), formats=["mlflow"])))

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Only the folder's own code: nothing of this checkout is in the way.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])),
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    with (tmp_path / "served.log").open("w") as log:
        process = subprocess.Popen(
            ["bash", "-c", SERVE.replace("multirun/STUDY/RUN", "run_folder").replace("5001", str(port))],
            cwd=tmp_path,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        until = time.monotonic() + 300
        while process.poll() is None and time.monotonic() < until:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5):
                    break
            except OSError:
                time.sleep(0.25)
        command = ASK.replace("IMAGE", str(image)).replace("5001", str(port))
        said = subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True, check=True)
        assert said.stdout, (tmp_path / "served.log").read_text()
        (answer,) = json.loads(said.stdout)["predictions"]
        assert answer["count"] == len(answer["boxes"]) == 5
        np.testing.assert_allclose(answer["boxes"], expected.boxes[:5], atol=1e-2)
        np.testing.assert_allclose(answer["scores"], expected.scores[:5], atol=1e-5)
        assert answer["labels"] == [detector.module.classes[label] for label in expected.labels[:5]]

        rows = {"columns": ["image"], "data": [["bm8gaW1hZ2U="]]}  # "no image"
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/invocations",
            json.dumps({"dataframe_split": rows, "params": {"threshold": 0.5}}).encode(),
            {"Content-Type": "application/json"},
        )
        with pytest.raises(urllib.error.HTTPError) as error:
            urllib.request.urlopen(request, timeout=60)
        assert error.value.code == 400
        assert b"image 0 cannot be decoded" in error.value.read()
    finally:
        os.killpg(process.pid, 9)
        process.wait()
