"""Variations by pretrained models for images from text: any checkpoint that the pipelines of diffusers load."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float

from boxtwin.datasets.image_io import Pixels
from boxtwin.datasets.sample import Sample
from boxtwin.errors import InputError
from boxtwin.synthesis.blending import blend_outside_boxes, box_pixels
from boxtwin.synthesis.ddpm.training_crops import planes_of
from boxtwin.synthesis.diffusers_pipelines.finetune import Finetune, Finetuned, Repaint
from boxtwin.synthesis.diffusers_pipelines.loading import PipelineGenerator, Squares, accepts, as_pixels, levels_of
from boxtwin.synthesis.generator import Json, Knowledge, Model, Request


class _PromptedGenerator(PipelineGenerator):
    """A prompt, a strength, and fine-tuning on the split's training images."""

    def __init__(
        self,
        *,
        prompt: str,
        strength: float,
        steps: int,
        finetune: str | None,
        finetune_steps: int,
        finetune_batch_size: int,
        finetune_learning_rate: float,
        finetune_rank: int,
        seed: int,
        **settings: Any,
    ) -> None:
        if not 0 < strength <= 1:
            raise InputError(f"{self.name}: strength lies in (0, 1], got {strength}")
        if int(steps * strength) < 1:  # diffusers takes the whole part
            raise InputError(
                f"{self.name}: strength={strength} of steps={steps} is less than one step; raise either of them"
            )
        super().__init__(steps=steps, **settings)
        self.prompt, self.strength = prompt, strength
        self._finetune = (
            Finetune(
                kind=finetune,
                steps=finetune_steps,
                batch_size=finetune_batch_size,
                learning_rate=finetune_learning_rate,
                rank=finetune_rank,
                seed=seed,
                asked_by=self.name,
            )
            if finetune is not None
            else None
        )
        self.learns = self._finetune is not None
        self._finetuned: Finetuned | None = None

    def parameters(self) -> dict[str, Json]:
        """All settings but the device and where files come from; those of the fine-tuning only where there is one."""
        return {
            **super().parameters(),
            "prompt": self.prompt,
            "strength": self.strength,
            **(self._finetune.parameters() if self._finetune else {"finetune": None}),
        }

    def model(self) -> Model | None:
        """The checkpoint; fine-tuned, its revision is followed by what was learnt."""
        model = super().model()
        if model is None or self._finetuned is None:
            return model
        return Model(model.id, f"{model.revision}+{self._finetuned.name}")

    def _load(self, training: Sequence[Sample], folder: Path) -> Any:
        if self._finetune is not None:
            if not training:
                raise InputError(f"{self.name}: finetune={self._finetune.kind} needs at least one training image")
            self._checkpoint.index()  # now its commit is known
            self._finetuned = self._finetune.fit(
                training,
                folder,
                identity={
                    **self._identity(),
                    "revision": self._checkpoint.model().revision,
                    "tile": self.tile,
                    "dtype": self.dtype,
                },
                prompt=self.prompt,
                dtype=self._compute_dtype,
                load=self._load_for_training,
                repaint=self._repaint,
            )
        pipeline = self._load_as_published(self._compute_dtype)
        self._check(pipeline)
        if self._finetuned is not None:
            self._finetuned.add_to(pipeline)
        return pipeline

    @abstractmethod
    def _load_as_published(self, dtype: torch.dtype) -> Any:
        """The pipeline with the weights of the checkpoint."""

    def _load_for_training(self) -> tuple[Any, int]:
        """The pipeline in float32, which small steps of weights need, and the side of its images."""
        pipeline = self._load_as_published(torch.float32)
        self._check(pipeline)
        return pipeline, self._choose_side(pipeline)

    def _check(self, pipeline: Any) -> None:
        if not accepts(pipeline, "strength"):
            raise InputError(
                f"{self.name}: {self._checkpoint.name} is a {type(pipeline).__name__}, which knows no strength; "
                "choose another checkpoint"
            )

    def _identity(self) -> dict[str, Json]:
        """What weights follow from that are learnt here, besides the training."""
        return self._checkpoint.parameters()

    _repaint: Repaint | None = None  # what an inpainting model is to paint

    def _settings(self, squares: Squares, generators: list[torch.Generator]) -> dict[str, Any]:
        prompt = self._finetuned.prompt(self.prompt) if self._finetuned else self.prompt
        side = squares.shape[2]
        return {
            "prompt": [prompt] * len(squares),
            "strength": self.strength,
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance_scale,
            "generator": generators,
            "output_type": "np",
            # Pipelines that would make images of their favourite size otherwise.
            **({"height": side, "width": side} if accepts(self._pipeline, "height") else {}),
        }


class Img2Img(_PromptedGenerator):
    """The source noised to a strength and denoised: SDEdit (Meng et al. 2022) with any model for images from text.

    Args:
        prompt: what guides the images; empty, the source alone does.
        strength: 0 to 1, how far the source is noised.
        finetune: null; "lora" (Hu et al. 2021) or "textual_inversion" (Gal et al. 2022): learn first what the
            split's training images look like. For Stable Diffusion 1 and 2 and what is built like them.
        finetune_steps, finetune_batch_size, finetune_learning_rate: of AdamW, on crops of the model's size.
        finetune_rank: of the matrices that LoRA adds.
        seed: of the fine-tuning. Variations have the seeds of their requests.
        settings: see `PipelineGenerator`.
    """

    name = "img2img"
    boxes: Knowledge = "carried"

    def _load_as_published(self, dtype: torch.dtype) -> Any:
        return self._checkpoint.load("AutoPipelineForImage2Image", self._device, dtype)

    def _check(self, pipeline: Any) -> None:
        super()._check(pipeline)
        unet, vae = (getattr(pipeline, part, None) for part in ("unet", "vae"))
        if unet is not None and vae is not None and unet.config.in_channels != vae.config.latent_channels:
            raise InputError(
                f"{self.name}: {self._checkpoint.name} is made for inpainting; say generator=inpaint_pretrained or "
                "choose another checkpoint"
            )

    def _draw(self, squares: Squares, generators: list[torch.Generator]) -> Float[np.ndarray, "n side side 3"]:
        made: Float[np.ndarray, "n side side 3"] = self._pipeline(
            image=squares, **self._settings(squares, generators)
        ).images
        return made


class InpaintPretrained(_PromptedGenerator):
    """Objects stay as they are to the last bit, and everything around them is painted anew.

    Args:
        margin: pixels around the boxes over which the source goes over into what was painted
            (`boxtwin.synthesis.blending`); the model is shown half of them.
        strength: 1 forgets the surroundings, less keeps their large shapes.
        settings: see `Img2Img` and `PipelineGenerator`.
    """

    name = "inpaint_pretrained"
    boxes: Knowledge = "exact"

    def __init__(self, *, margin: int, **settings: Any) -> None:
        if margin < 0:
            raise InputError(f"{self.name}: margin is not negative, got {margin}")
        super().__init__(**settings)
        self.margin = margin

    def parameters(self) -> dict[str, Json]:
        """All settings but the device and where files come from."""
        return {**super().parameters(), "margin": self.margin}

    def _load_as_published(self, dtype: torch.dtype) -> Any:
        return self._checkpoint.load("AutoPipelineForInpainting", self._device, dtype)

    def _identity(self) -> dict[str, Json]:
        return {**super()._identity(), "inpaint": True, "margin": self.margin}

    def _repaint(self, boxes: Float[np.ndarray, "n 4"], height: int, width: int) -> Bool[np.ndarray, "h w"]:
        grown = boxes + np.array([-1, -1, 1, 1], dtype=boxes.dtype) * (self.margin // 2)
        outside: Bool[np.ndarray, "h w"] = ~box_pixels(grown, height, width)
        return outside

    def _vary_one(self, request: Request, pixels: Pixels) -> Pixels:
        # Crowds are painted over: no box would tell what is in them.
        boxes = request.source.object_boxes
        repaint = self._repaint(boxes, *pixels.shape[:2])
        if not repaint.any():
            return pixels
        levels = levels_of(request.source, pixels)
        values = np.concatenate([planes_of(levels.scaled(pixels), 3), repaint[None].astype(np.float32)]).transpose(
            1, 2, 0
        )
        painted = levels.restored(as_pixels(self._drawn(values, request.seed), pixels))
        return blend_outside_boxes(pixels, painted, boxes, self.margin)

    def _draw(self, squares: Squares, generators: list[torch.Generator]) -> Float[np.ndarray, "n side side 3"]:
        settings = self._settings(squares, generators)
        made: Float[np.ndarray, "n side side 3"] = self._pipeline(
            image=squares[:, :3], mask_image=squares[:, 3:], **settings
        ).images
        return made
