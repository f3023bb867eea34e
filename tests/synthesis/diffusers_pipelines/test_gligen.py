import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from pipeline_generators import call_of_first_square, make, make_source, pixels_of

from boxtwin.errors import InputError
from boxtwin.synthesis.diffusers_pipelines.checkpoints import INDEX
from boxtwin.synthesis.generator import Refused, Request
from boxtwin.synthesis.tiling import tile_seed

TinyPipeline = Callable[[str], Path]


def test_tiles_are_what_diffusers_makes_of_the_boxes_within(tmp_path: Path, tiny_pipeline: TinyPipeline) -> None:
    """Two squares without overlap, and an object across their border."""
    boxes = ((8, 9, 18, 15), (20, 0, 36, 10))  # the second reaches into the other square
    sample = make_source(tmp_path, "a.png", (32, 64, 3), boxes=boxes)
    phrases = ["a ship", "image"]
    generator = make("gligen", tiny_pipeline, phrases=phrases, overlap=0)
    generator.fit([], tmp_path)
    (made,) = pixels_of(generator, Request(sample, 1, 5))
    pipeline = diffusers.StableDiffusionGLIGENPipeline.from_pretrained(  # type: ignore[no-untyped-call]
        tiny_pipeline("gligen"), safety_checker=None, requires_safety_checker=False
    )
    within = {
        0: ([[8, 9, 18, 15], [20, 0, 32, 10]], phrases, 1.0),
        1: ([[0, 0, 4, 10]], phrases[1:], 1.0),
    }
    for number, (places, names, grounded) in within.items():
        expected, elsewhere = (
            pipeline(
                "sea",
                gligen_boxes=(np.array(corners) / 32).tolist(),
                gligen_phrases=names,
                gligen_scheduled_sampling_beta=grounded,
                height=32,
                width=32,
                num_inference_steps=2,
                guidance_scale=2.0,
                generator=torch.Generator().manual_seed(tile_seed(5, number)),
                output_type="np",
            ).images[0]
            for corners in (places, [[1, 1, 9, 9]] * len(names))
        )
        tile = made[:, 32 * number : 32 * number + 32].astype(int)
        np.testing.assert_array_equal(tile, np.rint(expected * 255))
        assert (np.rint(elsewhere * 255) != tile).any()


def test_a_square_without_objects_is_drawn_without_boxes(tmp_path: Path, tiny_pipeline: TinyPipeline) -> None:
    generator = make("gligen", tiny_pipeline)
    generator.fit([], tmp_path)
    sample = make_source(tmp_path, "a.png", (32, 32, 3), boxes=())
    (made,) = pixels_of(generator, Request(sample, 1, 5))
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(  # type: ignore[no-untyped-call]
        tiny_pipeline("gligen"), safety_checker=None, requires_safety_checker=False
    )
    (expected,) = pipeline(
        "sea",
        **call_of_first_square(5),
    ).images
    np.testing.assert_array_equal(made, np.rint(expected * 255).astype(np.uint8))


def test_more_objects_than_the_pipeline_places_are_refused_and_the_others_go_on(
    tmp_path: Path, tiny_pipeline: TinyPipeline
) -> None:
    generator = make("gligen", tiny_pipeline, phrases=["a ship"] * 31)
    generator.fit([], tmp_path)
    crowded = make_source(
        tmp_path, "a.png", boxes=[(n % 6 * 5, n // 6 * 5, n % 6 * 5 + 4, n // 6 * 5 + 4) for n in range(31)]
    )
    sample = make_source(tmp_path, "b.png")
    outcomes: list[Any] = list(generator.vary([Request(crowded, 1, 0), Request(sample, 1, 0)]))
    first, second = outcomes
    assert isinstance(first, Refused)
    assert first.reason == "31 objects; GLIGEN places 30 at most"
    assert not isinstance(second, Refused)


def test_a_class_without_a_phrase_is_refused_by_name(tmp_path: Path, tiny_pipeline: TinyPipeline) -> None:
    generator = make("gligen", tiny_pipeline)
    generator.fit([], tmp_path)
    sample = make_source(tmp_path, "a.png", boxes=((0, 0, 5, 5), (8, 8, 15, 15)))
    with pytest.raises(InputError, match=r"class 2 of a.png has no phrase"):
        pixels_of(generator, Request(sample, 1, 0))


def test_the_network_tells_what_a_checkpoint_is(tmp_path: Path, tiny_pipeline: TinyPipeline) -> None:
    """The published checkpoint's index names Stable Diffusion, whose own checkpoints have no gates for boxes."""
    folder = Path(shutil.copytree(tiny_pipeline("gligen"), tmp_path / "published"))
    index = json.loads((folder / INDEX).read_text())
    (folder / INDEX).write_text(json.dumps({**index, "_class_name": "StableDiffusionPipeline"}))
    made = []
    for checkpoint in (folder, tiny_pipeline("gligen")):
        generator = make("gligen", tiny_pipeline, checkpoint=str(checkpoint))
        generator.fit([], tmp_path)
        made += pixels_of(generator, Request(make_source(tmp_path, "a.png"), 1, 0))
    np.testing.assert_array_equal(made[0], made[1])
    with pytest.raises(InputError, match="takes no boxes; choose a checkpoint of GLIGEN"):
        make("gligen", tiny_pipeline, checkpoint=str(tiny_pipeline("stable_diffusion"))).fit([], tmp_path)
