"""A quick look at the data set of a run, before any folder is made: is it there, and does it have the split?"""

from __future__ import annotations

from functools import cache
from itertools import chain, islice
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from boxtwin.command_line import command_line, setting
from boxtwin.datasets.coco_json import fault_of_name, file_key, find_files, load_content
from boxtwin.datasets.problems import some
from boxtwin.datasets.splits import check_sizes, check_train_size, listed_sides
from boxtwin.errors import DataError, InputError

LABEL_FILES = (".xml", ".txt")  # of Pascal VOC and CVAT, and of YOLO
MOST_LOOKED_AT = 10_000  # files of a folder without annotations, which may be any folder


def check_places(config: DictConfig) -> None:
    """Raise `InputError` if the data set of a composed configuration is not there, or lacks the split.

    Reads no image.
    """
    if any(OmegaConf.is_missing(config.dataset, key) for key in ("name", "root", "images", "annotations")):
        return  # said elsewhere, with all that is missing
    node, split = config.dataset, config.split
    keys: tuple[str, ...] = ()
    if node.build is not None:
        if missing := sorted(OmegaConf.missing_keys(node.build)):
            raise InputError(
                f"{missing[0]} has no value: dataset.build belongs to simulated images; with a data set of your own "
                f"({node.name}), leave its settings out"
            )
        available = int(node.build.images)
    else:
        file, images = Path(node.root, node.annotations), Path(node.root, node.images)
        try:
            if not file.exists():
                raise InputError(f"{file} does not exist; {what_to_set(Path(node.root))}")
            keys = _keys(file, images, file.stat().st_mtime_ns if file.is_file() else 0)
        except InputError as error:
            raise DataError(str(error)) from None
        available = len(keys)
    if split.file is None:
        sizes = {side: int(split[side]) for side in ("train", "val", "test", "train_pool")}
        check_sizes(available, dataset=node.name, name=split.name, **sizes)
    elif (path := Path(split.file)).is_file():  # else said elsewhere
        listed = listed_sides(path, split.name, node.name, set(keys))
        check_train_size(path, split.name, len(listed["train"]), train=split.train, train_size=split.train_size)


def what_to_set(root: Path) -> str:
    """What to do about a data set without its COCO file, from what else is in its folder."""
    levels = (root.glob("/".join("*" * depth)) for depth in (1, 2, 3))
    near = list(islice(chain.from_iterable(levels), MOST_LOOKED_AT))
    if found := sorted(path.relative_to(root).as_posix() for path in near if path.suffix.lower() == ".json"):
        return f"set dataset.annotations, and dataset.images if need be: {root} holds {some(found)}"
    if any(path.suffix.lower() in LABEL_FILES for path in near):
        command = command_line("review.py", [setting("read", str(root)), "folder=CONVERTED"])
        return f"if {root} holds labels of another format, convert them: {command}"
    return "set dataset.root (and dataset.annotations) to your COCO data set"


@cache
def _keys(annotations: Path, images: Path, _changed: int) -> tuple[str, ...]:
    """The images in a COCO file by `file_key`; `InputError` if it is none, or no image is in the folder."""
    names = tuple(entry["file_name"] for entry in load_content(annotations)["images"])
    safe = [name for name in names if not fault_of_name(name)]
    what = "set dataset.images to the folder of the images, as seen from dataset.root"
    if not images.is_dir():
        raise InputError(f"there is no folder {images}; {what}")
    if safe and not any(path.is_file() for path in find_files(safe, images)):
        raise InputError(f"none of the {len(names)} images that {annotations} names is in {images}; {what}")
    return tuple(map(file_key, names))
