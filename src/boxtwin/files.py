"""Writing files safely: atomic writes, hard links, leftovers, locks, and one-line errors of disks and folders."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from boxtwin.errors import InputError, WriteError

log = logging.getLogger(__name__)

# Errors of a file system that cannot be written to, and how to repair them.
CURES = {
    errno.ENOSPC: "no space is left on the disk{free}: free some space there, or raise a limit for files (ulimit -f)",
    errno.EDQUOT: "the quota of the disk is used up{free}: free some space there",
    errno.EFBIG: "a file may not grow that large here: raise the limit (ulimit -f)",
    errno.EIO: "the disk is full, damaged or not connected{free}: free some space there, or choose another folder",
    errno.EROFS: "the file system is read-only: choose another folder",
    errno.EACCES: "permission denied: choose another folder, or change its owner or mode",
    errno.EPERM: "operation not permitted: choose another folder, or change its owner or mode",
    errno.ENOTDIR: "a part of the path is a file: choose another folder, or move that file away",
    errno.EEXIST: "a part of the path is a file: choose another folder, or move that file away",
    errno.ENOTEMPTY: "the folder is there already, with files: choose another folder, or move it away",
    errno.EISDIR: "there is a folder of this name: move it away, or choose another name",
    errno.ENAMETOOLONG: "the name is too long: choose a shorter one",
}

# Messages of torch.save and sqlite, which hide the error of the system.
LIBRARY_MESSAGES = {
    **dict.fromkeys(("PytorchStreamWriter failed", "iostream error", "unexpected pos ", "disk I/O error"), errno.EIO),
    "database or disk is full": errno.ENOSPC,
    "attempt to write a readonly database": errno.EROFS,
}
WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
GRACE = 2.0  # seconds after which a lock that is held must have a file


def write_error(error: BaseException, path: Path | None = None) -> WriteError | None:
    """One line for a disk or folder that does not take a file, which may be named by ``path``; None for other errors.

    The `OSError` may be the cause of ``error``, or a library may have given its text alone.
    """
    if isinstance(error, InputError):
        return error if isinstance(error, WriteError) else None
    cause: BaseException | None = error
    raised_from = True  # not an error that was being handled when another one was raised
    while cause is not None:
        number = cause.errno if isinstance(cause, OSError) else None
        failed_writing = number in WRITING
        if number is None:
            number = next((number for text, number in LIBRARY_MESSAGES.items() if text in str(cause)), None)
            failed_writing = number is not None
        if number is not None and (failed_writing or (raised_from and number in CURES)):
            named = getattr(cause, "filename", None)
            place = Path(os.fsdecode(named)) if isinstance(named, str | bytes) and path is None else path
            verb = "written" if path is not None or failed_writing else "opened"
            folder = (place or Path.cwd()).absolute()
            while not folder.is_dir():
                folder = folder.parent
            free = f" ({shutil.disk_usage(folder).free / 1e6:,.1f} MB free in {folder})"
            return WriteError(f"{place or 'a file'} cannot be {verb}: {CURES[number].format(free=free)}")
        raised_from = raised_from and cause.__cause__ is not None
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return None


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise a `WriteError` with path, reason and remedy for errors of a disk or folder while ``path`` is written."""
    try:
        yield
    except Exception as error:
        line = write_error(error, path)
        if line is None:
            raise
        raise line from error


@contextmanager
def atomic_path(path: Path, *, new_folder: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` for a file or a folder, which replaces ``path`` when the block ends.

    So ``path`` is never incomplete. If the block raises, the temporary file is removed and ``path`` stays as it was.
    Raises `WriteError` if the disk or the folder does not take it, or if a ``new_folder`` has got files meanwhile.
    """
    if path.is_symlink() and path.is_dir():  # the folder that it leads to is replaced, on its own disk
        path = path.resolve()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            if temporary.is_dir() and path.is_dir() and not new_folder:
                old = temporary.with_suffix(".old.part")  # a folder cannot be renamed to one that is not empty
                path.rename(old)
                try:
                    temporary.rename(path)
                except BaseException:
                    old.rename(path)
                    raise
                _remove(old)
            else:
                temporary.replace(path)
        except BaseException:
            _remove(temporary)
            raise


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_bytes_atomically(path: Path, content: bytes) -> None:
    """Write a file with `atomic_path`."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def link_file(source: Path, target: Path) -> None:
    """Hard-link a file, or copy it if the disk has no links. A file at ``target`` is replaced.

    Of a symbolic link, the file that it leads to is linked: a relative one would lead nowhere from another folder.
    """
    with atomic_path(target) as temporary:
        _remove(temporary)
        try:
            os.link(source.resolve(), temporary)
        except OSError:
            shutil.copyfile(source, temporary)
    temporary.unlink(missing_ok=True)  # renaming does nothing where both are links to one file (POSIX, rename)


def remove_leftovers(folder: Path, name: str | None = None) -> None:
    """Remove temporary files that killed writers left; the caller holds the folder's lock.

    They are those of ``name``, directly in ``folder``; for None of all files in and below it.
    """
    if name is None:
        paths = list(folder.rglob(".*.part"))
    else:  # and a database's journal; not those of a file whose longer name begins with this one
        pattern = re.compile(rf"\.{re.escape(name)}(\.\d+)?(\.old)?\.part.*")
        paths = [path for path in folder.glob(".*.part*") if pattern.fullmatch(path.name)]
    for path in paths:
        _remove(path)


def remove_unwritten(output: Path, made: Collection[str]) -> None:
    """Remove the folder of a job that was refused before it wrote anything but what is ``made`` for each job.

    Folders above it, below the working folder, go too if they are empty then.
    """
    if output in (here := Path.cwd(), *here.parents) or {path.name for path in output.iterdir()} - {*made}:
        return
    for name in made:
        _remove(output / name)
    with contextlib.suppress(OSError):  # one that is not empty
        for folder in (output, *(each for each in output.parents if here in each.parents)):
            folder.rmdir()


@contextmanager
def exclusive_lock(file: Path, waiting: str) -> Iterator[None]:
    """Hold an inter-process file lock, released when its process ends; log ``waiting`` if another process holds it.

    Raises `WriteError` if the file cannot be made, which filelock takes for a lock that another process holds.
    """
    from filelock import FileLock, Timeout  # late: an exported model reads images without this package

    file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(file)
    try:
        held = lock.acquire(timeout=0)
    except Timeout:
        log.info("%s", waiting)
        try:
            held = lock.acquire(timeout=GRACE)
        except Timeout:
            if not file.exists():
                raise WriteError(f"{file} cannot be made; choose a folder that can be written to") from None
            held = lock.acquire()
    with held:
        yield


@contextmanager
def lock_beside(folder: Path, work: str) -> Iterator[None]:
    """Hold the lock of a folder that is written as a whole, ``.NAME.lock`` beside it; remove what killed writers left.

    If another process holds it, ``another process WORK FOLDER; waiting`` is logged.
    """
    target = folder.absolute()  # "." has no name
    with exclusive_lock(target.with_name(f".{target.name}.lock"), f"another process {work} {folder}; waiting"):
        remove_leftovers(target.parent, target.name)
        yield


def check_target(folder: Path, setting: str) -> None:
    """Raise `InputError` if no folder can be made at ``folder``, the value of ``setting``: a file is there or above."""
    for place in (folder.absolute(), *folder.absolute().parents):
        if place.is_symlink() and not place.exists():
            raise InputError(f"{setting}={folder}: {place} is a link to nothing; remove it, or give another folder")
        if place.exists() and not place.is_dir():
            raise InputError(f"{setting}={folder}: {place} is a file; give another folder")


def check_name(name: object, what: str) -> None:
    """Raise `InputError` if a name has separators of paths or control characters, or stands for a folder above."""
    if name is None:
        return
    text = str(name)
    if text.strip() in ("", ".", "..") or text.startswith("~") or any(c in "/\\" or not c.isprintable() for c in text):
        raise InputError(f"{what}={text!r} cannot be the name of a folder: use letters, digits, '-', '_' and '.'")
