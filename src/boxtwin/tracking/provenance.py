"""Provenance of a run: code, versions, device and precision."""

from __future__ import annotations

import functools
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import boxtwin
from boxtwin.hardware import on_gpu

RECORDED = ("clean", "boxtwin", "recipe", "torch", "cuda", "device", "precision", "threads")
PACKAGE = Path(boxtwin.__file__).resolve().parent


def provenance(accelerator: str, precision: str, threads: int | None, *, recipe: int) -> dict[str, Any]:
    """Plain values for ``result.json``; accelerator and precision as Lightning calls them, threads None for torch's."""
    return {
        **git_state(),
        "boxtwin": boxtwin.__version__,
        "recipe": recipe,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "device": torch.cuda.get_device_name() if on_gpu(accelerator) else accelerator,
        "precision": precision,
        "threads": torch.get_num_threads() if threads is None else threads,
    }


@functools.cache
def git_state(package: Path = PACKAGE) -> dict[str, Any]:
    """Commit of the running code, and whether its tracked files are unchanged; None outside its own checkout.

    So a package that is installed below another project's checkout has no commit.
    """
    top = _git(package, "rev-parse", "--show-toplevel")
    commit = _git(package, "rev-parse", "HEAD")
    if top is None or commit is None or Path(top).resolve() not in (package.parents[1], package.parent):
        return {"commit": None, "clean": None}
    changed = _git(package, "status", "--porcelain", "--untracked-files=no", "--", str(package))
    return {"commit": commit, "clean": changed == ""}


def _git(folder: Path, *arguments: str) -> str | None:
    """The output of git; None if it fails or is not installed."""
    command = ("git", "-C", str(folder), *arguments)
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def tags(record: dict[str, Any]) -> dict[str, str]:
    """A record of `provenance` as tags: MLflow's own where it has them."""
    names = {name: f"boxtwin.{name}" for name in record} | {"commit": "mlflow.source.git.commit"}
    source = {"mlflow.source.name": "train.py", "mlflow.source.type": "LOCAL"}
    return source | {names[name]: str(value) for name, value in record.items() if value is not None}


def code_tags(run_tags: Mapping[str, str]) -> dict[str, str]:
    """The tags of a run that `tags` wrote, for a run that reuses its result."""
    names = {f"boxtwin.{name}" for name in RECORDED}
    return {key: value for key, value in run_tags.items() if key.startswith("mlflow.source.") or key in names}


def code_of(run_tags: Mapping[str, str]) -> str:
    """The code of a run from its `tags`, such as ``commit 4437dbc1 (changed), recipe 1``; old runs have recipe 1."""
    commit, recipe = run_tags.get("mlflow.source.git.commit"), run_tags.get("boxtwin.recipe", 1)
    if commit is None:
        return f"a commit that was not recorded, recipe {recipe}"
    return f"commit {commit[:8]}{'' if run_tags.get('boxtwin.clean') == 'True' else ' (changed)'}, recipe {recipe}"
