"""generate.py with a generator that runs elsewhere: the user's literal commands, and kills at any moment."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from commands import CONF, manifests, run, runs, start
from image_server import Record, image_server
from kill_moments import kill_moments

from boxtwin.datasets.image_io import read_image
from boxtwin.synthesis.diffusers_pipelines.checkpoints import folder_hash

SECRET = "sk-proj-abcdefghijklmnopqrstuvwxyz0123456789"
ENVIRONMENT = {"OPENAI_API_KEY": SECRET, "NO_PROXY": "127.0.0.1"}
# Five sources: s2 with its sizes brought down to those of the data set.
SIZES = "split.train=3 split.train_pool=4 split.val=2 split.test=2"
DATA = f"dataset=coco dataset.root=set dataset.image_size=64 {SIZES}"
# Labels come from detectors trained first: here from one, of two steps.
QUICK = (
    "detector=yolov3_nano detector.warmup_steps=1 trainer.steps=2 trainer.validations=1 trainer.batch_size=2 "
    "trainer.threads=1 labels.detectors=1 labels.agree=1"
)
COMMAND = (
    f"generate.py {DATA} {QUICK} split=s2 variations=2 generator=openai_variations generator.base_url={{url}} "
    "confirm=true"
)


@pytest.fixture
def server() -> Iterator[Record]:
    with image_server() as record:
        yield record


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder to work in, with a data set of eight images in it."""
    noise = np.random.default_rng(0)
    (tmp_path / "set" / "images").mkdir(parents=True)
    content: dict[str, Any] = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "pollen"}]}
    for number in range(1, 9):
        pixels = noise.integers(0, 60, (48, 64), dtype=np.uint8)
        pixels[10:22, 20:36] = 220
        cv2.imwrite(str(tmp_path / "set" / "images" / f"{number:02d}.png"), pixels)
        content["images"].append({"id": number, "file_name": f"{number:02d}.png", "width": 64, "height": 48})
        content["annotations"].append(
            {"id": number, "image_id": number, "category_id": 1, "bbox": [20, 10, 16, 12], "area": 192, "iscrowd": 0}
        )
    (tmp_path / "set" / "annotations.json").write_text(json.dumps(content))
    return tmp_path


def call(command: str, folder: Path, *, code: int = 0) -> str:
    return run(command, folder, ENVIRONMENT, code=code)


def suggested(printed: str) -> str:
    """The command that a message ends with, as `call` takes it."""
    (line,) = re.findall(r"^ +python (generate\.py .*)$", printed, re.M)
    return str(line)


@pytest.mark.slow
def test_the_command_of_the_documentation(folder: Path, server: Record) -> None:
    """On a bad day of the server's: every fault that is no end."""
    server.plan = [None, "rate limit", None, "server error", "drop", "truncated", None, "moderation"]
    server.retry_after = "0.2"
    printed = call(COMMAND.format(url=server.url), folder, code=1)
    assert "10 of 10 variations are missing; openai_variations makes them for about 0.20 USD" in printed
    assert "9 variations made, 0 were there already, 1 refused, cost 0.20 USD" in printed
    assert "1 of 10 variations are missing; the same command asks for them again" in printed
    assert re.search(r"\d\d\.png v01: refused by the host's moderation", printed)
    assert "Traceback" not in printed
    assert "HTTP Request" not in printed
    # 10 images and 4 tries more: a limit, an error, a broken connection and half an image.
    assert len(server.requests) == 14
    (lines,) = manifests(folder)
    for line in lines:
        (image,) = folder.glob(f"data/synthetic/*/{line['image']}")
        assert hashlib.sha256(image.read_bytes()).hexdigest() == line["image_sha256"]
        assert read_image(image).shape == (48, 64)
    assert len(list(folder.glob("data/synthetic/openai_variations-*/contact_sheet.png"))) == 1
    content = [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
    assert len(content) > 30
    for part in (SECRET, SECRET[:12], SECRET[-8:]):
        assert part not in printed
        assert not any(part.encode() in each for each in content)


@pytest.mark.slow
def test_each_message_has_the_command_that_goes_on(folder: Path, server: Record) -> None:
    train = f"train.py {DATA} {QUICK} split=s2 variations=2 generator=openai_variations generator.base_url={server.url}"
    printed = call(train, folder, code=1)
    assert "10 variations of openai_variations are missing, and training calls no generator that runs" in printed
    assert server.requests == []
    assert suggested(printed).startswith(f"generate.py --config-dir={os.path.relpath(CONF, folder)} dataset=coco ")
    printed = call(suggested(printed), folder, code=1)
    assert "10 of 10 variations are missing" in printed
    assert server.requests == []
    call(suggested(printed), folder)
    assert len(server.requests) == 10
    call(train, folder)
    assert len(server.requests) == 10
    assert [r.info.status for r in runs(folder)] == ["FINISHED"]


@pytest.mark.slow
def test_killed_at_twenty_moments_the_same_command_completes_the_store(folder: Path, server: Record) -> None:
    """The moments are drawn anew in every run of the test."""
    command = COMMAND.format(url=server.url).replace("variations=2", "variations=16 generator.size=256")
    server.delay, moments, lost = 0.1, kill_moments(), 0
    for turn in range(20):
        before, process = len(server.requests), start(command, folder, ENVIRONMENT)
        if turn % 4:  # every fourth is killed whatever it is at, loading included; the others while images are made
            while len(server.requests) == before and process.poll() is None:
                time.sleep(0.01)
            time.sleep(moments.uniform(0, 0.8))
        else:
            time.sleep(moments.uniform(0, 8))
        if process.poll() is None:
            process.kill()
        process.wait()
        server.wait_until_idle()
        # All that was asked for and is not there: the one that was on its way when the kill came.
        now_lost = len(server.requests) - len(list(folder.glob("data/synthetic/models/openai_variations-spool/*.json")))
        assert now_lost - lost in (0, 1)
        lost = now_lost
    printed = call(command, folder)
    assert "0 refused" in printed
    assert len(server.requests) == 80 + lost
    (lines,) = manifests(folder)
    assert len({(line["source"], line["variation"]) for line in lines}) == len(lines) == 80
    (store,) = folder.glob("data/synthetic/openai_variations-*")
    images = {path.relative_to(store).as_posix(): path.read_bytes() for path in store.glob("images/**/*.png")}
    assert {line["image"]: line["image_sha256"] for line in lines} == {
        name: hashlib.sha256(content).hexdigest() for name, content in images.items()
    }
    assert not list(folder.rglob("*.part"))


SETTINGS = "generator.steps=2 generator.strength=0.6 generator.tile=32 generator.overlap=8 generator.batch_size=4"


def test_img2img_from_a_folder(tmp_path: Path, tiny_pipeline: Callable[[str], Path]) -> None:
    folder = tiny_pipeline("stable_diffusion")
    command = (
        f"generate.py experiment=tiny_choice generator=img2img generator.checkpoint={folder} "
        f"generator.dtype=float32 variations=1 {SETTINGS}"
    )
    call(command, tmp_path)
    (lines,) = manifests(tmp_path)
    assert len(lines) == 10  # 6 training and 4 validation images
    for line in lines:
        assert line["generator"] == "img2img"
        assert line["model"] == {"id": str(folder.resolve()), "revision": folder_hash(folder)}
        assert line["parameters"]["revision"] == folder_hash(folder)
        (store,) = (tmp_path / "data" / "synthetic").glob("img2img-*")
        made = read_image(store / line["image"])
        assert made.shape == (64, 64)
        assert made.std() > 1
        assert json.loads((store / "store.json").read_text())["training"] == []  # nothing was learnt
