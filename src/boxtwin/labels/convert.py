"""Data sets of all formats as one COCO data set, which all readers of this project take."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from boxtwin.datasets.coco import coco_content
from boxtwin.datasets.coco_json import fault_of_name, load_json
from boxtwin.datasets.image_folder import check_names, image_files
from boxtwin.datasets.image_io import read_header, read_image, write_png
from boxtwin.datasets.image_names import without_ending
from boxtwin.datasets.problems import some
from boxtwin.datasets.reading import Reading
from boxtwin.errors import InputError
from boxtwin.files import atomic_path, link_file, write_bytes_atomically
from boxtwin.labels.formats import format_of, get_format
from boxtwin.labels.formats.browser import is_shown
from boxtwin.labels.formats.image_pairs import pair
from boxtwin.labels.formats.labelled_image import LabelledImage, unknown_classes
from boxtwin.labels.store_images import check_new, exported_images, read_store

# How an image is read follows from its entry in a COCO file; other formats cannot say it.
_IN_ENTRY = (
    'in a data set that is read back this stands in the image\'s entry of a COCO file: "page": 0, "channels": [0]'
)
_STORED = (
    "if its boxes are of the image as it is stored, without EXIF's rotation, put "
    '"orientation": "ignore" into its entry of a COCO file, or save the image upright'
)
_CONFIRM = "mark those whose boxes are right, as docs/labels.md says, and read them back first"


class _Found(NamedTuple):
    """A labelled image with its file and its name in the converted data set."""

    labels: LabelledImage
    path: Path
    name: str
    reading: Reading = Reading()
    is_whole: bool = True  # the file as it is has these pixels
    is_variation: bool = False


def convert(
    paths: Sequence[Path], folder: Path, split: Path | None = None, *, new_classes: bool = False
) -> tuple[str, list[str]]:
    """Write ``annotations.json`` and ``images/`` of data sets into a new ``folder``; what it holds, and remarks.

    With ``split``, the ``split.json`` of a run on the first data set, the folder has one as well, in which the images
    that this data set lacks are training images.

    Classes are joined by name; objects of a class that the first set lacks need ``new_classes``. Where two sets hold
    the same image under one name, the later labels count; other images of that name get the name of their set before
    it. Images that are marked as not confirmed are left out.
    Raises `InputError` where labels have no image file, or several could be meant, for a set without any confirmed
    image, and for variations: on another side of a split than their sources, they would show its images.
    """
    check_new(folder)
    sides = {} if split is None else load_json(split, setting="split.file=")
    images: dict[str, _Found] = {}
    of_first: set[str] = set()
    classes: dict[str, int] = {}
    remarks: list[str] = []
    for path in paths:
        found, names, said = _read(path)
        remarks += said
        used = [each for each in found if each.labels.confirmed is not False]
        if found and not used:
            raise InputError(f"read={path}: no image is confirmed, of {len(found)}: {_CONFIRM}")
        if made := [each.labels.name for each in used if each.is_variation]:
            raise InputError(
                f"read={path}: {len(made)} images are variations, which are no images of a data set: {some(made)}. "
                "Train on their corrected labels with labels=manual labels.file=FILE"
            )
        if len(used) < len(found):
            remarks.append(f"{len(found) - len(used)} images are not confirmed and are left out")
        if classes and not new_classes:
            _check_classes(path, used, list(classes), paths[0])
        for name in names if new_classes or not classes else ():
            classes.setdefault(name, len(classes) + 1)
        for each in used:
            other = images.get(each.name)
            name = each.name if other is None or _same(other, each) else f"{path.stem}/{each.name}"
            if name in images and not _same(images[name], each):
                raise InputError(f"read={path}: two different images are called {each.name}")
            images[name] = each
        of_first = of_first or set(images)
    if not images:
        raise InputError(f"read={', '.join(map(str, paths))} holds no image with labels")
    content = _content(images, classes)
    with atomic_path(folder, new_folder=True) as temporary:
        for name, image in images.items():
            target = temporary / "images" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if image.is_whole:
                link_file(image.path, target)
            else:  # one page, or some channels of a file
                write_png(target, read_image(image.path, image.reading))
        write_bytes_atomically(temporary / "annotations.json", json.dumps(content).encode())
        if split is not None:
            write_bytes_atomically(temporary / split.name, json.dumps(_grown(sides, split, images, of_first)).encode())
    number = len(content["annotations"])
    return f"{len(images)} images, {number} boxes, classes: {', '.join(classes)}", remarks


def _check_classes(path: Path, found: Sequence[_Found], known: Sequence[str], first: Path) -> None:
    """Raise `InputError` for objects of classes that the first data set lacks, which may be misspelt."""
    if listed := unknown_classes([each.labels for each in found], known):
        raise InputError(
            f"read={path}: {some(listed, 10)}: no class of {first}, which has {', '.join(known)}. Correct the name in "
            "the tool or the file, or give new_classes=true if it is a new class"
        )


def _grown(sides: Any, split: Path, images: Mapping[str, Any], of_first: set[str]) -> dict[str, Any]:
    """A split whose training images include all new images."""
    try:
        listed = {name for each in sides.values() for side in each.values() for name in side}
        grown = {
            name: {**each, "train": [*each["train"], *sorted({*images} - of_first)]} for name, each in sides.items()
        }
    except (AttributeError, KeyError, TypeError):
        raise InputError(f"split.file={split} is no split.json of a run") from None
    if lost := sorted(name for name in listed if name not in images):
        raise InputError(f"split.file={split}: {len(lost)} of its images are not in the first data set: {some(lost)}")
    return grown


def _read(path: Path) -> tuple[list[_Found], Sequence[str], Sequence[str]]:
    """The images of one data set, its classes, and remarks."""
    form = format_of(path)
    root = path if path.is_dir() else path.parent
    exported = exported_images(root)
    variations = {each["file"] for each in exported if each.get("is_variation")}
    if form == "coco":
        store = read_store(path)
        found = []
        if absent := [image.labels.name for image in store.images if not image.path.is_file()]:
            raise InputError(f"read={path}: {len(absent)} images have no file near {store.file}: {some(absent)}")
        for image in store.images:
            own = image.labels.name if fault_of_name(image.labels.name) == "" else image.labels.file
            whole = image.reading == Reading() or is_shown(image.path, image.reading)
            name = own if whole else image.labels.file
            made = image.is_variation or image.path.name in variations
            found.append(_Found(image.labels, image.path, name, image.reading, whole, made))
        return found, list(store.category_ids), store.remarks
    labels = get_format(form).read(path)
    # The files of our own exports have other names than their images had: a/1.png became a__1.png.
    ours = {each["name"]: f"images/{each['file']}" for each in exported if isinstance(each.get("name"), str)}
    names = [ours.get(each.name, each.name) for each in labels.images]
    present = list(image_files(root))
    check_names(present, f"read={path}")
    files, _ = pair(names, present, of_label_files=form in ("voc", "yolo"))
    _check_paired(names, files, present, path, root)
    if len({*files.values()}) < len(labels.images):
        raise InputError(f"read={path}: several label files are of one image; put each set into a folder of its own")
    found = [
        _Found(each, root / file, file, is_variation=PurePosixPath(file).name in variations)
        for each, file in ((each, files[name]) for each, name in zip(labels.images, names, strict=True))
    ]
    return found, *labels[1:]


def _check_paired(
    names: Sequence[str], files: Mapping[str, str], present: Sequence[str], path: Path, root: Path
) -> None:
    """Raise `InputError` for labels without an image file, and for those that several files fit."""
    bases: dict[str, list[str]] = defaultdict(list)
    for file in present:
        bases[PurePosixPath(without_ending(file)).name].append(file)
    fitting = {name: bases[PurePosixPath(without_ending(name)).name] for name in names if name not in files}
    if several := [f"{name} ({', '.join(each)})" for name, each in fitting.items() if len(each) > 1]:
        cure = "rename the images and their labels so that one image alone fits, or remove the other images"
        raise InputError(f"read={path}: {len(several)} labels fit several image files: {some(several)}; {cure}")
    if lost := [*fitting]:
        what = f"{len(lost)} labelled images have no image file below {root}: {some(lost)}"
        raise InputError(f"read={path}: {what}; restore the images, or remove their labels")


def _same(one: _Found, other: _Found) -> bool:
    """Whether two are the same image of the same file."""
    digests = {hashlib.sha256(each.path.read_bytes()).hexdigest() for each in (one, other)}
    return len(digests) == 1 and one.reading == other.reading


def _content(images: dict[str, _Found], classes: dict[str, int]) -> dict[str, Any]:
    entries, annotations = [], []
    for number, (name, image) in enumerate(sorted(images.items()), start=1):
        labels = image.labels
        try:
            encoded = image.path.read_bytes()
            width, height = read_header(encoded, str(image.path), image.reading).shown(image.reading)
        except OSError as error:
            cure = f"; {_IN_ENTRY}" if "dataset." in str(error) else ""
            raise InputError(f"{image.path} cannot be read: {error.strerror or error}{cure}") from None
        if None not in (labels.width, labels.height) and (labels.width, labels.height) != (width, height):
            sizes = f"{labels.width} x {labels.height} pixels, {image.path} has {width} x {height}"
            is_turned = (labels.width, labels.height) == (height, width) and image.reading == Reading()
            cure = _STORED if is_turned else "export the labels at the size of the images"
            raise InputError(f"{labels.name} is said to have {sizes}; {cure}")
        entries.append({"id": number, "file_name": name, "width": width, "height": height})
        for (x1, y1, x2, y2), label, _, crowd, area in labels.in_pixels(width, height).boxes:
            box = [x1, y1, x2 - x1, y2 - y1]
            annotations.append((number, classes[label], box, area or box[2] * box[3], crowd))
    return coco_content(entries, annotations, ((number, name) for name, number in classes.items()))
