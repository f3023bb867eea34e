"""Settings of training images: the groups `dataset.augmentation` and `variations` of the configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

REQUIRED: Any = "???"  # what OmegaConf takes for a value that must be given


@dataclass
class AugmentationOptions:
    """What is done at random to a training image; see `boxtwin.mixing.augment.Augmentation`.

    Attributes:
        mosaic: share of training images that are put together from four (Bochkovskiy et al. 2020, YOLOv4, section 3.3).
        zoom: an image is scaled by a factor between ``1 / zoom`` and ``zoom``, log-uniform.
        unzoomed: share of images that are not. Resampling smooths the grain of a sensor (speckle, say), and a detector
            that has never seen it sharp stumbles over images in their own size.
        translate: an image that fits its place is shifted by up to this share of the square.
        focus: where an image does not fit its place, a part of it is shown: with this probability one that holds some
            object, otherwise any.
        flip_horizontal, flip_vertical: mirror with probability one half.
        quarter_turns: turn by 0, 90, 180 or 270 degrees: for images without an up.
        gain: brightness is multiplied by ``exp(u)``, u uniform in [-gain, gain].
        speckle: standard deviation of multiplicative noise, as coherent sensors show it; 0 for none.
        hue: colours are turned by up to this share of the colour circle; leaves grey images alone, as does:
        saturation: multiplied by ``exp(u)``, u uniform in [-saturation, saturation].

    Raises:
        ValueError: a value is out of its range.
    """

    mosaic: float = 0.0
    zoom: float = 1.0
    unzoomed: float = 0.0
    translate: float = 0.0
    focus: float = 0.0
    flip_horizontal: bool = False
    flip_vertical: bool = False
    quarter_turns: bool = False
    gain: float = 0.0
    speckle: float = 0.0
    hue: float = 0.0
    saturation: float = 0.0

    def __post_init__(self) -> None:
        for name in ("mosaic", "unzoomed", "focus"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"dataset.augmentation: {name} is a probability, got {getattr(self, name)}")
        if self.zoom < 1:
            raise ValueError(f"dataset.augmentation: zoom is the largest factor and at least 1, got {self.zoom}")
        for name in ("translate", "gain", "speckle", "hue", "saturation"):
            if getattr(self, name) < 0:
                raise ValueError(f"dataset.augmentation: {name} must not be negative, got {getattr(self, name)}")


@dataclass
class VariationsOptions:
    """How many variations of each real training and validation image are mixed in."""

    per_image: int = REQUIRED
    synthetic_fraction: float | None = None
    seed: int = 0
