"""Labels of a store out to an annotation tool, and back as a new version of the store's labels."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from boxtwin.command_line import relative
from boxtwin.datasets.coco import coco_content
from boxtwin.datasets.image_names import without_ending
from boxtwin.datasets.problems import some
from boxtwin.errors import InputError
from boxtwin.files import atomic_path, lock_beside, write_bytes_atomically
from boxtwin.labels.changes import KINDS, Change, changes, inside, tally
from boxtwin.labels.formats import Format, format_of, get_format, label_studio
from boxtwin.labels.formats.browser import export_image
from boxtwin.labels.formats.labelled_image import LabelledBox, LabelledImage, Labels, unknown_classes
from boxtwin.labels.store_images import RECORD, StoreImage, StoreImages, check_new, exported_images, match

OF_A_VERSION = ("confirmed", "minutes", "changes", "removed")  # marks of an image that a new version states anew


def export_store(store: StoreImages, name: str, folder: Path) -> None:
    """Write the labels of a store in the format ``name``, and its images, into a new ``folder``; all or nothing."""
    written = get_format(name)
    check_new(folder)
    with atomic_path(folder, new_folder=True) as temporary:
        images, record = [], []
        for each in tqdm(store.images, desc=f"exporting to {name}", unit="image", disable=len(store.images) < 100):
            labels = each.labels
            exported = export_image(each.path, each.reading, temporary / "images" / labels.file)
            _check_pixels(each, exported.pixels_sha256, (exported.width, exported.height))
            labels = replace(labels, width=exported.width, height=exported.height, pixels_sha256=exported.pixels_sha256)
            images.append(labels)
            about = {"name": labels.name, "file": labels.file, "is_variation": each.is_variation}
            record.append({**about, **exported._asdict()})
        if name == "label_studio":
            label_studio.write(temporary, images, list(store.category_ids), served_as=folder.name)
        else:
            written.write(temporary, images, list(store.category_ids))
        content = {"format": name, "store": str(store.file), "images": record}
        write_bytes_atomically(temporary / RECORD, json.dumps(content, indent=1).encode())


def _check_pixels(image: StoreImage, digest: str, size: tuple[int, int]) -> None:
    labels = image.labels
    if labels.pixels_sha256 not in (None, digest):
        raise InputError(f"{image.path} has other pixels than those that were labelled; make the store's images again")
    if None not in (labels.width, labels.height) and (labels.width, labels.height) != size:
        sizes = "{} x {} pixels, its labels are of {} x {}".format(*size, labels.width, labels.height)
        raise InputError(f"{image.path} has {sizes}")


class _Reviewed(NamedTuple):
    """An image of the store after a person has seen it, or as it was; ``entry`` is what is added to its own."""

    entry: dict[str, Any]
    changes: list[Change]
    outside: int = 0  # boxes that were left out


def read_back(path: Path, store: StoreImages) -> tuple[dict[str, Any], list[str]]:
    """The content of a label file with what came back, and remarks.

    It holds all images of the store. Those that came back are confirmed, unless they are marked, or the store has
    refused them and they have no mark. Raises `InputError` where half of the images or more are of another store, for
    classes that the store does not have, and as `match` does.
    """
    name = format_of(path)
    labels = _with_hashes(get_format(name).read(path), path)
    found, unknown = match(labels, store)
    if 2 * len(unknown) >= len(labels.images):
        what = f"{len(unknown)} of its {len(labels.images)} images are none of {store.file.parent.name}'s"
        raise InputError(f"read={path}: {what}, such as {some(unknown)}. Is it the export of another store?")
    if foreign := unknown_classes(found.values(), store.category_ids.keys()):
        cure = f"no class of the store, which has {', '.join(store.category_ids)}. Correct the name in the tool"
        raise InputError(f"read={path}: {some(foreign)}: {cure}")
    reviewed = [_review(each, found.get(index), get_format(name)) for index, each in enumerate(store.images)]
    remarks = list(labels.remarks)
    if unknown:
        remarks.append(f"{len(unknown)} images are none of the store's and are left out: {some(unknown)}")
    if lost := [each.labels.name for n, each in enumerate(store.images) if each.labels.confirmed and n not in found]:
        remarks.append(
            f"{len(lost)} images that {store.file.name} confirms did not come back and are not confirmed in the new "
            f"version: {some(lost)}"
        )
    if outside := sum(each.outside for each in reviewed):
        remarks.append(f"{outside} boxes lie outside their images and are left out")
    return _content(store, reviewed) | {"info": _info(path, name, store, reviewed)}, remarks


def _review(image: StoreImage, returned: LabelledImage | None, form: Format) -> _Reviewed:
    before = image.labels
    if returned is None:
        return _Reviewed({"confirmed": False}, [Change(box, box) for box in before.boxes])
    cut = [(box, inside(box.box, *before.size())) for box in returned.boxes]
    after = [box._replace(box=part) for box, part in cut if part is not None]
    changed = changes(before.boxes, after, form.rounding + 1e-6, before.size(), form.as_written)
    confirmed = before.refused is None if returned.confirmed is None else returned.confirmed
    entry: dict[str, Any] = {"confirmed": confirmed, "changes": tally(changed)}
    if returned.minutes is not None:
        entry["minutes"] = returned.minutes
    if not confirmed and returned.refused is not None:
        entry["refused"] = returned.refused
    return _Reviewed(entry, changed, len(cut) - len(after))


def _content(store: StoreImages, reviewed: Sequence[_Reviewed]) -> dict[str, Any]:
    """COCO, with each box's change, the box before a move, and the boxes that were removed."""
    images: list[dict[str, Any]] = []
    annotations: list[tuple[int, int, list[int | float], int | float, bool]] = []
    marks: list[dict[str, Any]] = []
    for number, (image, (entry, changed, _)) in enumerate(zip(store.images, reviewed, strict=True), start=1):
        width, height = image.labels.size()
        own = {key: value for key, value in image.entry.items() if key not in OF_A_VERSION}
        removed = [change.before for change in changed if change.box is None and change.before is not None]
        lost = [{"bbox": _xywh(box), "category_id": store.category_ids[box.name]} for box in removed]
        more = {"removed": lost} if lost else {}
        own["path"] = Path(relative(image.path.absolute())).as_posix()  # for the next export of this version
        images.append({**own, "id": number, "width": width, "height": height, **entry, **more})
        for change in changed:
            if change.box is None:
                continue
            box = _xywh(change.box)
            area = change.box.area or box[2] * box[3]
            annotations.append((number, store.category_ids[change.box.name], box, area, change.box.crowd))
            was = {"before": _xywh(change.before)} if change.kind == "moved" and change.before else {}
            marks.append({"change": change.kind, **was} if "changes" in entry else {})
    content = coco_content(images, annotations, ((number, name) for name, number in store.category_ids.items()))
    for annotation, mark in zip(content["annotations"], marks, strict=True):
        annotation |= mark
    return content


def _info(path: Path, name: str, store: StoreImages, reviewed: Sequence[_Reviewed]) -> dict[str, Any]:
    """What is said of the whole file."""
    confirmed = [each for each in reviewed if each.entry["confirmed"]]
    minutes = [each.entry["minutes"] for each in confirmed if "minutes" in each.entry]
    return {
        "description": f"labels of {store.file.parent.name}, read from {path.name}",
        "format": name,
        "confirmed": len(confirmed),
        "changes": tally([change for each in confirmed for change in each.changes]),
        "minutes": round(math.fsum(minutes), 4) if minutes else None,
    }


def _with_hashes(labels: Labels, path: Path) -> Labels:
    """Labels with the hashes of the images that were exported, where the record lies beside what came back."""
    entries = exported_images(path if path.is_dir() else path.parent)
    whole = {image["file"]: image.get("pixels_sha256") for image in entries}
    stems = {without_ending(name): digest for name, digest in whole.items()}
    bases = [Path(image.name).name for image in labels.images]
    known = [whole.get(base, stems.get(without_ending(base))) for base in bases]
    images = [
        replace(image, pixels_sha256=image.pixels_sha256 or digest)
        for image, digest in zip(labels.images, known, strict=True)
    ]
    return labels._replace(images=images)


def _xywh(box: LabelledBox) -> list[int | float]:
    x1, y1, x2, y2 = box.box
    return [round(value, 9) for value in (x1, y1, x2 - x1, y2 - y1)]  # without the noise of the difference


def new_version(content: dict[str, Any], folder: Path) -> tuple[Path, bool]:
    """Write a label file under the first free of ``labels-1.json``, ``labels-2.json``, …; its path, and if it is new.

    A version that is there with the same content is not written again.
    """
    encoded = json.dumps(content, indent=1).encode()
    number = 1
    with lock_beside(folder, "writes labels into"):
        while (file := folder / f"labels-{number}.json").exists():
            if file.read_bytes() == encoded:
                return file, False
            number += 1
        write_bytes_atomically(file, encoded)
    return file, True


def summary(content: dict[str, Any]) -> str:
    """What a person changed, in one line."""
    info = content["info"]
    counts = ", ".join(f"{info['changes'][kind]} {kind}" for kind in KINDS)
    minutes = "" if info["minutes"] is None else f"; {info['minutes']:.1f} minutes of work"
    return f"{info['confirmed']} of {len(content['images'])} images confirmed; boxes {counts}{minutes}"
