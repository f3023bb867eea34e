"""Black and full-scale value of images: which pixel values mean 0 and 1.

8 bit images use 0 and 255. Sensors that write 16 bit use 10, 12 or 14 of them, often with an offset (thermal cameras),
and single hot pixels are no part of the scene, so both are measured on the training images.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
from jaxtyping import UInt8, UInt16
from scipy.ndimage import rank_filter

from boxtwin.datasets.image_io import Pixels
from boxtwin.datasets.problems import some
from boxtwin.datasets.sample import Sample
from boxtwin.errors import InputError

CUT = 0.1  # percent of the pixels of all images that may lie below black, and above full scale
# Room beyond the values inside boxes, as a share of the range from the median of all pixels to them: for the noise of
# single pixels, and for objects of other images.
HEADROOM = 0.25
NEIGHBOURS = 4  # of 3 x 3 pixels that must reach a value: 2 x 2 are an object; a hot pixel or defective column is none
NARROW = 0.05  # where images use less than this share of the range from black to full scale, objects are hard to tell
FAINT = 0.125  # the same for the objects of most images, where a few images or a border set the range
MEASURED_8_BIT = 50  # images of 8 bit that are measured, for remarks alone


@dataclass(frozen=True)
class Levels:
    """The pixel values that mean 0 and 1; ``full_scale`` is above 255 for images of 16 bit, and for no others."""

    black: int = 0
    full_scale: int = 255

    def __post_init__(self) -> None:
        if not 0 <= self.black < self.full_scale <= 65535:
            raise ValueError(f"0 <= black < full scale <= 65535 is needed, got {self.black} and {self.full_scale}")

    def scaled(self, pixels: Pixels) -> Pixels:
        """Pixels over the whole range of their type: black is 0, full scale the largest value, the rest is clipped."""
        return pixels if pixels.dtype == np.uint8 else self._table[pixels]

    def in_8_bit(self, pixels: Pixels) -> Pixels:
        """Pixels between black and full scale, in 8 bit."""
        return pixels if pixels.dtype == np.uint8 else (self.scaled(pixels) >> 8).astype(np.uint8)

    def restored(self, scaled: Pixels) -> Pixels:
        """The inverse of `scaled`, but for what was clipped."""
        if scaled.dtype == np.uint8:
            return scaled
        values = self.black + scaled * np.float32((self.full_scale - self.black) / 65535)
        return np.asarray(np.rint(values), dtype=np.uint16)

    @cached_property
    def _table(self) -> UInt16[np.ndarray, "65536"]:
        shares = (np.arange(65536) - self.black) / (self.full_scale - self.black)
        return np.rint(np.clip(shares, 0, 1) * 65535).astype(np.uint16)


def levels_of(source: Sample, pixels: Pixels) -> Levels:
    """Black and full-scale value of one image, for models that were trained on images of the whole range."""
    return measure_levels([source], lambda _: pixels).levels


def black_and_white(pixels: Pixels) -> tuple[int, int]:
    """The values of an image that become 0 and 255 where it is shown by itself."""
    if pixels.dtype == np.uint8:
        return 0, 255
    # Sensors fill 12 or 14 of 16 bits, with few very bright pixels: stretch between the outer thousandths.
    black, white = np.percentile(pixels, (CUT, 100 - CUT))
    return int(black), max(int(np.ceil(white)), int(black) + 1)


def to_8_bit(pixels: Pixels, ends: tuple[int, int] | None = None) -> Pixels:
    """Pixels between two values, by default `black_and_white`, as a screen shows them."""
    if pixels.dtype == np.uint8:
        return pixels
    black, white = ends or black_and_white(pixels)
    shares = (pixels.astype(np.float32) - black) / (white - black)
    return np.rint(255 * shares.clip(0, 1)).astype(np.uint8)


def check_depth(samples: Sequence[Sample]) -> None:
    """Raise `InputError` with the names of some images of each kind unless all have 8 bit, or all 16."""
    names: dict[int, list[str]] = defaultdict(list)
    for sample in samples:
        names[sample.bits].append(sample.name)
    if len(names) > 1:
        kinds = " and ".join(f"{len(them)} of them have {bits} bit ({some(them)})" for bits, them in names.items())
        raise InputError(f"images must be 8 bit or 16 bit throughout, but {kinds}; convert one kind to the other")


@dataclass(frozen=True)
class MeasuredLevels:
    """Black and full-scale value of some images, and remarks for the user."""

    levels: Levels
    remarks: tuple[str, ...] = ()


def measure_levels(samples: Sequence[Sample], read: Callable[[Sample], Pixels]) -> MeasuredLevels:
    """Measure black and full-scale value of (training) images.

    Of 16 bit, they are the 0.1th and 99.9th percentile of all pixels after a 3 x 3 median, moved apart where pixels
    inside boxes reach further, with a quarter to spare; isolated pixels do not count. All ``samples`` are of one depth.
    """
    is_deep = read(samples[0]).dtype == np.uint16
    counts = np.zeros(65536, dtype=np.int64)
    darkest, inside = 65535, []
    tops: list[tuple[int, str]] = []
    for sample in samples if is_deep else samples[:MEASURED_8_BIT]:
        pixels = read(sample)
        darkest = min(darkest, int(pixels.min()))
        tops.append((int(pixels.max()), sample.name))
        counts += np.bincount(cv2.medianBlur(np.ascontiguousarray(pixels), 3).reshape(-1), minlength=65536)
        inside += [_range_in(pixels, box) for box in sample.object_boxes] if is_deep else []
    shares = np.cumsum(counts) / counts.sum()
    low, middle, high = (int(np.searchsorted(shares, share)) for share in (CUT / 100, 0.5, 1 - CUT / 100))
    levels, used, typical = Levels(), high - low, float(high - low)
    if is_deep:
        black, full_scale = low, high
        if inside:
            # From the ground that objects lie on to the objects.
            least, most = min(middle, *(dark for dark, _ in inside)), max(middle, *(bright for _, bright in inside))
            used = most - least
            typical = float(np.median([max(middle - dark, bright - middle) for dark, bright in inside]))
            black, full_scale = min(low, round(least - HEADROOM * used)), max(high, round(most + HEADROOM * used))
        # 255 at most would be taken for 8 bit.
        full_scale = max(min(full_scale, max(tops)[0]), 256)
        levels = Levels(min(max(black, darkest), full_scale - 1), full_scale)
    reach = levels.full_scale - levels.black
    ends = f"the range from black {levels.black} to full scale {levels.full_scale}"
    remarks = []
    if far := [entry for entry in tops if entry[0] > levels.full_scale + reach]:
        top, name = max(far)
        remarks.append(
            f"{len(far)} of {len(tops)} training images have single pixels far above full scale {levels.full_scale}, "
            f"such as {name} ({top}): hot pixels; they are clipped"
        )
    if used < NARROW * reach:
        what = f"what is to be told apart uses {100 * used / reach:.1f} % of {ends}, so that objects are faint"
        remarks.append(f"{what}; look for bright frames, scale bars or text in the images")
    elif is_deep and typical < FAINT * reach:
        what = f"half of the objects stand out by less than {100 * typical / reach:.0f} % of {ends}"
        remarks.append(f"{what}: look for images far brighter than the others, and for borders")
    return MeasuredLevels(levels, tuple(remarks))


def _range_in(pixels: Pixels, box: np.ndarray) -> tuple[int, int]:
    """Least and greatest value inside a box, isolated pixels left out."""
    x1, y1, x2, y2 = (int(value) for value in (*np.floor(box[:2]), *np.ceil(box[2:])))
    low, high = 65535, 0
    for channel in np.atleast_3d(pixels[max(y1, 0) : y2, max(x1, 0) : x2]).transpose(2, 0, 1):
        middle = int(np.median(channel))  # of boxes too narrow to hold so many neighbours
        dark = rank_filter(channel, NEIGHBOURS - 1, size=3, mode="constant", cval=65535)
        bright = rank_filter(channel, -NEIGHBOURS, size=3, mode="constant", cval=0)
        low, high = min(low, middle, int(dark.min())), max(high, middle, int(bright.max()))
    return low, high


def bits_of(pixels: UInt16[np.ndarray, "..."], source: UInt8[np.ndarray, "..."]) -> int:
    """How many of 16 bits an image uses whose 8 bit source is as bright and as rich in contrast."""
    shown, wanted = np.array([pixels.mean(), pixels.std()]), np.array([source.mean(), source.std()]) / 255
    enough = [bits for bits in range(8, 17) if pixels.max() < 2**bits]
    return min(enough, key=lambda bits: (np.abs(shown / (2.0**bits - 1) - wanted).sum(), -bits))


def widened(pixels: UInt8[np.ndarray, "..."], source: Pixels) -> Pixels:
    """An 8 bit variation in the 16 bit of its source, as bright as that.

    How the source was converted to 8 bit is not known. Of the usual ways (the range of 9, 10, ... 16 bit; the source's
    own range; that without the extreme 0.1 %) the one is undone that comes nearest to the source's mean and spread.
    """
    shown, wanted = np.array([pixels.mean(), pixels.std()]) / 255, np.array([source.mean(), source.std()])
    ends = np.percentile(source, [0, 100, CUT, 100 - CUT])
    ranges = [*((0.0, 2.0**bits - 1) for bits in range(9, 17)), (ends[0], ends[1]), (ends[2], ends[3])]

    def distance(ends: tuple[float, float]) -> float:
        return float(np.abs((ends[1] - ends[0]) * shown + (ends[0], 0) - wanted).sum())

    black, full_scale = min(ranges, key=distance)
    return np.rint(black + (full_scale - black) * (pixels.astype(np.float64) / 255)).astype(np.uint16)
