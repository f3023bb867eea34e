"""The labelled images of a store: of variations, of what count.py found in new images, or of any COCO file."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from boxtwin.datasets.coco_json import find_files, load_json
from boxtwin.datasets.image_io import pixels_sha256, read_header, read_image
from boxtwin.datasets.image_names import ImageNames, without_ending
from boxtwin.datasets.options import Orientation
from boxtwin.datasets.problems import some
from boxtwin.datasets.reading import Reading
from boxtwin.errors import InputError
from boxtwin.files import check_target
from boxtwin.labels.formats import coco
from boxtwin.labels.formats.browser import is_shown
from boxtwin.labels.formats.labelled_image import LabelledImage, Labels, class_name

FILES = ("annotations.json", "detections.json")
RECORD = "exported.json"  # what was exported: the hash of each image, and black and white of 16 bit ones


@dataclass(frozen=True)
class StoreImage:
    """An image of a store, with its file and how that is read. ``labels.file`` is the name under which it goes out."""

    labels: LabelledImage
    path: Path
    reading: Reading
    entry: dict[str, Any]  # of the COCO file

    @property
    def is_variation(self) -> bool:
        return "variation" in self.entry


@dataclass(frozen=True)
class StoreImages:
    """All images of a store; ``file`` is its COCO file, ``category_ids`` are the ids of its classes by name."""

    file: Path
    images: Sequence[StoreImage]
    category_ids: dict[str, int]
    remarks: Sequence[str] = ()  # what was left out or changed in reading


def check_new(folder: Path) -> None:
    """Raise `InputError` if labels and images cannot be written into a ``folder`` of their own."""
    if folder.absolute() == Path().absolute():
        raise InputError(f"folder={folder} is the working folder; name a new one, such as folder=LABELS")
    check_target(folder, "folder")
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"folder={folder} exists; choose another, or remove it first")


def read_store(store: Path) -> StoreImages:
    """Read the COCO file of a store, or a COCO file that is named itself.

    Image files are looked for where their ``path`` or name leads from the working folder, beside the COCO file, and in
    ``images/`` there. ``page``, ``channels`` and ``orientation`` of an image say how it is read. Labels of variations
    are not confirmed unless they are marked: nobody has seen them.
    """
    file = next((store / name for name in FILES if (store / name).is_file()), None) if store.is_dir() else store
    if file is None or not file.is_file():
        what = f"holds neither {' nor '.join(FILES)}" if store.is_dir() else "does not exist"
        raise InputError(f"store={store} {what}: give the folder of a variation store, or what count.py wrote")
    read, content = coco.read_with_content(file)
    if not read.images:
        raise InputError(f"store={store}: {file.name} has no images")
    names = [image.name for image in read.images]
    if repeated := [name for name, number in Counter(names).items() if number > 1]:
        raise InputError(f"store={store}: {len(repeated)} images are named twice in {file.name}: {some(repeated)}")
    images = []
    readings = [_reading(entry, file) for entry in content["images"]]
    paths = _files_of(content["images"], file.parent)
    exported = export_names(names, [is_shown(*each) for each in zip(paths, readings, strict=True)])
    for index, (image, entry) in enumerate(zip(read.images, content["images"], strict=True)):
        path, reading = paths[index], readings[index]
        width, height = _size(path, reading) if None in (image.width, image.height) else image.size()
        confirmed = False if image.confirmed is None and "variation" in entry else image.confirmed
        labels = replace(image, file=exported[index], width=width, height=height, confirmed=confirmed)
        images.append(StoreImage(labels, path, reading, entry))
    ids = {class_name(category["name"]): category["id"] for category in content["categories"]}
    return StoreImages(file, images, ids, read.remarks)


def _reading(entry: Mapping[str, Any], file: Path) -> Reading:
    """How an image of a COCO ``file`` is read."""
    try:
        orientation = Orientation(entry.get("orientation") or Orientation.apply)
        return Reading(orientation, entry.get("page"), entry.get("channels"))
    except (TypeError, ValueError) as error:
        what = "page, channels or orientation do not say how the image is read"
        raise InputError(f"{file}, {entry['file_name']}: {what}: {error}") from None


def _files_of(entries: Sequence[Mapping[str, Any]], folder: Path) -> list[Path]:
    """The image file that each image of a COCO file in ``folder`` means, in any form that `find_files` knows."""
    paths = []
    for entry in entries:
        name = entry["file_name"]
        stated = [Path(entry["path"])] if isinstance(entry.get("path"), str) else []
        candidates = [*stated, folder / name, folder / "images" / name, Path(name)]
        paths.append(next((path for path in candidates if path.is_file()), candidates[0]))
    absent = [index for index, path in enumerate(paths) if not path.is_file()]
    for place in (folder / "images", folder) if absent else ():
        found = find_files([entries[index]["file_name"] for index in absent], place)
        for index, path in zip(absent, found, strict=True):
            if path.is_file() and not paths[index].is_file():
                paths[index] = path
    return paths


def _size(path: Path, reading: Reading) -> tuple[int, int]:
    try:
        return read_header(path.read_bytes(), str(path), reading).shown(reading)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None


def exported_images(folder: Path) -> list[dict[str, Any]]:
    """What the record of an export in ``folder`` says of each image; empty if there is none.

    Raises `InputError` if the file is of another origin.
    """
    if not (file := folder / RECORD).is_file():
        return []
    content = load_json(file)
    images = content.get("images") if isinstance(content, dict) else None
    if not isinstance(images, list) or not all(isinstance(i, dict) and isinstance(i.get("file"), str) for i in images):
        raise InputError(f"{file} is not the record that review.py export= writes; restore it, or move it away")
    return images


def export_names(names: Sequence[str], shown: Sequence[bool]) -> list[str]:
    """Unique file names without folders, since annotation tools drop folders; they differ even without their endings.

    Images that browsers do not show get the ending of PNG. No image goes out under the name that another has in the
    store.
    """
    used: set[str] = set()
    exported = []
    parts = [PurePosixPath(name.replace("\\", "/")).parts for name in names]
    without_folder = {PurePosixPath(each[0]).stem.casefold() for each in parts if len(each) == 1}
    shared = 0  # folders that all names have in common
    while parts and all(len(each) > shared + 1 and each[shared] == parts[0][shared] for each in parts):
        shared += 1
    for each, is_as_it_is in zip(parts, shown, strict=True):
        path = PurePosixPath("__".join(each[shared:]).lstrip("/"))
        ending = path.suffix if is_as_it_is else ".png"
        stem, number = path.stem, 1
        others = without_folder if len(each) > 1 else ()
        while stem.casefold() in used or stem.casefold() in others:  # as file systems without case see it
            number += 1
            stem = f"{path.stem}_{number}"
        used.add(stem.casefold())
        exported.append(f"{stem}{ending}")
    return exported


def match(labels: Labels, store: StoreImages) -> tuple[dict[int, LabelledImage], list[str]]:
    """The images that came back by their index in the store, in pixels, and the names that are of none.

    An image with a hash is one of those with the same pixels. Among these, or among all, the name decides, whatever the
    tool made of it (`ImageNames`). Raises `InputError` if two are the same
    image, or if one is of another size.
    """
    by_hash: dict[str | None, list[int]] = defaultdict(list)
    exported = _Exported(store)
    names = ImageNames([(each.labels.name, each.labels.file) for each in store.images])
    for number, known in enumerate(each.labels for each in store.images):
        by_hash[known.pixels_sha256].append(number)
    knows_hashes = None not in by_hash
    found: dict[int, LabelledImage] = {}
    unknown = []
    for image in labels.images:
        alike = by_hash.get(image.pixels_sha256, []) if image.pixels_sha256 and knows_hashes else None
        index = alike[0] if alike and len(alike) == 1 else exported.find(image)
        if index is None or (alike is not None and index not in alike):
            index = names.find(image.name, alike)
        if index is None or _has_other_pixels(store.images[index], image.pixels_sha256):
            unknown.append(image.name)
            continue
        known = store.images[index].labels
        if index in found:
            raise InputError(f"{found[index].name} and {image.name} are both {known.name}; keep one of them")
        width, height = known.size()
        if None not in (image.width, image.height) and (image.width, image.height) != (width, height):
            sizes = f"{image.width} x {image.height} pixels, {known.name} has {width} x {height}"
            raise InputError(f"{image.name} is said to have {sizes}: export the labels at the size of the images")
        found[index] = image.in_pixels(width, height)
    return found, unknown


class _Exported:
    """Finds the image of a store that went out under exactly the name of one that came back."""

    def __init__(self, store: StoreImages) -> None:
        labels = [each.labels for each in store.images]
        self._names, self._files = (
            {getattr(each, key): n for n, each in enumerate(labels)} for key in ("name", "file")
        )
        self._stems = {without_ending(each.file): n for n, each in enumerate(labels)}

    def find(self, image: LabelledImage) -> int | None:
        """Its index; None if it is none, or one of two."""
        found = {table[image.name] for table in (self._names, self._files) if image.name in table}
        return next(iter(found)) if len(found) == 1 else None if found else self._stems.get(image.name)


def _has_other_pixels(image: StoreImage, digest: str | None) -> bool:
    """Whether an image is not the one of a hash; those of stores without hashes are read, if they are there."""
    known = image.labels.pixels_sha256
    try:
        known = pixels_sha256(read_image(image.path, image.reading)) if digest and not known else known
    except OSError:
        return False
    return None not in (digest, known) and digest != known
