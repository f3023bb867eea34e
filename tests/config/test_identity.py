from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from boxtwin.config.compose import register
from boxtwin.config.identity import FIRST_MODULES, defining_values, short_hash

ROOT = Path(__file__).parents[2]
GENERATORS = sorted(path.stem for path in (ROOT / "conf" / "generator").glob("*.yaml"))
# Hashes of runs with two variations of each image by carried labels, as runs were recorded before modules moved.
RECORDED = {
    "copy_paste": "640a5582",
    "folder": "ab7ebbf9",
    "img2img": "3e814484",
    "inpaint_background": "42caf9b0",
    "inpaint_pretrained": "4460c2b3",
    "openai_edit": "05126014",
    "openai_variations": "1d6f4e0c",
    "pixel_ddpm": "8c266828",
    "pixel_ddpm_joint": "17fafec8",
    "pixel_ddpm_layout": "5e76796e",
    "pixel_ddpm_sketch": "996cdaa0",
    "repeat": "a3049795",
    "sd_variations": "bc749783",
    "unclip": "c4891749",
}


@pytest.mark.parametrize("generator", RECORDED)
def test_runs_keep_their_hash_when_modules_move(generator: str) -> None:
    register()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("config", [f"generator={generator}", "variations='2'"])
    values = defining_values(config)
    assert short_hash(values) == RECORDED[generator]


def test_every_generator_has_a_recorded_module() -> None:
    register()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        targets = {name: compose("config", [f"generator={name}"]).generator._target_ for name in GENERATORS}
    moved = {target for target in targets.values() if not target.startswith("boxtwin.synthesis.controls.")}
    assert {target.rpartition(".")[2] for target in moved} == set(FIRST_MODULES)
