"""Files on disks that are full, read-only or closed: one line, and nothing half-written."""

from __future__ import annotations

import errno
import os
import resource
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from boxtwin.datasets.image_io import write_png
from boxtwin.detector.darknet import write_darknet
from boxtwin.detector.network import PUBLISHED_ANCHORS, YOLOv3
from boxtwin.detector.training import CheckpointFiles
from boxtwin.errors import InputError, WriteError
from boxtwin.files import (
    atomic_path,
    check_name,
    check_target,
    exclusive_lock,
    link_file,
    lock_beside,
    remove_leftovers,
    write_bytes_atomically,
    write_error,
    writing,
)


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """As on a disk with so many bytes left."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


WRITERS: dict[str, Callable[[Path], object]] = {
    "bytes": lambda path: write_bytes_atomically(path, bytes(100_000)),
    "png": lambda path: write_png(path, np.random.default_rng(0).integers(0, 256, (300, 300)).astype(np.uint8)),
    "checkpoint": lambda path: CheckpointFiles().save_checkpoint({"weights": torch.rand(30_000)}, path),
    "darknet": lambda path: write_darknet(YOLOv3("yolov3_tiny", 1, PUBLISHED_ANCHORS["yolov3_tiny"]), path, seen=0),
    "link": lambda path: link_file(Path(__file__).parent / "conftest.py", path),
}


@pytest.mark.parametrize("name", [name for name in WRITERS if name != "link"])
def test_a_full_disk_is_told_with_path_and_cure_and_leaves_what_was_there(tmp_path: Path, name: str) -> None:
    path = tmp_path / "last.ckpt"
    path.write_bytes(b"older")
    with files_of_at_most(20_000), pytest.raises(WriteError) as caught:
        WRITERS[name](path)
    (line,) = str(caught.value).splitlines()
    assert str(path) in line
    assert "limit" in line or "free" in line
    assert path.read_bytes() == b"older"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", WRITERS)
def test_a_path_below_a_file_is_told(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(WriteError, match="a part of the path is a file") as caught:
        WRITERS[name](tmp_path / "file" / "below")
    assert str(tmp_path / "file" / "below") in str(caught.value)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_what_the_system_says_becomes_one_line_with_the_path_it_names(tmp_path: Path, number: int) -> None:
    said = OSError(number, os.strerror(number), str(tmp_path / "x"))
    wrapped = RuntimeError("a library's word")
    wrapped.__cause__ = said
    for error in (said, wrapped):
        line = write_error(error)
        assert line is not None
        assert str(line).startswith(f"{tmp_path / 'x'} cannot be ")
        assert "\n" not in str(line)


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    assert write_error(ValueError("x")) is None
    assert write_error(FileNotFoundError(errno.ENOENT, "gone")) is None
    # A file that cannot be read was told by who read it.
    told = InputError("labels cannot be read")
    told.__cause__ = PermissionError(errno.EACCES, "denied", "labels.json")
    assert write_error(told) is None

    def broken_off() -> None:
        with atomic_path(tmp_path / "x") as temporary:
            temporary.touch()
            raise ValueError("ours")

    with pytest.raises(ValueError, match="ours"):
        broken_off()
    assert not list(tmp_path.iterdir())


def test_an_error_that_came_up_while_another_was_handled_keeps_its_own_words() -> None:
    def unrelated() -> None:
        try:
            raise PermissionError(errno.EACCES, "denied", "somewhere")
        except OSError:
            raise KeyError("unrelated")  # noqa: B904

    with pytest.raises(KeyError) as error:
        unrelated()
    assert write_error(error.value) is None
    caused = RuntimeError("library")
    caused.__cause__ = PermissionError(errno.EACCES, "denied", "somewhere")
    assert "somewhere" in str(write_error(caused))


def test_pictures_and_databases_of_libraries_are_told_too(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space") as caught:
        Figure().savefig("/dev/full", format="png")
    assert "free" in str(write_error(caught.value))
    database = sqlite3.connect(tmp_path / "x.db")
    with files_of_at_most(4096), pytest.raises(sqlite3.Error) as failed:
        database.executescript("create table a (b); insert into a values (zeroblob(100000));")
    database.close()
    assert write_error(failed.value) is not None
    with pytest.raises(WriteError, match="no space"), writing(tmp_path):
        raise sqlite3.OperationalError("database or disk is full")
    # These may be a full disk, a damaged one or one that is gone.
    for text in ("disk I/O error", "[enforce fail at inline_container.cc] . PytorchStreamWriter failed writing file"):
        with pytest.raises(WriteError, match="cannot be written: the disk is full, damaged or not"), writing(tmp_path):
            raise RuntimeError(text)
    assert "x cannot be opened: the disk is full, damaged" in str(write_error(OSError(errno.EIO, "I/O error", "x")))


@pytest.mark.parametrize("name", ["..", "a/b", "../../etc", "a\\b", "", " ", "a\nb", "a\x00b", "~root", "."])
def test_names_that_lead_elsewhere_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="study="):
        check_name(name, "study")


@pytest.mark.parametrize("name", ["s", "hrsid200", "my study", "Übung-2", "a..b", "x.y", None])
def test_names_of_studies_are_taken(name: str | None) -> None:
    check_name(name, "study")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write_bytes_atomically(path, b"old")
    path.with_name(f".a.bin.{os.getpid()}.part").mkdir()  # the disk says no
    with pytest.raises(WriteError, match=r"a\.bin cannot be written: there is a folder"):
        write_bytes_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    write_bytes_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_leftovers_of_killed_writers_go_and_nothing_else(tmp_path: Path) -> None:
    write_bytes_atomically(tmp_path / "deep" / "a.bin", b"whole")
    (tmp_path / "deep" / ".a.bin.123.part").write_bytes(b"ha")
    (tmp_path / "notes.part").write_bytes(b"somebody's own")
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == ["a.bin", "notes.part"]


def test_a_file_linked_twice_leaves_nothing_beside_it(tmp_path: Path) -> None:
    (tmp_path / "there.png").write_bytes(b"pixels")
    for _ in range(2):
        link_file(tmp_path / "there.png", tmp_path / "cell" / "here.png")
    assert [path.name for path in (tmp_path / "cell").iterdir()] == ["here.png"]
    assert (tmp_path / "cell" / "here.png").read_bytes() == b"pixels"


def test_a_folder_appears_whole_or_not_at_all_and_replaces_an_older_one(tmp_path: Path) -> None:
    def write(text: str, *, fails: bool) -> None:
        with atomic_path(tmp_path / "model") as folder:
            folder.mkdir()
            (folder / text).touch()
            if fails:
                raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011
        write("half", fails=True)
    assert list(tmp_path.iterdir()) == []
    for name in ("first", "second"):
        write(name, fails=False)
        assert [path.name for path in (tmp_path / "model").iterdir()] == [name]
        assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_leftovers_of_one_name_go_with_what_lies_below(tmp_path: Path) -> None:
    (tmp_path / ".scenes.123.part" / "images").mkdir(parents=True)
    (tmp_path / ".mlflow.db.7.part").touch()
    (tmp_path / ".mlflow.db.7.part-journal").touch()
    (tmp_path / ".scenes.5.old.part").mkdir()
    remove_leftovers(tmp_path, "scenes")
    assert {path.name for path in tmp_path.iterdir()} == {".mlflow.db.7.part", ".mlflow.db.7.part-journal"}
    remove_leftovers(tmp_path, "mlflow")  # another name
    assert len(list(tmp_path.iterdir())) == 2
    remove_leftovers(tmp_path, "mlflow.db")
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_waits_for_a_lock_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lock = tmp_path / "deep" / ".lock"
    holder = (
        "import sys\nfrom pathlib import Path\nfrom boxtwin.files import exclusive_lock\n"
        "with exclusive_lock(Path(sys.argv[1]), 'not logged'):\n"
        "    print('held', flush=True)\n    sys.stdin.read()\n"
    )
    with subprocess.Popen([sys.executable, "-c", holder, str(lock)], stdin=-1, stdout=-1, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        threading.Timer(0.5, process.stdin.close).start()
        with caplog.at_level("INFO"), exclusive_lock(lock, "another process is at it; waiting"):
            assert process.wait(10) == 0
    assert "another process is at it; waiting" in caplog.text


@pytest.mark.parametrize("name", ["report", "."])
def test_what_killed_writers_of_a_folder_left_is_removed_under_its_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / "work" / "report").mkdir(parents=True)
    written = tmp_path / "work" / name
    monkeypatch.chdir(written)
    folder = Path(name) if name == "." else written
    for path in ("work/.report.9.part", ".work.9.part", "work/.other.9.part"):
        (tmp_path / path).mkdir()
    with lock_beside(folder, "writes"):
        name = written.resolve().name
        assert (written.resolve().parent / f".{name}.lock").exists()
        left = {path.name for path in tmp_path.rglob(".*.part")}
    assert left == {".report.9.part", ".work.9.part", ".other.9.part"} - {f".{name}.9.part"}


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder in which no file can be made")
def test_a_lock_that_cannot_be_made_is_not_waited_for() -> None:
    with pytest.raises(WriteError, match="cannot be made"), exclusive_lock(Path("/proc/.boxtwin.lock"), "waiting"):
        pass


def test_the_file_that_a_link_leads_to_is_linked(tmp_path: Path) -> None:
    """Files of some tools are relative symbolic links into a store."""
    for folder in ("raw", "images", "out"):
        (tmp_path / folder).mkdir()
    (tmp_path / "raw" / "a.png").write_bytes(b"pixels")
    (tmp_path / "images" / "a.png").symlink_to("../raw/a.png")
    link_file(tmp_path / "images" / "a.png", tmp_path / "out" / "deeper.png")
    assert not (tmp_path / "out" / "deeper.png").is_symlink()
    assert (tmp_path / "out" / "deeper.png").read_bytes() == b"pixels"


def test_a_new_folder_that_got_files_meanwhile_is_kept(tmp_path: Path) -> None:
    folder = tmp_path / "labels"

    def write() -> None:
        with atomic_path(folder, new_folder=True) as temporary:
            temporary.mkdir()
            (temporary / "ours").touch()
            folder.mkdir()
            (folder / "theirs").touch()

    with pytest.raises(WriteError, match="labels cannot be written: the folder is there already, with files"):
        write()
    assert [path.name for path in tmp_path.rglob("*")] == ["labels", "theirs"]


def test_a_folder_that_cannot_be_replaced_is_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "older").touch()
    rename = Path.rename

    def refused(self: Path, target: Path) -> Path:
        if self.name.endswith(f"{os.getpid()}.part"):
            raise OSError(errno.EIO, "no")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refused)
    with pytest.raises(WriteError), atomic_path(folder) as temporary:
        temporary.mkdir()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["older", "run"]


def test_targets_at_which_no_folder_can_be_made_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    for path, reason in (("file", "file is a file"), ("file/a/b", "file is a file"), ("link/a", "a link to nothing")):
        with pytest.raises(InputError, match=f"folder=.*{reason}"):
            check_target(tmp_path / path, "folder")
    check_target(tmp_path / "new" / "folder", "folder")
    check_target(tmp_path, "folder")
