"""FLUX.1 that sees an image in place of a text, through Redux: an image in, no prompt, variations out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from boxtwin.datasets.sample import Sample
from boxtwin.synthesis.diffusers_pipelines.image_variations import as_clip_sees
from boxtwin.synthesis.diffusers_pipelines.loading import PipelineGenerator, Squares


@dataclass(kw_only=True, eq=False)
class Redux(PipelineGenerator):
    """FLUX.1 given Redux's embedding of the source and a text of zeros, as `FluxPriorReduxPipeline` makes them."""

    prior: str  # Redux's own checkpoint: folder or id
    prior_revision: str | None  # of an id

    name = "redux"
    boxes = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._prior_checkpoint = self._other("prior")
        self._prior: Any = None

    def _load(self, training: Sequence[Sample], folder: Path) -> Any:  # noqa: ARG002, nothing is learnt
        # No text is encoded: its encoders, most of the memory beside the transformer, are not loaded.
        unused: dict[str, Any] = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
        kind, prior = self._checkpoint.check_kind("FluxPipeline"), self._prior_checkpoint
        prior_kind = prior.check_kind("FluxPriorReduxPipeline")
        self._prior = prior.load(prior_kind, self._device, self._compute_dtype, **unused)
        return self._checkpoint.load(kind, self._device, self._compute_dtype, **unused)

    def _inputs(self, squares: Squares) -> dict[str, Any]:
        prior, sizes = self._prior, self._pipeline.transformer.config
        seen = as_clip_sees(squares, prior.feature_extractor, True).to(prior.device, prior.image_encoder.dtype)
        image = prior.image_embedder(prior.image_encoder(seen).last_hidden_state).image_embeds
        text = image.new_zeros(len(squares), 512, sizes.joint_attention_dim)
        pooled = image.new_zeros(len(squares), sizes.pooled_projection_dim)
        return {"prompt_embeds": torch.cat([text, image], dim=1), "pooled_prompt_embeds": pooled}
