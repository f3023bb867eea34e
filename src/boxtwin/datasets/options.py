"""Settings of a data set and of its split: the groups `dataset` and `split` of the configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from types import MappingProxyType
from typing import Any

REQUIRED: Any = "???"  # what OmegaConf takes for a value that must be given


class OnBadBox(StrEnum):
    """What to do with boxes that are empty, not finite or reach outside their image: refuse, cut off at it, or drop."""

    error = "error"
    clip = "clip"
    drop = "drop"


class Crowds(StrEnum):
    """What annotations with iscrowd 1 are: crowds, neither learnt nor counted, or objects that were drawn as masks."""

    ignore = "ignore"
    objects = "objects"


class OnDuplicateBox(StrEnum):
    """What to do with boxes that repeat another one of their class and image: keep, merge into the first, or refuse."""

    warn = "warn"
    merge = "merge"
    error = "error"


# Settings by which annotations become objects, with their defaults.
LABEL_SETTINGS: Mapping[str, StrEnum] = MappingProxyType(
    {"on_bad_box": OnBadBox.error, "crowds": Crowds.ignore, "on_duplicate_box": OnDuplicateBox.warn}
)


def label_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """`LABEL_SETTINGS` as ``values`` record them, as arguments of the readers of COCO files."""
    return {name: type(default)(values.get(name) or default) for name, default in LABEL_SETTINGS.items()}


class Orientation(StrEnum):
    """Whether images are turned as their orientation tag (EXIF) says, or read as they are stored."""

    apply = "apply"
    ignore = "ignore"


class Speckle(StrEnum):
    """What the pixel values of a radar's images stand for: received amplitude, or power, its square."""

    amplitude = "amplitude"
    intensity = "intensity"


@dataclass
class BuildOptions:
    """Parameters of a simulated data set, see `boxtwin.datasets.simulated_sar.scenes.build`."""

    images: int = REQUIRED
    image_size: int = REQUIRED
    chips_per_scene: int = REQUIRED
    seed: int = 0


@dataclass
class DatasetOptions:
    """A COCO detection set on disk, or one that is made there.

    ``unlabelled`` is a folder of images of the same sensor without annotations, ``empty`` one of images that, as a
    person says, show no object. Both join the training.
    """

    name: str = REQUIRED
    root: str = REQUIRED
    images: str = REQUIRED
    annotations: str = REQUIRED
    group_by: str | None = None
    on_bad_box: OnBadBox = OnBadBox.error
    crowds: Crowds = Crowds.ignore
    on_duplicate_box: OnDuplicateBox = OnDuplicateBox.warn
    orientation: Orientation = Orientation.apply
    page: int | None = None
    channels: list[int] | None = None
    max_pixels: int = 100_000_000
    image_size: int = REQUIRED
    speckle: Speckle | None = None
    unlabelled: str | None = None
    empty: str | None = None
    build: BuildOptions | None = None  # None: it is not simulated

    def reading_identity(self) -> dict[str, Any]:
        """What tells data apart that are read, images or boxes, in another way than by default; empty by default."""
        names = ("on_bad_box", "crowds", "on_duplicate_box", "orientation", "page", "channels")
        default = {each.name: each.default for each in fields(self)}
        changed = {name: value for name in names if (value := getattr(self, name)) != default[name]}
        return {"read": changed} if changed else {}


@dataclass
class SplitOptions:
    """Numbers of real images per side; ``file`` names a predefined split instead.

    ``train_size`` keeps the first so many of the training images, nested; null, or all of them, is the whole split.
    """

    name: str = REQUIRED
    train: int = REQUIRED
    val: int = REQUIRED
    test: int = REQUIRED
    train_pool: int = REQUIRED
    train_size: int | None = None
    seed: int = 0
    group_by: str | None = "${dataset.group_by}"
    file: str | None = None
