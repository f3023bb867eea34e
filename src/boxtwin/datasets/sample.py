"""Value objects of the whole project: a labelled image, its lineage, a data set, and what is decided about boxes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Bool, Float, Int

from boxtwin.boxes import Box, area_xyxy, shares_inside
from boxtwin.datasets.image_io import Pixels, read_image
from boxtwin.datasets.inspection import Signature
from boxtwin.datasets.reading import Reading

IN_CROWD = 0.5  # share of a detection inside a crowd from which on it is one of its objects


@dataclass(frozen=True)
class Lineage:
    """Origin of a synthetic image."""

    source: str  # `Sample.name` of the real image it varies
    generator: str
    variation: int  # from 1
    seed: int

    def __post_init__(self) -> None:
        if self.variation < 1:
            raise ValueError(f"variations count from 1, got {self.variation} for {self.source}")


class CrowdAreas(NamedTuple):
    """Areas that hold objects without boxes of their own: nothing in them is to be labelled or counted."""

    boxes: Float[np.ndarray, "n 4"]  # xyxy, pixels
    labels: Int[np.ndarray, " n"]

    def hold(self, box: Box, label: int) -> bool:
        """Whether AP at IoU 0.5 ignores a detection: at least half of its box lies in a crowd of its class."""
        crowds = self.boxes[self.labels == label].astype(np.float64)
        return bool((shares_inside(np.array(box, dtype=np.float64), crowds) >= IN_CROWD).any())


NO_CROWDS = CrowdAreas(np.zeros((0, 4), dtype=np.float32), np.zeros(0, dtype=np.int64))


@dataclass(frozen=True, eq=False)
class Sample:
    """One image file and its objects; ``lineage`` is None for a real image."""

    name: str  # path below the image folder, unique in its data set
    path: Path
    width: int
    height: int
    image_id: int
    boxes: Float[np.ndarray, "n 4"]  # xyxy, pixels of the image file
    labels: Int[np.ndarray, " n"]  # indices of the class names of the data set
    areas: Float[np.ndarray, " n"]  # the annotation's own: COCO sorts objects into small, medium and large by them
    crowd: Bool[np.ndarray, " n"]  # crowds are not trained on or counted, and COCO ignores detections in them
    group: str = ""  # images of one group (scene) stay on one side of a split
    lineage: Lineage | None = None
    sha256: str = ""  # of the image file's bytes, and of how they are read where first versions read them otherwise
    bits: int = 8  # of a pixel's channel in the file, 8 or 16
    colour: bool = False  # of the pixels that a real image is read as
    signature: Signature | None = None  # to find copies; None: not known, or all pixels of one value
    reading: Reading = Reading()  # noqa: RUF009 (frozen)
    annotations: tuple[tuple[int, ...], ...] = ()  # ids in the COCO file that each object was read from, if from one
    relative_size: float = 1.0  # of an image beside the data set, which may have another size; see `relative_size`

    def __post_init__(self) -> None:
        n = len(self.boxes)
        for name, array in {"labels": self.labels, "areas": self.areas, "crowd": self.crowd}.items():
            if array.shape != (n,):
                raise ValueError(f"{self.name}: {n} boxes need {name} of shape ({n},), got {array.shape}")
        if self.annotations and len(self.annotations) != n:
            raise ValueError(f"{self.name}: {n} boxes are of {len(self.annotations)} annotations")

    def read(self) -> Pixels:
        """The pixels that the boxes refer to; raises OSError as `read_image` does."""
        return read_image(self.path, self.reading)

    def variation(
        self,
        path: Path,
        boxes: Float[np.ndarray, "n 4"],
        labels: Int[np.ndarray, " n"],
        *,
        lineage: Lineage,
        sha256: str,
    ) -> Sample:
        """A variation of this image, whose file is ``path``, with boxes (xyxy, pixels) and labels of its own."""
        return replace(
            self,
            path=path,
            boxes=boxes,
            labels=labels,
            areas=area_xyxy(boxes).astype(np.float64),
            crowd=np.zeros(len(boxes), dtype=bool),
            annotations=(),
            lineage=lineage,
            sha256=sha256,
            signature=None,
            # The channels of the source were chosen when the variation was made of it.
            reading=Reading(max_pixels=self.reading.max_pixels),
        )

    @property
    def crowds(self) -> CrowdAreas:
        """The crowds among its objects."""
        return CrowdAreas(self.boxes[self.crowd], self.labels[self.crowd])

    @property
    def object_boxes(self) -> Float[np.ndarray, "m 4"]:
        """The boxes of single objects, crowds left out: what is trained on and counted."""
        return self.boxes[~self.crowd]

    @property
    def object_labels(self) -> Int[np.ndarray, " m"]:
        """The labels of `object_boxes`."""
        return self.labels[~self.crowd]


@dataclass(frozen=True)
class Dataset:
    """A checked set of real images. ``category_ids[i]`` is the number that the COCO file gives class ``i``."""

    name: str
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    samples: tuple[Sample, ...]
    digest: str  # sha256 over annotations and image bytes
    repairs: dict[str, int] = field(default_factory=dict)  # what `on_bad_box` did: {"clipped": 3, "dropped": 1}
    remarks: tuple[str, ...] = ()  # what a user should know before anything is done with it

    @property
    def channels(self) -> int:
        """1 where all images are grey, so that no network does the same work three times; 3 where any has colour."""
        return 3 if any(sample.colour for sample in self.samples) else 1


Decision = Literal["kept", "shifted", "dropped", "added"]  # added: found in the variation, no object of the source
DECISIONS: tuple[Decision, ...] = get_args(Decision)


@dataclass(frozen=True)
class PropagatedBox:
    """What was decided about one box of a source in its variation, and why."""

    box: Box  # xyxy, pixels of the variation
    label: int
    decision: Decision
    evidence: dict[str, float | None]  # None: not measured


@dataclass(frozen=True)
class Judgement:
    """What was decided about all boxes of a variation; ``refused`` says why the whole image is not to be trained on."""

    boxes: tuple[PropagatedBox, ...]
    refused: str | None = None
    minutes: float | None = None  # that a person spent on these boxes; None: not known


# Decides about the boxes of a variation. Takes the pixels of the source and of the variation, the boxes that the
# generator claims (xyxy, pixels) with their labels, the path of the variation in its store, and the source's crowds.
Judge = Callable[[Pixels, Pixels, Float[np.ndarray, "n 4"], Int[np.ndarray, " n"], str, CrowdAreas], Judgement]


class Detections(NamedTuple):
    """Objects that a detector found in one image: boxes xyxy in pixels of the image file, best score first."""

    boxes: Float[np.ndarray, "n 4"]
    scores: Float[np.ndarray, " n"]
    labels: Int[np.ndarray, " n"]
