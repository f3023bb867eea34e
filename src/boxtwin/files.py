"""Files that appear whole or not at all, and one line where a disk or a folder does not take them."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from boxtwin.errors import InputError, WriteError

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
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` to write to, renamed to it at the end; nothing is left if writing fails.

    Raises:
        InputError: the disk or the folder does not take it.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


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
