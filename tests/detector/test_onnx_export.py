import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from trained_detectors import make_trained

from boxtwin.detector import onnx_export
from boxtwin.detector.decode import boxes_and_scores
from boxtwin.detector.onnx_export import write_onnx
from boxtwin.detector.spec import DetectorSpec
from boxtwin.errors import InputError


@pytest.mark.parametrize(
    ("architecture", "channels"),
    [
        pytest.param("yolov3", 1, marks=pytest.mark.slow),
        ("yolov3_spp", 3),
        ("yolov3_tiny", 1),
        ("yolov3_tiny_3l", 3),
        ("yolov3_nano", 3),
    ],
)
def test_onnx_runtime_computes_what_torch_does(architecture: str, channels: int, tmp_path: Path) -> None:
    scale_xy = 2.0 if channels == 1 else 1.0
    detector = make_trained(architecture=architecture, channels=channels, scale_xy=scale_xy)
    path = tmp_path / "detector.onnx"
    write_onnx(detector, path)
    onnx.checker.check_model(path, full_check=True)
    session = onnxruntime.InferenceSession(path)
    network = detector.module.network
    for batch in (1, 3):
        images = torch.rand(batch, channels, 64, 64, generator=torch.Generator().manual_seed(batch))
        found_boxes, found_scores = session.run(["boxes", "scores"], {"images": images.numpy()})
        with torch.no_grad():
            boxes, scores = boxes_and_scores(network(images), network.anchors, network.strides, scale_xy=scale_xy)
        places = sum(3 * (64 // stride) ** 2 for stride in network.strides)
        assert found_boxes.shape == (batch, places, 4)
        assert found_scores.shape == (batch, places, 2)
        assert np.ptp(found_scores) > 0.05
        np.testing.assert_allclose(found_boxes, boxes.numpy(), atol=1e-3, rtol=1e-5)
        np.testing.assert_allclose(found_scores, scores.numpy(), atol=1e-3, rtol=0)
    model = onnx.load(path)
    texts = {entry.key: entry.value for entry in model.metadata_props}
    assert DetectorSpec.from_text(texts, "it") == detector.spec
    assert texts["classes"] == '["ship", "buoy"]'
    assert texts["origin.study"] == "tiny"
    assert json.loads(texts["inputs"])["images"].startswith(f"(batch, {channels}, 64, 64) float32 in [0, 1]")
    assert "xyxy, pixels of the letterboxed image" in json.loads(texts["outputs"])["boxes"]
    assert [value.doc_string for value in model.graph.output] == list(json.loads(texts["outputs"]).values())
    assert str(Path(onnx_export.__file__).parent).encode() not in path.read_bytes()  # no paths of this machine
    path.unlink()  # a quarter of a gigabyte that pytest would keep


def test_missing_packages_are_told_with_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(onnx_export, "PACKAGES", ("onnx", "no_such_package"))
    with pytest.raises(InputError, match=r"needs no_such_package; install with: pip install 'boxtwin\[export\]'"):
        write_onnx(make_trained(), tmp_path / "detector.onnx")
    assert not list(tmp_path.iterdir())
