"""Which image file each labelled image of a folder is."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

from boxtwin.datasets.image_names import ImageNames, without_ending
from boxtwin.datasets.problems import some

# Folders that tools put images and labels into, side by side: their names are no part of an image's name.
OF_IMAGES, OF_LABELS = ("images", "JPEGImages"), ("labels", "Annotations")


def without_folders(path: str, folders: Sequence[str]) -> str:
    """A path without the folders of these names, in capitals or not."""
    *parents, name = PurePosixPath(path).parts
    named = {folder.casefold() for folder in folders}
    return "/".join([*(part for part in parents if part.casefold() not in named), name])


def pair(names: Iterable[str], files: Sequence[str], *, of_label_files: bool) -> tuple[dict[str, str], list[str]]:
    """The image file of each name that has one, and remarks.

    Args:
        names: names of images in label files, without the folders `OF_LABELS`.
        files: paths of image files.
        of_label_files: the names are those of label files: ``train/1`` of ``train/labels/1.txt``.

    Of two paths one has to be the end of the other (`ImageNames`). Tools also put label files into a folder of another
    name than that of the images. Where no image lies in a folder of label files, their base names count, and a remark
    names the folders.
    """
    names = list(names)
    known = ImageNames([(file, *(without_folders(file, OF_IMAGES[:n]) for n in (1, 2))) for file in files])
    found = {name: files[index] for name in names if (index := known.find(name)) is not None}
    if not of_label_files:
        return found, []
    folders = {str(PurePosixPath(without_folders(file, OF_IMAGES)).parent) for file in files}
    by_base: dict[str, list[str]] = defaultdict(list)
    for file in files:
        by_base[_base(file)].append(file)
    labelled = Counter(_base(name) for name in names)
    places: dict[tuple[str, str], int] = Counter()
    for name in names:
        folder, base = str(PurePosixPath(name).parent), _base(name)
        if name not in found and folder not in folders and labelled[base] == len(by_base[base]) == 1:
            found[name] = by_base[base][0]
            places[folder, str(PurePosixPath(found[name]).parent)] += 1
    pairs = [f"{number} from {labels}/ to images in {images}/" for (labels, images), number in sorted(places.items())]
    return found, [f"labels belong to images by file name alone: {some(pairs)}"] if pairs else []


def _base(name: str) -> str:
    return PurePosixPath(without_ending(name)).name
