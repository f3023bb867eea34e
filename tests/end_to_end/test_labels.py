"""Labels from the settings to the card: detectors that look, stores that differ by their labels, a person's word."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import CONF, ROOT, manifests, run, runs, start
from hydra import compose, initialize_config_dir

from boxtwin.config.arguments import quote_numbers
from boxtwin.config.compose import register, to_object
from boxtwin.config.schema import BoxtwinConfig
from boxtwin.datasets.image_io import read_image
from boxtwin.detector.checkpoint import read_detector
from boxtwin.errors import InputError
from boxtwin.labels.carry import Carry
from boxtwin.run import label_detectors
from boxtwin.run.build import Prepared, prepare

Compose = Callable[..., BoxtwinConfig]
SPECKLED, MOVES = "generator._target_=varying.Speckled", "generator._target_=varying.Moves"
CARRY = f"generate.py experiment=tiny_choice variations=2 generator=repeat {SPECKLED}"


@pytest.fixture
def composed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Compose:
    register()
    monkeypatch.chdir(tmp_path)

    def with_overrides(*overrides: str) -> BoxtwinConfig:
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            searched = f"hydra.searchpath=[file://{CONF}]"
            typed = quote_numbers((searched, "+experiment=tiny_choice", *overrides), ROOT / "conf" / "variations")
            typed = [value.replace("+experiment", "experiment") for value in typed]
            return to_object(compose("config", typed), BoxtwinConfig)

    return with_overrides


def prepared_run(composed: Compose, *overrides: str) -> Prepared:
    return prepare(composed("generator=repeat", *overrides))


def key_of(prepared_run: Prepared) -> str:
    assert prepared_run.library is not None
    return prepared_run.library.key


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([MOVES], r"moves things about, so boxes cannot be carried over: choose labels=pseudo .* or labels=manual"),
        (["labels=manual"], r"labels=manual takes a file of confirmed labels: say labels\.file=FILE"),
        (["labels=manual", "labels.file=none.json"], r"labels\.file=none\.json cannot be read"),
        (["labels=pseudo", "labels.detectors=1"], r"labels\.agree=2 must lie between 1 and labels\.detectors=1"),
        (["labels.detectors=-1"], r"labels\.detectors=-1 must not be negative"),
    ],
)
def test_labels_that_cannot_work_are_explained_before_any_work(
    composed: Compose, overrides: list[str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        prepared_run(composed, "variations=1", *overrides)


def test_stores_differ_by_what_their_labels_follow_from(composed: Compose, tmp_path: Path) -> None:
    def key(*overrides: str) -> str:
        return key_of(prepared_run(composed, "variations=1", SPECKLED, *overrides))

    plain = key()
    assert key("seed=7") == plain  # the detectors' seeds are their own
    assert key("trainer.threads=1") == plain
    assert key("labels.agree=1") == plain  # a setting of pseudo
    others = [
        key("labels.detectors=0"),
        key("labels.detectors=3"),
        key("labels=pseudo"),
        key("labels.new_objects=label"),
    ]
    assert len({plain, *others}) == 5
    # A person's labels count by what the file says, and by which of its images are taken at their word.
    (tmp_path / "labels.json").write_text('{"images": [], "annotations": []}')
    manual = ("labels=manual", f"labels.file={tmp_path / 'labels.json'}")
    assert len({plain, key(*manual), key(*manual, "labels.confirmed=all")}) == 3
    # Objects that a generator put there itself are looked at by no detector.
    assert key_of(prepared_run(composed, "variations=1")) == key_of(
        prepared_run(composed, "variations=1", "labels.detectors=3")
    )


# Lightning 2.6 asks torch 2.13 for a class that goes away later; commands leave that out by themselves.
LIGHTNING = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")


@LIGHTNING
def test_a_labelling_detector_is_the_run_without_variations_and_trained_once(
    composed: Compose, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with_some = prepared_run(composed, "variations=1", SPECKLED)
    alone = prepared_run(composed, "variations=0")
    path = Path("data/detectors") / f"{alone.identity}.safetensors"
    assert not path.exists()
    carry = label_detectors.make_judge(with_some)
    assert isinstance(carry, Carry)
    assert carry.detectors is not None
    assert len(carry.detectors.members) == 1
    detector = read_detector(path)
    assert detector.origin["identity"] == alone.identity
    assert carry.detectors.members[0].thresholds == (detector.count_threshold,)
    assert not list(path.parent.glob("*.checkpoints"))
    before = path.stat().st_mtime_ns
    label_detectors.make_judge(with_some)
    assert path.stat().st_mtime_ns == before
    assert caplog.text.count("on the 6 training images alone") == 1
    # A damaged one is named, and trained again, or replaced by that of the run itself.
    whole = path.read_bytes()
    path.write_bytes(whole[:-3])
    label_detectors.make_judge(with_some)
    assert str(path) in caplog.text
    assert caplog.text.count("on the 6 training images alone") == 2
    again = read_detector(path).module.state_dict()
    assert all(torch.equal(value, again[name]) for name, value in detector.module.state_dict().items())
    Path("own.safetensors").write_bytes(whole)
    path.write_bytes(whole[:100])
    label_detectors.keep_detector(alone, Path("own.safetensors"))
    assert path.read_bytes() == whole


@LIGHTNING
def test_a_detector_as_a_function_sees_what_a_run_sees(composed: Compose) -> None:
    alone = prepared_run(composed, "variations=0")
    judge = label_detectors.make_judge(prepared_run(composed, "variations=1", SPECKLED))
    assert isinstance(judge, Carry)
    assert judge.detectors is not None
    member = judge.detectors.members[0]
    from trained_detectors import detect_as_studies_do

    (path,) = Path("data/detectors").glob("*.safetensors")
    paths = [sample.path for sample in alone.split.val]
    for one, expected in zip(paths, detect_as_studies_do(read_detector(path), paths), strict=True):
        found = member.detect(read_image(one))
        np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-3)
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)


def test_preparing_trains_nothing_and_a_complete_store_needs_no_judge(composed: Compose) -> None:
    first = prepared_run(composed, "variations=1", SPECKLED, "labels.detectors=0")
    assert first.library is not None
    assert first.library.judge is None
    with pytest.raises(ValueError, match="no judge"):
        first.library.make(first.sources, 1)
    label_detectors.prepare_labelling(first)
    assert first.library.make(first.sources, 1).made == 10
    again = prepared_run(composed, "variations=1", SPECKLED, "labels.detectors=0")
    label_detectors.prepare_labelling(again)
    assert again.library is not None
    assert again.library.judge is None
    assert not Path("data/detectors").exists()


@pytest.mark.slow
def test_carry_from_the_command_line_and_on_after_a_kill(tmp_path: Path) -> None:
    process = start(CARRY, tmp_path)
    until = time.monotonic() + 120
    while not list(tmp_path.glob("data/detectors/*")) and time.monotonic() < until:
        time.sleep(0.02)
    process.kill()  # while it trains
    process.wait()
    printed = run(CARRY, tmp_path)
    (lines,) = manifests(tmp_path)
    assert len(lines) == 20
    (store,) = tmp_path.glob("data/synthetic/repeat-*")
    card = json.loads((store / "label_card.json").read_text())
    assert card["images"] + card["refused"] == 20
    assert card["dropped"] > 0  # the objects that were wiped out
    assert card["kept"] > card["dropped"]
    assert f"boxes {card['kept']} kept, {card['shifted']} shifted, {card['dropped']} dropped" in printed
    assert (store / "label_card.png").stat().st_size > 10_000
    evidence = [box["evidence"] for line in lines for box in line["labels"]["boxes"]]
    assert all(0 <= entry["detector"] <= 1 for entry in evidence)
    assert len(list(tmp_path.glob("data/detectors/*.safetensors"))) == 1


@pytest.mark.slow
def test_a_run_without_variations_leaves_its_detector_for_labels(tmp_path: Path) -> None:
    run("train.py -m experiment=tiny_choice variations=0,2 generator=repeat " + SPECKLED, tmp_path)
    (kept,) = tmp_path.glob("data/detectors/*.safetensors")
    (result,) = tmp_path.glob("multirun/*/*-x0-*/result.json")
    assert kept.stem == json.loads(result.read_text())["identity"]
    assert kept.samefile(result.parent / "detector.safetensors")
    assert not list(tmp_path.glob("data/detectors/*.checkpoints"))
    # The other run counts what became of the labels, leaves refused images out, and shows the card.
    (store,) = tmp_path.glob("data/synthetic/repeat-*")
    card = json.loads((store / "label_card.json").read_text())
    (finished,) = (found for found in runs(tmp_path) if found.data.params["variations"] == "2")
    for name in ("kept", "shifted", "dropped", "added", "images", "refused"):
        assert finished.data.metrics[f"data/labels_{name}"] == card[name]
    assert card["dropped"] > 0  # the objects that were wiped out
    assert card["kept"] > card["dropped"]
    artifacts = Path(finished.info.artifact_uri.removeprefix("file://"))
    assert {"label_card.json", "label_card.png"} <= {path.name for path in artifacts.iterdir()}


def test_pseudo_then_a_person_confirms(tmp_path: Path) -> None:
    settings = f"experiment=tiny_choice variations=1 generator=repeat {MOVES}"
    run(f"generate.py {settings} labels=pseudo labels.detectors=2 labels.agree=1", tmp_path)
    assert len(list(tmp_path.glob("data/detectors/*.safetensors"))) == 2
    (store,) = tmp_path.glob("data/synthetic/repeat-*")
    content = json.loads((store / "annotations.json").read_text())
    assert len(content["images"]) >= 5
    for image in content["images"][:5]:
        image["confirmed"] = True
    confirmed = {image["id"] for image in content["images"][:5]}
    content["annotations"] = [
        {"id": number, "image_id": number, "category_id": 1, "bbox": [3, 4, 10, 6], "area": 60, "iscrowd": 0}
        for number in confirmed
    ]
    (tmp_path / "confirmed.json").write_text(json.dumps(content))
    run(f"train.py {settings} labels=manual labels.file=confirmed.json", tmp_path)
    (finished,) = runs(tmp_path)
    training = {
        name.split("/")[-1]
        for name in json.loads(next(tmp_path.glob("multirun/*/*/split.json")).read_text())["s1"]["train"]
    }
    used = sum(image["source"].split("/")[-1] in training for image in content["images"][:5])
    assert finished.data.metrics["data/synthetic_images"] == used
    assert finished.data.metrics["data/labels_kept"] == finished.data.metrics["data/labels_images"] == 5
    assert finished.data.metrics["data/labels_refused"] == 5
    manual = next(folder for folder in tmp_path.glob("data/synthetic/repeat-*") if folder != store)
    card = json.loads((manual / "label_card.json").read_text())
    assert card["reasons"] == {"not confirmed by a person": 5}
    # The images are those of the first store, under a second name.
    first = content["images"][0]["file_name"]
    assert (manual / first).samefile(store / first)
    # As an annotation tool gives it back, after a person has been through all of it.
    for image in content["images"]:
        image.pop("confirmed", None)
    (tmp_path / "exported.json").write_text(json.dumps(content))
    printed = run(f"generate.py {settings} labels=manual labels.file=exported.json labels.confirmed=all", tmp_path)
    assert "images 10 used, 0 refused" in printed


@pytest.mark.slow
def test_two_at_once_share_one_detector_and_one_store(tmp_path: Path) -> None:
    processes = [start(f"{CARRY} trainer.steps=40", tmp_path) for _ in range(2)]
    assert [process.wait(400) for process in processes] == [0, 0]
    (lines,) = manifests(tmp_path)
    assert len(lines) == len({(line["source"], line["variation"]) for line in lines}) == 20
    assert len(list(tmp_path.glob("data/detectors/*.safetensors"))) == 1
    assert not list(tmp_path.glob("data/detectors/*.checkpoints"))
