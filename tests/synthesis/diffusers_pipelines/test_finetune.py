import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pipeline_generators import make, make_source, pixels_of
from safetensors.torch import load_file
from tiny_img2img import save_sd3
from written_samples import write_sample

from boxtwin.datasets.image_io import write_png
from boxtwin.datasets.levels import levels_of
from boxtwin.errors import InputError
from boxtwin.synthesis import training
from boxtwin.synthesis.diffusers_pipelines.img2img import TOKEN, PromptedGenerator, TrainablePipeline
from boxtwin.synthesis.diffusers_pipelines.loading import PipelineGenerator
from boxtwin.synthesis.generator import Request
from boxtwin.synthesis.identity import identity_of
from boxtwin.synthesis.training import LOSSES_FILE, STATE_FILE, WEIGHTS_FILE, Crops, HeldOut, held_out_of, train_steps
from boxtwin.weights import save_state

SQUARE: dict[str, Any] = {"height": 32, "width": 32, "output_type": "latent"}
TinyPipeline = Callable[[str], Path]


def learnt_in(folder: Path) -> Path:
    """The one thing learnt below a folder of models."""
    (found,) = folder.glob("*-*")
    return found


def fitted(
    tiny_pipeline: TinyPipeline, folder: Path, samples: list[Any], kind: str = "img2img", **settings: Any
) -> PipelineGenerator:
    generator = make(kind, tiny_pipeline, **settings)
    generator.fit(samples, folder)
    return generator


@pytest.mark.parametrize(
    ("checkpoint", "how", "learning_rate", "fall"),
    [
        ("stable_diffusion", "lora", 3e-2, 0.02),
        ("stable_diffusion", "textual_inversion", 0.5, 0.0005),
        pytest.param("inpainting", "lora", 3e-2, 0.02, marks=pytest.mark.slow),
        pytest.param("stable_diffusion_xl", "lora", 3e-2, 0.02, marks=pytest.mark.slow),
        pytest.param("stable_diffusion_xl", "textual_inversion", 0.5, 0.0005, marks=pytest.mark.slow),
        ("flux", "lora", 3e-2, 0.02),
        pytest.param("sd3", "lora", 3e-2, 0.02, marks=pytest.mark.slow),
    ],
)
def test_every_family_learns_and_draws_with_what_it_has_learnt(
    tmp_path: Path, tiny_pipeline: TinyPipeline, checkpoint: str, how: str, learning_rate: float, fall: float
) -> None:
    if checkpoint == "sd3":
        save_sd3(folder := tmp_path / "sd3")
    else:
        folder = tiny_pipeline(checkpoint)
    kind = "inpaint" if checkpoint == "inpainting" else "img2img"
    samples = [make_source(tmp_path, f"{name}.png", (40, 50)) for name in "abc"]
    tile = {"tile": 32, "checkpoint": str(folder), "prompt": "a ship"}
    plain = fitted(tiny_pipeline, tmp_path, samples, kind, **tile)
    learning = {"finetune": how, "finetune_steps": 30, "finetune_learning_rate": learning_rate}
    generator = fitted(tiny_pipeline, tmp_path / "models", samples, kind, **tile, **learning)
    losses = json.loads((learnt_in(tmp_path / "models") / LOSSES_FILE).read_text())
    assert losses["steps"] == list(range(0, 31, 3))
    assert losses["held_out"] == "a.png"
    assert losses["learnt_images"][-1] < losses["learnt_images"][0] - fall
    request = Request(samples[0], 1, 0)
    assert (pixels_of(generator, request)[0] != pixels_of(plain, request)[0]).any()
    weights = load_file(learnt_in(tmp_path / "models") / WEIGHTS_FILE)
    assert all(tensor.isfinite().all() for tensor in weights.values())


@pytest.mark.parametrize("checkpoint", ["stable_diffusion", "stable_diffusion_xl", "flux"])
def test_the_error_is_that_of_the_latents_that_the_pipeline_noises(
    tmp_path: Path, tiny_pipeline: TinyPipeline, checkpoint: str
) -> None:
    """One call of the network within the pipeline, and one within the learning: equal for equal latents and times."""
    settings = {"checkpoint": str(tiny_pipeline(checkpoint)), "tile": 32, "prompt": "a ship"}
    generator, learning = (
        make("img2img", tiny_pipeline, **settings),
        make("img2img", tiny_pipeline, finetune="lora", **settings),
    )
    assert isinstance(learning, PromptedGenerator)
    generator.fit([], tmp_path)
    pipeline = generator._pipeline
    trainable = TrainablePipeline(pipeline, 32, learning)
    told: list[dict[str, Any]] = []
    hook = trainable.network.register_forward_pre_hook(
        lambda _, given, named: told.append({**named, "given": given}), with_kwargs=True
    )
    picture = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    pipeline(prompt=["a ship"], image=picture, strength=1.0, num_inference_steps=1, guidance_scale=1.0, **SQUARE)
    crops = Crops([make_source(tmp_path, "a.png", (32, 32))], 32, None)
    trainable.loss(1, torch.Generator().manual_seed(0), crops)
    hook.remove()
    theirs, ours = told
    for name in ("encoder_hidden_states", "pooled_projections", "txt_ids", "img_ids", "guidance", "added_cond_kwargs"):
        mine, other = ours.get(name), theirs.get(name)
        for one, two in zip(*((x.values() if isinstance(x, dict) else [x]) for x in (mine, other)), strict=True):
            torch.testing.assert_close(one, two, msg=name)
    latents = [call.get("hidden_states", call.get("sample", (*call["given"], None)[0])) for call in told]
    assert latents[0].shape == latents[1].shape
    if checkpoint == "flux":  # times from 0 to 1
        assert 0 < float(ours["timestep"]) < 1 == float(theirs["timestep"])


def test_images_of_one_scene_are_held_out_together(tmp_path: Path, tiny_pipeline: TinyPipeline) -> None:
    """Others of its scene would show a model what the image that is held out looks like."""
    samples = [make_source(tmp_path, f"{name}.png", (40, 50)) for name in "abcd"]

    def held_out(*scenes: str) -> list[int]:
        return held_out_of([replace(each, group=scene) for each, scene in zip(samples, scenes, strict=False)], 1)

    assert held_out("", "", "") == [1]
    assert held_out("x", "y", "z", "y") == [1, 3]
    assert held_out("x", "x", "x") == held_out("x", "x", "y") == [1]  # less than half would remain
    assert held_out("x") == held_out() == []

    samples = [replace(each, group=scene) for each, scene in zip(samples, "xyzy", strict=True)]
    learning: dict[str, Any] = {"finetune": "lora", "finetune_steps": 2, "seed": 1, "tile": 32}
    generator = fitted(tiny_pipeline, tmp_path / "models", samples, **learning)
    assert generator.parameters_of(samples) == {"held_out": ["b.png", "d.png"]}
    assert generator.parameters_of([]) == {"held_out": []}
    (content,) = (tmp_path / "models").glob("*-*/losses.json")
    assert json.loads(content.read_text())["held_out"] == "b.png"
    assert make("img2img", tiny_pipeline).parameters_of(samples) == {}
    # Where it learns unlabelled images too, which are not known yet, a store does not say which image is held out.
    about: Any = {"dataset": "d", "labels": {}, "seed": 0}
    assert identity_of(generator, samples, **about).parameters["held_out"] == ["b.png", "d.png"]
    assert "held_out" not in identity_of(generator, samples, **about, unlabelled="u").parameters


@pytest.mark.parametrize(
    ("start", "held_out", "cure"),
    [(0.0, 100, r"finetune_steps=(9|12|15)"), (0.5, 0, "finetune=null"), (0.0, 220, None)],
)
def test_a_model_that_memorises_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, start: float, held_out: int, cure: str | None
) -> None:
    """A model of one level learns an image of 220: it passes an image of 100, and leaves one of 0 from the start."""
    caplog.set_level("INFO")
    pixels = np.tile(np.arange(256, dtype=np.uint8), (256, 1))  # an image has its own full scale
    samples = [write_sample(tmp_path, f"{level}.png", pixels, ()) for level in (220, held_out)]
    learnt, other = (Crops([sample], 256, None) for sample in samples)
    for crops, grey in ((learnt, 220), (other, held_out)):
        crops._images[0][:] = grey / 255
    level = torch.nn.Parameter(torch.tensor(start))

    def loss(count: int, rng: torch.Generator, crops: Crops) -> torch.Tensor:
        return (crops.draw(count, rng)[0] - level).square().mean()

    losses, rng = HeldOut(loss, learnt, other, 30), torch.Generator().manual_seed(0)
    train_steps(
        [level],
        lambda: loss(1, rng, learnt),
        steps=30,
        learning_rate=0.04,
        rng=rng,
        folder=tmp_path,
        identity="",
        state={},
        description="learning",
        after_step=losses.measure,
    )
    losses.tell("a model", tmp_path)
    written = json.loads((tmp_path / LOSSES_FILE).read_text())
    assert written["held_out"] == samples[1].name
    assert written["learnt_images"][-1] < written["learnt_images"][0] / 4
    (record,) = (record for record in caplog.records if "loss of learnt images" in record.getMessage())
    if cure is None:
        assert record.levelname == "INFO"
    else:
        assert record.levelname == "WARNING"
        assert re.search(f"It memorises.*generator\\.{cure}, a lower", record.getMessage())


@pytest.mark.parametrize(("kind", "how"), [("img2img", "lora"), ("inpaint", "textual_inversion")])
def test_what_was_learnt_changes_pixels_the_same_way_every_time(
    tmp_path: Path, tiny_pipeline: TinyPipeline, kind: str, how: str
) -> None:
    sample = make_source(tmp_path, "a.png", (40, 50))
    plain = fitted(tiny_pipeline, tmp_path / "plain", [sample], kind)
    generator = fitted(tiny_pipeline, tmp_path / "models", [sample], kind, finetune=how)
    assert generator.learns
    assert not plain.learns
    assert generator.parameters()["finetune"] == how
    model, base = generator.model(), plain.model()
    assert model is not None
    assert base is not None
    assert model.revision == f"{base.revision}+{learnt_in(tmp_path / 'models').name}"
    request = Request(sample, 1, 0)
    ((made,), (unlike,)) = pixels_of(generator, request), pixels_of(plain, request)
    assert (made != unlike).any()
    weights = learnt_in(tmp_path / "models") / WEIGHTS_FILE
    written = weights.stat().st_mtime_ns
    again = fitted(tiny_pipeline, tmp_path / "models", [sample], kind, finetune=how)
    assert weights.stat().st_mtime_ns == written  # loaded, not learnt again
    np.testing.assert_array_equal(pixels_of(again, request)[0], made)
    assert not (weights.parent / STATE_FILE).exists()


def test_the_files_are_those_that_diffusers_reads(tmp_path: Path, tiny_pipeline: TinyPipeline) -> None:
    sample = make_source(tmp_path, "a.png")
    for how in ("lora", "textual_inversion"):
        generator = fitted(tiny_pipeline, tmp_path / how, [sample], prompt="a ship", finetune=how)
        (made,) = pixels_of(generator, Request(sample, 1, 0))
        theirs = fitted(tiny_pipeline, tmp_path, [], prompt="a ship" if how == "lora" else f"a ship {TOKEN}")
        folder = learnt_in(tmp_path / how)
        if how == "lora":
            theirs._pipeline.load_lora_weights(folder, weight_name=WEIGHTS_FILE)
        else:
            theirs._pipeline.load_textual_inversion(folder, weight_name=WEIGHTS_FILE, token=TOKEN)
        np.testing.assert_array_equal(pixels_of(theirs, Request(sample, 1, 0))[0], made)


class KilledError(Exception):
    """Stands for a SIGKILL."""


def test_learning_that_was_killed_continues_as_if_nothing_had_happened(
    tmp_path: Path, tiny_pipeline: TinyPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = [make_source(tmp_path, f"{name}.png", (40, 50)) for name in "ab"]
    fitted(tiny_pipeline, tmp_path / "whole", samples, finetune="lora")
    monkeypatch.setattr(training, "SECONDS_BETWEEN_SAVES", 0.0)

    def save_then_die(state: dict[str, Any], file: Path) -> None:
        save_state(state, file)
        if state["step"] == 2:
            raise KilledError

    monkeypatch.setattr(training, "save_state", save_then_die)
    with pytest.raises(KilledError):
        fitted(tiny_pipeline, tmp_path / "cut", samples, finetune="lora")
    home = learnt_in(tmp_path / "cut")
    assert (home / STATE_FILE).exists()
    assert not (home / WEIGHTS_FILE).exists()
    fitted(tiny_pipeline, tmp_path / "cut", samples, finetune="lora")
    assert not (home / STATE_FILE).exists()
    whole, cut = load_file(learnt_in(tmp_path / "whole") / WEIGHTS_FILE), load_file(home / WEIGHTS_FILE)
    assert whole.keys() == cut.keys()
    for name in whole:
        assert torch.equal(whole[name], cut[name]), name
    whole_losses, losses = (next((tmp_path / name).glob(f"*/{LOSSES_FILE}")) for name in ("whole", "cut"))
    assert losses.read_text() == whole_losses.read_text()
    assert 0 not in json.loads(losses.read_text())["held_out_image"]


@pytest.mark.parametrize("how", ["lora", "textual_inversion"])
def test_damaged_weights_are_named_and_learnt_again(
    tmp_path: Path, tiny_pipeline: TinyPipeline, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    sample = make_source(tmp_path, "a.png", (40, 50))
    fitted(tiny_pipeline, tmp_path, [sample], finetune=how)
    file = next(tmp_path.glob(f"*/{WEIGHTS_FILE}"))
    weights = {name: value.clone() for name, value in load_file(file).items()}  # what it gives is the file's memory
    content = bytearray(file.read_bytes())
    content[-3] ^= 16
    file.write_bytes(content)
    fitted(tiny_pipeline, tmp_path, [sample], finetune=how)
    assert str(file) in caplog.text
    again = load_file(file)
    assert all(torch.equal(again[name], value) for name, value in weights.items())


def test_other_images_settings_and_checkpoints_are_learnt_side_by_side(
    tmp_path: Path, tiny_pipeline: TinyPipeline
) -> None:
    a, b = make_source(tmp_path, "a.png"), make_source(tmp_path, "b.png")
    models = tmp_path / "models"
    before = torch.random.get_rng_state()
    fitted(tiny_pipeline, models, [a], finetune="lora")
    assert torch.equal(before, torch.random.get_rng_state())
    fitted(tiny_pipeline, models, [b], finetune="lora")
    fitted(tiny_pipeline, models, [a], finetune="lora", prompt="a ship")
    fitted(tiny_pipeline, models, [a], finetune="lora", seed=1)
    assert len(list(models.glob("lora-*"))) == 4
    fitted(tiny_pipeline, models, [a], finetune="lora", strength=0.9, overlap=4)  # of the drawing alone
    assert len(list(models.glob("lora-*"))) == 4


def test_crops_are_whole_squares_of_the_images_and_their_masks(tmp_path: Path) -> None:
    small, large = make_source(tmp_path, "a.png", (20, 70)), make_source(tmp_path, "b.png", (40, 40, 3), boxes=())
    coded = np.arange(20 * 70, dtype=np.uint16).reshape(20, 70)
    write_png(small.path, coded)
    crops = Crops([small, large], 32, lambda boxes, height, width: np.full((height, width), len(boxes) == 0))
    images, masks = crops.draw(40, torch.Generator().manual_seed(0))
    assert images.shape == (40, 3, 32, 32)
    kinds = masks.flatten(1).unique(dim=1)  # type: ignore[no-untyped-call]
    assert sorted(kinds[:, 0].unique().tolist()) == [0.0, 1.0]
    # The median of 3 x 3 pixels keeps corners out of black and white: they are clipped.
    scaled = levels_of(small, coded).scaled(coded)
    padded = np.pad(scaled, ((0, 12), (0, 0)), mode="symmetric")
    for image, mask in zip(images, masks, strict=True):
        if not mask.any():  # of the small image
            values = np.rint(image[0].numpy() * 65535).astype(int)
            assert any(np.array_equal(values, padded[:, left : left + 32]) for left in range(70 - 32 + 1))


def test_what_cannot_be_learnt_is_said(tmp_path: Path, tiny_pipeline: TinyPipeline) -> None:
    from diffusers import DiffusionPipeline

    with pytest.raises(InputError, match="at least one training image"):
        fitted(tiny_pipeline, tmp_path, [], finetune="lora")
    for setting, value in (("finetune_steps", 0), ("finetune_learning_rate", 0.0)):
        with pytest.raises(InputError, match=setting):
            make("img2img", tiny_pipeline, finetune="lora", **{setting: value})
    for folder, how, message in (
        ("image_variation", "lora", "cannot be fine-tuned here with finetune=lora, only .*FLUX"),
        ("flux", "textual_inversion", "only Stable Diffusion 1, 2 and XL; finetune=lora takes more"),
    ):
        loaded = DiffusionPipeline.from_pretrained(tiny_pipeline(folder))  # type: ignore[no-untyped-call]
        generator = make("img2img", tiny_pipeline, finetune=how)
        assert isinstance(generator, PromptedGenerator)
        with pytest.raises(InputError, match=message):
            TrainablePipeline(loaded, 32, generator)


def test_weights_of_a_variant_learn_by_themselves(tmp_path: Path, tiny_pipeline: TinyPipeline) -> None:
    """What is learnt beside other weights of a checkpoint is another file."""
    import diffusers

    folder = tmp_path / "both"
    load: Any = diffusers.DiffusionPipeline.from_pretrained
    pipeline = load(tiny_pipeline("stable_diffusion"))
    pipeline.save_pretrained(folder)
    pipeline.save_pretrained(folder, variant="ema")
    samples = [make_source(tmp_path, f"{name}.png", (40, 50)) for name in "ab"]
    learning: dict[str, Any] = {"finetune": "lora", "finetune_steps": 2, "tile": 32, "checkpoint": str(folder)}
    for variant in (None, "ema", None):
        fitted(tiny_pipeline, tmp_path / "models", samples, "img2img", **learning, load={"variant": variant})
    assert len(list((tmp_path / "models").glob("lora-*"))) == 2
