import json
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import diffusers
import numpy as np
import pytest
from pipeline_generators import call_of_first_square, make, make_source, pixels_of

from boxtwin.datasets.image_io import read_image
from boxtwin.errors import InputError
from boxtwin.synthesis.diffusers_pipelines.layouts import ControlNet
from boxtwin.synthesis.generator import Request

TinyPipeline = Callable[[str], Path]


@pytest.mark.parametrize("control", ["silhouettes", "edges"])
def test_one_tile_is_what_diffusers_makes_of_source_and_control(
    tmp_path: Path, tiny_pipeline: TinyPipeline, control: str
) -> None:
    sample = make_source(tmp_path, "a.png", (32, 32, 3), boxes=((8, 9, 18, 15),))
    source = read_image(sample.path)
    colours = {"ground_colour": [0, 0, 120], "object_colour": [180, 60, 0]}
    generator = make("controlnet", tiny_pipeline, control=control, scale=0.7, **colours)
    generator.fit([], tmp_path)
    (made,) = pixels_of(generator, Request(sample, 1, 5))

    shown = np.zeros((32, 32, 3), dtype=np.uint8)
    if control == "edges":
        edges = cv2.Canny(np.rint(source.astype(float).mean(axis=2)).astype(np.uint8), 100, 200)
        shown[:] = edges[:, :, None]
        assert 10 < (edges > 0).sum() < 900
    else:
        shown[:] = (0, 0, 120)
        shown[9:15, 8:18] = (180, 60, 0)  # upright: the silhouette fills its box
    net = diffusers.ControlNetModel.from_pretrained(tiny_pipeline("controlnet"))  # type: ignore[no-untyped-call]
    pipeline = diffusers.StableDiffusionControlNetImg2ImgPipeline.from_pretrained(  # type: ignore[no-untyped-call]
        tiny_pipeline("stable_diffusion"), controlnet=net, safety_checker=None, requires_safety_checker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    images = [
        pipeline(
            "",
            image=source[None] / 255,
            control_image=control_image[None] / 255,
            controlnet_conditioning_scale=0.7,
            strength=0.6,
            **call_of_first_square(5),
        ).images[0]
        for control_image in (shown, np.zeros_like(shown))
    ]
    expected, without = (np.rint(image * 255).astype(int) for image in images)
    assert np.abs(made.astype(int) - expected).max() <= 1
    assert np.abs(without - expected).max() > 5


def test_crowds_and_boxes_beyond_the_border_are_drawn_without_harm(tmp_path: Path, tiny_pipeline: TinyPipeline) -> None:
    generator = make("controlnet", tiny_pipeline)
    assert isinstance(generator, ControlNet)
    sample = make_source(tmp_path, "a.png", (40, 50), boxes=((-4, -2, 6, 5), (44, 30, 60, 44)))
    shown = generator._shown(sample, read_image(sample.path))
    assert shown.shape == (3, 40, 50)
    assert shown[0, 0, 0] == 1
    assert shown[0, 39, 49] == 1
    assert shown[0, 20, 25] == 0


def test_a_controlnet_of_another_kind_is_refused(tmp_path: Path, tiny_pipeline: TinyPipeline) -> None:
    folder = Path(shutil.copytree(tiny_pipeline("controlnet"), tmp_path / "union"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "_class_name": "ControlNetUnionModel"}))
    generator = make("controlnet", tiny_pipeline, controlnet=str(folder))
    with pytest.raises(InputError, match="is a ControlNetUnionModel; one of ControlNetModel is needed"):
        generator.fit([], tmp_path)
    with pytest.raises(InputError, match=r"holds no config.json, diffusion_pytorch_model.safetensors"):
        make("controlnet", tiny_pipeline, controlnet=str(tmp_path))
