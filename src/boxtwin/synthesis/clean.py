"""What `make clean` does to the folder of data: asks before it removes what a person labelled, owns or paid for.

    python -P src/boxtwin/synthesis/clean.py data [--confirm]

Runs before the environment is made and after it is broken, so it imports the standard library only.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

# Made on this machine from the images at hand, at no cost but time; every other generator's images cannot be had again.
LOCAL = (
    *("repeat", "copy_paste", "img2img", "inpaint_background", "inpaint_pretrained", "sd_variations", "unclip"),
    *("pixel_ddpm", "pixel_ddpm_joint", "pixel_ddpm_layout", "pixel_ddpm_sketch"),
)
STORES, MADE = "synthetic", ("detectors", "cache")


def valuable(data: Path) -> dict[Path, str]:
    """What below ``data`` cannot be made again, with reasons: stores, paid answers, data sets not built here."""
    found = {}
    for path in sorted(data.iterdir()) if data.is_dir() else ():
        if path.name in MADE or path.name == STORES or path.name.startswith("."):
            continue
        if not _built(path):
            found[path] = "not made by boxtwin"
    stores = data / STORES
    for folder in sorted(stores.iterdir()) if stores.is_dir() else ():
        if folder.name == "models":
            spools = [spool for spool in sorted(folder.glob("*-spool")) if any(spool.iterdir())]
            found |= dict.fromkeys(spools, "answers that were paid for")
        elif folder.is_dir() and (reason := _worth(folder)):
            found[folder] = reason
    return found


def _built(folder: Path) -> bool:
    """Whether it is a simulated data set, which says what it was built with."""
    try:
        return bool(json.loads((folder / "annotations.json").read_text())["info"]["parameters"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _worth(store: Path) -> str:
    """Why a store is worth keeping; empty if it can be made again."""
    try:
        identity = json.loads((store / "store.json").read_text())
        generator, labels = str(identity["generator"]), _name(identity["labels"])
    except (OSError, ValueError, KeyError, TypeError):
        return "its store.json cannot be read" if any((store / "images").rglob("*.png")) else ""
    if labels == "manual":
        return "a person labelled it"
    if any(image.get("confirmed") is True for image in _images(store / "annotations.json")):
        return "a person confirmed labels in it"
    paid = sum(float(line.get("cost_usd") or 0) for line in _lines(store / "manifest.jsonl"))
    if paid:
        return f"it cost {paid:.2f} USD"
    return "" if generator in LOCAL else f"{generator} made it elsewhere"


def _name(labels: Any) -> str:
    return str(labels.get("name")) if isinstance(labels, dict) else str(labels)


def _images(file: Path) -> list[dict[str, Any]]:
    try:
        return [image for image in json.loads(file.read_text())["images"] if isinstance(image, dict)]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _lines(file: Path) -> list[dict[str, Any]]:
    lines = []
    for text in file.read_text(errors="replace").splitlines() if file.exists() else ():
        try:
            lines.append(json.loads(text))
        except ValueError:  # cut short by a kill
            continue
    return [line for line in lines if isinstance(line, dict)]


def remove(folder: Path, kept: set[Path]) -> None:
    """Remove a folder but for what is in ``kept``, and the folders that lead there."""
    if folder in kept:
        return
    holds = any(folder in path.parents for path in kept)
    if folder.is_file() or (folder.is_symlink() and not holds):
        folder.unlink()
    elif folder.is_dir() and not holds:
        shutil.rmtree(folder)
    elif folder.is_dir():
        for path in list(folder.iterdir()):
            remove(path, kept)


def main() -> None:
    """Remove the folder; without a terminal or consent, what cannot be made again stays."""
    options = argparse.ArgumentParser(description="Remove the folder of data; ask before what cannot be made again.")
    options.add_argument("data", type=Path)
    options.add_argument("--confirm", action="store_true", help="remove everything without asking")
    arguments = options.parse_args()
    found = {} if arguments.confirm else valuable(arguments.data)
    if found:
        print("These cannot be made again:", *(f"  {path}: {reason}" for path, reason in found.items()), sep="\n")
        if sys.stdin.isatty() and input("Remove them too? [y/N] ").strip().lower() in ("y", "yes"):
            found = {}
        else:
            print("They stay. To remove them as well: make clean CONFIRM=1")
    remove(arguments.data, set(found))


if __name__ == "__main__":
    main()
