import base64
import json
import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import yaml
from mlflow.exceptions import MlflowException
from trained_detectors import detect_as_studies_do, make_trained

from boxtwin.datasets.image_io import write_png
from boxtwin.detector.checkpoint import TrainedDetector
from boxtwin.detector.onnx_export import write_onnx
from boxtwin.errors import InputError
from boxtwin.tracking.mlflow_model import save_mlflow_model
from boxtwin.tracking.mlflow_runs import Store


@pytest.fixture(scope="module")
def detector() -> TrainedDetector:
    return make_trained(channels=1, count_threshold=0.25, class_thresholds=(0.2, 0.4), max_detections=400)


@pytest.fixture(scope="module")
def onnx(detector: TrainedDetector, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "detector.onnx"
    write_onnx(detector, path)
    return path


@pytest.fixture(scope="module")
def saved(detector: TrainedDetector, onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "ships" / "mlflow"
    save_mlflow_model(onnx, detector.spec, folder)
    return folder


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    random = np.random.default_rng(0)
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for path, shape in zip(paths, ((50, 70), (64, 64, 3), (90, 30)), strict=True):
        write_png(path, random.integers(0, 256, shape).astype(np.uint8))
    return paths


def test_it_answers_with_the_counts_and_boxes_of_a_run(
    saved: Path, detector: TrainedDetector, images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))  # MLflow adds the folder's code
    model = mlflow.pyfunc.load_model(str(saved))
    rows = pd.DataFrame({"image": [path.read_bytes() for path in images]})
    for params, thresholds in ((None, (0.2, 0.4)), ({"threshold": 0.05}, (0.05, 0.05)), ({"threshold": 1.0}, (1, 1))):
        answers = model.predict(rows, params=params)
        assert len(answers) == 3
        for answer, found in zip(answers, detect_as_studies_do(detector, images), strict=True):
            expected = found.scores >= np.array(thresholds)[found.labels]
            assert answer["count"] == len(answer["boxes"]) == expected.sum()
            np.testing.assert_allclose(np.reshape(answer["boxes"], (-1, 4)), found.boxes[expected], atol=1e-2)
            np.testing.assert_allclose(answer["scores"], found.scores[expected], atol=1e-5)
            assert answer["counts"] == {
                name: int((found.labels[expected] == label).sum()) for label, name in enumerate(("ship", "buoy"))
            }
            assert answer["labels"] == [("ship", "buoy")[label] for label in found.labels[expected]]
    assert sum(answer["count"] for answer in model.predict(rows)) > 0
    with pytest.raises(MlflowException, match=r"threshold lies between 0 and 1, got 1\.5"):
        model.predict(rows, params={"threshold": 1.5})
    with pytest.raises(MlflowException, match="image 1 cannot be decoded as an image") as error:
        model.predict(pd.DataFrame({"image": [images[0].read_bytes(), b"no image"]}))
    assert error.value.get_http_status_code() == 400  # type: ignore[no-untyped-call]


def test_the_folder_tells_how_to_use_it_and_holds_no_pickle(saved: Path) -> None:
    content = yaml.safe_load((saved / "MLmodel").read_text())
    signature = {part: json.loads(text) for part, text in content["signature"].items() if text}
    assert signature["inputs"] == [{"type": "binary", "name": "image", "required": True}]
    assert [column["name"] for column in signature["outputs"]] == ["count", "counts", "boxes", "scores", "labels"]
    assert signature["params"][0]["name"] == "threshold"
    assert signature["params"][0]["default"] is None
    about = content["metadata"]["boxtwin"]
    assert (about["classes"], about["class_thresholds"]) == ('["ship", "buoy"]', "[0.2, 0.4]")
    assert about["max_detections"] == "400"
    example = json.loads((saved / "serving_input_example.json").read_text())["dataframe_split"]
    assert example["columns"] == ["image"]
    assert base64.b64decode(example["data"][0][0]).startswith(b"\x89PNG")
    requirements = {line.split("==")[0] for line in (saved / "requirements.txt").read_text().split()}
    readers = {"opencv-python-headless", "pillow", "tifffile"}
    assert requirements == {"mlflow", "numpy", "scipy", "onnxruntime", "jaxtyping"} | readers
    files = [path.relative_to(saved) for path in saved.rglob("*") if path.is_file()]
    assert Path("artifacts/detector.onnx") in files
    assert not [path for path in files if path.suffix in (".pkl", ".pyc", ".pt")]
    assert not [path for path in saved.parent.iterdir() if path != saved]


WITHOUT_TORCH = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "pytorch_lightning", "hydra", "omegaconf", "diffusers", "onnx"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
import mlflow.pyfunc, pandas
model = mlflow.pyfunc.load_model(sys.argv[1])
answers = model.predict(pandas.DataFrame({"image": [open(sys.argv[2], "rb").read()]}))
import boxtwin.detector.predict
print(answers[0]["count"], boxtwin.detector.predict.__file__)
"""


def test_it_runs_from_its_own_code_without_torch(saved: Path, detector: TrainedDetector, images: list[Path]) -> None:
    process = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, str(saved), str(images[0])], capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    count, file = process.stdout.split()
    (found,) = detect_as_studies_do(detector, images[:1])
    assert int(count) == (found.scores >= np.array([0.2, 0.4])[found.labels]).sum()
    assert Path(file).is_relative_to(saved / "code")


def test_an_older_model_is_replaced_and_nothing_else(saved: Path, onnx: Path, detector: TrainedDetector) -> None:
    (saved / "older").touch()
    save_mlflow_model(onnx, detector.spec, saved)
    assert not (saved / "older").exists()
    assert (saved / "MLmodel").exists()
    assert [path.name for path in saved.parent.iterdir()] == ["mlflow"]
    with pytest.raises(InputError, match="exists and is no MLflow model"):
        save_mlflow_model(onnx, detector.spec, onnx.parent)
    assert onnx.exists()


def test_it_is_registered_as_a_product_of_its_run(saved: Path, tmp_path: Path) -> None:
    store = Store(uri=None, folder=tmp_path / "mlruns")
    run = store.begin_run(study="tiny", name="random", identity="0123", params={}, tags={})
    assert store.register_model(saved, name="ships", study="tiny", identity="0123") == 1
    assert store.register_model(saved, name="ships", study="tiny", identity="unknown") == 2
    first, second = (store.client.get_model_version("ships", number) for number in ("1", "2"))
    assert (first.run_id, second.run_id or None) == (run.run_id, None)
    logged = store.client.search_logged_models([store.experiment("tiny")])
    assert {(model.name, model.status) for model in logged} == {("ships", "READY")}
    assert {model.source_run_id or None for model in logged} == {run.run_id, None}
    address = store.client.get_model_version_download_uri("ships", "2")
    folder = mlflow.artifacts.download_artifacts(address, dst_path=str(tmp_path))
    assert (Path(folder) / "MLmodel").is_file()
