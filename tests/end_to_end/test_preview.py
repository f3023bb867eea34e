"""``generate.py preview=true``: one sheet for all generators of a sweep, whose images are used again."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import CONF, manifests, run
from omegaconf import OmegaConf

from boxtwin.datasets.image_io import read_image

SETTINGS = "generator.steps=2 generator.tile=32 generator.overlap=8 generator.batch_size=4 generator.dtype=float32"


def kept_columns(folder: Path) -> dict[str, dict[str, Any]]:
    """What is kept of every column of the sheet."""
    columns: dict[str, dict[str, Any]] = json.loads((folder / "data/synthetic/preview.json").read_text())["columns"]
    return columns


def columns(folder: Path) -> list[tuple[str, dict[str, str], list[str | None]]]:
    """Generator, settings and refusals of every column of the sheet."""
    kept = kept_columns(folder)
    return [
        (kept[key]["generator"], kept[key]["settings"], [cell["refused"] for cell in kept[key]["cells"].values()])
        for key in sorted(kept, key=int)
    ]


@pytest.mark.slow
def test_generators_and_strengths_are_columns_and_images_are_kept(
    tmp_path: Path, tiny_pipeline: Callable[[str], Path]
) -> None:
    common = "generate.py experiment=tiny_choice variations=1"
    refused = run(f"{common} generator=repeat,copy_paste trainer.steps=41 -m preview=true", tmp_path, code=1)
    assert refused
    assert not (tmp_path / "data").exists()
    printed = run(f"{common} generator=repeat,copy_paste -m preview=true", tmp_path)
    sheet = tmp_path / "data" / "synthetic" / "preview.png"
    measured = rf"\d+\.\d s an image; peak memory: \d\.\d\d GB of the \w+; sheet: {sheet.relative_to(tmp_path)}"
    assert len(re.findall(measured, printed)) == 2
    assert [name for name, _, _ in columns(tmp_path)] == ["repeat", "copy_paste"]
    across = read_image(sheet).shape
    assert not any(column["unchecked"] for column in kept_columns(tmp_path).values())  # both know their boxes
    assert not (tmp_path / "data" / "0").exists()  # jobs have no folders of their own
    assert [len(lines) for lines in manifests(tmp_path)] == [4, 4]

    checkpoint = f"generator.checkpoint={tiny_pipeline('stable_diffusion')} {SETTINGS}"
    run(f"{common} generator=img2img {checkpoint} generator.strength=0.6,0.9 -m preview=true", tmp_path)
    assert [(name, settings["strength"]) for name, settings, _ in columns(tmp_path)] == [
        ("img2img", "0.6"),
        ("img2img", "0.9"),
    ]
    assert read_image(sheet).shape == across  # as many columns; the first sweep's are gone
    for column in kept_columns(tmp_path).values():
        assert column["unchecked"]
        assert any(cell["boxes"] for cell in column["cells"].values())  # those that are carried over
    assert not list((tmp_path / "data").glob("detectors/*"))  # nothing was trained to label four images

    printed = run(f"{common} generator=img2img {checkpoint} generator.strength=0.6", tmp_path)
    assert "6 variations made, 0 were there already, 0 refused, 4 reused" in printed
    printed = run(f"{common} generator=repeat", tmp_path)
    assert "6 variations made, 4 were there already" in printed

    run(f"{common} generator=copy_paste preview=true", tmp_path)  # a single one takes no -m
    assert [name for name, _, _ in columns(tmp_path)] == ["copy_paste"]
    assert read_image(sheet).shape[1] < across[1]


def test_options_of_ones_own_give_each_generator_its_checkpoint(
    tmp_path: Path, tiny_pipeline: Callable[[str], Path]
) -> None:
    small = {"steps": 2, "tile": 32, "overlap": 8, "dtype": "float32"}
    shutil.copytree(CONF, tmp_path / "options")
    models: dict[str, tuple[str, dict[str, Any]]] = {
        "img2img": ("stable_diffusion", {"strength": 0.6}),
        "sd_variations": ("image_variation", {"revision": None}),
    }
    for base, (pipeline, more) in models.items():
        own = {"name": f"my_{base}", "checkpoint": str(tiny_pipeline(pipeline)), **small, **more}
        file = tmp_path / "options" / "generator" / f"my_{base}.yaml"
        file.parent.mkdir(exist_ok=True)
        OmegaConf.save({"defaults": [base], **own}, file)
    names = [f"my_{base}" for base in models]
    command = f"generate.py --config-dir options experiment=tiny_choice variations=1 generator={','.join(names)} -m"
    run(f"{command} preview=true", tmp_path)
    assert [name for name, _, _ in columns(tmp_path)] == names
    assert [refused for _, _, refused in columns(tmp_path)] == [[None] * 4] * 2
    assert {folder.name.partition("-")[0] for folder in (tmp_path / "data" / "synthetic").glob("my_*")} == set(names)
