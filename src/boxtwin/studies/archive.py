"""The runs of a study in one zip file: ``<run>/result.json``, ``<run>/matches.npz`` and what else compare.py reads.

Equal files of several runs, such as the card of a variation store, are held once, in the folder of the first run.
``copies.json`` in the archive lists the others: ``{"<run>/quality_card.json": "<first run>/quality_card.json"}``.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from boxtwin.errors import InputError
from boxtwin.files import atomic_path

ARCHIVE = "runs.zip"
COPIES = "copies.json"
MEMBER = re.compile(r"(?!\.+/)[^/\\\0]+/(?!\.+$)[^/\\\0]+")  # a file in the folder of a run, nowhere else
# What reading meets in bytes that are no zip archive, no list of copies, or damaged.
BROKEN = (zipfile.BadZipFile, zlib.error, AttributeError, EOFError, LookupError, RuntimeError, TypeError, ValueError)
LARGEST = 2 << 30  # bytes unpacked; 90 runs take 4 MB


@contextmanager
def runs_folder(path: Path) -> Iterator[Path]:
    """The folder of runs at ``path``, or a temporary one with what is in the archive at ``path`` or in that folder.

    Raises:
        InputError: the archive is damaged, names a file outside of a run's folder, or is larger than `LARGEST`.
    """
    if path.is_dir() and not (path / ARCHIVE).exists():
        yield path
        return
    archive = path / ARCHIVE if path.is_dir() else path
    with tempfile.TemporaryDirectory() as temporary:
        # Messages and links name the study by its folder.
        folder = Path(temporary) / archive.absolute().parent.name
        _unpack(archive, folder)
        yield folder


def _unpack(archive: Path, folder: Path) -> None:
    try:
        with zipfile.ZipFile(archive) as content:
            sizes = {entry.filename: entry.file_size for entry in content.infolist() if not entry.is_dir()}
            if sizes.pop(COPIES, 0) > LARGEST:
                raise InputError(f"{archive}: {COPIES} is too large")
            copies = json.loads(content.read(COPIES)) if COPIES in content.namelist() else {}
            outside = [name for name in (*sizes, *copies) if not MEMBER.fullmatch(name)]
            if outside:
                raise InputError(f"{archive}: {outside[0]!r} is no file in the folder of a run; nothing was unpacked")
            total = sum(sizes.values()) + sum(sizes[original] for original in copies.values())
            if total > LARGEST:
                raise InputError(f"{archive} would take {total:,} bytes unpacked; {LARGEST:,} is the most")
            for name in sizes:
                content.extract(name, folder)
            for copy, original in copies.items():
                (folder / copy).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(folder / original, folder / copy)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"runs={archive} cannot be read: {error.strerror}") from error
    except BROKEN as error:
        raise InputError(f"runs={archive} is no archive of runs, or is damaged: {error}") from error


def write_archive(files: Mapping[str, bytes], path: Path) -> None:
    """Write an archive of ``files``, content by ``<run>/<file name>``; the same files give the same bytes."""
    first: dict[bytes, str] = {}
    for name, data in sorted(files.items()):
        first.setdefault(data, name)
    copies = {name: first[data] for name, data in sorted(files.items()) if first[data] != name}
    members = {name: data for data, name in first.items()} | {COPIES: json.dumps(copies, indent=1).encode()}
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as content:
        for name, data in members.items():
            entry = zipfile.ZipInfo(name)  # of a fixed date
            entry.external_attr = 0o644 << 16
            content.writestr(entry, data, zipfile.ZIP_DEFLATED, compresslevel=9)
