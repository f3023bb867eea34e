"""Images to label next: which detectors are taken, and what is refused before any of them runs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from omegaconf import OmegaConf
from trained_detectors import make_trained

from boxtwin.commands.recommended import Recommended
from boxtwin.commands.review_next import detectors_of, rank, trained_as, unlabelled
from boxtwin.counting.detectors import finals_of
from boxtwin.datasets.copies import repeated
from boxtwin.datasets.image_folder import read_folder
from boxtwin.datasets.image_io import write_png
from boxtwin.datasets.reading import Reading
from boxtwin.errors import InputError
from boxtwin.studies.conditions import condition_table
from boxtwin.studies.runs import run_from
from boxtwin.tracking.run_folders import RunResult

TRACKING = OmegaConf.create({"uri": None, "folder": "mlruns"})


def test_final_detectors_are_those_of_the_last_call(tmp_path: Path) -> None:
    assert finals_of(tmp_path) == []
    for seed in range(3):
        (tmp_path / f"final-seed{seed}").mkdir()
        (tmp_path / f"final-seed{seed}" / "detector.safetensors").touch()
    assert finals_of(tmp_path) == []  # the call has not ended
    RunResult(kind="final", params={"seeds": 2}).write(tmp_path / "final")
    assert [file.parent.name for file in finals_of(tmp_path)] == ["final-seed0", "final-seed1"]
    RunResult(params={"seed": 2}).write(tmp_path / "final")  # a run of a split of that name
    assert finals_of(tmp_path) == []


@pytest.mark.parametrize("last", [60000, 200])
def test_images_of_another_depth_are_refused_before_any_is_looked_at(
    tmp_path: Path, last: int, capsys: pytest.CaptureFixture[str]
) -> None:
    images = np.random.default_rng(0).integers(0, 200, (3, 64, 64)).astype(np.uint8)
    for name, pixels in zip(("a.png", "b.png"), images, strict=False):
        write_png(tmp_path / name, pixels)
    deep = images[2].astype(np.uint16)
    deep[0, 0] = last
    write_png(tmp_path / "c.png", deep)
    samples = read_folder(tmp_path, setting="next", group_by=None, reading=Reading())
    detectors = [make_trained(class_thresholds=thresholds) for thresholds in ((0.2, 0.4), (0.4, 0.2))]
    if last > 255:
        with pytest.raises(InputError, match=r"c\.png has 16 bit; the detector was trained on values up to 255"):
            rank(detectors, samples, [], 2)
        assert "detecting objects" not in capsys.readouterr().err
    else:  # 8 bit values in a file of 16
        assert len(rank(detectors, samples, samples[:1], 2)) == 2


def test_final_detectors_bring_their_own_condition_and_data_set(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """They were trained on a larger data set, and more runs have changed the recommendation since."""
    params: dict[str, Any] = {"dataset": "d", "split": "s1", "generator": "none", "detector": "n"}
    params |= {"variations": 0, "seed": 0, "steps": 6}
    metrics = {"test/map": 0.2, "test/map_50": 0.5, "test/count_mae": 1.0}
    plain: dict[str, Any] = {"variations": {"per_image": 0}, "data": {"test": "5"}}
    result = RunResult(run="s1-x0-seed0", study="s", params=params, metrics=metrics, condition=plain)
    run = run_from(result, run_id="a", status="FINISHED", output_dir=str(tmp_path / "s1-x0-seed0"))
    (row,) = condition_table([run])
    found = Recommended("s", row, "the best", OmegaConf.create({"dataset": {"root": "OLD"}}), TRACKING)
    for seed in range(2):
        for folder in (tmp_path / f"final-seed{seed}", tmp_path / f"s1-x0-seed{seed}"):
            folder.mkdir()
            (folder / "detector.safetensors").touch()
    runs = [tmp_path / f"s1-x0-seed{seed}" / "detector.safetensors" for seed in range(2)]
    assert trained_as(runs, found) == (row.name, found.settings)
    # The name of a condition follows from the whole table, and hashes from more images.
    data, final = {"condition": "s1 x0, as it was called"}, {"variations": {"per_image": 0}, "data": {"test": "6"}}
    RunResult(kind="final", params={"seeds": 2}, data=data, condition=final).write(tmp_path / "final")
    (tmp_path / "final" / "config.yaml").write_text("dataset: {root: LARGER}")
    assert trained_as(detectors_of(found), found)[0] == "s1 x0, as it was called"
    assert not caplog.records
    data, final = {"condition": "s1 x10 copy_paste"}, {"variations": {"per_image": 10}}
    RunResult(kind="final", params={"seeds": 2}, data=data, condition=final).write(tmp_path / "final")
    files = detectors_of(found)
    assert [file.parent.name for file in files] == ["final-seed0", "final-seed1"]
    condition, settings = trained_as(files, found)
    assert (condition, settings.dataset.root) == ("s1 x10 copy_paste", "LARGER")
    assert f"recommends {row.name} now" in caplog.text


def test_each_picture_is_offered_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    pictures = np.random.default_rng(0).integers(0, 200, (4, 64, 64)).astype(np.uint8)
    for name, pixels in (
        ("a.png", pictures[0]),
        ("b.png", pictures[1]),
        ("c.bmp", pictures[0]),  # the same pixels in another file
        ("d.png", pictures[2]),
        ("e.png", pictures[1] + 1),  # nearly the same
        ("f.png", pictures[3]),  # labelled
        ("g.png", pictures[1]),
    ):
        cv2.imwrite(str(tmp_path / name), pixels)
    samples = read_folder(tmp_path, setting="next", group_by=None, reading=Reading())
    labelled = [sample for sample in samples if sample.name == "f.png"]
    assert [sample.name for sample in unlabelled(samples, labelled, tmp_path)] == ["a.png", "b.png", "d.png"]
    assert repeated(samples) == {"c.bmp": "a.png", "e.png": "b.png", "g.png": "b.png"}
    assert "3 images are left out, equal or nearly equal to others of the folder" in caplog.text
    assert repeated([]) == {}


def test_images_of_one_view_are_not_taken_for_one_picture(tmp_path: Path) -> None:
    """What all images of a fixed camera have in common makes none alike, however few of them are new."""
    rng = np.random.default_rng(0)
    view = cv2.GaussianBlur(rng.uniform(0, 255, (64, 64)), (0, 0), 3)
    view = 255 * (view - view.min()) / np.ptp(view)
    for number in range(38):
        pixels = np.clip(view + cv2.GaussianBlur(rng.normal(0, 80, (64, 64)), (0, 0), 4), 0, 255)
        write_png(tmp_path / f"{number:02}.png", pixels.astype(np.uint8))
    samples = read_folder(tmp_path, setting="next", group_by=None, reading=Reading())
    assert repeated(samples[:8], samples[8:]) == {}
    assert len(repeated(samples[:8])) > 4  # eight alone look the same


def test_file_names_that_are_no_text_are_named_before_work_starts(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    assert cv2.imwrite(str(tmp_path / "a.png"), np.zeros((8, 8), np.uint8))
    (tmp_path / "a.png").rename(tmp_path / name)
    with pytest.raises(InputError, match=r"next: 1 file name\(s\) are no text in UTF-8: caf.*\.png; rename"):
        read_folder(tmp_path, setting="next", group_by=None, reading=Reading())
