"""Scripts under benchmarks/ start: each is loaded as Python loads a script, with nothing else on the path."""

import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import MakeCoco

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"

# One process, since each would import torch. Path and modules of the folder are reset between scripts.
LOAD = """
import runpy, sys
from pathlib import Path
folder, path = Path(sys.argv[1]), list(sys.path)
for script in sorted(folder.glob("*.py")):
    sys.path[:] = [str(folder), *path]
    for name in {file.stem for file in folder.glob("*.py")} | {"commands"}:
        sys.modules.pop(name, None)
    runpy.run_path(str(script), run_name="loaded")
    print(script.name)
"""


def test_every_benchmark_starts(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", LOAD, str(BENCHMARKS)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == sorted(file.name for file in BENCHMARKS.glob("*.py"))


def test_wrong_labels_are_made_of_read_samples(make_coco: MakeCoco, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    corrupted = runpy.run_path(str(BENCHMARKS / "suspects.py"), run_name="loaded")["corrupted"]
    samples = make_coco(images=12).read().samples
    changed, errors = corrupted(samples, np.random.default_rng(0), 0.3, 0.3)
    objects = sum(len(sample.object_boxes) for sample in samples)
    assert sum(len(sample.boxes) for sample in changed) == objects - round(0.3 * objects)
    assert len(errors) == round(0.6 * objects)


def test_the_clocks_of_a_run_find_what_they_time(tmp_path: Path) -> None:
    """In a process of its own: clocks stay around what they time."""
    code = (
        "import runpy, sys\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "loaded = runpy.run_path(sys.argv[1] + '/run_overhead.py', run_name='loaded')\n"
        "loaded['install'](loaded['Clocks']())\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(BENCHMARKS)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
