"""Images by models that take a text: variations of a source, edits by an instruction, or images from the text alone.

A model may first learn what the split's training images look like: LoRA, or one new word. Latents of random crops are
noised, and the noise or the velocity is predicted (Rombach et al. 2022, equation 2); noise minus latents by Stable
Diffusion 3 and FLUX.1 (Esser et al. 2024, section 3.1). Only a few new weights move: matrices of low rank in the
attention (Hu et al. 2021, "LoRA"), or the embedding of a new word (Gal et al. 2022, "An Image is Worth One Word"). One
training image is held out, with its scene, to tell when a model memorises. Files are in diffusers' formats.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from boxtwin.datasets.image_io import Pixels
from boxtwin.datasets.sample import Sample
from boxtwin.synthesis.arrays import Boxes, Mask, box_pixels, grown
from boxtwin.synthesis.blending import blend_outside_boxes
from boxtwin.synthesis.constants import FINETUNE_BATCH_SIZE, LORA_RANK
from boxtwin.synthesis.diffusers_pipelines.checkpoints import KINDS, accepts, related
from boxtwin.synthesis.diffusers_pipelines.loading import PipelineGenerator, Squares, as_pictures
from boxtwin.synthesis.generator import Json, Request, check_settings, hash_of
from boxtwin.synthesis.training import WEIGHTS_FILE, Crops, HeldOut, Repaint, held_out_of, train_once, train_steps
from boxtwin.weights import read_weights, write_weights

WAYS = ("lora", "textual_inversion")
FAMILIES = ("UNet2DConditionModel", "SD3Transformer2DModel", "FluxTransformer2DModel")  # the first learns words, too
TOKEN = "<training-images>"  # the word that is learnt
FIRST_WORD = "image"  # what the new word means before it is learnt
ENCODERS = {TOKEN: "", "clip_l": "", "clip_g": "_2"}  # names of words in files, endings of the names of their encoders
ATTENTION = ["to_k", "to_q", "to_v", "to_out.0"]  # the layers that diffusers' own LoRA recipe changes


@dataclass(kw_only=True, eq=False)
class PromptedGenerator(PipelineGenerator):
    """The source noised and denoised with a prompt; the model may first learn what the training images look like."""

    prompt: str  # text that guides the images; if it is empty, the source alone does
    finetune: str | None  # one of `WAYS`
    finetune_steps: int  # of AdamW, on crops of the model's size
    finetune_learning_rate: float
    seed: int  # of first weights, crops and noise; variations have the seeds of their requests
    strength: float  # 0 to 1, how far the source is noised: 1 forgets it

    mapping: ClassVar[str]  # diffusers' table of the pipelines that `pipeline_class` chooses from

    def __post_init__(self) -> None:
        super().__post_init__()
        self.learns = self.finetune is not None
        with_word = self.finetune == "textual_inversion" and TOKEN not in self.prompt
        self.text = f"{self.prompt} {TOKEN}".strip() if with_word else self.prompt
        # Of inpainting models: the pixels that they are to paint, and what these depend on.
        self._to_repaint: Repaint | None = None
        self._repaint_identity: dict[str, Json] = {}
        if not self.learns:
            return
        asked, rate = f"finetune={self.finetune}", self.finetune_learning_rate
        self.refuse(self.finetune not in WAYS, f"finetune is null, {' or '.join(WAYS)}, got {self.finetune!r}")
        check_settings(self.name, self, finetune_steps=1)
        self.refuse(rate <= 0, f"finetune_learning_rate is positive, got {rate}")
        self.refuse(find_spec("peft") is None, f"{asked} needs peft: pip install 'boxtwin[finetune]'")
        self.refuse(self.loading.quantisation, f"{asked} cannot be combined with load.quantisation")

    def parameters_of(self, training: Sequence[Sample]) -> dict[str, Json]:
        """The names of the images that are held out of learning, if it learns."""
        return {"held_out": [training[i].name for i in held_out_of(training, self.seed)]} if self.learns else {}

    def parameters(self) -> dict[str, Json]:
        unused = ("finetune_steps", "finetune_learning_rate", "seed")
        settings = {name: value for name, value in super().parameters().items() if name not in unused}
        return settings | self._learning()

    def _learning(self) -> dict[str, Json]:
        """The settings of the fine-tuning that change its weights."""
        if not self.learns:
            return {"finetune": None}
        names = ("finetune", "finetune_steps", "finetune_learning_rate")
        former = {"finetune_batch_size": FINETUNE_BATCH_SIZE, "finetune_seed": self.seed}
        former |= {"finetune_rank": LORA_RANK} if self.finetune == "lora" else {}
        return {name: getattr(self, name) for name in names} | former

    def _load(self, training: Sequence[Sample], folder: Path) -> Any:
        if self.learns:
            self._learnt = self._learn(training, folder)
        pipeline = self._load_published(self.compute_dtype)
        if self._learnt is not None:
            add_learnt(pipeline, self._learnt)
        return pipeline

    def _check_kind(self) -> None:
        super()._check_kind()
        chosen, kind = related(self.mapping, self._kind), f"{self.checkpoint} is a {self._kind}, which"
        cure = "generator=edit is for models that edit images by instruction"
        self.refuse(chosen and not accepts(chosen, "strength"), f"{kind} has no strength; {cure}")
        cure = "generator=controlnet takes a ControlNet beside the checkpoint of its model"
        self.refuse(chosen and accepts(chosen, "control_image"), f"{kind} needs a control image; {cure}")

    def _load_published(self, dtype: torch.dtype, **components: Any) -> Any:
        pipeline = super()._load_published(dtype, **components)
        unet, vae = (getattr(pipeline, part, None) for part in ("unet", "vae"))
        of_inpainting = unet is not None and vae is not None and unet.config.in_channels != vae.config.latent_channels
        cure = "say generator=inpaint_pretrained or choose another checkpoint"
        self.refuse(of_inpainting and not self._to_repaint, f"{self.checkpoint} is made for inpainting; {cure}")
        return pipeline

    def _inputs(self, squares: Squares) -> dict[str, Any]:
        masks = {"mask_image": squares[:, 3:]} if squares.shape[1] > 3 else {}  # of inpainting models
        # Pipelines without an image processor take 8 bits only, or another range of values.
        images = squares[:, :3] if hasattr(self._pipeline, "image_processor") else as_pictures(squares)
        return {"prompt": [self.text] * len(squares), "strength": self.strength, "image": images, **masks}

    def _learn(self, training: Sequence[Sample], folder: Path) -> Path:
        """Learn, continue an interrupted training, or take what an earlier call left in ``folder``: a file of weights.

        Weights move in float32, since their steps are small. The network computes in the generator's number format;
        for float16, which needs scaling, float32 is taken.
        """
        self.refuse(not training, f"finetune={self.finetune} needs at least one training image")
        out = held_out_of(training, self.seed)
        boxes = [sample.object_boxes.tolist() if self._to_repaint else None for sample in training]
        content: dict[str, Any] = {
            **self._checkpoint.parameters(),
            **self.loading.parameters(),
            **self._repaint_identity,
            **self._learning(),
            "revision": self._checkpoint.model().revision,
            "tile": self.tile,
            "dtype": self.dtype_name,
            "prompt": self.prompt,
            "images": [[sample.name, sample.sha256, each] for sample, each in zip(training, boxes, strict=True)],
        }
        content |= {"held_out": out if out[1:] else out[0]} if out else {}
        if any(sample.bits > 8 for sample in training):
            content["levels"] = "measured"  # before, 65535 was the full-scale value
        digest = hash_of(content)
        home = folder / f"{self.finetune}-{digest[:12]}"

        def learn() -> None:
            loaded = self._load_published(torch.float32).to(self._device)
            pipeline = TrainablePipeline(loaded, self._choose_side(loaded), self)
            learnt_images = [sample for number, sample in enumerate(training) if number not in out]
            crops = Crops(learnt_images, pipeline.side, self._to_repaint)
            left_out = Crops([training[out[0]]], pipeline.side, self._to_repaint) if out else None
            losses = HeldOut(pipeline.loss, crops, left_out, self.finetune_steps)
            rng = torch.Generator().manual_seed(self.seed)
            weights = {str(number): weight.detach() for number, weight in enumerate(pipeline.weights.values())}
            train_steps(
                pipeline.weights.values(),
                lambda: pipeline.loss(FINETUNE_BATCH_SIZE, rng, crops),
                steps=self.finetune_steps,
                learning_rate=self.finetune_learning_rate,
                rng=rng,
                folder=home,
                identity=digest,
                state={"weights": weights, "losses": losses.state},
                description=f"{self.name}: learning ({self.finetune})",
                after_step=losses.measure,
            )
            losses.tell(f"{self.name}, {self.finetune}", home)
            learnt_weights = {name: weight.detach().float() for name, weight in pipeline.weights.items()}
            write_weights(home / WEIGHTS_FILE, learnt_weights, {})

        return train_once(home, learn)


@dataclass(kw_only=True, eq=False)
class Img2Img(PromptedGenerator):
    """The source noised to a strength and denoised: SDEdit (Meng et al. 2022) with a model for images from text."""

    name = "img2img"
    boxes = "carried"
    pipeline_class = "AutoPipelineForImage2Image"
    mapping = "AUTO_IMAGE2IMAGE_PIPELINES_MAPPING"


@dataclass(kw_only=True, eq=False)
class InpaintPretrained(PromptedGenerator):
    """Objects stay as they are to the last bit, and everything around them is painted anew."""

    margin: int  # pixels around the boxes over which source and painting are mixed; the outer half is painted

    name = "inpaint_pretrained"
    boxes = "exact"
    pipeline_class = "AutoPipelineForInpainting"
    mapping = "AUTO_INPAINT_PIPELINES_MAPPING"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_settings(self.name, self, margin=0)
        self._to_repaint, self._repaint_identity = self._repaint, {"inpaint": True, "margin": self.margin}

    def _repaint(self, boxes: Boxes, height: int, width: int) -> Mask:
        return ~box_pixels(grown(boxes, self.margin // 2), height, width)

    def _vary_one(self, request: Request, pixels: Pixels, *_: Any) -> Pixels:
        boxes = request.source.object_boxes  # crowds are painted over: no box would stand for their objects
        repaint = self._repaint(boxes, *pixels.shape[:2])
        if not repaint.any():
            return pixels
        painted = super()._vary_one(request, pixels, repaint[None].astype(np.float32))
        return blend_outside_boxes(pixels, painted, boxes, self.margin)


@dataclass(kw_only=True, eq=False)
class TextToImage(PipelineGenerator):
    """Any model for images from text; only the source's size is used. A control: it should fail on unusual data."""

    prompt: str  # what the images show

    name = "text_to_image"
    boxes = "none"
    pipeline_class: ClassVar[str | None] = "AutoPipelineForText2Image"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.refuse(not self.prompt.strip(), "a text is needed: say which, generator.prompt='...'")

    def _inputs(self, squares: Squares) -> dict[str, Any]:
        return {"prompt": [self.prompt] * len(squares)}


@dataclass(kw_only=True, eq=False)
class Edit(TextToImage):
    """FLUX.1 Kontext, FLUX.2 klein and Qwen-Image-Edit: they take an image of 8 bits and an instruction."""

    name = "edit"
    kinds = KINDS["edit"]
    pipeline_class = None
    one_by_one = True  # the images of a call are parts of one task

    def _check_kind(self) -> None:
        super()._check_kind()
        lacking = self._kind.startswith("Qwen") and find_spec("torchvision") is None
        self.refuse(lacking, f"{self.checkpoint}, a {self._kind}, needs torchvision: pip install torchvision")

    def _inputs(self, squares: Squares) -> dict[str, Any]:
        inputs: dict[str, Any] = {"image": as_pictures(squares)[0], "prompt": self.prompt}
        if accepts(self._pipeline, "max_area"):  # Kontext chooses another size otherwise
            inputs |= {"max_area": self._side**2, "_auto_resize": False}
        if self._kind.startswith("Qwen"):
            inputs |= {"true_cfg_scale": self.guidance_scale, "negative_prompt": " ", "guidance_scale": None}
        return inputs


class TrainablePipeline:
    """A pipeline with a few new weights, and the error that they are to lower.

    ``side`` is that of its images, ``generator`` says what it learns and how.
    """

    def __init__(self, pipeline: Any, side: int, generator: PromptedGenerator) -> None:
        from diffusers import DDPMScheduler

        lora, dtype = generator.finetune == "lora", generator.compute_dtype
        self._dtype = dtype if dtype == torch.bfloat16 else torch.float32
        self._flow, self._packed = not hasattr(pipeline, "unet"), hasattr(pipeline, "_pack_latents")
        self.pipeline, self.side, self.device = pipeline, side, pipeline.device
        part = "transformer" if self._flow else "unet"
        self.network: Any = getattr(pipeline, part, None)
        learnable = type(self.network).__name__ in (FAMILIES if lora else FAMILIES[:1])
        if not learnable or not type(getattr(pipeline, "text_encoder", None)).__name__.startswith("CLIPTextModel"):
            kinds = "Stable Diffusion 1, 2 and XL" + (", 3 and FLUX.1" if lora else "; finetune=lora takes more")
            cannot = f"a {type(pipeline).__name__} cannot be fine-tuned here with finetune={generator.finetune}"
            generator.refuse(True, f"{cannot}, only {kinds}: say generator.finetune=null or choose one of these")
        self._noise: Any = None if self._flow else DDPMScheduler.from_config(pipeline.scheduler.config)  # type: ignore[no-untyped-call]
        nn.ModuleList(x for x in pipeline.components.values() if isinstance(x, nn.Module)).requires_grad_(False).eval()
        self._double = getattr(pipeline, "text_encoder_2", None) is not None
        # The new weights, under the names that diffusers reads them by.
        words = ("clip_l", "clip_g") if self._double else (TOKEN,)
        self.weights = _add_lora(pipeline, part, generator.seed) if lora else {x: _add_word(pipeline, x) for x in words}
        self._text = generator.text
        with torch.no_grad():  # the encoded prompt, if it stays the same
            self._encoded = self._condition() if lora else None

    def loss(self, count: int, rng: torch.Generator, crops: Crops) -> Tensor:
        """Mean squared error over ``count`` random crops."""
        with torch.autocast(self.device.type, self._dtype, enabled=self._dtype != torch.float32):
            return torch.stack([self._error(crops, rng) for _ in range(count)]).mean()

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
            if self.network.config.in_channels > x_0.shape[1]:
                # The input of inpainting models: latents, mask, latents of what is kept.
                kept = self._latents((2 * images - 1) * (1 - masks), rng)
                x_t = torch.cat([x_t, F.interpolate(masks, size=x_t.shape[2:]), kept], dim=1)
            noisy = {"sample": x_t, "timestep": t}
        predicted = self.network(**noisy, **(self._encoded or self._condition()), return_dict=False)[0]
        return F.mse_loss(predicted.float(), wanted.float())

    @torch.no_grad()
    def _latents(self, images: Tensor, rng: torch.Generator) -> Tensor:
        vae = self.pipeline.vae
        latents: Tensor = vae.encode(images).latent_dist.sample(rng)
        return (latents - (vae.config.get("shift_factor") or 0)) * vae.config.scaling_factor

    def _condition(self) -> dict[str, Any]:
        """What the pipeline tells its network beside noisy latents and their time."""
        pipeline, prompt, device, side = self.pipeline, self._text, self.device, self.side
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


def _add_lora(pipeline: Any, part: str, seed: int) -> dict[str, nn.Parameter]:
    from peft import LoraConfig

    config = LoraConfig(r=LORA_RANK, lora_alpha=LORA_RANK, init_lora_weights="gaussian", target_modules=ATTENTION)
    # peft initialises from torch's global generator; the fork restores it.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        getattr(pipeline, part).add_adapter(config)
    named = getattr(pipeline, part).named_parameters()
    return {f"{part}.{name.replace('.default', '')}": weight for name, weight in named if weight.requires_grad}


def _encoder(pipeline: Any, name: str) -> dict[str, Any]:
    """The encoder, and its tokenizer, that has a word of this name."""
    return {part: getattr(pipeline, f"{part}{ENCODERS[name]}") for part in ("text_encoder", "tokenizer")}


def _add_word(pipeline: Any, name: str) -> nn.Parameter:
    """A word of its own, which starts with the meaning of `FIRST_WORD`; its embedding in one of the encoders."""
    encoder, tokenizer = (parts := _encoder(pipeline, name)).values()
    embeddings = encoder.get_input_embeddings().weight
    start = embeddings[tokenizer(FIRST_WORD, add_special_tokens=False).input_ids].detach().mean(dim=0)
    pipeline.load_textual_inversion({TOKEN: start}, token=TOKEN, **parts)
    number = tokenizer.convert_tokens_to_ids(TOKEN)
    word = nn.Parameter(start.clone())
    # In place of what the table of embeddings gives for the word.
    replaced: Any = lambda _, given, out: torch.where((given[0] == number)[..., None], word.to(out.dtype), out)  # noqa: E731
    encoder.get_input_embeddings().register_forward_hook(replaced)
    return word


def add_learnt(pipeline: Any, file: Path) -> None:
    """Have a pipeline draw with what was learnt."""
    learnt, _ = read_weights(file)
    words = [name for name in learnt if name in ENCODERS]
    for name in words:
        pipeline.load_textual_inversion({TOKEN: learnt[name]}, token=TOKEN, **_encoder(pipeline, name))
    if not words:
        part = next(iter(learnt)).partition(".")[0]
        getattr(pipeline, part).load_lora_adapter(learnt, prefix=part)
