"""The batch that datamodules make and detectors take; apart from other types, since it alone needs torch."""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor


class Batch(NamedTuple):
    """Letterboxed images with their objects.

    ``images`` are in [0, 1], with as many channels as the network takes. ``boxes`` are xyxy in pixels of the
    letterboxed image, those of all images in one list; ``box_image`` says which image of the batch each belongs to.
    ``letterbox`` holds scale, pad x and pad y of each image: ``x_letterboxed = x_file * scale + pad_x``. Of a file in
    tiles, ``own`` is the part whose objects count in this tile; tiles overlap.
    """

    images: Float[Tensor, "batch _channels size size"]
    boxes: Float[Tensor, "objects 4"]
    labels: Int[Tensor, " objects"]
    box_image: Int[Tensor, " objects"]
    image_ids: tuple[int, ...]  # of any size: those of the annotation file
    letterbox: Float[Tensor, "batch 3"]
    file_size: Int[Tensor, "batch 2"]  # width, height of the image file
    own: Float[Tensor, "batch 4"]  # xyxy, pixels of the image file
