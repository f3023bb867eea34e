"""Publish a study: write a folder of runs as the few files that `compare.py runs=FOLDER` and readers need.

    python compare.py runs=multirun/hrsid200
    python benchmarks/keep_study.py multirun/hrsid200 docs/results/hrsid200 --report reports/hrsid200

Writes to the second folder:

- `runs.zip`: metrics, counts per test image, matches of detections, and the numbers of the cards of variation stores,
  each of these once; also detections, which `compare.py annotations=FILE` needs, if all runs have them and they take
  less than 5 MB. Images are left out, because their licence may not allow copies;
- `split.json`: the file names of each split, for `split.file=`;
- `config.yaml`: the settings of the first run;
- `comparison.csv`, `report.html` and, if they exist, `primary.yaml` and `worth.svg`, copied from the folder of the
  report, and `forest.png`, a plot of the first: the difference to no variations with its 95 % interval, one row a
  condition. `--plot` alone makes it again:

    python benchmarks/keep_study.py docs/results/hrsid200 docs/results/hrsid200 --plot

With ``--add`` the folder keeps the runs, the splits and the settings that it has, so that a study can be run in parts:

    python compare.py "runs=[docs/results/hrsid200,multirun/hrsid200]"
    python benchmarks/keep_study.py multirun/hrsid200 docs/results/hrsid200 --add --report reports/hrsid200

Folders of this machine become FOLDER. README.md of the study is written by hand: command, commit, machine, date, table.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import yaml

from boxtwin.command_line import words_of
from boxtwin.config.identity import NO_PRETRAINING
from boxtwin.files import write_bytes_atomically
from boxtwin.studies.archive import ARCHIVE, runs_folder, write_archive
from boxtwin.studies.primary import PRIMARY_FILE
from boxtwin.studies.report.page import WORTH_FILE
from boxtwin.tracking.run_folders import read_result

COPIED = ("matches.npz", "label_card.json", "quality_card.json")
DETECTIONS = ("detections.json", "validation_detections.json")
LARGEST = 5_000_000  # bytes of all detections, compressed, up to which they are kept
# A value that begins with / is a path of this machine; of a file the name is kept.
LOCAL_FOLDER = re.compile(r"=/.*?(?=/[^/]+\.\w+$|$)")
DROPPED = re.compile(r"(?:study|tracking\.\w+|data|hydra\.\S+?)=.*")


def published(overrides: object) -> list[str]:
    """Overrides without folders of this machine, and without those that say where things are kept."""
    return [LOCAL_FOLDER.sub("=FOLDER", word) for word in words_of(overrides) if not DROPPED.fullmatch(word)]


def without_folders(value: Any) -> Any:
    """Settings with FOLDER for the folders of this machine; of a file the name is kept."""
    if isinstance(value, dict):
        return {key: without_folders(entry) for key, entry in value.items()}
    if not isinstance(value, str) or not value.startswith("/"):
        return value
    return f"FOLDER/{Path(value).name}" if Path(value).suffix else "FOLDER"


def kept_files(folder: Path) -> dict[str, bytes]:
    """The files of the runs that a folder keeps, by their names in its archive."""
    if not (folder / ARCHIVE).exists():
        return {}
    with runs_folder(folder) as runs:
        return {f"{path.parent.name}/{path.name}": path.read_bytes() for path in sorted(runs.glob("*/*"))}


def run_files(run: Path, study: str) -> dict[str, bytes]:
    """The files of one run by their names in the archive; its study is called ``study``."""
    result = json.loads((run / "result.json").read_text())
    result["study"] = study
    if "overrides" in result:
        result["overrides"] = published(result["overrides"])
    files = {name: (run / name).read_bytes() for name in COPIED if (run / name).exists()}
    files["result.json"] = (json.dumps(result) + "\n").encode()
    return {f"{run.name}/{name}": data for name, data in files.items()}


METRICS = {  # column of comparison.csv: label of the axis, factor, color
    "map_50": ("difference in AP50, points\n(right is better)", 100, "tab:blue"),
    "count_mae": ("difference in count MAE, objects per image\n(left is better)", 1, "tab:orange"),
}


def forest_plot(comparison: Path, picture: Path) -> None:
    """Draw the differences to no variations with their 95 % intervals, one row a condition; nothing without such rows.

    Args:
        comparison: comparison.csv of a study, whose conditions have enough seeds for intervals.
        picture: the PNG file to write.
    """
    with comparison.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get("map_50_change_low95")]
    if not rows:  # a study without variations
        picture.unlink(missing_ok=True)
        return
    rows.sort(key=lambda row: (row["split"], row["generator"], int(row["variations"])), reverse=True)
    before = [row.get("pretraining") or NO_PRETRAINING for row in rows]
    names = [
        f"{float(row['real_images']):.0f} real images, {row['variations']} {row['generator']}"
        + ("" if pretraining == NO_PRETRAINING else f" after {pretraining}")
        for row, pretraining in zip(rows, before, strict=True)
    ]
    figure, axes = plt.subplots(1, 2, figsize=(10.5, 0.7 + 0.32 * len(rows)), sharey=True, layout="constrained")
    for axis, (metric, (label, factor, color)) in zip(axes, METRICS.items(), strict=True):
        middle, low, high = (
            [factor * float(row[f"{metric}_change{end}"]) for row in rows] for end in ("", "_low95", "_high95")
        )
        axis.axvline(0, color="0.6", linewidth=1)
        axis.hlines(names, low, high, color=color, linewidth=2)
        axis.plot(middle, names, "o", color=color)
        axis.set_xlabel(label)
        axis.grid(axis="x", alpha=0.3)
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.tick_params(axis="y", length=0)
        axis.set_ylim(-0.6, len(rows) - 0.4)  # few rows have no room for their marks otherwise
    drawn = BytesIO()
    figure.savefig(drawn, format="png", dpi=110, metadata={"Software": None})
    plt.close(figure)
    write_bytes_atomically(picture, drawn.getvalue())


def main() -> None:
    """Write the files and print what they are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="folder of runs, such as multirun/NAME")
    parser.add_argument("folder", type=Path, help="where to write, such as docs/results/NAME")
    parser.add_argument("--report", type=Path, help="folder of the report, such as reports/NAME")
    parser.add_argument("--add", action="store_true", help="keep the runs that are there, and add those of the study")
    parser.add_argument("--plot", action="store_true", help="make forest.png again from the comparison.csv there")
    settings = parser.parse_args()
    if settings.plot:
        forest_plot(settings.folder / "comparison.csv", settings.folder / "forest.png")
        return
    found_results = {path.parent: read_result(path.parent) for path in sorted(settings.study.glob("*/result.json"))}
    if damaged := [str(run) for run, result in found_results.items() if result is None]:
        parser.error(f"the result.json of these runs cannot be read: {', '.join(damaged)}")
    runs = [run for run, result in found_results.items() if result is not None and result.kind == "run"]
    if not runs:
        parser.error(f"{settings.study} holds no finished run")
    needed = [settings.report / name for name in ("comparison.csv", "index.html")] if settings.report else []
    if lacking := [file.name for file in needed if not file.exists()]:
        parser.error(f"--report {settings.report} lacks {', '.join(lacking)}; compare.py writes them")
    if settings.folder.exists() and not settings.folder.is_dir():
        parser.error(f"{settings.folder} is a file; give a folder")
    settings.folder.mkdir(parents=True, exist_ok=True)
    name = settings.folder.resolve().name
    files = kept_files(settings.folder) if settings.add else {}
    before = {Path(file).parts[0] for file in files}
    for run in runs:
        detections = {f"{run.name}/{file}": (run / file).read_bytes() for file in DETECTIONS if (run / file).exists()}
        files |= run_files(run, name) | detections
    found = {file: len(zlib.compress(data)) for file, data in files.items() if Path(file).name in DETECTIONS}
    kept = {Path(file).parent for file in files if Path(file).name == "result.json"}
    if found and (sum(found.values()) > LARGEST or {Path(file).parent for file in found} != kept):
        files = {file: data for file, data in files.items() if file not in found}
        print(f"detections are left out: {sum(found.values()) / 1e6:.1f} MB, or some runs were kept without")
    splits = {k: v for run in runs for k, v in _json(run / "split.json").items()}
    if splits and not before:
        write_bytes_atomically(settings.folder / "split.json", (json.dumps(splits, indent=1) + "\n").encode())
    if (runs[0] / "config.yaml").exists() and not before:
        config = without_folders(yaml.safe_load((runs[0] / "config.yaml").read_text()))
        text = yaml.safe_dump(config, sort_keys=False)
        write_bytes_atomically(settings.folder / "config.yaml", text.encode())
    if settings.report:
        copied = {"comparison.csv": "comparison.csv", "index.html": "report.html"}
        copied |= {file: file for file in (PRIMARY_FILE, WORTH_FILE) if (settings.report / file).exists()}
        for file, target in copied.items():
            write_bytes_atomically(settings.folder / target, (settings.report / file).read_bytes())
        forest_plot(settings.folder / "comparison.csv", settings.folder / "forest.png")
    # Last: a killed call leaves none, and the same call begins again.
    write_archive(files, settings.folder / ARCHIVE)
    names = ", ".join(sorted(path.name for path in settings.folder.iterdir()))
    print(f"{len(before | {run.name for run in runs})} runs in {settings.folder}: {names}")


def _json(path: Path) -> dict[str, object]:
    content: dict[str, object] = json.loads(path.read_text()) if path.exists() else {}
    return content


if __name__ == "__main__":
    main()
