"""An image instead of a prompt, by an adapter for models for images from text (IP-Adapter, Ye et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from boxtwin.datasets.sample import Sample
from boxtwin.synthesis.diffusers_pipelines.image_variations import as_clip_sees
from boxtwin.synthesis.diffusers_pipelines.loading import PipelineGenerator, Squares, check_strength
from boxtwin.synthesis.generator import check_settings


@dataclass(kw_only=True, eq=False)
class IPAdapter(PipelineGenerator):
    """Stable Diffusion 1.5 or XL that sees the source through an adapter; with a strength it starts from the source."""

    adapter: str  # folder, or id on the hub, with the adapter and its image encoder
    adapter_revision: str | None  # of an id
    weights: str  # the adapter's file in there
    image_encoder: str  # the encoder's folder in there
    scale: float  # weight of the source seen through the adapter: 0 is without
    strength: float | None  # as of `Img2Img`: objects stay in place. None starts from noise, and objects move

    name = "ip_adapter"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_settings(self.name, self, scale=0)
        if self.strength is not None:
            check_strength(self.name, self.strength, self.steps)
        # With most generators it depends on the class alone.
        self.boxes = "none" if self.strength is None else "carried"  # type: ignore[misc]
        self._adapter = self._other("adapter", self.weights, self.image_encoder)

    def _load(self, training: Sequence[Sample], folder: Path) -> Any:  # noqa: ARG002, nothing is learnt
        self._checkpoint.check_kind("StableDiffusionPipeline", "StableDiffusionXLPipeline")
        task = "Text2Image" if self.strength is None else "Image2Image"
        pipeline = self._checkpoint.load(f"AutoPipelineFor{task}", self._device, self._compute_dtype)
        encoder = self.image_encoder if "/" in self.image_encoder else f"./{self.image_encoder}"
        with self._adapter.errors():
            pipeline.load_ip_adapter(
                self._adapter.place,
                subfolder="",
                weight_name=self.weights,
                image_encoder_folder=encoder,
                revision=self.adapter_revision,
            )
        pipeline.set_ip_adapter_scale(self.scale)
        return pipeline

    def _inputs(self, squares: Squares) -> dict[str, Any]:
        from diffusers.models.embeddings import ImageProjection

        pipeline = self._pipeline
        seen = as_clip_sees(squares, pipeline.feature_extractor, True)
        # The small adapters take the embedding, the others (plus) what the encoder's last layer but one says.
        (layer,) = pipeline.unet.encoder_hid_proj.image_projection_layers
        seen, unseen = pipeline.encode_image(seen, pipeline.device, 1, not isinstance(layer, ImageProjection))
        embedded = torch.cat([unseen, seen] if self.guidance_scale > 1 else [seen])[:, None]
        start = {} if self.strength is None else {"image": squares, "strength": self.strength}
        return {"prompt": [""] * len(squares), "ip_adapter_image_embeds": [embedded], **start}
