"""Printed commands, pasted into real shells: programs get the very words, and Hydra the very values, that are meant.

Programs are replaced by one that writes down what it is given. Values are such as people have, and such as would make a
shell do something else.
"""

from __future__ import annotations

import json
import math
import os
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException, OverrideParseException
from hydra_words import HOSTILE, as_configured, values
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf, open_dict

from boxtwin.command_line import command_line, quote_path, quoted, setting
from boxtwin.commands import generate as generation
from boxtwin.commands.compare import kept_split, of_store, with_split, with_study
from boxtwin.commands.export import export_detector
from boxtwin.commands.recommended import final_command
from boxtwin.commands.review_labels import add_command, serve_command, use_with
from boxtwin.commands.review_suspects import compare_command
from boxtwin.config.arguments import quote_refused, refused_word
from boxtwin.config.compose import register, to_object
from boxtwin.config.launch import OPTIONS_VARIABLE
from boxtwin.config.places import what_to_set
from boxtwin.config.schema import BoxtwinConfig, GenerateConfig
from boxtwin.counting.detectors import find_detectors
from boxtwin.errors import InputError
from boxtwin.studies.condition_values import as_overrides, flatten
from boxtwin.studies.next_runs import command, with_data_of
from boxtwin.studies.report.page import _commands, command_of
from boxtwin.studies.runs import StudyRun, runs_in
from boxtwin.tracking.mlflow_runs import Store
from boxtwin.tracking.mlflow_view import note
from boxtwin.tracking.study_names import find_study

ROOT = Path(__file__).parents[1]
# With `!` for the history, as it is where people type.
SHELLS = {"sh": (["sh"], ""), "bash": (["bash", "--norc"], "set -o history; set -H\n")}
# Writes down what it is given, and MLflow's variable.
STUB = """#!/bin/sh
printf '%s\\0' "$MLFLOW_TRACKING_URI" "${0##*/}" "$@" END >> "$WORDS"
"""
Pasted = Callable[[str], list[tuple[str, list[str]]]]


@pytest.fixture(params=SHELLS)
def paste(request: pytest.FixtureRequest, tmp_path: Path) -> Pasted:
    """Pastes a line into a shell: for each program that it starts, MLflow's variable and what it is given."""
    folder = tmp_path / "programs"
    folder.mkdir()
    for name in ("python", "mlflow"):
        (folder / name).write_text(STUB)
        (folder / name).chmod(0o755)
    program, first = SHELLS[request.param]

    def paste(line: str) -> list[tuple[str, list[str]]]:
        here, words = tmp_path / "here", tmp_path / "words"
        here.mkdir(exist_ok=True)
        words.write_text("")
        environment = {
            "PATH": f"{folder}:{os.environ['PATH']}",
            "WORDS": str(words),
            "LC_ALL": "C.UTF-8",
            "HOME": "/home/me",
        }
        done = subprocess.run(
            program, input=f"{first}{line}\n", cwd=here, env=environment, capture_output=True, text=True, check=False
        )
        assert (done.returncode, list(here.iterdir())) == (0, []), done.stderr
        given = words.read_text().split("END\0")[:-1]
        return [(uri, rest) for uri, *rest in (each.split("\0")[:-1] for each in given)]

    return paste


def given_to(pasted: list[tuple[str, list[str]]], *start: str) -> list[list[str]]:
    """What each program is given after the start, which is the same for all."""
    assert all(tuple(words[: len(start)]) == start for _, words in pasted)
    return [words[len(start) :] for _, words in pasted]


texts = st.text(st.sampled_from("ab1.e_-/\\'\"${}()[],:=;~+@#%&*?!|<> \t\né`^"), max_size=12) | st.sampled_from(HOSTILE)
anything = st.recursive(
    texts | st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b_c"]), inner, max_size=2),
    max_leaves=4,
)


@given(anything)
@example([math.inf, -math.inf])
@settings(max_examples=300, deadline=None)
def test_values_of_every_kind(value: Any) -> None:
    """Whatever the value, Hydra gets it from the words that a shell makes of the line."""
    (word,) = shlex.split(quoted(setting("key", value)))
    (override,) = OverridesParser.create().parse_overrides([word])
    got = as_configured(override.value())
    assert (got, type(got)) == (value, type(value))


def test_words_of_every_kind(paste: Pasted) -> None:
    lines = [command_line("train.py", [word]) for word in HOSTILE]
    assert given_to(paste("\n".join(lines)), "python", "train.py") == [[word] for word in HOSTILE]


def run_with(folder: Path, overrides: list[str], **params: Any) -> StudyRun:
    """A finished run as `compare.py` reads it from its folder."""
    names = {
        "dataset": "d",
        "split": "s1",
        "variations": 2,
        "generator": "repeat",
        "detector": "x",
        "seed": 0,
        "steps": 1,
    }
    metrics = {"test/map": 0.4, "test/map_50": 0.7, "test/count_mae": 1.0}
    result = {"study": params.pop("study", "s"), "params": names | params, "metrics": metrics, "data": {}}
    (folder / "one").mkdir(parents=True, exist_ok=True)
    (folder / "one" / "result.json").write_text(json.dumps(result | {"overrides": overrides}))
    (run,) = runs_in(folder)
    return run


def typed(value: str) -> list[str]:
    """What somebody typed with this value wherever it fits, as a run keeps it."""
    return [
        *(f"--config-dir={value}", f"--config-name={value}", setting("dataset.name", value)),
        *(setting("dataset.group_by", value), setting("+generator.sketch", value), "variations='2'", "seed=0"),
    ]


def meant(value: str) -> dict[str, Any]:
    """What Hydra is to make of it."""
    options = {"config_dir": value, "config_name": value, "dataset.name": value, "dataset.group_by": value}
    return {**options, "+generator.sketch": value, "variations": 2, "seed": 0}


def test_making_a_run_again(tmp_path: Path, paste: Pasted) -> None:
    lines = [command_of(run_with(tmp_path / "runs", typed(value)))[0] for value in HOSTILE]
    assert [values(words) for words in given_to(paste("\n".join(lines)), "python", "train.py")] == [
        *map(meant, HOSTILE)
    ]


def test_making_a_run_again_of_which_little_is_known(tmp_path: Path, paste: Pasted) -> None:
    keys = ("study", "dataset", "split", "generator", "detector")
    lines = [command_of(run_with(tmp_path / "runs", [], **dict.fromkeys(keys, value)))[0] for value in HOSTILE]
    for value, words in zip(HOSTILE, given_to(paste("\n".join(lines)), "python", "train.py"), strict=True):
        assert values(words) == {**dict.fromkeys(keys, value), "variations": 2, "seed": 0, "trainer.steps": 1}


@pytest.mark.parametrize("folder", ["kept", "it's (1), k=v"])
def test_making_a_published_run_again(folder: str, tmp_path: Path, paste: Pasted) -> None:
    """With the file of its split that was published, whether it was typed, or set by an experiment."""
    kept = tmp_path / folder
    kept.mkdir()
    (kept / "config.yaml").write_text("dataset: {root: FOLDER}\nsplit: {file: '${dataset.root}/split.json'}\n")
    assert kept_split(kept) is None
    (kept / "split.json").write_text("{}")
    file = kept_split(kept)
    assert file == kept_split(kept / "runs.zip") == kept / "split.json"
    for typed in (["experiment=e", "study=a b"], ["split.file=/gone/s.json", "experiment=e", "study=a b"]):
        run = replace(run_with(tmp_path / "runs", typed), overrides=with_split(shlex.join(typed), file))
        (words,) = given_to(paste(command_of(run)[0]), "python", "train.py")
        assert values(words) == {"experiment": "e", "study": "a b", "split.file": os.path.relpath(kept / "split.json")}
    (kept / "config.yaml").write_text("split: {file: null}\n")  # drawn by a seed
    assert kept_split(kept) is None
    assert with_split("seed=1", None) == "seed=1"
    assert with_split("", file) == ""


def test_comparing_again(tmp_path: Path, paste: Pasted) -> None:
    lines = [_commands([run_with(tmp_path / "runs", [], study=value)])[-1][0] for value in HOSTILE]
    for value, words in zip(HOSTILE, given_to(paste("\n".join(lines)), "python", "compare.py"), strict=True):
        assert values(words) == {"study": value}
    store = of_store(OmegaConf.create({"uri": None, "folder": "a b"}))
    elsewhere = run_with(tmp_path / "others", [], study="s")
    (words,) = given_to(paste(_commands([elsewhere], store)[-1][0]), "python", "compare.py")
    assert values(words) == {"study": "s", "tracking.folder": "a b"}


def test_trying_suggestions(paste: Pasted) -> None:
    usual = OmegaConf.create({"uri": None, "folder": "mlruns"})
    lines = [compare_command(value, Path("reports") / "a b", usual) for value in HOSTILE]
    for value, words in zip(HOSTILE, given_to(paste("\n".join(lines)), "python", "compare.py"), strict=True):
        assert values(words) == {"study": value, "annotations": "reports/a b/suggestions_applied.json"}
    (words,) = given_to(paste(compare_command("s", Path("reports"), usual, "a b/runs")), "python", "compare.py")
    assert values(words) == {"runs": "a b/runs", "annotations": "reports/suggestions_applied.json"}
    lines = [final_command(value, usual) for value in HOSTILE]
    for value, words in zip(HOSTILE, given_to(paste("\n".join(lines)), "python", "train.py"), strict=True):
        assert values(words) == {"final": value}
    plain = [value for value in HOSTILE if "${" not in value]  # which a configuration holds resolved
    lines = [final_command("s", OmegaConf.create({"uri": value, "folder": value})) for value in plain]
    for value, words in zip(plain, given_to(paste("\n".join(lines)), "python", "train.py"), strict=True):
        assert values(words) == {"final": "s", "tracking.uri": value, "tracking.folder": value}


def test_what_to_run_next(paste: Pasted) -> None:
    lines = []
    for value in HOSTILE:
        # The name of a condition, in which a setting of its generator tells it from another.
        generator = f"repeat {as_overrides(flatten({'generator': {'sketch': value, 'crops': [1, None]}}))}"
        name = shlex.join(typed(value))
        lines.append(
            command(
                name, "repeat", study=value, split=value, variations=5, generator=generator, seeds=[3, 4], size=None
            )
        )
    for value, words in zip(HOSTILE, given_to(paste("\n".join(lines)), "python", "train.py", "-m"), strict=True):
        seeds = [word for word in words if word.startswith("seed=")]
        found = values([word for word in words if word not in seeds])
        sketch = found.pop("+generator.sketch")
        assert seeds == ["seed=3,4"]
        # A name does not tell these words from their text.
        assert sketch == {"null": None, "true": True}.get(value, value)
        expected = {key: each for key, each in meant(value).items() if key not in ("seed", "+generator.sketch")}
        rest = {"study": value, "split": value, "variations": 5, "generator": "repeat", "generator.crops": [1, None]}
        assert found == expected | rest


def test_running_on_the_data_of_another_condition(paste: Pasted) -> None:
    lines = []
    for value in HOSTILE:
        own, other = (
            shlex.join([setting("dataset.root", root), setting("split.file", root), setting("generator.sketch", value)])
            for root in (value, f"other {value}")
        )
        words = shlex.split(with_data_of(own, other))
        lines.append(command_line("train.py", words))
    for value, words in zip(HOSTILE, given_to(paste("\n".join(lines)), "python", "train.py"), strict=True):
        assert values(words) == {"dataset.root": value, "split.file": value, "generator.sketch": value}


def test_making_runs_of_several_studies_again(tmp_path: Path, paste: Pasted) -> None:
    lines = []
    for value in HOSTILE:
        run = run_with(tmp_path / "runs", [setting("dataset.root", value)], study=value)
        lines.append(command_of(replace(run, overrides=with_study(run)))[0])
        assert with_study(replace(run, overrides="study=x seed=1")) == "study=x seed=1"
    for value, words in zip(HOSTILE, given_to(paste("\n".join(lines)), "python", "train.py"), strict=True):
        assert values(words) == {"dataset.root": value, "study": value}


def test_exporting(paste: Pasted) -> None:
    lines = [
        next(line for line in note(f"multirun/{value}/run", "d").splitlines() if line.startswith("python"))
        for value in HOSTILE
    ]
    for value, words in zip(HOSTILE, given_to(paste("\n".join(lines)), "python", "export.py"), strict=True):
        assert values(words) == {"run": f"multirun/{value}/run"}


def test_using_labels_that_were_read(paste: Pasted) -> None:
    lines = ["python train.py " + use_with({"labels": "manual", "labels.file": value}) for value in HOSTILE]
    for value, given_words in zip(HOSTILE, given_to(paste("\n".join(lines)), "python", "train.py"), strict=True):
        assert values(given_words) == {"labels": "manual", "labels.file": value}

    lines = [add_command(Path(value)) for value in HOSTILE]
    for value, given_words in zip(HOSTILE, given_to(paste("\n".join(lines)), "python", "review.py"), strict=True):
        assert values(given_words)["read"] == ["DATASET", value]


def test_comparing_runs_in_folders(tmp_path: Path, paste: Pasted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for value in HOSTILE:
        name = value.replace("/", "")
        result = Path("multirun") / name / "run" / "result.json"
        result.parent.mkdir(parents=True)
        result.touch()
        with pytest.raises(InputError) as caught:
            find_study(None, None, Path("mlruns"))
        (words,) = given_to(paste(str(caught.value).partition("in folders: ")[2]), "python", "compare.py")
        assert values(words) == {"runs": f"multirun/{name}"}
        shutil.rmtree("multirun")


def test_converting_a_data_set(tmp_path: Path, paste: Pasted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for value in HOSTILE:
        labels = Path(value.lstrip("/")) / "labels" / "image.txt"
        labels.parent.mkdir(parents=True)
        labels.touch()
        command = what_to_set(labels.parents[1]).partition("convert them: ")[2]
        (words,) = given_to(paste(command), "python", "review.py")
        assert values(words) == {"read": str(labels.parents[1]), "folder": "CONVERTED"}


def test_serving_images_to_label_studio() -> None:
    for value in HOSTILE:
        root = Path("/data") / value.replace("/", "")
        serving = [f"LABEL_STUDIO_LOCAL_FILES_{each}" for each in ("SERVING_ENABLED=true", f"DOCUMENT_ROOT={root}")]
        assert shlex.split(serve_command(root / "to_label")) == [*serving, "label-studio", "start"]


def test_runs_that_an_error_lists(tmp_path: Path, paste: Pasted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folders = {f"multirun/s/{value}" for value in HOSTILE}
    for folder in folders:
        Path(folder).mkdir(parents=True)
        (Path(folder) / "detector.safetensors").touch()
    monkeypatch.setattr("boxtwin.commands.export.LISTED", len(HOSTILE))
    with pytest.raises(InputError) as caught:
        export_detector(OmegaConf.create({"run": "???"}))
    lines = str(caught.value).partition("finished runs:\n  ")[2].split("\n  ")
    pasted = paste("\n".join(f"python export.py {line}" for line in lines))
    assert {values(words)["run"] for words in given_to(pasted, "python", "export.py")} == folders


def test_runs_of_a_study_to_count_with(tmp_path: Path, paste: Pasted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folders = {f"multirun/s/{value}" for value in HOSTILE}
    for folder in folders:
        Path(folder).mkdir(parents=True)
        (Path(folder) / "detector.safetensors").touch()
    monkeypatch.setattr("boxtwin.counting.detectors.LISTED", len(HOSTILE))
    with pytest.raises(InputError) as caught:
        find_detectors("no such condition", "s")
    lines = str(caught.value).partition("its runs:\n  ")[2].split("\n  ")
    pasted = paste("\n".join(f"python count.py {line}" for line in lines))
    assert {values(words)["run"] for words in given_to(pasted, "python", "count.py")} == folders


def test_newer_detectors_than_the_best(
    tmp_path: Path, paste: Pasted, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    folders = {f"multirun/s/{value}" for value in HOSTILE}
    for hour, folder in enumerate(["multirun/s/best one", *folders]):
        Path(folder).mkdir(parents=True)
        metrics = {"val_real/map": 1 / (1 + hour), "data/real_images": 80}
        content = {"condition": {"data": folder}, "metrics": metrics}
        (Path(folder) / "result.json").write_text(json.dumps(content))
        (Path(folder) / "detector.safetensors").touch()
        os.utime(Path(folder) / "detector.safetensors", (hour, hour))
    monkeypatch.setattr("boxtwin.counting.detectors.LISTED", len(HOSTILE))
    caplog.set_level("INFO")
    find_detectors("best", "s")
    lines = caplog.messages[0].partition("(choose one with run=):\n  ")[2].split("\n  ")
    pasted = paste("\n".join(f"python count.py {line}" for line in lines))
    assert {values(words)["run"] for words in given_to(pasted, "python", "count.py")} == folders


def test_best_detectors_of_several_data_sets(tmp_path: Path, paste: Pasted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folders = {f"multirun/s/{value}" for value in HOSTILE}
    for number, folder in enumerate(folders):
        Path(folder).mkdir(parents=True)
        content = {"params": {"dataset": f"set {number}"}, "metrics": {"val_real/map": 0.5}}
        (Path(folder) / "result.json").write_text(json.dumps(content))
        (Path(folder) / "detector.safetensors").touch()
    with pytest.raises(InputError) as error:
        find_detectors("best", "s")
    lines = str(error.value).partition("best of each:\n  ")[2].split("\n  ")
    pasted = paste("\n".join(f"python count.py {line}" for line in lines))
    assert {values(words)["run"] for words in given_to(pasted, "python", "count.py")} == folders


def test_paths_need_no_quotes_of_hydra() -> None:
    as_hydra_reads = ("'q'", "[1,2]", "null")
    for value in [*HOSTILE, "a b/c (1), x=y", "scènes [2]/*.tif"]:
        if value not in as_hydra_reads:
            assert values([quote_path(f"images={value}", ("images",))]) == {"images": value}
    for word in ("images=[a,b]", "images='a b'", "images=null", "study=a,b"):
        assert quote_path(word, ("images",)) == word


def test_words_that_hydra_refused(paste: Pasted, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list gets -m, two words that were one value become one, and what Hydra cannot read is quoted for it."""
    monkeypatch.setattr("sys.argv", ["train.py"])
    typed = ["dataset.root=my data (1)", "seed=0,1"]
    told = refused_word(ConfigCompositionException("Ambiguous value for argument 'seed=0,1'\n1."), typed)
    assert given_to(paste(str(told).splitlines()[1]), "python", "train.py") == [["-m", *typed]]
    told = refused_word(ConfigCompositionException("Ambiguous value for argument 'study=a, b'"), ["study=a, b"])
    text, again = str(told).partition("written ")[2].split("; add -m to take one after the other:\n")
    (words,) = given_to(paste(f"python train.py {text}"), "python", "train.py")
    assert values(words) == {"study": "a, b"}
    assert given_to(paste(again), "python", "train.py") == [["-m", "study=a, b"]]
    monkeypatch.setattr("sys.argv", ["compare.py"])
    told = refused_word(ConfigCompositionException("Ambiguous value for argument 'study=a, b'"), ["study=a, b"])
    text, listed = str(told).partition("written ")[2].split(", as a list ")
    lines = given_to(paste(f"python compare.py {text}\npython compare.py {listed}"), "python", "compare.py")
    assert [values(words)["study"] for words in lines] == ["a, b", ["a", "b"]]
    told = refused_word(OverrideParseException("runs=[a,", ""), ["study=x", "runs=[a,", "b", "c]", "brief=true"])
    line = f"python compare.py {str(told).rpartition('the list: ')[2]}"
    assert given_to(paste(line), "python", "compare.py") == [["runs=[a, b c]"]]
    monkeypatch.setattr("sys.argv", ["train.py"])
    for value in HOSTILE:
        (word,) = quote_refused([f"dataset.root=/a{value}"], ["dataset.root"])
        parted = refused_word(OverrideParseException(value, ""), [f"dataset.root=/a{value}", value])
        if "=" not in value:
            line = f"python train.py {str(parted).rpartition('quotes: ')[2]}"
            assert given_to(paste(line), "python", "train.py") == [[f"dataset.root=/a{value} {value}"]]
        unread = refused_word(OverrideParseException(f"study={value}", ""), [word])
        (words,) = given_to(
            paste(f"python train.py {str(unread).rpartition('it is written ')[2]}"), "python", "train.py"
        )
        assert values(words) == {"study": value}


def test_bringing_an_experiment_back(tmp_path: Path, paste: Pasted, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    folder = "../my $HOME `id` 'runs'; \"é\" (a) [b]&!!"
    store = Store(uri=None, folder=Path(folder))
    number = store.experiment("s")
    store.client.delete_experiment(number)
    with pytest.raises(InputError) as caught:
        store.experiment("s")
    ((uri, words),) = paste(str(caught.value).splitlines()[-1])
    assert uri == f"sqlite:///{folder}/mlflow.db"
    assert words == ["mlflow", "experiments", "restore", "--experiment-id", number]


@contextmanager
def configurations() -> Iterator[None]:
    """What Hydra and OmegaConf know while a script runs."""
    register()
    try:
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            yield
    finally:
        HydraConfig.instance().cfg = None


@pytest.mark.parametrize("name", ["config", "generate", "own"])
def test_making_variations(name: str, paste: Pasted, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command that generate.py, or train.py, offers has what was typed, and is one that generate.py takes."""
    folder = "my conf; 'touch' \"$HOME\" `id`!! \\"
    monkeypatch.setenv(OPTIONS_VARIABLE, json.dumps([f"--config-dir={folder}", f"--config-name={name}"]))
    hostile = {f"+generator.k{number}": value for number, value in enumerate(HOSTILE)}
    overrides = ["study=of-${seed}", *(setting(key, value) for key, value in hostile.items())]
    with configurations():
        config = compose("config", [*overrides, "rerun=true"], return_hydra_config=True)
        HydraConfig.instance().set_config(config)
        with open_dict(config):
            del config["hydra"]
        line = generation.generate_command(to_object(config, BoxtwinConfig), "budget=0.5", "confirm=true")
    (words,) = given_to(paste(line), "python", "generate.py")
    words.remove("study=of-${seed}")  # as it was typed
    plus = "++" if name == "own" else ""
    more = {"variations": 0, f"{plus}budget": 0.5, f"{plus}confirm": True}
    chosen = {"config_name": name} if name == "own" else {}
    assert values(words) == {"config_dir": folder, **chosen, **hostile, **more}


def test_generate_takes_settings_of_train() -> None:
    """A file that knows nothing of what generate.py takes beyond a run's settings."""
    with configurations():
        plain = compose("config")
        with pytest.raises(InputError, match="variations=0"):
            generation.generate(plain)
        defaults = to_object(plain, GenerateConfig)
        assert (defaults.confirm, defaults.budget, defaults.regenerate) == (False, None, None)
        told = compose("config", ["++confirm=no", "++budget=1"])
        with pytest.raises(InputError, match="variations=0"):
            generation.generate(told)
        given = to_object(told, GenerateConfig)
        assert (given.confirm, given.budget) == (False, 1.0)
