"""Variations by a list of published checkpoints: time, memory, boxes, realism and licence, in one table.

python benchmarks/pretrained_generators.py --output FILE.md dataset=hrsid dataset.root=FOLDER split=s2 variations=1
python benchmarks/pretrained_generators.py --checkpoints LIST.yaml --only NAME ...

Each checkpoint of the list (pretrained_generators.yaml) gets a process of generate.py, with the settings given here
after its own. What fails is a row of the table with the reason, and the others go on. The stores have contact sheet,
label card and quality card. Meant for a machine with a GPU and a connection; a list of folders needs neither.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import shlex
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from boxtwin.synthesis.manifest import LEARNING

ROOT = Path(__file__).resolve().parents[1]
HEADER = (
    "checkpoint", "of", "licence", "made", "refused", "s to load", "s each", "GB",
    "boxes kept, shifted, dropped, added", "quality", "sheet or reason",
)  # fmt: skip


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    listed = Path(__file__).with_suffix(".yaml")
    options.add_argument("--checkpoints", type=Path, default=listed, help="name: words of generate.py")
    options.add_argument("--only", nargs="+", metavar="NAME", help="these of the list")
    options.add_argument("--output", type=Path, help="a file for the table, in Markdown")
    options.add_argument("overrides", nargs="*", help="settings of generate.py for all")
    arguments = options.parse_intermixed_args()
    checkpoints: dict[str, str] = yaml.safe_load(arguments.checkpoints.read_text())
    if unknown := set(arguments.only or ()) - checkpoints.keys():
        options.error(f"--only: {', '.join(sorted(unknown))} is not in {arguments.checkpoints}")
    from measuring import report  # late: it imports torch, which --help does not need

    rows: list[list[str | float]] = []
    for name in arguments.only or checkpoints:
        rows.append([name, *_row([*shlex.split(checkpoints[name]), *arguments.overrides])])
        table = io.StringIO()
        with contextlib.redirect_stdout(table):
            report(f"Published checkpoints, {' '.join(arguments.overrides)}", HEADER, rows)
        if arguments.output:  # after each: the next may take an hour, or the machine away
            arguments.output.write_text(table.getvalue())
    print(table.getvalue())


def _row(words: list[str]) -> list[str | float]:
    """What generate.py makes with these words, as the columns of the table."""
    command = [sys.executable, str(ROOT / "generate.py"), *words]
    print(f"{shlex.join(command)}", file=sys.stderr)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            sys.stderr.write(line)
            said.append(line.rstrip())
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    told = {key: value for key, _, value in (line.partition(": ") for line in said)}
    if "store" not in told:
        return [*["-"] * (len(HEADER) - 2), " ".join(said[-1:]) or f"exit status {process.returncode}"]
    store = ROOT / told["store"]
    lines = [json.loads(line) for line in (store / "manifest.jsonl").read_text().splitlines()]
    files = ("refused.jsonl", LEARNING, "label_card.json", "quality_card.json")
    refused, learning, label_card, quality = (_json(store / name) for name in files)
    peaks = {key: value for line in lines for key, value in line["record"].items() if key.startswith("peak_memory")}
    memory, whose = (max(peaks.values()), max(peaks)[12:]) if peaks else (used.ru_maxrss * 1024, "process")
    model = lines[0]["model"]["id"] if lines else "-"
    boxes = ", ".join(str(label_card[name]) for name in ("kept", "shifted", "dropped", "added")) if label_card else "-"
    return [
        f"{Path(model).name} {lines[0]['model']['revision'][:12] if lines else ''}",
        licence(model),
        str(len(lines)),
        str(len(refused)),
        learning[-1]["seconds"] if learning else "-",
        statistics.median(line["seconds"] for line in lines) if lines else "-",
        f"{memory / 1e9:.1f} {whose}",
        boxes,
        str(quality.get("verdict", "-")),
        str(store / "contact_sheet.png"),
    ]  # fmt: skip


def _json(file: Path) -> Any:
    """A file's content, or that of its lines; empty if it is missing."""
    if not file.exists():
        return {}
    text = file.read_text()
    return [json.loads(line) for line in text.splitlines()] if file.suffix == ".jsonl" else json.loads(text)


def licence(model: str) -> str:
    """The licence that the card of a checkpoint names: of a folder, or on the hub."""
    from huggingface_hub import ModelCard

    card = Path(model) / "README.md" if Path(model).is_dir() else model
    if isinstance(card, Path) and not card.exists():
        return "no model card"
    try:
        about = ModelCard.load(card).data.to_dict()
    except Exception as error:
        return f"unknown ({type(error).__name__})"
    return str(about.get("license_name") or about.get("license") or "none named")


if __name__ == "__main__":
    main()
