"""What a quality card follows from: every image looked at once, and set against the real images and its siblings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32
from tqdm import tqdm

from boxtwin.datasets.sample import Sample
from boxtwin.quality.similarity import (
    COPY,
    GrainIndex,
    LayoutIndex,
    Match,
    Spectrum,
    common_shape,
    grain,
    layout,
    layout_distances,
    repeated,
)
from boxtwin.quality.texture import (
    GreyLevels,
    Speckle,
    as_float_grey,
    equivalent_looks,
    grey_levels,
    pooled,
    spectrum,
)

# A variation keeps part of its source's grain; only what it has beyond that of a test image's is its own doing.
MARGIN = 0.05


@dataclass(frozen=True)
class Look:
    """What one image looks like; see `boxtwin.quality.texture`."""

    looks: float  # nan: no calm sea, or no radar image
    spectrum: Float[np.ndarray, " rings"]


@dataclass(frozen=True)
class Relation:
    """How near an image comes to others: numbers in their sequences, layout distances, shares of repeated grain."""

    nearest: int  # of the real images, itself left out
    distance: float
    repeats: float
    nearest_test: int
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
    sources: tuple[int, ...]  # number in `real` of each variation's source
    real_levels: tuple[GreyLevels, ...]
    levels: GreyLevels  # of all variations together: those of each would take a gigabyte for 2,000 in 16 bit
    real_looks: tuple[Look, ...]
    variation_looks: tuple[Look, ...]
    real_relations: tuple[Relation, ...]
    relations: tuple[Relation, ...]
    speckle: Speckle | None


class _Image(NamedTuple):
    """One image as it was read, once."""

    levels: GreyLevels
    look: Look
    layout: Float32[np.ndarray, " 4096"]
    grain: Spectrum


class _Seen:
    """The images of one kind: an index of their layouts, and one of their grain."""

    def __init__(self, count: int, shape: tuple[int, int]) -> None:
        self.layouts, self.grains = LayoutIndex(count), GrainIndex(count, shape)

    def add(self, number: int, own_layout: Float32[np.ndarray, " 4096"], own_grain: Spectrum) -> None:
        self.layouts.add(number, own_layout)
        self.grains.add(number, own_grain)


def gather(
    variations: Sequence[Sample],
    training: Sequence[Sample],
    validation: Sequence[Sample],
    test: Sequence[Sample],
    speckle: Speckle | None,
) -> Evidence:
    """Look at all images and relate them to each other. Shows a progress bar.

    Raises:
        ValueError: a variation's source is none of the training and validation images, or there are no test images.
    """
    real = (*training, *validation)
    if not test:
        raise ValueError("a quality card needs test images, got none")
    numbers = {sample.name: number for number, sample in enumerate(real)}
    ordered = sorted(variations, key=lambda sample: _source_of(sample, numbers))  # siblings follow each other
    shape = common_shape([(sample.height, sample.width) for sample in (*real, *test)])
    # Real images are looked at twice: first to index them all, then each against the others. Their grain is not kept:
    # that of 100 images would take a quarter of a gigabyte.
    progress = tqdm(total=2 * len(real) + len(test) + len(variations), desc="quality card", unit="image")
    of_real, of_test = _Seen(len(real), shape), _Seen(len(test), shape)
    for number, sample in enumerate(test):
        grey = as_float_grey(sample.read())
        of_test.add(number, layout(grey), grain(grey, shape))
        progress.update()
    real_levels, real_looks, real_relations = [], [], []
    for number, sample in enumerate(real):
        image = _read(sample, speckle, shape)
        of_real.add(number, image.layout, image.grain)
        real_levels.append(image.levels)
        real_looks.append(image.look)
        progress.update()
    for number, sample in enumerate(real):
        own = _grain_of(sample, shape)
        own_layout = of_real.layouts.layouts[number]
        match = of_real.grains.find(own, leave_out=(number, own))
        nearest, nearest_test = (
            of_real.layouts.nearest(own_layout, leave_out=number),
            of_test.layouts.nearest(own_layout),
        )
        real_relations.append(_relation(nearest, nearest_test, match, of_test.grains.find(own)))
        progress.update()

    looks, relations = [], []
    levels = np.zeros_like(real_levels[0])
    for source, siblings in groupby(ordered, key=lambda sample: _source_of(sample, numbers)):
        source_grain = _grain_of(real[source], shape)
        known = real_relations[source]
        layouts: list[Float32[np.ndarray, " 4096"]] = []
        found: list[Relation] = []
        before: Spectrum | None = None
        for sample in siblings:
            image = _read(sample, speckle, shape)
            nearest, nearest_test = of_real.layouts.nearest(image.layout), of_test.layouts.nearest(image.layout)
            match = of_real.grains.find(image.grain, leave_out=(source, source_grain))
            share = repeated(image.grain, source_grain)
            if match is None or match.share < max(COPY, share):
                match = Match(source, share)
            test_match = of_test.grains.find(image.grain)
            if test_match and test_match.share <= known.repeats_test + MARGIN * (known.repeats_test > 0):
                test_match = None
            relation = _relation(nearest, nearest_test, match, test_match)
            if before is not None:
                relation = replace(relation, repeats_sibling=repeated(image.grain, before))
            before = image.grain
            levels = pooled([levels, image.levels])
            looks.append(image.look)
            layouts.append(image.layout)
            found.append(relation)
            progress.update()
        relations += _with_sibling_distances(found, layouts)
    progress.close()
    return Evidence(
        real=real,
        test=tuple(test),
        variations=tuple(ordered),
        sources=tuple(_source_of(sample, numbers) for sample in ordered),
        real_levels=tuple(real_levels),
        levels=levels,
        real_looks=tuple(real_looks),
        variation_looks=tuple(looks),
        real_relations=tuple(real_relations),
        relations=tuple(relations),
        speckle=speckle,
    )


def _source_of(sample: Sample, numbers: Mapping[str, int]) -> int:
    if sample.lineage is None or sample.lineage.source not in numbers:
        raise ValueError(f"{sample.name} is no variation of a training or validation image")
    return numbers[sample.lineage.source]


def _read(sample: Sample, speckle: Speckle | None, shape: tuple[int, int]) -> _Image:
    pixels = sample.read()
    grey = as_float_grey(pixels)
    looks = math.nan if speckle is None else equivalent_looks(pixels, sample.boxes, speckle)
    return _Image(grey_levels(pixels), Look(looks, spectrum(grey)), layout(grey), grain(grey, shape))


def _grain_of(sample: Sample, shape: tuple[int, int]) -> Spectrum:
    return grain(as_float_grey(sample.read()), shape)


def _relation(
    nearest: tuple[int, float],
    nearest_test: tuple[int, float],
    match: Match | None,
    test_match: Match | None,
) -> Relation:
    """The nearest image is the one whose grain is repeated; the nearest in layout where there is none."""
    return Relation(
        nearest=nearest[0] if match is None or match.share < COPY else match.number,
        distance=nearest[1],
        repeats=0.0 if match is None else match.share,
        nearest_test=nearest_test[0] if test_match is None else test_match.number,
        test_distance=nearest_test[1],
        repeats_test=0.0 if test_match is None else test_match.share,
    )


def _with_sibling_distances(
    relations: Sequence[Relation], layouts: Sequence[Float32[np.ndarray, " 4096"]]
) -> list[Relation]:
    if len(relations) < 2:
        return list(relations)
    distances = layout_distances(np.stack(layouts), np.stack(layouts))
    np.fill_diagonal(distances, np.inf)
    return [
        replace(relation, sibling_distance=float(row.min())) for relation, row in zip(relations, distances, strict=True)
    ]
