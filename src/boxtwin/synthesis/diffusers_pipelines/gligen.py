"""Images with objects where boxes say, from boxes and texts alone (GLIGEN, Li et al. 2023).

Diffusers has deprecated the pipeline; the tests show whether it still runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from boxtwin.datasets.image_io import Pixels
from boxtwin.datasets.sample import Sample
from boxtwin.errors import InputError
from boxtwin.synthesis.diffusers_pipelines.loading import PipelineGenerator, Squares
from boxtwin.synthesis.generator import Refused, Request, Variation, check_settings

MOST_OBJECTS = 30  # that the pipeline takes notice of


@dataclass(kw_only=True, eq=False)
class GLIGEN(PipelineGenerator):
    """Stable Diffusion told by boxes where objects are. Of the source it takes boxes, size and range of values."""

    phrases: list[str]  # what an object of every class is, in the order of the classes
    prompt: str  # what the whole image shows
    grounded: float  # share of the steps, the first ones, that see the boxes

    name = "gligen"
    boxes = "carried"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_settings(self.name, self, "grounded")
        if self.batch_size != 1:  # boxes are those of all images of a call
            raise InputError(f"{self.name} draws one square at a time: say batch_size=1, not {self.batch_size}")
        if not self.phrases or not all(phrase.strip() for phrase in self.phrases):
            raise InputError(f"{self.name}: phrases names every class in order, such as [ship], got {self.phrases}")

    def _load(self, training: Sequence[Sample], folder: Path) -> Any:  # noqa: ARG002, nothing is learnt
        return self._checkpoint.load(
            self._checkpoint.check_kind("StableDiffusionGLIGENPipeline"), self._device, self._compute_dtype
        )

    def vary(self, requests: Sequence[Request]) -> Iterator[Variation | Refused]:
        for request in requests:
            if (count := len(request.source.object_boxes)) > MOST_OBJECTS:
                yield Refused(request, f"{count} objects; GLIGEN places {MOST_OBJECTS} at most")
            else:
                yield from super().vary([request])

    def _vary_one(self, request: Request, pixels: Pixels, *_: Any) -> Pixels:
        source = request.source
        if (most := max(source.object_labels, default=-1)) >= len(self.phrases):
            raise InputError(
                f"{self.name}: class {most + 1} of {source.name} has no phrase: name every class in phrases"
            )
        self._placed = source.object_boxes, [self.phrases[label] for label in source.object_labels]
        # Column and row of every pixel: they tell a square where in the image it lies.
        places = np.indices(pixels.shape[:2], dtype=np.float32)[::-1]
        return super()._vary_one(request, pixels, places)

    def _inputs(self, squares: Squares) -> dict[str, Any]:
        boxes, phrases = self._placed
        corner = np.tile(squares[0, 3:, 0, 0].numpy(), 2)
        within = np.clip((boxes - corner) / self._side, 0, 1)
        seen = [number for number, (x1, y1, x2, y2) in enumerate(within) if x1 < x2 and y1 < y2]
        return {
            "prompt": [self.prompt],
            # The pipeline wants one box at least, of which it takes no notice without grounded steps.
            "gligen_boxes": within[seen].tolist() or [[0.0, 0.0, 1.0, 1.0]],
            "gligen_phrases": [phrases[number] for number in seen] or [""],
            "gligen_scheduled_sampling_beta": self.grounded if seen else 0,
        }
