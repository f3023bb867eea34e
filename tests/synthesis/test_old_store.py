"""A store as earlier versions wrote it, one line of its manifest as from before lines had checksums."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from noise_store import Noise, open_library

from boxtwin.datasets.coco import read_coco
from boxtwin.datasets.sample import Judgement
from boxtwin.synthesis.generator import Model
from boxtwin.synthesis.identity import read_identity
from boxtwin.synthesis.manifest import whole_lines


def test_a_store_of_an_earlier_version_is_read_and_continued(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with zipfile.ZipFile(Path(__file__).with_name("old_store.zip")) as archive:
        archive.extractall(tmp_path)
    root = tmp_path / "coco"
    dataset = read_coco(name="tiny", images=root / "images", annotations=root / "annotations.json")
    noise = Noise(tmp_path / "made.log", learns=True)
    library = open_library(
        dataset, tmp_path / "synthetic", noise, judge=lambda *_: Judgement(()), labels={"name": "carry"}
    )
    assert library.folder == tmp_path / "synthetic" / "noise-1a6395386746"
    assert read_identity(library.folder) == library.identity
    before = whole_lines(library.manifest)
    lines = library.lines()
    assert [line.to_json() for line in lines] == before
    assert [line.labels.minutes for line in lines] == [1.5, None, None]
    assert [[box.decision for box in line.labels.boxes] for line in lines] == [["kept"], ["kept", "dropped"], ["kept"]]
    assert {line.model for line in lines} == {Model("none", None)}
    assert [line.image for line in library.judged(dataset.samples, 2)] == [line.image for line in lines]
    assert {key: line.reason for key, line in library.refused(dataset.samples).items()} == {
        ("S01_0.png", 2): "no file for it"
    }
    first, second = library.variations(dataset.samples, 2)  # the third line's labels were refused
    np.testing.assert_array_equal(first.boxes, dataset.samples[0].boxes)
    np.testing.assert_array_equal(second.boxes, dataset.samples[1].boxes[:1])
    update = library.make(dataset.samples, 2)
    assert (update.made, update.existing) == (1, 3)
    assert noise.made() == ["S01_0.png v2"]
    assert caplog.text == ""  # nothing is damaged
    # The line without a checksum was checked and written again with one.
    assert whole_lines(library.manifest)[:4] == [*before, before[0]]
    assert json.loads((library.folder / "store.json").read_text())["reproducible"] is True
    assert library.refused(dataset.samples) == {}
