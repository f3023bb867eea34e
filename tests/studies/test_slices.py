"""Slices against pycocotools on the images, or the sizes, that they are made of."""

import contextlib
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from coco_reference import coco_ground_truth
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from study_runs import finished_run

from boxtwin.datasets.sample import Detections, Sample
from boxtwin.evaluation.coco_metrics import coco_results
from boxtwin.evaluation.matching import ALL_AREAS, AREAS, match_detections
from boxtwin.evaluation.resampled_ap import MATCHES_FILE, save_matches
from boxtwin.studies.conditions import Row, condition_table
from boxtwin.studies.evidence import Evidence
from boxtwin.studies.slices import LEAST_IMAGES, SliceTable, count_errors, slice_metrics, slices_of, slicings

IDS = (3, 7)
NUMBERS = (0, 1, 1, 1, 2, 3, 6, 12)  # objects in the images, in turn


def images_of(images: int) -> list[Sample]:
    rng = np.random.default_rng(0)
    samples = []
    for number in range(images):
        n = NUMBERS[number % len(NUMBERS)]
        corner, size = rng.uniform(0, 400, (n, 2)), rng.uniform(6, 120, (n, 2))
        samples.append(
            Sample(
                name=f"S{number % 3}_{number}.png",
                path=Path(f"{number}.png"),
                width=600,
                height=600,
                image_id=10 + number,
                boxes=np.concatenate([corner, corner + size], axis=1),
                labels=rng.integers(0, 2, n),
                areas=size.prod(axis=1),
                crowd=np.zeros(n, dtype=bool),
                group=f"S{number % 3}",
            )
        )
    return samples


def found_in(samples: Sequence[Sample], share: float, seed: int) -> dict[int, Detections]:
    rng = np.random.default_rng(seed)
    found = {}
    for sample in samples:
        hit = rng.random(len(sample.boxes)) < share
        boxes = sample.boxes[hit] + rng.normal(0, 2, (int(hit.sum()), 4))
        stray = rng.uniform(0, 400, (int(rng.integers(0, 3)), 2))
        boxes = np.concatenate([boxes, np.concatenate([stray, stray + 30], axis=1)])
        labels = np.concatenate([sample.labels[hit], rng.integers(0, 2, len(stray))])
        found[sample.image_id] = Detections(boxes, np.sort(rng.random(len(boxes)))[::-1], labels)
    return found


def write_run(
    folder: Path, samples: Sequence[Sample], found: dict[int, Detections], *, scenes: bool = True
) -> Evidence:
    folder.mkdir(parents=True)
    counts = [
        {"image_id": s.image_id, "file_name": s.name, "true": len(s.boxes), "found": len(found[s.image_id].boxes)}
        | ({"group": s.group} if scenes else {})
        for s in samples
    ]
    save_matches(folder / MATCHES_FILE, match_detections(samples, found, len(IDS)))
    (folder / "result.json").write_text(json.dumps({"counts": counts}))
    loaded = Evidence.load(folder)
    assert loaded is not None
    return loaded


def oracle(samples: Sequence[Sample], found: dict[int, Detections], ids: Sequence[int], area: str = "all") -> float:
    """AP50 as pycocotools alone computes it on some of the images, and objects of one range of areas."""
    truth = COCO()
    with contextlib.redirect_stdout(io.StringIO()):
        truth.dataset = coco_ground_truth(samples, [str(number) for number in IDS], IDS)
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(coco_results(found, IDS)), "bbox")
        evaluation.params.imgIds = list(ids)
        if area != "all":
            evaluation.params.areaRng, evaluation.params.areaRngLbl = [list(AREAS[area] or ALL_AREAS)], ["all"]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision = evaluation.eval["precision"][0, :, :, 0, -1]
    return float(precision[precision > -1].mean()) if (precision > -1).any() else float("nan")


def test_slices_by_size_crowding_and_scene_are_those_of_pycocotools(tmp_path: Path) -> None:
    samples = images_of(40)
    found = found_in(samples, 0.7, 1)
    evidence = write_run(tmp_path / "a", samples, found)
    kinds = slices_of(evidence)
    assert [len(kinds[kind]) for kind in ("size", "crowding", "scene")] == [3, 5, 3]
    for kind, parts in kinds.items():
        for part in parts:
            ids = [sample.image_id for sample, inside in zip(samples, part.images, strict=True) if inside]
            ap50, mae = slice_metrics(part, evidence, np.ones((1, len(samples)))).values()
            # Objects of one size are looked for in all images: what is found of that size in others is wrong.
            searched = [sample.image_id for sample in samples] if kind == "size" else ids
            np.testing.assert_allclose(ap50[0], oracle(samples, found, searched, part.area), atol=1e-9)
            errors = [abs(len(found[s.image_id].boxes) - len(s.boxes)) for s in samples if s.image_id in set(ids)]
            assert mae[0] == pytest.approx(np.mean(errors))
            least, largest = AREAS[part.area] or ALL_AREAS
            assert part.objects == sum(
                least <= area <= largest for s in samples if s.image_id in set(ids) for area in s.areas
            )


def test_a_part_of_the_images_is_what_counting_the_others_never_gives(tmp_path: Path) -> None:
    samples = images_of(24)
    evidence = write_run(tmp_path / "a", samples, found_in(samples, 0.6, 2))
    rng = np.random.default_rng(0)
    counts = rng.multinomial(24, np.full(24, 1 / 24), size=7).astype(float)
    for inside in (rng.random(24) < 0.5, np.ones(24, dtype=bool), np.zeros(24, dtype=bool)):
        whole = evidence.matches["all"](counts * inside)
        part = evidence.matches["all"].part(inside)
        np.testing.assert_allclose(part(counts[:, inside]), whole, atol=1e-12)
        np.testing.assert_allclose(
            evidence.matches["all"].part(inside, thresholds=1)(counts[:, inside]), whole[:, :1], atol=1e-12
        )
        assert part.image_ids == tuple(np.array(evidence.matches["all"].image_ids)[inside])
    assert evidence.matches["all"].objects.tolist() == [len(sample.boxes) for sample in samples]


def study(folder: Path, seeds: dict[int, Sequence[int]], images: int = 40) -> tuple[list[Row], dict[str, Evidence]]:
    """Rows of runs with so many variations, by their seeds."""
    samples, runs, evidence = images_of(images), [], {}
    for variations, numbers in seeds.items():
        for seed in numbers:
            run = f"x{variations}-{seed}"
            found = found_in(samples, 0.5 + 0.03 * variations, seed)
            evidence[run] = write_run(folder / run, samples, found)
            metrics = {"test/map": 0.1, "test/map_50": 0.2, "test/count_mae": 1.0}
            runs.append(finished_run(run, variations, seed, metrics=metrics))
    return condition_table(runs), evidence


def tables_of(rows: list[Row], evidence: dict[str, Evidence]) -> dict[str, SliceTable]:
    return {table.slice.name: table for slicing in slicings(rows, evidence) for table in slicing.tables}


def test_differences_are_taken_pair_by_pair_and_small_slices_have_no_interval(tmp_path: Path) -> None:
    rows, evidence = study(tmp_path, {0: (0, 1, 2), 10: (1, 2, 3)})
    tables = tables_of(rows, evidence)
    one = tables["one object in the image"]
    (_, of_base), (row, of_ten) = one.conditions
    ap50, mae = of_ten.values()
    assert (row.variations, of_base) == (10, {})
    errors = {run: np.abs(kept.found - kept.true)[one.slice.images].mean() for run, kept in evidence.items()}
    assert row.estimates["count_mae"].mean == pytest.approx(np.mean([errors[f"x10-{seed}"] for seed in (1, 2, 3)]))
    assert mae.mean == pytest.approx(np.mean([errors[f"x10-{seed}"] - errors[f"x0-{seed}"] for seed in (1, 2)]))
    assert mae.pairs == ap50.pairs == 2
    assert ap50.interval is not None
    assert mae.interval is not None
    assert mae.interval.low < mae.mean < mae.interval.high
    crowded = tables["10 objects or more in the image"]
    assert crowded.slice.images.sum() < LEAST_IMAGES
    assert all(each.interval is None for _, changes in crowded.conditions for each in changes.values())
    empty = tables["no object in the image"]
    estimates = empty.conditions[0][0].estimates
    assert np.isnan(estimates["map_50"].mean)
    assert np.isfinite(estimates["count_mae"].mean)


def test_no_seed_in_common_one_run_and_none(tmp_path: Path) -> None:
    rows, evidence = study(tmp_path / "apart", {0: (0,), 2: (1,)})
    assert not any(changes for table in tables_of(rows, evidence).values() for _, changes in table.conditions)
    rows, evidence = study(tmp_path / "one", {0: (0,)}, images=1)  # a single image without objects
    assert slicings(rows, evidence) == []
    assert slicings(rows, {}) == []
    assert slicings([], {}) == []


def test_scenes_are_told_apart_where_there_are_some(tmp_path: Path) -> None:
    samples = images_of(12)
    found = found_in(samples, 0.5, 0)
    assert slices_of(write_run(tmp_path / "old", samples, found, scenes=False))["scene"] == []
    alone = [replace(sample, group=sample.name) for sample in samples]
    assert slices_of(write_run(tmp_path / "alone", alone, found))["scene"] == []
    many = [replace(sample, group=f"S{min(number // 2, 10)}") for number, sample in enumerate(images_of(30))]
    scenes = slices_of(write_run(tmp_path / "many", many, found_in(many, 0.5, 0)))["scene"]
    assert [part.name for part in scenes[:2]] == ["scene S10", "scene S0"]
    assert scenes[-1].name == "the other 3 scenes"
    assert sum(int(part.images.sum()) for part in scenes) == 30


def test_the_worst_counted_images(tmp_path: Path) -> None:
    rows, evidence = study(tmp_path, {0: (0, 1), 10: (0,)})
    (errors,) = count_errors(rows, evidence)
    kept = list(evidence.values())
    total = (
        np.mean([np.abs(e.found - e.true) for e in kept[:2]], axis=0) + np.abs(kept[2].found - kept[2].true)
    ) / 2  # fmt: skip
    assert [image.error for image in errors.worst] == pytest.approx(sorted(total, reverse=True)[:10])
    assert errors.exact == (total == 0).sum()
    assert errors.share == pytest.approx(sum(sorted(total, reverse=True)[:10]) / total.sum())
    first = errors.worst[0]
    place = kept[0].names.index(first.name)
    assert first.found == ((kept[0].found[place] + kept[1].found[place]) / 2, kept[2].found[place])
    assert first.true == kept[0].true[place]
    perfect = {run: replace(each, found=each.true) for run, each in evidence.items()}
    (none,) = count_errors(rows, perfect)
    assert (none.worst, none.exact) == ((), 40)
    assert np.isnan(none.share)
