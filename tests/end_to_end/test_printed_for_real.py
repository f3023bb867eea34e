"""Commands as the product prints them, pasted into a shell in the project's folder, and run."""

from __future__ import annotations

import html
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import ENVIRONMENT, ROOT, runs
from image_server import image_server

from boxtwin.errors import InputError
from boxtwin.tracking.mlflow_runs import Store

SMALL = (
    "experiment=tiny_control dataset.root=\"'my data, 2'\" dataset.group_by=\"'^([^_]+)_'\" variations=1 "
    "generator=openai_variations generator.size=256 generator.price_usd=0.01 "
    "labels.detectors=1 labels.agree=1 generator.base_url="
)


@pytest.fixture
def paste(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Runs a line in a project's folder whose name a shell must not see bare; what it printed."""
    project = tmp_path / "it's; my $project"
    project.mkdir()
    monkeypatch.chdir(project)
    programs = Path(sys.executable).parent  # of the environment that the README's commands are for

    keys = {"OPENAI_API_KEY": "sk-none", "NO_PROXY": "127.0.0.1"}
    environment = ENVIRONMENT | keys | {"PATH": f"{programs}:{os.environ['PATH']}"}

    def run(line: str, code: int = 0) -> str:
        done = subprocess.run(
            ["bash", "-c", line], env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == code, f"{line}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    return run


def test_an_experiment_is_brought_back(paste: Callable[..., str]) -> None:
    store = Store(uri=None, folder=Path("my 'runs'"))
    number = store.experiment("s")
    store.client.delete_experiment(number)
    with pytest.raises(InputError) as caught:
        store.experiment("s")
    paste(str(caught.value).splitlines()[-1])
    assert store.experiment("s") == number
    assert [path.name for path in Path().iterdir()] == ["my 'runs'"]


@pytest.mark.slow
def test_from_one_command_to_the_next(paste: Callable[..., str]) -> None:
    """With a file of settings of one's own: variations, training, export, comparison, and the run again."""
    for path in (*ROOT.glob("*.py"), ROOT / "conf"):
        (shutil.copytree if path.is_dir() else shutil.copy)(path, path.name)
    shutil.copytree(Path(__file__).parent / "conf", "my conf")
    Path("my conf/own.yaml").write_text("defaults:\n  - config\n  - _self_\nstudy: my study\n")

    def offered(said: str) -> str:
        return re.findall(r"^ +(python generate\.py .*)$", said, re.M)[-1]

    with image_server() as server:
        train = f"python train.py --config-dir 'my conf' --config-name own {SMALL}{server.url}"
        asked = paste(offered(paste(train, code=1)), code=1)
        assert server.requests == []
        assert "10 variations made" in paste(offered(asked))
        assert "FAILED" not in paste(train)
    (run,) = runs(Path())
    assert run.info.status == "FINISHED"
    (export,) = re.findall("^python export.py .*$", run.data.tags["mlflow.note.content"], re.M)
    paste(export)
    assert list(Path().glob("multirun/my study/*/export/detector.onnx"))
    printed = paste("python compare.py plan=true")
    page = Path("reports/my study/index.html").read_text().partition('id="reproduce"')[2]
    again, compare = (html.unescape(line) for line in re.findall(r"python \w+\.py [^<\n]*", page))
    assert "finished before" in paste(again)
    assert "study my study: 1 runs" in paste(compare)
    following = re.findall(r"^ +(python train\.py .*)$", printed, re.M)
    assert following
    for line in following:
        for each in line.split(" && "):
            one = re.sub(r" seed=(\d+)\S*$", r" seed=\1", each.replace(" -m ", " "))
            assert "study: my study" in paste(f"{one} --cfg job")
