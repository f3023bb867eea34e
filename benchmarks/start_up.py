"""CPU- and wall-seconds of --help, --cfg job and shell completion, and of the imports of a run.

    python benchmarks/start_up.py --repeats 5

Beside them stand Python alone, a bare Hydra script without configuration, one with as many groups and options as
conf/ has (the floor: Hydra's own work), and `import torch`. The commands take turns, so that other work on the machine
disturbs all of them alike; the medians are shown.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from boxtwin.config.launch import ENVIRONMENT

ROOT = Path(__file__).parents[1]
BARE = """
import hydra

@hydra.main(version_base="1.3", config_path={path!r}, config_name={name!r})
def main(config):
    pass

main()
"""
IMPORTS = ("torch", "pytorch_lightning", "mlflow", "diffusers", "matplotlib.figure")
OWN_IMPORTS = ("boxtwin.commands.compare", "boxtwin.commands.stored_runs", "boxtwin.commands.train")


def write_bare_scripts(folder: Path) -> tuple[Path, Path]:
    """A Hydra script with nothing, and one with the groups and options of conf/, each option empty."""
    nothing = folder / "nothing.py"
    nothing.write_text(BARE.format(path=None, name=None))
    groups = folder / "groups.py"
    groups.write_text(BARE.format(path="conf", name="config"))
    defaults = ["defaults:"]
    for group in sorted(path for path in (ROOT / "conf").iterdir() if path.is_dir()):
        (folder / "conf" / group.name).mkdir(parents=True)
        options = sorted(path.name for path in group.glob("*.yaml"))
        for option in options:
            (folder / "conf" / group.name / option).write_text("value: 1\n")
        defaults.append(f"  - {group.name}: '{Path(options[0]).stem}'")
    (folder / "conf" / "config.yaml").write_text("\n".join([*defaults, "  - _self_", ""]))
    return nothing, groups


def seconds(arguments: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """CPU- and wall-seconds of one process, which must end well."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, check=True)
    wall = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-imports", action="store_true", help="leave out the imports of a run")
    settings = parser.parse_args()
    line = "python train.py split="
    environment = (
        os.environ
        | ENVIRONMENT
        | {
            "PYTHONPATH": str(ROOT / "src"),
            "COMP_LINE": line,
            "COMP_POINT": str(len(line)),
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        nothing, groups = write_bare_scripts(Path(folder))
        commands: dict[str, list[str]] = {
            "python -c pass": ["-c", "pass"],
            "import torch": ["-c", "import torch"],
            "bare Hydra script --help": [str(nothing), "--help"],
            "Hydra script with our groups --help": [str(groups), "--help"],
            "Hydra script with our groups --cfg job": [str(groups), "--cfg", "job"],
        }
        for script in ("train.py", "generate.py", "compare.py"):
            commands[f"{script} --help"] = [script, "--help"]
            commands[f"{script} --cfg job"] = [script, "--cfg", "job"]
        commands["train.py -sc query=bash"] = ["train.py", "-sc", "query=bash"]
        if not settings.no_imports:
            for name in (*IMPORTS[1:], *OWN_IMPORTS):
                commands[f"import {name}"] = ["-c", f"import {name}"]
        measured: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        for arguments in commands.values():  # files in the page cache, byte code written
            seconds(arguments, environment)
        for _ in range(settings.repeats):
            for name, arguments in commands.items():
                measured[name].append(seconds(arguments, environment))
    torch = statistics.median(cpu for cpu, _ in measured["import torch"])
    print("| command | CPU-seconds | wall-seconds | CPU, import torch = 1 |\n|---|---|---|---|")
    for name, found in measured.items():
        cpu, wall = (statistics.median(values) for values in zip(*found, strict=True))
        print(f"| {name} | {cpu:.2f} | {wall:.2f} | {cpu / torch:.2f} |")
    print(f"\nmedian of {settings.repeats}")


if __name__ == "__main__":
    main()
