"""From pixels as they are in files to what a network takes; without torch, as every form of the network needs it."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Float32, UInt8, UInt16

from boxtwin.datasets.image_io import Pixels


def network_input(pixels: Sequence[Pixels], *, channels: int) -> Float32[np.ndarray, "batch {channels} _h _w"]:
    """Images of one size, grey or colour, as a batch in [0, 1] with as many channels as the network takes.

    Args:
        pixels: over the whole range of their type, 8 or 16 bit, as `Levels.scaled` gives them.
        channels: 1 or 3.
    """
    stacked = np.stack([_in_channels(image, channels) for image in pixels])
    scaled = np.multiply(stacked, np.float32(1 / full_scale(stacked)), dtype=np.float32)
    # Stacked with channels last, which is how the convolutions take them.
    return scaled.transpose(0, 3, 1, 2)


def full_scale(pixels: np.ndarray) -> int:
    """The largest value that pixels of this type can have."""
    return int(np.iinfo(pixels.dtype).max)


def _in_channels(
    pixels: Pixels, channels: int
) -> UInt8[np.ndarray, "_h _w {channels}"] | UInt16[np.ndarray, "_h _w {channels}"]:
    if channels == 3:
        return pixels if pixels.ndim == 3 else np.broadcast_to(pixels[:, :, None], (*pixels.shape, 3))
    return (pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY))[:, :, None]
