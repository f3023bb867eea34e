"""Images on disk as samples: what the tests of all generators begin with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from boxtwin.datasets.image_io import write_png
from boxtwin.datasets.sample import Sample


def write_sample(
    folder: Path, name: str, pixels: np.ndarray, boxes: Any, *, labels: Any = None, crowd: Any = None
) -> Sample:
    """Write pixels to a file; a sample of it with ``boxes`` (xyxy), all of class 0 and none a crowd unless said."""
    write_png(folder / name, pixels)
    corners = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    n = len(corners)
    return Sample(
        name=name,
        path=folder / name,
        width=pixels.shape[1],
        height=pixels.shape[0],
        image_id=1,
        boxes=corners,
        labels=np.zeros(n, dtype=np.int64) if labels is None else np.asarray(labels, dtype=np.int64),
        areas=np.ones(n),
        crowd=np.zeros(n, dtype=bool) if crowd is None else np.asarray(crowd),
        sha256=name,
    )


def bright_boxes(
    folder: Path,
    name: str,
    shape: tuple[int, ...] = (32, 32),
    dtype: Any = np.uint8,
    boxes: Any = ((8, 9, 18, 15),),
    *,
    sea: float = 1 / 80,
) -> Sample:
    """Speckle of brightness 4 ``sea`` with bright boxes, each of a class of its own; the same for the same name."""
    top = int(np.iinfo(dtype).max)
    rng = np.random.default_rng(sum(name.encode()))
    pixels = rng.gamma(4, top * sea, size=shape)
    for x1, y1, x2, y2 in boxes:
        pixels[y1:y2, x1:x2] += top / 2
    return write_sample(folder, name, np.clip(pixels, 0, top).astype(dtype), boxes, labels=np.arange(len(boxes)))
