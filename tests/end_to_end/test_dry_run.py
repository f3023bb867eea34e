"""``generate.py dry_run=true`` beside a server that speaks the hub's protocol, and without one."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import ENVIRONMENT, run, script
from hub_server import COMMIT, hub_server

TinyPipeline = Callable[[str], Path]
COMMON = "generate.py experiment=tiny_choice variations=1 generator.dtype=float32"


def call(command: str, folder: Path, url: str, *, code: int = 0) -> str:
    """Run a command whose hub is at ``url``, with a cache in ``folder``."""
    environment = ENVIRONMENT | {"HF_ENDPOINT": url, "HF_HOME": str(folder / "cache"), "NO_PROXY": "127.0.0.1"}
    environment.pop("HF_HUB_OFFLINE", None)
    done = subprocess.run(
        script(command), cwd=folder, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def downloaded(folder: Path, repository: str) -> set[str]:
    snapshot = folder / "cache" / "hub" / f"models--{repository.replace('/', '--')}" / "snapshots" / COMMIT
    return {file.relative_to(snapshot).as_posix() for file in snapshot.rglob("*") if file.is_file()}


@pytest.mark.slow
def test_it_names_what_diffusers_downloads_then(tmp_path: Path, tiny_pipeline: TinyPipeline) -> None:
    published = Path(shutil.copytree(tiny_pipeline("stable_diffusion"), tmp_path / "published"))
    (published / "README.md").write_text("a model card")
    for file in list(published.glob("*/*.safetensors")):  # files that repositories have and diffusers leaves
        shutil.copy(file, file.with_suffix(".bin"))
        shutil.copy(file, file.with_name(file.name.replace(".safetensors", ".fp16.safetensors")))
    shutil.copy(published / "unet" / "diffusion_pytorch_model.safetensors", published / "v1-5-pruned.safetensors")
    command = (
        f"{COMMON} generator=img2img generator.checkpoint=some-owner/some-model generator.steps=2 generator.tile=32 "
        "generator.strength=0.6 generator.overlap=8 generator.batch_size=4"
    )
    with hub_server({"some-owner/some-model": published}, {"some-owner/some-model": {"license": "openrail"}}) as hub:
        before = call(f"{command} dry_run=true", tmp_path, hub.url)
        assert downloaded(tmp_path, "some-owner/some-model") == {"model_index.json"}
        assert not list((tmp_path / "data").glob("synthetic/*/manifest.jsonl"))
        call(command, tmp_path, hub.url)
        files = downloaded(tmp_path, "some-owner/some-model")
        after = call(f"{command} dry_run=true", tmp_path, hub.url)
    size = sum((published / name).stat().st_size for name in files)
    assert "variations: 10 of 10 are missing" in before
    assert "variations: 0 of 10 are missing" in after
    assert "licence by its model card: openrail" in before
    assert f"files: {len(files)}, {size / 1e6:.3f} MB (from the hub, commit {COMMIT}); {len(files) - 1} of" in before
    assert f"files: {len(files)}, {size / 1e6:.3f} MB (from the hub, commit {COMMIT}); 0 of 0.000 MB would" in after
    numbers = sum((published / name).stat().st_size for name in files if name.endswith(".safetensors"))
    (memory,) = re.findall(r"memory of the weights: (.*) MB in float32", before)
    assert numbers * 0.75 < float(memory) * 1e6 < numbers  # files have headers besides
    alone = call(f"{command} dry_run=true", tmp_path, hub.url)  # the server has ended
    assert f"files: {len(files)}, {size / 1e6:.3f} MB (from the cache, since the hub cannot be reached)" in alone
    absent = call(f"{command} dry_run=true generator.checkpoint=some-owner/another", tmp_path, hub.url)
    assert "the Hugging Face Hub cannot be reached, and no file of this model is in the local cache" in absent


@pytest.mark.slow
def test_further_checkpoints_and_those_that_ask_for_consent(tmp_path: Path, tiny_pipeline: TinyPipeline) -> None:
    repositories = {"flux/dev": tiny_pipeline("flux"), "flux/redux": tiny_pipeline("flux_redux")}
    cards = {"flux/dev": {"license": "other", "license_name": "for-research"}, "flux/redux": {"license": "mit"}}
    command = f"{COMMON} generator=redux generator.checkpoint=flux/dev generator.prior=flux/redux dry_run=true"
    with hub_server(repositories, cards) as hub:
        said = call(command, tmp_path, hub.url)
    assert re.search(r"checkpoint: flux/dev.*\n  licence by its model card: for-research\n", said)
    assert re.search(r"prior: flux/redux.*\n  licence by its model card: mit\n", said)
    (networks,) = re.findall(r"in memory: (.*transformer.*)", said)
    assert "text_encoder" not in networks  # no text is encoded
    shutil.rmtree(tmp_path / "cache")
    with hub_server(repositories, cards, "flux/dev") as hub:
        said = call(command, tmp_path, hub.url)
        assert "for-research; access must be asked for at the hub first (hf auth login)" in said
        assert "files: not shown before access is granted" in said
        assert "memory of the weights: at least" in said
        missing = call(f"{command} generator.checkpoint=flux/absent", tmp_path, hub.url, code=1)
    assert "checkpoint=flux/absent cannot be loaded: check the id and the connection" in missing


def test_a_folder_is_read(tmp_path: Path, tiny_pipeline: TinyPipeline) -> None:
    folder = Path(shutil.copytree(tiny_pipeline("stable_diffusion"), tmp_path / "model"))
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\nA model.\n")
    said = run(f"{COMMON} generator=img2img generator.checkpoint={folder} dry_run=true", tmp_path)
    assert "licence by its model card: apache-2.0" in said
    assert "(from the folder)" in said
    assert "would be downloaded" not in said
    index = json.loads((folder / "model_index.json").read_text())
    assert "safety_checker" in index
    assert "safety_checker" not in said  # it is not loaded
    assert "variations: 10 of 10 are missing" in said


@pytest.mark.parametrize(
    ("generator", "cost"),
    [
        ("copy_paste", "cost: none"),
        ("openai_edit generator.price_usd=0.05", "cost: about 0.50 USD"),
        ("openai_edit generator.model=another", "cost: not known: "),
        ("repeat labels=pseudo", "labels: 3 detector(s) would be trained first, 4 steps each"),
    ],
)
def test_generators_without_a_checkpoint(tmp_path: Path, generator: str, cost: str) -> None:
    said = run(f"generate.py experiment=tiny_choice variations=1 generator={generator} dry_run=true", tmp_path)
    assert "variations: 10 of 10 are missing" in said
    assert cost in said
    assert "downloads: none" in said
    assert not list((tmp_path / "data").glob("synthetic/*"))
    assert re.search(rf"to make them:\n *python generate.py .*generator={generator.split()[0]}(?!.*dry_run)", said)


def test_a_checkpoint_of_another_kind_is_refused_before_detectors_are_trained(
    tmp_path: Path, tiny_pipeline: TinyPipeline
) -> None:
    command = f"{COMMON} generator=img2img generator.checkpoint={tiny_pipeline('flux_kontext')}"
    for more in ("dry_run=true", ""):
        said = run(f"{command} {more}", tmp_path, code=1)
        assert "which has no strength; generator=edit is for models that edit images by instruction" in said
        assert not list((tmp_path / "data").glob("detectors/*"))
        assert not list((tmp_path / "data").glob("synthetic/*"))
