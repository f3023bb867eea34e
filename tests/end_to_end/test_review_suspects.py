"""Labels that look wrong, and runs scored again on corrected ones: the user's commands on a small study."""

import csv
import json
import shutil
from pathlib import Path

import pytest
from commands import run
from small_study import SMALL

TRAIN = f"train.py -m experiment=tiny split=s1 variations=0 seed=0,1,2 study=look {' '.join(SMALL)}"
LABELS = "data/sar_scenes/annotations.json"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seeds of one condition, trained for a few steps."""
    folder = tmp_path_factory.mktemp("look")
    run(TRAIN, folder, within=300)
    return folder


def table(file: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(file.read_text().splitlines()))


def test_unchanged_labels_change_nothing(folder: Path) -> None:
    printed = run(f"compare.py annotations={LABELS} folder=unchanged", folder)
    assert "With corrected labels" in printed
    assert "chosen again" in printed
    assert table(folder / "unchanged/look/comparison.csv") == table(folder / "unchanged/look/comparison_corrected.csv")


def test_suspects_are_listed_tried_and_shown_in_the_report(folder: Path) -> None:
    (folder / "look").mkdir()  # a data set's folder may be called as the study
    printed = run("review.py suspects=look", folder)
    listed, page = folder / "reports/look/suspects", (folder / "reports/look/suspects/index.html").read_text()
    assert "reports/look/suspects/index.html" in printed
    lines, content = table(listed / "suspects.csv"), json.loads((folder / LABELS).read_text())
    assert page.count("<image ") == len(lines)
    assert f"{len(lines)} suspect" in page
    marked = json.loads((listed / "corrected_suggestions.json").read_text())
    assert len(marked.pop("suspects")) == len(lines)
    for image in marked["images"]:
        assert (folder / image.pop("path")).is_file()
        assert image.pop("orientation") == "apply"
        image.pop("suspects", None)
    assert marked == content
    result = json.loads(next(folder.glob("multirun/look/*/result.json")).read_text())
    tested = {entry["file_name"] for entry in (*result["counts"], *result["validation_images"])}
    assert {line["file_name"] for line in lines} <= tested
    assert {line["side"] for line in lines} <= {"test", "validation"}

    report = run("compare.py", folder)
    assert "What the labels may hide" in report
    assert "No person has confirmed these suggestions." in (folder / "reports/look/index.html").read_text()
    run("compare.py annotations=reports/look/suspects/suggestions_applied.json", folder)


def test_the_list_goes_to_a_tool_and_comes_back(folder: Path) -> None:
    """An untouched export scores as the runs did."""
    run("review.py suspects=look folder=doubts", folder)
    store = "store=doubts/corrected_suggestions.json"
    run(f"review.py export=coco {store} folder=to_correct", folder)
    exported = folder / "to_correct" / "annotations.json"
    content = json.loads(exported.read_text())
    assert len(list((folder / "to_correct" / "images").iterdir())) == len(content["images"])
    run(f"review.py export=label_studio {store} folder=tasks", folder)
    marked = json.loads((folder / "doubts" / "corrected_suggestions.json").read_text())["images"]
    tasks = json.loads((folder / "tasks" / "tasks.json").read_text())
    assert [task["data"].get("suspects") for task in tasks] == [image.get("suspects") for image in marked]
    run(f"review.py read={exported} {store} folder=first", folder)
    (returned,) = folder.rglob("labels-1.json")
    run(f"compare.py annotations={returned} folder=same", folder)
    assert table(folder / "same/look/comparison.csv") == table(folder / "same/look/comparison_corrected.csv")


def test_a_folder_of_runs_is_taken_like_a_study(folder: Path) -> None:
    run("review.py suspects=multirun/look folder=elsewhere", folder)
    first, second = (folder / name for name in ("reports/look/suspects/suspects.csv", "elsewhere/suspects.csv"))
    assert first.read_text() == second.read_text()


def test_a_study_of_two_data_sets_is_refused(folder: Path) -> None:
    both = shutil.copytree(folder / "multirun" / "look", folder / "both")
    for run_folder in list(both.glob("s1-*")):
        other = shutil.copytree(run_folder, both / f"other-{run_folder.name}")
        result = json.loads((other / "result.json").read_text())
        result["params"]["dataset"] = "other"
        (other / "result.json").write_text(json.dumps(result | {"identity": f"{result['identity'][:-1]}x"}))
    printed = run("review.py suspects=both", folder, code=1)
    assert "has runs on 2 data sets (other, sar_scenes)" in printed


def test_what_cannot_be_done_is_one_line(folder: Path) -> None:
    for command, words in {
        "review.py suspects=other": "no runs of a study called other",
        "compare.py annotations=nowhere.json": "nowhere.json does not exist",
    }.items():
        printed = run(command, folder, code=1)
        assert words in printed
        assert "Traceback" not in printed


def test_mlflow_has_all_that_is_needed(folder: Path) -> None:
    before = (folder / "reports/look/suspects/suspects.csv").read_text()
    shutil.move(folder / "multirun", folder / "gone")
    run(f"compare.py annotations={LABELS} folder=stored", folder)
    assert table(folder / "stored/look/comparison.csv") == table(folder / "stored/look/comparison_corrected.csv")
    run("review.py suspects=look folder=stored/suspects", folder)
    assert (folder / "stored/suspects/suspects.csv").read_text() == before
