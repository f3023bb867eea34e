"""Pretrained generators from a folder, with the user's own commands."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from commands import manifests, run

from boxtwin.datasets.image_io import read_image
from boxtwin.synthesis.diffusers_pipelines.checkpoints import folder_hash

SETTINGS = "generator.steps=2 generator.strength=0.6 generator.tile=32 generator.overlap=8 generator.batch_size=4"


def test_img2img_from_a_folder(tmp_path: Path, tiny_pipeline: Callable[[str], Path]) -> None:
    folder = tiny_pipeline("stable_diffusion")
    command = (
        f"generate.py experiment=tiny_choice generator=img2img generator.checkpoint={folder} "
        f"generator.dtype=float32 variations=1 {SETTINGS}"
    )
    run(command, tmp_path)
    (lines,) = manifests(tmp_path)
    assert len(lines) == 10  # 6 training and 4 validation images
    for line in lines:
        assert line["generator"] == "img2img"
        assert line["model"] == {"id": str(folder.resolve()), "revision": folder_hash(folder)}
        assert line["parameters"]["revision"] == folder_hash(folder)
        (store,) = (tmp_path / "data" / "synthetic").glob("img2img-*")
        made = read_image(store / line["image"])
        assert made.shape == (64, 64)
        assert made.std() > 1
        assert json.loads((store / "store.json").read_text())["training"] == []  # nothing was learnt
