"""Printed commands: a shell and Hydra's own parser must get from them what was typed."""

from __future__ import annotations

import copy
import json
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import QuotedString

from boxtwin.command_line import command_line, typed_values, words_of
from boxtwin.config.arguments import chosen_files, hide_password, quote_numbers
from boxtwin.errors import InputError

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _options_of_this_test_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Options without a file are kept in a store of the whole process."""
    monkeypatch.setattr(ConfigStore.instance(), "repo", copy.deepcopy(ConfigStore.instance().repo))


TYPED = [
    "--config-dir=my conf",
    "--config-name=own",
    "dataset.root='in/my data,2'",
    "dataset.group_by='^([^_]+)_'",
    'dataset.name="it\'s"',
    "variations='10'",
    "detector.weights=w.weights",
    "generator=repeat",
    "+x.y=[1,2]",
    "a=$HOME;touch PWNED",
    "b=`id`",
    "c=é!",
    "~dataset_generator",
]


def test_a_shell_gives_back_what_was_typed() -> None:
    line = command_line("train.py", words_of(json.dumps(TYPED)))
    shown = subprocess.run(
        ["bash", "-c", f"python() {{ printf '%s\\0' \"$@\"; }}; {line}"], capture_output=True, text=True, check=True
    ).stdout.split("\0")[:-1]
    assert shown == ["train.py", *(word.replace("'10'", "10") for word in TYPED)]
    assert shlex.split(line)[1:] == shown


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("split=s1 variations='2' seed=0", ["split=s1", "variations=2", "seed=0"]),
        ("dataset.root='in/my data,2' study=x", ["dataset.root='in/my data,2'", "study=x"]),
        ("a=b  ~c +d=1", ["a=b", "~c", "+d=1"]),
        ("", []),
        ("[broken", []),
    ],
)
def test_records_of_older_versions_are_read(text: str, words: list[str]) -> None:
    assert words_of(text) == words


def test_of_a_setting_typed_twice_the_last_counts() -> None:
    """As Hydra composes it."""
    words = ["-m", "seed=0", "+study='a b'", "seed=1", "~split.file", 'dataset.root="x=y"']
    assert typed_values(words) == {"seed": "1", "study": "a b", "dataset.root": "x=y"}


def test_no_absolute_path_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    line = command_line(
        "train.py",
        [
            f"--config-dir={tmp_path}/conf",
            f"dataset.root='{tmp_path}/a b'",
            "data=/elsewhere/x",
            "dataset.group_by='/x/'",
        ],
    )
    words = shlex.split(line)
    assert words[2:4] == ["--config-dir=conf", "dataset.root='a b'"]
    assert Path(words[4].removeprefix("data=")).resolve() == Path("/elsewhere/x")
    assert words[5] == "dataset.group_by='/x/'"  # no path


@pytest.mark.parametrize(
    ("typed", "numbers"),
    [
        ("variations=range(0,3)", ["0", "1", "2"]),
        ("variations=range(2)", ["0", "1"]),
        ("variations=range(0, 11, 5)", ["0", "5", "10"]),
        ("variations=0,range(2,4)", ["0", "2", "3"]),
        ("+variations=1", ["1"]),
        ("variations=choice(0,2)", ["0", "2"]),
        ("variations=choice(range(2),10)", ["0", "1", "10"]),
    ],
)
def test_ranges_of_variations(tmp_path: Path, typed: str, numbers: list[str]) -> None:
    (quoted,) = quote_numbers([typed], tmp_path / "variations")
    (override,) = OverridesParser.create().parse_overrides([quoted])
    values = list(override.sweep_string_iterator()) if override.is_sweep_override() else [override.get_value_string()]
    assert [value.strip("'") for value in values] == numbers


@pytest.mark.parametrize(
    "value", ["-1", "1.5", "abc", "", "1,-2", "range(0)", "range(-1,2)", "range(1,2,0)", "1e3", "null"]
)
def test_what_is_no_number_of_variations_is_one_line(tmp_path: Path, value: str) -> None:
    with pytest.raises(ValueError, match=r"whole numbers from 0") as caught:
        quote_numbers([f"variations={value}"], tmp_path / "variations")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", ["glob(*)", "shuffle(0,2)", "interval(0,2)", "glob(*,exclude=2)"])
def test_other_functions_of_hydra_are_refused_for_variations(tmp_path: Path, value: str) -> None:
    with pytest.raises(InputError, match=r"\(\) is not possible for variations; give numbers: variations=0,2,10$"):
        quote_numbers([f"variations={value}"], tmp_path / "variations")


def test_a_file_of_ones_own_is_an_option(tmp_path: Path) -> None:
    folder = tmp_path / "mine" / "variations"
    folder.mkdir(parents=True)
    (folder / "many.yaml").touch()
    arguments = ["--config-dir", str(tmp_path / "mine"), "variations=many,2"]
    assert quote_numbers(arguments, tmp_path / "variations")[-1] == "variations='many','2'"


@pytest.mark.parametrize(
    "words",
    ["-cd=a -m x=1 -cn c", "--config-d a y=--config-dir=z --config-name=c", "-cd b -cn=c -cd a"],
)
def test_options_are_read_as_hydra_reads_them(words: str) -> None:
    assert chosen_files(words.split()) == {"--config-dir": "a", "--config-name": "c"}


def test_settings_of_the_readme_that_hold_expressions_reach_hydra_through_a_shell() -> None:
    """Their brackets and roofs mean something to both."""
    settings = re.findall(r"`([^`\n]*group_by=[^`\n]+)`", (ROOT / "README.md").read_text())
    assert settings
    for setting in settings:
        line = f"printf '%s\\0' {setting}"
        words = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True).stdout.split("\0")
        (override,) = OverridesParser.create().parse_overrides(words[:-1])
        value = override.value()
        assert re.compile(value.text if isinstance(value, QuotedString) else str(value)).groups == 1


@pytest.mark.parametrize("quote", ["", "'", '"'])
@pytest.mark.parametrize(
    ("user", "name", "password"),
    [("bob:s3cr3t", "bob", "s3cr3t"), ("bob:p%40ss:w@rd", "bob", "p@ss:w@rd"), ("bob", "bob", None)],
)
def test_a_password_goes_into_the_environment(
    monkeypatch: pytest.MonkeyPatch, quote: str, user: str, name: str, password: str | None
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_PASSWORD", raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "")
    hidden = hide_password(f"tracking.uri={quote}https://{user}@host:5000/x{quote}")
    assert hidden == f"tracking.uri={quote}https://host:5000/x{quote}"
    assert os.environ["MLFLOW_TRACKING_USERNAME"] == name
    assert os.environ.get("MLFLOW_TRACKING_PASSWORD") == password
    monkeypatch.delenv("MLFLOW_TRACKING_PASSWORD", raising=False)


def test_a_password_of_a_database_is_refused_without_being_shown() -> None:
    with pytest.raises(ValueError, match=r"tracking\.uri") as caught:
        hide_password("tracking.uri=postgresql://bob:s3cr3t@host/db")
    assert "s3cr3t" not in str(caught.value)
    for argument in ("tracking.uri=http://host:5000", "tracking.uri=null", "dataset.root=http://a:b@c", "-m"):
        assert hide_password(argument) == argument
