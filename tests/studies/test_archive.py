"""Studies in one file: the same runs come out that went in, and nothing is written outside of the folder."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from boxtwin.errors import InputError
from boxtwin.studies import archive
from boxtwin.studies.archive import ARCHIVE, COPIES, runs_folder, write_archive

FILES = {
    "s1-seed0/result.json": b'{"seed": 0}',
    "s1-seed1/result.json": b'{"seed": 1}',
    "s1-seed0/quality_card.json": b"{}" * 500,
    "s1-seed1/quality_card.json": b"{}" * 500,
}


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("given", ["", ARCHIVE])
def test_what_went_in_comes_out(tmp_path: Path, given: str) -> None:
    write_archive(FILES, tmp_path / ARCHIVE)
    with runs_folder(tmp_path / given) as folder:
        assert content(folder) == FILES
    assert not folder.exists()


def test_equal_files_are_held_once_and_bytes_do_not_depend_on_the_day(tmp_path: Path) -> None:
    write_archive(FILES, tmp_path / "a.zip")
    write_archive(dict(reversed(FILES.items())), tmp_path / "b.zip")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip") as held:
        assert len(held.namelist()) == 4  # two results, one card, the list of copies
        assert json.loads(held.read(COPIES)) == {"s1-seed1/quality_card.json": "s1-seed0/quality_card.json"}


def test_a_folder_of_runs_is_itself(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with runs_folder(tmp_path) as folder:
        assert folder == tmp_path
    assert tmp_path.exists()


def test_a_plain_archive_of_run_folders_is_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "mine.zip", "w") as written:
        written.mkdir("run")
        written.writestr("run/result.json", "{}")
    with runs_folder(tmp_path / "mine.zip") as folder:
        assert content(folder) == {"run/result.json": b"{}"}


@pytest.mark.parametrize(
    "name", ["../evil", "a/../evil", "/tmp/evil", "a/..", "../..", "./a", "a/b/c", "evil", "a\\b", "a/..\\evil"]
)
@pytest.mark.parametrize("as_copy", [False, True])
def test_no_path_leads_outside(tmp_path: Path, name: str, as_copy: bool) -> None:
    copies = {name: "run/result.json"} if as_copy else {}
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as written:
        written.writestr("run/result.json" if as_copy else name, "{}")
        written.writestr("run/other", "{}")
        written.writestr(COPIES, json.dumps(copies))
    with (
        pytest.raises(InputError, match=r"^\S*evil.zip: .* is no file in the folder of a run; nothing was unpacked"),
        runs_folder(tmp_path / "evil.zip"),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["evil.zip"]


def test_size_is_bounded_copies_included(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    total = sum(map(len, FILES.values()))
    write_archive(FILES, tmp_path / ARCHIVE)
    monkeypatch.setattr(archive, "LARGEST", total)
    with runs_folder(tmp_path) as folder:
        assert len(content(folder)) == 4
    monkeypatch.setattr(archive, "LARGEST", total - 1)
    with pytest.raises(InputError, match=r"would take 2,022 bytes unpacked"), runs_folder(tmp_path):
        pass


@pytest.mark.parametrize("damage", ["cut", "text", "byte", "copies", "gone"])
def test_damage_is_told(tmp_path: Path, damage: str) -> None:
    path = tmp_path / ARCHIVE
    write_archive(FILES, path)
    data = path.read_bytes()
    if damage == "copies":
        with zipfile.ZipFile(path, "w") as written:
            written.writestr(COPIES, '{"a/b": "not/there"}')
    elif damage == "gone":
        path.unlink()
    else:
        start = data.index(b"seed0/result.json") + 30
        changed = {"cut": data[:-30], "text": b"text", "byte": data[:start] + b"\xff\xff" + data[start + 2 :]}
        path.write_bytes(changed[damage])
    with pytest.raises(InputError, match=r"runs=.*(is no archive of runs|cannot be read)"), runs_folder(path):
        pass


@pytest.mark.parametrize("form", ["text", "list"])
def test_a_study_is_kept_without_folders_of_this_machine(form: str, tmp_path: Path) -> None:
    run, kept = tmp_path / "multirun" / "mine" / "s1-seed0", tmp_path / "kept"
    run.mkdir(parents=True)
    words = ["dataset.root=/home/me/data", "detector.weights=/home/me/tiny.weights", "study=mine", "seed=0"]
    overrides = " ".join(words) if form == "text" else words  # older versions wrote text
    (run / "result.json").write_text(
        json.dumps({"study": "mine", "overrides": overrides, "metrics": {"test/map": 0.5}})
    )
    (run / "label_card.json").write_text("{}")
    (run / "overlays.png").write_text("a picture")
    (run / "split.json").write_text(json.dumps({"s1": {"train": ["a.png"], "val": ["b.png"], "test": ["c.png"]}}))
    (run / "config.yaml").write_text(
        "dataset: {root: /home/me/my data}\ndetector: {weights: '/home/me/tiny.weights'}\n"
    )
    script = Path(__file__).parents[2] / "benchmarks" / "keep_study.py"
    subprocess.run([sys.executable, str(script), str(run.parent), str(kept)], check=True, capture_output=True)
    assert {path.name for path in kept.iterdir()} == {ARCHIVE, "split.json", "config.yaml"}
    with runs_folder(kept) as folder:
        files = content(folder)
    assert set(files) == {"s1-seed0/result.json", "s1-seed0/label_card.json"}
    result = json.loads(files["s1-seed0/result.json"])
    words = ["dataset.root=FOLDER", "detector.weights=FOLDER/tiny.weights", "seed=0"]
    assert result == {"study": "kept", "overrides": words, "metrics": {"test/map": 0.5}}
    assert (kept / "config.yaml").read_text().split() == (
        "dataset: root: FOLDER detector: weights: FOLDER/tiny.weights".split()
    )
    assert "home" not in "".join(map(str, files.values()))

    # Detections of some runs alone would score these alone on other labels.
    with_detections = run.with_name("s1-seed1")
    shutil.copytree(run, with_detections)
    (with_detections / "detections.json").write_text("[]")
    subprocess.run([sys.executable, str(script), str(run.parent), str(tmp_path / "both")], check=True)
    with runs_folder(tmp_path / "both") as folder:
        assert {Path(file).name for file in content(folder)} == {"result.json", "label_card.json"}

    # The rest of a study that is run in parts: what is there stays.
    later = tmp_path / "later" / "s1-seed1"
    later.mkdir(parents=True)
    (later / "result.json").write_text(json.dumps({"study": "mine", "metrics": {"test/map": 0.6}}))
    (later / "split.json").write_text("{}")
    (later / "config.yaml").write_text("other: true\n")
    more = [sys.executable, str(script), str(later.parent), str(kept), "--add"]
    said = subprocess.run(more, check=True, capture_output=True, text=True).stdout
    assert said.startswith("2 runs in ")
    with runs_folder(kept) as folder:
        assert content(folder) == files | {"s1-seed1/result.json": b'{"study": "kept", "metrics": {"test/map": 0.6}}\n'}
    assert "root" in (kept / "config.yaml").read_text()
    assert "a.png" in (kept / "split.json").read_text()
