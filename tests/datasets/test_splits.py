import json
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import MakeCoco

from boxtwin.datasets.coco import read_coco
from boxtwin.datasets.sample import Dataset, Sample
from boxtwin.datasets.splits import SIDES, Split, describe, folds, make_split, nested_order, read_split
from boxtwin.errors import InputError


def make_dataset(scenes: Sequence[int]) -> Dataset:
    """A data set without files: so many images per scene."""
    names = [(f"S{scene:03d}", f"S{scene:03d}_{n}.png") for scene, size in enumerate(scenes) for n in range(size)]
    samples = tuple(
        Sample(
            name=name,
            path=Path(name),
            width=9,
            height=9,
            image_id=number,
            boxes=np.zeros((1, 4), dtype=np.float32),
            labels=np.zeros(1, dtype=np.int64),
            areas=np.ones(1),
            crowd=np.zeros(1, dtype=bool),
            group=group,
            sha256=f"hash of {name}",
        )
        for number, (group, name) in enumerate(names)
    )
    return Dataset("tiny", ("ship",), (1,), samples, "")


def groups(samples: Sequence[Sample]) -> set[str]:
    return {sample.group for sample in samples}


@pytest.mark.parametrize("seed", range(25))
def test_sides_are_exact_disjoint_and_nested(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scenes = rng.integers(1, 9, size=60).tolist()
    total = sum(scenes)
    test, val, pool = (int(total * share) for share in (0.4, 0.1, 0.35))
    numbers = {"val": val, "test": test, "train_pool": pool, "seed": seed}
    dataset = make_dataset(scenes)
    large = make_split(dataset, name="s1", train=pool, **numbers)
    small = make_split(dataset, name="s2", train=pool // 2, **numbers)
    assert (len(large.train), len(large.val), len(large.test)) == (pool, val, test)
    assert (len(small.train), len(small.val), len(small.test)) == (pool // 2, val, test)
    assert small.names["val"] == large.names["val"]
    assert small.names["test"] == large.names["test"]
    assert small.names["train"] == large.names["train"][: pool // 2]
    assert len({name for side in SIDES for name in large.names[side]}) == pool + val + test
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        assert not groups(large.side(one)) & groups(large.side(other))


def test_the_seed_decides_and_only_it() -> None:
    dataset = make_dataset([2] * 30)
    numbers: dict[str, Any] = {"name": "s", "train": 10, "val": 8, "test": 20, "train_pool": 16}
    first, again, other = (make_split(dataset, **numbers, seed=seed) for seed in (0, 0, 1))
    assert first.names == again.names
    assert first.digest == again.digest
    assert set(first.names["test"]) != set(other.names["test"])
    # The images of a side are shuffled: a nested smaller training set is no run of neighbours.
    assert first.names["train"] != sorted(first.names["train"])


@pytest.mark.parametrize("seed", range(10))
def test_a_set_that_just_suffices(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scenes = [20, *rng.multinomial(180 - 60, np.ones(60) / 60) + 1]
    split = make_split(make_dataset(scenes), name="s", train=80, val=20, test=100, train_pool=80, seed=seed)
    assert [len(split.side(side)) for side in SIDES] == [80, 20, 100]


def can_be_dealt(scenes: Sequence[int], needed: Sequence[int]) -> bool:
    """By trying every way of dealing the scenes to three sides."""
    for sides in product(range(3), repeat=len(scenes)):
        sums = [sum(size for size, at in zip(scenes, sides, strict=True) if at == side) for side in range(3)]
        if all(had >= want for had, want in zip(sums, needed, strict=True)):
            return True
    return False


@pytest.mark.parametrize("seed", range(60))
def test_whatever_can_be_dealt_is_dealt_and_nothing_else(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scenes = rng.integers(1, 7, size=6).tolist()
    cut = np.sort(rng.choice(np.arange(1, sum(scenes)), size=2, replace=False))
    test, val, pool = np.diff([0, *cut, sum(scenes)]).tolist()

    def make() -> Split:
        return make_split(make_dataset(scenes), name="s", train=pool, val=val, test=test, train_pool=pool, seed=seed)

    if can_be_dealt(scenes, (test, val, pool)):
        split = make()
        assert [len(split.side(side)) for side in SIDES] == [pool, val, test]
    else:
        with pytest.raises(InputError, match="cannot be dealt whole"):
            make()


def test_a_large_set_without_scenes_is_dealt_in_seconds() -> None:
    split = make_split(make_dataset([1] * 50_000), name="s", train=80, val=20, test=100, train_pool=80)
    assert len(split.train) == 80


@pytest.mark.parametrize(
    ("scenes", "numbers", "message"),
    [
        ([1] * 10, (5, 3, 3, 5), "needs 5 \\+ 3 \\+ 3 = 11 images.*has 10"),
        ([8, 1, 1], (3, 2, 3, 3), "cannot be dealt whole.*S000 \\(8 images\\)"),
        ([10], (3, 1, 1, 3), "1 scenes .* cannot be dealt"),
        ([1] * 10, (5, 2, 2, 4), "split.train=5 must lie between 1 and split.train_pool=4"),
        ([1] * 10, (0, 2, 2, 4), "split.train=0"),
        ([1] * 10, (4, 0, 2, 4), "split.val=0"),
        ([1] * 10, (4, 2, 0, 4), "split.test=0"),
    ],
)
def test_impossible_splits(scenes: list[int], numbers: tuple[int, int, int, int], message: str) -> None:
    train, val, test, pool = numbers
    with pytest.raises(InputError, match=message):
        make_split(make_dataset(scenes), name="s", train=train, val=val, test=test, train_pool=pool)


@pytest.mark.parametrize(("images", "test"), [(190, 90), (150, 50), (149, None), (60, None), (3, None)])
@pytest.mark.parametrize("train", [80, 40])
def test_numbers_that_are_proposed_for_a_small_set_can_be_split(images: int, test: int | None, train: int) -> None:
    """Where the test set stays half as large, it alone is made smaller, so that training sizes stay comparable."""
    sizes = {"train": train, "val": 20, "test": 100, "train_pool": 80}
    with pytest.raises(InputError, match=f"has {images}: .*split.file=FILE") as caught:
        make_split(make_dataset([1] * images), name="s", **sizes)
    proposed = {key: int(value) for key, value in re.findall(r"split\.(\w+)=(\d+)", str(caught.value))}
    assert proposed == {"test": test} if test else set(proposed) == set(sizes)
    split = make_split(make_dataset([1] * images), name="s", **(sizes | proposed))
    assert len(split.train) <= train


def test_saved_and_read_back(tmp_path: Path) -> None:
    dataset = make_dataset([3] * 20)
    split = make_split(dataset, name="s1", train=12, val=9, test=20, train_pool=18)
    split.save(tmp_path / "frozen" / "split.json")
    back = read_split(dataset, tmp_path / "frozen" / "split.json", "s1")
    assert back.names == split.names
    assert back.digest == split.digest
    assert [id(sample) for sample in back.train] == [id(sample) for sample in split.train]


def test_the_digest_is_of_images_and_sides_not_of_the_name() -> None:
    samples = make_dataset([1] * 5).samples
    split = Split("a", samples[:2], samples[2:3], samples[3:])
    assert Split("b", samples[:2], samples[2:3], samples[3:]).digest == split.digest
    assert Split("a", samples[:1], samples[1:3], samples[3:]).digest != split.digest
    assert Split("a", samples[:2], samples[2:3], samples[3:4]).digest != split.digest
    changed = make_dataset([1] * 5).samples
    object.__setattr__(changed[0], "sha256", "other pixels")
    assert Split("a", changed[:2], changed[2:3], changed[3:]).digest != split.digest


def test_a_scene_on_two_sides_is_refused() -> None:
    samples = make_dataset([3, 1]).samples
    with pytest.raises(InputError, match=r"1 scene\(s\) stand on more than one side: S000.*split\.group_by=null"):
        Split("a", samples[:1], samples[1:2], samples[3:])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not valid JSON"),
        ("[]", "has no split called s; it has no names at all"),
        ({"s1": {}, "s2": {}}, "has no split called s; it has s1, s2"),
        ({"s": []}, "needs three lists"),
        ({"s": {"train": [], "val": []}}, "needs three lists"),
        ({"s": {"train": "S000_0.png", "val": [], "test": []}}, "needs three lists"),
        (
            {"s": {"train": ["S000_0.png"], "val": ["S000_0.png"], "test": ["S001_0.png"]}},
            r"1 image\(s\) of s listed twice: S000_0",
        ),
        (
            {"s": {"train": ["x.png"], "val": ["S000_0.png"], "test": ["S001_0.png"]}},
            r"1 image\(s\) .*not in.*: x\.png",
        ),
        ({"s": {"train": [0], "val": [1], "test": [2]}}, "must list file names, but holds 0, 1, 2"),
        ({"s": {"train": [{}], "val": ["S000_0.png"], "test": ["S001_0.png"]}}, "file names, but holds {}"),
        ({"s": {"train": [], "val": ["S000_0.png"], "test": ["S001_0.png"]}}, "train of s must not be empty"),
        ({"s": {"train": ["S002_0.png"], "val": ["S000_0.png"], "test": []}}, "test of s must not be empty"),
        ({"s": {"train": ["S002_0.png"], "val": ["S000_0.png"], "test": ["S000_1.png"]}}, "more than one side: S000"),
    ],
)
def test_predefined_splits_that_are_wrong(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "split.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(InputError, match=message):
        read_split(make_dataset([2, 2, 2]), path, "s")


def test_a_predefined_split_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_split(make_dataset([1]), tmp_path / "none.json", "s")
    with pytest.raises(InputError, match="cannot be read"):
        read_split(make_dataset([1]), tmp_path, "s")


@pytest.mark.parametrize("seed", range(5))
def test_parts_of_a_drawn_split_are_nested_and_equal_to_smaller_splits(seed: int) -> None:
    dataset = make_dataset([3] * 30)
    numbers: dict[str, Any] = {"val": 9, "test": 20, "train_pool": 40, "seed": seed}
    whole = make_split(dataset, name="s1", train=40, **numbers)
    parts = {size: whole.first(size) for size in (1, 10, 20, 40)}
    for size, part in parts.items():
        assert part.name == f"s1n{size}"
        assert part.names["train"] == whole.names["train"][:size]
        assert (part.names["val"], part.names["test"]) == (whole.names["val"], whole.names["test"])
    assert parts[20].digest == make_split(dataset, name="s2", train=20, **numbers).digest
    assert parts[40].digest == whole.digest
    assert parts[10].digest != parts[20].digest
    for size in (0, -1, 41):
        with pytest.raises(InputError, match=f"split.train_size={size} must lie between 1 and 40"):
            whole.first(size)


def test_parts_of_a_predefined_split_go_through_its_smaller_splits(tmp_path: Path) -> None:
    dataset = make_dataset([1] * 40)
    names = [sample.name for sample in dataset.samples]
    path = tmp_path / "split.json"
    rest = {"val": names[30:33], "test": names[33:]}
    small, other = names[1:21:2], names[0:20:2]
    content = {
        "s1": {"train": names[:20], **rest},
        "s2": {"train": small, **rest},
        "s3": {"train": other, "val": names[33:], "test": names[30:33]},  # of other test images: not nested
        "about": "what this file is",
        "s4": {"train": [1, {}], "val": [], "test": None},
    }
    path.write_text(json.dumps(content))
    order = nested_order(path, "s1")
    assert sorted(order) == names[:20]
    assert order[:10] == nested_order(path, "s2")
    assert set(order[:10]) == set(small)
    assert order[:10] != small  # an alphabetical list is no order
    assert order != nested_order(path, "s1", seed=1)
    split = read_split(dataset, path, "s1")
    assert split.first(5, order).names["train"] == order[:5]
    assert split.first(5, order).names["test"] == rest["test"]


def test_a_frozen_split_keeps_its_order(tmp_path: Path) -> None:
    dataset = make_dataset([1] * 40)
    split = make_split(dataset, name="s1", train=12, val=9, test=12, train_pool=18)
    split.save(tmp_path / "split.json")
    assert nested_order(tmp_path / "split.json", "s1") == split.names["train"]


def test_description(make_coco: MakeCoco) -> None:
    built = make_coco(scenes=(3, 1), objects=(2, 0))
    built.content["annotations"][0]["iscrowd"] = 1
    assert describe(built.read(group_by="^([^_]+)_").samples) == "4 images of 2 scenes, 3 objects"


def test_the_predefined_split_of_the_real_chips(hrsid200: Path) -> None:
    dataset = read_coco(
        name="hrsid",
        images=hrsid200 / "JPEGImages",
        annotations=hrsid200 / "annotations" / "train_test2017.json",
        group_by="^([^_]+)_",
    )
    large, small = (read_split(dataset, hrsid200 / "splits" / "scene_disjoint.json", name) for name in ("s1", "s2"))
    assert [len(large.side(side)) for side in SIDES] == [80, 20, 100]
    assert [len(small.side(side)) for side in SIDES] == [40, 20, 100]
    assert set(small.names["train"]) < set(large.names["train"])
    assert (small.names["val"], small.names["test"]) == (large.names["val"], large.names["test"])
    # The same numbers by seed: 200 images in 94 scenes just suffice.
    for seed in range(5):
        made = make_split(dataset, name="s1", train=80, val=20, test=100, train_pool=80, seed=seed)
        assert [len(made.side(side)) for side in SIDES] == [80, 20, 100]


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_split_file_may_write_names_in_other_ways(tmp_path: Path, mark: bytes) -> None:
    dataset = make_dataset([1] * 4)
    names = ["sub/é0.png", "sub/é1.png", "sub/é2.png", "sub/é3.png"]
    samples = tuple(replace(one, name=name, group=name) for one, name in zip(dataset.samples, names, strict=True))
    file = tmp_path / "splits.json"
    told = ["sub\\é1.png", "sub/e\u03010.png", "./sub/é2.png", "sub/é3.png"]
    file.write_bytes(mark + json.dumps({"a": {"train": told[:2], "val": told[2:3], "test": told[3:]}}).encode())
    split = read_split(replace(dataset, samples=samples), file, "a")
    assert split.names == {"train": [names[1], names[0]], "val": [names[2]], "test": [names[3]]}
    assert split.first(1, nested_order(file, "a")).names["train"][0] in names[:2]
    file.write_text(json.dumps({"a": {"train": ["sub/é1.png", "sub\\é1.png"], "val": told[2:3], "test": told[3:]}}))
    with pytest.raises(InputError, match="listed twice"):
        read_split(replace(dataset, samples=samples), file, "a")


@pytest.mark.parametrize("seed", range(10))
def test_folds_hold_every_image_once_and_whole_scenes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    dataset, count = make_dataset(rng.integers(1, 9, size=20).tolist()), int(rng.integers(2, 7))
    parts = folds(dataset.samples, count)
    assert len(parts) == count
    assert sorted(s.name for part in parts for s in part) == sorted(s.name for s in dataset.samples)
    assert sum(len(groups(part)) for part in parts) == len(groups(dataset.samples))
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 8  # no more than the largest scene
    assert [[s.name for s in part] for part in folds(dataset.samples, count)] == [[s.name for s in p] for p in parts]


@pytest.mark.parametrize("place", range(20))
def test_validation_images_set_aside_have_objects_and_leave_some(place: int) -> None:
    samples = make_dataset([1] * 20).samples
    none = {name: getattr(samples[0], name)[:0] for name in ("boxes", "labels", "areas", "crowd")}
    other = next(k for k, part in enumerate(folds(samples, 5)) if samples[place] not in part)

    def with_objects(*kept: Sample) -> Split:
        return Split("a", tuple(one if one in kept else replace(one, **none) for one in samples), (), ())

    split = with_objects(samples[place], folds(samples, 5)[other][0]).with_validation()
    for side in (split.train, split.val):
        assert sum(len(sample.boxes) for sample in side) == 1
    assert sorted(sample.name for sample in (*split.train, *split.val)) == sorted(sample.name for sample in samples)
    with pytest.raises(InputError, match="in one of the five fifths"):
        with_objects(samples[place]).with_validation()
    whole = Split("a", samples, (), ()).with_validation()
    assert whole.val == folds(samples, 5)[0]  # as before this was asked


def test_copies_are_in_one_fold(make_coco: MakeCoco) -> None:
    coco = make_coco(images=8)
    (coco.images / "S05_0.png").write_bytes((coco.images / "S00_0.png").read_bytes())
    for parts in (folds(coco.read().samples, count) for count in (2, 7)):
        together = [{"S00_0.png", "S05_0.png"} & {s.name for s in part} for part in parts]
        assert sorted(map(len, together))[-1] == 2
    with pytest.raises(InputError, match="8 images of 7 scenes cannot be divided into 8 parts"):
        folds(coco.read().samples, 8)
    with pytest.raises(InputError, match="between 2 and 7 are possible"):
        folds(coco.read().samples, 1)
