import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from trained_detectors import detect_as_studies_do, make_trained

from boxtwin.datasets.image_io import read_image
from boxtwin.datasets.reading import Reading
from boxtwin.detector import onnx_export
from boxtwin.detector.checkpoint import TrainedDetector
from boxtwin.detector.decode import boxes_and_scores
from boxtwin.detector.onnx_export import write_onnx
from boxtwin.detector.predict import OnnxDetector, detect_objects
from boxtwin.detector.spec import DetectorSpec
from boxtwin.errors import InputError


@pytest.mark.parametrize(
    ("architecture", "channels"),
    [
        pytest.param("yolov3", 1, marks=pytest.mark.slow),
        pytest.param("yolov3_spp", 3, marks=pytest.mark.slow),
        pytest.param("yolov3_tiny", 1, marks=pytest.mark.slow),
        ("yolov3_tiny_3l", 3),
        ("yolov3_nano", 1),
    ],
)
def test_onnx_runtime_computes_what_torch_does(architecture: str, channels: int, tmp_path: Path) -> None:
    scale_xy = 2.0 if channels == 1 else 1.0
    settings = Reading(max_pixels=960).plain()
    detector = make_trained(architecture=architecture, channels=channels, scale_xy=scale_xy, reading=settings)
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


Both = tuple[TrainedDetector, OnnxDetector]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Both]:
    def export(**changes: Any) -> Both:
        detector = make_trained(**changes)
        path = tmp_path_factory.mktemp("onnx") / "detector.onnx"
        write_onnx(detector, path)
        return detector, OnnxDetector(path)

    return export


@pytest.fixture(scope="module")
def grey_in_tiles(exported: Callable[..., Both]) -> Both:
    """Of 16 bit images."""
    return exported(channels=1, tile=64, image_size=160, white=1000, black=200)


@pytest.fixture(scope="module")
def colour_whole(exported: Callable[..., Both]) -> Both:
    return exported(channels=3, max_detections=7, count_threshold=1.0)  # of which none is counted


def write_images(folder: Path, dtype: type, scale: int) -> list[Path]:
    """Landscape, portrait, grey, colour, larger and smaller than what the network takes."""
    random = np.random.default_rng(0)
    shapes = ((100, 160), (160, 90, 3), (200, 200), (40, 30, 3), (300, 17))
    paths = [folder / f"{number}.png" for number in range(len(shapes))]
    for path, shape in zip(paths, shapes, strict=True):
        assert cv2.imwrite(str(path), random.integers(0, 256 * scale, shape).astype(dtype))
    return paths


def check_same(both: Both, paths: list[Path]) -> None:
    trained, onnx_detector = both
    total = 0
    for path, expected in zip(paths, detect_as_studies_do(trained, paths), strict=True):
        found = onnx_detector(onnx_detector.read(path.read_bytes(), path.name))
        total += len(found.scores)
        assert len(found.scores) == len(expected.scores), path
        np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-2)
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)
        np.testing.assert_array_equal(found.labels, expected.labels)
    assert total > len(paths)


def test_it_finds_the_same_in_tiles_of_16_bit_images(grey_in_tiles: Both, tmp_path: Path) -> None:
    check_same(grey_in_tiles, write_images(tmp_path, np.uint16, 5))  # some darker than black, some brighter than white


def test_it_finds_the_same_in_whole_8_bit_images(colour_whole: Both, tmp_path: Path) -> None:
    paths = write_images(tmp_path, np.uint8, 1)
    check_same(colour_whole, paths)
    _, detector = colour_whole
    assert max(len(detector(detector.read(path.read_bytes(), "it")).scores) for path in paths) == 7  # its own limit


def test_pixels_are_the_files(colour_whole: Both, tmp_path: Path) -> None:
    for path in write_images(tmp_path, np.uint8, 1):
        np.testing.assert_array_equal(colour_whole[1].read(path.read_bytes(), "it"), read_image(path))


def test_images_of_another_depth_are_refused(grey_in_tiles: Both, colour_whole: Both) -> None:
    def encoded(value: int, dtype: type) -> bytes:
        return cv2.imencode(".png", np.full((8, 8), value, dtype))[1].tobytes()

    with pytest.raises(InputError, match=r"image 4 has 8 bit; the detector was trained on 16 bit, full scale 1000"):
        grey_in_tiles[1].read(encoded(200, np.uint8), "image 4")
    with pytest.raises(InputError, match="it has 16 bit; the detector was trained on values up to 255"):
        colour_whole[1].read(encoded(256, np.uint16), "it")
    # A 16 bit file of 8 bit values is fine.
    assert colour_whole[1].read(encoded(200, np.uint16), "it").max() == 200


@pytest.mark.parametrize(
    "content", [b"", b"no image", cv2.imencode(".png", np.eye(40, dtype=np.uint8))[1].tobytes()[:60]]
)
def test_what_is_no_image_is_refused(colour_whole: Both, content: bytes) -> None:
    with pytest.raises(InputError, match="image 2 cannot be decoded"):
        colour_whole[1].read(content, "image 2")


def test_other_onnx_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read as ONNX"):
        OnnxDetector(tmp_path / "none.onnx")
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    other = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", [value], [other])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)]), tmp_path / "o.onnx")
    with pytest.raises(InputError, match=r"o\.onnx is no detector of boxtwin: its metadata lack architecture"):
        OnnxDetector(tmp_path / "o.onnx")


def test_images_are_turned_and_refused_as_in_training(colour_whole: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    detector, file, exif = colour_whole[1], io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.arange(24 * 40, dtype=np.uint32).reshape(24, 40).astype(np.uint8)).save(file, "PNG", exif=exif)
    assert detector.read(file.getvalue(), "it").shape == (24, 40)  # from before there was a setting
    settings, spec = Reading(max_pixels=960).plain(), detector.spec
    monkeypatch.setattr(detector, "spec", replace(spec, reading=settings))
    assert detector.read(file.getvalue(), "it").shape == (40, 24)
    monkeypatch.setattr(detector, "spec", replace(spec, reading=settings | {"max_pixels": 959}))
    with pytest.raises(InputError, match=r"it has 40 x 24 pixels, more than dataset\.max_pixels=959"):
        detector.read(file.getvalue(), "it")


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
