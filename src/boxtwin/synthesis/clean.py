"""Remove data and runs for `make clean`; ask before removing runs and what a person labelled, owns or paid for.

    python -P src/boxtwin/synthesis/clean.py data [--runs multirun mlruns reports] [--confirm]

Runs before the environment is made and after it is broken, so it imports the standard library only.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LABELS = "a person's labels"
STORES, MADE = "synthetic", ("detectors", "cache")


def valuable(data: Path) -> dict[Path, str]:
    """What below ``data`` cannot be made again, with reasons: stores, paid answers, data sets not built here."""
    reasons = {}
    for path in sorted(data.iterdir()) if data.is_dir() else ():
        info = _json(path / "annotations.json").get("info")  # of a simulated data set, what it was built with
        built = isinstance(info, dict) and bool(info.get("parameters"))
        if path.name not in (STORES, *MADE) and not path.name.startswith(".") and not built:
            reasons[path] = "not made by boxtwin"
        elif built and any(map(_is_labelled, sorted(path.glob("*.json")))):
            reasons[path] = LABELS
    stores = data / STORES
    for folder in sorted(stores.iterdir()) if stores.is_dir() else ():
        if folder.name == "models":
            spools = [spool for spool in sorted(folder.glob("*-spool")) if any(spool.iterdir())]
            reasons |= dict.fromkeys(spools, "answers that were paid for")
        elif folder.is_dir() and (reason := _worth(folder)):
            reasons[folder] = reason
        elif folder.is_file() and not folder.name.startswith("."):
            reasons[folder] = LABELS if _is_labelled(folder) else "not made by boxtwin"
    return reasons


def valuable_runs(folders: Sequence[Path]) -> dict[Path, str]:
    """Folders that hold finished runs, their records in MLflow, or reports, with reasons."""
    reasons = {}
    for folder in folders:
        if runs := sum(1 for _ in folder.glob("*/*/result.json")):
            reasons[folder] = f"{runs} finished runs"
        elif (folder / "mlflow.db").exists():
            reasons[folder] = "MLflow's records of runs"
        elif any(folder.glob("*/index.html")) or any(folder.glob("*/primary.yaml")):
            reasons[folder] = "reports"  # the runs may lie elsewhere
    for folder in folders:
        if folder not in reasons:
            reasons |= dict.fromkeys(sorted(folder.glob("*/suspects/corrected*.json")), LABELS)
    return reasons


def _is_labelled(file: Path) -> bool:
    """Whether a file holds labels that a person confirmed or corrected, as review.py writes them."""
    images = _json(file).get("images")
    entries = [image for image in images if isinstance(image, dict)] if isinstance(images, list) else []
    is_version = file.name.startswith("labels-") and bool(entries)
    return is_version or any(image.get("confirmed") is True for image in entries)


def _worth(store: Path) -> str:
    """Why a store is worth keeping; empty if it can be made again."""
    if any(map(_is_labelled, sorted(store.glob("*.json")))):
        return LABELS
    if (store / "exported.json").is_file():
        return "labels for an annotation tool"
    identity = _json(store / "store.json")
    labels = identity.get("labels")
    if "generator" not in identity:
        return "its store.json cannot be read" if any((store / "images").rglob("*.png")) else ""
    if (labels.get("name") if isinstance(labels, dict) else labels) == "manual":
        return "a person labelled it"
    files = [file for name in ("manifest.jsonl", "refused.jsonl") if (file := store / name).exists()]
    lines = [line for file in files for line in file.read_text(errors="replace").splitlines()]
    if paid := sum(float(_object(line).get("cost_usd") or 0) for line in lines):
        return f"it cost {paid:.2f} USD"
    if "reproducible" not in identity:
        return "an earlier version made it and did not record whether it can be made again"
    return "" if identity["reproducible"] else f"{identity['generator']} images come from elsewhere"


def _json(file: Path) -> dict[str, Any]:
    try:
        return _object(file.read_text(errors="replace"))
    except OSError:
        return {}


def _object(text: str) -> dict[str, Any]:
    """The object that a JSON text holds; empty if it is cut short by a kill, or no object."""
    try:
        content = json.loads(text)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


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
    """Remove the folders; without a terminal or consent, runs and what cannot be made again stay."""
    options = argparse.ArgumentParser(description="Remove data and runs; ask before what costs work.")
    options.add_argument("data", type=Path)
    options.add_argument("--runs", type=Path, nargs="*", default=[], help="folders of runs, MLflow store and reports")
    options.add_argument("--confirm", action="store_true", help="remove everything without asking")
    arguments = options.parse_args()
    kept = {} if arguments.confirm else valuable(arguments.data) | valuable_runs(arguments.runs)
    if kept:
        print(
            "These would have to be trained, labelled or paid for again:",
            *(f"  {path}: {reason}" for path, reason in kept.items()),
            sep="\n",
        )
        if sys.stdin.isatty() and input("Remove them too? [y/N] ").strip().lower() in ("y", "yes"):
            kept = {}
        else:
            print("They stay. To remove them as well: make clean CONFIRM=1")
    for folder in (arguments.data, *arguments.runs):
        remove(folder, set(kept))


if __name__ == "__main__":
    main()
