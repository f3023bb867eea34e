"""Labels out to people and back, from the command line: what a person changes becomes a condition of a study."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import manifests, run
from labelled_stores import CLASSES, boxes_in, write_store

BOXES = {"images/a_v01.png": [(CLASSES[0], (10, 20, 8, 9))], "images/b_v01.png": [(CLASSES[1], (1, 2, 30, 40))]}


def run_words(words: list[str], folder: Path, command: str = "review.py", code: int = 0) -> str:
    """As `run`, from words that hold anything, as a shell passes them."""
    return run([command, *words], folder, code=code)


@pytest.mark.slow
def test_versions_of_labels_are_conditions_of_a_study(tmp_path: Path) -> None:
    settings = "experiment=tiny_choice variations=1 generator=copy_paste"
    run(f"generate.py {settings}", tmp_path)
    (store,) = tmp_path.glob("data/synthetic/copy_paste-*")
    (tmp_path / "store").symlink_to(store)
    printed = run("review.py export=coco store=store", tmp_path)
    assert "coco: store-coco" in printed
    exported = tmp_path / "store-coco" / "annotations.json"
    content = json.loads(exported.read_text())
    untouched = run("review.py read=store-coco store=store folder=untouched", tmp_path)
    assert f"0 of {len(content['images'])} images confirmed" in untouched
    for image in content["images"]:
        image["confirmed"] = True
    exported.write_text(json.dumps(content))
    run("review.py read=store-coco store=store folder=.", tmp_path)
    first, moved, *rest = content["annotations"]
    moved["bbox"] = [moved["bbox"][0] + 1, *moved["bbox"][1:]]
    x, y, w, h = moved["bbox"]
    moved["bbox"] = [x, y, min(w, 64 - x), h]
    content["annotations"] = [moved, *rest]
    for image in content["images"]:
        image["minutes"] = 0.5
    exported.write_text(json.dumps(content))
    printed = run("review.py read=store-coco store=store folder=.", tmp_path)
    number, boxes = len(content["images"]), len(content["annotations"])
    changed = f"boxes {boxes - 1} kept, 1 moved, 0 added, 1 removed; {number / 2:.1f} minutes of work"
    assert f"{number} of {number} images confirmed; {changed}" in printed
    assert "use it with: labels=manual labels.file=labels-2.json" in printed
    files = "labels.file=labels-1.json,labels-2.json"
    run(f"train.py -m {settings} labels=manual {files} variations=1 study=versions", tmp_path, within=400)
    table = run("compare.py study=versions", tmp_path)
    assert "labels.file=labels-1.json" in table
    assert "labels.file=labels-2.json" in table
    cards = [json.loads(card.read_text()) for card in tmp_path.glob("data/synthetic/*/label_card.json")]
    counts = {tuple(card[name] for name in ("kept", "shifted", "dropped", "added")) for card in cards}
    assert (boxes - 1, 1, 1, 0) in counts
    assert len(manifests(tmp_path)) == 3
    assert first["id"] not in {one["id"] for one in content["annotations"]}


def test_paths_of_other_scripts_may_hold_anything(tmp_path: Path) -> None:
    printed = run_words(["runs=no runs, (1)=x", "annotations=a, (2)"], tmp_path, "compare.py", code=1)
    assert "runs=no runs, (1)=x: there is no such folder or archive" in printed
    words = ["dataset=coco", "dataset.name=x", "dataset.root=no folder, (1)=x"]
    assert "no folder, (1)=x/annotations.json does not exist" in run_words(words, tmp_path, "train.py", code=1)


@pytest.mark.parametrize("name", ["label_studio", "cvat", "yolo", "voc"])
def test_paths_may_hold_anything(name: str, tmp_path: Path) -> None:
    store = write_store(tmp_path / "a store, (1)=x [y]", BOXES)
    file = store / "annotations.json"
    file.write_text(file.read_text().replace('"iscrowd": 0', '"iscrowd": 1', 1))
    out, back = tmp_path / "out & $HOME, (2)", tmp_path / "back =, 'a'"
    printed = run_words([f"export={name}", f"store={store}", f"folder={out}"], tmp_path)
    assert "1 crowds (iscrowd 1) are single objects there" in printed
    printed = run_words([f"read={out}", f"store={store}", f"folder={back}"], tmp_path)
    assert "0 moved, 0 added, 0 removed" in printed
    nobody = "0 of 2 images confirmed" in printed
    assert ("add it to a data set with: " in printed) != nobody
    assert ("no image is confirmed, so that none can be added" in printed) == nobody
    content = json.loads((back / "labels-1.json").read_text())
    assert boxes_in(content) == {file: [(label, list(box)) for label, box in ones] for file, ones in BOXES.items()}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("export=coco", "export= needs store="),
        (
            "export=labelme store=store",
            "there is no format 'labelme': choose one of coco, label_studio, cvat",
        ),
        ("export=coco store=nowhere", "store=nowhere does not exist"),
        ("read=store", "read= needs store=, whose labels come back, or folder="),
        ("read=nowhere.json store=store", "read=nowhere.json does not exist"),
        ("read=store export=coco", "say one of"),
    ],
)
def test_what_is_missing_is_said(words: str, message: str, tmp_path: Path) -> None:
    write_store(tmp_path / "store", BOXES)
    printed = run(f"review.py {words}", tmp_path, code=1)
    assert message in printed
    assert "Traceback" not in printed
    assert {path.name for path in tmp_path.iterdir()} == {"store"}


def test_a_data_set_in_yolo_is_converted_and_trained_on(tmp_path: Path) -> None:
    write_store(tmp_path / "store", BOXES)
    run("review.py export=yolo store=store folder=set", tmp_path)
    printed = run("review.py read=set folder=converted", tmp_path)
    assert "2 images, 2 boxes, classes: red blood cell, größe & <co>" in printed
    assert "use it with: dataset=coco dataset.name=converted dataset.root=converted" in printed
    content = json.loads((tmp_path / "converted" / "annotations.json").read_text())
    first, second = sorted(image["file_name"] for image in content["images"])
    split = {"s1": {"train": [first], "val": [second], "test": []}}
    (tmp_path / "split=1.json").write_text(json.dumps(split))
    printed = run("review.py read=converted folder=joined split.file=split=1.json", tmp_path)
    assert "dataset.root=joined split=s1 \"split.file='joined/split=1.json'\"" in printed
    assert json.loads((tmp_path / "joined" / "split=1.json").read_text()) == split
    words = "dataset=coco dataset.name=cells dataset.root=converted split=s1 split.train=1 split.val=1 split.test=1"
    printed = run(f"train.py {words} variations=0", tmp_path, code=1)
    assert "2 images" in printed  # they are read and checked: there are too few for a split
