import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from trained_detectors import make_trained

import boxtwin
from boxtwin.detector.trained import damage, read_detector, write_detector
from boxtwin.errors import InputError


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    detector = make_trained(0.1 + 0.2, tile=64, image_size=160, white=1023)
    write_detector(detector, tmp_path / "detector.safetensors")
    before = torch.get_rng_state()
    again = read_detector(tmp_path / "detector.safetensors")
    assert torch.equal(torch.get_rng_state(), before)
    assert again.spec == detector.spec
    assert (again.spec.side, again.spec.classes, again.count_threshold) == (64, ("ship", "buoy"), 0.1 + 0.2)
    assert again.origin == {"study": "tiny", "cell": "random", "identity": "0123"}
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
        metadata = file.metadata()
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


def test_weights_that_are_not_finite_are_not_written(tmp_path: Path) -> None:
    trained = make_trained()
    with torch.no_grad():
        next(trained.module.parameters())[0] = torch.nan
    with pytest.raises(InputError, match="not finite"):
        write_detector(trained, tmp_path / "d.safetensors")
    assert not list(tmp_path.iterdir())


def test_one_changed_bit_of_the_weights_is_found(tmp_path: Path) -> None:
    path = tmp_path / "d.safetensors"
    write_detector(make_trained(), path)
    assert damage(path) is None
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1
    path.write_bytes(content)
    assert "checksum" in (damage(path) or "")
    assert str(path) in (damage(path) or "")
