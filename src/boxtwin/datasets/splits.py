"""Named splits: seeded, nested, scenes kept together, saved to a file."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from boxtwin.datasets.coco_json import file_key, load_json
from boxtwin.datasets.inspection import join_groups, nearly_same
from boxtwin.datasets.problems import some
from boxtwin.datasets.sample import Dataset, Sample
from boxtwin.errors import InputError
from boxtwin.files import write_bytes_atomically

SIDES = ("train", "val", "test")
MOST_LISTED = 30  # classes with a line of their own


@dataclass(frozen=True)
class Split:
    """Which real images are trained on, validated on and tested on."""

    name: str
    train: tuple[Sample, ...]
    val: tuple[Sample, ...]
    test: tuple[Sample, ...]

    def __post_init__(self) -> None:
        first_of: dict[str, tuple[str, str]] = {}  # side and name of an image, by the hash of its pixels
        group_sides: dict[str, set[str]] = defaultdict(set)
        shared = []
        for side in SIDES:
            for sample in self.side(side):
                group_sides[sample.group].add(side)
                if sample.signature is not None:
                    other, name = first_of.setdefault(sample.signature.sha256, (side, sample.name))
                    if other != side:
                        shared.append(f"{name} ({other}) = {sample.name} ({side})")
        if shared:
            what = f"{len(shared)} image(s) stand on two sides, as the same pixels under two names: {some(shared, 10)}"
            raise InputError(
                f"split {self.name}: {what}. Leave one of each out: test images must be new to a detector."
            )
        if torn := sorted(group for group, sides in group_sides.items() if len(sides) > 1):
            what = f"{len(torn)} scene(s) stand on more than one side: {some(torn, 10)}. Images of one scene overlap"
            cure = "split.group_by=null (or, for copies of one image by Roboflow, \"split.group_by='(.+)'\")"
            raise InputError(f"split {self.name}: {what}; if yours do not, set {cure}.")

    def side(self, name: str) -> tuple[Sample, ...]:
        """The samples of ``train``, ``val`` or ``test``."""
        return {"train": self.train, "val": self.val, "test": self.test}[name]

    def near_copies(self) -> list[str]:
        """Pairs of images that look nearly the same and stand on two sides: ``a.png (train) ~ b.png (test)``."""
        signed = {side: [(one.name, one.signature) for one in self.side(side) if one.signature] for side in SIDES}
        copies = []
        for one, other in combinations(SIDES, 2):
            rest = next(side for side in SIDES if side not in (one, other))
            pairs = nearly_same(*([signature for _, signature in signed[side]] for side in (one, other, rest)))
            copies += [f"{signed[one][i][0]} ({one}) ~ {signed[other][j][0]} ({other})" for i, j in pairs]
        return copies

    def held_out_among(self, samples: Sequence[Sample]) -> list[str]:
        """Validation and test images that equal or nearly equal one of other images: ``a.png (nearly b.png)``."""
        held_out = [*self.val, *self.test]
        files = {sample.sha256 for sample in samples}
        pixels = {sample.signature.sha256 for sample in samples if sample.signature}
        ours, theirs = ([(s.name, s.signature) for s in side if s.signature] for side in (held_out, samples))
        pairs = nearly_same([signature for _, signature in ours], [signature for _, signature in theirs])
        return [
            *(s.name for s in held_out if s.sha256 in files or (s.signature and s.signature.sha256 in pixels)),
            *(f"{ours[i][0]} (nearly {theirs[j][0]})" for i, j in pairs),
        ]

    @property
    def names(self) -> dict[str, list[str]]:
        """File names per side, as they are saved to a file."""
        return {side: [sample.name for sample in self.side(side)] for side in SIDES}

    @property
    def digest(self) -> str:
        """Sha256 over names and image bytes per side; the name of the split does not count."""
        content = {side: [(sample.name, sample.sha256) for sample in self.side(side)] for side in SIDES}
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def with_validation(self) -> Split:
        """A fifth of the training images set aside for validation, scenes kept together, objects on both sides.

        `InputError` if there are fewer than five scenes, or only one of the fifths holds objects.
        """
        try:
            parts = folds(self.train, 5)
        except InputError as error:
            raise InputError(f"split {self.name}: a fifth of its training images is for validation: {error}") from None
        for index, validation in enumerate(parts):
            rest = tuple(sample for part in (*parts[:index], *parts[index + 1 :]) for sample in part)
            if all(any(len(sample.object_boxes) for sample in side) for side in (validation, rest)):
                return Split(self.name, rest, validation, self.test)
        raise InputError(
            f"split {self.name}: a fifth of the {len(self.train)} training images is set aside to choose thresholds "
            "on, and all objects lie in one of the five fifths; label more images with objects"
        )

    def first(self, size: int, order: Sequence[str] | None = None) -> Split:
        """The split with its first ``size`` training images, in ``order`` of their names, or as they are listed."""
        if not 0 < size <= len(self.train):
            most = f"{len(self.train)}, the number of training images of {self.name}"
            raise InputError(f"split.train_size={size} must lie between 1 and {most}")
        by_name = {file_key(sample.name): sample for sample in self.train}
        train = self.train if order is None else tuple(by_name[file_key(name)] for name in order)
        return Split(f"{self.name}n{size}", train[:size], self.val, self.test)

    def save(self, path: Path) -> None:
        """Save the split to a JSON file that `read_split` takes."""
        write_bytes_atomically(path, json.dumps({self.name: self.names}, indent=1).encode())


def read_split(dataset: Dataset, path: Path, name: str) -> Split:
    """Take a predefined split from a file (`listed_sides`).

    `InputError` if the file, name or an image is not there, an image is listed twice, or a scene stands on two sides.
    """
    by_name = {file_key(sample.name): sample for sample in dataset.samples}
    sides = listed_sides(path, name, dataset.name, by_name)
    return Split(name, *(tuple(by_name[image] for image in sides[side]) for side in SIDES))


def listed_sides(path: Path, name: str, dataset: str, known: Collection[str]) -> dict[str, list[str]]:
    """The images of a split in a file, by side: ``{"s1": {"train": [file names], "val": […], "test": […]}, …}``.

    ``known`` are the images of the data set by `file_key`; without any, those of the file are taken as they are.
    `InputError` if the file, name or an image is not there, or an image is listed twice.
    """
    content = load_json(path, setting="split.file=")
    start = f"split.file={path}"
    if not isinstance(content, dict) or name not in content:
        known = ", ".join(content) if isinstance(content, dict) else "no names at all"
        raise InputError(f"{start} has no split called {name}; it has {known}")
    sides = content[name]
    if not isinstance(sides, dict) or set(sides) != set(SIDES) or not all(isinstance(v, list) for v in sides.values()):
        raise InputError(f"{start}: {name} needs three lists of file names: train, val and test")
    if empty := [side for side in SIDES if not sides[side]]:
        raise InputError(f"{start}: {' and '.join(empty)} of {name} must not be empty")
    if odd := [image for side in SIDES for image in sides[side] if not isinstance(image, str)]:
        raise InputError(f"{start}: {name} must list file names, but holds {', '.join(map(repr, odd[:10]))}")
    sides = {side: [file_key(image) for image in sides[side]] for side in SIDES}
    listed = Counter(image for side in SIDES for image in sides[side])
    if twice := [image for image, times in listed.items() if times > 1]:
        raise InputError(f"{start}: {len(twice)} image(s) of {name} listed twice: {some(twice, 10)}")
    if known and (unknown := [image for image in listed if image not in known]):
        what = f"{len(unknown)} image(s) of {name} are not in data set {dataset}"
        raise InputError(f"{start}: {what}: {some(unknown, 10)}")
    return sides


def check_train_size(path: Path, name: str, listed: int, *, train: int, train_size: int | None) -> None:
    """Raise `InputError` if a part is taken of the training images in a file, and their number is not as stated."""
    if train_size is not None and train != listed:
        raise InputError(
            f"split.file={path}: split {name} has {listed} training images. To use only some of them "
            f"(split.train_size={train_size}), also set split.train={listed} (it is {train} now)"
        )


def nested_order(path: Path, name: str, seed: int = 0) -> list[str]:
    """The order in which the training images of a predefined split are taken when not all are.

    Those of smaller splits of the file that are nested in it, with the same validation and test images, come first: the
    first 40 of s1 are s2's. Among those, as they are listed; but a list in alphabetical order, which puts images of one
    scene side by side, is shuffled by the seed, alike in every split. `read_split` must have taken the file.
    """
    content = load_json(path, setting="split.file=")
    whole = content[name]
    nested = []
    for other in content.values():
        sides: list[Any] = [other.get(side) if isinstance(other, dict) else None for side in SIDES]
        if all(isinstance(side, list) and all(isinstance(image, str) for image in side) for side in sides):
            train, *others = (set(side) for side in sides)
            if train < set(whole["train"]) and others == [set(whole["val"]), set(whole["test"])]:
                nested.append(train)
    nested.sort(key=len)
    order: list[str] = list(whole["train"])
    if order == sorted(order):
        order.sort(key=lambda image: hashlib.sha256(f"{seed}/{image}".encode()).hexdigest())
    return sorted(order, key=lambda image: next((n for n, split in enumerate(nested) if image in split), len(nested)))


def check_sizes(images: int, *, dataset: str, name: str, train: int, val: int, test: int, train_pool: int) -> None:
    """Raise `InputError` if the numbers of a split contradict each other, or a data set has too few images for them."""
    if not 0 < train <= train_pool:
        raise InputError(f"split {name}: split.train={train} must lie between 1 and split.train_pool={train_pool}")
    if val < 1 or test < 1:
        raise InputError(f"split {name}: split.val={val} and split.test={test} must be at least 1")
    total = train_pool + val + test
    if images >= total:
        return
    what = f"{train_pool} + {val} + {test} = {total} images (split.train_pool, split.val, split.test)"
    left = images - train_pool - val
    if left >= test / 2:
        advice = f"set split.test={left}, or smaller split.train and split.train_pool, or split.val"
    elif images >= 3:
        val, test = max(1, val * images // total), max(1, test * images // total)
        pool = images - val - test
        numbers = {"train": min(train, pool), "train_pool": pool, "val": val, "test": test}
        advice = "set smaller numbers, such as " + " ".join(f"split.{key}={value}" for key, value in numbers.items())
    else:
        advice = "label more"
    raise InputError(
        f"split {name} needs {what}, but data set {dataset} has {images}: {advice}; or name the images of each side in "
        "a file: split.file=FILE (docs/your-data.md)"
    )


def make_split(
    dataset: Dataset, *, name: str, train: int, val: int, test: int, train_pool: int, seed: int = 0
) -> Split:
    """Split a data set by a seed, scenes kept together.

    Scenes are assigned to test, validation and a pool for training in the proportions test : val : train_pool, and the
    images of each side are shuffled. The training images are the first ``train`` of the pool: splits that share every
    other number are nested in one another and share validation and test images.
    `InputError` if there are too few images, or scenes cannot be assigned so that every side gets enough.
    """
    check_sizes(
        len(dataset.samples), dataset=dataset.name, name=name, train=train, val=val, test=test, train_pool=train_pool
    )
    needed = {"test": test, "val": val, "train": train_pool}
    random = np.random.default_rng(seed)
    members: dict[str, list[Sample]] = defaultdict(list)
    for sample in dataset.samples:
        members[sample.group].append(sample)
    groups = sorted(members)
    random.shuffle(groups)
    sizes = {group: len(members[group]) for group in groups}
    if (sides := _assign(sizes, needed)) is None:
        largest = ", ".join(f"{group} ({size} images)" for group, size in Counter(sizes).most_common(3))
        aim = f"test gets {test}, validation {val} and training {train_pool} images"
        what = f"the {len(groups)} scenes of data set {dataset.name} cannot be dealt whole so that {aim}"
        cure = "Choose smaller split.test, split.val or split.train_pool, another split.group_by, or split.file=FILE."
        raise InputError(f"split {name}: {what}; the largest scenes are {largest}. {cure}")
    chosen = []
    for side, count in (("test", test), ("val", val), ("train", train)):
        pool = [sample for group in sorted(sides[side]) for sample in members[group]]
        chosen.append(tuple(pool[position] for position in random.permutation(len(pool))[:count]))
    return Split(name, *reversed(chosen))


def _assign(sizes: Mapping[str, int], needed: Mapping[str, int]) -> dict[str, list[str]] | None:
    """Assign whole groups to sides: each gets at least what it needs, and its share of the rest as near as can be.

    One side after the other; what one takes may leave the next without a choice. Then the first two of three sides are
    assigned at once, which takes (images of side one) x (images of side two) steps per group: sets so tight are small.
    """
    left, outstanding = dict(sizes), sum(needed.values())
    sides: dict[str, list[str]] = {}
    for side, need in needed.items():
        taken = _choose(left, [need], [sum(left.values()) * need / outstanding], rest=outstanding - need)
        if taken is None:
            break
        outstanding -= need
        sides[side], gone = taken[0], set(taken[0])
        left = {group: size for group, size in left.items() if group not in gone}
    else:
        return sides
    share = sum(sizes.values()) / sum(needed.values())
    *first, last = needed.values()
    if (taken := _choose(sizes, first, [need * share for need in first], rest=last)) is None:
        return None
    assigned = {group for groups in taken for group in groups}
    return dict(zip(needed, (*taken, [group for group in sizes if group not in assigned]), strict=True))


def _choose(
    sizes: Mapping[str, int], at_least: Sequence[int], near: Sequence[float], *, rest: int
) -> list[list[str]] | None:
    """Groups for each of some sides, so that their sums are at least ``at_least`` and as near to ``near`` as possible.

    The sums that can be reached are found exactly. None if none of them leaves ``rest`` for the others.
    """
    groups, total = list(sizes), sum(sizes.values())
    limits = [total - rest - sum(at_least) + need for need in at_least]
    if min(limits) < min(at_least):
        return None
    goal = min(max(math.ceil(near[0] - 0.5), at_least[0]), limits[0]) if len(near) == 1 else None
    if goal is not None and goal <= len(groups) and set(sizes.values()) == {1}:
        return [groups[:goal]]  # as the search finds, but in minutes for a large set without scenes
    reached = np.zeros([limit + 1 for limit in limits], dtype=bool)
    reached[(0,) * len(limits)] = True
    last = np.full(reached.shape, -1)  # sums -> number of sides * group added last + side it went to
    for index, size in enumerate(sizes.values()):
        if goal is not None and reached[goal]:
            break
        before = reached.copy()
        for side, limit in enumerate(limits):
            fresh = np.zeros_like(reached)
            np.moveaxis(fresh, side, 0)[size:] = np.moveaxis(before, side, 0)[: max(limit + 1 - size, 0)]
            fresh &= ~reached
            last[fresh] = len(limits) * index + side
            reached |= fresh
    fitting = np.argwhere(reached)
    fitting = fitting[(fitting >= at_least).all(axis=1) & (total - fitting.sum(axis=1) >= rest)]
    if len(fitting) == 0:
        return None
    sums = fitting[np.abs(fitting - near).sum(axis=1).argmin()].tolist()
    taken: list[list[str]] = [[] for _ in limits]
    while any(sums):
        index, side = divmod(int(last[tuple(sums)]), len(limits))
        taken[side].append(groups[index])
        sums[side] -= sizes[groups[index]]
    return taken


def scenes_of(samples: Sequence[Sample], group_by: str | None) -> set[str]:
    """Groups of images, and the scenes that ``group_by`` finds in their file names.

    The two differ where images with equal pixels have joined several scenes into one group.
    """
    found = [re.search(group_by, sample.name) for sample in samples] if group_by else []
    return ({sample.group for sample in samples} | {scene[1] for scene in found if scene and scene[1]}) - {""}


def folds(samples: Sequence[Sample], count: int) -> list[tuple[Sample, ...]]:
    """Divide images into parts with about as many each; scenes, and images that look the same, are kept together.

    `InputError` if there are fewer than ``count`` scenes.
    """
    signed = [(sample.name, sample.signature) for sample in samples if sample.signature]
    by_pixels: dict[str, list[str]] = defaultdict(list)
    for name, signature in signed:
        by_pixels[signature.sha256].append(name)
    signatures = [signature for _, signature in signed]
    alike = [[signed[i][0], signed[j][0]] for i, j in nearly_same(signatures, signatures)]
    scenes = {sample.name: sample.group or sample.name for sample in samples}
    members: dict[str, list[Sample]] = defaultdict(list)
    for sample, group in zip(samples, join_groups(scenes, [*by_pixels.values(), *alike]).values(), strict=True):
        members[group].append(sample)
    if not 2 <= count <= len(members):
        raise InputError(
            f"{len(samples)} images of {len(members)} scenes cannot be divided into {count} parts with whole scenes: "
            + (f"between 2 and {len(members)} are possible" if len(members) > 1 else "label images of more scenes")
        )
    names = sorted(members)
    np.random.default_rng(0).shuffle(names)
    parts: list[list[Sample]] = [[] for _ in range(count)]
    for name in sorted(
        names, key=lambda name: -len(members[name])
    ):  # the largest scenes first, while all can be evened
        min(parts, key=len).extend(members[name])
    return [tuple(part) for part in parts]


def describe(samples: Sequence[Sample]) -> str:
    """``40 images of 21 scenes, 153 objects``: for logs and error messages."""
    scenes = len({sample.group for sample in samples})
    return f"{len(samples)} images of {scenes} scenes, {sum(len(sample.object_boxes) for sample in samples)} objects"


def describe_classes(split: Split, classes: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """A line for each class that occurs, and a warning for each that has objects on one side and none on another."""
    lines, warnings = [], []
    for label, name in enumerate(classes):
        counts = {side: [np.count_nonzero(one.object_labels == label) for one in split.side(side)] for side in SIDES}
        missing = [side for side in SIDES if not any(counts[side])]
        if len(missing) == len(SIDES):
            continue
        words = [f"{side} {sum(n)} objects in {np.count_nonzero(n)} images" for side, n in counts.items()]
        lines.append(f"class {name}: {', '.join(words)}")
        if missing:
            present = " and ".join(f"{sum(counts[side])} in {side}" for side in SIDES if side not in missing)
            consequence = "its count threshold will be that of all classes"
            if "train" in missing:
                consequence = "it cannot be learnt, and its missed objects lower AP and counts"
            elif "test" in missing:
                consequence = "there are no test metrics of it"
            sides = f"{present}, none in {' and '.join(missing)}"
            warnings.append(f"class {name} has objects on some sides only: {sides}; {consequence}")
    if len(lines) > MOST_LISTED:
        lines[MOST_LISTED:] = [f"and {len(lines) - MOST_LISTED} more classes"]
    return lines, warnings
