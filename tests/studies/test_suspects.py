"""Suspects on constructed detections: each kind alone, what must not be suspected, and what cannot be said."""

import csv
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coco_reference import coco_ground_truth
from pycocotools.coco import COCO

from boxtwin.boxes import Box
from boxtwin.datasets.coco import read_coco, read_labels
from boxtwin.datasets.image_io import write_png
from boxtwin.datasets.options import OnBadBox, OnDuplicateBox
from boxtwin.datasets.sample import Detections, Sample
from boxtwin.studies.suspects import LEAST_SCORE, Found, Suspect, find_suspects
from boxtwin.studies.suspects_files import write_suspects

BOX = (20.0, 20.0, 40.0, 40.0)
AWAY = (60.0, 60.0, 80.0, 80.0)
Labelled = tuple[tuple[float, float, float, float], int]  # box and class


def sample(*labels: Labelled, image_id: int = 1, crowd: Sequence[int] = ()) -> Sample:
    boxes = np.array([box for box, _ in labels], dtype=np.float32).reshape(-1, 4)
    is_crowd = np.isin(np.arange(len(labels)), crowd)
    areas = (boxes[:, 2] - boxes[:, 0]).astype(np.float64) * (boxes[:, 3] - boxes[:, 1])
    classes = np.array([label for _, label in labels], dtype=np.int64)
    name = f"{image_id}.png"
    return Sample(name, Path(name), 100, 100, image_id, boxes, classes, areas, is_crowd)


def runs(*of_runs: Sequence[tuple[Labelled, float]], image_id: int = 1) -> list[Found]:
    """One image; each run detects boxes of a class with a score, and counts from 0.4 on."""
    found = []
    for detected in of_runs:
        ordered = sorted(detected, key=lambda one: -one[1])
        boxes = np.array([one[0][0] for one in ordered], dtype=np.float32).reshape(-1, 4)
        scores = np.array([score for _, score in ordered], dtype=np.float32)
        labels = np.array([one[0][1] for one in ordered], dtype=np.int64)
        found.append(Found({image_id: Detections(boxes, scores, labels)}, (0.4, 0.4)))
    return found


def shifted(box: tuple[float, float, float, float], by: float) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = box
    return x1 + by, y1 + by, x2 + by, y2 + by


def only(suspects: list[Suspect]) -> Suspect:
    assert len(suspects) == 1, suspects
    return suspects[0]


def test_labels_that_all_runs_confirm_are_not_suspected() -> None:
    right = [((BOX, 0), 0.9), ((AWAY, 1), 0.8)]
    assert find_suspects([sample((BOX, 0), (AWAY, 1))], runs(right, right, right)) == []


def test_an_object_that_runs_agree_on_lacks_a_label() -> None:
    other = ((BOX, 0), 0.9)
    found = runs([other, ((AWAY, 1), 0.9)], [other, ((AWAY, 1), 0.6)], [other])
    suspect = only(find_suspects([sample((BOX, 0))], found))
    assert (suspect.kind, suspect.box, suspect.suggested_label, suspect.votes) == ("missing", None, 1, 2)
    assert suspect.suggested == pytest.approx(AWAY)
    assert suspect.score == pytest.approx((0.9 + 0.6) / 3)  # the mean over the runs, of which one sees nothing


def test_half_of_the_runs_are_no_agreement() -> None:
    assert find_suspects([sample()], runs([((AWAY, 0), 0.9)], [((AWAY, 0), 0.9)], [], [])) == []


def test_an_object_in_a_crowd_or_in_a_label_is_not_missing() -> None:
    part = ((22.0, 22.0, 27.0, 27.0), 0)
    found = runs(*[[(part, 0.9)]] * 3)
    assert find_suspects([sample((BOX, 0), crowd=[0])], found) == []
    assert [each.kind for each in find_suspects([sample((BOX, 0))], found)] == []


def test_of_two_labels_on_one_object_the_worse_is_doubled() -> None:
    second = shifted(BOX, 2)
    suspect = only(find_suspects([sample((second, 0), (BOX, 0))], runs(*[[((BOX, 0), 0.8)]] * 3)))
    assert (suspect.kind, suspect.index, suspect.suggested) == ("doubled", 0, None)
    assert suspect.box == pytest.approx(second)
    assert suspect.score == pytest.approx(0.8)


def test_two_objects_close_together_are_not_doubled() -> None:
    beside = (30.0, 20.0, 50.0, 40.0)
    both = [((BOX, 0), 0.8), ((beside, 0), 0.8)]
    assert find_suspects([sample((BOX, 0), (beside, 0))], runs(both, both)) == []


def test_an_agreed_object_of_another_class_says_wrong_class() -> None:
    found = runs([((BOX, 1), 0.9), ((BOX, 0), 0.2)], [((BOX, 1), 0.7)])
    suspect = only(find_suspects([sample((BOX, 0))], found))
    assert (suspect.kind, suspect.label, suspect.suggested_label) == ("wrong class", 0, 1)
    assert suspect.score == pytest.approx(0.8 * (1 - 0.1))  # the label's own class has a mean of 0.1


@pytest.mark.parametrize("by", [6.0, 8.0])  # overlaps 0.32 and 0.22
def test_an_agreed_object_that_touches_its_label_says_badly_placed(by: float) -> None:
    suspect = only(find_suspects([sample((shifted(BOX, by), 0))], runs(*[[((BOX, 0), 0.9)]] * 3)))
    assert (suspect.kind, suspect.index) == ("badly placed", 0)
    assert suspect.suggested == pytest.approx(BOX)
    inside = (20 - by) ** 2
    assert suspect.score == pytest.approx(0.9 * (1 - inside / (800 - inside)), abs=1e-6)


def test_a_label_that_runs_see_by_itself_is_not_badly_placed() -> None:
    beside = shifted(BOX, 8)
    faint = [((BOX, 0), 0.9), ((beside, 0), 0.25)]
    suspect = only(find_suspects([sample((beside, 0))], runs(faint, [((BOX, 0), 0.9)])))
    assert suspect.kind == "missing"
    assert suspect.suggested == pytest.approx(BOX)


def test_a_label_that_hardly_touches_is_another_object() -> None:
    suspect = only(find_suspects([sample((shifted(BOX, 10), 0))], runs(*[[((BOX, 0), 0.9)]] * 3)))
    assert suspect.kind == "missing"


def test_a_label_is_off_only_if_it_is_farther_from_the_mean_than_every_run() -> None:
    label = sample((shifted(BOX, 3), 0))
    together = [[((shifted(BOX, by), 0), 0.9)] for by in (-0.5, 0.0, 0.5)]
    apart = [[((shifted(BOX, by), 0), 0.9)] for by in (-4.0, 0.0, 4.0)]
    assert only(find_suspects([label], runs(*together))).kind == "badly placed"
    assert find_suspects([label], runs(*apart)) == []


def unseen(number: int, seen: int) -> tuple[list[Sample], list[Found]]:
    """Images with a label each, of which the last ``seen`` are detected by three runs, and the others by none."""
    samples = [sample((BOX, 0), image_id=place) for place in range(number)]
    one = Detections(np.array([BOX], dtype=np.float32), np.array([0.9], np.float32), np.array([0]))
    detections = dict.fromkeys(range(number - seen, number), one)
    return samples, [Found(detections, (0.4, 0.4))] * 3


def test_a_label_that_no_run_sees_is_spurious_the_more_the_others_are_seen() -> None:
    suspect = only(find_suspects(*unseen(41, 40)))
    assert (suspect.kind, suspect.index, suspect.image_id, suspect.votes) == ("spurious", 0, 0, 3)
    assert suspect.score == pytest.approx(0.02 / (0.02 + 1 / 32))
    assert find_suspects(*unseen(41, 20)) == []  # half of such objects are missed: nothing follows


def test_a_label_that_one_run_sees_at_low_confidence_is_not_spurious() -> None:
    samples, found = unseen(41, 40)
    faint = Detections(np.array([BOX], dtype=np.float32), np.array([0.25], np.float32), np.array([0]))
    found = [*found[1:], Found({**found[0].detections, 0: faint}, (0.4, 0.4))]
    assert find_suspects(samples, found) == []


def test_of_too_few_comparable_labels_nothing_is_said() -> None:
    assert find_suspects(*unseen(5, 4)) == []


def test_no_objects_and_no_detections_give_no_suspects() -> None:
    nothing = [Found({}, (0.4, 0.4))] * 3
    assert find_suspects([], nothing) == []
    assert find_suspects([sample(), sample(image_id=2)], nothing) == []
    assert find_suspects([sample((BOX, 0))], nothing) == []
    with pytest.raises(ValueError, match="at least one run"):
        find_suspects([sample()], [])


def test_one_run_is_believed_but_not_on_small_offsets() -> None:
    alone = runs([((BOX, 0), 0.9), ((AWAY, 0), 0.7)])
    suspect = only(find_suspects([sample((shifted(BOX, 3), 0))], alone))
    assert suspect.kind == "missing"
    assert suspect.score == pytest.approx(0.7)


def test_the_list_is_ranked_and_its_scores_are_in_bounds() -> None:
    rng = np.random.default_rng(0)
    samples, detections = [], [dict[int, Detections]() for _ in range(3)]
    for image in range(30):
        corner = rng.uniform(0, 70, (6, 2))
        boxes = np.concatenate([corner, corner + rng.uniform(8, 25, (6, 2))], axis=1)
        labels = rng.integers(0, 2, 6)
        samples.append(sample(*zip(map(tuple, boxes[:5].tolist()), labels.tolist(), strict=False), image_id=image))
        for of_run in detections:
            moved = (boxes[1:] + rng.normal(0, 2, (5, 4))).astype(np.float32)
            scores = np.sort(rng.random(5).astype(np.float32))[::-1]
            of_run[image] = Detections(moved, scores, rng.integers(0, 2, 5))
    suspects = find_suspects(samples, [Found(each, (0.3, 0.3)) for each in detections])
    ranked = [suspect.score for suspect in suspects]
    assert len({suspect.kind for suspect in suspects}) >= 3
    assert ranked == sorted(ranked, reverse=True)
    assert all(LEAST_SCORE <= score <= 1 for score in ranked)
    labels_in = [(suspect.image_id, suspect.index) for suspect in suspects if suspect.index is not None]
    assert len(labels_in) == len(set(labels_in))  # a label is suspected of one thing


def test_files_leave_labels_alone_and_apply_suggestions_apart(tmp_path: Path) -> None:
    second, wrong, off = shifted(BOX, 2), (2.0, 60.0, 22.0, 80.0), (60.0, 2.0, 80.0, 22.0)
    labelled = sample((BOX, 0), (second, 0), (wrong, 0), (shifted(off, 8), 1))
    agreed = [((BOX, 0), 0.9), ((wrong, 1), 0.9), ((off, 1), 0.9), ((AWAY, 1), 0.9)]
    suspects = find_suspects([labelled], runs(agreed, agreed, agreed))
    assert sorted(suspect.kind for suspect in suspects) == ["badly placed", "doubled", "missing", "wrong class"]
    content = coco_ground_truth([labelled, sample((BOX, 0), image_id=9)], ("ship", "buoy"), (4, 2))
    content["annotations"][3] |= {"segmentation": [[1, 2, 3, 4, 5, 6]], "attributes": {"by": "x"}}
    original = tmp_path / "annotations.json"
    original.write_text(json.dumps(content))
    write_suspects(
        tmp_path / "out",
        suspects,
        annotations=original,
        samples={"1.png": replace(labelled, annotations=((1,), (2,), (3,), (4,)))},
        classes=("ship", "buoy"),
        category_ids=(4, 2),
        sides={"1.png": "test"},
    )
    marked = json.loads((tmp_path / "out" / "corrected_suggestions.json").read_text())
    listed = marked.pop("suspects")
    paths = [image.pop("path", None) for image in marked["images"]]
    assert [path and Path(path).resolve() for path in paths] == [labelled.path.resolve(), None]
    texts = [image.pop("suspects", None) for image in marked["images"]]
    ranked = sorted(suspects, key=lambda each: -each.score)
    assert texts == [", ".join(f"{each.score:.2f} {each.kind}" for each in ranked), None]
    for image in marked["images"]:
        image.pop("orientation", None)
    assert marked == content
    assert {entry["annotation_id"] for entry in listed} == {None, 2, 3, 4}
    lines = list(csv.DictReader((tmp_path / "out" / "suspects.csv").read_text().splitlines()))
    assert [line["kind"] for line in lines] == [suspect.kind for suspect in suspects]
    assert [float(line["score"]) for line in lines] == pytest.approx([each.score for each in suspects], abs=1e-4)
    applied = COCO(str(tmp_path / "out" / "suggestions_applied.json"))
    assert applied.imgToAnns[9] == content["annotations"][4:]
    assert "segmentation" not in applied.anns[4]
    assert applied.anns[4]["attributes"] == {"by": "x"}
    boxes = {(one["category_id"], *one["bbox"]) for one in applied.imgToAnns[1]}
    expected = {(4, BOX), (2, wrong), (2, off), (2, AWAY)}
    assert boxes == {(number, x1, y1, x2 - x1, y2 - y1) for number, (x1, y1, x2, y2) in expected}
    assert len(read_labels(tmp_path / "out" / "suggestions_applied.json").samples) == 2


def xywh(box: Box) -> list[float]:
    x1, y1, x2, y2 = box
    return [x1, y1, x2 - x1, y2 - y1]


def applied(
    tmp_path: Path, labels: list[tuple[list[float], int]], found: list[tuple[Labelled, float]], **policy: Any
) -> tuple[list[Suspect], dict[int, tuple[int, list[float]]]]:
    """The suspects of an image's labels (xywh, category) as they are read, and the file with suggestions applied."""
    write_png(tmp_path / "1.png", np.zeros((100, 100), dtype=np.uint8))
    entries = [
        {"id": 10 + n, "image_id": 1, "category_id": category, "bbox": bbox, "area": 1, "iscrowd": 0}
        for n, (bbox, category) in enumerate(labels, start=1)
    ]
    names = [{"id": 1, "name": "ship "}, {"id": 2, "name": "buoy"}]  # with a blank, which reading strips
    image = {"id": 1, "file_name": "1.png", "width": 100, "height": 100}
    file = tmp_path / "annotations.json"
    file.write_text(json.dumps({"images": [image], "annotations": entries, "categories": names}))
    dataset = read_coco(name="d", images=tmp_path, annotations=file, **policy)
    suspects = find_suspects(dataset.samples, runs(found, found, found))
    about: Any = {"classes": dataset.classes, "category_ids": dataset.category_ids, "sides": {"1.png": "test"}}
    (tmp_path / "out").mkdir()
    write_suspects(tmp_path / "out", suspects, annotations=file, samples={"1.png": dataset.samples[0]}, **about)
    content = json.loads((tmp_path / "out" / "suggestions_applied.json").read_text())
    return suspects, {one["id"]: (one["category_id"], one["bbox"]) for one in content["annotations"]}


@pytest.mark.parametrize("number", [2, 3])
def test_of_labels_drawn_several_times_one_stays(tmp_path: Path, number: int) -> None:
    """Equal ones are told apart, and a name with a blank is the class's."""
    suspects, left = applied(tmp_path, [(xywh(BOX), 1)] * number, [((BOX, 0), 0.9)])
    assert [each.kind for each in suspects] == ["doubled"] * (number - 1)
    assert list(left.values()) == [(1, xywh(BOX))]


def test_a_label_that_was_cut_at_the_border_is_the_one_that_reaches_out(tmp_path: Path) -> None:
    found = [(((0.0, 10.0, 30.0, 40.0), 1), 0.9), ((AWAY, 0), 0.9)]
    labels = [([-30.0, 10.0, 60.0, 30.0], 1), (xywh(AWAY), 1)]
    suspects, left = applied(tmp_path, labels, found, on_bad_box=OnBadBox.clip)
    assert [each.kind for each in suspects] == ["wrong class"]
    assert left == {11: (2, labels[0][0]), 12: (1, xywh(AWAY))}


@pytest.mark.parametrize(("label", "moved"), [(1, 0), (0, 8)])
def test_merged_repeats_are_changed_together(tmp_path: Path, label: int, moved: float) -> None:
    place = shifted(BOX, moved)
    labels = [(xywh(BOX), 1), (xywh(BOX), 1), (xywh(AWAY), 1)]
    found = [((place, label), 0.95), ((AWAY, 0), 0.9)]
    suspects, left = applied(tmp_path, labels, found, on_duplicate_box=OnDuplicateBox.merge)
    assert [each.kind for each in suspects] == ["wrong class" if label else "badly placed"]
    changed = [left[number] for number in (11, 12) if number in left]
    assert changed == ([(2, xywh(BOX))] * 2 if label else [(1, xywh(place))])
    assert left[13] == (1, xywh(AWAY))
