"""A study of simulation, as typed: with none beside it, and a pre-training of its own for each seed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import run

SCENES = (
    "pretraining.steps=4 pretraining.dataset.image_size=64 pretraining.dataset.build.images=6 "
    "pretraining.dataset.build.image_size=64 pretraining.dataset.build.chips_per_scene=2"
)


@pytest.mark.slow
def test_each_seed_has_a_pretraining_of_its_own(tmp_path: Path, hrsid200: Path) -> None:
    command = (
        f"train.py -m experiment=tiny_hrsid dataset=hrsid dataset.root={hrsid200} split=s2 variations=0 {SCENES} "
        "pretraining=none,sar_scenes seed=range(2) pretraining.seed=${seed}"
    )
    printed = run(command, tmp_path)
    assert printed.count("training images alone") == 2  # a pre-training is made once
    found = [json.loads(path.read_text()) for path in tmp_path.glob("multirun/hrsid/*/result.json")]
    params = sorted((each["params"].get("pretraining", "none"), each["params"]["seed"]) for each in found)
    assert params == [("none", 0), ("none", 1), ("sar_scenes", 0), ("sar_scenes", 1)]
    simulated = [each["params"] for each in found if "pretraining" in each["params"]]
    assert all(each["pretraining_seed"] == each["seed"] for each in simulated)
    table = run("compare.py", tmp_path)
    assert [line.split()[:3] for line in table.splitlines() if " s2 " in line][:2] == [
        ["sar_scenes", "s2", "2"],
        ["none", "s2", "2"],
    ]
