"""A quick look at the data set of a run, before any folder is made: is it there, and does it have the split?"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from boxtwin.datasets.coco_json import fault_of_name, file_key, find_files, load_content
from boxtwin.datasets.splits import check_sizes, check_train_size, listed_sides
from boxtwin.errors import DataError, InputError


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
                f"dataset.build.{missing[0]} has no value: dataset.build belongs to simulated images; with "
                f"dataset={node.name} of your own, leave its settings out"
            )
        available = int(node.build.images)
    else:
        file, images = Path(node.root, node.annotations), Path(node.root, node.images)
        try:
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
