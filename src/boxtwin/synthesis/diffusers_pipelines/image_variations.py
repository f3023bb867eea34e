"""Models that get an image's CLIP embedding and paint another such image, in which objects are at other places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from boxtwin.datasets.sample import Sample
from boxtwin.errors import InputError
from boxtwin.synthesis.constants import ANTIALIAS
from boxtwin.synthesis.diffusers_pipelines.loading import PipelineGenerator, Squares
from boxtwin.synthesis.generator import Json, check_settings


@dataclass(kw_only=True, eq=False)
class SDVariations(PipelineGenerator):
    """Stable Diffusion given CLIP's image embedding in place of a text, as DALL·E 2's variations do."""

    name = "sd_variations"
    boxes = "none"

    def parameters(self) -> dict[str, Json]:
        return super().parameters() | {"antialias": ANTIALIAS}

    def _load(self, training: Sequence[Sample], folder: Path) -> Any:  # noqa: ARG002, nothing is learnt
        self._checkpoint.check_kind("StableDiffusionImageVariationPipeline")
        return self._checkpoint.load("StableDiffusionImageVariationPipeline", self._device, self._compute_dtype)

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

    def __post_init__(self) -> None:
        super().__post_init__()
        check_settings(self.name, self, noise_level=0)
        self._others["prior"] = self._prior_checkpoint = self._other("prior") if self.prior else None
        self._prior: Any = None

    def _load(self, training: Sequence[Sample], folder: Path) -> Any:  # noqa: ARG002, nothing is learnt
        stable = ("StableUnCLIPImg2ImgPipeline", "StableUnCLIPPipeline")
        kandinsky = ("KandinskyV22Pipeline", "KandinskyV22Img2ImgPipeline")
        if self._checkpoint.check_kind(*stable, *kandinsky) in kandinsky:
            return self._load_kandinsky()
        if self._prior_checkpoint:
            raise InputError(f"{self.name}: {self.checkpoint} is Stable unCLIP and needs no prior (prior=null)")
        pipeline = self._checkpoint.load("StableUnCLIPImg2ImgPipeline", self._device, self._compute_dtype)
        most = pipeline.image_noising_scheduler.config.num_train_timesteps - 1
        if self.noise_level > most:
            raise InputError(f"{self.name}: noise_level is {most} at most, got {self.noise_level}")
        return pipeline

    def _load_kandinsky(self) -> Any:
        if not self._prior_checkpoint:
            cure = "say prior=kandinsky-community/kandinsky-2-2-prior, or a folder"
            raise InputError(f"{self.name}: {self.checkpoint} is Kandinsky's decoder, which needs its prior: {cure}")
        if self.noise_level:
            raise InputError(f"{self.name}: Kandinsky has no noise_level; say noise_level=0")
        kind = self._prior_checkpoint.check_kind("KandinskyV22PriorPipeline")
        unused = dict.fromkeys(("prior", "text_encoder", "tokenizer", "scheduler"))
        self._prior = self._prior_checkpoint.load(kind, self._device, self._compute_dtype, **unused)
        return self._checkpoint.load("KandinskyV22Pipeline", self._device, self._compute_dtype)

    def _scale(self, pipeline: Any) -> int:
        return int(super()._scale(pipeline) if self._prior is None else pipeline.movq_scale_factor)

    def _multiple(self, pipeline: Any) -> int:
        # Kandinsky rounds sides up to the square of what its latents are smaller by.
        return super()._multiple(pipeline) if self._prior is None else self._scale(pipeline) ** 2

    def _inputs(self, squares: Squares) -> dict[str, Any]:
        if self._prior is not None:
            return self._kandinsky_input(squares)
        seen = as_clip_sees(squares, self._pipeline.feature_extractor, True)
        return {"image": seen, "prompt": [""] * len(squares), "noise_level": self.noise_level}

    def _kandinsky_input(self, squares: Squares) -> dict[str, Any]:
        """What the prior's ``interpolate`` gives for one image of weight 1, without the text in between."""
        encoder = self._prior.image_encoder
        seen = as_clip_sees(squares, self._prior.image_processor, True)
        return {
            "image_embeds": encoder(seen.to(encoder.device, encoder.dtype)).image_embeds,
            "negative_image_embeds": self._prior.get_zero_embed(len(squares)),
        }


def as_clip_sees(squares: Squares, processor: Any, antialias: bool) -> Float[Tensor, "n channels seen seen"]:
    """Squares at the size, centre and spread of CLIP's training images.

    What ``processor``, CLIP's or SigLIP's own, does to 8-bit images, without the rounding to 8 bits: 16-bit images are
    often dark.
    """
    side = (getattr(processor, "crop_size", None) or processor.size)["height"]
    seen = F.interpolate(squares, size=(side, side), mode="bicubic", antialias=antialias, align_corners=False)
    mean, std = (torch.tensor(values)[:, None, None] for values in (processor.image_mean, processor.image_std))
    return (seen.clamp(0, 1) - mean) / std
