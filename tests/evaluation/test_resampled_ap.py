"""Average precision of resamples against pycocotools on data sets that really hold the images so many times."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from coco_reference import coco_metrics

from boxtwin.datasets.sample import Detections, Sample
from boxtwin.evaluation.matching import AREAS, match_detections
from boxtwin.evaluation.resampled_ap import ResampledAP, load_matches, save_matches

CATEGORIES = (3, 7, 9)


def matched(
    samples: list[Sample], detections: dict[int, Detections], area: tuple[float, float] | None = None
) -> ResampledAP:
    return ResampledAP.of(match_detections(samples, detections, len(CATEGORIES), {"all": area}))


def scene(rng: np.random.Generator, image_id: int, most: int, decimals: int) -> tuple[Sample, Detections]:
    """An image with up to ``most`` objects, some of them crowds, and detections near them and elsewhere."""
    n = int(rng.integers(0, most + 1))
    corner, size = rng.uniform(0, 400, (n, 2)), rng.uniform(6, 120, (n, 2))
    boxes = np.concatenate([corner, corner + size], axis=1)
    labels = rng.integers(0, 2, n)  # the third class has no objects
    sample = Sample(
        name=f"{image_id}.png",
        path=Path(f"{image_id}.png"),
        width=600,
        height=600,
        image_id=image_id,
        boxes=boxes,
        labels=labels,
        areas=size.prod(axis=1) * 0.8,
        crowd=rng.random(n) < 0.1,
    )
    found = rng.random(n) < 0.8
    near = boxes[found] + rng.normal(0, 3, (int(found.sum()), 4))
    stray = rng.uniform(0, 400, (int(rng.integers(0, 6)), 2))
    all_boxes = np.concatenate([near, np.concatenate([stray, stray + 40], axis=1)])
    # Equal scores in different images, never in one: there COCO's own metric hangs on how the copies are laid out.
    scores = rng.random(len(all_boxes)).round(decimals) - 1e-3 * np.arange(len(all_boxes))
    order = np.argsort(-scores, kind="stable")
    all_labels = np.concatenate([labels[found], rng.integers(0, 3, len(stray))])
    return sample, Detections(all_boxes[order], scores[order], all_labels[order])


def repeated(
    samples: list[Sample], detections: dict[int, Detections], counts: np.ndarray
) -> tuple[list[Sample], dict[int, Detections]]:
    """The data set with each image in it so many times."""
    copies: list[Sample] = []
    found: dict[int, Detections] = {}
    for sample, count in zip(samples, counts.astype(int).tolist(), strict=True):
        for _ in range(count):
            number = len(copies) + 1
            copies.append(replace(sample, image_id=number, name=f"{number}.png"))
            if sample.image_id in detections:
                found[number] = detections[sample.image_id]
    return copies, found


def data(seed: int, images: int, most: int = 6, decimals: int = 6) -> tuple[list[Sample], dict[int, Detections]]:
    rng = np.random.default_rng(seed)
    scenes = [scene(rng, 10 + number, most, decimals) for number in range(images)]
    return [sample for sample, _ in scenes], {sample.image_id: found for sample, found in scenes}


@pytest.mark.parametrize("decimals", [6, 1])  # with one decimal, many scores are equal
@pytest.mark.parametrize("seed", range(10))
def test_every_resample_is_what_pycocotools_makes_of_it(seed: int, decimals: int) -> None:
    samples, detections = data(seed, 25, decimals=decimals)
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(25, np.full(25, 1 / 25), size=2).astype(float)
    metrics = matched(samples, detections)(counts)
    for row, count in zip(metrics, counts, strict=True):
        oracle = coco_metrics(*repeated(samples, detections, count), CATEGORIES)
        assert row.mean() == pytest.approx(oracle["map"], abs=1e-9)
        assert row[0] == pytest.approx(oracle["map_50"], abs=1e-9)
        assert row[5] == pytest.approx(oracle["map_75"], abs=1e-9)


@pytest.mark.parametrize(
    ("name", "area"), [("small", (0.0, 1024.0)), ("medium", (1024.0, 9216.0)), ("large", (9216.0, 1e10))]
)
def test_objects_of_one_size(name: str, area: tuple[float, float]) -> None:
    samples, detections = data(5, 30)
    counts = np.random.default_rng(0).multinomial(30, np.full(30, 1 / 30), size=3).astype(float)
    for row, count in zip(
        matched(samples, detections, area)(counts),
        counts,
        strict=True,
    ):
        oracle = coco_metrics(*repeated(samples, detections, count), CATEGORIES)
        np.testing.assert_allclose(row.mean(), oracle[f"map_{name}"], atol=1e-9)


def test_the_images_as_they_are() -> None:
    samples, detections = data(1, 12)
    (row,) = matched(samples, detections)(np.ones((1, 12)))
    assert row.mean() == pytest.approx(coco_metrics(samples, detections, CATEGORIES)["map"], abs=1e-9)
    # The order of the images is that of the samples, whatever their numbers.
    backwards = matched(samples[::-1], detections)
    weights = np.arange(12.0)[None]
    forwards = matched(samples, detections)
    np.testing.assert_allclose(backwards(weights[:, ::-1]), forwards(weights), atol=1e-12)


def test_chunks_of_resamples_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    samples, detections = data(2, 15)
    counts = np.random.default_rng(0).multinomial(15, np.full(15, 1 / 15), size=20).astype(float)
    whole = matched(samples, detections)(counts)
    monkeypatch.setattr("boxtwin.evaluation.resampled_ap.ELEMENTS_AT_ONCE", 100)
    np.testing.assert_array_equal(matched(samples, detections)(counts), whole)


def test_no_objects_no_detections_no_resamples() -> None:
    samples, detections = data(3, 4)
    empty = [replace(s, boxes=s.boxes[:0], labels=s.labels[:0], areas=s.areas[:0], crowd=s.crowd[:0]) for s in samples]
    assert np.isnan(matched(empty, detections)(np.ones((2, 4)))).all()
    assert (matched(samples, {})(np.ones((1, 4))) == 0).all()
    assert matched(samples, detections)(np.zeros((0, 4))).shape == (0, 10)
    assert np.isnan(matched(samples, detections)(np.zeros((1, 4)))).all()  # of no image at all


def test_kept_matches_give_the_same_metrics_from_a_few_kilobytes(tmp_path: Path) -> None:
    samples, detections = data(8, 60)
    save_matches(tmp_path / "matches.npz", match_detections(samples, detections, len(CATEGORIES)))
    counts = np.random.default_rng(0).multinomial(60, np.full(60, 1 / 60), size=5).astype(float)
    kept = load_matches(tmp_path / "matches.npz")
    assert list(kept) == list(AREAS)
    for name, area in AREAS.items():
        fresh = matched(samples, detections, area)
        np.testing.assert_array_equal(kept[name](counts), fresh(counts))
        assert kept[name].image_ids == tuple(sample.image_id for sample in samples)
    assert (tmp_path / "matches.npz").stat().st_size < 10_000


def test_matches_of_nothing(tmp_path: Path) -> None:
    samples, _ = data(3, 4)
    save_matches(tmp_path / "matches.npz", match_detections(samples, {}, len(CATEGORIES)))
    assert (load_matches(tmp_path / "matches.npz")["all"](np.ones((1, 4))) == 0).all()


@pytest.mark.parametrize("ids", [(5, -3), (2**64 - 1, 0, -1), (20240115123456701, 20240115123456702)])
def test_ids_of_any_size_are_kept(ids: tuple[int, ...]) -> None:
    samples = [replace(sample, image_id=number) for sample, number in zip(data(3, len(ids))[0], ids, strict=True)]
    stored = matched(samples, {}).arrays("all")
    assert not any(array.dtype.hasobject for array in stored.values())
    assert ResampledAP.load(stored, "all").image_ids == ids
