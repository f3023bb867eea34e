"""Breaks things on purpose, counts what happened, and writes the tables of docs/reliability.md.

python benchmarks/reliability.py --times 10 --output reliability.md
python benchmarks/reliability.py --only kill --number 3 --seed 7     one attempt again, as it was
python benchmarks/reliability.py --times 0 --cases FOLDER            cases only: FOLDER/data/NAME, FOLDER/tools/NAME.sh

A small sweep (two runs, simulated images) is run once undisturbed. Every attempt then breaks one thing, in a folder of
its own, and gives the same command again. It counts as

* right: the command ends well and has, to the last bit, the metrics, counts and detectors of the undisturbed sweep;
* reported: it ends with an error in words (no traceback), and once the cause is gone the same command ends right;
* wrong: anything else: other numbers, a traceback, no end.

Moments, places and sizes follow from the seed, the fault's name and the number of the attempt; moments of a kill are
shares of the time that the undisturbed sweep took.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

from faults import ENVIRONMENT, FAULTS, LEVELS, LIMIT, ROOT, RUNS, Attempt, Ended, diverging
from safetensors import SafetensorError
from safetensors.numpy import load_file


def found(folder: Path) -> dict[str, object]:
    """What every run of the sweep found, without what a clock measured."""
    runs: dict[str, object] = {}
    for file in sorted(folder.glob("multirun/reliability/*/result.json")):
        try:
            result = json.loads(file.read_text())
        except ValueError as error:
            runs[file.parent.name] = f"result.json cannot be read: {error}"
            continue
        metrics = {name: value for name, value in result["metrics"].items() if not name.startswith("time/")}
        detector = _digest(file.parent / "detector.safetensors")
        runs[result["run"]] = {"metrics": metrics, "counts": result["counts"], "detector": detector}
    return runs


def _digest(detector: Path) -> str:
    """A hash of the tensors; what stands beside them in the file has no fixed order."""
    try:
        tensors = load_file(detector)
    except (OSError, SafetensorError) as error:
        return f"cannot be read: {error}"
    total = hashlib.sha256()
    for name in sorted(tensors):
        total.update(name.encode() + tensors[name].tobytes())
    return total.hexdigest()


def outcome(attempt: Attempt, fault: Callable[[Attempt], Ended | None]) -> tuple[str, str]:
    """Right, reported or wrong, and the line that goes with it."""
    expected, old = found(attempt.whole), attempt.folder
    try:
        broken = fault(attempt)
        again = attempt.again or attempt.run()
    except (LookupError, OSError) as error:
        return "not tried", f"{type(error).__name__}: {error}"
    for ended in (broken, again):
        if ended is not None and (ended.status is None or "Traceback" in ended.printed):
            return "wrong", f"exit {ended.status}: {ended.first_line()}"
    if fault is diverging and broken is not None and broken.status == 0:
        return "wrong", "a run without numbers ended well"
    if again.status != 0:
        return "wrong", f"the command does not end well afterwards: {again.first_line()}"
    if attempt.folder != old and old.exists():
        return "wrong", f"something was written to the old place: {next(old.rglob('*'), old).name}"
    seen = found(attempt.folder)
    if seen != expected:
        other = [name for name in expected if seen.get(name) != expected[name]]
        return "wrong", f"other results than undisturbed: {', '.join(other)}"
    if broken is not None and broken.status != 0:
        return "reported", broken.first_line()
    return "right", again.first_line()


def break_things(work: Path, names: Sequence[str], numbers: Sequence[int], seed: int) -> list[str]:
    """Every fault as often as asked for; the table, and what went wrong."""
    undisturbed = Attempt(work / "whole", work / "whole", random.Random(), 0.0)
    started = time.monotonic()
    first = undisturbed.run()
    seconds = time.monotonic() - started
    if first.status != 0 or len(found(undisturbed.folder)) != RUNS:
        sys.exit(f"the undisturbed sweep ended with {first.status}:\n{first.printed[-3000:]}")
    print(f"undisturbed: {seconds:.0f} s; seed {seed}", file=sys.stderr)
    rows, wrong = [], []
    for name in names:
        title, fault = FAULTS[name]
        counts: Counter[str] = Counter()
        words: Counter[str] = Counter()
        for number in numbers:
            draw = random.Random(f"{seed}/{name}/{number}")
            attempt = Attempt(work / f"{name}{number}", undisturbed.folder, draw, seconds)
            verdict, line = outcome(attempt, fault)
            print(f"{name} --number {number} --seed {seed}: {verdict}: {line}", file=sys.stderr)
            counts[verdict] += 1
            if verdict == "reported":
                words[_plain(line, attempt.folder)] += 1
            if verdict == "wrong":
                wrong.append(f"- {title} (`--only {name} --number {number} --seed {seed}`): {_plain(line, work)}")
                continue  # its folder is left, to look at
            shutil.rmtree(attempt.folder, ignore_errors=True)
        what = "; ".join(f"{count} {verdict}" for verdict, count in counts.items())
        if words:
            what += f', such as "{words.most_common(1)[0][0]}"'
        rows.append((title, str(sum(counts.values())), what))
    return [*_table(("what was broken", "how often", "what happened"), rows), "", *wrong]


def run_cases(cases: Path, work: Path, only: Sequence[str]) -> list[str]:
    """Every case of a folder: data sets that `make.py` writes, with the command of their README, and scripts."""
    rows = []
    for make in sorted(cases.glob("data/*/make.py")):
        name = make.parent.name
        if only and name not in only:
            continue
        folder = work / "cases" / name
        readme = (make.parent / "README").read_text()
        more = re.search(r"make\.py FOLDER +([a-z]+)", readme)
        # Some write a second set beside the first, as a control.
        (folder / "set_control").mkdir(parents=True)
        subprocess.run(
            [sys.executable, make, folder / "set", *(more.groups() if more else ())], check=True, cwd=folder,
            env=ENVIRONMENT, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        typed = re.search(r"^Command: python (.*)$", readme, re.MULTILINE)
        assert typed is not None, f"{make.parent}/README names no command"
        program, *arguments = shlex.split(typed[1].replace("FOLDER", str(folder / "set")))
        ended = _run([sys.executable, str(ROOT / program), *arguments, LEVELS], folder)
        rows.append((name, str(ended.status), _plain(ended.first_line(), folder), _reported(folder)))
        print(f"{name}: exit {ended.status}: {ended.first_line()}", file=sys.stderr)
        shutil.rmtree(folder)
    for tool in sorted(cases.glob("tools/[a-z]*.sh")):
        if only and tool.stem not in only:
            continue
        (work / "cases").mkdir(exist_ok=True)
        ended = _run(["bash", str(tool), str(ROOT), sys.executable], work / "cases")
        last = (ended.printed.strip().splitlines() or [""])[-1]
        rows.append((tool.stem, str(ended.status), _plain(last, work), ""))
        print(f"{tool.stem}: exit {ended.status}: {last}", file=sys.stderr)
    return _table(("case", "exit status", "first line", "AP"), rows)


def _run(command: Sequence[str], folder: Path) -> Ended:
    process = subprocess.Popen(
        command, cwd=folder, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL, text=True, errors="replace", start_new_session=True,
    )  # fmt: skip
    try:
        printed, _ = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        printed, _ = process.communicate()
        return Ended(None, printed)
    return Ended(process.returncode, printed)


def _reported(folder: Path) -> str:
    for file in folder.glob("multirun/**/result.json"):
        value = json.loads(file.read_text())["metrics"].get("test/map")
        return "none" if value is None else f"{value:.3f}"
    return ""


def _plain(line: str, folder: Path) -> str:
    """A line for a table: without the paths of this machine, and not too long."""
    line = line.replace(f"{folder}/", "").replace(str(folder), ".").replace(f"{ROOT}/", "").replace("|", "\\|")
    return line if len(line) <= 160 else f"{line[:159]}…"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows)]


def _write(lines: Sequence[str], to: IO[str]) -> None:
    to.write("\n".join(lines).rstrip() + "\n")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--times", type=int, default=10, help="attempts of each fault; 0: cases only")
    options.add_argument("--number", type=int, help="only the attempt of this number")
    options.add_argument("--only", nargs="+", default=[], help=f"of the faults {', '.join(FAULTS)}; or names of cases")
    options.add_argument("--seed", type=int, help="default: drawn, and printed")
    options.add_argument("--cases", type=Path, help="a folder of cases, tried as well")
    options.add_argument("--work", type=Path, help="an empty folder to work in; kept. Default: a temporary one")
    options.add_argument("--output", type=Path, help="the file to write; default: printed")
    arguments = options.parse_args()
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(10**6)
    numbers = range(1, arguments.times + 1) if arguments.number is None else [arguments.number]
    names = [name for name in FAULTS if not arguments.only or name in arguments.only]
    work = Path(tempfile.mkdtemp()) if arguments.work is None else arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    lines = []
    try:
        if names and numbers:
            lines += [*break_things(work, names, numbers, seed), ""]
        if arguments.cases:
            lines += run_cases(arguments.cases.resolve(), work, arguments.only)
    finally:
        if arguments.output:
            with arguments.output.open("w") as file:
                _write(lines, file)
        else:
            _write(lines, sys.stdout)
        if arguments.work is None:
            shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
