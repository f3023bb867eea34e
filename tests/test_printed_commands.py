"""Commands that the product prints or shows: each is known here and tried, and a new one fails until it is.

Those with something of the user's in them are put together by `boxtwin.command_line` alone, and pasted into shells by
``test_pasted_commands``; those without are looked for in the source, the settings and the Makefile, and tried here.
"""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from hydra import compose, initialize_config_dir
from mlflow.cli import cli as mlflow_commands
from packaging.requirements import Requirement

from boxtwin.config.arguments import quote_numbers
from boxtwin.config.compose import register

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "boxtwin"
SCRIPTS = {path.name for path in ROOT.glob("*.py")}
HOLE = "\N{REPLACEMENT CHARACTER}"  # stands for what an f-string puts in
TARGETS = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M)
COMMAND = re.compile(
    rf"\b(?:python3? (?:-\w+ )?(?:[\w./]*\.py|{HOLE})(?: (?:--?[\w-]+|[\w./+~@\"-]+=\S+))*"
    rf"|pip install \S+|mlflow (?:{'|'.join(mlflow_commands.commands)})\b(?: [a-z-]\S*)*"
    rf"|(?:rm|mv|cp|cd|sqlite3|curl|git|bash|sh) (?:-|\S*[/.{HOLE}])\S*"
    rf"|make (?:{'|'.join(TARGETS)}|[A-Z]+=\S+)\b(?: [A-Z]+=\S+)*)"
)
# What of the user's is in a command: by file and function, and the test in test_pasted_commands that pastes it.
PRODUCERS = {
    "config.arguments.refused_word": "test_words_that_hydra_refused",
    "config.places.what_to_set": "test_converting_a_data_set",
    "commands.compare.with_split": "test_making_a_published_run_again",
    "commands.compare.with_study": "test_making_runs_of_several_studies_again",
    "commands.export._detectors_near": "test_runs_that_an_error_lists",
    "counting.detectors._find": "test_runs_of_a_study_to_count_with",
    "counting.detectors._check_one_data_set": "test_best_detectors_of_several_data_sets",
    "counting.detectors.best_of": "test_newer_detectors_than_the_best",
    "commands.review_suspects.compare_command": "test_trying_suggestions",
    "commands.recommended.final_command": "test_trying_suggestions",
    "commands.generate.generate_command": "test_making_variations",
    "commands.generate._generator_of": "test_values_of_every_kind",
    "commands.review_labels.serve_command": "test_serving_images_to_label_studio",
    "commands.review_labels.add_command": "test_using_labels_that_were_read",
    "commands.review_labels.use_with": "test_using_labels_that_were_read",
    "studies.runs.run_from": "test_making_a_run_again",  # kept, and printed by the report
    "studies.next_runs.command": "test_what_to_run_next",
    "studies.next_runs._command": "test_running_on_the_data_of_another_condition",
    "studies.next_runs.with_data_of": "test_running_on_the_data_of_another_condition",
    "studies.condition_values.as_overrides": "test_what_to_run_next",  # a name, of which a command is made
    "studies.report.page.command_of": "test_making_a_run_again",
    "studies.report.page._commands": "test_comparing_again",
    "tracking.mlflow_runs.experiment": "test_bringing_an_experiment_back",
    "tracking.study_names._runs_in_folders": "test_comparing_runs_in_folders",
    "tracking.mlflow_view.note": "test_exporting",
}
QUOTING = {"command_line", "quoted", "join", "quote"}


def modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(SOURCE.rglob("*.py")):
        name = ".".join(path.relative_to(SOURCE).with_suffix("").parts)
        yield name, ast.parse(path.read_text(encoding="utf-8"))


def texts(tree: ast.Module) -> Iterator[tuple[str, bool]]:
    """Every text in a module but for docstrings, with `HOLE` where a value is put in; and whether one is by ``+``."""
    skipped = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    added = {id(side) for node in ast.walk(tree) if isinstance(node, ast.BinOp) for side in (node.left, node.right)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            skipped |= {id(part) for part in node.values}
            yield (
                "".join(str(part.value) if isinstance(part, ast.Constant) else HOLE for part in node.values),
                id(node) in added,
            )
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skipped:
            yield re.sub(r"%(?:[-\d.*]*[sdgfr])|\{\w*\}", HOLE, node.value), id(node) in added


def shown() -> dict[str, str]:
    """Where each command without anything of the user's is: in texts of the source, settings with help, Makefile."""
    found = {match[0]: name for name, tree in modules() for text, _ in texts(tree) for match in COMMAND.finditer(text)}
    for path in [*ROOT.glob("conf/**/*.yaml"), *SOURCE.rglob("*.html"), ROOT / "Makefile"]:
        text = re.sub(r" *\\\n#? *", " ", path.read_text(encoding="utf-8")).replace("$(BIN)/", "")
        for line in text.splitlines():
            if path.name != "Makefile" or re.search("echo|(train|compare).py", line):
                found |= dict.fromkeys((match[0] for match in COMMAND.finditer(line)), path.name)
    return {command.rstrip("`.,;)"): name for command, name in found.items()}


SHOWN = shown()


def of(*programs: str) -> list[str]:
    return sorted(command for command in SHOWN if command.split()[0] in programs)


def test_no_command_with_something_in_it_is_put_together_elsewhere() -> None:
    wrong = []
    for name, tree in modules():
        for text, added in texts(tree):
            wrong += [f"{name}: {match[0]}" for match in COMMAND.finditer(text) if HOLE in match[0]]
            wrong += [
                f"{name}: {text}" for match in COMMAND.finditer(text) if added and not text[match.end() :].strip()
            ]
            if text in SCRIPTS and name != "tracking.provenance":
                first = {id(n.args[0]) for n in ast.walk(tree) if isinstance(n, ast.Call) and n.args}
                nodes = [n for n in ast.walk(tree) if isinstance(n, ast.Constant) and n.value == text]
                wrong += [f"{name}: {text}" for node in nodes if id(node) not in first]
    assert not wrong, "use boxtwin.command_line"


def test_every_place_that_puts_a_command_together_has_a_test() -> None:
    found = set()
    for name, tree in modules():
        if name == "command_line":
            continue
        for function in ast.walk(tree):
            if isinstance(function, ast.FunctionDef):
                calls = [node.func for node in ast.walk(function) if isinstance(node, ast.Call)]
                named = {call.id for call in calls if isinstance(call, ast.Name)} & {"command_line", "quoted"}
                of_shlex = {
                    call.attr
                    for call in calls
                    if isinstance(call, ast.Attribute) and isinstance(call.value, ast.Name) and call.value.id == "shlex"
                }
                if named or of_shlex & {"join", "quote"}:
                    found.add(f"{name}.{function.name}")
    assert found == set(PRODUCERS)
    tests = {
        node.name
        for node in ast.walk(ast.parse((ROOT / "tests" / "test_pasted_commands.py").read_text()))
        if isinstance(node, ast.FunctionDef)
    }
    assert set(PRODUCERS.values()) <= tests


def test_every_kind_of_command_is_tried() -> None:
    """That is, by one of the tests below."""
    assert SHOWN
    assert {command.split()[0] for command in SHOWN} == {"python", "pip", "make", "mlflow", "cp"}
    assert of("cp") == ["cp data/synthetic/STORE/annotations.json"]  # tests/end_to_end/test_labels.py does so


@pytest.fixture
def conf() -> Iterator[None]:
    register()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        yield


def test_scripts_take_what_is_shown(conf: None) -> None:
    """Hydra finds every file and setting that is named: nothing is run."""
    tried = 0
    for command in of("python"):
        _, script, *words = shlex.split(command)
        words = [word for word in words if "=" in word and not word.startswith("GROUP=") and "…" not in word]
        numbers = quote_numbers(words, ROOT / "conf" / "variations")
        # Of a sweep the first of each.
        single = [re.sub(r"range\(\d+\)", "0", re.sub(r"^([^,\[]*),.*", r"\1", word)) for word in numbers]
        try:
            compose("config" if script == "train.py" else script.removesuffix(".py"), single)
        except Exception as error:
            raise AssertionError(f"{command} ({SHOWN[command]})") from error
        tried += 1
    assert tried > 40


def test_extras_that_are_advised_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for command in of("pip"):
        for word in shlex.split(command)[2:]:
            requirement = Requirement(word.rstrip(";,)"))
            assert requirement.name != project["name"] or requirement.extras <= set(project["optional-dependencies"])
            assert requirement.extras or requirement.name != project["name"], command


@pytest.mark.parametrize("command", of("make"))
def test_make_knows_its_targets(command: str) -> None:
    """`make -n` prints what would be run, and runs nothing."""
    words = [word for word in shlex.split(command) if not word.startswith("PYTHON=")]
    done = subprocess.run([words[0], "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_mlflow_has_its_commands() -> None:
    assert of("mlflow") == ["mlflow models serve -m", "mlflow server", "mlflow server --allowed-hosts"]
    assert "--allowed-hosts" in [name for option in mlflow_commands.commands["server"].params for name in option.opts]
    models = mlflow_commands.commands["models"]
    assert isinstance(models, click.Group)
    assert "serve" in models.commands
