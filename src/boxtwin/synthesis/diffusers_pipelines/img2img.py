"""Variations by pretrained models that make images from text: any checkpoint that the pipelines of diffusers load."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from boxtwin.datasets.image_io import Pixels
from boxtwin.datasets.sample import Sample
from boxtwin.errors import InputError
from boxtwin.synthesis.arrays import Boxes, Mask, box_pixels, grown
from boxtwin.synthesis.blending import blend_outside_boxes
from boxtwin.synthesis.diffusers_pipelines.checkpoints import accepts, related
from boxtwin.synthesis.diffusers_pipelines.finetune import FinetuneSettings, add_learnt, finetune, with_token
from boxtwin.synthesis.diffusers_pipelines.loading import PipelineGenerator, Squares, as_pictures, check_strength
from boxtwin.synthesis.generator import Json, Model, Request, check_settings
from boxtwin.synthesis.training import Repaint


@dataclass(kw_only=True, eq=False)
class _PromptedGenerator(PipelineGenerator, FinetuneSettings):
    """A prompt, a strength, and fine-tuning on the split's training images."""

    strength: float  # 0 to 1, how far the source is noised: 1 forgets it

    mapping: ClassVar[str]  # diffusers' table of the pipelines that `pipeline_class` chooses from

    def __post_init__(self) -> None:
        super().__post_init__()
        check_strength(self.name, self.strength, self.steps)
        self.check(self.name)
        self.learns = self.finetune is not None
        if self.learns and self.loading.quantisation:
            raise InputError(f"{self.name}: finetune={self.finetune} cannot be combined with load.quantisation")
        self._learnt: Path | None = None
        # Of inpainting models: the pixels that they are to paint, and what these depend on.
        self._to_repaint: Repaint | None = None
        self._repaint_identity: dict[str, Json] = {}

    def version(self, training: Sequence[Sample]) -> int:
        """Two more where one image is held out of learning; before, it was learnt too."""
        return super().version(training) + 2 * (self.learns and len(training) > 1)

    def parameters(self) -> dict[str, Json]:
        learning = {entry.name for entry in fields(FinetuneSettings)} - {"prompt"}
        settings = {name: value for name, value in super().parameters().items() if name not in learning}
        return settings | self.finetune_parameters()

    def model(self) -> Model | None:
        """The checkpoint; fine-tuned, its revision is followed by the name of what was learnt."""
        model = super().model()
        if model is None or self._learnt is None:
            return model
        return Model(model.id, f"{model.revision}+{self._learnt.parent.name}")

    def _load(self, training: Sequence[Sample], folder: Path) -> Any:
        dtype = self.compute_dtype
        if self.learns:

            def load() -> tuple[Any, int]:
                pipeline = self._load_published(torch.float32).to(self._device)  # small steps of weights need it
                return pipeline, self._choose_side(pipeline)

            self._checkpoint.index()  # now its commit is known
            identity = self._checkpoint.parameters() | {"revision": self._checkpoint.model().revision}
            identity |= {**self._repaint_identity, "tile": self.tile, "dtype": self.dtype_name}
            self._learnt = finetune(
                self, self.name, training, folder, identity=identity, dtype=dtype, load=load, repaint=self._to_repaint
            )
        pipeline = self._load_published(dtype)
        if self._learnt is not None:
            add_learnt(pipeline, self.finetune, self._learnt)
        return pipeline

    def _load_published(self, dtype: torch.dtype, **components: Any) -> Any:
        kind, why = self._checkpoint.check_kind(), None
        chosen = related(self.mapping, kind)
        if chosen is not None and not accepts(chosen, "strength"):
            why = "has no strength; generator=edit is for models that edit images by instruction"
        elif chosen is not None and accepts(chosen, "control_image"):
            why = "needs a control image; generator=controlnet takes a ControlNet beside the checkpoint of its model"
        if why:
            raise InputError(f"{self.name}: {self.checkpoint} is a {kind}, which {why}")
        return super()._load_published(dtype, **components)

    def _inputs(self, squares: Squares) -> dict[str, Any]:
        prompt = with_token(self.prompt) if self.finetune == "textual_inversion" else self.prompt
        masks = {"mask_image": squares[:, 3:]} if squares.shape[1] > 3 else {}  # of inpainting models
        # Pipelines without an image processor take 8 bits only, or another range of values.
        images = squares[:, :3] if hasattr(self._pipeline, "image_processor") else as_pictures(squares)
        return {"prompt": [prompt] * len(squares), "strength": self.strength, "image": images, **masks}


@dataclass(kw_only=True, eq=False)
class Img2Img(_PromptedGenerator):
    """The source noised to a strength and denoised: SDEdit (Meng et al. 2022) with a model for images from text."""

    name = "img2img"
    boxes = "carried"
    pipeline_class = "AutoPipelineForImage2Image"
    mapping = "AUTO_IMAGE2IMAGE_PIPELINES_MAPPING"

    def _load_published(self, dtype: torch.dtype, **components: Any) -> Any:
        pipeline = super()._load_published(dtype, **components)
        unet, vae = (getattr(pipeline, part, None) for part in ("unet", "vae"))
        if unet is not None and vae is not None and unet.config.in_channels != vae.config.latent_channels:
            cure = "say generator=inpaint_pretrained or choose another checkpoint"
            raise InputError(f"{self.name}: {self.checkpoint} is made for inpainting; {cure}")
        return pipeline


@dataclass(kw_only=True, eq=False)
class InpaintPretrained(_PromptedGenerator):
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
