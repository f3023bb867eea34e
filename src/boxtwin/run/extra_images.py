"""Real images beside the data set that join a training: unlabelled ones of the same sensor, and ones without objects.

They are on no side of a split: nothing is varied, no anchor, pixel value or generator is fitted to them, and they do
not count as labelled images. `boxtwin.run.unlabelled` labels the former.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from boxtwin.config.identity import long_hash
from boxtwin.config.schema import BoxtwinConfig
from boxtwin.datasets.image_folder import read_folder
from boxtwin.datasets.levels import check_depth
from boxtwin.datasets.problems import some
from boxtwin.datasets.sample import Dataset, Sample
from boxtwin.datasets.splits import Split, scenes_of
from boxtwin.datasets.training_images import range_of_sides, relative_size
from boxtwin.errors import InputError
from boxtwin.labels.method import Variations
from boxtwin.labels.options import LabelOptions
from boxtwin.labels.pseudo import PseudoLabels
from boxtwin.run.checks import make_reading

log = logging.getLogger(__name__)

DETECTORS, AGREE = 3, 2  # a majority must detect an object, so that errors of one detector are not learnt


@dataclass(frozen=True)
class ExtraImages:
    """Images of a run beside its split, none of them a training image.

    ``values`` define the run: for each folder the number of images and a hash of them and, if they have to be labelled,
    of the way to do it, as in ``70-3f2a91bc0d12``. They are of the whole folder, so that all splits of a study share
    them; the detectors that label follow from the split and the settings.
    """

    unlabelled: tuple[Sample, ...] = ()
    empty: tuple[Sample, ...] = ()
    values: Mapping[str, str] = field(default_factory=dict)

    @property
    def number(self) -> int:
        """How many images there are in all."""
        return len(self.unlabelled) + len(self.empty)


def label_method(dataset: Dataset) -> PseudoLabels:
    """How unlabelled images get boxes: as variations by ``labels=pseudo`` (conf/labels/pseudo.yaml)."""
    options = LabelOptions(name="pseudo", detectors=DETECTORS, agree=AGREE)
    # These images have no crowds, whatever those of the data set have.
    return PseudoLabels(options, Variations(replace(dataset, samples=()), "unlabelled", "none"))


def read_extra_images(config: BoxtwinConfig, dataset: Dataset, split: Split) -> ExtraImages:
    """The images of ``dataset.unlabelled`` and ``dataset.empty``.

    Raises:
        InputError: a folder has no images, or unreadable ones, or those of another bit depth; or one of them equals,
            nearly equals, or shows the scene of a validation or test image.
    """
    images: dict[str, tuple[Sample, ...]] = {}
    values = {}
    for name, folder in (("unlabelled", config.dataset.unlabelled), ("empty", config.dataset.empty)):
        if folder is None:
            continue
        setting, group_by = f"dataset.{name}", config.split.group_by
        samples = read_folder(Path(folder), setting=setting, group_by=group_by, reading=make_reading(config))
        check_depth([*split.train, *samples])
        _check_held_out(samples, split, group_by, f"{setting}={folder}")
        samples = _at_scale_of(dataset, samples, setting)
        labels = {"detectors": DETECTORS, **label_method(dataset).identity()} if name == "unlabelled" else None
        digest = long_hash([[(sample.name, sample.sha256) for sample in samples], labels, *scales(samples)])
        values[f"{name}_images"] = f"{len(samples)}-{digest[:12]}"
        pixels = {sample.signature.sha256 for sample in split.train if sample.signature}
        images[name] = tuple(each for each in samples if each.signature is None or each.signature.sha256 not in pixels)
        if known := len(samples) - len(images[name]):
            log.info("%s: %d of %d images are training images, and are left out", setting, known, len(samples))
    return ExtraImages(**images, values=values)


def scales(samples: Sequence[Sample]) -> list[list[float]]:
    """For a key: the relative sizes of the images, nothing if all are as large as those of their data set.

    Earlier versions fitted each image into the network's input, whatever its size.
    """
    sizes = [sample.relative_size for sample in samples]
    return [sizes] if any(size != 1.0 for size in sizes) else []


def _at_scale_of(dataset: Dataset, samples: Sequence[Sample], setting: str) -> tuple[Sample, ...]:
    """The images with their size beside those of the data set; a warning says if some are larger or smaller."""
    sides = range_of_sides(dataset.samples, dataset.samples)
    sized = tuple(replace(one, relative_size=relative_size(one.width, one.height, sides)) for one in samples)
    if others := [one for one in sized if one.relative_size != 1.0]:
        longest = [max(one.width, one.height) for one in others]
        found, usual = _range(min(longest), max(longest)), _range(sides[0], sides[2])
        log.warning(
            f"{setting}: {len(others)} of {len(sized)} images have a longer side of {found} pixels, and those of the "
            f"data set {usual}: they are shown at the scale of an image of {sides[1]} pixels"
        )
        if setting == "dataset.unlabelled" and max(longest) > sides[2]:
            log.warning(
                f"{setting}: an image about which detectors disagree is left out whole; cut large images into ones of "
                f"{sides[1]} pixels, so that more of them is used"
            )
    return sized


def _range(least: int, most: int) -> str:
    return f"{least}" if least == most else f"{least} to {most}"


def _check_held_out(samples: Sequence[Sample], split: Split, group_by: str | None, source: str) -> None:
    if names := split.held_out_among(samples):
        raise InputError(
            f"{source}: the folder holds equal or nearly equal copies of {len(names)} validation or test images of "
            f"split {split.name}: {some(names)}. Remove the copies from the folder"
        )
    scenes = scenes_of((*split.val, *split.test), group_by)
    if shared := [sample.name for sample in samples if sample.group in scenes]:
        raise InputError(
            f"{source}: by their names, {len(shared)} images show scenes of validation or test images of split "
            f"{split.name}, such as {some(shared)}; remove them (or, if they show others, give them other names)"
        )
