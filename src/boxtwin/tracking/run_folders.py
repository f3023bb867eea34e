"""Folders of runs, recorded relative to the project's folder, which may be moved or copied."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from boxtwin.files import write_bytes_atomically

log = logging.getLogger(__name__)

MARK = ".identity"  # file in a run's folder
RESULT_FILE = "result.json"  # the last file that a run writes


def recorded_path(output: Path, tracking: Path) -> str:
    """The folder of a run as MLflow's tag holds it: relative to the parent of the folder ``tracking`` if inside."""
    project, output = tracking.resolve().parent, output.resolve()
    return output.relative_to(project).as_posix() if output.is_relative_to(project) else str(output)


def find_folder(recorded: str, tracking: Path, identity: str) -> Path | None:
    """The folder of a finished run in the current place of its project; None if it is gone or another run's.

    Runs of older versions recorded an absolute path. Its end below the current project comes first, so that a copy of a
    project does not read from the original.
    """
    if not recorded:
        return None
    project, path = tracking.resolve().parent, Path(recorded)
    below = [project / path]
    if path.is_absolute():
        below = [project.joinpath(*path.parts[first:]) for first in range(1, len(path.parts))]
    for folder in (*below, path):
        content = read_result(folder)
        if content is not None and content.get("identity") == identity:
            return folder
    return None


def own_folder(output: Path, *identities: str) -> Path:
    """Mark and return the folder that a run may write to: ``output``, or one beside it if that holds another run.

    The caller holds the lock of ``output``. ``identities`` are those of the run in this version and earlier ones.
    """
    for folder in (output, output.with_name(f"{output.name}-{identities[0][:8]}")):
        mark = folder / MARK
        held = mark.read_text() if mark.exists() else (read_result(folder) or {}).get("identity")
        if held is None or held in identities:
            break
        log.info("%s holds another run; the files of this one are kept beside it", output)
    write_bytes_atomically(mark, identities[0].encode())
    return folder


def read_result(folder: Path) -> dict[str, Any] | None:
    """The content of a run's result.json; None where there is none, or it is damaged."""
    try:
        content = json.loads((folder / RESULT_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
