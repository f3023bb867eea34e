"""The words of a command line: quote for Hydra what it would refuse, and say what is wrong with the others."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Container, Iterable, Sequence
from pathlib import Path
from urllib.parse import unquote

from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Glob, Override, QuotedString, Sweep
from hydra.errors import HydraException, OverrideParseException
from omegaconf import OmegaConf

from boxtwin.command_line import command_line, quote_path, quote_variations, quoted, setting
from boxtwin.config.compose import unknown_name
from boxtwin.errors import InputError
from boxtwin.mixing.options import VariationsOptions

WORDS_OF_HYDRA = ("Only one of --", "The --resolve flag", "BasicSweeper does not support")  # errors that say it all
EMPTY = "''"
SWEEPING = ("train", "generate")  # scripts that take -m
ADDRESS = re.compile(
    r"(?P<key>\+*tracking\.uri)=(?P<quote>[\"']?)(?P<scheme>[\w+.-]+)://(?P<user>[^/\s]*)@(?P<rest>.*)"
)
# A part of a list and its comma: in quotes, or bare.
_PART = re.compile(r"""(?s)\s*(?:('(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*")|(.*?))\s*,""")
PASSWORD = "tracking.uri holds a user's name or password, which would be written to many files: leave them out"


def quote_numbers(arguments: Sequence[str], options: Path) -> list[str]:
    """Arguments of the command line `with_variations`; ``options`` is the folder conf/variations.

    Raises `InputError` if a number is wrong, or a folder of options has a former name.
    """
    config_dir = chosen_files(arguments).get("--config-dir")
    folders = [options] if config_dir is None else [options, Path(config_dir) / options.name]
    for folder in folders:
        former = folder.parent / "generator_at"
        if former.is_dir():
            raise InputError(f"{former} is not read any more: rename it to {former.with_name('dataset_generator')}")
    return with_variations(arguments, [file.stem for folder in folders for file in folder.glob("*.yaml")])


def with_variations(arguments: Iterable[str], options: Sequence[str]) -> list[str]:
    """Arguments with quoted numbers of variations; those that are no option yet become options of Hydra."""
    quoted = [quote_variations(argument, options) for argument in arguments]
    for argument in quoted:
        for number in re.findall(r"'(\d+)'", argument) if argument.lstrip("+").startswith("variations=") else ():
            if number not in options:
                node = VariationsOptions(per_image=int(number))
                ConfigStore.instance().store(group="variations", name=number, node=node, provider="boxtwin")
    return quoted


def chosen_files(arguments: Sequence[str]) -> dict[str, str]:
    """The values of Hydra's options that choose files, by their long names, parsed by Hydra."""
    parsed = vars(get_args_parser().parse_args(list(arguments)))
    named = {f"--{name}": parsed[name.replace("-", "_")] for name in ("config-path", "config-dir", "config-name")}
    return {name: value for name, value in named.items() if value is not None}


def check_options(arguments: Sequence[str], folders: Iterable[Path]) -> None:
    """Raise `InputError` for a word that gives a group of options no name, or several, which Hydra would merge.

    So it does for a word that deletes a setting: every setting has a value, if only null.
    ``folders`` hold the groups, a folder each. Names that do not exist are left to Hydra; experiments may be several.
    """
    known: dict[str, list[str]] = {}
    for file in (file for folder in folders for file in sorted(folder.glob("*/*.yaml"))):
        known.setdefault(file.parent.name, []).append(file.stem)
    for word in arguments:
        try:
            override = OverridesParser.create().parse_override(word)
        except HydraException:  # an option of Hydra's, or what it will refuse
            continue
        group, value = override.key_or_group, override.value()
        if override.is_delete() and group not in known and not group.startswith("hydra"):
            raise InputError(f"{word}: settings cannot be deleted; give {group} another value, or null")
        are_experiments = group == "experiment" and isinstance(value, list)
        if group not in known or override.package is not None or are_experiments:
            continue
        listed = f"{group} is one of {', '.join(known[group])}"
        if override.is_delete() or override.is_add():
            raise InputError(f"{word}: a run has one option of {group}; write {group}=NAME\n{listed}")
        if isinstance(value, list) and value:
            names = f"-m {group}={','.join(map(str, value))}"
            raise InputError(f"{word}: a run has one option of {group}; {names} takes one after the other\n{listed}")
        values = value.list if isinstance(value, ChoiceSweep) else [value]
        if not all(isinstance(each, str | QuotedString | Sweep | Glob) and each for each in values):
            raise InputError(f"{word} names no option\n{listed}")


def quote_refused(arguments: Sequence[str], settings: Sequence[str]) -> list[str]:
    """Arguments with quotes around the values of ``settings``, paths, where Hydra would refuse them without.

    Interpolations and Hydra's own escapes stay as they are; so do lists with commas in a sweep, ``-m``, that it takes.
    """
    in_sweep = get_args_parser().parse_args(list(arguments)).multirun
    return [
        word
        if word.partition("=")[0] not in settings or _is_one_value(word, or_sweep=in_sweep)
        else quote_path(word, settings)
        for word in arguments
    ]


def quote_texts(arguments: Sequence[str], settings: Container[str]) -> list[str]:
    """``study=1.10`` -> ``study='1.10'``, and each part of a list or sweep: ``settings`` are text, numbers to Hydra.

    Of a number, the text that it was typed as is lost: 1.10 and 1.1 would be one study.
    """

    def as_text(key: str, value: str) -> str:
        try:
            read = OverridesParser.create().parse_override(f"{key}={value}").value()
        except HydraException:
            return value
        changes = isinstance(read, int | float) and str(read) != value
        return setting(key, value).removeprefix(f"{key}=") if changes else value

    words = []
    for word in arguments:
        key, _, value = word.partition("=")
        plain = re.fullmatch(r"(\[?)([\w./ +,-]+)(\]?)", value) if key.lstrip("+") in settings else None
        if plain is None:
            words.append(word)
            continue
        parts = [part.strip() for part in plain[2].split(",")]
        texts = [as_text(key, part) for part in parts]
        words.append(word if texts == parts else f"{key}={plain[1]}{','.join(texts)}{plain[3]}")
    return words


def quote_list(word: str, settings: Sequence[str]) -> str:
    """``runs=[a (1),b]`` -> ``runs=['a (1)',b]`` where ``settings`` are paths and Hydra would refuse the list."""
    key, _, value = word.partition("=")
    is_list = key in settings and value.startswith("[") and value.endswith("]")
    if not is_list or _is_one_value(word):
        return word
    parts = [kept or setting(key, bare).removeprefix(f"{key}=") for kept, bare in _PART.findall(f"{value[1:-1]},")]
    return f"{key}=[{','.join(parts)}]"


def for_jobs_alone(arguments: Sequence[str], folders: Sequence[Path] = ()) -> list[str]:
    """Arguments in which a setting of a swept group is a sweep of one value: ``generator.tile=512,512``.

    Hydra composes the jobs of a sweep, and before them the settings without what is swept: there, the setting would be
    one of the group's default option, which may lack it. Of equal jobs the sweeper makes one. ``folders`` hold
    experiment files, which may sweep, too.
    """
    if not get_args_parser().parse_args(list(arguments)).multirun:
        return list(arguments)
    parsed: dict[str, Override] = {}
    for word in arguments:
        with contextlib.suppress(HydraException):  # an option of Hydra's, or what it will refuse
            parsed[word] = OverridesParser.create().parse_override(word)
    swept = {each.key_or_group for each in parsed.values() if each.is_sweep_override()}
    swept |= _swept_by_experiments(arguments, folders)

    def alone(word: str) -> str:
        override, (key, _, value) = parsed.get(word), word.partition("=")
        is_of_swept = override is not None and override.key_or_group.partition(".")[0] in swept
        if not is_of_swept or override is None or override.is_sweep_override() or "." not in override.key_or_group:
            return word
        if "${" in value:  # sweeps escape interpolations
            return word
        twice = f"{key}={value or EMPTY},{value or EMPTY}"  # choice(…) would drop quotes, and takes no null
        return twice if _is_one_value(twice, or_sweep=True) else word

    return [alone(word) for word in arguments]


def _swept_by_experiments(arguments: Sequence[str], folders: Sequence[Path]) -> set[str]:
    """What the experiment files that a command line names sweep, groups and settings; not what their defaults do."""
    values = [value for key, _, value in (word.lstrip("+").partition("=") for word in arguments) if key == "experiment"]
    found: set[str] = set()
    names = [name.removesuffix(".yaml") for name in re.findall(r"[\w/.-]+", " ".join(values))]
    for file in (folder / f"{name}.yaml" for folder in folders for name in names):
        with contextlib.suppress(Exception):  # it is missing or damaged: Hydra will say so
            found |= set(map(str, OmegaConf.select(OmegaConf.load(file), "hydra.sweeper.params") or ()))
    return {key.lstrip("+") for key in found}


def _is_one_value(word: str, *, or_sweep: bool = False) -> bool:
    """Whether Hydra can read a word, as one value or, if that will do, as a list of a sweep."""
    try:
        return not OverridesParser.create().parse_override(word).is_sweep_override() or or_sweep
    except HydraException:
        return False


def hide_password(argument: str) -> str:
    """Move user name and password of ``tracking.uri=http://USER:PASSWORD@HOST`` into MLflow's environment variables.

    The configuration is written to many files, the environment is not. Raises `InputError` for the address of a
    database, for which MLflow has no such variables.
    """
    match = ADDRESS.fullmatch(argument)
    if match is None:
        return argument
    if match["scheme"] not in ("http", "https"):
        raise InputError(
            f"{PASSWORD}, and give them as the database's own programs take them (PGUSER, PGPASSWORD), or run "
            "`mlflow server` before it"
        )
    user, has_password, password = match["user"].partition(":")
    os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(user)
    if has_password:
        os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(password)
    return f"{match['key']}={match['quote']}{match['scheme']}://{match['rest']}"


def refused_word(error: Exception, typed: Sequence[str]) -> InputError | None:
    """What to write for a ``typed`` word that Hydra refuses: a list without ``-m``, or text without quotes; or None."""
    several = re.match(r"(?:Ambiguous value for argument|Sweep parameters) '([^=]*)=", str(error))
    if several:
        word = next((word for word in typed if word.startswith(f"{several[1]}=")), several[1])
        key, _, value = word.partition("=")
        text = f"{word} lists several values; as one text it is written {quoted(setting(key, value))}"
        if Path(sys.argv[0]).stem not in SWEEPING:
            return InputError(f"{text}, as a list {quoted(f'{key}=[{value}]')}")
        start = text if " " in value else f"{word} lists several values"
        again = command_line(Path(sys.argv[0]).name, ["-m", *typed])
        return InputError(f"{start}; add -m to take one after the other:\n{again}")
    if str(error).startswith(WORDS_OF_HYDRA):
        return InputError(str(error))
    if not isinstance(error, OverrideParseException):
        return None
    word = str(error.override)
    key, separator, value = word.partition("=")
    following = typed[typed.index(word) :] if word in typed else []
    closed = next((place for place, each in enumerate(following, 1) if each.endswith("]")), 0)
    if value.startswith("[") and closed > 1:
        whole = quoted(" ".join(following[:closed]))
        return InputError(f"{word} is a part of a list, which the shell has cut at a blank; quote the list: {whole}")
    if separator:
        as_text = InputError(f"Hydra cannot read {word}; as text it is written {quoted(setting(key, value))}")
        return unknown_name(Path(sys.argv[0]), key) or as_text
    before = typed[: typed.index(word)][-1:] if word in typed else []
    if before and "=" in before[0] and (unknown := unknown_name(Path(sys.argv[0]), before[0].partition("=")[0])):
        return unknown
    joined = quoted(" ".join([*before, word])) if before and "=" in before[0] else "'dataset.root=/my data'"
    return InputError(f"{word} is no setting with a value; a value with a blank in it needs quotes: {joined}")
