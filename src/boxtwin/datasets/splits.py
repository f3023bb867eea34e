"""Named splits: seeded, nested, scenes kept together, frozen to a file."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from boxtwin.datasets.coco_json import file_key, load_json
from boxtwin.datasets.inspection import nearly_same
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
        seen: dict[str, tuple[str, str]] = {}  # pixels: side and name
        shared = []
        for side in SIDES:
            for sample in self.side(side):
                other, name = seen.setdefault(sample.look.sha256, (side, sample.name)) if sample.look else (side, "")
                if other != side:
                    shared.append(f"{name} ({other}) = {sample.name} ({side})")
        if shared:
            raise InputError(
                f"split {self.name}: {len(shared)} image(s) stand on two sides, as the same pixels under two names: "
                f"{', '.join(shared[:10])}. A detector would be tested on what it has learnt; leave one of each out."
            )
        group_sides: dict[str, set[str]] = defaultdict(set)
        for side in SIDES:
            for sample in self.side(side):
                group_sides[sample.group].add(side)
        torn = sorted(group for group, sides in group_sides.items() if len(sides) > 1)
        if torn:
            raise InputError(
                f"split {self.name}: {len(torn)} scene(s) stand on more than one side: {', '.join(torn[:10])}. Images "
                "of one scene overlap, so they must be together; if yours do not, set split.group_by=null (or, for "
                "copies of one image by Roboflow, \"split.group_by='(.+)'\")."
            )

    def side(self, name: str) -> tuple[Sample, ...]:
        """The samples of ``train``, ``val`` or ``test``."""
        return {"train": self.train, "val": self.val, "test": self.test}[name]

    def near_copies(self) -> list[str]:
        """Pairs of images that look nearly the same and stand on two sides: ``a.png (train) ~ b.png (test)``."""
        looks = {side: [(one.name, one.look) for one in self.side(side) if one.look is not None] for side in SIDES}
        found = []
        for one, other in combinations(SIDES, 2):
            rest = next(side for side in SIDES if side not in (one, other))
            pairs = nearly_same(*([look for _, look in looks[side]] for side in (one, other, rest)))
            found += [f"{looks[one][i][0]} ({one}) ~ {looks[other][j][0]} ({other})" for i, j in pairs]
        return found

    @property
    def names(self) -> dict[str, list[str]]:
        """File names per side, as they are frozen to a file."""
        return {side: [sample.name for sample in self.side(side)] for side in SIDES}

    @property
    def digest(self) -> str:
        """Sha256 over names and image bytes per side; the name of the split does not count."""
        content = {side: [(sample.name, sample.sha256) for sample in self.side(side)] for side in SIDES}
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def first(self, size: int, order: Sequence[str] | None = None) -> Split:
        """The same split with its first ``size`` training images, in ``order`` of their names, or as they stand.

        What is left out is on no side. Validation and test images stay, and a smaller size is nested in a larger one.

        Raises:
            InputError: there are fewer training images.
        """
        if not 0 < size <= len(self.train):
            raise InputError(
                f"split.train_size={size} must lie between 1 and {len(self.train)}, the training images of {self.name}"
            )
        by_name = {file_key(sample.name): sample for sample in self.train}
        train = self.train if order is None else tuple(by_name[file_key(name)] for name in order)
        return Split(f"{self.name}n{size}", train[:size], self.val, self.test)

    def save(self, path: Path) -> None:
        """Freeze the split to a JSON file that `read_split` takes."""
        write_bytes_atomically(path, json.dumps({self.name: self.names}, indent=1).encode())


def read_split(dataset: Dataset, path: Path, name: str) -> Split:
    """Take a predefined split: ``{"s1": {"train": [file names], "val": […], "test": […]}, …}``.

    Raises:
        InputError: the file, the name or one of the images is not there, an image is listed twice, or a scene stands on
            two sides.
    """
    content = load_json(path, setting="split.file=")
    if not isinstance(content, dict) or name not in content:
        there = ", ".join(content) if isinstance(content, dict) else "no names at all"
        raise InputError(f"split.file={path} has no split called {name}; it has {there}")
    sides = content[name]
    if not isinstance(sides, dict) or set(sides) != set(SIDES) or not all(isinstance(v, list) for v in sides.values()):
        raise InputError(f"split.file={path}: {name} needs three lists of file names: train, val and test")
    empty = [side for side in SIDES if not sides[side]]
    if empty:
        raise InputError(f"split.file={path}: {' and '.join(empty)} of {name} must not be empty")
    odd = [image for side in SIDES for image in sides[side] if not isinstance(image, str)]
    if odd:
        raise InputError(f"split.file={path}: {name} must list file names, but holds {', '.join(map(repr, odd[:10]))}")
    sides = {side: [file_key(image) for image in sides[side]] for side in SIDES}
    listed = Counter(image for side in SIDES for image in sides[side])
    twice = [image for image, times in listed.items() if times > 1]
    if twice:
        raise InputError(f"split.file={path}: {len(twice)} image(s) of {name} listed twice: {some(twice, 10)}")
    by_name = {file_key(sample.name): sample for sample in dataset.samples}
    unknown = [image for image in listed if image not in by_name]
    if unknown:
        raise InputError(
            f"split.file={path}: {len(unknown)} image(s) of {name} are not in data set {dataset.name}: "
            + some(unknown, 10)
        )
    train, val, test = (tuple(by_name[image] for image in sides[side]) for side in SIDES)
    return Split(name, train, val, test)


def nested_order(path: Path, name: str, seed: int = 0) -> list[str]:
    """The order in which the training images of a predefined split are taken when not all are.

    1. Those of smaller splits of the file that are nested in it, with the same validation and test images, come first:
       the first 40 of s1 are s2's.
    2. Among those, as they are listed. A list in alphabetical order says nothing but the names, in which neighbours are
       of one scene: it is shuffled by the seed, alike in every split of the file.

    The file must be one that `read_split` has taken.
    """
    content = load_json(path, setting="split.file=")
    whole = content[name]
    nested = [
        set(other["train"])
        for other in content.values()
        if isinstance(other, dict)
        and all(isinstance(other.get(side), list) and all(isinstance(i, str) for i in other[side]) for side in SIDES)
        and all(set(other[side]) == set(whole[side]) for side in ("val", "test"))
        and set(other["train"]) < set(whole["train"])
    ]
    nested.sort(key=len)
    order: list[str] = list(whole["train"])
    if order == sorted(order):
        order.sort(key=lambda image: hashlib.sha256(f"{seed}/{image}".encode()).hexdigest())
    return sorted(order, key=lambda image: next((n for n, there in enumerate(nested) if image in there), len(nested)))


def make_split(
    dataset: Dataset, *, name: str, train: int, val: int, test: int, train_pool: int, seed: int = 0
) -> Split:
    """Split a data set by a seed, scenes kept together.

    Scenes are dealt to test, validation and a pool for training in the proportions test : val : train_pool, and the
    images of each side are shuffled. The training images are the first ``train`` of the pool: splits that share every
    number but ``train`` are nested in one another and share validation and test images.

    Raises:
        InputError: there are too few images, or the scenes cannot be dealt so that every side gets enough.
    """
    if not 0 < train <= train_pool:
        raise InputError(f"split {name}: split.train={train} must lie between 1 and split.train_pool={train_pool}")
    if val < 1 or test < 1:
        raise InputError(f"split {name}: split.val={val} and split.test={test} must be at least 1")
    needed = {"test": test, "val": val, "train": train_pool}
    total = sum(needed.values())
    if len(dataset.samples) < total:
        raise InputError(
            f"split {name} needs {train_pool} + {val} + {test} = {total} images (training pool, validation, test), "
            f"but data set {dataset.name} has {len(dataset.samples)}; choose smaller numbers"
        )
    random = np.random.default_rng(seed)
    members: dict[str, list[Sample]] = defaultdict(list)
    for sample in dataset.samples:
        members[sample.group].append(sample)
    groups = sorted(members)
    random.shuffle(groups)
    sizes = {group: len(members[group]) for group in groups}
    sides = _deal(sizes, needed) or _deal_at_once(sizes, needed)
    if sides is None:
        largest = Counter({group: len(samples) for group, samples in members.items()}).most_common(3)
        raise InputError(
            f"split {name}: the {len(groups)} scenes of data set {dataset.name} cannot be dealt whole so that "
            f"test gets {test}, validation {val} and training {train_pool} images; the largest scenes are "
            + ", ".join(f"{group} ({size} images)" for group, size in largest)
            + ". Choose smaller numbers, or another split.group_by."
        )
    chosen: dict[str, tuple[Sample, ...]] = {}
    for side, count in (("test", test), ("val", val), ("train", train)):
        pool = [sample for group in sorted(sides[side]) for sample in members[group]]
        order = random.permutation(len(pool))
        chosen[side] = tuple(pool[position] for position in order[:count])
    return Split(name, chosen["train"], chosen["val"], chosen["test"])


def _deal(sizes: Mapping[str, int], needed: Mapping[str, int]) -> dict[str, list[str]] | None:
    """Deal whole groups to sides: each side gets what it needs at least, and its share of the rest as near as can be.

    Subset sums are found exactly, one side after the other. What one side takes may leave the next without a choice:
    None then, and `_deal_at_once` has to look.
    """
    left = dict(sizes)
    sides: dict[str, list[str]] = {}
    outstanding = sum(needed.values())
    for side, need in needed.items():
        available = sum(left.values())
        outstanding -= need
        target = available * need / (need + outstanding)
        taken = _subset(left, at_least=need, at_most=available - outstanding, near=target)
        if taken is None:
            return None
        sides[side] = taken
        gone = set(taken)
        left = {group: size for group, size in left.items() if group not in gone}
    return sides


def _subset(sizes: Mapping[str, int], *, at_least: int, at_most: int, near: float) -> list[str] | None:
    """Groups whose sizes sum up to a number in [at_least, at_most] as near to ``near`` as possible; None if none do."""
    if at_least > at_most:
        return None
    best = min(max(math.ceil(near - 0.5), at_least), at_most)
    groups = list(sizes)
    if best <= len(groups) and set(sizes.values()) == {1}:
        return groups[:best]  # what the search below finds as well, but in a large set without scenes only in minutes
    last = np.full(at_most + 1, -1)  # sum -> group added last; -1: not reached
    reached = np.zeros(at_most + 1, dtype=bool)
    reached[0] = True
    for index, size in enumerate(sizes.values()):
        if reached[best]:
            break
        fresh = size + np.flatnonzero(reached[: max(at_most + 1 - size, 0)] & ~reached[size:])
        last[fresh] = index
        reached[fresh] = True
    fitting = at_least + np.flatnonzero(reached[at_least:])
    if len(fitting) == 0:
        return None
    total = int(min(fitting, key=lambda reachable: (abs(reachable - near), reachable)))
    taken: list[str] = []
    while total > 0:
        taken.append(groups[last[total]])
        total -= sizes[taken[-1]]
    return taken


def _deal_at_once(sizes: Mapping[str, int], needed: Mapping[str, int]) -> dict[str, list[str]] | None:
    """Deal whole groups to three sides by looking at every pair of sums of the first two; None if there is no way.

    Takes (images of side one) x (images of side two) steps per group, so it is for sets too tight for `_deal`, and
    those are small: where images are plenty, one side after the other succeeds.
    """
    total = sum(sizes.values())
    first, second, third = needed.values()
    spare = total - first - second - third
    reached = np.zeros((first + spare + 1, second + spare + 1), dtype=bool)
    reached[0, 0] = True
    last = np.full(reached.shape, -1)  # sums -> 2 * group added last + side it went to
    groups = list(sizes)
    for index, group in enumerate(groups):
        before = reached.copy()
        for side in (0, 1):
            shift = (sizes[group], 0) if side == 0 else (0, sizes[group])
            rows, columns = (max(length - by, 0) for length, by in zip(reached.shape, shift, strict=True))
            fresh = np.zeros_like(reached)
            fresh[shift[0] :, shift[1] :] = before[:rows, :columns]
            fresh &= ~reached
            last[fresh] = 2 * index + side
            reached |= fresh
    fitting = [
        (a, b) for a, b in np.argwhere(reached).tolist() if a >= first and b >= second and total - a - b >= third
    ]
    if not fitting:
        return None
    share = total / (first + second + third)
    at = min(fitting, key=lambda sums: (abs(sums[0] - first * share) + abs(sums[1] - second * share), sums))
    taken: tuple[list[str], list[str]] = ([], [])
    while at != (0, 0):
        index, side = divmod(int(last[at]), 2)
        taken[side].append(groups[index])
        size = sizes[groups[index]]
        at = (at[0] - size, at[1]) if side == 0 else (at[0], at[1] - size)
    rest = set(groups) - {*taken[0], *taken[1]}
    return dict(zip(needed, (*taken, [group for group in groups if group in rest]), strict=True))


def describe(samples: Sequence[Sample]) -> str:
    """``40 images of 21 scenes, 153 objects``: for logs and error messages."""
    scenes = len({sample.group for sample in samples})
    return f"{len(samples)} images of {scenes} scenes, {sum(len(sample.object_boxes) for sample in samples)} objects"


def class_counts(split: Split, label: int) -> dict[str, tuple[int, int]]:
    """Images with a class, and its objects in them, by side; crowds are left out."""
    counts = {}
    for side in SIDES:
        objects = [int(np.count_nonzero(sample.object_labels == label)) for sample in split.side(side)]
        counts[side] = (sum(number > 0 for number in objects), sum(objects))
    return counts


def describe_classes(split: Split, classes: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """A line for each class that occurs, and a warning for each that has objects on one side and none on another."""
    lines, warnings = [], []
    for label, name in enumerate(classes):
        counts = class_counts(split, label)
        missing = [side for side in SIDES if not counts[side][1]]
        if len(missing) == len(SIDES):
            continue
        told = ", ".join(f"{side} {objects} objects in {images} images" for side, (images, objects) in counts.items())
        lines.append(f"class {name}: {told}")
        if missing:
            there = " and ".join(f"{counts[side][1]} in {side}" for side in SIDES if counts[side][1])
            has = f"class {name} has objects on some sides only: {there}, none in {' and '.join(missing)}"
            warnings.append(has + _consequence(missing))
    if len(lines) > MOST_LISTED:
        lines[MOST_LISTED:] = [f"and {len(lines) - MOST_LISTED} more classes"]
    return lines, warnings


def _consequence(missing: list[str]) -> str:
    if "train" in missing:
        return "; it cannot be learnt, and its missed objects lower AP and counts"
    if "test" in missing:
        return "; there are no test figures of it"
    return "; its count threshold will be that of all classes"
