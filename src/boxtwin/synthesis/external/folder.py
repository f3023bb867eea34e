"""Variations that someone made elsewhere: a web page, a colleague, another program."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from boxtwin.datasets.coco_json import file_key
from boxtwin.datasets.image_folder import ENDINGS, image_files
from boxtwin.datasets.image_io import Pixels, as_grey, read_image
from boxtwin.datasets.levels import bits_of, widened
from boxtwin.datasets.reading import Reading
from boxtwin.datasets.sample import Sample
from boxtwin.errors import InputError
from boxtwin.synthesis.generator import Generator, Json, Refused, Request, Variation

# v01, 1, and behind the name of the source: name_v01, name-1, name.2, "name 3", "name (4)".
_NUMBER = re.compile(r"v?0*(?P<number>[1-9]\d*)", re.I)
_BEHIND = re.compile(r"(?P<stem>.+?)(?:[_\-. ]\s?v?0*(?P<number>[1-9]\d*)|\s?\(v?0*(?P<bracketed>[1-9]\d*)\))", re.I)
_LISTED = 10
# How far the ratio of sides may be from the source's: rounding to whole pixels, and no more.
_ASPECT = 0.01


class Folder(Generator):
    """Takes the images of a folder as variations of the sources that their names tell.

    Without its ending, the name of an image is the path of its source (also without its ending) and the number of the
    variation, from 1: ``name_v01``, ``name-1``, ``name.2``, ``name 3``, ``name (4)``, or a folder of the source's name
    with ``v01`` or ``1`` in it. Sources in folders are named with them, or without where the name alone is clear.
    Files that begin with a dot, and those that are no images by their ending, are left alone.

    Files are read with the channels (``dataset.channels``), where they have them, and the orientation of their source.
    Images must have their source's size; with ``resize`` those of the same shape are brought to it. Depth and channels
    become the source's: 8 bit become 16 full scale to full scale (`widened`), 16 bit become 8 by the full ranges,
    colour becomes grey by the mean of the channels, also where grey is stored as colour: most models tint it.
    """

    name = "folder"
    boxes = "carried"  # of colour, blur and stains; images in which objects move take labels=pseudo or manual
    reproducible = False

    def __init__(self, *, path: str, resize: bool) -> None:
        self.path, self.resize = Path(path), resize
        if not self.path.is_dir():
            raise InputError(f"generator.path={path} is no folder; name the one that holds the variations")
        self.files = image_files(self.path)
        if not self.files:
            raise InputError(f"generator.path={path} holds no images ({', '.join(ENDINGS)})")
        hashes = {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in self.files.items()}
        content = "".join(f"{name}\0{digest}\n" for name, digest in hashes.items())
        self.digest = hashlib.sha256(content.encode()).hexdigest()
        self._matched: dict[tuple[str, int], str] | None = None

    def version(self, training: Sequence[Sample]) -> int:
        """2 of 16 bit: 8 bit images were spread over the whole range before. Others came out as they do now.

        Two more where ``dataset.channels`` or ``dataset.orientation`` is set: they were ignored before.
        """
        unusual = any(replace(one.reading, page=None) != Reading(max_pixels=one.reading.max_pixels) for one in training)
        return 1 + any(sample.bits > 8 for sample in training) + 2 * unusual

    def parameters(self) -> dict[str, Json]:
        """The content of the folder, wherever it lies: when a file changes, it is another store."""
        return {"files": self.digest, "resize": self.resize}

    def match(self, samples: Sequence[Sample]) -> None:
        """Find the one source of every file, or raise InputError; two files of one variation are refused as well."""
        by_path: dict[str, set[str]] = defaultdict(set)
        by_base: dict[str, set[str]] = defaultdict(set)
        for sample in samples:
            path = Path(file_key(sample.name)).with_suffix("")
            by_path[path.as_posix()].add(sample.name)
            by_base[path.name].add(sample.name)
        problems, matched = [], defaultdict(list)
        for file in self.files:
            if (parsed := _parse(Path(file))) is None:
                problems.append(f"{file}: no number of a variation at its end")
                continue
            stem, number = parsed
            sources = by_path.get(file_key(stem)) or by_base.get(file_key(stem), set())
            if len(sources) == 1:
                matched[next(iter(sources)), number].append(file)
            elif sources:
                problems.append(f"{file}: may be of {' or '.join(sorted(sources))}; name it with its folder")
            else:
                problems.append(f"{file}: no image of the data set is called {stem}")
        for (source, number), files in matched.items():
            if len(files) > 1:
                problems.append(f"{', '.join(files)}: each is variation {number} of {source}")
        if problems:
            more = [f"… and {len(problems) - _LISTED} more"] if len(problems) > _LISTED else []
            raise InputError(
                f"generator.path={self.path}: {len(problems)} problem(s), nothing was used. A file is named as its "
                "source and the number of the variation, such as NAME_v01.png, NAME-1.jpg or NAME/v01.png:\n  "
                + "\n  ".join([*problems[:_LISTED], *more])
            )
        self._matched = {key: files[0] for key, files in matched.items()}

    def vary(self, requests: Sequence[Request]) -> Iterator[Variation | Refused]:
        """The images that are there; a source without one is refused. `match` with the whole data set comes first."""
        if self._matched is None:
            raise ValueError("match comes before vary: which file belongs to which image depends on the whole data set")
        for request in requests:
            source, file = request.source, self._matched.get(request.key)
            if file is None:
                yield Refused(request, f"no file for it in {self.path}")
                continue
            try:
                pixels = self._fitted(_read(self.files[file], source.reading), source.read())
            except (OSError, ValueError) as error:
                yield Refused(request, f"{file}: {error}")
                continue
            yield Variation(request, pixels, source.object_boxes, source.object_labels, record={"file": file})

    def _fitted(self, pixels: Pixels, source: Pixels) -> Pixels:
        """In size, depth and channels of ``source``; raises ValueError if that cannot be without guessing."""
        (height, width), (h, w) = source.shape[:2], pixels.shape[:2]
        if (h, w) != (height, width):
            if not self.resize:
                raise ValueError(f"{w} x {h} pixels, the source has {width} x {height} (generator.resize=true resizes)")
            # One pixel of rounding is no other shape, however small the image.
            if abs(w * height - h * width) > max(_ASPECT * h * width, height, width):
                raise ValueError(f"{w} x {h} pixels are of another shape than the source's {width} x {height}")
            smaller = h * w > height * width
            pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_CUBIC)
        if as_grey(source).ndim == 2 and pixels.ndim == 3:
            pixels = np.rint(pixels.mean(axis=2)).astype(pixels.dtype)
        if source.ndim == 3 and pixels.ndim == 2:
            pixels = np.repeat(pixels[:, :, None], 3, axis=2)
        if pixels.dtype != source.dtype:
            deeper = source.dtype == np.uint16
            # Half as bright as its source a variation may be.
            if not deeper and (bits := bits_of(pixels, source)) < 15:
                raise ValueError(f"it seems to use {bits} of 16 bit, its source has 8 bit: convert it to 8 bit")
            pixels = widened(pixels, source) if deeper else np.rint(pixels / 257).astype(np.uint8)
        return np.ascontiguousarray(pixels)


def _read(file: Path, as_source: Reading) -> Pixels:
    """The pixels of a file, turned as its source and with the same channels; raises OSError as `read_image` does.

    A grey file of a source of which one channel is read is that channel. A file that lacks the channels, such as the
    RGB that most tools make of a source of five bands, is read as it is.
    """
    plain = Reading(as_source.orientation, max_pixels=as_source.max_pixels)
    if as_source.channels is None:
        return read_image(file, plain)
    if len(as_source.channels) == 1:
        with suppress(OSError):  # a file of several bands cannot be read without saying which
            if (grey := read_image(file, plain)).ndim == 2:
                return grey
    with suppress(OSError):
        return read_image(file, replace(plain, channels=as_source.channels))
    return read_image(file, plain)


def _parse(file: Path) -> tuple[str, int] | None:
    """Source (without ending) and number that a path below the folder tells."""
    stem = file.with_suffix("")
    if (alone := _NUMBER.fullmatch(stem.name)) and len(stem.parts) > 1:
        return stem.parent.as_posix(), int(alone["number"])
    if (behind := _BEHIND.fullmatch(stem.name)) is None:
        return None
    return stem.with_name(behind["stem"]).as_posix(), int(behind["number"] or behind["bracketed"])
