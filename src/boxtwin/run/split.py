"""The split of a run: made, or read from a file, cut to the training images asked for, and checked."""

from __future__ import annotations

import logging
from pathlib import Path

from boxtwin.config import identity
from boxtwin.config.schema import BoxtwinConfig
from boxtwin.datasets.levels import check_depth
from boxtwin.datasets.sample import Dataset
from boxtwin.datasets.splits import (
    SIDES,
    Split,
    check_train_size,
    describe_classes,
    make_split,
    nested_order,
    read_split,
)
from boxtwin.errors import InputError
from boxtwin.run.checks import warn_of_object_sizes

log = logging.getLogger(__name__)


def load_split(config: BoxtwinConfig, dataset: Dataset) -> Split:
    """The split that a configuration names, checked: raises `InputError` if it cannot be used, warns of what is odd."""
    split = _read_or_make(config, dataset)
    for side in SIDES:
        if not sum(len(sample.object_boxes) for sample in split.side(side)):
            raise InputError(
                f"split {split.name}: no object in any of the {len(split.side(side))} {side} images; choose another "
                "split.seed or larger numbers, or name the images in split.file=FILE"
            )
    check_depth([sample for side in SIDES for sample in split.side(side)])
    if copies := split.near_copies():
        pairs = f"{len(copies)} pair(s) of images on different sides look nearly the same, such as"
        cure = "remove one image of each pair, or results may be too good"
        log.warning("split %s: %s %s; %s", split.name, pairs, "; ".join(copies[:3]), cure)
    lines, warnings = describe_classes(split, dataset.classes)
    for line in lines if len(dataset.classes) > 1 else ():
        log.info("%s", line)
    for warning in warnings:
        log.warning("split %s: %s", split.name, warning)
    warn_of_object_sizes(config, split)
    return split


def _read_or_make(config: BoxtwinConfig, dataset: Dataset) -> Split:
    node, size, order = config.split, identity.train_size(config), None
    if node.file is None:
        sizes = {"train": node.train, "val": node.val, "test": node.test, "train_pool": node.train_pool}
        split = make_split(dataset, name=node.name, seed=node.seed, **sizes)
    else:
        split = read_split(dataset, Path(node.file), node.name)
        found = len(split.train)
        check_train_size(Path(node.file), node.name, found, train=node.train, train_size=node.train_size)
        order = None if size is None else nested_order(Path(node.file), node.name, node.seed)
    return split if size is None else split.first(size, order)
