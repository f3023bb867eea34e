"""Variations by what an image shows: models that are given an image's CLIP embedding, and paint another such image.

Objects move about, so nothing is known of boxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from boxtwin.datasets.sample import Sample
from boxtwin.errors import InputError
from boxtwin.synthesis.diffusers_pipelines.checkpoints import Checkpoint
from boxtwin.synthesis.diffusers_pipelines.loading import PipelineGenerator, Squares
from boxtwin.synthesis.generator import Json, Knowledge


class SDVariations(PipelineGenerator):
    """Stable Diffusion given CLIP's image embedding in place of a text: the open twin of DALL·E 2's variations.

    Args:
        antialias: shrink squares to CLIP's size the usual way. The published checkpoint was trained on images shrunk
            without, and its model card asks for the same.
        settings: see `PipelineGenerator`.
    """

    name = "sd_variations"
    boxes: Knowledge = "none"

    def __init__(self, *, antialias: bool, **settings: Any) -> None:
        super().__init__(**settings)
        self.antialias = antialias

    def parameters(self) -> dict[str, Json]:
        """All settings but the device and where files come from."""
        return {**super().parameters(), "antialias": self.antialias}

    def _load(self, training: Sequence[Sample], folder: Path) -> Any:  # noqa: ARG002, nothing is learnt
        _check_kind(self, self._checkpoint, ("StableDiffusionImageVariationPipeline",))
        return self._checkpoint.load("StableDiffusionImageVariationPipeline", self._device, self._compute_dtype)

    def _draw(self, squares: Squares, generators: list[torch.Generator]) -> Float[np.ndarray, "n side side 3"]:
        made: Float[np.ndarray, "n side side 3"] = self._pipeline(
            image=as_clip_sees(squares, self._pipeline.feature_extractor, self.antialias),
            height=squares.shape[2],
            width=squares.shape[3],
            num_inference_steps=self.steps,
            guidance_scale=self.guidance_scale,
            generator=generators,
            output_type="np",
        ).images
        return made


class UnCLIP(PipelineGenerator):
    """Models of DALL·E 2's own build, which paint from CLIP's image embedding (Ramesh et al. 2022).

    The checkpoint's ``model_index.json`` says which: Stable unCLIP, or the decoder of Kandinsky 2.2.

    Args:
        noise_level: 0 to 999, noise on the embedding: more of it, less likeness. For Stable unCLIP.
        prior: Kandinsky's second checkpoint, whose image encoder is used (the rest of it is not loaded); folder or id.
        prior_revision: of an id.
        settings: see `PipelineGenerator`.
    """

    name = "unclip"
    boxes: Knowledge = "none"

    def __init__(self, *, noise_level: int, prior: str | None, prior_revision: str | None, **settings: Any) -> None:
        super().__init__(**settings)
        if noise_level < 0:
            raise InputError(f"{self.name}: noise_level is not negative, got {noise_level}")
        self.noise_level = noise_level
        offline = bool(settings["local_files_only"])
        self._prior_checkpoint = Checkpoint(prior, prior_revision, offline, f"{self.name}, prior") if prior else None
        self._prior: Any = None

    def parameters(self) -> dict[str, Json]:
        """All settings but the device and where files come from."""
        prior: Json = self._prior_checkpoint.parameters() if self._prior_checkpoint else None
        return {**super().parameters(), "noise_level": self.noise_level, "prior": prior}

    def _load(self, training: Sequence[Sample], folder: Path) -> Any:  # noqa: ARG002, nothing is learnt
        stable = ("StableUnCLIPImg2ImgPipeline", "StableUnCLIPPipeline")
        kandinsky = ("KandinskyV22Pipeline", "KandinskyV22Img2ImgPipeline")
        kind = _check_kind(self, self._checkpoint, (*stable, *kandinsky))
        return self._load_kandinsky() if kind in kandinsky else self._load_stable()

    def _load_stable(self) -> Any:
        if self._prior_checkpoint is not None:
            raise InputError(f"{self.name}: {self._checkpoint.name} is Stable unCLIP and needs no prior (prior=null)")
        pipeline = self._checkpoint.load("StableUnCLIPImg2ImgPipeline", self._device, self._compute_dtype)
        most = pipeline.image_noising_scheduler.config.num_train_timesteps - 1
        if self.noise_level > most:
            raise InputError(f"{self.name}: noise_level is {most} at most, got {self.noise_level}")
        return pipeline

    def _load_kandinsky(self) -> Any:
        if self._prior_checkpoint is None:
            raise InputError(
                f"{self.name}: {self._checkpoint.name} is Kandinsky's decoder, which needs its prior: say "
                "prior=kandinsky-community/kandinsky-2-2-prior, or a folder"
            )
        if self.noise_level:
            raise InputError(f"{self.name}: Kandinsky has no noise_level; say noise_level=0")
        _check_kind(self, self._prior_checkpoint, ("KandinskyV22PriorPipeline",))
        unused = dict.fromkeys(("prior", "text_encoder", "tokenizer", "scheduler"))
        self._prior = self._prior_checkpoint.load(
            "KandinskyV22PriorPipeline", self._device, self._compute_dtype, **unused
        )
        return self._checkpoint.load("KandinskyV22Pipeline", self._device, self._compute_dtype)

    def _scale(self, pipeline: Any) -> int:
        return int(super()._scale(pipeline) if self._prior is None else pipeline.movq_scale_factor)

    def _multiple(self, pipeline: Any) -> int:
        # Kandinsky rounds sides up to the square of what its latents are smaller by.
        return super()._multiple(pipeline) if self._prior is None else self._scale(pipeline) ** 2

    def _draw(self, squares: Squares, generators: list[torch.Generator]) -> Float[np.ndarray, "n side side 3"]:
        made: Float[np.ndarray, "n side side 3"] = self._pipeline(
            **(self._stable_input(squares) if self._prior is None else self._kandinsky_input(squares)),
            height=squares.shape[2],
            width=squares.shape[3],
            num_inference_steps=self.steps,
            guidance_scale=self.guidance_scale,
            generator=generators,
            output_type="np",
        ).images
        return made

    def _stable_input(self, squares: Squares) -> dict[str, Any]:
        return {
            "image": as_clip_sees(squares, self._pipeline.feature_extractor, True),
            "prompt": [""] * len(squares),
            "noise_level": self.noise_level,
        }

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

    What ``processor``, CLIP's own, does to 8-bit images, without the rounding to 8 bits: 16-bit images are often dark.
    """
    side = processor.crop_size["height"]
    seen = F.interpolate(squares, size=(side, side), mode="bicubic", antialias=antialias, align_corners=False)
    mean, std = (torch.tensor(values)[:, None, None] for values in (processor.image_mean, processor.image_std))
    return (seen.clamp(0, 1) - mean) / std


def _check_kind(generator: PipelineGenerator, checkpoint: Checkpoint, kinds: Sequence[str]) -> str:
    """Which of ``kinds`` a checkpoint is; diffusers would load any for any and fail in the middle."""
    kind = str(checkpoint.index()["_class_name"])
    if kind not in kinds:
        raise InputError(
            f"{generator.name}: {checkpoint.name} is a {kind}; one of {', '.join(kinds)} is needed: choose another "
            "checkpoint"
        )
    return kind
