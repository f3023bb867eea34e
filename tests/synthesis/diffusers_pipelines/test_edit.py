import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
from PIL import Image
from pipeline_generators import call_of_first_square, make, make_source, pixels_of

from boxtwin.datasets.image_io import read_image
from boxtwin.errors import InputError
from boxtwin.synthesis.diffusers_pipelines.checkpoints import INDEX, KINDS
from boxtwin.synthesis.generator import Request

TinyPipeline = Callable[[str], Path]
QWEN = [kind for kind in KINDS["edit"] if kind.startswith("Qwen")]


@pytest.mark.parametrize(
    ("kind", "side", "more"),
    [("edit_kontext", 32, {"max_area": 32**2, "_auto_resize": False}), ("edit_klein", 64, {})],
)
def test_one_tile_is_what_diffusers_makes_of_the_image(
    tmp_path: Path, tiny_pipeline: TinyPipeline, kind: str, side: int, more: dict[str, Any]
) -> None:
    sample = make_source(tmp_path, "a.png", (side, side, 3))
    generator = make(kind, tiny_pipeline)
    generator.fit([], tmp_path)
    (made,) = pixels_of(generator, Request(sample, 1, 5))
    pipeline = diffusers.DiffusionPipeline.from_pretrained(generator.checkpoint)  # type: ignore[no-untyped-call]
    assert type(pipeline) is type(generator._pipeline)
    (expected,) = pipeline(
        image=Image.fromarray(read_image(sample.path)),
        prompt="image",
        height=side,
        width=side,
        **call_of_first_square(5),
        **more,
    ).images
    np.testing.assert_array_equal(made, np.rint(expected * 255).astype(np.uint8))


@pytest.mark.parametrize("kind", ["edit_kontext", "edit_klein"])
def test_images_follow_source_and_instruction(tmp_path: Path, tiny_pipeline: TinyPipeline, kind: str) -> None:
    sources = make_source(tmp_path, "a.png"), make_source(tmp_path, "b.png", boxes=((20, 20, 30, 30),))
    made = []
    for prompt in ("image", "ship at sea"):
        generator = make(kind, tiny_pipeline, prompt=prompt)
        generator.fit([], tmp_path)
        made.append(pixels_of(generator, *(Request(source, 1, 5) for source in sources)))
    assert (made[0][0] != made[0][1]).any()
    assert (made[0][0] != made[1][0]).any()


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is not None, reason="torchvision is installed")
@pytest.mark.parametrize("kind", QWEN)
def test_qwen_asks_for_torchvision(tmp_path: Path, tiny_pipeline: TinyPipeline, kind: str) -> None:
    (tmp_path / INDEX).write_text(json.dumps({"_class_name": kind}))
    generator = make("edit_klein", tiny_pipeline, checkpoint=str(tmp_path))
    with pytest.raises(InputError, match=f"a {kind}, needs torchvision: pip install torchvision"):
        generator.fit([], tmp_path)
