"""export.py's work, in process; the command itself is run in end_to_end."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from trained_detectors import make_trained

from boxtwin.commands.export import export_detector
from boxtwin.config.schema import ExportConfig
from boxtwin.detector.checkpoint import write_detector
from boxtwin.errors import InputError


@pytest.fixture
def run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = Path("multirun/tiny/s1-x0-none-yolov3_nano-seed0-0123")
    write_detector(make_trained(), folder / "detector.safetensors")
    return folder


def config(**values: object) -> DictConfig:
    merged = OmegaConf.merge(OmegaConf.structured(ExportConfig), {"formats": ["darknet"]}, values)
    assert isinstance(merged, DictConfig)
    return merged


@pytest.mark.parametrize("whole_run", [True, False])
def test_darknet_files_go_beside_the_detector_or_where_one_says(run_folder: Path, whole_run: bool) -> None:
    chosen = {} if whole_run else {"to": "a/b"}
    source = run_folder if whole_run else run_folder / "detector.safetensors"
    written = export_detector(config(run=str(source), **chosen))
    folder = run_folder / "export" if whole_run else Path("a/b")
    assert written == [folder / f"detector.{ending}" for ending in ("weights", "cfg", "names")]
    assert (folder / "detector.names").read_text() == "ship\nbuoy\n"
    network = cv2.dnn.readNetFromDarknet(str(folder / "detector.cfg"), str(folder / "detector.weights"))
    images = np.random.default_rng(0).random((1, 1, 64, 64), dtype=np.float32)
    network.setInput(images)
    with torch.no_grad():
        raw = make_trained().module.network(torch.from_numpy(images))
    for maps, level in zip(network.forward(["conv_10", "conv_17"]), raw, strict=True):
        np.testing.assert_allclose(level[0].permute(0, 3, 1, 2).reshape(maps.shape).numpy(), maps, atol=1e-3)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "need a value: run\nfinished runs:\n  run=multirun/tiny/s1-x0"),
        (
            {"run": "multirun/tiny/s1-x9"},
            "there is no multirun/tiny/s1-x9\nfinished runs:\n  run=multirun/tiny/s1-x0",
        ),
        ({"run": "."}, "there is no detector.safetensors\nfinished runs:\n  run=multirun/tiny/s1-x0"),
        ({"run": "elsewhere/x"}, "finished runs:\n  run=multirun/tiny/s1-x0"),
        (
            {"run": "RUN", "formats": ["onnx", "tflite"]},
            "formats=[tflite] must name one or more of onnx, mlflow, darknet",
        ),
        ({"run": "RUN", "formats": "tflite"}, "formats=[tflite] must name one or more of onnx, mlflow, darknet"),
        ({"run": "RUN", "formats": []}, "formats=[] must name one or more of onnx, mlflow, darknet"),
        ({"run": "RUN", "register": "ships"}, "register=ships registers the MLflow model; add mlflow to formats"),
        ({"run": "RUN", "register": "ships-1.0", "formats": "mlflow"}, "MLflow takes no name of a model with / : . %"),
        ({"run": "RUN", "register": " ", "formats": "mlflow"}, "MLflow takes no name of a model with / : . %"),
        ({"run": "RUN", "to": "file"}, "file is a file; give another folder"),
        ({"run": "RUN", "to": "file/below"}, "file is a file; give another folder"),
    ],
)
def test_errors_tell_what_there_is(run_folder: Path, values: dict[str, object], message: str) -> None:
    Path("file").touch()
    if values.get("run") == "RUN":
        values = values | {"run": str(run_folder)}
    with pytest.raises(InputError) as error:
        export_detector(config(**values))
    assert message in str(error.value)
    assert sorted(path.name for path in run_folder.iterdir()) == ["detector.safetensors"]


def test_without_any_run_the_error_says_how_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"no finished run lies in \.; python train\.py trains one"):
        export_detector(config(run="multirun/a/b"))
