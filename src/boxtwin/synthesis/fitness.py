"""Whether the pixels of a variation can be learnt from, whatever its labels say."""

from __future__ import annotations

import cv2
import numpy as np

from boxtwin.datasets.image_io import Pixels

# A variation whose grey levels have less than this share of its source's standard deviation shows nothing: a safety
# filter's black image, a failed decoding. JPEG noise and a hot pixel in a black image stay below it.
LEAST_CONTRAST = 0.05
# Overlap of the ranges of grey levels, as a share of both together, below which 16 bit levels do not belong together.
# Half as bright leaves a third; 12 bit in 16 bit, one scale for the other, leaves a sixteenth at most.
LEAST_OVERLAP = 0.08
SLACK = 0.05  # of the source's range, by which images of one value may be shifted


def unfit(source: Pixels, variation: Pixels) -> str | None:
    """Why a variation cannot be used: it is blank and its source is not, or its 16 bit levels are on another scale."""
    if _spread(variation) < LEAST_CONTRAST * _spread(source):
        return f"blank: all pixels are about {variation.mean():.0f}, those of the source differ"
    if source.dtype == np.uint16:
        (low, high), (new_low, new_high) = (np.percentile(pixels, (0.5, 99.5)) for pixels in (source, variation))
        dark, bright = dark_and_bright(source)
        # Of dark images with few objects, 99 % of the pixels may have one value.
        common = min(high, new_high) - max(low, new_low) + SLACK * (bright - dark)
        if common < LEAST_OVERLAP * (max(high, new_high) - min(low, new_low)):
            return (
                f"levels: most pixels lie between {new_low:.0f} and {new_high:.0f}, those of the source between "
                f"{low:.0f} and {high:.0f}"
            )
    return None


def dark_and_bright(pixels: Pixels) -> tuple[float, float]:
    """Darkest and brightest value; isolated pixels, such as hot ones, count nowhere."""
    smooth = cv2.medianBlur(np.ascontiguousarray(pixels), 3)
    return float(smooth.min()), float(smooth.max())


def _spread(pixels: Pixels) -> float:
    return float(np.clip(pixels, *dark_and_bright(pixels)).std())
