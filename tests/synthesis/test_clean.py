"""What `make clean` leaves: runs, and all that a person labelled, owns or paid for; nothing else."""

from __future__ import annotations

import json
import os
import pkgutil
import pty
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from boxtwin.synthesis import clean

PROGRAM = Path(clean.__file__)
CONF = Path(__file__).parents[2] / "conf" / "generator"


def store(
    data: Path,
    name: str,
    *,
    generator: str,
    labels: str = "carry",
    cost: float = 0.0,
    confirmed: bool = False,
    reproducible: bool | None = True,
) -> Path:
    folder = data / "synthetic" / name
    (folder / "images").mkdir(parents=True)
    (folder / "images" / "a_v01.png").write_bytes(b"pixels")
    about = {"generator": generator, "labels": {"name": labels}}
    known = {} if reproducible is None else {"reproducible": reproducible}  # earlier versions did not record it
    (folder / "store.json").write_text(json.dumps(about | known))
    line = json.dumps({"image": "images/a_v01.png", "cost_usd": cost})
    (folder / "manifest.jsonl").write_text(line + "\n" + line[:9])  # the second line was cut by a kill
    image = {"file_name": "images/a_v01.png"} | ({"confirmed": True} if confirmed else {})
    (folder / "annotations.json").write_text(json.dumps({"images": [image]}))
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder of data with everything that can be made again."""
    data = tmp_path / "data"
    store(data, "pixel_ddpm-1", generator="pixel_ddpm")
    for made in ("detectors/a.safetensors", "cache/pixels", "synthetic/models/learnt.safetensors"):
        (data / made).parent.mkdir(parents=True, exist_ok=True)
        (data / made).write_bytes(b"1")
    (data / "sar_scenes").mkdir()
    (data / "sar_scenes" / "annotations.json").write_text(json.dumps({"info": {"parameters": {"images": 3}}}))
    return data


def make_worth(data: Path) -> set[Path]:
    mine = data / "mine"
    mine.mkdir()
    (mine / "annotations.json").write_text("{}")
    spool = data / "synthetic" / "models" / "openai_edit-spool"
    spool.mkdir(parents=True)
    (spool / "answer.png").write_bytes(b"1")
    broken = store(data, "x-9", generator="repeat")
    (broken / "store.json").write_text("{")
    # As review.py read= writes them beside what was read: a store, or an export.
    reviewed = store(data, "pixel_ddpm-8", generator="pixel_ddpm")
    (reviewed / "labels-1.json").write_text(json.dumps({"images": [{"file_name": "a.png", "confirmed": False}]}))
    beside = data / "synthetic" / "read.json"
    beside.write_text(json.dumps({"images": [{"file_name": "a.png", "confirmed": True}]}))
    loose = data / "synthetic" / "project-1.json"
    loose.write_text("[]")  # of Label Studio
    (data / "synthetic" / ".lock").touch()
    (data / "sar_scenes" / "labels-1.json").write_text(json.dumps({"images": [{"file_name": "a.png"}]}))
    exported = data / "synthetic" / "pixel_ddpm-1-yolo"
    exported.mkdir()
    (exported / "exported.json").write_text("{}")
    return {
        mine,
        spool,
        broken,
        reviewed,
        beside,
        loose,
        exported,
        data / "sar_scenes",
        store(data, "repeat-2", generator="repeat", labels="manual"),
        store(data, "openai_edit-3", generator="openai_edit", reproducible=False),
        store(data, "mystery-4", generator="mystery", reproducible=None),
        store(data, "folder-5", generator="folder", reproducible=False),
        store(data, "pixel_ddpm-6", generator="pixel_ddpm", cost=0.02),
        store(data, "repeat-7", generator="repeat", confirmed=True),
    }


def test_what_can_be_made_again_is_not_worth_asking(data: Path) -> None:
    assert clean.valuable(data) == {}
    assert clean.valuable(data / "none") == {}


def test_what_cannot_be_made_again_is_found_with_a_reason(data: Path) -> None:
    worth = make_worth(data)
    found = clean.valuable(data)
    assert set(found) == worth
    assert all(found.values())


def test_what_was_paid_for_refused_images_counts(data: Path) -> None:
    paid = store(data, "pixel_ddpm-10", generator="pixel_ddpm", cost=0.02)
    (paid / "refused.jsonl").write_text(json.dumps({"reason": "black", "cost_usd": 0.4}) + "\n")
    assert clean.valuable(data)[paid] == "it cost 0.42 USD"


@pytest.mark.parametrize("name", [path.stem for path in sorted(CONF.glob("*.yaml"))])
def test_every_generator_says_whether_its_images_can_be_made_again(name: str) -> None:
    """Images of a generator that runs elsewhere, or reads images made elsewhere, cannot."""
    target = yaml.safe_load((CONF / f"{name}.yaml").read_text())["_target_"]
    elsewhere = "openai" in target or target.endswith(".Folder")
    assert pkgutil.resolve_name(target).reproducible != elsewhere


def test_without_a_terminal_they_stay_and_the_rest_goes(data: Path) -> None:
    worth = make_worth(data)
    command = [sys.executable, "-P", str(PROGRAM), str(data)]
    printed = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True).stdout
    assert all(path.exists() and str(path) in printed for path in worth)
    assert (data / "synthetic" / "repeat-2" / "images" / "a_v01.png").read_bytes() == b"pixels"
    assert {path.name for path in data.iterdir()} == {"mine", "sar_scenes", "synthetic"}
    assert not (data / "synthetic" / "pixel_ddpm-1").exists()
    assert [path.name for path in (data / "synthetic" / "models").iterdir()] == ["openai_edit-spool"]
    subprocess.run([*command, "--confirm"], stdin=subprocess.DEVNULL, check=True)
    assert not data.exists()


def test_nothing_is_asked_where_nothing_is_lost(data: Path) -> None:
    command = [sys.executable, "-P", str(PROGRAM), str(data)]
    assert subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=True).stdout == b""
    assert not data.exists()


@pytest.mark.parametrize(("answer", "stays"), [("n", True), ("", True), ("y", False)])
def test_at_a_terminal_the_answer_counts(data: Path, answer: str, stays: bool) -> None:
    labelled = store(data, "repeat-2", generator="repeat", labels="manual")
    terminal, other = pty.openpty()
    process = subprocess.Popen([sys.executable, "-P", str(PROGRAM), str(data)], stdin=other, stdout=subprocess.DEVNULL)
    os.write(terminal, f"{answer}\n".encode())
    assert process.wait(60) == 0
    os.close(terminal)
    os.close(other)
    assert labelled.exists() == stays


def test_corrected_suspects_stay_without_their_runs(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("multirun", "mlruns", "reports")]
    file = folders[2] / "pollen" / "suspects" / "corrected_suggestions.json"
    file.parent.mkdir(parents=True)
    file.write_text("{}")
    (file.parent / "page.html").write_text("<html>")
    assert set(clean.valuable_runs(folders)) == {file}
    clean.remove(folders[2], {file})
    assert [path.name for path in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize("kind", ["runs", "records", "reports alone"])
def test_runs_and_their_records_stay_without_consent(data: Path, tmp_path: Path, kind: str) -> None:
    folders = [tmp_path / name for name in ("multirun", "mlruns", "reports")]
    run, report = folders[0] / "pollen" / "s1-x0-none-seed0", folders[2] / "pollen" / "index.html"
    for folder in (run, folders[1], report.parent):
        folder.mkdir(parents=True)
    report.write_text("<html>")
    if kind == "runs":
        (run / "result.json").write_text("{}")
    if kind == "records":
        (folders[1] / "mlflow.db").write_bytes(b"1")
    command = [sys.executable, "-P", str(PROGRAM), str(data), "--runs", *map(str, folders)]
    printed = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True).stdout
    stays = {"runs": folders[::2], "records": folders[1:], "reports alone": folders[2:]}[kind]
    assert [folder for folder in folders if folder.exists()] == stays
    assert all(str(folder) in printed for folder in stays)
    assert not data.exists()
    subprocess.run([*command, "--confirm"], stdin=subprocess.DEVNULL, check=True)
    assert not any(folder.exists() for folder in folders)


def test_a_link_to_another_folder_is_removed_and_not_the_folder(data: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").write_text("1")
    (data / "cache" / "link").symlink_to(tmp_path / "elsewhere")
    clean.remove(data, set())
    assert not data.exists()
    assert (tmp_path / "elsewhere" / "file").exists()


def test_a_linked_folder_stays_with_what_is_kept_in_it(tmp_path: Path) -> None:
    elsewhere, data = tmp_path / "elsewhere", tmp_path / "data"
    (elsewhere / "mine").mkdir(parents=True)
    (elsewhere / "cache").mkdir()
    data.symlink_to(elsewhere)
    clean.remove(data, {data / "mine"})
    assert data.is_symlink()
    assert [path.name for path in elsewhere.iterdir()] == ["mine"]
    clean.remove(data, set())
    assert not data.is_symlink()
