"""Commands that are printed, such that a shell and Hydra take them as they stand.

Every command with something of the user's in it is put together here, so that nothing is quoted in two ways.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

_NUMBER = re.compile(r"(\+?variations)='(\d+)'")
# Where one override of an older record ends and the next begins: those were joined by blanks.
_NEXT = re.compile(r"\s+(?=\+{0,2}[A-Za-z_][\w./@-]*=|~[A-Za-z_])")
# An absolute path as the value of a setting or option that holds one, in Hydra's quotes or none.
_PATHS = "root|images|annotations|file|weights|path|folder|data|to|runs?|regenerate|config-dir|config-path"
_ABSOLUTE = re.compile(rf"((?:[\w+./@-]*[.+-])?(?:{_PATHS})=[\"']?)(/[^'\",]*)")
# Text that Hydra takes for text without quotes.
_BARE = re.compile(r"(?!(?:null|true|false|nan|inf)$)(?:\.{0,2}/)*[a-z_][\w./-]*", re.ASCII | re.IGNORECASE)


def words_of(stored: object) -> list[str]:
    """What followed the name of the script, from what a run keeps of it: a list, its JSON, or text of older versions.

    ``variations='2'``, which Hydra wants, is given as ``variations=2``, which is what people type.
    """
    if isinstance(stored, str):
        try:
            stored = json.loads(stored) if stored.startswith("[") else _NEXT.split(stored.strip())
        except ValueError:
            stored = []
    words = [str(word) for word in stored if str(word)] if isinstance(stored, list) else []
    return [_NUMBER.sub(r"\1=\2", word) if _NUMBER.fullmatch(word) else word for word in words]


def command_line(program: str, words: Sequence[str], **environment: str) -> str:
    """``python train.py …``, with quotes where a shell needs them, for the project's folder.

    Absolute paths are given relative to the working folder: who reads them need not know where it lies.

    Args:
        program: a script of the project's folder, or a program.
        words: what follows it.
        environment: variables to set for it.
    """
    variables = [f"{name}={shlex.quote(value)}" for name, value in environment.items()]
    near = (_ABSOLUTE.sub(_relative, word) if _ABSOLUTE.match(word) else word for word in words)
    start = ("python", program) if program.endswith(".py") else (program,)
    return " ".join([*variables, *(quoted(word) for word in (*start, *near))])


def quoted(word: str) -> str:
    """A word as a shell takes it; ``"key='a b'"`` where that is enough, which people can read."""
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
    # Interpolations are escaped for OmegaConf, which then takes a backslash before them for an escape too.
    text = re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    # In quotes a backslash is one, but for those that stand before a quote.
    return "'" + re.sub(r"(\\*)('|\Z)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), text) + "'"


def _relative(found: re.Match[str]) -> str:
    return found[1] + relative(Path(found[2]))


def relative(path: Path) -> str:
    """A path as seen from the working folder."""
    return os.path.relpath(path) if path.is_absolute() else str(path)
