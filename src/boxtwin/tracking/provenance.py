"""What made a run: code, versions, device and precision, as it is recorded with every result."""

from __future__ import annotations

import functools
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import boxtwin

RECORDED = ("clean", "boxtwin", "recipe", "torch", "cuda", "device", "precision", "threads")
PACKAGE = Path(boxtwin.__file__).resolve().parent


def provenance(*, accelerator: str, precision: str, threads: int | None, recipe: int) -> dict[str, Any]:
    """Plain values for ``result.json``.

    Args:
        accelerator: what Lightning runs on, such as ``cpu`` or ``cuda``.
        precision: resolved, as Lightning calls it, such as ``bf16-mixed``.
        threads: that torch was told to use; None where it chooses.
        recipe: version of training and evaluation.
    """
    on_gpu = accelerator in ("cuda", "gpu") and torch.cuda.is_available()
    return {
        **git_state(),
        "boxtwin": boxtwin.__version__,
        "recipe": recipe,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "device": torch.cuda.get_device_name() if on_gpu else accelerator,
        "precision": precision,
        "threads": torch.get_num_threads() if threads is None else threads,
    }


@functools.cache
def git_state(package: Path = PACKAGE) -> dict[str, Any]:
    """Commit of the code that runs, and whether tracked files are as committed; None where it is in no checkout.

    A package that is installed into another project's folder does not take that project's commit for its own.
    """
    unknown = {"commit": None, "clean": None}
    top = _git(package, "rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() not in (package.parents[1], package.parent):
        return unknown
    commit = _git(package, "rev-parse", "HEAD")
    changed = _git(package, "status", "--porcelain", "--untracked-files=no", "--", str(package))
    return unknown if commit is None else {"commit": commit, "clean": changed == ""}


def _git(folder: Path, *arguments: str) -> str | None:
    """What git prints; None where there is no git, or it fails."""
    try:
        done = subprocess.run(
            ("git", "-C", str(folder), *arguments), capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def tags(record: dict[str, Any]) -> dict[str, str]:
    """MLflow's own tags where there are some, and the project's for the rest."""
    own = {f"boxtwin.{name}": str(value) for name, value in record.items() if name != "commit" and value is not None}
    source = {"mlflow.source.name": "train.py", "mlflow.source.type": "LOCAL"}
    commit = {} if record["commit"] is None else {"mlflow.source.git.commit": str(record["commit"])}
    return source | commit | own


def code_tags(run_tags: Mapping[str, str]) -> dict[str, str]:
    """Those tags of a run that `tags` wrote, for a run that takes its result over."""
    own = {f"boxtwin.{name}" for name in RECORDED}
    return {key: value for key, value in run_tags.items() if key.startswith("mlflow.source.") or key in own}


def record_of(run_tags: Mapping[str, str]) -> dict[str, Any]:
    """What `tags` wrote of the code of a run; runs of older versions have no commit and the first recipe."""
    commit, clean = run_tags.get("mlflow.source.git.commit"), run_tags.get("boxtwin.clean")
    return {"commit": commit, "clean": clean == "True", "recipe": int(run_tags.get("boxtwin.recipe", 1))}


def code_of(record: dict[str, Any] | None) -> str:
    """The code of a run in a few words, such as ``commit 4437dbc1 (changed), recipe 1``."""
    if not record or record.get("commit") is None:
        return f"a commit that was not recorded, recipe {(record or {}).get('recipe', 1)}"
    return f"commit {record['commit'][:8]}{'' if record['clean'] else ' (changed)'}, recipe {record['recipe']}"
