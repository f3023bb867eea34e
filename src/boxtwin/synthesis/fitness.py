"""Whether the pixels of a variation can be learnt from, whatever its labels say."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from boxtwin.datasets.image_io import Pixels, read_image
from boxtwin.datasets.sample import Judgement, Sample
from boxtwin.synthesis.manifest import (
    MANIFEST,
    NAMED,
    append_line,
    labels_entry,
    lines_without_checksum,
    valid_lines,
)

log = logging.getLogger(__name__)

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
        dark, bright = _ends(source)
        # Of dark images with few objects, 99 % of the pixels may have one value.
        common = min(high, new_high) - max(low, new_low) + SLACK * (bright - dark)
        if common < LEAST_OVERLAP * (max(high, new_high) - min(low, new_low)):
            return (
                f"levels: most pixels lie between {new_low:.0f} and {new_high:.0f}, those of the source between "
                f"{low:.0f} and {high:.0f}"
            )
    return None


def look_again(folder: Path, sources: Sequence[Sample]) -> dict[tuple[str, int], dict[str, Any]]:
    """The lines of a store as `valid_lines` gives them, those of earlier versions looked at for `unfit` variations.

    Earlier versions kept those, and trained on them as on empty scenes. Each line is written again, with a checksum,
    once its image has been looked at, so that this happens once; to be called under the store's lock.
    """
    lines, older, again = valid_lines(folder, sources), lines_without_checksum(folder), []
    for source in sources if older else ():
        pixels = None
        for key in sorted(key for key in lines if key[0] == source.name and key in older):
            line = lines[key]
            if line["labels"]["refused"] is None:
                pixels = source.read() if pixels is None else pixels
                reason = unfit(pixels, read_image(folder / line["image"]))
                if reason is not None:
                    line = line | {"labels": labels_entry(Judgement((), refused=reason))}
            again.append(line)
    if again:
        refused = [line for line in again if line is not lines[line["source"], line["variation"]]]
        if refused:
            log.warning(
                "%s: %d of %d image(s) made by an earlier version cannot be learnt from and are refused: %s",
                *(folder, len(refused), len(again)),
                "; ".join(f"{line['image']} ({line['labels']['refused']})" for line in refused[:NAMED]),
            )
        append_line(folder / MANIFEST, *again)
        lines = valid_lines(folder, sources)
    return lines


def _ends(pixels: Pixels) -> tuple[float, float]:
    """Darkest and brightest value; isolated pixels, such as hot ones, count nowhere."""
    smooth = cv2.medianBlur(np.ascontiguousarray(pixels), 3)
    return float(smooth.min()), float(smooth.max())


def _spread(pixels: Pixels) -> float:
    """The standard deviation, without isolated pixels."""
    return float(np.clip(pixels, *_ends(pixels)).std())
