"""The own diffusion model on whole images, small enough to be trained in a test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from boxtwin.datasets.sample import Sample
from boxtwin.synthesis.ddpm.whole_image import PixelDDPM
from boxtwin.synthesis.generator import Request

TINY: dict[str, Any] = {
    "train_strength": 0.6,
    "mask": "boxes",
    "joint": 0.0,
    "strength": 0.6,
    "object_strength": 0.5,
    "object_margin": 4,
    "steps": 3,
    "histogram": True,
    "tone": "log",
    "channels": (8, 16),
    "unshuffle": 2,
    "crop": 16,
    "object_crops": 0.5,
    "mirror": True,
    "train_steps": 6,
    "batch_size": 2,
    "learning_rate": 1e-3,
    "seed": 0,
    "device": "cpu",
    "dtype": "float32",
}


def fitted(tmp_path: Path, samples: list[Sample], **settings: Any) -> PixelDDPM:
    generator = PixelDDPM(**{**TINY, **settings})
    generator.fit(samples, tmp_path / "store")
    return generator


def model_folder(folder: Path) -> Path:
    """The one model below a folder of models."""
    (found,) = (folder / "store").glob("pixel_ddpm-*")
    return found


def pixels_of(generator: PixelDDPM, *requests: Request) -> list[np.ndarray]:
    return [variation.pixels for variation in generator.vary(requests)]
