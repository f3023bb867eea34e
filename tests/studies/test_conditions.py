"""Which runs are compared with which: by everything that defines them, never by name alone."""

import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from boxtwin.config.arguments import quote_numbers
from boxtwin.config.compose import register
from boxtwin.config.identity import _DEFINING, _NOT_DEFINING, condition_of, flat_params, setting_hash
from boxtwin.config.schema import BoxtwinConfig
from boxtwin.studies.comparison import Contrast, ResampledMetrics, contrasts
from boxtwin.studies.condition_values import differences, flatten
from boxtwin.studies.conditions import Row, condition_table
from boxtwin.studies.report.summary import notes, verdict
from boxtwin.studies.report.tables import text_table
from boxtwin.studies.runs import runs_in

ROOT = Path(__file__).parents[2]
DATA: dict[str, Any] = {
    "data": {"train": "a" * 64, "val": "b" * 64, "test": "c" * 64},
    "recipe": 1,
    "store": "0123456789ab",
}
CPU = {"device": "cpu", "precision": "32-true", "commit": "4437dbc" * 5, "clean": True}


@pytest.fixture(scope="module")
def composed() -> Iterator[DictConfig]:
    register()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        typed = ("generator=repeat", "detector=yolov3_nano", "variations=10", "split=s2", "data=data")
        yield compose("config", quote_numbers(typed, ROOT / "conf" / "variations"))


def write_record(
    folder: Path,
    config: DictConfig,
    seeds: Iterable[int],
    *,
    data: dict[str, Any] = DATA,
    weights: str | None = None,
    provenance: dict[str, Any] = CPU,
    ap50: float = 0.5,
    content_data: dict[str, Any] | None = None,
    **changes: Any,
) -> None:
    """What runs with these settings leave, with made-up results."""
    for seed in seeds:
        own = merged(config, seed=seed)
        params = flat_params(own)
        params["steps"] = params["steps"] or 600  # which a run has computed from its epochs
        content = {
            "study": "s",
            "identity": f"{len(list(folder.iterdir()))}",
            "setting": setting_hash(own),
            "overrides": "",
            "params": params,
            "metrics": {"test/map": ap50 / 2, "test/map_50": ap50 + seed / 100, "test/count_mae": 1.0}
            | {"data/real_images": float(own.split.train), "time/total": 60.0},
            "data": content_data
            or {"dataset_sha256": "d" * 64, "store": "repeat-0123456789ab" if params["variations"] else None},
            "counts": [{"image_id": 1, "file_name": "1.png", "true": 1, "found": 1}],
            "condition": condition_of(own, data, weights=weights),
            "provenance": provenance,
        } | changes
        run = folder / f"run{len(list(folder.iterdir()))}"
        run.mkdir()
        (run / "result.json").write_text(json.dumps(content))


def compared(folder: Path) -> tuple[list[Row], list[Contrast], str]:
    """The table of the runs in a folder: rows, comparisons, and all that is printed of them."""
    runs = runs_in(folder)
    rows = condition_table(runs)
    found = contrasts(rows, ResampledMetrics({}))
    return rows, found, "\n".join((*text_table(rows), *verdict(rows, found), *notes(runs, rows)))


def merged(config: DictConfig, **changes: Any) -> DictConfig:
    result = OmegaConf.merge(config, changes)
    assert isinstance(result, DictConfig)
    return result


def plain(config: DictConfig) -> DictConfig:
    return merged(config, variations={"per_image": 0})


def leaves(schema: type[Any] = BoxtwinConfig, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting that the schema declares, with its type."""
    hints = get_type_hints(schema)
    for field in fields(schema):
        kind, name = hints[field.name], f"{prefix}{field.name}"
        if isinstance(kind, type) and is_dataclass(kind):
            yield from leaves(kind, f"{name}.")
        elif name not in ("generator", "dataset.build", "pretraining.model"):
            yield name, kind


def another(kind: Any, value: Any, rng: random.Random) -> Any:
    """Another value of the same type."""
    kinds = [part for part in get_args(kind) if part is not type(None)] or [kind]
    kind = kinds[0]
    if isinstance(kind, type) and issubclass(kind, Enum):
        now = value.value if isinstance(value, Enum) else value
        return rng.choice([member.value for member in kind if member.value != now])
    if kind is bool:
        return not value
    if kind is int:
        return (0 if value is None else int(value)) + rng.randint(1, 5)
    if kind is float:
        return (0.0 if value is None else float(value)) + rng.choice([0.125, 0.25])
    return f"{value or 'x'}{rng.randint(1, 9)}"


SETTINGS = [
    (name, kind) for name, kind in leaves() if name not in ("seed", "variations.per_image", "split.train_size")
] + [("generator.name", str), ("generator.strength", float | None), ("dataset.build.images", int)]


def defines(name: str) -> bool:
    group, _, rest = name.partition(".")
    # Without a pre-training, its other settings define nothing.
    return name == "pretraining.name" or (group in _DEFINING and rest not in _NOT_DEFINING.get(group, ()))


@pytest.mark.parametrize("number", range(200))
def test_runs_that_differ_in_a_setting_are_never_paired_unseen(
    number: int, composed: DictConfig, tmp_path: Path
) -> None:
    rng = random.Random(number)
    # Every setting has its turn; half of the pairs differ in a second one.
    chosen = list(dict.fromkeys([SETTINGS[number % len(SETTINGS)], *rng.sample(SETTINGS, rng.randint(0, 1))]))
    other = OmegaConf.create(OmegaConf.to_container(composed))  # without the schema's types
    assert isinstance(other, DictConfig)
    for name, kind in chosen:
        OmegaConf.update(other, name, another(kind, OmegaConf.select(other, name), rng), force_add=True)
    write_record(tmp_path, plain(composed), (0, 1))
    write_record(tmp_path, composed, (0, 1))
    write_record(tmp_path, other, (2, 3))
    rows, found, text = compared(tmp_path)
    defining = {name for name, _ in chosen if defines(name)}
    mixed = [row for row in rows if row.variations]
    if not defining:
        assert [row.seeds for row in mixed] == [(0, 1, 2, 3)]
        return
    # 1. They are two conditions, and the table shows every setting in which they differ, or the option of its group.
    assert sorted(row.seeds for row in mixed) == [(0, 1), (2, 3)]
    groups = {name.split(".")[0] for name in defining if name.endswith(".name")}
    for name in defining:
        group = name.split(".")[0]
        assert name in text or (group in groups and (f"{group}=" in text or str(other[group].name) in text)), text
    # 2. The second is held against none unless it differs in nothing but what is mixed in.
    asked_about = all(name.split(".")[0] in ("variations", "generator", "labels") for name in defining)
    held = {contrast.new.seeds for contrast in found if contrast.kind == "variations"}
    assert held == ({(0, 1), (2, 3)} if asked_about else {(0, 1)})


@pytest.mark.parametrize("key", ["data.val", "data.test", "data.train", "recipe", "levels"])
def test_runs_on_other_data_or_by_another_recipe_are_not_paired(key: str, composed: DictConfig, tmp_path: Path) -> None:
    data = {**DATA, "data": dict(DATA["data"])}
    group, _, side = key.partition(".")
    if side:
        data["data"][side] = "e" * 64
    else:
        data[group] = 2
    write_record(tmp_path, plain(composed), (0, 1))
    write_record(tmp_path, composed, (0, 1), data=data)
    _, found, text = compared(tmp_path)
    assert found == []
    assert key in text


def test_labels_of_the_test_images_that_changed_are_not_paired_though_the_names_are_the_same(
    composed: DictConfig, tmp_path: Path
) -> None:
    changed = {**DATA, "data": DATA["data"] | {"test": "e" * 64}}
    write_record(tmp_path, plain(composed), (0, 1))
    write_record(tmp_path, plain(merged(composed, split={"name": "s1", "train": 80})), (0,), data=changed)
    rows, found, text = compared(tmp_path)
    assert (len(rows), found) == (2, [])
    assert "data.test" in text


@pytest.mark.parametrize(
    ("images", "typed", "names"),
    [
        # Real images, what was typed, and the hash of the training images and of the test images of each condition.
        ((40, 50), ("", ""), ["s2 (40 real images)", "s2 (50 real images)"]),
        (
            (40, 40),
            ("dataset.annotations=/data/old.json", "dataset.annotations=/data/checked.json"),
            ["s2 dataset.annotations=checked.json", "s2 dataset.annotations=old.json"],
        ),
        ((40, 40), ("dataset.root=a", "dataset.root=more/b"), ["s2 dataset.root=a", "s2 dataset.root=b"]),
        ((40, 40), ("", "dataset.annotations=checked.json"), ["s2", "s2 dataset.annotations=checked.json"]),
        ((40, 40), ("", ""), ["s2 data.train=aaaaaaaa", "s2 data.train=eeeeeeee"]),
        ((40, 40), ("dataset.root=a", "dataset.root=a"), ["s2 data.train=aaaaaaaa", "s2 data.train=eeeeeeee"]),
    ],
)
def test_conditions_on_other_data_are_named_in_plain_terms(
    images: tuple[int, int], typed: tuple[str, str], names: list[str], composed: DictConfig, tmp_path: Path
) -> None:
    for size, overrides, digit in zip(images, typed, "ae", strict=True):
        data = {**DATA, "data": DATA["data"] | {"train": digit * 64}}
        # The number is that of the images used: a file of splits may hold more than the settings say.
        metrics = {"test/map": 0.2, "test/map_50": 0.5, "test/count_mae": 1.0, "data/real_images": size}
        write_record(tmp_path, plain(composed), (0, 1), data=data, overrides=overrides, metrics=metrics)
        write_record(tmp_path, composed, (0, 1), data=data, overrides=overrides, metrics=metrics)
    rows, found, _ = compared(tmp_path)
    assert sorted({row.split for row in rows}) == names
    assert len({row.name for row in rows}) == 4
    assert [each.kind for each in found].count("variations") == 2


def test_intervals_of_means_hold_values_that_are_possible_alone(composed: DictConfig, tmp_path: Path) -> None:
    for seed, (ap, mae) in enumerate([(0.9, 0.1), (1.0, 3.0)]):
        metrics = {"test/map": ap, "test/map_50": ap, "test/count_mae": mae, "test/count_bias": -mae}
        write_record(tmp_path, plain(composed), (seed,), metrics=metrics)
    ((row,), _, _) = compared(tmp_path)
    assert row.estimates["map"].interval == pytest.approx((0.315, 1.0), abs=0.01)
    assert row.estimates["count_mae"].interval == pytest.approx((0.0, 20.0), abs=0.1)
    assert row.estimates["count_bias"].interval == pytest.approx((-20.0, 16.9), abs=0.1)


def test_versions_of_test_labels_go_by_their_names(composed: DictConfig, tmp_path: Path) -> None:
    for overrides, digit in (("dataset.annotations=first.json", "c"), ("dataset.annotations=checked.json", "e")):
        data = {**DATA, "data": DATA["data"] | {"test": digit * 64}}
        write_record(tmp_path, plain(composed), (0, 1), data=data, overrides=overrides)
    rows, found, text = compared(tmp_path)
    assert [row.name for row in rows] == ["dataset.annotations=first.json, s2", "dataset.annotations=checked.json, s2"]
    assert found == []
    assert "data.test" not in text
    assert "Conditions that differ in dataset.annotations are not compared" in text
    # The same name for other labels tells nothing.
    for run in sorted(tmp_path.iterdir()):
        content = json.loads((run / "result.json").read_text())
        (run / "result.json").write_text(json.dumps(content | {"overrides": "dataset.annotations=a.json"}))
    assert [row.name for row in compared(tmp_path)[0]] == ["data.test=cccccccc, s2", "data.test=eeeeeeee, s2"]


@pytest.mark.parametrize("other", [None, "e" * 64])
def test_splits_of_the_same_images_are_named(other: str | None, composed: DictConfig, tmp_path: Path) -> None:
    data = {**DATA, "data": DATA["data"] | ({} if other is None else {"train": other})}
    write_record(tmp_path, plain(merged(composed, split={"name": "s1"})), (0,))
    write_record(tmp_path, plain(merged(composed, split={"name": "s2"})), (0,), data=data)
    _, _, text = compared(tmp_path)
    assert ("s1 and s2 are splits of the same images" in text) == (other is None)


def test_initial_weights_keep_conditions_apart_and_are_named(composed: DictConfig, tmp_path: Path) -> None:
    write_record(tmp_path, plain(composed), (0, 1))
    write_record(tmp_path, composed, (0, 1), weights="f" * 64)
    _, found, text = compared(tmp_path)
    assert found == []
    assert "detector.weights (null there, ffffffff here)" in text


def test_a_swept_setting_is_an_axis_with_one_baseline(composed: DictConfig, tmp_path: Path) -> None:
    write_record(tmp_path, plain(composed), (0, 1))
    for share in (0.25, 0.5):
        write_record(tmp_path, merged(composed, variations={"synthetic_fraction": share}), (0, 1))
    rows, found, text = compared(tmp_path)
    assert [row.generator for row in rows] == [
        "none",
        "repeat variations.synthetic_fraction=0.25",
        "repeat variations.synthetic_fraction=0.5",
    ]
    assert [contrast.new.first.generator for contrast in found] == ["repeat", "repeat"]
    assert "synthetic_fraction=0.25" in text


def test_other_labels_of_the_same_variations_are_an_axis(composed: DictConfig, tmp_path: Path) -> None:
    write_record(tmp_path, plain(composed), (0,))
    for store in ("repeat-aaaaaaaaaaaa", "repeat-bbbbbbbbbbbb"):
        write_record(tmp_path, composed, (0,), data={**DATA, "store": store})
    rows, found, _ = compared(tmp_path)
    assert [row.generator for row in rows] == ["none", "repeat store=aaaaaaaaaaaa", "repeat store=bbbbbbbbbbbb"]
    assert len(found) == 2


def test_versions_of_labels_are_conditions_by_the_names_of_their_files(composed: DictConfig, tmp_path: Path) -> None:
    for version in (1, 2):
        typed = ["labels=manual", f"labels.file='my labels/labels-{version}.json'"]
        data = {**DATA, "store": f"repeat-{version}aaaaaaaaaaa"}
        write_record(tmp_path, composed, (0,), data=data, overrides=typed)
    rows, _, _ = compared(tmp_path)
    assert [row.generator for row in rows] == [f"repeat labels.file=labels-{version}.json" for version in (1, 2)]


def test_a_pair_has_one_kind_of_device_and_one_precision(composed: DictConfig, tmp_path: Path) -> None:
    gpu = CPU | {"device": "NVIDIA H100", "precision": "bf16-mixed"}
    write_record(tmp_path, plain(composed), (0, 1, 2))
    write_record(tmp_path, composed, (0,), ap50=0.6)
    write_record(tmp_path, composed, (1,), ap50=0.9, provenance=gpu)
    write_record(tmp_path, composed, (2,), ap50=0.8, provenance={})  # of an older version
    rows, (contrast,), text = compared(tmp_path)
    assert rows[1].seeds == (0, 1, 2)
    assert contrast.differences["map_50"].pairs == 2
    assert contrast.differences["map_50"].mean == pytest.approx((0.1 + 0.3) / 2)
    assert "seed 1 not paired" in text
    assert "NVIDIA H100 bf16-mixed (1 run)" in text


def test_no_difference_of_means_stands_for_pairs_of_different_machines(composed: DictConfig, tmp_path: Path) -> None:
    write_record(tmp_path, plain(composed), (0,))
    write_record(tmp_path, composed, (0,), ap50=0.9, provenance=CPU | {"device": "NVIDIA H100"})
    _, (contrast,), _ = compared(tmp_path)
    assert contrast.differences["map_50"].pairs == 0
    assert contrast.differences["map_50"].mean != contrast.differences["map_50"].mean  # nan


def test_other_commits_and_versions_are_notes(composed: DictConfig, tmp_path: Path) -> None:
    write_record(tmp_path, plain(composed), (0,), provenance=CPU | {"torch": "2.12.0", "threads": 1})
    write_record(tmp_path, composed, (0,), provenance=CPU | {"commit": "1" * 40, "torch": "2.13.0", "clean": False})
    _, found, text = compared(tmp_path)
    assert len(found) == 1
    for words in ("11111111 with changes (1 run)", "4437dbc4 (1 run)", "torch: 2.12.0 (1 run), 2.13.0 (1 run)"):
        assert words in text


@pytest.mark.parametrize("second", [388, 400])
def test_seeds_on_different_numbers_of_variations_are_noted(composed: DictConfig, tmp_path: Path, second: int) -> None:
    ap = {"test/map": 0.3, "test/map_50": 0.5, "test/count_mae": 1.0, "data/real_images": 40.0}
    for seed, images in ((0, 388.0), (1, float(second))):
        write_record(tmp_path, composed, (seed,), metrics=ap | {"data/synthetic_images": images})
    _, _, text = compared(tmp_path)
    assert ("its seeds were trained on 388 to 400 variations" in text) == (second == 400)


def test_controls_are_held_against_as_many_at_the_same_share_of_a_batch(composed: DictConfig, tmp_path: Path) -> None:
    write_record(tmp_path, plain(composed), (0,))
    for name in ("pixel_ddpm", "repeat"):
        for share in (0.25, 0.5):
            changed = {"generator": {"name": name}, "variations": {"synthetic_fraction": share}}
            write_record(tmp_path, merged(composed, **changed), (0,))
    _, found, _ = compared(tmp_path)
    controls = [contrast for contrast in found if contrast.kind == "control"]
    assert len(controls) == 2
    assert all(
        c.new.values["variations.synthetic_fraction"] == c.old.values["variations.synthetic_fraction"] for c in controls
    )


def test_runs_of_older_versions_are_compared_by_what_they_record(composed: DictConfig, tmp_path: Path) -> None:
    old: dict[str, Any] = {"condition": {}, "provenance": {}}
    write_record(tmp_path, plain(composed), (0, 1), **old, overrides="split=s2 variations='0'")
    write_record(tmp_path, composed, (0, 1), **old, overrides="split=s2 variations='10'")
    write_record(tmp_path, composed, (2,), overrides="split=s2 variations='10'")  # a newer one of the same condition
    rows, (contrast,), _ = compared(tmp_path)
    assert [row.seeds for row in rows] == [(0, 1), (0, 1, 2)]
    assert contrast.differences["map_50"].pairs == 2
    write_record(tmp_path, composed, (3,), **old, overrides="variations='10' detector.weights=w/tiny.weights")
    assert len(compared(tmp_path)[0]) == 3
    changed = {"dataset_sha256": "e" * 64, "store": "repeat-0123456789ab"}
    write_record(tmp_path, composed, (4,), **old, overrides="variations='10'", content_data=changed)
    assert len(compared(tmp_path)[0]) == 4


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        ([{"a.x": "1"}], [{}]),
        ([{"a.x": "1"}, {"a.x": "2"}], [{"a.x": "1"}, {"a.x": "2"}]),
        ([{"a.x": "1"}, {}], [{"a.x": "1"}, {"a.x": "null"}]),
        ([{"g.name": "u", "g.p": "1"}, {"g.name": "v", "g.q": "2"}], [{"g": "u"}, {"g": "v"}]),
        (
            [{"g.name": "u", "g.p": "1"}, {"g.name": "u", "g.p": "2"}, {"g.name": "v"}],
            [{"g": "u", "g.p": "1"}, {"g": "u", "g.p": "2"}, {"g": "v"}],
        ),
    ],
)
def test_conditions_are_named_by_what_differs(conditions: list[dict[str, str]], expected: list[dict[str, str]]) -> None:
    assert differences(conditions) == expected


def test_flat_settings_are_written_as_hydra_reads_them() -> None:
    nested = {"a": {"b": None, "c": True, "d": 0.001, "e": [1, 2], "f": "text"}, "g": 3}
    assert flatten(nested) == {"a.b": "null", "a.c": "true", "a.d": "0.001", "a.e": "[1, 2]", "a.f": "text", "g": "3"}


def test_one_run_of_an_older_version_merges_nothing_that_others_tell_apart(
    composed: DictConfig, tmp_path: Path
) -> None:
    for share, seeds in ((0.25, (0, 1)), (0.5, (2, 3))):
        write_record(tmp_path, merged(composed, variations={"synthetic_fraction": share}), seeds)
    write_record(tmp_path, plain(composed), (0,), condition={}, provenance={})
    rows, _, _ = compared(tmp_path)
    assert sorted(row.seeds for row in rows if row.variations) == [(0, 1), (2, 3)]


@pytest.mark.parametrize("key", ["evaluation", "levels", "anchors"])
def test_a_baseline_of_an_older_version_is_not_held_against_another_evaluation(
    key: str, composed: DictConfig, tmp_path: Path
) -> None:
    write_record(tmp_path, plain(composed), (0, 1), condition={}, provenance={})
    write_record(tmp_path, composed, (0, 1), data={**DATA, key: "2"})
    _, found, text = compared(tmp_path)
    assert found == []
    assert f"{key} (null there, 2 here)" in text


def test_detectors_of_two_runs_are_two_weights_though_their_files_have_one_name(
    composed: DictConfig, tmp_path: Path
) -> None:
    old: dict[str, Any] = {"condition": {}, "provenance": {}}
    for name, config in (("one", plain(composed)), ("two", composed)):
        typed = f"variations=2 detector.weights=multirun/{name}/detector.safetensors"
        write_record(tmp_path, config, (0,), **old, overrides=typed)
    assert compared(tmp_path)[1] == []


def test_dense_training_images_do_not_cost_the_comparison_of_sizes(composed: DictConfig, tmp_path: Path) -> None:
    for name, size, limit in (("s2", 40, 400), ("s1", 80, 500)):
        config = plain(merged(composed, split={"name": name, "train": size}))
        write_record(tmp_path, config, (0,), data={**DATA, "max_detections": limit})
    _, (contrast,), _ = compared(tmp_path)
    assert contrast.kind == "positive control"


def test_means_that_are_shown_are_those_of_the_pairs(composed: DictConfig, tmp_path: Path) -> None:
    write_record(tmp_path, plain(composed), (0, 1), ap50=0.4)
    write_record(tmp_path, composed, (0,), ap50=0.5)
    write_record(tmp_path, composed, (1,), ap50=0.9, provenance=CPU | {"device": "NVIDIA H100"})
    assert "AP50 40.0 -> 50.0 (+10.0" in compared(tmp_path)[2]
