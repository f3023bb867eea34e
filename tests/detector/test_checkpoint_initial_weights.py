from pathlib import Path

import pytest
import torch
from trained_detectors import make_trained, predictions

from boxtwin.detector.checkpoint import (
    TrainedDetector,
    anchors_of,
    read_initial_weights,
    weights_digest,
    write_detector,
)
from boxtwin.detector.network import YOLOv3
from boxtwin.errors import InputError

ANCHORS = (((40.0, 40.0),) * 3, ((10.0, 10.0),) * 3)


@pytest.mark.parametrize(("before", "after"), [(3, 1), (1, 3), (1, 1)])
def test_a_cells_detector_goes_on_from_another_ones(before: int, after: int, tmp_path: Path) -> None:
    source = make_trained(architecture="yolov3_nano", channels=before)
    path = tmp_path / "detector.safetensors"
    write_detector(source, path)
    network = YOLOv3("yolov3_nano", 2, ANCHORS, channels=after)
    report = read_initial_weights(network, path)
    assert report.skipped == ()
    images = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = network.eval()(images.expand(1, after, 64, 64))
        theirs = source.module.network(images.expand(1, before, 64, 64))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    assert anchors_of(path) == source.module.network.anchors


def test_predictions_of_other_classes_stay_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "detector.safetensors"
    source = make_trained(architecture="yolov3_nano", channels=1)
    write_detector(source, path)
    network = YOLOv3("yolov3_nano", 5, ANCHORS, channels=1)
    before = [predict.weight.clone() for predict in predictions(network)]
    report = read_initial_weights(network, path)
    assert len(report.skipped) == 2
    assert all(torch.equal(now.weight, old) for now, old in zip(predictions(network), before, strict=True))
    for ours, theirs in zip(network.stages.parameters(), source.module.network.stages.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_other_networks_and_files_without_anchors_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "detector.safetensors"
    write_detector(make_trained(architecture="yolov3_nano"), path)
    with pytest.raises(InputError, match="holds a yolov3_nano; its weights do not fit a yolov3_tiny"):
        read_initial_weights(YOLOv3("yolov3_tiny", 2, ANCHORS), path)
    with pytest.raises(InputError, match=r"tiny\.weights holds no anchors"):
        anchors_of(tmp_path / "tiny.weights")


def test_the_same_tensors_are_the_same_weights_whatever_run_they_come_from(tmp_path: Path) -> None:
    source = make_trained(architecture="yolov3_nano")
    digests = []
    for name, threshold in (("a", 0.5), ("b", 0.25)):
        path = tmp_path / name / "detector.safetensors"
        write_detector(TrainedDetector(source.module, threshold, {"study": name}), path)
        digests.append(weights_digest(path))
    assert digests[0] == digests[1]
    assert len({(tmp_path / name / "detector.safetensors").read_bytes() for name in "ab"}) == 2
    with torch.no_grad():
        source.module.network.state_dict()["heads.0.predict.bias"][0] += 1e-3
    write_detector(source, tmp_path / "c" / "detector.safetensors")
    assert weights_digest(tmp_path / "c" / "detector.safetensors") != digests[0]
    (tmp_path / "detector.safetensors").write_bytes(path.read_bytes()[:40])
    with pytest.raises(InputError, match="damaged"):
        weights_digest(tmp_path / "detector.safetensors")
