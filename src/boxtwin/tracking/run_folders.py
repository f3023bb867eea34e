"""Where the folders of runs are: recorded relative to the project's folder, so that it may be moved or copied."""

from __future__ import annotations

import json
from pathlib import Path, PurePath
from typing import Any

RESULT_FILE = "result.json"


def recorded_path(output: Path, tracking: Path) -> str:
    """The folder of a run as MLflow's tag holds it: relative to the folder that holds ``tracking`` if it lies inside.

    Args:
        output: folder of the run.
        tracking: folder of the MLflow store.
    """
    project, output = tracking.resolve().parent, output.resolve()
    return output.relative_to(project).as_posix() if output.is_relative_to(project) else str(output)


def find_folder(recorded: str, tracking: Path, identity: str) -> Path | None:
    """The folder of a finished run, wherever its project lies now; None if it is gone or another run's.

    Runs of older versions recorded an absolute path. The same path below the project as it lies now comes first, so
    that a copy of a project does not read from the original.
    """
    if not recorded:
        return None
    project, path = tracking.resolve().parent, PurePath(recorded)
    parts = path.parts[1:] if path.is_absolute() else path.parts
    below = (
        [project.joinpath(*parts[first:]) for first in range(len(parts))] if path.is_absolute() else [project / path]
    )
    for folder in (*below, Path(path)):
        content = read_result(folder)
        if content is not None and content.get("identity") == identity:
            return folder
    return None


def read_result(folder: Path) -> dict[str, Any] | None:
    """The content of a run's result.json; None where there is none, or it is damaged."""
    try:
        content = json.loads((folder / RESULT_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
