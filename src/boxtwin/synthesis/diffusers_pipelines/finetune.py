"""A published model learns what the split's training images look like: LoRA, or one new word.

Latents of random crops are noised, and the noise or the velocity is predicted (Rombach et al. 2022, equation 2); noise
minus latents by Stable Diffusion 3 and FLUX.1 (Esser et al. 2024, section 3.1). Only a few new weights move: matrices
of low rank in the attention (Hu et al. 2021, "LoRA"), or the embedding of a new word (Gal et al. 2022, "An Image is
Worth One Word"). One training image is held out, to tell when a model memorises. Files are in diffusers' formats.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from boxtwin.datasets.sample import Sample
from boxtwin.errors import InputError
from boxtwin.synthesis.constants import FINETUNE_BATCH_SIZE, LORA_RANK
from boxtwin.synthesis.generator import Json, check_settings, hash_of, settings_of
from boxtwin.synthesis.training import WEIGHTS_FILE, Crops, HeldOut, Repaint, train_once, train_steps
from boxtwin.weights import read_weights, write_weights

KINDS = ("lora", "textual_inversion")
TOKEN = "<training-images>"  # the word that is learnt
FIRST_WORD = "image"  # what the new word means before it is learnt
ENCODERS = {TOKEN: "", "clip_l": "", "clip_g": "_2"}  # names of words in files, endings of the names of their encoders
ATTENTION = ["to_k", "to_q", "to_v", "to_out.0"]  # the layers that diffusers' own LoRA recipe changes

Load = Callable[[], tuple[Any, int]]  # loads the pipeline in float32, and tells the side of its images


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
    out = settings.seed % len(training) if len(training) > 1 else None  # the image that is held out
    images = [[sample.name, sample.sha256, sample.object_boxes.tolist() if repaint else None] for sample in training]
    content: dict[str, Any] = {**identity, **settings.finetune_parameters(), "prompt": settings.prompt}
    content |= {"images": images} if out is None else {"images": images, "held_out": out}
    if any(sample.bits > 8 for sample in training):
        content["levels"] = "measured"  # before, 65535 was the full-scale value
    digest = hash_of(content)
    home = folder / f"{settings.finetune}-{digest[:12]}"

    def learn() -> None:
        loaded, side = load()
        crops = Crops([sample for number, sample in enumerate(training) if number != out], side, repaint)
        pipeline = TrainablePipeline(loaded, settings, owner, side, dtype)
        left_out = None if out is None else Crops([training[out]], side, repaint)
        losses = HeldOut(pipeline.loss, crops, left_out, settings.finetune_steps)
        rng = torch.Generator().manual_seed(settings.seed)
        weights = {str(number): weight.detach() for number, weight in enumerate(pipeline.weights)}
        train_steps(
            pipeline.weights,
            lambda: pipeline.loss(FINETUNE_BATCH_SIZE, rng, crops),
            steps=settings.finetune_steps,
            learning_rate=settings.finetune_learning_rate,
            rng=rng,
            folder=home,
            identity=digest,
            state={"weights": weights, "losses": losses.state},
            description=f"{owner}: learning ({settings.finetune})",
            after_step=losses.measure,
        )
        losses.tell(f"{owner}, {settings.finetune}", home)
        learnt = {name: value.detach().float() for name, value in pipeline.learnt().items()}
        write_weights(home / WEIGHTS_FILE, learnt, {})

    return train_once(home, learn)


class TrainablePipeline:
    """A pipeline with a few new weights, and the error that they are to lower."""

    def __init__(self, pipeline: Any, settings: FinetuneSettings, owner: str, side: int, dtype: torch.dtype) -> None:
        from diffusers import DDPMScheduler, FluxTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel
        from transformers import CLIPTextModel, CLIPTextModelWithProjection

        self._lora, self._prompt = settings.finetune == "lora", with_token(settings.prompt)
        network: Any = getattr(pipeline, "unet", None) or getattr(pipeline, "transformer", None)
        self._packed, self._flow = isinstance(network, FluxTransformer2DModel), not hasattr(pipeline, "unet")
        learnable = (UNet2DConditionModel, *((FluxTransformer2DModel, SD3Transformer2DModel) if self._lora else ()))
        encoder = getattr(pipeline, "text_encoder", None)
        if not (isinstance(network, learnable) and isinstance(encoder, CLIPTextModel | CLIPTextModelWithProjection)):
            kinds = "Stable Diffusion 1, 2 and XL" + (", 3 and FLUX.1" if self._lora else "; finetune=lora takes more")
            cannot = f"a {type(pipeline).__name__} cannot be fine-tuned here with finetune={settings.finetune}"
            raise InputError(f"{owner}: {cannot}, only {kinds}: say finetune=null or choose one of these")
        self.pipeline, self.network, self.side, self.device = pipeline, network, side, pipeline.device
        self._dtype = dtype if dtype == torch.bfloat16 else torch.float32
        self._noise: Any = None if self._flow else DDPMScheduler.from_config(pipeline.scheduler.config)  # type: ignore[no-untyped-call]
        self._masked = not self._flow and network.config.in_channels > pipeline.vae.config.latent_channels
        nn.ModuleList(x for x in pipeline.components.values() if isinstance(x, nn.Module)).requires_grad_(False).eval()
        self._double = getattr(pipeline, "text_encoder_2", None) is not None
        self._names = ["clip_l", "clip_g"] if self._double else [TOKEN]
        words = (_add_word(pipeline, ENCODERS[name]) for name in self._names)
        self.weights = _add_lora(network, settings.seed) if self._lora else list(words)
        with torch.no_grad():  # the encoded prompt, if it stays the same
            self._encoded = self._condition(settings.prompt) if self._lora else None

    def loss(self, count: int, rng: torch.Generator, crops: Crops) -> Tensor:
        """Mean squared error over ``count`` random crops."""
        with torch.autocast(self.device.type, self._dtype, enabled=self._dtype != torch.float32):
            return torch.stack([self._error(crops, rng) for _ in range(count)]).mean()

    def learnt(self) -> dict[str, Tensor]:
        """The new weights, under the names that diffusers reads them by."""
        if not self._lora:
            return dict(zip(self._names, self.weights, strict=True))
        from peft.utils import get_peft_model_state_dict

        part = "transformer" if self._flow else "unet"
        return {f"{part}.{name}": value for name, value in get_peft_model_state_dict(self.network).items()}

    def _error(self, crops: Crops, rng: torch.Generator) -> Tensor:
        images, masks = (part.to(self.device) for part in crops.draw(1, rng))
        x_0 = self._latents(2 * images - 1, rng)
        eps = torch.randn(x_0.shape, generator=rng).to(self.device)
        if self._flow:
            t = torch.randn(1, generator=rng).sigmoid().to(self.device)
            x_t, wanted = (1 - t) * x_0 + t * eps, eps - x_0
            if self._packed:
                x_t, wanted = (self.pipeline._pack_latents(latents, *latents.shape) for latents in (x_t, wanted))
            noisy = {"hidden_states": x_t, "timestep": t if self._packed else 1000 * t}
        else:
            t = torch.randint(self._noise.config.num_train_timesteps, (1,), generator=rng).to(self.device)
            x_t, velocity = self._noise.add_noise(x_0, eps, t), self._noise.config.prediction_type == "v_prediction"
            wanted = self._noise.get_velocity(x_0, eps, t) if velocity else eps
            if self._masked:  # the input of inpainting models: latents, mask, latents of what is kept
                kept = self._latents((2 * images - 1) * (1 - masks), rng)
                x_t = torch.cat([x_t, F.interpolate(masks, size=x_t.shape[2:]), kept], dim=1)
            noisy = {"sample": x_t, "timestep": t}
        told = self._condition(self._prompt) if self._encoded is None else self._encoded
        predicted = self.network(**noisy, **told, return_dict=False)[0]
        return F.mse_loss(predicted.float(), wanted.float())

    @torch.no_grad()
    def _latents(self, images: Tensor, rng: torch.Generator) -> Tensor:
        vae = self.pipeline.vae
        latents: Tensor = vae.encode(images).latent_dist.sample(rng)
        return (latents - (vae.config.get("shift_factor") or 0)) * vae.config.scaling_factor

    def _condition(self, prompt: str) -> dict[str, Any]:
        """What the pipeline tells its network beside noisy latents and their time."""
        pipeline, device, side = self.pipeline, self.device, self.side
        if self._packed:
            text, pooled, text_ids = pipeline.encode_prompt(prompt, None, device=device)
            half = side // pipeline.vae_scale_factor // 2
            told = {"encoder_hidden_states": text, "pooled_projections": pooled, "txt_ids": text_ids}
            told["img_ids"] = pipeline._prepare_latent_image_ids(1, half, half, device, text.dtype)
            return told | {"guidance": torch.ones(1, device=device) if self.network.config.guidance_embeds else None}
        if not self._double:
            return {"encoder_hidden_states": pipeline.encode_prompt(prompt, device, 1, False)[0]}
        more: dict[str, Any] = {"prompt_3": None} if self._flow else {}
        more |= {"prompt_2": None, "device": device, "do_classifier_free_guidance": False}
        text, _, pooled, _ = pipeline.encode_prompt(prompt, **more)
        if self._flow:
            return {"encoder_hidden_states": text, "pooled_projections": pooled}
        sizes = torch.tensor([[side, side, 0, 0, side, side]], device=device, dtype=text.dtype)
        return {"encoder_hidden_states": text, "added_cond_kwargs": {"text_embeds": pooled, "time_ids": sizes}}


def _add_lora(network: Any, seed: int) -> list[nn.Parameter]:
    from peft import LoraConfig

    config = LoraConfig(r=LORA_RANK, lora_alpha=LORA_RANK, init_lora_weights="gaussian", target_modules=ATTENTION)
    # peft initialises from torch's global generator; the fork restores it.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network.add_adapter(config)
    return [weight for weight in network.parameters() if weight.requires_grad]


def _add_word(pipeline: Any, ending: str) -> nn.Parameter:
    """A word of its own, which starts with the meaning of `FIRST_WORD`; its embedding in one of the encoders."""
    tokenizer, encoder = getattr(pipeline, f"tokenizer{ending}"), getattr(pipeline, f"text_encoder{ending}")
    embeddings = encoder.get_input_embeddings().weight
    start = embeddings[tokenizer(FIRST_WORD, add_special_tokens=False).input_ids].detach().mean(dim=0)
    tokenizer.add_tokens([TOKEN])
    number = tokenizer.convert_tokens_to_ids(TOKEN)
    if number >= len(embeddings):
        encoder.resize_token_embeddings(number + 1, mean_resizing=False)
    word = nn.Parameter(start.clone())
    # In place of what the table of embeddings gives for the word.
    replaced: Any = lambda _, given, out: torch.where((given[0] == number)[..., None], word.to(out.dtype), out)  # noqa: E731
    encoder.get_input_embeddings().register_forward_hook(replaced)
    return word


def add_learnt(pipeline: Any, kind: str | None, file: Path) -> None:
    """Have a pipeline draw with what `finetune` has learnt."""
    learnt, _ = read_weights(file)
    if kind == "lora":
        part = "unet" if hasattr(pipeline, "unet") else "transformer"
        getattr(pipeline, part).load_lora_adapter(learnt, prefix=part)
        return
    for name in learnt:
        parts = {part: getattr(pipeline, f"{part}{ENCODERS[name]}") for part in ("text_encoder", "tokenizer")}
        pipeline.load_textual_inversion({TOKEN: learnt[name]}, token=TOKEN, **parts)


def with_token(prompt: str) -> str:
    """A prompt with the new word in it."""
    return prompt if TOKEN in prompt else f"{prompt} {TOKEN}".strip()
