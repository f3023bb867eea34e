"""Models that need a text: images from a text alone, or edits by an instruction."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any, ClassVar

from boxtwin.errors import InputError
from boxtwin.synthesis.diffusers_pipelines.checkpoints import KINDS, accepts
from boxtwin.synthesis.diffusers_pipelines.loading import PipelineGenerator, Squares, as_pictures


@dataclass(kw_only=True, eq=False)
class TextToImage(PipelineGenerator):
    """Any model for images from text; only the source's size is used. A control: it should fail on unusual data."""

    prompt: str  # what the images show

    name = "text_to_image"
    boxes = "none"
    pipeline_class: ClassVar[str | None] = "AutoPipelineForText2Image"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.prompt.strip():
            raise InputError(f"{self.name} needs a text: say which, generator.prompt='...'")

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
        if self._kind.startswith("Qwen") and importlib.util.find_spec("torchvision") is None:
            needs = f"{self.checkpoint}, a {self._kind}, needs torchvision: pip install torchvision"
            raise InputError(f"{self.name}: {needs}")

    def _inputs(self, squares: Squares) -> dict[str, Any]:
        inputs: dict[str, Any] = {"image": as_pictures(squares)[0], "prompt": self.prompt}
        if accepts(self._pipeline, "max_area"):  # Kontext chooses another size otherwise
            inputs |= {"max_area": self._side**2, "_auto_resize": False}
        if self._kind.startswith("Qwen"):
            inputs |= {"true_cfg_scale": self.guidance_scale, "negative_prompt": " ", "guidance_scale": None}
        return inputs
