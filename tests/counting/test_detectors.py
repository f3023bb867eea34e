"""Which detectors ``run=`` of count.py means."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from trained_detectors import make_trained

from boxtwin.counting.detectors import best_of, find_detectors, open_detectors
from boxtwin.counting.ensemble import Counter
from boxtwin.counting.images import Read
from boxtwin.datasets.reading import Reading
from boxtwin.datasets.training_images import TrainingImages
from boxtwin.detector.checkpoint import write_detector
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


def test_it_is_said_which_detector_is_the_best_and_which_are_newer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    caplog.set_level("INFO")
    # Retrained on more images, with less AP; "later" is another seed of the best condition.
    runs = (("old", 80, 0.503, 2), ("older", 80, 0.45, 1), ("later", 80, 0.49, 3), ("a new", 90, 0.4, 4))
    for name, images, ap, hour in (*runs, ("new2", 90, 0.483, 5)):
        folder = Path("multirun/cells") / name
        folder.mkdir(parents=True)
        (folder / "detector.safetensors").touch()
        os.utime(folder / "detector.safetensors", (3600 * hour, 3600 * hour))
        metrics = {"val_real/map": ap, "data/real_images": float(images)}
        (folder / "result.json").write_text(json.dumps({"metrics": metrics, "condition": {"data": images}}))
    find_detectors("best", "cells")
    assert caplog.messages == [
        "run=best: multirun/cells/old (80 real images), the best AP on validation images among all conditions of the "
        "study, 50.3; newer detectors of other conditions (choose one with run=):\n"
        "  run=multirun/cells/new2  # (90 real images) AP 48.3"
    ]
    caplog.clear()
    for name in ("final", "final-seed0"):
        (Path("multirun/cells") / name).mkdir()
    final = {"kind": "final", "params": {"seeds": 1}, "data": {"images": 95}}
    Path("multirun/cells/final/result.json").write_text(json.dumps(final))
    detector = Path("multirun/cells/final-seed0/detector.safetensors")
    detector.touch()
    find_detectors("best", "cells")
    os.utime(detector, (3600 * 3.5, 3600 * 3.5))
    find_detectors("best", "cells")
    first = "run=best: multirun/cells/final-seed0 (95 real images), a final detector"
    newer = "; newer detectors of other conditions (choose one with run=):\n"
    advice = newer + "  run=multirun/cells/new2  # (90 real images) AP 48.3"
    assert caplog.messages == [first, first + advice]


def test_runs_on_two_data_sets_have_no_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, dataset, ap in (("a", "easy", 0.9), ("b", "hard", 0.3), ("c", "hard", 0.4)):
        folder = Path("multirun/both") / name
        folder.mkdir(parents=True)
        (folder / "detector.safetensors").touch()
        result = {"metrics": {"val_real/map": ap}, "params": {"dataset": dataset}}
        (folder / "result.json").write_text(json.dumps(result))
    with pytest.raises(
        InputError, match=r"2 data sets.*\n  run=multirun/both/a  # of easy\n  run=multirun/both/c  # of h"
    ):
        find_detectors("best", "both")
    shutil.rmtree("multirun/both/a")
    assert find_detectors("best", "both") == [Path("multirun/both/c/detector.safetensors")]


def test_runs_on_two_sets_of_validation_images_have_no_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def write(name: str, validation: str | None, ap: float) -> None:
        folder = Path("multirun/cells") / name
        folder.mkdir(parents=True)
        (folder / "detector.safetensors").touch()
        data = {} if validation is None else {"data": {"train": name, "val": validation, "test": "t"}}
        result = {"metrics": {"val_real/map": ap}, "params": {"dataset": "cells"}, "condition": data}
        (folder / "result.json").write_text(json.dumps(result))

    write("a", "v1", 0.3)
    write("b", "v1", 0.4)
    write("old", None, 0.2)  # older runs do not record it
    assert find_detectors("best", "cells") == [Path("multirun/cells/b/detector.safetensors")]
    write("c", "v2", 0.9)
    with pytest.raises(InputError, match=r"2 sets of validation images.*\n  run=\S+/c .*\n  run=\S+/b ") as caught:
        find_detectors("best", "cells")
    assert len(str(caught.value).splitlines()) == 3


def test_detectors_of_two_depths_do_not_count_together(tmp_path: Path) -> None:
    files = []
    for white in (255, 4000, 200):
        files.append(tmp_path / str(white) / "detector.safetensors")
        files[-1].parent.mkdir()
        write_detector(make_trained(white=white), files[-1])
    with pytest.raises(InputError, match=r"8 bit and of 16 bit.*255 in .*4000 in "):
        open_detectors(files[:2], "cpu")
    assert len(open_detectors(files[::2], "cpu")) == 2


def test_an_image_is_unlike_if_it_is_for_any_of_the_detectors(tmp_path: Path) -> None:
    files, level = [], (0.0, 1.0)
    for name, sides, sharpness in (("a", (64, 64, 64), (-9.0, 9.0)), ("b", (640, 640, 640), (8.0, 9.0))):
        files.append(tmp_path / name / "detector.safetensors")
        files[-1].parent.mkdir()
        write_detector(replace(make_trained(), images=TrainingImages(sides, level, sharpness)), files[-1])
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64)).astype(np.uint8)
    image = Read("0.png", Path("0.png"), None, pixels)
    for chosen, expected in ((files[:1], set()), (files, {"size", "blurred"}), (files[::-1], {"size", "blurred"})):
        assert set(Counter(open_detectors(chosen, "cpu"), None)(image).unlike) == expected


def test_a_name_of_two_conditions_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # The last as `own_folder` names it: settings as of the first, and another data set.
    runs = (("x0-seed0-aaaa1111", 10), ("x0-seed1-bbbb1111", 10), ("x0-seed0-aaaa1111-cccc2222", 20))
    for run_name, steps in runs:
        folder = Path("multirun/ships") / run_name
        folder.mkdir(parents=True)
        (folder / "detector.safetensors").touch()
        (folder / "result.json").write_text(
            json.dumps({"condition": {"steps": steps}, "metrics": {"data/real_images": 8.0 * steps}})
        )
        if steps == 10:
            assert find_detectors("x0", "ships")[-1].parent == folder
    with pytest.raises(InputError, match=r"^run=x0 is the name of 2 conditions; list the runs of one") as caught:
        find_detectors("x0", "ships")
    assert str(caught.value).splitlines()[1:] == [
        "  multirun/ships/x0-seed0-aaaa1111 (80 real images), multirun/ships/x0-seed1-bbbb1111 (80 real images)",
        "  multirun/ships/x0-seed0-aaaa1111-cccc2222 (160 real images)",
    ]


def test_detectors_that_read_images_in_different_ways_do_not_count_together(tmp_path: Path) -> None:
    files = []
    for number, channels in enumerate([(0,), (2,), None]):
        reading = Reading(channels=channels).plain()
        files.append(tmp_path / str(number) / "detector.safetensors")
        files[-1].parent.mkdir()
        write_detector(make_trained(reading=reading), files[-1])
    with pytest.raises(InputError, match=r"dataset\.channels=\[0\].*dataset\.channels=\[2\]"):
        open_detectors(files[:2], "cpu")
    with pytest.raises(InputError, match="different ways"):
        open_detectors([files[0], files[2]], "cpu")
    assert len(open_detectors([files[1], files[1]], "cpu")) == 2
