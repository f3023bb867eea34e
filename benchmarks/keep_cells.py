"""Keep a study's cells where they can be published: what `compare.py cells=FOLDER` needs, no pictures, no local paths.

    python benchmarks/keep_cells.py multirun/hrsid200_402 docs/studies/hrsid200

Copies each finished cell's figures, matches and the figures of its store's cards, some 60 kilobytes. Pictures are left
out, since they show images whose licence may not let them be passed on; folders in the overrides become FOLDER.
Cells that are there already are replaced.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from pathlib import Path

COPIED = ("matches.npz", "label_card.json", "quality_card.json")
# A value that begins with / is a path of this machine; of a file the name is kept.
LOCAL_FOLDER = re.compile(r"=/\S*?(?=/[^/\s]+\.\w+(?:\s|$)|\s|$)")
DROPPED = re.compile(r"(?:^|\s)(?:study|tracking\.\w+|data|hydra\.\S+?)=\S+")


def published(overrides: str) -> str:
    """Overrides without folders of this machine, and without those that say where things are kept."""
    return LOCAL_FOLDER.sub("=FOLDER", DROPPED.sub("", overrides)).strip()


def keep(cell: Path, folder: Path) -> None:
    """Copy one cell; its study is called as the folder of all cells is."""
    result = json.loads((cell / "result.json").read_text())
    result["study"] = folder.parent.name
    result["overrides"] = published(result["overrides"])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text(json.dumps(result) + "\n")
    for name in COPIED:
        if (cell / name).exists():
            shutil.copyfile(cell / name, folder / name)


def main() -> None:
    """Copy what is finished and say how much that was."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="folder of cells, such as multirun/NAME")
    parser.add_argument("folder", type=Path, help="where to keep them")
    settings = parser.parse_args()
    cells = sorted(path.parent for path in settings.study.glob("*/result.json"))
    if not cells:
        parser.error(f"{settings.study} holds no finished cell")
    for cell in cells:
        keep(cell, settings.folder / cell.name)
    print(f"{len(cells)} cells kept in {settings.folder}")


if __name__ == "__main__":
    main()
