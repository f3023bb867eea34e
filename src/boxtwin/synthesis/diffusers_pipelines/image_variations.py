"""Models conditioned on an image's embedding: they make a similar image, with objects at other places."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from boxtwin.synthesis.constants import ANTIALIAS
from boxtwin.synthesis.diffusers_pipelines.checkpoints import KINDS, PRIORS
from boxtwin.synthesis.diffusers_pipelines.loading import PipelineGenerator, Squares
from boxtwin.synthesis.generator import Json, Knowledge, check_settings


@dataclass(kw_only=True, eq=False)
class SDVariations(PipelineGenerator):
    """Stable Diffusion given CLIP's image embedding in place of a text, as DALL·E 2's variations do."""

    name = "sd_variations"
    boxes = "none"
    kinds = KINDS["sd_variations"]

    def parameters(self) -> dict[str, Json]:
        return super().parameters() | {"antialias": ANTIALIAS}

    def _inputs(self, squares: Squares) -> dict[str, Any]:
        return {"image": as_clip_sees(squares, self._pipeline.feature_extractor, ANTIALIAS)}


@dataclass(kw_only=True, eq=False)
class UnCLIP(PipelineGenerator):
    """Models built as DALL·E 2 (Ramesh et al. 2022): Stable unCLIP or Kandinsky 2.2, as the checkpoint's index says."""

    noise_level: int  # 0 to 999, noise on the embedding: more of it, less likeness. For Stable unCLIP
    prior: str | None  # Kandinsky's second checkpoint, of which the image encoder alone is loaded; folder or id
    prior_revision: str | None  # of an id

    name = "unclip"
    boxes = "none"
    kinds = KINDS["unclip"]
    prior_kinds = (PRIORS["unclip"],)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_settings(self.name, self, noise_level=0)
        unused = ("prior", "text_encoder", "tokenizer", "scheduler")
        self.checkpoints["prior"] = self._other("prior", without=unused) if self.prior else None

    def _check_kind(self) -> None:
        super()._check_kind()
        stable = self._kind.startswith("StableUnCLIP")
        kind = "Stable unCLIP, which has no prior" if stable else "Kandinsky's decoder, which needs its prior"
        cure = "null" if stable else "kandinsky-community/kandinsky-2-2-prior, or a folder"
        self.refuse(stable == bool(self.prior), f"{self.checkpoint} is {kind}: say generator.prior={cure}")
        most = 999 if stable else 0  # Kandinsky has none
        self.refuse(self.noise_level > most, f"say generator.noise_level={most} at most, not {self.noise_level}")
        self.pipeline_class = "StableUnCLIPImg2ImgPipeline" if stable else "KandinskyV22Pipeline"  # type: ignore[misc]

    def _inputs(self, squares: Squares) -> dict[str, Any]:
        if self._prior is None:
            seen = as_clip_sees(squares, self._pipeline.feature_extractor, True)
            return {"image": seen, "prompt": [""] * len(squares), "noise_level": self.noise_level}
        # What the prior's `interpolate` gives for one image of weight 1, without the text in between.
        encoder = self._prior.image_encoder
        seen = as_clip_sees(squares, self._prior.image_processor, True).to(encoder.device, encoder.dtype)
        empty = self._prior.get_zero_embed(len(squares))
        return {"image_embeds": encoder(seen).image_embeds, "negative_image_embeds": empty}


@dataclass(kw_only=True, eq=False)
class Redux(PipelineGenerator):
    """FLUX.1 given Redux's embedding of the source and a text of zeros, as `FluxPriorReduxPipeline` makes them."""

    prior: str  # Redux's own checkpoint: folder or id
    prior_revision: str | None  # of an id

    name = "redux"
    boxes = "none"
    kinds = ("FluxPipeline",)
    prior_kinds = (PRIORS["redux"],)
    # No text is encoded: its encoders, most of the memory beside the transformer, are not loaded.
    without = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._other("prior", without=self.without)

    def _inputs(self, squares: Squares) -> dict[str, Any]:
        prior, sizes = self._prior, self._pipeline.transformer.config
        seen = as_clip_sees(squares, prior.feature_extractor, True).to(prior.device, prior.image_encoder.dtype)
        image = prior.image_embedder(prior.image_encoder(seen).last_hidden_state).image_embeds
        text = image.new_zeros(len(squares), 512, sizes.joint_attention_dim)
        pooled = image.new_zeros(len(squares), sizes.pooled_projection_dim)
        return {"prompt_embeds": torch.cat([text, image], dim=1), "pooled_prompt_embeds": pooled}


@dataclass(kw_only=True, eq=False)
class IPAdapter(PipelineGenerator):
    """Stable Diffusion 1.5 or XL conditioned on the source's embedding by an adapter (Ye et al. 2023)."""

    adapter: str  # folder, or id on the hub, with the adapter and its image encoder
    adapter_revision: str | None  # of an id
    weights: str  # the adapter's file in there
    image_encoder: str  # the encoder's folder in there
    scale: float  # weight of the adapter; 0 turns it off
    strength: float | None  # as of `Img2Img`: objects stay in place. None starts from noise, and objects move

    name = "ip_adapter"
    boxes: ClassVar[Knowledge] = "none"
    pipeline_class: ClassVar[str | None] = "AutoPipelineForText2Image"
    one_by_one = True  # a call applies all its embeddings to all its squares
    kinds = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_settings(self.name, self, scale=0)
        if self.strength is not None:  # constants of a class elsewhere; here they depend on a setting
            self.boxes, self.pipeline_class = "carried", "AutoPipelineForImage2Image"  # type: ignore[misc]
        self._adapter = self._other("adapter", self.weights, self.image_encoder)

    def _load_published(self, dtype: torch.dtype, **components: Any) -> Any:
        self._adapter.index("AutoModel", subfolder=self.image_encoder)  # now its commit is known
        # Diffusers itself would load the encoder of the main branch.
        kind = ("transformers", "CLIPVisionModelWithProjection")
        encoder = self._adapter.load_model(*kind, dtype, subfolder=self.image_encoder)
        pipeline = super()._load_published(dtype, image_encoder=encoder, **components)
        with self._adapter.errors():
            where = {"subfolder": "", "weight_name": self.weights, "revision": self.adapter_revision or "main"}
            pipeline.load_ip_adapter(self._adapter.place, **where)
        pipeline.set_ip_adapter_scale(self.scale)
        return pipeline

    def _inputs(self, squares: Squares) -> dict[str, Any]:
        seen = as_clip_sees(squares, self._pipeline.feature_extractor, True)
        start = {} if self.strength is None else {"image": squares, "strength": self.strength}
        return {"prompt": [""] * len(squares), "ip_adapter_image": [seen], **start}


def as_clip_sees(squares: Squares, processor: Any, antialias: bool) -> Float[Tensor, "n channels seen seen"]:
    """Squares at the size, centre and spread of CLIP's training images.

    What ``processor`` (CLIP's or SigLIP's) does to 8-bit images, without rounding to 8 bits: 16-bit images can be dark.
    """
    side = (getattr(processor, "crop_size", None) or processor.size)["height"]
    seen = F.interpolate(squares, size=(side, side), mode="bicubic", antialias=antialias, align_corners=False)
    mean, std = (torch.tensor(values)[:, None, None] for values in (processor.image_mean, processor.image_std))
    return (seen.clamp(0, 1) - mean) / std
