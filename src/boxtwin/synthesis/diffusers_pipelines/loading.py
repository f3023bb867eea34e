"""What all generators have in common that draw with a pipeline of diffusers."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from boxtwin.datasets.image_io import Pixels
from boxtwin.datasets.levels import Levels, measure_levels
from boxtwin.datasets.sample import Sample
from boxtwin.errors import InputError
from boxtwin.hardware import choose_device, choose_dtype
from boxtwin.synthesis.ddpm.training_crops import is_grey, planes_of
from boxtwin.synthesis.diffusers_pipelines.checkpoints import Checkpoint
from boxtwin.synthesis.generator import Json, Knowledge, Model, Request, Variation
from boxtwin.synthesis.tiling import Tile, draw_in_tiles

Squares = Float[Tensor, "n channels side side"]  # shares of full scale


class PipelineGenerator(ABC):
    """What all generators have in common that draw with a pipeline of diffusers.

    Grey images go in as three equal channels and come back as their mean; 16 bits go in as shares of full scale. Large
    images go through in overlapping squares of the model's size (`boxtwin.synthesis.tiling`), without resampling.
    Safety checkers and watermarks are off (`boxtwin.synthesis.diffusers_pipelines.checkpoints`).

    All randomness of a square comes from a CPU generator that is seeded by its request and its number, so the bytes of
    an image do not depend on what else is made. They may depend, in the last bit, on how many squares of the image are
    drawn at once.

    Args:
        checkpoint: folder, or id on the Hugging Face hub.
        revision: of an id: branch, tag or commit; null for folders.
        steps: denoising steps from pure noise; with a strength, that share of them is taken.
        guidance_scale: weight of classifier-free guidance (Ho & Salimans 2022); 1 is without, and twice as fast.
        tile: side in pixels of the squares; null takes the size that the model was trained at. It is rounded up to
            what the model can do (a multiple of 8 in most).
        overlap: pixels that squares share, at most half of `tile`.
        batch_size: squares of one image that are drawn at once.
        device: "auto" takes a CUDA device if there is one.
        dtype: "auto" takes bfloat16 where the hardware computes in it, else float16 on GPUs and float32 on CPUs.
        local_files_only: never go to the network.
    """

    name: str
    boxes: Knowledge
    remote = False

    def __init__(
        self,
        *,
        checkpoint: str,
        revision: str | None,
        steps: int,
        guidance_scale: float,
        tile: int | None,
        overlap: int,
        batch_size: int,
        device: str,
        dtype: str,
        local_files_only: bool,
    ) -> None:
        for setting, least, count in (("steps", 1, steps), ("batch_size", 1, batch_size), ("overlap", 0, overlap)):
            if count < least:
                raise InputError(f"{self.name}: {setting} is at least {least}, got {count}")
        if guidance_scale < 0:
            raise InputError(f"{self.name}: guidance_scale is not negative, got {guidance_scale}")
        if tile is not None and tile < max(2 * overlap, 8):
            raise InputError(f"{self.name}: tile is at least 8 and at least twice overlap ({overlap}), got {tile}")
        self.steps, self.guidance_scale, self.tile, self.overlap = steps, guidance_scale, tile, overlap
        self.batch_size, self.dtype = batch_size, dtype
        self.learns = False
        self._checkpoint = Checkpoint(checkpoint, revision, local_files_only, self.name)
        self._device = choose_device(device, self.name)
        self._compute_dtype = choose_dtype(dtype, self._device, self.name)
        self._pipeline: Any = None
        self._side = 0

    def version(self, training: Sequence[Sample]) -> int:
        """2 of images of 16 bit, whose black and white are measured; before, their full scale was shown."""
        return 2 if any(sample.bits > 8 for sample in training) else 1

    def parameters(self) -> dict[str, Json]:
        """All settings but the device and where files come from."""
        return {
            **self._checkpoint.parameters(),
            **{setting: getattr(self, setting) for setting in ("steps", "guidance_scale", "tile", "overlap")},
            **{setting: getattr(self, setting) for setting in ("batch_size", "dtype")},
        }

    def model(self) -> Model | None:
        """The checkpoint: id and commit, or folder and hash of its content."""
        return self._checkpoint.model() if self._pipeline is not None else None

    def price_usd(self, source: Sample) -> float:  # noqa: ARG002
        """Nothing."""
        return 0.0

    def match(self, samples: Sequence[Sample]) -> None:  # noqa: B027, most have nothing to match
        """Nothing to match."""

    def fit(self, training: Sequence[Sample], folder: Path) -> None:
        """Load the checkpoint; from the hub, it is downloaded the first time.

        Raises:
            InputError: it cannot be had, or is of another kind than this generator needs.
        """
        if self._pipeline is None:
            # Layers are made with random weights before they are read: that must not move the global generator.
            with torch.random.fork_rng(devices=[]):
                pipeline = self._load(training, folder)
            self._side = self._choose_side(pipeline)
            self._pipeline = pipeline

    def vary(self, requests: Sequence[Request]) -> Iterator[Variation]:
        """Make variations one by one.

        Raises:
            RuntimeError: `fit` has not been called.
        """
        if self._pipeline is None:
            raise RuntimeError(f"{type(self).__name__}.vary needs a pipeline: call fit first")
        for request in requests:
            source, pixels = request.source, request.source.read()
            made = self._vary_one(request, pixels)
            boxes = source.object_boxes if self.boxes != "none" else np.zeros((0, 4), dtype=source.boxes.dtype)
            labels = source.object_labels if self.boxes != "none" else np.zeros(0, dtype=source.labels.dtype)
            yield Variation(request=request, pixels=made, boxes=boxes, labels=labels)

    @abstractmethod
    def _load(self, training: Sequence[Sample], folder: Path) -> Any:
        """The pipeline."""

    @abstractmethod
    def _draw(self, squares: Squares, generators: list[torch.Generator]) -> Float[np.ndarray, "n side side 3"]:
        """What the pipeline makes of some squares, each with its own randomness."""

    def _vary_one(self, request: Request, pixels: Pixels) -> Pixels:
        levels = levels_of(request.source, pixels)
        values = planes_of(levels.scaled(pixels), 3).transpose(1, 2, 0)
        return levels.restored(as_pixels(self._drawn(values, request.seed), pixels))

    def _drawn(self, values: Float[np.ndarray, "h w c"], seed: int) -> Float[np.ndarray, "h w 3"]:
        def draw(tiles: Sequence[Tile]) -> list[np.ndarray]:
            squares = torch.from_numpy(np.stack([tile.values.transpose(2, 0, 1) for tile in tiles]))
            generators = [torch.Generator().manual_seed(tile_seed(seed, tile.number)) for tile in tiles]
            made = np.asarray(self._draw(squares, generators))
            if not np.isfinite(made).all():  # float16 ends at 65504, and some autoencoders go beyond
                raise InputError(
                    f"{self.name}: {self._checkpoint.name} made values that are no numbers, computing in "
                    f"{str(self._compute_dtype).removeprefix('torch.')}; try dtype=bfloat16 or dtype=float32"
                )
            return list(made)

        with torch.inference_mode():
            return draw_in_tiles(values, draw, side=self._side, overlap=self.overlap, batch_size=self.batch_size)

    def _choose_side(self, pipeline: Any) -> int:
        """Of the squares: the user's or the model's own, as a multiple of what the model can do."""
        multiple = self._multiple(pipeline)
        side = self.tile or self._own_side(pipeline)
        side = -(-side // multiple) * multiple
        if 2 * self.overlap > side:
            raise InputError(f"{self.name}: overlap={self.overlap} is more than half of the model's {side} pixels")
        return side

    def _own_side(self, pipeline: Any) -> int:
        """The size of image that the model was trained at."""
        unet = getattr(pipeline, "unet", None)
        size = unet.config.sample_size if unet is not None else getattr(pipeline, "default_sample_size", None)
        if size is None:
            raise InputError(f"{self.name}: {self._checkpoint.name} does not tell its size; say it: tile=PIXELS")
        return int(max(size) if isinstance(size, list | tuple) else size) * self._scale(pipeline)

    def _scale(self, pipeline: Any) -> int:
        """By how much latents are smaller than images."""
        return int(pipeline.vae_scale_factor)

    def _multiple(self, pipeline: Any) -> int:
        """What sides of images are multiples of."""
        processor = getattr(pipeline, "image_processor", None)
        return int(processor.config.vae_scale_factor) if processor is not None else self._scale(pipeline)


def accepts(pipeline: Any, setting: str) -> bool:
    """Whether a pipeline's call has such a setting."""
    return setting in inspect.signature(type(pipeline).__call__).parameters


def tile_seed(seed: int, number: int) -> int:
    """The seed of a square, from its request's and its number."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0])


def levels_of(source: Sample, pixels: Pixels) -> Levels:
    """Black and white of one image: pretrained models know pictures that use their whole range."""
    return measure_levels([source], lambda _: pixels).levels


def as_pixels(values: Float[np.ndarray, "h w 3"], like: Pixels) -> Pixels:
    """Shares of full scale as pixels of the kind of ``like``."""
    top = np.iinfo(like.dtype).max
    if is_grey(like):
        values = np.broadcast_to(values.mean(axis=2, keepdims=True), values.shape)
    stored = np.rint(np.clip(values, 0, 1) * top).astype(like.dtype)
    return np.ascontiguousarray(stored[:, :, 0] if like.ndim == 2 else stored)
