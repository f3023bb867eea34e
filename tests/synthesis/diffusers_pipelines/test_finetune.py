from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pipeline_generators import make, make_source, pixels_of
from safetensors.torch import load_file

from boxtwin.datasets.image_io import read_image, write_png
from boxtwin.datasets.levels import levels_of
from boxtwin.errors import InputError
from boxtwin.synthesis import training
from boxtwin.synthesis.arrays import box_pixels
from boxtwin.synthesis.diffusers_pipelines import finetune
from boxtwin.synthesis.diffusers_pipelines.finetune import TOKEN, Crops, FinetuneSettings, TrainablePipeline
from boxtwin.synthesis.diffusers_pipelines.loading import PipelineGenerator
from boxtwin.synthesis.generator import Request
from boxtwin.synthesis.training import STATE_FILE, WEIGHTS_FILE
from boxtwin.weights import save_state

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


def settings(kind: str, *, prompt: str, **changes: Any) -> FinetuneSettings:
    changes = {f"finetune_{name}": value for name, value in changes.items()}
    return FinetuneSettings(finetune=kind, prompt=prompt, seed=0, **changes)


@pytest.mark.parametrize(
    ("pipeline", "kind", "learning_rate"),
    [
        ("stable_diffusion", "lora", 3e-2),
        ("stable_diffusion", "textual_inversion", 0.5),
        ("inpainting", "lora", 3e-2),
    ],
)
def test_learning_lowers_the_error(
    tmp_path: Path, tiny_pipeline: TinyPipeline, pipeline: str, kind: str, learning_rate: float
) -> None:
    from diffusers import DiffusionPipeline

    sample = make_source(tmp_path, "a.png", (40, 50))
    how = settings(kind, steps=30, learning_rate=learning_rate, prompt="a ship")
    crops = Crops([sample], 32, lambda boxes, height, width: ~box_pixels(boxes, height, width))
    loaded = DiffusionPipeline.from_pretrained(tiny_pipeline(pipeline), safety_checker=None)  # type: ignore[no-untyped-call]
    trainable = TrainablePipeline(loaded, how, "img2img", crops, torch.float32)

    def error() -> float:
        with torch.no_grad():
            rng = torch.Generator().manual_seed(5)
            return float(np.mean([float(trainable.loss(4, rng)) for _ in range(6)]))

    before = error()
    finetune.train(trainable, how, tmp_path, "digest", "learning")
    assert error() < before - {"lora": 0.02, "textual_inversion": 0.0005}[kind]
    (file,) = tmp_path.glob(WEIGHTS_FILE)
    assert all(tensor.isfinite().all() for tensor in load_file(file).values())


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
    sample = make_source(tmp_path, "a.png", (40, 50))
    fitted(tiny_pipeline, tmp_path / "whole", [sample], finetune="lora")
    monkeypatch.setattr(training, "SECONDS_BETWEEN_SAVES", 0.0)

    def save_then_die(state: dict[str, Any], file: Path) -> None:
        save_state(state, file)
        if state["step"] == 2:
            raise KilledError

    monkeypatch.setattr(training, "save_state", save_then_die)
    with pytest.raises(KilledError):
        fitted(tiny_pipeline, tmp_path / "cut", [sample], finetune="lora")
    home = learnt_in(tmp_path / "cut")
    assert (home / STATE_FILE).exists()
    assert not (home / WEIGHTS_FILE).exists()
    fitted(tiny_pipeline, tmp_path / "cut", [sample], finetune="lora")
    assert not (home / STATE_FILE).exists()
    whole, cut = load_file(learnt_in(tmp_path / "whole") / WEIGHTS_FILE), load_file(home / WEIGHTS_FILE)
    assert whole.keys() == cut.keys()
    for name in whole:
        assert torch.equal(whole[name], cut[name]), name


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
    sample = make_source(tmp_path, "a.png")
    how = settings("lora", steps=1, learning_rate=1.0, prompt="")
    folder = tiny_pipeline("image_variation")
    other = DiffusionPipeline.from_pretrained(folder, safety_checker=None)  # type: ignore[no-untyped-call]
    with pytest.raises(InputError, match="cannot be fine-tuned"):
        TrainablePipeline(other, how, "img2img", Crops([sample], 32, None), torch.float32)
    assert read_image(sample.path).shape == (32, 32)
