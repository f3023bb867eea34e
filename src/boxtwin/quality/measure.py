"""Measurements behind a quality card: every image is read once and related to the real images and its siblings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32
from tqdm import tqdm

from boxtwin.datasets.levels import Levels, measure_levels
from boxtwin.datasets.options import Speckle
from boxtwin.datasets.sample import Sample
from boxtwin.quality.record import COPY
from boxtwin.quality.similarity import (
    LAYOUT,
    GrainIndex,
    Match,
    Spectrum,
    common_shape,
    grain,
    layout,
    layout_distances,
    nearest_layout,
    repeated,
)
from boxtwin.quality.texture import GreyLevels, as_float_grey, equivalent_looks, grey_levels, pooled, spectrum

# A variation keeps part of its source's grain; it repeats a test image only by what exceeds the source's share by this.
MARGIN = 0.05


@dataclass(frozen=True)
class Measured:
    """What an image looks like, and how near it is to others: layout distances, shares of repeated grain."""

    name: str
    looks: float  # nan: no calm sea, or no radar image
    spectrum: Float[np.ndarray, " rings"]
    nearest: str  # of the real images, itself left out
    distance: float
    repeats: float
    nearest_test: str
    test_distance: float
    repeats_test: float  # 0: no more than chance gives, or than its source has
    sibling_distance: float = math.nan  # to the nearest other variation of the source
    repeats_sibling: float = math.nan  # of the variation before it


@dataclass(frozen=True)
class Evidence:
    """All that a card follows from."""

    real: tuple[Sample, ...]  # training and validation images
    test: tuple[Sample, ...]
    variations: tuple[Sample, ...]
    sources: tuple[int, ...]  # index in `real` of each variation's source
    real_levels: tuple[GreyLevels, ...]
    levels: GreyLevels  # of all variations together: those of each would take a gigabyte for 2,000 in 16 bit
    real_measured: tuple[Measured, ...]
    measured: tuple[Measured, ...]
    speckle: Speckle | None

    @property
    def distinct_sources(self) -> list[int]:
        """Indices in `real` of the images that have variations."""
        return sorted(set(self.sources))


class _Image(NamedTuple):
    levels: GreyLevels
    looks: float
    spectrum: Float[np.ndarray, " rings"]
    layout: Float32[np.ndarray, " 4096"]
    grain: Spectrum


def gather(
    variations: Sequence[Sample],
    training: Sequence[Sample],
    validation: Sequence[Sample],
    test: Sequence[Sample],
    speckle: Speckle | None,
) -> Evidence:
    """Measure all images and relate them to each other. Shows a progress bar.

    No test images, or a variation of none of the real images, raise `ValueError`.
    """
    real = (*training, *validation)
    if not test:
        raise ValueError("a quality card needs test images, got none")
    numbers = {sample.name: number for number, sample in enumerate(real)}
    ordered = sorted(variations, key=lambda sample: _source_of(sample, numbers))  # siblings follow each other
    # Sensors of 16 bit may use a small part of the values, where the floor of `spectrum` would hide all detail.
    scale = measure_levels(real, Sample.read).levels if real[0].bits > 8 else Levels()
    shape = common_shape([(sample.height, sample.width) for sample in (*real, *test)])
    # Real images are read twice more: first to index them all, then to relate each to the others. Their grain is not
    # kept: that of 100 images would take a quarter of a gigabyte.
    progress = tqdm(total=2 * len(real) + len(test) + len(variations), desc="quality card", unit="image")
    indexed = []
    for samples in (real, test):
        layouts, grains = np.zeros((len(samples), LAYOUT**2), dtype=np.float32), GrainIndex(len(samples), shape)
        for number, sample in enumerate(samples):
            grey = as_float_grey(sample.read())
            layouts[number] = layout(grey)
            grains.add(number, grain(grey, shape))
            progress.update()
        indexed.append((layouts, grains))
    (layouts, grains), (test_layouts, test_grains) = indexed

    def measure(
        sample: Sample, image: _Image, nearest: tuple[int, float], match: Match | None, test_match: Match | None
    ) -> Measured:
        """The nearest image is the one whose grain is repeated; the nearest in layout where there is none."""
        progress.update()
        test_number, test_distance = nearest_layout(test_layouts, image.layout)
        return Measured(
            name=sample.name,
            looks=image.looks,
            spectrum=image.spectrum,
            nearest=real[nearest[0] if match is None or match.share < COPY else match.number].name,
            distance=nearest[1],
            repeats=0.0 if match is None else match.share,
            nearest_test=test[test_number if test_match is None else test_match.number].name,
            test_distance=test_distance,
            repeats_test=0.0 if test_match is None else test_match.share,
        )

    real_levels, real_measured = [], []
    for number, sample in enumerate(real):
        image = _read(sample, speckle, shape, scale)
        real_levels.append(image.levels)
        nearest = nearest_layout(layouts, image.layout, leave_out=number)
        match = grains.find(image.grain, leave_out=(number, image.grain))
        real_measured.append(measure(sample, image, nearest, match, test_grains.find(image.grain)))
    measured: list[Measured] = []
    levels = np.zeros_like(real_levels[0])
    for source, siblings in groupby(ordered, key=lambda sample: _source_of(sample, numbers)):
        source_grain = grain(as_float_grey(real[source].read()), shape)
        of_source = real_measured[source].repeats_test
        of_siblings: list[Measured] = []
        sibling_layouts = []
        before: Spectrum | None = None
        for sample in siblings:
            image = _read(sample, speckle, shape, scale)
            match = grains.find(image.grain, leave_out=(source, source_grain))
            share = repeated(image.grain, source_grain)
            if match is None or match.share < max(COPY, share):
                match = Match(source, share)
            test_match = test_grains.find(image.grain)
            if test_match and test_match.share <= of_source + MARGIN * (of_source > 0):
                test_match = None
            one = measure(sample, image, nearest_layout(layouts, image.layout), match, test_match)
            if before is not None:
                one = replace(one, repeats_sibling=repeated(image.grain, before))
            before = image.grain
            levels = pooled([levels, image.levels])
            sibling_layouts.append(image.layout)
            of_siblings.append(one)
        if len(sibling_layouts) > 1:
            distances = layout_distances(np.stack(sibling_layouts), np.stack(sibling_layouts))
            np.fill_diagonal(distances, np.inf)
            least = distances.min(axis=1).tolist()
            of_siblings = [replace(one, sibling_distance=d) for one, d in zip(of_siblings, least, strict=True)]
        measured += of_siblings
    progress.close()
    return Evidence(
        real=real,
        test=tuple(test),
        variations=tuple(ordered),
        sources=tuple(_source_of(sample, numbers) for sample in ordered),
        real_levels=tuple(real_levels),
        levels=levels,
        real_measured=tuple(real_measured),
        measured=tuple(measured),
        speckle=speckle,
    )


def _source_of(sample: Sample, numbers: Mapping[str, int]) -> int:
    if sample.lineage is None or sample.lineage.source not in numbers:
        raise ValueError(f"{sample.name} is no variation of a training or validation image")
    return numbers[sample.lineage.source]


def _read(sample: Sample, speckle: Speckle | None, shape: tuple[int, int], scale: Levels) -> _Image:
    pixels = sample.read()
    grey = as_float_grey(pixels)
    looks = math.nan if speckle is None else equivalent_looks(pixels, sample.boxes, speckle)
    power = spectrum(as_float_grey(scale.scaled(pixels)))
    return _Image(grey_levels(pixels), looks, power, layout(grey), grain(grey, shape))
