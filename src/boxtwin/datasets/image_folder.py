"""Folders of images without annotations: their files, and samples of them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from boxtwin.datasets.inspection import ImageFile, inspect_image
from boxtwin.datasets.problems import some
from boxtwin.datasets.reading import Reading
from boxtwin.datasets.sample import Sample
from boxtwin.errors import InputError

# What count.py writes into a folder. The pictures are images of the user with boxes drawn into them.
CSV_FILE, COCO_FILE, PICTURES = "counts.csv", "detections.json", "pictures"
ENDINGS = (
    ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".jpe", ".jfif", ".dib", ".jp2", ".pgm", ".ppm", ".pnm",
    ".gif", ".avif",
)  # fmt: skip


_OF_SYSTEMS = {"lost+found", "System Volume Information", "$RECYCLE.BIN"}  # on each disk, closed to most users


def image_files(folder: Path) -> dict[str, Path]:
    """The image files in a folder and below, by their path in it.

    Those that begin with a dot are left alone, and so are the pictures of counts that lie below the folder.
    """
    files = (file for file in sorted(files_below(folder)) if is_image(file))
    return {file.relative_to(folder).as_posix(): file for file in files}


def other_files(folder: Path) -> list[str]:
    """The files in a folder and below that `image_files` takes for no images, by their path in it."""
    return [file.relative_to(folder).as_posix() for file in sorted(files_below(folder)) if not is_image(file)]


def is_image(file: Path) -> bool:
    """Whether the name of a file ends as those of images do."""
    return file.suffix.lower() in ENDINGS


def is_picture_of_count(file: Path) -> bool:
    """Whether a file is one of the pictures that count.py drew."""
    return any(parent.name == PICTURES and _holds_count(parent.parent) for parent in file.parents)


def folders_of_pictures(folder: Path) -> list[str]:
    """The folders of pictures of counts below a folder, by their path in it."""
    counts = {file.parent for file in files_below(folder) if file.name == CSV_FILE and _holds_count(file.parent)}
    found = (place / PICTURES for place in counts if (place / PICTURES).is_dir())
    return sorted(place.relative_to(folder).as_posix() for place in found)


def _holds_count(folder: Path) -> bool:
    return (folder / CSV_FILE).is_file() and (folder / COCO_FILE).is_file()


def files_below(folder: Path) -> Iterator[Path]:
    """Files whose path holds no part that begins with a dot, without pictures of counts.

    Linked folders come last, each folder once.
    """
    waiting, seen = [str(folder)], set()
    for top in waiting:
        for place, folders, names in os.walk(top, onerror=_refuse):
            real = os.path.realpath(place)
            shown = [] if real in seen else sorted(set(folders) - _OF_SYSTEMS)
            shown = [name for name in shown if not name.startswith(".")]
            if PICTURES in shown and _holds_count(Path(place)):
                shown.remove(PICTURES)
            linked = [name for name in shown if (Path(place) / name).is_symlink()]
            waiting += [str(Path(place) / name) for name in linked]
            folders[:] = [name for name in shown if name not in linked]
            if real not in seen:
                seen.add(real)
                files = (Path(place) / name for name in names if not name.startswith("."))
                # A link to an image that is gone is one that cannot be read, and no file less.
                yield from (file for file in files if file.is_file() or (file.is_symlink() and is_image(file)))


def _refuse(error: OSError) -> None:
    raise InputError(
        f"{error.filename} cannot be read: {error.strerror}; make the folder readable, or give others that are"
    ) from None


def check_folder(folder: Path, setting: str) -> None:
    """Raise `InputError` that names ``setting`` if a folder is not there, or holds no image."""
    if not folder.is_dir():
        raise InputError(f"{setting}={folder}: there is no such folder")
    if not any(map(is_image, files_below(folder))):
        raise InputError(f"{setting}={folder} holds no images ({', '.join(ENDINGS)})")


def check_names(names: Iterable[str], what: str) -> None:
    """Raise `InputError` for file names that are no valid text, which no label file can hold; it begins with ``what``.

    Python gives bytes of other encodings as lone surrogates.
    """
    if odd := [name for name in names if not _is_text(name)]:
        raise InputError(f"{what}: {len(odd)} file name(s) are no text in UTF-8: {some(odd)}; rename the files")


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def read_folder(folder: Path, *, setting: str, group_by: str | None, reading: Reading) -> tuple[Sample, ...]:
    """The images of a folder as samples without boxes, each decoded once to check it.

    Their group is the scene that ``group_by`` finds in the file name, or empty.

    Raises:
        InputError: there is no folder, or no image in it, or one cannot be read; it names ``setting``.
    """
    check_folder(folder, setting)
    files = image_files(folder)
    check_names(files, setting)
    inspected = {name: inspect_image(file, None, None, reading) for name, file in files.items()}
    if faults := [file.error for file in inspected.values() if file.error]:
        raise InputError(f"{setting}: {len(faults)} image(s) cannot be read: {some(faults)}; repair or remove them")
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
        colour=file.colour,
        signature=file.signature,
        reading=reading,
    )
