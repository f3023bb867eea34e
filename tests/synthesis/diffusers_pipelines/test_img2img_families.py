import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusers.pipelines.auto_pipeline import AUTO_IMAGE2IMAGE_PIPELINES_MAPPING as FAMILIES
from pipeline_generators import PROMPTED, make_source, pixels_of
from tiny_img2img import SAVE
from tiny_parts import SIDE

from boxtwin.errors import InputError
from boxtwin.synthesis.diffusers_pipelines.checkpoints import INDEX, accepts
from boxtwin.synthesis.diffusers_pipelines.img2img import Img2Img
from boxtwin.synthesis.generator import Request

NOT_BUILT = {"kandinsky": "Kandinsky 2.1 needs the multilingual CLIP of diffusers and XLM-R's tokenizer"}
CONTROLLED = {name for name, pipeline in FAMILIES.items() if accepts(pipeline, "control_image")}
WITHOUT = {name for name, pipeline in FAMILIES.items() if not accepts(pipeline, "strength")}


def img2img(folder: Path, **settings: Any) -> Img2Img:
    return Img2Img(checkpoint=str(folder), **{**PROMPTED, **settings})


def test_every_family_is_drawn_with_refused_or_listed() -> None:
    lists = [set(SAVE), set(NOT_BUILT), CONTROLLED, WITHOUT]
    assert sum(map(len, lists)) == len(set.union(*lists)) == len(FAMILIES)
    assert all(accepts(FAMILIES[name], "strength") for name in [*SAVE, *NOT_BUILT])


@pytest.mark.filterwarnings("ignore:.*callback_steps:FutureWarning")  # Kandinsky 2.2 hands it on to its own parts
@pytest.mark.parametrize("name", SAVE)
def test_a_family_with_a_strength_draws(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    SAVE[name](folder)
    sample, made = make_source(tmp_path, "a.png", (33, 45), np.uint16), []
    tile = None if name == "if" else 30
    for strength, batch_size in ((0.3, 2), (1.0, 2), (1.0, 1)):
        generator = img2img(folder, strength=strength, batch_size=batch_size, steps=4, tile=tile, prompt="a ship")
        generator.fit([], tmp_path)
        assert type(generator._pipeline) is FAMILIES[name]
        made += pixels_of(generator, Request(sample, 1, 5))
    source = sample.read()
    assert made[0].shape == source.shape
    changes = [np.abs(image.astype(float) - source).mean() for image in made]
    assert 0 < changes[0] < changes[1]
    assert np.abs(made[1].astype(float) - made[2]).max() < 2 / 255 * 65535  # squares do not see each other


def test_a_model_that_draws_pixels_draws_squares_of_its_own_size_only(tmp_path: Path) -> None:
    SAVE["if"](tmp_path / "checkpoint")
    with pytest.raises(InputError, match=f"draws {SIDE} x {SIDE} pixels only: say generator.tile={SIDE}"):
        img2img(tmp_path / "checkpoint", tile=30).fit([], tmp_path)
    generator = img2img(tmp_path / "checkpoint", tile=SIDE)
    generator.fit([], tmp_path)
    assert generator._side == SIDE


@pytest.mark.parametrize("name", sorted(WITHOUT))
def test_a_family_without_strength_is_refused_before_it_is_loaded(name: str, tmp_path: Path) -> None:
    kind = FAMILIES[name].__name__
    (tmp_path / INDEX).write_text(json.dumps({"_class_name": kind}))
    with pytest.raises(InputError, match=f"is a {kind}, which has no strength; generator=edit is for models that edit"):
        img2img(tmp_path).fit([], tmp_path)


@pytest.mark.parametrize("name", sorted(CONTROLLED))
def test_a_family_that_needs_a_control_image_is_refused_before_it_is_loaded(name: str, tmp_path: Path) -> None:
    kind = FAMILIES[name].__name__
    (tmp_path / INDEX).write_text(json.dumps({"_class_name": kind}))
    with pytest.raises(InputError, match=f"is a {kind}, which needs a control image; generator=controlnet takes"):
        img2img(tmp_path).fit([], tmp_path)
