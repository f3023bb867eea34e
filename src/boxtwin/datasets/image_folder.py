"""Folders of images without annotations: their files, and samples of them."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from boxtwin.datasets.inspection import ImageFile, inspect_image
from boxtwin.datasets.problems import some
from boxtwin.datasets.reading import Reading
from boxtwin.datasets.sample import Sample
from boxtwin.errors import InputError

ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")


def image_files(folder: Path) -> dict[str, Path]:
    """The image files in a folder and below, by their path in it; those that begin with a dot are left alone."""
    files = (file for file in sorted(folder.rglob("*")) if file.suffix.lower() in ENDINGS and file.is_file())
    names = {file.relative_to(folder).as_posix(): file for file in files}
    return {name: file for name, file in names.items() if "/." not in f"/{name}"}


def read_folder(folder: Path, *, setting: str, group_by: str | None, reading: Reading) -> tuple[Sample, ...]:
    """The images of a folder as samples without boxes, each decoded once to check it.

    Their group is the scene that ``group_by`` finds in the file name, or empty.

    Raises:
        InputError: there is no image, or one cannot be read; it names ``setting``.
    """
    files = image_files(folder) if folder.is_dir() else {}
    if not files:
        raise InputError(f"{setting}={folder} holds no images ({', '.join(ENDINGS)})")
    inspected = {name: inspect_image(file, None, None, reading) for name, file in files.items()}
    if faults := [file.error for file in inspected.values() if file.error]:
        raise InputError(f"{setting}: {len(faults)} images are unreadable: {some(faults)}")
    samples = []
    for number, (name, file) in enumerate(inspected.items(), start=1):
        scene = re.search(group_by, name) if group_by else None
        group = (scene and scene[1]) or ""
        samples.append(unlabelled_sample(name, files[name], file, reading, number=number, group=group))
    return tuple(samples)


def unlabelled_sample(
    name: str, path: Path, file: ImageFile, reading: Reading, *, number: int = 1, group: str = ""
) -> Sample:
    """An inspected image as a sample without boxes."""
    return Sample(
        name=name,
        path=path,
        width=file.width,
        height=file.height,
        image_id=number,
        boxes=np.zeros((0, 4), dtype=np.float32),
        labels=np.zeros(0, dtype=np.int64),
        areas=np.zeros(0),
        crowd=np.zeros(0, dtype=bool),
        group=group,
        sha256=file.sha256,
        bits=file.bits,
        signature=file.signature,
        reading=reading,
    )
