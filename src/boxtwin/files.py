"""Files that appear whole or not at all, and one line where a disk or a folder does not take them."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from boxtwin.errors import InputError

# What a file system says that cannot be written to, and how to mend it.
CURES = {
    errno.ENOSPC: "the disk is full{free}: free some space there",
    errno.EDQUOT: "the quota of the disk is used up{free}: free some space there",
    errno.EFBIG: "a file may not grow that large here: raise the limit (ulimit -f)",
    errno.EROFS: "the file system is read-only: choose another folder",
    errno.EACCES: "permission denied: choose another folder, or change its owner or mode",
    errno.EPERM: "operation not permitted: choose another folder, or change its owner or mode",
    errno.ENOTDIR: "a part of the path is a file: choose another folder, or move that file away",
    errno.EISDIR: "there is a folder of this name: move it away, or choose another name",
    errno.ENAMETOOLONG: "the name is too long: choose a shorter one",
}


def refusal(error: BaseException, path: Path | None = None) -> InputError | None:
    """The one line for a disk or folder that does not take a file; None for any other error.

    Args:
        error: an `OSError`, or what libraries make of one (it is found among the causes, or by its text).
        path: of the file, where the error does not name one.
    """
    seen: BaseException | None = error
    while seen is not None:
        number = seen.errno if isinstance(seen, OSError) else None
        if number is None and "PytorchStreamWriter failed" in str(seen):  # torch.save says nothing of the reason
            number = errno.ENOSPC
        if number is None and "database or disk is full" in str(seen):
            number = errno.ENOSPC
        if number is None and "attempt to write a readonly database" in str(seen):
            number = errno.EROFS
        if number in CURES:
            named = getattr(seen, "filename", None)
            place = Path(os.fsdecode(named)) if isinstance(named, str | bytes) and path is None else path
            where = str(place) if place is not None else "a file"
            return InputError(f"{where} cannot be written: {CURES[number].format(free=_free(place))}")
        seen = seen.__cause__ or seen.__context__
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
    except (OSError, RuntimeError) as error:
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
