"""Command lines: printed commands, quoted for shells and Hydra, and numbers of variations, quoted for Hydra.

Every command with a value of the user in it is built here, so that all are quoted alike.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path

from boxtwin.errors import InputError

_VARIATIONS = re.compile(r"(?P<key>\+?variations)=(?P<choices>(?:[\w.+-]|range\([^()]*\)|[\s,])*)")
_RANGE = re.compile(r"range\((\s*-?\d+\s*(?:,\s*-?\d+\s*){0,2})\)")
_QUOTED_NUMBER = re.compile(r"\A(\+?variations)='(\d+)'\Z")
# Between two overrides of an older record, which were joined by blanks.
_NEXT = re.compile(r"\s+(?=\+{0,2}[A-Za-z_][\w./@-]*=|~[A-Za-z_])")
# An absolute path as the value of a setting or option that holds one, in Hydra's quotes or none.
_PATHS = "root|images|annotations|file|weights|path|folder|data|to|runs?|regenerate|config-dir|config-path"
_ABSOLUTE = re.compile(rf"\A((?:[\w+./@-]*[.+-])?(?:{_PATHS})=[\"']?)(/[^'\",]*)")
# Text that Hydra takes for text without quotes.
_BARE = re.compile(r"(?!(?:null|true|false|nan|inf)$)(?:\.{0,2}/)*[a-z_][\w./-]*", re.ASCII | re.IGNORECASE)


def quote_variations(word: str, options: Container[str] = ()) -> str:
    """``variations=0,range(1,3)``, also in ``choice(...)`` -> ``variations='0','1','2'``; other words stay as they are.

    Hydra reads a bare number as an integer and refuses it as an option of the group ``variations``. Raises `InputError`
    for a choice that is no number, and none of the ``options``: names of files in conf/variations.
    """
    word = re.sub(r"\A(\+?variations)=choice\((.*)\)\Z", r"\1=\2", word)
    match = _VARIATIONS.fullmatch(word)
    if match is None and (called := re.match(r"\+?variations=(\w+)\(", word)):
        raise InputError(f"{word}: {called[1]}() is not possible for variations; give numbers: variations=0,2,10")
    if match is None:
        return word
    choices: list[int | str] = []
    for choice in map(str.strip, re.split(r",(?![^(]*\))", match["choices"])):  # not at commas in parentheses
        if bounds := _RANGE.fullmatch(choice):
            ends = [int(end) for end in bounds[1].split(",")]
            numbers = list(range(*ends)) if 0 not in ends[2:] and min(ends[:2]) >= 0 else []
        else:
            numbers = [int(choice)] if choice.isdecimal() else []
        if not numbers and choice not in options:
            raise InputError(
                f"{word}: {choice!r} is no number of variations per image; give whole numbers from 0, as in "
                "variations=0,2,10 or variations=range(0,3)"
            )
        choices += numbers or [choice]
    return f"{match['key']}=" + ",".join(f"'{choice}'" for choice in choices)


def typed_values(words: Iterable[str]) -> dict[str, str]:
    """The settings among typed words, without quotes; of one that was typed twice the last value, as Hydra takes it."""
    parts = (word.lstrip("+").partition("=") for word in words)
    return {key: value.strip("'\"") for key, equals, value in parts if equals}


def quote_path(word: str, settings: Container[str]) -> str:
    """``images=a b,c`` -> ``images='a b,c'`` for settings that are paths; lists and quoted values stay as they are."""
    key, separator, value = word.partition("=")
    is_path = separator and key in settings and value not in ("", "null") and value[0] not in "'\"["
    return setting(key, value) if is_path else word


def words_of(stored: object) -> list[str]:
    """The words after the name of the script, as a run keeps them: a list, its JSON, or text of older versions.

    The quotes of ``variations='2'`` (`quote_variations`) are removed.
    """
    if isinstance(stored, str):
        try:
            stored = json.loads(stored) if stored.startswith("[") else _NEXT.split(stored.strip())
        except ValueError:
            stored = []
    words = [str(word) for word in stored if str(word)] if isinstance(stored, list) else []
    return [_QUOTED_NUMBER.sub(r"\1=\2", word) for word in words]


def command_line(program: str, words: Sequence[str], **environment: str) -> str:
    """``python train.py …`` for the project's folder, or another program, with quotes where a shell needs them.

    Absolute paths are given relative to the working folder; ``environment`` holds variables to set before.
    """
    variables = [f"{name}={shlex.quote(value)}" for name, value in environment.items()]
    near = (_ABSOLUTE.sub(lambda path: path[1] + relative(Path(path[2])), word) for word in words)
    start = ("python", program) if program.endswith(".py") else (program,)
    return " ".join([*variables, *(quoted(word) for word in (*start, *near))])


def quoted(word: str) -> str:
    """A word as a shell takes it; in double quotes, ``"key='a b'"``, where these are enough."""
    readable = "'" in word and not re.search(r"[^\x20-\x7e]|[\"$`\\!]", word)
    return f'"{word}"' if readable else shlex.quote(word)


def setting(key: str, value: object) -> str:
    """``key=value`` from which Hydra gets this very value, be it text, a number, a list, a mapping or None."""
    return f"{key}={_in_hydra(value)}"


def _in_hydra(value: object) -> str:
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_in_hydra(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(_in_hydra, value)) + "]"
    if not isinstance(value, str):
        return json.dumps(value).replace("Infinity", "inf")
    if _BARE.fullmatch(value):
        return value
    # Interpolations are escaped for OmegaConf, which takes a backslash before them for an escape too.
    text = re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    # In quotes, backslashes are doubled only before a quote.
    return "'" + re.sub(r"(\\*)('|\Z)", lambda end: end[1] * 2 + ("\\'" if end[2] else ""), text) + "'"


def relative(path: Path) -> str:
    """A path as seen from the working folder."""
    return os.path.relpath(path) if path.is_absolute() else str(path)
