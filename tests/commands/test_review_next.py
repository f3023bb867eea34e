"""Images to label next: which detectors are taken, and what is refused before any of them runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from trained_detectors import make_trained

from boxtwin.commands.review_next import rank
from boxtwin.counting.detectors import finals_of
from boxtwin.datasets.image_folder import read_folder
from boxtwin.datasets.image_io import write_png
from boxtwin.datasets.reading import Reading
from boxtwin.errors import InputError
from boxtwin.tracking.run_folders import RunResult


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
