"""From new images to counts: ``count.py``."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from omegaconf import DictConfig
from tqdm import tqdm

from boxtwin.config.compose import to_object
from boxtwin.config.schema import CountConfig
from boxtwin.counting.detectors import find_detectors, open_detectors
from boxtwin.counting.ensemble import Counter, ImageCount
from boxtwin.counting.files import (
    PAGE_FILE,
    QUALITY,
    SMALL_QUALITY,
    THUMBNAIL,
    CountedImage,
    coco_detections,
    draw,
    file_of,
    finish,
    geojson,
    not_written_here,
    picture_of,
    write_csv,
    write_json,
)
from boxtwin.counting.images import ImageList, Read, list_images, read_all
from boxtwin.counting.learnt import LearntImages, learnt_images, read_by
from boxtwin.counting.page import write_page
from boxtwin.counting.scenes import Scene
from boxtwin.counting.scored import Annotated, read_annotations, score
from boxtwin.counting.words import about, boxes_of_one, learnt_from, marks, promise, summary
from boxtwin.datasets.image_folder import COCO_FILE, CSV_FILE, PICTURES
from boxtwin.datasets.image_io import encode
from boxtwin.datasets.problems import some
from boxtwin.errors import InputError
from boxtwin.evaluation.overlays import shrunk
from boxtwin.files import atomic_path, check_target, lock_beside, write_bytes_atomically
from boxtwin.labels.formats import write_labels
from boxtwin.labels.store_images import read_store

log = logging.getLogger(__name__)

FORMATS = ("coco", "yolo", "voc")
COUNTS = Path("counts")  # folder of the results
LEAST_SCALE, LEAST_SHOWN = 0.001, 8  # below and beyond, nothing is left of an image, or a tile shows under 8 pixels
MOST_THUMBNAILS = 1000  # of a page: 20 MB


@dataclass
class _Work:
    """What is known after all images."""

    images: list[CountedImage] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    counts: dict[Path, ImageCount] = field(default_factory=dict)  # with all detections, of annotated images


def _check_scale(scale: float | None, side: int) -> None:
    most = side / LEAST_SHOWN
    if scale is not None and not LEAST_SCALE <= scale <= most:
        raise InputError(
            f"scale={scale} must lie between {LEAST_SCALE} and {most:g}; it is the number of pixels of the network's "
            "input per pixel of the image"
        )


def count_images(composed: DictConfig) -> Path:
    """Count the objects of images, and write the counts into a folder, which appears whole; returns the folder.

    Raises `InputError` before any work for what is wrong with settings, detector or annotations; after it for files
    that could not be read, when the counts of the others are written.
    """
    config = to_object(composed, CountConfig)
    formats = [config.formats] if isinstance(config.formats, str) else list(config.formats or ())
    if unknown := [name for name in formats if name not in FORMATS]:
        raise InputError(f"formats=[{','.join(map(str, unknown))}]: unknown; choose from {', '.join(FORMATS)}")
    images = list_images(config.images)
    folder = Path(config.folder) if config.folder is not None else COUNTS / _name_of(images, config.images)
    _check_folder(folder)
    store = config.tracking
    files = find_detectors(config.run, config.study, uri=store.uri, tracking=Path(store.folder))
    detectors = open_detectors(files, config.device, config.threads)
    counter, spec = Counter(detectors, config.scale), detectors[0].spec
    _check_scale(config.scale, spec.side)
    annotated = None
    if config.annotations is not None:
        settings = read_by(files[0])
        annotated = read_annotations(Path(config.annotations), images, spec.classes, spec.how_to_read, settings)
    log.info("%s", "\n".join(about(detectors)))
    learnt = learnt_images(files, spec.how_to_read)

    started = time.perf_counter()
    with lock_beside(folder, "writes"):
        _check_folder(folder)  # again: others may have written there since
        with atomic_path(folder) as temporary:
            temporary.mkdir()
            work = _count_all(images, counter, annotated, learnt, temporary, pictures=config.pictures)
            _write(temporary, work, counter, formats, title=f"Counts of {folder.name}" if config.pictures else None)
    seconds = time.perf_counter() - started
    log.info("%s", "\n".join(summary(work.images, counter, seconds)))
    if annotated is not None:
        log.info("%s", "\n".join(score(annotated, work.counts)))
    if warning := learnt_from(work.images):
        log.warning("%s", warning)
    written = [folder / CSV_FILE, *([folder / PAGE_FILE] if config.pictures else [])]
    log.info("written: %s", ", ".join(map(str, written)))
    if work.unreadable:
        listed = "".join(f"\n  {line}" for line in work.unreadable)
        raise InputError(f"{len(work.unreadable)} of {len(images.files)} files could not be counted:{listed}")
    return folder


def _check_folder(folder: Path) -> None:
    """Raise `InputError` if a folder holds anything but an earlier count."""
    check_target(folder, "folder")
    if others := not_written_here(folder):
        what = f"holds files that count.py did not write, or that were changed since: {some(others)}"
        raise InputError(f"{folder} {what}; give another folder: folder=FOLDER")


def _count_all(
    images: ImageList,
    counter: Counter,
    annotated: Annotated | None,
    learnt: LearntImages,
    folder: Path,
    *,
    pictures: bool,
) -> _Work:
    """Count in all images, and write what is written of each into ``folder``."""
    work, spec = _Work(), counter.detectors[0].spec
    for file, content in tqdm(read_all(images, spec), "counting", len(images.files), unit="image"):
        if isinstance(content, str):
            work.unreadable.append(content)
            continue
        for image in content:
            try:
                count = counter(image)
            except (InputError, OSError) as error:  # of a window of a scene
                work.unreadable.append(str(error))
                continue
            if annotated is not None and file.resolve() in annotated.samples:
                work.counts[file.resolve()] = count
            learnt.look_at(image)
            # What is not counted takes ten times the memory.
            count = replace(count, every=count.found)
            work.images.append(_written(image, count, counter, folder, pictures, len(work.images)))
            if isinstance(image.content, Scene):
                image.content.close()
    if not work.images:
        raise InputError(f"none of the {len(images.files)} files could be counted: {some(work.unreadable)}")
    work.images = learnt.marked(work.images)
    return work


def _name_of(images: ImageList, asked: object) -> str:
    """What the folder of the results is called: the folder of the images, their text file, or the one image."""
    if isinstance(asked, str) and asked.lower().endswith(".txt"):
        return Path(asked).stem
    if len(images.files) == 1 and not (isinstance(asked, str) and Path(asked).is_dir()):
        return images.files[0].stem
    return images.folder.resolve().name or "images"


def _written(
    image: Read, count: ImageCount, counter: Counter, folder: Path, pictures: bool, number: int
) -> CountedImage:
    """Write the picture and the GeoJSON of an image, the so-many-th from 0."""
    (width, height), picture, small, remark = image.size, None, b"", ""
    if image.page is None:
        try:
            places = geojson(image.path, counter.detectors[0].spec.how_to_read, count.found, counter.classes)
            if places is not None:
                write_json(folder / file_of(image.name, ".geojson"), places)
        except InputError as error:
            remark = str(error)
    if pictures:
        plain, several = picture_of(image, counter.detectors[0].spec.levels), len(counter.classes) > 1
        picture = f"{PICTURES}/{file_of(image.name, '.jpg')}"
        write_bytes_atomically(
            folder / picture, encode(draw(plain, width, count.found, several=several), "jpg", QUALITY)
        )
        if number < MOST_THUMBNAILS:
            small = encode(draw(shrunk(plain, THUMBNAIL), width, count.found, several=several), "jpg", SMALL_QUALITY)
    return CountedImage(image.name, image.path, image.page, width, height, count, picture, small, remark)


def _write(
    folder: Path,
    work: _Work,
    counter: Counter,
    formats: Sequence[str],
    *,
    title: str | None,
) -> None:
    """Write the tables, and the page if it has a title."""
    detectors, spec = counter.detectors, counter.detectors[0].spec
    write_csv(folder / CSV_FILE, work.images, spec.classes, ensemble=len(detectors) > 1)
    write_json(folder / COCO_FILE, coco_detections(work.images, spec.classes, spec.category_ids, spec.how_to_read))
    for name in formats:
        if name != "coco":
            classes = [each.strip() for each in spec.classes]  # as label files are read
            write_labels(name, [each.labels for each in read_store(folder).images], classes, folder / name)
    if title is not None:
        notes = [*about(detectors), promise(counter), *boxes_of_one(work.images, counter), *marks(work.images, counter)]
        write_page(
            folder / PAGE_FILE,
            work.images,
            title=title,
            classes=spec.classes,
            notes=notes,
            warning=learnt_from(work.images),
            unreadable=work.unreadable,
        )
    finish(folder)
