"""Whether the pixels of a variation can be learnt from, whatever its labels say."""

from __future__ import annotations

import numpy as np

from boxtwin.datasets.images import Pixels

# A variation whose grey levels have less than this share of its source's standard deviation shows nothing: a safety
# filter's black image, a failed decoding. JPEG noise and a hot pixel in a black image stay below it.
LEAST_CONTRAST = 0.05
# Overlap of the ranges of grey levels, as a share of both together, below which 16 bit levels do not belong together.
# Half as bright leaves a third; 12 bit in 16 bit, one scale for the other, leaves nothing.
LEAST_OVERLAP = 0.05


def unfit(source: Pixels, variation: Pixels) -> str | None:
    """Why a variation cannot be used: it is blank and its source is not, or its 16 bit levels are on another scale."""
    if variation.std() < LEAST_CONTRAST * source.std():
        return f"blank: all pixels are about {variation.mean():.0f}, those of the source differ"
    if source.dtype == np.uint16:
        (low, high), (new_low, new_high) = (np.percentile(pixels, (0.5, 99.5)) for pixels in (source, variation))
        common, both = min(high, new_high) - max(low, new_low), max(high, new_high) - min(low, new_low)
        if common < LEAST_OVERLAP * both:
            return (
                f"levels: most pixels lie between {new_low:.0f} and {new_high:.0f}, those of the source between "
                f"{low:.0f} and {high:.0f}"
            )
    return None
