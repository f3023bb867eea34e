"""Which detectors ``run=`` of count.py means."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from boxtwin.counting.detectors import best_of, find_detectors
from boxtwin.errors import InputError


def test_the_best_of_a_study_is_final_or_best_on_validation_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="there are no runs in mlruns"):
        find_detectors("best", None)
    for name, ap in (("a", 0.3), ("b", 0.5), ("c", 0.4)):
        folder = Path("multirun/ships") / name
        folder.mkdir(parents=True)
        (folder / "detector.safetensors").touch()
        (folder / "result.json").write_text(json.dumps({"metrics": {"val_real/map": ap}}))
    assert find_detectors("best", "ships") == [Path("multirun/ships/b/detector.safetensors")]
    # As trained with five seeds, then with two: old detectors lie beside those of the last training.
    for name in ("final", *(f"final-seed{seed}" for seed in range(5)), "finals-x0-seed0"):
        (Path("multirun/ships") / name).mkdir()
        (Path("multirun/ships") / name / "detector.safetensors").touch()
    assert best_of(Path("multirun/ships")).parent.name == "b"
    Path("multirun/ships/final/detector.safetensors").unlink()
    Path("multirun/ships/final/result.json").write_text(json.dumps({"kind": "final", "params": {"seeds": 2}}))
    finals = [Path(f"multirun/ships/final-seed{seed}/detector.safetensors") for seed in range(2)]
    assert best_of(Path("multirun/ships")) == finals[0]
    assert find_detectors("final", "ships") == finals
    with pytest.raises(InputError, match=r"holds no detector\.safetensors"):
        find_detectors("multirun/ships/final", None)


def test_detectors_are_found_without_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on another machine, which has a copy of the folder of a study and no more."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"^run=detectr\.onnx is no file or folder; there are no runs in mlruns$"):
        find_detectors("detectr.onnx", None)
    Path("multirun/empty").mkdir(parents=True)
    run = Path("multirun/ships/x0-seed0")
    run.mkdir(parents=True)
    (run / "detector.safetensors").touch()
    (run / "result.json").write_text(json.dumps({"metrics": {"val_real/map": 0.5}}))
    for name in ("best", "x0"):
        assert find_detectors(name, None) == [run / "detector.safetensors"]
    with pytest.raises(
        InputError, match=r"^run=detectr\.onnx is no file or folder, and no condition .* multirun/ships"
    ):
        find_detectors("detectr.onnx", None)
    shutil.copytree("multirun/ships", "multirun/planes")
    advice = r"there are no runs in mlruns; name a study: study=NAME \(folders in multirun: planes, ships\)$"
    with pytest.raises(InputError, match=f"^{advice}"):
        find_detectors("best", None)
    with pytest.raises(InputError, match=rf"^run=detectr\.onnx is no file or folder; {advice}"):
        find_detectors("detectr.onnx", None)


def test_a_name_of_two_conditions_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for run_name, steps in (("x0-seed0-aaaa1111", 10), ("x0-seed1-bbbb1111", 10), ("x0-seed0-cccc2222", 20)):
        folder = Path("multirun/ships") / run_name
        folder.mkdir(parents=True)
        (folder / "detector.safetensors").touch()
        (folder / "result.json").write_text(json.dumps({"condition": {"steps": steps}}))
        if steps == 10:
            assert find_detectors("x0", "ships")[-1].parent == folder
    with pytest.raises(InputError, match=r"run=x0 is the name of 2 conditions(.*\n){2}.*x0-seed0-cccc2222"):
        find_detectors("x0", "ships")
