import inspect
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import MakeCoco
from omegaconf import OmegaConf
from pipeline_generators import KINDS, call_of_first_square, make, make_source, pixels_of
from safetensors.torch import load_file, save_file
from written_samples import bright_boxes

from boxtwin.datasets.image_io import read_image, write_png
from boxtwin.errors import InputError
from boxtwin.labels.carry import Carry
from boxtwin.synthesis.diffusers_pipelines import loading
from boxtwin.synthesis.diffusers_pipelines.checkpoints import INDEX
from boxtwin.synthesis.diffusers_pipelines.loading import LoadSettings, PipelineGenerator
from boxtwin.synthesis.generator import Generator, Request, Variation
from boxtwin.synthesis.store import Library
from boxtwin.synthesis.tiling import tile_seed

TinyPipeline = Callable[[str], Path]


@pytest.fixture(scope="module", params=KINDS)
def fitted(
    request: pytest.FixtureRequest, tiny_pipeline: TinyPipeline, tmp_path_factory: pytest.TempPathFactory
) -> PipelineGenerator:
    """Each generator in turn, ready to draw."""
    generator = make(request.param, tiny_pipeline)
    generator.fit([], tmp_path_factory.mktemp("models"))
    return generator


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((32, 32), np.uint8),  # one tile, grey
        ((33, 21), np.uint16),  # odd, smaller than a tile in one direction
        ((45, 70, 3), np.uint8),  # several tiles, colour
        ((3, 5, 3), np.uint16),  # far smaller than a tile
    ],
)
def test_a_variation_has_size_channels_and_depth_of_its_source(
    fitted: PipelineGenerator, tmp_path: Path, shape: tuple[int, ...], dtype: Any
) -> None:
    boxes = ((8, 9, 18, 15),) if shape[0] > 3 else ()
    sample = make_source(tmp_path, "a.png", shape, dtype, boxes)
    (variation,) = fitted.vary([Request(sample, 1, 7)])
    assert isinstance(variation, Variation)
    source = read_image(sample.path)
    assert variation.pixels.shape == source.shape
    assert variation.pixels.dtype == source.dtype
    assert (variation.pixels != source).any()
    expected = np.zeros((0, 4)) if fitted.boxes == "none" else sample.boxes
    np.testing.assert_array_equal(variation.boxes, expected)
    assert len(variation.labels) == len(expected)
    if dtype == np.uint16:  # the low bits are there as well
        assert (variation.pixels % 257 != 0).any()


def test_a_seed_makes_the_same_bytes_alone_and_among_others(fitted: PipelineGenerator, tmp_path: Path) -> None:
    a, b = make_source(tmp_path, "a.png", (40, 50)), make_source(tmp_path, "b.png", boxes=())
    together = pixels_of(fitted, Request(b, 1, 3), Request(a, 1, 1), Request(a, 2, 2))
    (alone,) = pixels_of(fitted, Request(a, 1, 1))
    np.testing.assert_array_equal(together[1], alone)
    assert (together[1] != together[2]).any()


def test_randomness_is_not_global(fitted: PipelineGenerator, tmp_path: Path) -> None:
    sample, before = make_source(tmp_path, "a.png"), torch.random.get_rng_state()
    (first,) = pixels_of(fitted, Request(sample, 1, 1))
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(99)
    (second,) = pixels_of(fitted, Request(sample, 1, 1))
    np.testing.assert_array_equal(first, second)


def test_grey_stored_as_three_channels_stays_grey(fitted: PipelineGenerator, tmp_path: Path) -> None:
    sample = make_source(tmp_path, "a.png")
    (grey,) = pixels_of(fitted, Request(sample, 1, 0))
    write_png(sample.path, np.repeat(read_image(sample.path)[:, :, None], 3, axis=2))
    (made,) = pixels_of(fitted, Request(sample, 1, 0))
    assert made.shape == (32, 32, 3)
    np.testing.assert_array_equal(made, np.repeat(grey[:, :, None], 3, axis=2))


def test_the_protocol_is_met(fitted: PipelineGenerator, tmp_path: Path) -> None:
    assert isinstance(fitted, Generator)
    assert not fitted.remote
    assert not fitted.learns
    model = fitted.model()
    assert model is not None
    assert Path(model.id).is_dir()
    parameters: Any = fitted.parameters()
    others = {name: value for name, value in parameters.items() if name in ("adapter", "controlnet", "prior") and value}
    more = "".join(f"+{name}:{other['revision']}" for name, other in others.items())
    assert model.revision == f"{parameters['revision']}{more}"
    assert fitted.price_usd(make_source(tmp_path, "a.png")) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_name_every_setting_that_changes_pixels(kind: str, tiny_pipeline: TinyPipeline) -> None:
    generator = make(kind, tiny_pipeline)
    _, settings, _ = KINDS[kind]
    named = set(generator.parameters())
    unnamed = ("finetune_", "seed", "prior_revision", "adapter_revision", "controlnet_revision", "device")
    assert {setting for setting in settings if not setting.startswith(unnamed)} <= named
    assert "device" not in named
    assert ("antialias" in named) == (kind == "sd_variations")
    assert generator.model() is None  # nothing is loaded before `fit`
    assert generator.parameters() != make(kind, tiny_pipeline, steps=3).parameters()


def test_one_tile_is_what_diffusers_makes_of_it(tmp_path: Path, tiny_pipeline: TinyPipeline) -> None:
    from diffusers import StableDiffusionImg2ImgPipeline

    sample = make_source(tmp_path, "a.png", (32, 32, 3))
    generator = make("img2img", tiny_pipeline, prompt="a ship")
    generator.fit([], tmp_path)
    (made,) = pixels_of(generator, Request(sample, 1, 5))
    pipeline = StableDiffusionImg2ImgPipeline.from_pretrained(  # type: ignore[no-untyped-call]
        tiny_pipeline("stable_diffusion"), safety_checker=None, requires_safety_checker=False
    )
    (expected,) = pipeline(
        "a ship",
        image=read_image(sample.path)[None] / 255,
        strength=0.6,
        **call_of_first_square(5),
    ).images
    np.testing.assert_array_equal(made, np.rint(expected * 255).astype(np.uint8))


def test_safety_checkers_are_off(tmp_path: Path, tiny_pipeline: TinyPipeline) -> None:
    """The tiny one blackens everything."""
    from diffusers import StableDiffusionImageVariationPipeline, StableDiffusionImg2ImgPipeline

    folder = tiny_pipeline("stable_diffusion")
    censored = StableDiffusionImg2ImgPipeline.from_pretrained(folder)  # type: ignore[no-untyped-call]
    settings = {"num_inference_steps": 2, "output_type": "np", "generator": torch.Generator().manual_seed(0)}
    assert (censored("", image=torch.rand(1, 3, 32, 32), **settings).images == 0).all()
    folder = tiny_pipeline("image_variation")
    censored = StableDiffusionImageVariationPipeline.from_pretrained(folder)  # type: ignore[no-untyped-call]
    assert (censored(image=torch.rand(1, 3, 30, 30), **settings).images == 0).all()
    sample = make_source(tmp_path, "a.png")
    for kind in ("img2img", "inpaint", "sd_variations"):
        generator = make(kind, tiny_pipeline)
        generator.fit([], tmp_path)
        (made,) = pixels_of(generator, Request(sample, 1, 5))
        assert made.std() > 5


def test_little_strength_leaves_what_the_autoencoder_makes_of_the_source(
    tmp_path: Path, tiny_pipeline: TinyPipeline
) -> None:
    sample = make_source(tmp_path, "a.png", (32, 32, 3))
    source = read_image(sample.path)
    changes = []
    for strength, steps in ((0.002, 1000), (0.9, 10)):  # two of a thousand: as little noise as there can be
        generator = make("img2img", tiny_pipeline, strength=strength, steps=steps)
        generator.fit([], tmp_path)
        (made,) = pixels_of(generator, Request(sample, 1, 5))
        vae = generator._pipeline.vae
        with torch.no_grad():
            image = torch.from_numpy(source.transpose(2, 0, 1)[None] / np.float32(255))
            latents = vae.encode(2 * image - 1).latent_dist.sample(torch.Generator().manual_seed(tile_seed(5, 0)))
            through = vae.decode(latents).sample[0].numpy() / 2 + 0.5
        through = through.clip(0, 1).transpose(1, 2, 0) * 255
        changes.append(np.abs(made - through).mean())
    assert changes[0] < 0.35 * changes[1]


def test_a_sampler_with_a_memory_forgets_between_images(tmp_path: Path, tiny_pipeline: TinyPipeline) -> None:
    """PNDM, which Stable Diffusion 1.5 comes with, keeps what the network said in earlier steps."""
    from diffusers import DDIMScheduler, PNDMScheduler

    folder = Path(shutil.copytree(tiny_pipeline("stable_diffusion"), tmp_path / "pndm"))
    noise = DDIMScheduler.from_pretrained(folder, subfolder="scheduler").config  # type: ignore[no-untyped-call]
    scheduler = PNDMScheduler.from_config(noise, skip_prk_steps=True)  # type: ignore[no-untyped-call]
    scheduler.save_pretrained(folder / "scheduler")
    index = json.loads((folder / INDEX).read_text())
    (folder / INDEX).write_text(json.dumps({**index, "scheduler": ["diffusers", "PNDMScheduler"]}))
    generator = make("img2img", tiny_pipeline, checkpoint=str(folder), steps=8)
    generator.fit([], tmp_path)
    assert type(generator._pipeline.scheduler) is PNDMScheduler
    a, b = make_source(tmp_path, "a.png"), make_source(tmp_path, "b.png", (40, 50))
    (_, after), (alone,) = (
        pixels_of(generator, Request(b, 1, 1), Request(a, 1, 2)),
        pixels_of(generator, Request(a, 1, 2)),
    )
    np.testing.assert_array_equal(after, alone)


@pytest.mark.parametrize(
    ("dtype", "scale", "images"), [("float16", 1e5, 3), ("bfloat16", 1e30, 3), ("float32", 1e30, 6)]
)
def test_values_that_are_no_numbers_are_refused_and_recorded(
    make_coco: MakeCoco,
    tmp_path: Path,
    tiny_pipeline: TinyPipeline,
    monkeypatch: pytest.MonkeyPatch,
    dtype: str,
    scale: float,
    images: int,
) -> None:
    """An autoencoder whose values grow beyond what the type holds, as published ones do in float16."""
    folder = Path(shutil.copytree(tiny_pipeline("stable_diffusion"), tmp_path / "broken"))
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    for name in ("decoder.conv_in.weight", "decoder.mid_block.resnets.0.conv1.weight"):
        tensors[name] = tensors[name] * scale
    save_file(tensors, weights)
    dataset = make_coco(images=images).read()
    half = dtype == "float16"
    if half:  # CPUs compute in it, too slowly to be offered
        monkeypatch.setattr(loading, "choose_dtype", lambda *_: torch.float16)
    generator = make("img2img", tiny_pipeline, checkpoint=str(folder), dtype=dtype)
    library = Library(tmp_path, generator, dataset.samples, judge=Carry(), labels="carry", dataset=dataset, seed=0)
    if images > 5:
        with pytest.raises(InputError, match=r"5 images in a row failed.*generator.dtype=bfloat16 or float32"):
            library.make(dataset.samples, 1)
    else:
        assert library.make(dataset.samples, 1).refused == images
    reasons = {line.reason for line in library.refused(dataset.samples).values()}
    assert len(reasons) == 1
    assert reasons.pop().endswith(f"computing in {dtype}; try generator.dtype=bfloat16 or float32")
    assert not library.lines()
    assert not list(library.folder.rglob("*.png"))


@pytest.mark.parametrize("kind", ["inpaint", "inpaint_base"])
@pytest.mark.parametrize(("shape", "dtype"), [((32, 32), np.uint8), ((50, 61, 3), np.uint16)])
def test_objects_stay_to_the_last_bit_and_the_rest_is_painted(
    tmp_path: Path, tiny_pipeline: TinyPipeline, kind: str, shape: tuple[int, ...], dtype: Any
) -> None:
    boxes = ((8, 9, 18, 15), (20, 24, 27, 31))
    sample = make_source(tmp_path, "a.png", shape, dtype, boxes)
    generator = make(kind, tiny_pipeline)
    generator.fit([], tmp_path)
    (variation,) = generator.vary([Request(sample, 1, 0)])
    assert isinstance(variation, Variation)
    source, inside = read_image(sample.path), np.zeros(shape[:2], dtype=bool)
    for x1, y1, x2, y2 in boxes:
        inside[y1:y2, x1:x2] = True
    np.testing.assert_array_equal(variation.pixels[inside], source[inside])
    assert (variation.pixels[~inside] != source[~inside]).mean() > 0.8
    np.testing.assert_array_equal(variation.boxes, sample.boxes)


def test_inpainting_paints_all_without_objects_and_nothing_where_a_box_is_everywhere(
    tmp_path: Path, tiny_pipeline: TinyPipeline
) -> None:
    generator = make("inpaint", tiny_pipeline)
    generator.fit([], tmp_path)
    empty = make_source(tmp_path, "a.png", boxes=())
    full = make_source(tmp_path, "b.png", boxes=((0, 0, 32, 32),))
    painted, kept = pixels_of(generator, Request(empty, 1, 0), Request(full, 1, 0))
    assert (painted != read_image(empty.path)).mean() > 0.8
    np.testing.assert_array_equal(kept, read_image(full.path))


@pytest.mark.parametrize("kind", ["img2img", "stable_unclip", "kandinsky", "redux", "controlnet"])
def test_batches_of_tiles_and_bfloat16_make_nearly_the_same_image(
    tmp_path: Path, tiny_pipeline: TinyPipeline, kind: str
) -> None:
    sample = make_source(tmp_path, "a.png", (40, 70))
    made = []
    for settings in ({"batch_size": 1}, {"batch_size": 4}, {"dtype": "bfloat16"}):
        generator = make(kind, tiny_pipeline, **settings)
        generator.fit([], tmp_path)
        made.append(pixels_of(generator, Request(sample, 1, 1))[0].astype(int))
    assert np.abs(made[0] - made[1]).max() <= 1  # grey levels
    # Eight bits of mantissa through two steps: some grey levels.
    assert np.abs(made[0] - made[2]).mean() < 8


@pytest.mark.parametrize("kind", ["ip_adapter_strength", "edit_kontext", "edit_klein", "gligen", "text_to_image"])
def test_bfloat16_makes_nearly_the_same_image(tmp_path: Path, tiny_pipeline: TinyPipeline, kind: str) -> None:
    sample, made = make_source(tmp_path, "a.png"), []
    for dtype in ("float32", "bfloat16"):
        generator = make(kind, tiny_pipeline, dtype=dtype)
        generator.fit([], tmp_path)
        made.append(pixels_of(generator, Request(sample, 1, 1))[0].astype(int))
    assert np.abs(made[0] - made[1]).mean() < 8


@pytest.mark.parametrize(("kind", "side"), [("img2img", 32), ("kandinsky", 32)])
def test_tiles_have_the_models_size_or_ones_rounded_up(
    tmp_path: Path, tiny_pipeline: TinyPipeline, kind: str, side: int
) -> None:
    for tile, expected in ((None, side), (29, {"img2img": 30, "kandinsky": 32}[kind]), (44, 44)):
        generator = make(kind, tiny_pipeline, tile=tile)
        generator.fit([], tmp_path)
        assert generator._side == expected
        (made,) = pixels_of(generator, Request(make_source(tmp_path, "a.png", (37, 50)), 1, 0))
        assert made.shape == (37, 50)


@pytest.mark.parametrize(
    ("kind", "setting", "value"),
    [
        ("img2img", "strength", 0.0),
        ("img2img", "strength", 1.5),
        ("img2img", "strength", 0.3),  # of two steps: not one
        ("img2img", "steps", 0),
        ("img2img", "batch_size", 0),
        ("img2img", "guidance_scale", -1.0),
        ("img2img", "tile", 15),  # less than twice the overlap
        ("img2img", "overlap", -1),
        ("img2img", "device", "tpu"),
        ("img2img", "dtype", "int8"),
        ("img2img", "dtype", "float16"),  # on a CPU
        ("img2img", "finetune", "dreambooth"),
        ("img2img", "revision", "main"),  # of a folder
        ("ip_adapter_strength", "strength", 0.3),
        ("ip_adapter", "scale", -0.5),
        ("controlnet", "control", "depth"),
        ("gligen", "phrases", []),
        ("gligen", "grounded", 1.5),
        ("gligen", "batch_size", 2),
        ("controlnet", "strength", 0.3),
        ("controlnet", "scale", -1.0),
        ("controlnet", "ground_colour", [0, 0]),
        ("controlnet", "object_colour", [0, 0, 256]),
        ("edit_klein", "batch_size", 2),
        ("ip_adapter", "batch_size", 2),  # diffusers would mix what the squares see, without an error
        ("edit_klein", "prompt", " "),
        ("inpaint", "margin", -1),
        ("stable_unclip", "noise_level", -1),
        ("kandinsky", "prior_revision", "main"),
    ],
)
def test_settings_out_of_range_are_refused(kind: str, setting: str, value: Any, tiny_pipeline: TinyPipeline) -> None:
    with pytest.raises(InputError, match=setting.removeprefix("prior_")):
        make(kind, tiny_pipeline, **{setting: value})


@pytest.mark.parametrize(
    ("kind", "settings", "pipeline", "message"),
    [
        ("img2img", {}, "inpainting", "made for inpainting"),
        ("img2img", {}, "image_variation", "cannot be loaded"),
        ("img2img", {"overlap": 20}, "stable_diffusion", "overlap=20 is above 16, half"),
        ("ip_adapter", {}, "kandinsky_decoder", "KandinskyV22Pipeline, the kind that generator=unclip takes"),
        ("ip_adapter_xl", {}, "stable_diffusion", "adapter: .* cannot be loaded"),  # layers of other sizes
        ("redux", {}, "stable_diffusion", "generator=text_to_image takes; one of FluxPipeline is needed"),
        ("redux", {}, "flux_redux", "generator=redux takes as its prior; one of FluxPipeline is needed"),
        (
            "img2img",
            {},
            "flux_redux",
            "cannot be loaded.* is a FluxPriorReduxPipeline, .*generator=redux takes as its prior",
        ),
        ("edit_klein", {}, "flux", "a FluxPipeline, the kind that generator=text_to_image takes; one of FluxKontext"),
        ("redux", {}, "flux_kontext", "a FluxKontextPipeline, the kind that generator=edit takes; one of FluxPipeline"),
        ("controlnet", {}, "flux", "a FluxPipeline, the kind that generator=text_to_image takes; one of Stable"),
        ("controlnet_xl", {}, "stable_diffusion", "was made for another network"),
        ("img2img", {}, "gligen", "cannot be loaded.* is a StableDiffusionGLIGENPipeline, .*generator=gligen takes"),
        ("sd_variations", {}, "stable_diffusion", "StableDiffusionPipeline"),
        ("stable_unclip", {}, "stable_diffusion", "StableDiffusionPipeline"),
        ("stable_unclip", {}, "kandinsky_decoder", "needs its prior"),
        ("stable_unclip", {"noise_level": 1000}, "stable_unclip", "noise_level=999"),
        ("kandinsky", {"noise_level": 3}, "kandinsky_decoder", "noise_level=0"),
        ("kandinsky", {}, "stable_unclip", "prior=null"),
    ],
)
def test_a_checkpoint_of_another_kind_is_refused(
    kind: str, settings: dict[str, Any], pipeline: str, message: str, tiny_pipeline: TinyPipeline, tmp_path: Path
) -> None:
    generator = make(kind, tiny_pipeline, checkpoint=str(tiny_pipeline(pipeline)), **settings)
    with pytest.raises(InputError, match=message):
        generator.fit([], tmp_path)


def test_the_files_under_conf_hold_every_setting_and_no_other() -> None:
    conf = Path(__file__).parents[3] / "conf" / "generator"
    loading: Any = OmegaConf.to_container(OmegaConf.load(conf / "load" / "default.yaml"))
    assert loading == vars(LoadSettings())
    for made, settings, folders in KINDS.values():
        named = {
            name: parameter
            for base in made.__mro__
            if "__init__" in vars(base) and base is not object
            for name, parameter in inspect.signature(vars(base)["__init__"]).parameters.items()
            if name not in ("self", "settings")
        }
        del named["load"]  # configurations of earlier versions have none
        assert all(parameter.default is inspect.Parameter.empty for parameter in named.values())
        assert set(settings) | set(folders) == set(named)
        written: Any = OmegaConf.to_container(OmegaConf.load(conf / f"{made.name}.yaml"), resolve=False)
        assert {"load": "default"} in written.pop("defaults")  # and the labels that suit it
        assert written.pop("name") == made.name
        assert written.pop("_target_") == f"{made.__module__}.{made.__qualname__}"
        assert set(written) == set(named)


def test_what_is_made_of_16_bit_has_a_version_of_its_own(fitted: PipelineGenerator, tmp_path: Path) -> None:
    sample = make_source(tmp_path, "a.png", (32, 32))
    assert fitted.version([sample]) == 1
    assert fitted.version([sample, replace(sample, bits=16)]) == 2


def test_text_to_image_needs_a_text_and_takes_nothing_but_the_size_of_its_source(
    tmp_path: Path, tiny_pipeline: TinyPipeline
) -> None:
    with pytest.raises(InputError, match=r"generator.prompt="):
        make("text_to_image", tiny_pipeline, prompt=" ")
    made = []
    for prompt, sea in (("a ship", 1 / 20), ("a ship", 1 / 5), ("image", 1 / 20)):
        generator = make("text_to_image", tiny_pipeline, prompt=prompt)
        generator.fit([], tmp_path)
        sample = bright_boxes(tmp_path, "a.png", (32, 32, 3), sea=sea)
        made += pixels_of(generator, Request(sample, 1, 5))
    np.testing.assert_array_equal(made[0], made[1])
    assert (made[0] != made[2]).any()
    (wider,) = pixels_of(generator, Request(bright_boxes(tmp_path, "b.png", (40, 50, 3), sea=1 / 20), 1, 5))
    assert wider.shape == (40, 50, 3)
    # The first tile is that image; in this corner, no other tile is mixed with it.
    np.testing.assert_array_equal(wider[:8, :16], made[2][:8, :16])
