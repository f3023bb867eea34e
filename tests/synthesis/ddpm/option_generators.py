"""The generators around the own model, with small models: background, sketch, layout and joint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from written_samples import write_sample

from boxtwin.datasets.sample import Sample
from boxtwin.synthesis.ddpm.background import PixelBackground
from boxtwin.synthesis.ddpm.joint import PixelJoint
from boxtwin.synthesis.ddpm.layout import PixelLayout
from boxtwin.synthesis.ddpm.sketch import PixelSketch
from boxtwin.synthesis.generator import Generator, Request, Variation
from boxtwin.synthesis.silhouettes import Silhouette, draw

MODEL: dict[str, Any] = {
    "train_strength": 1.0,
    "mask": "silhouettes",
    "joint": 0.5,
    "tone": "log",
    "channels": (8, 16),
    "unshuffle": 2,
    "crop": 16,
    "object_crops": 0.5,
    "mirror": True,
    "train_steps": 3,
    "batch_size": 2,
    "learning_rate": 1e-3,
    "seed": 0,
    "device": "cpu",
    "dtype": "float32",
}

SDEDIT: dict[str, Any] = {
    "strength": 0.6,
    "object_strength": 0.4,
    "object_margin": 4,
    "steps": 2,
    "histogram": True,
}
LAYOUT: dict[str, Any] = {"turn": 90.0, "object_strength": 0.8, "margin": 4, "steps": 2}
JOINT: dict[str, Any] = {"steps": 2, "redraw_steps": 2, "margin": 3}
# Of images and objects that are as small as these, and a model that has hardly learnt: module, and its constants.
SMALL: dict[str, dict[str, Any]] = {
    "controls": {"FEATHER": 3, "MOST_PASTES": 2, "TOLERANCE": 2.0},
    "ddpm.whole_image": {"TEXTURE_WINDOW": 16},
    "ddpm.background": {"BLEND_MARGIN": 3},
    "ddpm.joint": {"OBJECT_STEPS": 2, "LEAST_LENGTH": 4, "CERTAINTY": 0.1, "CONTRAST": 0.0},
}


def hull(x: float, y: float, heading: float, length: float, breadth: float) -> Silhouette:
    return Silhouette(float(x), float(y), float(heading), float(length), float(breadth))


def background(**changes: Any) -> PixelBackground:
    return PixelBackground(**{**MODEL, **SDEDIT, "object_strength": 0.0, **changes})


def sketch(**changes: Any) -> PixelSketch:
    return PixelSketch(**{**MODEL, **SDEDIT, "sketch": "copy_paste", "turns": False, **changes})


def scenes(**changes: Any) -> PixelSketch:
    return sketch(**{"sketch": "sar_scenes", **changes})


def layout(**changes: Any) -> PixelLayout:
    return PixelLayout(**{**MODEL, **LAYOUT, **changes})


def joint(**changes: Any) -> PixelJoint:
    return PixelJoint(**{**MODEL, **JOINT, **changes})


ALL: list[Callable[..., Any]] = [background, sketch, scenes, layout, joint]


def make_sample(
    folder: Path,
    name: str,
    shape: tuple[int, ...] = (80, 96),
    dtype: Any = np.uint8,
    ships: Any = ((30, 30, 0.5), (70, 50, -0.9)),
    crowd: int = 0,
) -> Sample:
    """Speckle with turned bright rectangles, the last ``crowd`` of them marked as crowds."""
    top = int(np.iinfo(dtype).max)
    rng = np.random.default_rng(sum(name.encode()))
    values = rng.gamma(4, top / 80, size=shape)
    silhouettes = [hull(x, y, heading, 16, 5) for x, y, heading in ships]
    hulls = draw(silhouettes, shape[0], shape[1])
    values += (hulls if len(shape) == 2 else hulls[:, :, None]) * top / 2
    n, boxes = len(silhouettes), [silhouette.box() for silhouette in silhouettes]
    return write_sample(folder, name, np.clip(values, 0, top).astype(dtype), boxes, crowd=np.arange(n) >= n - crowd)


def fitted(tmp_path: Path, generator: Any, samples: list[Sample]) -> Any:
    generator.fit(samples, tmp_path / "models")
    return generator


def one(generator: Generator, sample: Sample, seed: int = 1) -> Variation:
    (made,) = generator.vary([Request(sample, 1, seed)])
    assert isinstance(made, Variation)
    return made
