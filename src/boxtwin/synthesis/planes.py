"""Pixels as planes of shares of full scale, as networks take them, and back."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from boxtwin.datasets.image_io import Pixels, as_grey


def planes_of(pixels: Pixels, channels: int) -> Float[np.ndarray, "{channels} h w"]:
    """Pixels as shares of full scale, channels first; grey is repeated if three channels are asked for."""
    values = pixels.astype(np.float32) / np.float32(np.iinfo(pixels.dtype).max)
    if channels == 1 and values.ndim == 3:
        values = values[:, :, 0]
    return np.repeat(values[None], channels, axis=0) if values.ndim == 2 else values.transpose(2, 0, 1)


def is_grey(pixels: Pixels) -> bool:
    """Whether an image has one channel, or three equal ones, as many grey JPEG files have."""
    return as_grey(pixels).ndim == 2


def as_pixels(values: Float[np.ndarray, "h w _channels"], like: Pixels) -> Pixels:
    """Shares of full scale as pixels of the depth and channels of ``like``; grey stays grey."""
    if is_grey(like):
        values = values.mean(axis=2, keepdims=True)
    stored = np.rint(np.clip(values, 0, 1) * np.iinfo(like.dtype).max).astype(like.dtype)
    return np.ascontiguousarray(stored[:, :, 0] if like.ndim == 2 else np.broadcast_to(stored, like.shape))


def padded_to(planes: Float[np.ndarray, "c h w"], side: int) -> Float[np.ndarray, "c H W"]:
    """Planes continued by their mirror image to the right and below up to ``side`` pixels, if they are smaller."""
    pad = ((0, 0), *((0, max(side - size, 0)) for size in planes.shape[1:]))
    return np.pad(planes, pad, mode="symmetric")
