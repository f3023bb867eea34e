"""Images from a text alone: the control that should fail on data that a model has not seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boxtwin.datasets.sample import Sample
from boxtwin.errors import InputError
from boxtwin.synthesis.diffusers_pipelines.loading import PipelineGenerator, Squares


@dataclass(kw_only=True, eq=False)
class TextToImage(PipelineGenerator):
    """Any model for images from text. Of the source it takes size, bit depth and range of values, nothing else."""

    prompt: str  # what the images show

    name = "text_to_image"
    boxes = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.prompt.strip():
            raise InputError(f"{self.name} draws from a text alone: say what, generator.prompt='a photograph of ...'")

    def _load(self, training: Sequence[Sample], folder: Path) -> Any:  # noqa: ARG002, nothing is learnt
        return self._checkpoint.load("AutoPipelineForText2Image", self._device, self._compute_dtype)

    def _inputs(self, squares: Squares) -> dict[str, Any]:
        return {"prompt": [self.prompt] * len(squares)}
