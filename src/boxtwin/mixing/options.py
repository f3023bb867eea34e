"""Settings of training images: the groups `dataset.augmentation` and `variations` of the configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

REQUIRED: Any = "???"  # what OmegaConf takes for a value that must be given


# Beyond these an image is pushed out of its square, or is black or white all over.
MOST = {"translate": 1, "gain": 3, "speckle": 3, "hue": 1, "saturation": 3}


@dataclass
class AugmentationOptions:
    """Random changes of a training image; see `boxtwin.mixing.augment.augment`. Shares lie between 0 and 1."""

    mosaic: float = 0.0  # share of images put together from four (Bochkovskiy et al. 2020, YOLOv4, section 3.3)
    zoom: float = 1.0  # images are scaled by a factor between 1 / zoom and zoom, log-uniform
    # Share of images that are not. Resampling smooths the grain of a sensor (speckle, say), and a detector that has
    # never seen it sharp does worse on images in their own size.
    unscaled_fraction: float = 0.0
    translate: float = 0.0  # an image that fits its place is shifted by up to this share of the square
    # Of images that do not fit, a part is shown: so many of these parts hold some object, the others lie anywhere.
    object_crop_fraction: float = 0.0
    flip_horizontal: bool = False  # mirror with probability one half
    flip_vertical: bool = False
    quarter_turns: bool = False  # turn by 0, 90, 180 or 270 degrees: for images without an up
    gain: float = 0.0  # brightness is multiplied by exp(u), u uniform in [-gain, gain]
    speckle: float = 0.0  # standard deviation of multiplicative noise, as coherent sensors show it
    hue: float = 0.0  # colours are turned by up to this share of the colour circle; not those of grey images
    saturation: float = 0.0  # multiplied by exp(u), u uniform in [-saturation, saturation]; not that of grey images

    def __post_init__(self) -> None:
        for name in ("mosaic", "unscaled_fraction", "object_crop_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"dataset.augmentation: {name} is a probability, got {getattr(self, name)}")
        if self.zoom < 1:
            raise ValueError(f"dataset.augmentation: zoom is the largest factor and at least 1, got {self.zoom}")
        for name, most in MOST.items():
            if not 0 <= getattr(self, name) <= most:
                raise ValueError(
                    f"dataset.augmentation: {name} must lie between 0 and {most}, got {getattr(self, name)}"
                )


@dataclass
class VariationsOptions:
    """How many variations of each real training and validation image are mixed in.

    Those of validation images are for a metric alone (``val_synthetic/…``); without ``validation`` none are made. With
    ``learn_unlabelled``, a generator that learns does so from the unlabelled images, too, as detectors have labelled
    them.
    """

    per_image: int = REQUIRED
    synthetic_fraction: float | None = None
    seed: int = 0
    validation: bool = True
    learn_unlabelled: bool = False


@dataclass(frozen=True, kw_only=True)
class InputOptions:
    """What of an image goes into the network; lengths in pixels of the scaled image."""

    image_size: int  # what the longer side of an image is scaled to
    crop: int  # side of the squares that training images are cut to; the same as `image_size` for whole images
    tile: int | None  # side of the squares that other images are cut into; None for whole images
    channels: int  # 1 for a network that takes grey images, 3 for one that takes colour
    pretraining_size: int = 0  # what the longer side of an image of the pre-training is scaled to


@dataclass(frozen=True, kw_only=True)
class BatchOptions:
    """The batches of a training."""

    steps: int  # optimiser steps in all; every run of a study takes the same
    steps_per_epoch: int  # steps between two validations, which Lightning calls an epoch
    batch_size: int  # images a step
    seed: int  # of order and augmentation
    synthetic_fraction: float | None = None  # share of each batch that is synthetic; None: as the numbers of images are
    pretraining_share: float = 0.0  # share of each batch that shows images of the pre-training
    pretraining_share_falls: bool = False  # linearly from that share to none
    threads: int = 1  # that make batches
    pin_memory: bool = False  # whether batches are made in memory that a GPU can fetch by itself
