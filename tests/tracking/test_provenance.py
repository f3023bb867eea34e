"""What is recorded of the code and the machine that made a run."""

import subprocess
from pathlib import Path

import pytest
import torch

import boxtwin
from boxtwin.config.identity import RECIPE_VERSION
from boxtwin.tracking.provenance import code_of, code_tags, git_state, provenance, record_of, tags


def git(folder: Path, *arguments: str) -> None:
    who = ("-c", "user.name=n", "-c", "user.email=e@example.com")
    subprocess.run(("git", "-C", str(folder), *who, *arguments), check=True, capture_output=True)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package under src/ in a checkout of its own."""
    package = tmp_path / "src" / "boxtwin"
    package.mkdir(parents=True)
    (package / "code.py").write_text("x = 1\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "one")
    return package


def test_commit_and_changes_of_the_code_that_runs(package: Path) -> None:
    state = git_state.__wrapped__(package)
    head = subprocess.run(("git", "-C", str(package), "rev-parse", "HEAD"), capture_output=True, text=True, check=True)
    assert state == {"commit": head.stdout.strip(), "clean": True}
    (package / "code.py").write_text("x = 0\n")
    assert git_state.__wrapped__(package) == {**state, "clean": False}


def test_a_package_installed_into_another_checkout_has_no_commit(package: Path) -> None:
    installed = package.parents[1] / ".venv" / "lib" / "boxtwin"
    installed.mkdir(parents=True)
    assert git_state.__wrapped__(installed) == {"commit": None, "clean": None}


def test_a_record_survives_the_tags_of_a_run() -> None:
    record = provenance(accelerator="cpu", precision="32-true", threads=3, recipe=RECIPE_VERSION)
    assert (record["device"], record["precision"], record["threads"]) == ("cpu", "32-true", 3)
    assert (record["torch"], record["boxtwin"], record["recipe"]) == (
        torch.__version__,
        boxtwin.__version__,
        RECIPE_VERSION,
    )
    record |= {"commit": "1234567890abcdef", "clean": False}
    written = tags(record)
    assert written["mlflow.source.git.commit"] == "1234567890abcdef"
    assert record_of(written) == {"commit": "1234567890abcdef", "clean": False, "recipe": RECIPE_VERSION}
    assert code_tags({**written, "boxtwin.identity": "a", "mlflow.user": "b"}) == written
    assert code_of(record) == f"commit 12345678 (changed), recipe {RECIPE_VERSION}"
    assert "recipe 1" in code_of(record_of({}))  # a run from before there was such a record
