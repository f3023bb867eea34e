"""Labels out to people in the format of an annotation tool, and back as a new version; data sets of other formats."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from omegaconf import DictConfig

from boxtwin.command_line import command_line, quoted, relative, setting
from boxtwin.config.compose import to_object
from boxtwin.config.schema import ReviewConfig
from boxtwin.datasets.coco_json import load_json
from boxtwin.errors import InputError
from boxtwin.labels.convert import convert
from boxtwin.labels.exchange import export_store, new_version, read_back, summary
from boxtwin.labels.formats import get_format
from boxtwin.labels.store_images import read_store

log = logging.getLogger(__name__)

SPLITS = ("s1", "s2")  # the options in conf/split


def export_labels(composed: DictConfig) -> Path:
    """Write the labels and images of a store in the format of ``export``; the folder."""
    config = to_object(composed, ReviewConfig)
    name = str(config.export)
    get_format(name)
    if config.store is None:
        raise InputError("export= needs store=: the folder of a variation store, or what count.py wrote")
    store = read_store(Path(config.store))
    for remark in store.remarks:
        log.warning("%s: %s", store.file, remark)
    folder = Path(config.folder or f"{config.store.rstrip('/').removesuffix('.json')}-{name}")
    export_store(store, name, folder)
    unconfirmed = sum(image.labels.confirmed is False for image in store.images)
    lines = [f"{len(store.images)} images with {sum(len(image.labels.boxes) for image in store.images)} boxes"]
    lines += [f"{unconfirmed} of the images are marked as not confirmed"] * bool(unconfirmed)
    if name != "coco" and (crowds := sum(box.crowd for image in store.images for box in image.labels.boxes)):
        lines.append(f"{crowds} crowds (iscrowd 1) are single objects there, and crowds again if they come back")
    log.info("%s\n%s: %s", "; ".join(lines), name, folder)
    if name == "label_studio":
        log.info("let Label Studio serve the images: %s", serve_command(folder))
    return folder


def serve_command(folder: Path) -> str:
    """The command that starts Label Studio so that it finds the images of an export."""
    root = folder.absolute().parent
    serving = {"SERVING_ENABLED": "true", "DOCUMENT_ROOT": str(root)}
    variables = {f"LABEL_STUDIO_LOCAL_FILES_{name}": value for name, value in serving.items()}
    return command_line("label-studio", ["start"], **variables)


def read_labels(composed: DictConfig) -> Path:
    """Read what came back from a tool; the label file, or without a store the folder of a COCO data set."""
    config = to_object(composed, ReviewConfig)
    paths = [Path(str(each)) for each in (config.read if isinstance(config.read, list) else [config.read])]
    path = paths[0]
    if config.store is None:
        if config.folder is None:
            raise InputError("read= needs store=, whose labels come back, or folder=, where a COCO data set is written")
        split = None if config.split.file is None else Path(config.split.file)
        described, remarks = convert(paths, Path(config.folder), split, new_classes=config.new_classes)
        for remark in remarks:
            log.warning("%s", remark)
        # Joined images are compared with those of the first set: under its name, which only its runs know.
        name = Path(config.folder).absolute().name if split is None else "NAME"
        settings: dict[str, str | list[str]] = {"dataset": "coco", "dataset.name": name, "dataset.root": config.folder}
        if split is not None:
            names = list(load_json(split, setting="split.file="))
            if len(names) == 1:  # that of a part of a split, such as s1n10, is no option of conf/split
                settings["split" if names[0] in SPLITS else "split.name"] = names[0]
            settings |= {"split.file": str(Path(config.folder) / split.name)}
        log.info("%s\nuse it with: %s", described, use_with(settings))
        return Path(config.folder)
    if len(paths) != 1:
        raise InputError("read= takes one file or folder with store=, and several without it")
    store = read_store(Path(config.store))
    content, remarks = read_back(path, store)
    for remark in remarks:
        log.warning("%s: %s", path, remark)
    folder = Path(config.folder) if config.folder else path.absolute().parent
    file, is_new = new_version(content, folder)
    found = "written" if is_new else "there already, with the same content"
    log.info("%s\n%s: %s", summary(content), file, found)
    if all("variation" in image.entry for image in store.images):
        log.info("use it with: %s", use_with({"labels": "manual", "labels.file": relative(file)}))
    elif not content["info"]["confirmed"]:
        log.warning(
            "no image is confirmed, so that none can be added to a data set: docs/labels.md says how to mark them"
        )
    else:
        log.info("add it to a data set with: %s", add_command(file))
    return file


def add_command(file: Path) -> str:
    """The command that adds corrected images to a data set."""
    words = {"read": ["DATASET", relative(file)], "folder": "LARGER", "split.file": "multirun/STUDY/RUN/split.json"}
    return command_line("review.py", [setting(key, value) for key, value in words.items()])


def use_with(settings: Mapping[str, str | list[str]]) -> str:
    """Settings as they are typed on a command line."""
    return " ".join(quoted(setting(key, value)) for key, value in settings.items())
