"""Every command in the README and in the pages behind it is run: here in seconds, or by the test listed beside it."""

from __future__ import annotations

import csv
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
import zipfile
from pathlib import Path

import pytest
from commands import ROOT, run, runs

from boxtwin.errors import InputError
from boxtwin.studies.runs import runs_in
from boxtwin.tracking.mlflow_runs import Store

SMALL = "experiment=tiny_control variations=1"
README = (ROOT / "README.md").read_text()
PAGES = (
    "results",
    "your-data",
    "outputs",
    "export",
    "counting",
    "troubleshooting",
    "results/hrsid200/README",
    "results/sar_scenes/README",
)
COMMANDS = [
    line.split("#")[0].strip()
    for page in (README, *((ROOT / "docs" / f"{page}.md").read_text() for page in PAGES))
    for block in re.findall(r"```\n(.*?)```", page.replace("\\\n", " "), re.S)
    for line in block.splitlines()
    if line.split("#")[0].strip()
]

# A command, and what is added or exchanged so that it takes seconds.
QUICK = {
    "python train.py -m split=s2 variations=0,10 generator=pixel_ddpm,repeat,copy_paste seed=0,1,2": (
        "experiment=tiny_choice seed=0 variations=0,1 generator=repeat,copy_paste"  # pixel_ddpm: test_study
    ),
    "python generate.py split=s2 variations=2 generator=copy_paste": "experiment=tiny_choice",
}
ELSEWHERE = {
    "python train.py --help": "tests/config/test_start_up.py",
    "git clone ADDRESS boxtwin && cd boxtwin": "test_make_demo (slow)",
    "source .venv/bin/activate": "what runs this test",
    "make demo": "test_make_demo (slow)",
    "make study": "test_make_study (slow)",
    "python train.py -m experiment=study": "tests/config/test_sweeper.py, test_make_study (slow)",
    "make ui": "test_make_ui",
    "python train.py -m split=s1,s2 variations=0,2,10": "test_study",
    "python train.py -m dataset=hrsid dataset.root=FOLDER split=s1,s2 variations=0,2,10": "test_study (slow)",
    "python compare.py": "test_study",
    "python compare.py study=sar_scenes": "test_comparing_a_certain_study",
    "python compare.py plan=true": "test_comparing_a_certain_study",
    "make setup": "what installs the environment of this test",
    "python compare.py study=hrsid200": "test_comparing_a_certain_study",
    "python compare.py runs=FOLDER": "test_comparing_a_certain_study",
    'python compare.py "runs=[FOLDER,OTHER FOLDER]"': "tests/commands/test_compare.py, tests/config/test_launch.py",
    "python compare.py runs=docs/results/hrsid200": "test_a_kept_study",
    "python compare.py runs=docs/results/hrsid200_map": "test_a_kept_study",
    "python compare.py runs=docs/results/sar_scenes": "test_a_kept_study",
    "python train.py -m dataset=coco dataset.name=pollen dataset.root=FOLDER split=s1,s2 variations=0,2,10": (
        "test_a_coco_set_trains_and_its_bad_boxes_are_the_users_choice"
    ),
    "python export.py run=multirun/STUDY/RUN": "test_export_command",
    "python export.py run=multirun/STUDY/RUN register=ships": "test_export_command",
    "python export.py run=multirun/STUDY/RUN formats=[darknet] to=FOLDER": "test_export_command",
    "mlflow models serve -m multirun/STUDY/RUN/export/mlflow --env-manager local --port 5001": "test_export_command",
    "python train.py final=pollen": "test_final_and_next",
    "python review.py suspects=pollen": "test_review_suspects",
    "python review.py suspects=sar_scenes": "test_review_suspects",
    "python review.py next=FOLDER number=20": "test_final_and_next",
    "python review.py export=label_studio store=STORE folder=OUT": "test_review_command",
    "python count.py run=best images=FOLDER": "test_count_command",
    "python count.py run=multirun/STUDY/RUN images=SCENE.tif": "test_count_command",
    "python count.py run=multirun/STUDY/RUN images=FOLDER annotations=FILE": "test_count_command",
    "python benchmarks/count_coverage.py --run multirun/STUDY/RUN": "tests/test_benchmarks.py",
    "python benchmarks/scene_memory.py --run multirun/STUDY/RUN --bands 3 --network 12": "tests/test_benchmarks.py",
    """printf '{"dataframe_split": {"columns": ["image"], "data": [["%s"]]}}' "$(base64 < IMAGE | tr -d '\\n')" | """
    "curl -s -H 'Content-Type: application/json' -d @- http://127.0.0.1:5001/invocations": "test_export_command",
    "python train.py -m experiment=hrsid200 dataset.root=FOLDER split.file=docs/results/hrsid200/split.json "
    "detector.weights=FOLDER/yolov3-tiny.weights split=s1,s2 variations=0,2,10 variations.synthetic_fraction=0.25 "
    'generator=pixel_ddpm_sketch "seed=range(9)"': "test_hrsid200_experiment (slow)",
    "python train.py -m experiment=hrsid200 dataset.root=FOLDER split.file=docs/results/hrsid200/split.json "
    "detector.weights=FOLDER/yolov3-tiny.weights split=s1,s2 variations=10 variations.synthetic_fraction=0.25 "
    'generator=repeat,copy_paste "seed=range(9)"': "test_hrsid200_experiment (slow)",
}


def test_every_command_has_a_test() -> None:
    unknown = [command for command in COMMANDS if " ".join(command.split()) not in {**QUICK, **ELSEWHERE}]
    assert not unknown, f"README commands that no test runs: {unknown}"
    assert COMMANDS


@pytest.mark.parametrize("command", QUICK)
def test_command(command: str, tmp_path: Path) -> None:
    words = f"{command} {QUICK[command]}".split()[1:]
    # The later value of a key is the one that counts; Hydra refuses to be told twice.
    chosen = {word.split("=")[0]: word for word in words}
    run(" ".join(chosen.values()), tmp_path)


def test_comparing_a_certain_study(tmp_path: Path) -> None:
    run(f"train.py -m {SMALL} study=sar_scenes,another", tmp_path)
    planned = run("compare.py study=sar_scenes plan=true", tmp_path)
    assert "study sar_scenes: 1 run" in planned
    assert "What to run next" in planned
    from_folders = run("compare.py runs=multirun/another", tmp_path)
    from_mlflow = run("compare.py study=another", tmp_path)
    # Folders know of no page in MLflow.
    assert from_folders == re.sub(r"in MLflow \(make ui\): .*\n", "", from_mlflow)
    assert run("compare.py study=another brief=true", tmp_path).splitlines()[-1] == "report: reports/another/index.html"
    with pytest.raises(InputError, match="holds no folder of a run"):
        runs_in(tmp_path / "mlruns")
    printed = run("compare.py study=nothing", tmp_path, code=1)
    assert "no runs of a study called nothing" in printed
    assert "Traceback" not in printed


def test_the_readme_is_short() -> None:
    assert len(README.split()) <= 900


def test_links_lead_somewhere() -> None:
    """To files, and to headings of pages, in the README and in all of docs."""
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")]:
        for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
            path, _, heading = link.partition("#")
            if "://" in link:
                continue
            target = page.parent / path if path else page
            assert target.exists(), f"{page.name}: {link}"
            if heading:
                titles = re.findall(r"^#+ (.*)$", target.read_text(), re.M)
                assert heading in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}, link


def test_the_map_of_the_code_is_whole() -> None:
    """docs/architecture.md has every room of the package, and the files it names are there."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    rooms = {path.parent.name for path in ROOT.glob("src/boxtwin/*/__init__.py")}
    assert rooms == set(re.findall(r"^\| `(\w+)/`", page, re.M))
    places = [
        ROOT,
        ROOT / "src" / "boxtwin",
        ROOT / "src" / "boxtwin" / "synthesis",
        ROOT / "src" / "boxtwin" / "datasets",
    ]
    named = re.findall(r"`([\w/.]+/[\w/.]*)`", page)
    assert [path for path in named if not any((place / path).exists() for place in places)] == []


def test_the_glossary_has_at_most_40_terms_in_order() -> None:
    terms = re.findall(r"^\| (.*?) \|", (ROOT / "docs" / "glossary.md").read_text(), re.M)[1:]
    assert len(terms) <= 40
    assert terms == sorted(terms, key=str.lower)


@pytest.mark.parametrize("study", ["hrsid200_1200"])
def test_a_kept_study(tmp_path: Path, study: str) -> None:
    """The table from the archive is the one that is kept beside it; the others are of the same form, and larger."""
    printed = run(f"compare.py runs={ROOT}/docs/results/{study}", tmp_path)
    assert f"study {study}: 16 runs" in printed
    made, kept = (
        list(csv.DictReader(path.read_text().splitlines()))
        for path in (tmp_path / "reports" / study / "comparison.csv", ROOT / "docs/results" / study / "comparison.csv")
    )
    assert [row.keys() for row in made] == [row.keys() for row in kept]
    for row, expected in zip(made, kept, strict=True):
        for name, value in expected.items():
            assert row[name] == value or float(row[name]) == pytest.approx(float(value), abs=1e-9), name


@pytest.mark.slow
def test_hrsid200_experiment(tmp_path: Path, hrsid200: Path) -> None:
    weights = hrsid200.parents[1] / "weights" / "yolov3-tiny.weights"
    if not weights.exists():
        pytest.skip(f"{weights} is not there")
    cheap = "trainer.steps=2 trainer.validations=1 detector.warmup_steps=1 detector.image_size=96"
    printed = run(
        f"train.py -m experiment=hrsid200 dataset.root={hrsid200} detector.weights={weights} split=s1,s2 variations=0 "
        f"split.file={ROOT}/docs/results/hrsid200/split.json "
        f"variations.synthetic_fraction=0.25 generator=pixel_ddpm_sketch {cheap}",
        tmp_path,
    )
    assert "11 convolutions read, 5 left as they were" in printed
    assert len(runs(tmp_path)) == 2
    with zipfile.ZipFile(ROOT / "docs/results/hrsid200/runs.zip") as archive:
        names = [name for name in archive.namelist() if name.endswith("seed0-970a0494/result.json")]
        kept = json.loads(archive.read(names[0]))
    (made,) = tmp_path.glob("multirun/*/s1-*/result.json")
    assert json.loads(made.read_text())["data"]["split_sha256"] == kept["data"]["split_sha256"]


def test_make_ui(tmp_path: Path) -> None:
    """The light MLflow server comes up on loopback and knows the runs."""
    Store(uri=None, folder=tmp_path / "mlruns").experiment("sar_scenes")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    variables = (f"PORT={port}", f"RUNS={tmp_path / 'mlruns'}", f"BIN={Path(sys.executable).parent}")
    process = subprocess.Popen(
        ["make", "-C", str(ROOT), "--assume-old=.venv/.installed", "ui", *variables],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        page = b""
        for _ in range(240):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=2) as answer:
                    page = answer.read()
                break
            except OSError:
                time.sleep(0.25)
        assert b"<html" in page.lower()
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/search",
            data=b'{"max_results": 10}',
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=20) as answer:
            assert b"sar_scenes" in answer.read()
    finally:
        os.killpg(process.pid, 9)
        process.wait()


def test_make_help_lists_every_target() -> None:
    printed = subprocess.run(["make", "-C", str(ROOT), "help"], capture_output=True, text=True, check=True).stdout
    for target in ("help", "setup", "demo", "study", "test", "check", "ui", "clean"):
        assert f"make {target} " in printed


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_make_study(tmp_path: Path) -> None:
    """Its own commands, with two seeds and at sizes that a test can afford."""
    lines = subprocess.run(
        ["make", "-n", "-C", str(ROOT), "--assume-old=.venv/.installed", "--no-print-directory", "study"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    *sweeps, comparison = [line.split(maxsplit=1)[1] for line in lines if ".py" in line]
    small = (
        "seed=0,1 dataset.image_size=64 dataset.build.image_size=64 trainer.steps=4 trainer.validations=2 "
        "trainer.threads=1 detector.warmup_steps=1 labels.detectors=0"
    )
    for sweep in sweeps:
        script, typed = sweep.split(maxsplit=1)
        # Before the overrides: argparse takes them in one piece.
        run(f"{script} --config-dir {Path(__file__).parent / 'conf_study'} {typed} {small}", tmp_path, within=1800)
    printed = run(comparison, tmp_path, within=600)
    assert "study sar_chips_study: 20 runs" in printed
    conditions = {r.info.run_name: r.data.metrics["seeds"] for r in runs(tmp_path, "condition")}
    expected = {"x0-none", "x2-pixel_ddpm", "x10-pixel_ddpm", "x10-repeat", "x10-copy_paste"}
    assert set(conditions) == {f"{split}-{part}-yolov3_nano" for split in ("s1n10", "s1n40") for part in expected}
    assert set(conditions.values()) == {2}


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_make_demo(tmp_path: Path) -> None:
    """A fresh clone, its own environment, the whole demo."""
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(tmp_path / "clone")], check=True)
    process = subprocess.run(
        ["make", "demo"], cwd=tmp_path / "clone", capture_output=True, text=True, timeout=3500, check=False
    )
    assert process.returncode == 0, process.stderr
    *_, variations, more_images, advice, empty, report = process.stdout.strip().splitlines()
    assert variations.startswith("On 5 real images, 10 variations of each by pixel_ddpm change AP50 by ")
    assert more_images.startswith("More real images (20 instead of 5, the positive control) change AP50 by +")
    assert more_images.endswith("7 seeds): significant.")
    assert advice.startswith("What to do: ")
    assert (empty, report) == ("", "report: reports/demo/index.html")
    assert (tmp_path / "clone" / "reports" / "demo" / "index.html").exists()
