"""Stable Diffusion learns what the split's training images look like: LoRA, or one new word.

The loop is that of latent diffusion (Rombach et al. 2022, equation 2): noise the latents of random crops, predict the
noise (or the velocity, where the checkpoint does), squared error. Only a few new weights move: matrices of low rank in
the attention of the U-Net (Hu et al. 2021, "LoRA"), or the embedding of a new word (Gal et al. 2022, "An Image is Worth
One Word"). Files are in the formats that diffusers reads.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from boxtwin.datasets.levels import measure_levels
from boxtwin.datasets.sample import Sample
from boxtwin.errors import InputError
from boxtwin.synthesis.arrays import Boxes, Mask, padded_to, planes_of
from boxtwin.synthesis.constants import FINETUNE_BATCH_SIZE, LORA_RANK
from boxtwin.synthesis.generator import Json, check_settings, hash_of, settings_of
from boxtwin.synthesis.training import WEIGHTS_FILE, train_once, train_steps
from boxtwin.weights import read_weights, write_weights

KINDS = ("lora", "textual_inversion")
TOKEN = "<training-images>"  # the word that is learnt
FIRST_WORD = "image"  # what the new word means before it is learnt
ATTENTION = ("to_k", "to_q", "to_v", "to_out.0")  # the layers that diffusers' own LoRA recipe changes

# Loads the pipeline in float32 and tells the side of its images.
Load = Callable[[], tuple[Any, int]]
# Which pixels of a training image an inpainting model is to paint.
Repaint = Callable[[Boxes, int, int], Mask]


@dataclass(kw_only=True, eq=False)
class FinetuneSettings:
    """How to fine-tune."""

    prompt: str  # text that guides the images; if it is empty, the source alone does
    finetune: str | None  # one of `KINDS`: learn first what the split's training images look like
    finetune_steps: int  # of AdamW, on crops of the model's size
    finetune_learning_rate: float
    seed: int  # of first weights, crops and noise; variations have the seeds of their requests

    def check(self, owner: str) -> None:
        """Refuse settings out of range; ``owner`` is whose they are."""
        if self.finetune is None:
            return
        if self.finetune not in KINDS:
            raise InputError(f"{owner}: finetune is null, {' or '.join(KINDS)}, got {self.finetune!r}")
        check_settings(owner, self, finetune_steps=1)
        if self.finetune_learning_rate <= 0:
            raise InputError(f"{owner}: finetune_learning_rate is positive, got {self.finetune_learning_rate}")
        if importlib.util.find_spec("peft") is None:
            raise InputError(f"{owner}: finetune={self.finetune} needs peft: pip install 'boxtwin[finetune]'")

    def finetune_parameters(self) -> dict[str, Json]:
        """The settings of the fine-tuning that change its weights."""
        if self.finetune is None:
            return {"finetune": None}
        former = {"finetune_batch_size": FINETUNE_BATCH_SIZE}
        former |= {"finetune_rank": LORA_RANK} if self.finetune == "lora" else {}
        settings = settings_of(self, of=FinetuneSettings, without=("prompt", "seed"))
        return settings | former | {"finetune_seed": self.seed}


def finetune(
    settings: FinetuneSettings,
    owner: str,
    training: Sequence[Sample],
    folder: Path,
    *,
    identity: dict[str, Json],
    dtype: torch.dtype,
    load: Load,
    repaint: Repaint | None,
) -> Path:
    """Learn, continue an interrupted training, or take what an earlier call left in ``folder``; the file of weights.

    ``identity`` is what the weights follow from besides: the checkpoint, and what ``repaint`` (of inpainting models)
    depends on. ``load`` is called only to learn. For a ``dtype`` of float16, which needs scaling, float32 is taken.
    """
    if not training:
        raise InputError(f"{owner}: finetune={settings.finetune} needs at least one training image")
    images = [[sample.name, sample.sha256, sample.object_boxes.tolist() if repaint else None] for sample in training]
    content: dict[str, Any] = {**identity, **settings.finetune_parameters(), "prompt": settings.prompt}
    content["images"] = images
    if any(sample.bits > 8 for sample in training):
        content["levels"] = "measured"  # before, 65535 was the full-scale value
    digest = hash_of(content)
    home = folder / f"{settings.finetune}-{digest[:12]}"

    def learn() -> None:
        pipeline, side = load()
        trainable = TrainablePipeline(pipeline, settings, owner, Crops(training, side, repaint), dtype)
        train(trainable, settings, home, digest, f"{owner}: learning ({settings.finetune})")

    return train_once(home, learn)


def train(pipeline: TrainablePipeline, settings: FinetuneSettings, home: Path, digest: str, description: str) -> None:
    """Take the steps that are left, and leave the weights in ``home``."""
    rng = torch.Generator().manual_seed(settings.seed)
    train_steps(
        pipeline.weights,
        lambda: pipeline.loss(FINETUNE_BATCH_SIZE, rng),
        steps=settings.finetune_steps,
        learning_rate=settings.finetune_learning_rate,
        rng=rng,
        folder=home,
        identity=digest,
        state={"weights": {str(number): weight.detach() for number, weight in enumerate(pipeline.weights)}},
        description=description,
    )
    write_weights(home / WEIGHTS_FILE, {name: value.detach().float() for name, value in pipeline.learnt().items()}, {})


class TrainablePipeline:
    """A pipeline with a few new weights, and the error that they are to lower."""

    def __init__(self, pipeline: Any, settings: FinetuneSettings, owner: str, crops: Crops, dtype: torch.dtype) -> None:
        from diffusers import DDPMScheduler, UNet2DConditionModel
        from transformers import CLIPTextModel

        parts = getattr(pipeline, "unet", None), getattr(pipeline, "text_encoder", None)
        fits = isinstance(parts[0], UNet2DConditionModel) and isinstance(parts[1], CLIPTextModel)
        if not fits or getattr(pipeline, "text_encoder_2", None) is not None:
            raise InputError(
                f"{owner}: a {type(pipeline).__name__} cannot be fine-tuned here, only Stable Diffusion 1 and 2 and "
                "what is built like them (one U-Net, one CLIP text encoder): say finetune=null or choose one of these"
            )
        self.pipeline, self.crops, self.device = pipeline, crops, pipeline.device
        self._dtype = dtype if dtype == torch.bfloat16 else torch.float32
        self._noise = DDPMScheduler.from_config(pipeline.scheduler.config)  # type: ignore[no-untyped-call]
        self._masked = pipeline.unet.config.in_channels > pipeline.vae.config.latent_channels
        for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
            part.requires_grad_(False).eval()
        self._lora, self._prompt = settings.finetune == "lora", with_token(settings.prompt)
        self.weights = _add_lora(pipeline.unet, settings.seed) if self._lora else [_add_word(pipeline)]
        with torch.no_grad():  # the encoded prompt, if it stays the same
            self._encoded = self._encode(settings.prompt) if self._lora else None

    def loss(self, count: int, rng: torch.Generator) -> Tensor:
        """Mean squared error over ``count`` random crops."""
        pipeline = self.pipeline
        images, masks = (part.to(self.device) for part in self.crops.draw(count, rng))
        with torch.autocast(self.device.type, self._dtype, enabled=self._dtype != torch.float32):
            with torch.no_grad():
                x_0 = self._latents(2 * images - 1, rng)
                eps = torch.randn(x_0.shape, generator=rng).to(self.device)
                t = torch.randint(self._noise.config.num_train_timesteps, (count,), generator=rng).to(self.device)
                x_t = self._noise.add_noise(x_0, eps, t)
                if self._masked:  # the input of inpainting models: latents, mask, latents of what is kept
                    kept = self._latents((2 * images - 1) * (1 - masks), rng)
                    x_t = torch.cat([x_t, F.interpolate(masks, size=x_t.shape[2:]), kept], dim=1)
            prompt = self._encode(self._prompt) if self._encoded is None else self._encoded
            predicted = pipeline.unet(x_t, t, encoder_hidden_states=prompt.expand(count, -1, -1), return_dict=False)[0]
        velocity = self._noise.config.prediction_type == "v_prediction"
        wanted = self._noise.get_velocity(x_0, eps, t) if velocity else eps
        return F.mse_loss(predicted.float(), wanted.float())

    def learnt(self) -> dict[str, Tensor]:
        """The new weights, under the names that diffusers reads them by."""
        if not self._lora:
            return {TOKEN: self.weights[0]}
        from diffusers.utils.state_dict_utils import convert_state_dict_to_diffusers
        from peft.utils import get_peft_model_state_dict

        layers = get_peft_model_state_dict(self.pipeline.unet)
        layers = convert_state_dict_to_diffusers(layers)  # type: ignore[no-untyped-call]
        return {f"unet.{name}": value for name, value in layers.items()}

    def _latents(self, images: Tensor, rng: torch.Generator) -> Tensor:
        vae = self.pipeline.vae
        return vae.encode(images).latent_dist.sample(rng) * vae.config.scaling_factor

    def _encode(self, prompt: str) -> Tensor:
        tokenizer = self.pipeline.tokenizer
        length = {"padding": "max_length", "max_length": tokenizer.model_max_length, "truncation": True}
        words = tokenizer(prompt, return_tensors="pt", **length)
        return self.pipeline.text_encoder(words.input_ids.to(self.device))[0]


class Crops:
    """Random squares of the training images, as shares of full scale, with what an inpainting model is to paint."""

    def __init__(self, training: Sequence[Sample], side: int, repaint: Repaint | None) -> None:
        self.side = side
        self._images = []
        for sample in training:
            pixels = measure_levels([sample], Sample.read).levels.scaled(sample.read())
            height, width = pixels.shape[:2]
            mask = repaint(sample.object_boxes, height, width) if repaint else np.ones((height, width), dtype=bool)
            stacked = np.concatenate([planes_of(pixels, 3), mask[None].astype(np.float32)])
            self._images.append(torch.from_numpy(padded_to(stacked, side)))

    def draw(self, count: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """``count`` squares (count, 3, side, side) and their masks (count, 1, side, side): 1 where to paint."""
        squares = []
        for _ in range(count):
            image = self._images[int(torch.randint(len(self._images), (), generator=rng))]
            top, left = (int(torch.randint(size - self.side + 1, (), generator=rng)) for size in image.shape[1:])
            squares.append(image[:, top : top + self.side, left : left + self.side])
        batch = torch.stack(squares)
        return batch[:, :3], batch[:, 3:]


def _add_lora(unet: Any, seed: int) -> list[nn.Parameter]:
    from peft import LoraConfig

    config = LoraConfig(r=LORA_RANK, lora_alpha=LORA_RANK, init_lora_weights="gaussian", target_modules=list(ATTENTION))
    # peft initialises from torch's global generator; the fork restores it.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet.add_adapter(config)
    return [weight for weight in unet.parameters() if weight.requires_grad]


def _add_word(pipeline: Any) -> nn.Parameter:
    """A word of its own, which starts with the meaning of `FIRST_WORD`; its embedding."""
    tokenizer, encoder = pipeline.tokenizer, pipeline.text_encoder
    embeddings = encoder.get_input_embeddings().weight
    start = embeddings[tokenizer(FIRST_WORD, add_special_tokens=False).input_ids].detach().mean(dim=0)
    tokenizer.add_tokens([TOKEN])
    number = tokenizer.convert_tokens_to_ids(TOKEN)
    if number >= len(embeddings):
        encoder.resize_token_embeddings(number + 1, mean_resizing=False)
    word = nn.Parameter(start.clone())

    def put_in(module: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> Tensor:  # noqa: ARG001, torch's form
        return torch.where((given[0] == number)[..., None], word.to(out.dtype), out)

    encoder.get_input_embeddings().register_forward_hook(put_in)
    return word


def add_learnt(pipeline: Any, kind: str | None, file: Path) -> None:
    """Have a pipeline draw with what `finetune` has learnt."""
    learnt, _ = read_weights(file)
    if kind == "lora":
        pipeline.load_lora_into_unet(learnt, network_alphas=None, unet=pipeline.unet)
    else:
        pipeline.load_textual_inversion(learnt, token=TOKEN)


def with_token(prompt: str) -> str:
    """A prompt with the new word in it."""
    return prompt if TOKEN in prompt else f"{prompt} {TOKEN}".strip()
