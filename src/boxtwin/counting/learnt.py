"""Which of the counted images a detector was trained or validated on: found again by their pixels, as copies are."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from boxtwin.counting.files import CountedImage
from boxtwin.counting.images import Read
from boxtwin.counting.scenes import Scene
from boxtwin.datasets.coco_json import find_files
from boxtwin.datasets.copies import alike
from boxtwin.datasets.image_folder import unlabelled_sample
from boxtwin.datasets.inspection import ImageFile, inspect_image, signature_of
from boxtwin.datasets.options import LABEL_SETTINGS
from boxtwin.datasets.reading import Reading
from boxtwin.datasets.sample import Sample
from boxtwin.tracking.run_folders import CONFIGURATION, FINAL, FOLDS_FILE, SPLIT_FILE

log = logging.getLogger(__name__)

TRAINING, VALIDATION = "training", "validation"
SIDES = {VALIDATION: "val", TRAINING: "train"}  # in split.json


@dataclass
class LearntImages:
    """The training and validation images of detectors, and the counted images that are held against them."""

    known: Mapping[str, tuple[str, str]]  # side and name of an image in its data set, by the path of its file
    samples: Sequence[Sample]  # named by these paths
    reading: Reading
    counted: list[Sample] = field(default_factory=list)

    def look_at(self, image: Read) -> None:
        """Keep what a counted image shows; a scene that is read in windows is no training image."""
        if self.samples and not isinstance(image.content, Scene):
            file = ImageFile(*image.size, signature=signature_of(image.content))
            self.counted.append(unlabelled_sample(image.name, image.path, file, self.reading))

    def marked(self, images: Sequence[CountedImage]) -> list[CountedImage]:
        """The counted images, with the side and the name of the image that each equals, or nearly equals."""
        found = alike(self.counted, self.samples)
        return [
            replace(image, learnt=self.known[found[image.name]]) if image.name in found else image for image in images
        ]


def learnt_images(detectors: Sequence[Path], reading: Reading) -> LearntImages:
    """The images that the runs of detectors learnt from; a line in the log for each detector of which none is found."""
    known: dict[str, tuple[str, str]] = {}  # two data sets may have images of one name
    for detector in detectors:
        found = _files_of(detector)
        if not found:
            log.info("%s: its training images are not found, so that counted ones cannot be marked", detector)
        for path, (name, side) in found.items():
            if known.get(str(path), ("", ""))[0] != TRAINING:
                known[str(path)] = (side, name)
    known = dict(sorted(known.items(), key=lambda each: each[1][0] == TRAINING))  # of copies, the last is named
    samples = []
    for path in tqdm(known, "training images", unit="image", leave=False, disable=not known):
        file = inspect_image(Path(path), None, None, reading)
        if not file.error:
            samples.append(unlabelled_sample(path, Path(path), file, reading))
    return LearntImages(known, samples, reading)


def read_by(detector: Path) -> dict[str, str]:
    """How the run of a detector read its labels: values of `LABEL_SETTINGS`; empty if the run is not here."""
    try:
        settings: Any = yaml.safe_load((_run_of(detector) / CONFIGURATION).read_text(encoding="utf-8"))["dataset"]
        return {name: str(settings[name]) for name in LABEL_SETTINGS if name in settings}
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return {}


def _run_of(detector: Path) -> Path:
    """The folder of the run that a detector comes from."""
    folder = detector.parent
    run = folder.parent if folder.name == "export" else folder
    return run.with_name(FINAL) if re.fullmatch(rf"{FINAL}-seed\d+", run.name) else run


def _files_of(detector: Path) -> dict[Path, tuple[str, str]]:
    """Name and side of each file that the run of a detector learnt from; empty if run or data set are not here."""
    run = _run_of(detector)
    try:
        settings: Any = yaml.safe_load((run / CONFIGURATION).read_text(encoding="utf-8"))["dataset"]
        if run.name == FINAL:
            parts = json.loads((run / FOLDS_FILE).read_text(encoding="utf-8"))
            names = {name: TRAINING for part in parts.values() for name in part}
        else:
            (split,) = json.loads((run / SPLIT_FILE).read_text(encoding="utf-8")).values()
            names = {name: side for side, key in SIDES.items() for name in split[key]}
        # A relative folder starts from the one that holds multirun/.
        roots = [place / settings["root"] / settings["images"] for place in (Path(), run.absolute().parents[2])]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, yaml.YAMLError):
        return {}
    root = next((root for root in roots if root.is_dir()), None)
    paths = [] if root is None else zip(find_files(list(names), root), names.items(), strict=True)
    return {path: named for path, named in paths if path.is_file()}
