"""Models that edit an image as a text says: FLUX.1 Kontext, FLUX.2 klein, Qwen-Image-Edit."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from boxtwin.datasets.sample import Sample
from boxtwin.errors import InputError
from boxtwin.synthesis.diffusers_pipelines.loading import PipelineGenerator, Squares, accepts

FLUX = ("FluxKontextPipeline", "Flux2KleinPipeline")
QWEN = ("QwenImageEditPipeline", "QwenImageEditPlusPipeline")


@dataclass(kw_only=True, eq=False)
class Edit(PipelineGenerator):
    """An image and one instruction in, one image out. The models see 8 bits of the source, a square at a time."""

    prompt: str  # one neutral instruction for all images

    name = "edit"
    boxes = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size != 1:  # several images are several parts of one task to them
            raise InputError(f"{self.name} edits one square at a time: say batch_size=1, not {self.batch_size}")
        if not self.prompt.strip():
            raise InputError(f"{self.name}: the models need an instruction, prompt is empty")

    def _load(self, training: Sequence[Sample], folder: Path) -> Any:  # noqa: ARG002, nothing is learnt
        kind = self._checkpoint.check_kind(*FLUX, *QWEN)
        if kind in QWEN and importlib.util.find_spec("torchvision") is None:
            raise InputError(f"{self.name}: {self.checkpoint}, a {kind}, needs torchvision: pip install torchvision")
        return self._checkpoint.load(kind, self._device, self._compute_dtype)

    def _inputs(self, squares: Squares) -> dict[str, Any]:
        pixels = np.rint(squares[0].permute(1, 2, 0).clamp(0, 1).numpy() * 255).astype(np.uint8)
        inputs = {"image": Image.fromarray(pixels), "prompt": self.prompt}
        if accepts(self._pipeline, "max_area"):  # Kontext chooses another size otherwise
            inputs |= {"max_area": self._side**2, "_auto_resize": False}
        if type(self._pipeline).__name__ in QWEN:
            inputs |= {"true_cfg_scale": self.guidance_scale, "negative_prompt": " ", "guidance_scale": None}
        return inputs
