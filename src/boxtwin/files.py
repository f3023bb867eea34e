"""Writing files safely: atomic writes, hard links, leftovers, locks, and one-line errors of disks and folders."""

from __future__ import annotations

import errno
import glob
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from boxtwin.errors import InputError, WriteError

log = logging.getLogger(__name__)

# What a file system says that cannot be written to, and how to mend it.
CURES = {
    errno.ENOSPC: "the disk takes no more{free}: free some space there, or raise a limit for files (ulimit -f)",
    errno.EDQUOT: "the quota of the disk is used up{free}: free some space there",
    errno.EFBIG: "a file may not grow that large here: raise the limit (ulimit -f)",
    errno.EROFS: "the file system is read-only: choose another folder",
    errno.EACCES: "permission denied: choose another folder, or change its owner or mode",
    errno.EPERM: "operation not permitted: choose another folder, or change its owner or mode",
    errno.ENOTDIR: "a part of the path is a file: choose another folder, or move that file away",
    errno.EEXIST: "a part of the path is a file: choose another folder, or move that file away",
    errno.EISDIR: "there is a folder of this name: move it away, or choose another name",
    errno.ENAMETOOLONG: "the name is too long: choose a shorter one",
}

# What libraries say that keep the system's error to themselves: torch.save, and sqlite.
SAID = {
    "PytorchStreamWriter failed": errno.ENOSPC,
    "iostream error": errno.ENOSPC,
    "unexpected pos ": errno.ENOSPC,
    "database or disk is full": errno.ENOSPC,
    "disk I/O error": errno.ENOSPC,
    "attempt to write a readonly database": errno.EROFS,
}
WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def refusal(error: BaseException, path: Path | None = None) -> WriteError | None:
    """The one line for a disk or folder that does not take a file; None for any other error.

    Args:
        error: an `OSError`, or what libraries make of one (it is found among the causes, or by its text).
        path: of the file, where the error does not name one.
    """
    if isinstance(error, InputError):
        return error if isinstance(error, WriteError) else None
    seen: BaseException | None = error
    meant = True  # not an error that merely was being handled when another one came up
    while seen is not None:
        number = seen.errno if isinstance(seen, OSError) else None
        if number is None:
            number = next((number for text, number in SAID.items() if text in str(seen)), None)
        if number in WRITING or (meant and number in CURES):
            named = getattr(seen, "filename", None)
            place = Path(os.fsdecode(named)) if isinstance(named, str | bytes) and path is None else path
            where = str(place) if place is not None else "a file"
            verb = "written" if path is not None or number in WRITING else "opened"
            return WriteError(f"{where} cannot be {verb}: {CURES[number].format(free=_free(place))}")
        meant = meant and seen.__cause__ is not None
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
    return None


def _free(path: Path | None) -> str:
    folder = (path or Path.cwd()).absolute()
    while not folder.is_dir():
        folder = folder.parent
    return f" ({shutil.disk_usage(folder).free / 1e6:,.1f} MB free in {folder})"


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what a disk or folder says while ``path`` is written into one line.

    Raises:
        InputError: with path, reason and cure.
    """
    try:
        yield
    except Exception as error:
        line = refusal(error, path)
        if line is None:
            raise
        raise line from error


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` for a file or a folder, which replaces ``path`` when the block ends.

    No reader, and no kill, ever meets half of it. If the block raises, what it wrote is removed and ``path`` stays as
    it was.

    Raises:
        InputError: the disk or the folder does not take it.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            if temporary.is_dir() and path.is_dir():  # a folder cannot be renamed to one that is not empty
                old = temporary.with_suffix(".old.part")
                path.rename(old)
                temporary.rename(path)
                _remove(old)
            else:
                temporary.replace(path)
        except BaseException:
            _remove(temporary)
            raise


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_bytes_atomically(path: Path, content: bytes) -> None:
    """Write a file with `atomic_path`.

    Raises:
        InputError: the disk or the folder does not take it.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def link_file(there: Path, here: Path) -> None:
    """One file under two names; a copy where the disk has no links. A file at ``here`` is replaced."""
    with atomic_path(here) as temporary:
        temporary.unlink(missing_ok=True)
        try:
            os.link(there, temporary)
        except OSError:
            shutil.copyfile(there, temporary)
    temporary.unlink(missing_ok=True)  # renaming does nothing where both are links to one file (POSIX, rename)


def remove_leftovers(folder: Path, name: str | None = None) -> None:
    """Remove what killed writers left of `atomic_path` in a folder; only for the holder of the folder's lock.

    Args:
        folder: looked through with all that is below it.
        name: of the one file or folder, directly in ``folder``, whose leftovers are removed; None for all.
    """
    for path in [*(folder.rglob(".*.part") if name is None else folder.glob(f".{glob.escape(name)}.*part*"))]:
        _remove(path)


@contextmanager
def exclusive_lock(file: Path, waiting: str) -> Iterator[None]:
    """Hold an inter-process file lock, which is free again when its process ends or is killed.

    Args:
        file: of the lock; its folder is made if it is missing.
        waiting: logged if another process holds the lock.
    """
    from filelock import FileLock, Timeout  # here: an exported model reads images without this package

    file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("%s", waiting)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def check_name(name: object, what: str) -> None:
    """Refuse a name that would lead out of the folder that is made for it.

    Raises:
        InputError: it has separators of paths or control characters, or stands for a folder above.
    """
    if name is None:
        return
    text = str(name)
    if text.strip() in ("", ".", "..") or text.startswith("~") or any(c in "/\\" or not c.isprintable() for c in text):
        raise InputError(f"{what}={text!r} cannot be the name of a folder: use letters, digits, '-', '_' and '.'")
