"""Scripts under benchmarks/ start: each is loaded as Python loads a script, with nothing else on the path."""

import subprocess
import sys
from pathlib import Path

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
