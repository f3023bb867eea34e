"""The batch that datamodules make and detectors take, and the geometry that leads back to the image file."""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor


class Batch(NamedTuple):
    """Letterboxed images with their objects.

    ``images`` are in [0, 1], three channels (grey is repeated). ``boxes`` are xyxy in pixels of the letterboxed image,
    those of all images in one list; ``box_image`` says which image of the batch each belongs to. ``letterbox`` holds
    scale, pad x and pad y of each image: ``x_letterboxed = x_file * scale + pad_x``.
    """

    images: Float[Tensor, "batch 3 size size"]
    boxes: Float[Tensor, "objects 4"]
    labels: Int[Tensor, " objects"]
    box_image: Int[Tensor, " objects"]
    image_ids: Int[Tensor, " batch"]
    letterbox: Float[Tensor, "batch 3"]
    file_size: Int[Tensor, "batch 2"]  # width, height of the image file
