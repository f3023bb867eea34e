"""Help, configuration and shell completion answer at once, and work loads what it needs and no more.

What is looked at is which modules are loaded, never the time: it depends on the machine and what else it does.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SLOW = ("torch", "pytorch_lightning", "torchmetrics", "mlflow", "diffusers", "matplotlib", "cv2", "scipy", "numpy")
ENVIRONMENT = os.environ | {
    "PYTHONPATH": str(ROOT / "src"),
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
}


def loaded(*arguments: str, **variables: str) -> tuple[set[str], str]:
    """The modules that a Python process loads, and what it prints."""
    process = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments],
        cwd=ROOT,
        env=ENVIRONMENT | variables,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    lines = [line.split("|") for line in process.stderr.splitlines() if line.startswith("import time:")]
    return {line[2].strip() for line in lines}, process.stdout


@pytest.mark.parametrize("script", ["train.py", "generate.py", "compare.py"])
@pytest.mark.parametrize("asked", ["--help", "--cfg job", "-sc query=bash"])
def test_a_question_about_the_configuration_loads_nothing_slow(script: str, asked: str) -> None:
    line = f"python {script} tracking."
    modules, printed = loaded(script, *asked.split(), COMP_LINE=line, COMP_POINT=str(len(line)))
    assert "tracking" in printed
    assert "hydra" in modules  # so the list is one of modules
    assert not modules & set(SLOW)


def test_reading_the_runs_of_a_study_needs_no_torch() -> None:
    modules, _ = loaded("-c", "import boxtwin.commands.compare")
    assert "mlflow" not in modules  # which runs in folders do without
    modules, _ = loaded("-c", "import boxtwin.commands.stored_runs")
    assert "mlflow" in modules
    assert not modules & {"torch", "pytorch_lightning", "torchmetrics", "diffusers"}


def test_a_run_waits_for_diffusers_only_to_make_variations() -> None:
    modules, _ = loaded("-c", "import boxtwin.commands.train, boxtwin.synthesis.ddpm.whole_image")
    assert "torch" in modules
    assert not modules & {"diffusers", "pycocotools.cocoeval"}


def test_the_shell_completes_groups_options_and_values() -> None:
    """The line of the README, and then what bash does when the tabulator key is pressed."""
    script = """
        eval "$(python train.py -sc install=bash)"
        complete() {
            COMP_LINE="$1" COMP_POINT=${#1} COMP_CWORD=2
            hydra_bash_completion
            printf '%s,' "${COMPREPLY[@]}"
            echo
        }
        complete 'python train.py split='
        complete 'python generate.py variations='
        complete 'python train.py detector=yolov3_t'
        complete 'python train.py trainer.grad'
        complete 'python compare.py stud'
    """
    process = subprocess.run(
        ["bash", "-c", script], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=True
    )
    splits, numbers, detectors, value, study = process.stdout.splitlines()
    assert splits == "split=s1,split=s2,"
    assert {"variations=0", "variations=2", "variations=10"} <= set(numbers.split(","))
    assert detectors == "detector=yolov3_tiny,detector=yolov3_tiny_3l,"
    assert value == "trainer.gradient_clip=,"
    assert study == "study=,"
