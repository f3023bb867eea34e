import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from trained_detectors import make_trained, predictions

import boxtwin
from boxtwin.datasets.levels import Levels
from boxtwin.datasets.options import Orientation
from boxtwin.datasets.reading import Reading
from boxtwin.detector.checkpoint import (
    TrainedDetector,
    anchors_of,
    damage,
    read_detector,
    read_initial_weights,
    weights_digest,
    write_detector,
)
from boxtwin.detector.module import DetectorModule
from boxtwin.detector.spec import DetectorSpec
from boxtwin.errors import InputError


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    detector = make_trained(0.1 + 0.2, (0.7, 0.2 + 0.4), max_detections=700, tile=64, image_size=160, white=1023)
    write_detector(detector, tmp_path / "detector.safetensors")
    before = torch.get_rng_state()
    again = read_detector(tmp_path / "detector.safetensors")
    assert torch.equal(torch.get_rng_state(), before)
    assert again.spec == detector.spec
    assert (again.spec.side, again.spec.classes, again.count_threshold) == (64, ("ship", "buoy"), 0.1 + 0.2)
    assert again.spec.class_thresholds == (0.7, 0.2 + 0.4)
    assert again.spec.max_detections == 700
    assert again.origin == {"study": "tiny", "run": "random", "identity": "0123"}
    assert dict(again.module.hparams) == dict(detector.module.hparams)
    assert not again.module.training
    for (name, ours), theirs in zip(
        again.module.state_dict().items(), detector.module.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs), name
    assert not list(tmp_path.glob(".*"))


def test_other_readers_find_float32_tensors_and_plain_metadata(tmp_path: Path) -> None:
    detector = make_trained()
    expected = {name: value.float().numpy() for name, value in detector.module.bfloat16().state_dict().items()}
    write_detector(detector, tmp_path / "d.safetensors")
    with safe_open(tmp_path / "d.safetensors", framework="numpy") as file:
        assert file.metadata()["format"] == "pt"
        about = json.loads(file.metadata()["boxtwin"])
        assert about["version"] == boxtwin.__version__
        assert about["count_threshold"] == 0.3
        assert about["hyper_parameters"]["classes"] == ["ship", "buoy"]
        assert set(file.keys()) == set(expected)
        for name, value in expected.items():
            found = file.get_tensor(name)
            assert found.dtype == (np.int64 if name.endswith("num_batches_tracked") else np.float32)
            np.testing.assert_array_equal(found, value)


def test_files_of_versions_with_one_threshold_count_every_class_at_it(tmp_path: Path) -> None:
    path = tmp_path / "d.safetensors"
    write_detector(make_trained(0.4, (0.1, 0.2)), path)
    with safe_open(path, framework="pt") as file:
        metadata = {key: text for key, text in file.metadata().items() if key != "sha256"}  # older files have none
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    about = json.loads(metadata["boxtwin"])
    del about["class_thresholds"], about["hyper_parameters"]["max_detections"]
    save_file(tensors, path, metadata | {"boxtwin": json.dumps(about)})
    spec = read_detector(path).spec
    assert (spec.class_thresholds, spec.max_detections) == ((0.4, 0.4), 300)
    texts = {name: text for name, text in spec.to_text().items() if name != "class_thresholds"}
    assert DetectorSpec.from_text(texts, "d.onnx") == spec


def test_wrong_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "d.safetensors"
    with pytest.raises(InputError, match=r"d\.safetensors cannot be read"):
        read_detector(path)
    path.write_bytes(b"no tensors at all")
    with pytest.raises(InputError, match="is no safetensors file, or is cut off"):
        read_detector(path)
    detector = make_trained()
    write_detector(detector, path)
    with safe_open(path, framework="pt") as file:
        metadata = {key: text for key, text in file.metadata().items() if key != "sha256"}  # older files have none
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="cut off"):
        read_detector(path)
    save_file(tensors, path)
    with pytest.raises(InputError, match="is no detector of boxtwin"):
        read_detector(path)
    tensors.pop("network.heads.0.predict.bias")
    save_file(tensors, path, metadata)
    with pytest.raises(InputError, match=r"do not fit the metadata: .*predict\.bias"):
        read_detector(path)
    other = json.loads(metadata["boxtwin"]) | {"version": "0.0.1"}
    other["hyper_parameters"]["no_such_argument"] = 1
    save_file(tensors, path, {"boxtwin": json.dumps(other)})
    with pytest.raises(InputError, match=r"cannot build what boxtwin 0\.0\.1 wrote: .*no_such_argument"):
        read_detector(path)
    newer = json.loads(metadata["boxtwin"]) | {"format": 2, "version": "9.0"}
    save_file(tensors, path, {"boxtwin": json.dumps(newer)})
    with pytest.raises(InputError, match=r"has format 2, written by boxtwin 9\.0"):
        read_detector(path)


def test_a_threshold_is_a_confidence() -> None:
    with pytest.raises(ValueError, match=r"between 0 and 1, got 1\.5"):
        make_trained(1.5)
    with pytest.raises(ValueError, match=r"between 0 and 1, got -0\.1"):
        make_trained(0.5, (0.5, -0.1))
    with pytest.raises(ValueError, match="2 classes need as many thresholds"):
        make_trained(0.5, (0.5,))


def test_files_from_before_black_and_reading_mean_what_they_meant(tmp_path: Path) -> None:
    detector = make_trained(white=1023)
    path = tmp_path / "d.safetensors"
    write_detector(detector, path)
    with safe_open(path, framework="pt") as file:
        metadata = {key: text for key, text in file.metadata().items() if key != "sha256"}  # older files have none
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    about = json.loads(metadata["boxtwin"])
    for name in ("black", "reading"):
        del about["hyper_parameters"][name]
    save_file(tensors, path, metadata | {"boxtwin": json.dumps(about)})
    texts = {name: text for name, text in detector.spec.to_text().items() if name not in ("black", "reading")}
    for spec in (read_detector(path).spec, DetectorSpec.from_text(texts, "old.onnx")):
        assert spec.levels == Levels(0, 1023)
        assert spec.how_to_read == Reading(orientation=Orientation.ignore)


def test_levels_and_reading_travel_with_the_detector(tmp_path: Path) -> None:
    reading = Reading(orientation=Orientation.ignore, page=2, channels=(1, 0, 2), max_pixels=5000)
    detector = make_trained(white=52000, black=51000, reading=reading.plain())
    write_detector(detector, tmp_path / "d.safetensors")
    spec = read_detector(tmp_path / "d.safetensors").spec
    for again in (spec, DetectorSpec.from_text(spec.to_text(), "it")):
        assert again.levels == Levels(51000, 52000)
        assert again.how_to_read == reading


def test_weights_that_are_not_finite_are_not_written(tmp_path: Path) -> None:
    trained = make_trained()
    with torch.no_grad():
        next(trained.module.parameters())[0] = torch.nan
    with pytest.raises(InputError, match="not finite"):
        write_detector(trained, tmp_path / "d.safetensors")
    assert not list(tmp_path.iterdir())


def test_the_detector_of_another_training_is_told(tmp_path: Path) -> None:
    path = tmp_path / "d.safetensors"
    write_detector(replace(make_trained(), origin={"identity": "a"}), path)
    assert damage(path) is damage(path, ["b", "a"]) is None
    assert "another training" in (damage(path, ["b"]) or "")
    write_detector(replace(make_trained(), origin={}), path)  # nothing says whose it is
    assert damage(path, ["b"]) is None


def test_one_changed_bit_of_the_weights_is_found(tmp_path: Path) -> None:
    path = tmp_path / "d.safetensors"
    write_detector(make_trained(), path)
    assert damage(path) is None
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1
    path.write_bytes(content)
    assert "checksum" in (damage(path) or "")
    assert str(path) in (damage(path) or "")


def test_a_changed_threshold_and_weights_that_are_not_finite_are_found(tmp_path: Path) -> None:
    path = tmp_path / "d.safetensors"
    write_detector(make_trained(0.4), path)
    whole = path.read_bytes()
    changed = whole.replace(b'\\"count_threshold\\": 0.4', b'\\"count_threshold\\": 0.5')
    assert changed != whole
    path.write_bytes(changed)
    assert "checksum" in (damage(path) or "")
    # In a file of an older version, which has no checksum.
    path.write_bytes(whole)
    with safe_open(path, framework="pt") as file:
        metadata = {"boxtwin": file.metadata()["boxtwin"]}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    save_file(tensors, path, metadata)
    assert damage(path) is None
    name = next(name for name, value in tensors.items() if value.is_floating_point())
    tensors[name].reshape(-1)[3] = torch.nan
    save_file(tensors, path, metadata)
    assert "not finite" in (damage(path) or "")
    tensors[name].reshape(-1)[3] = 0
    save_file(tensors, path, {"boxtwin": metadata["boxtwin"][:-9]})
    assert "metadata" in (damage(path) or "")


def untrained(classes: tuple[str, ...], **changes: Any) -> DetectorModule:
    """A detector whose parameters are random, and not those of `make_trained`."""
    about: dict[str, Any] = {
        "architecture": "yolov3_nano",
        "channels": 1,
        "category_ids": list(range(len(classes))),
    } | changes
    module = make_trained(classes=list(classes), **about).module
    generator = torch.Generator().manual_seed(1)
    for parameter in module.network.parameters():
        parameter.data.normal_(0, 0.05, generator=generator)
    return module


@pytest.mark.parametrize(("before", "after"), [(3, 1), (1, 3), (1, 1)])
def test_a_cells_detector_goes_on_from_another_ones(before: int, after: int, tmp_path: Path) -> None:
    source = make_trained(architecture="yolov3_nano", channels=before)
    path = tmp_path / "detector.safetensors"
    write_detector(source, path)
    module = untrained(("ship", "buoy"), channels=after)
    network = module.network
    report = read_initial_weights(module, path)
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
    module = untrained(tuple("abcde"))
    network = module.network
    before = [predict.weight.clone() for predict in predictions(network)]
    report = read_initial_weights(module, path)
    assert len(report.skipped) == 2
    assert all(torch.equal(now.weight, old) for now, old in zip(predictions(network), before, strict=True))
    for ours, theirs in zip(network.stages.parameters(), source.module.network.stages.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("classes", "known"), [(("buoy", "ship"), (1, 0)), (("car", "ship"), (None, 0)), (("ship", "buoy"), (0, 1))]
)
def test_predictions_of_classes_are_read_by_their_names(
    classes: tuple[str, ...], known: tuple[int | None, ...], tmp_path: Path
) -> None:
    path = tmp_path / "detector.safetensors"
    source = make_trained(architecture="yolov3_nano", channels=1, classes=["ship", "buoy"])
    write_detector(source, path)
    module = untrained(classes)
    images = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    before = [(head.weight.clone(), head.bias.clone()) for head in predictions(module.network) if head.bias is not None]
    assert read_initial_weights(module, path).skipped == ()
    with torch.no_grad():
        ours, theirs = module.network.eval()(images), source.module.network(images)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one[..., :5], other[..., :5])
        for label, same in enumerate(known):
            if same is not None:
                torch.testing.assert_close(one[..., 5 + label], other[..., 5 + same])
    for head, (weight, bias) in zip(predictions(module.network), before, strict=True):
        assert head.bias is not None
        for label in (label for label, same in enumerate(known) if same is None):
            assert torch.equal(head.weight[5 + label :: 7], weight[5 + label :: 7])
            assert torch.equal(head.bias[5 + label :: 7], bias[5 + label :: 7])


def test_single_classes_may_have_other_names(tmp_path: Path) -> None:
    path = tmp_path / "detector.safetensors"
    source = make_trained(architecture="yolov3_nano", channels=1, classes=["ship"], category_ids=[1])
    write_detector(source, path)
    module = untrained(("vessel",))
    read_initial_weights(module, path)
    for one, other in zip(module.network.parameters(), source.module.network.parameters(), strict=True):
        assert torch.equal(one, other)


def test_other_networks_and_files_without_anchors_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "detector.safetensors"
    write_detector(make_trained(architecture="yolov3_nano"), path)
    with pytest.raises(InputError, match="holds a yolov3_nano; its weights do not fit a yolov3_tiny"):
        read_initial_weights(untrained(("ship", "buoy"), architecture="yolov3_tiny"), path)
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
