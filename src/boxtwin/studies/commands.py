"""Command lines for new runs, made from those of finished runs."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence

from boxtwin.command_line import command_line, setting

REPLACED = ("split", "split.name", "split.train_size", "variations", "variations.per_image", "seed")


def command(
    typed: str,
    typed_for: str,
    *,
    study: str,
    split: str | None,
    variations: int,
    generator: str,
    seeds: Sequence[int],
    size: int | None,
) -> str:
    """The command of new runs from what was ``typed`` after ``python train.py`` for one that is alike in all else.

    Args:
        typed: as a shell takes it.
        typed_for: the generator of that run, which may be none that was typed.
        study: for runs that did not say it.
        split: of the new runs; None keeps the split as it was typed, by name or in a file of settings.
        variations, generator, seeds: of the new runs.
        size: split.train_size of the new runs.
    """
    words = {word: word.partition("=")[0].lstrip("+") for word in shlex.split(typed)}
    # Settings that no file has are added with a plus.
    pluses = {key: word[: -len(word.lstrip("+"))] for word, key in words.items() if word[0] == "+"}
    chosen = choice(generator)
    replaced = {word.partition("=")[0] for word in chosen[1:]}
    replaced |= set(REPLACED if split is not None else REPLACED[2:])
    same = chosen[0] in (choice(typed_for)[0], *words)
    # Parameters of another generator would not fit this one, and without variations there is none.
    dropped = re.compile(r"generator$" if variations and same else r"generator(\.|$)")
    kept = [word for word, key in words.items() if key not in replaced and not dropped.match(key)]
    if variations:
        kept += [pluses.get(word.partition("=")[0], "") + word for word in chosen]
    if "study" not in words.values():
        kept.append(setting("study", study))
    # A split that has a name only in a file of splits was chosen by its name.
    if split is not None:
        kept.append(setting("split.name" if "split.name" in words.values() else "split", split))
    kept.append(f"variations={variations}")
    if size is not None:
        kept.append(f"split.train_size={size}")
    kept.append(f"seed={','.join(map(str, seeds))}")
    return command_line("train.py", [*(["-m"] if len(seeds) > 1 else []), *kept])


def choice(generator: str) -> list[str]:
    """The overrides that choose a generator as `boxtwin.studies.conditions.Row.generator` names it."""
    name, *rest = re.split(r"\s(?='?(?:generator|labels|variations|store)[.=])", generator, maxsplit=1)
    return [setting("generator", name), *overrides_of(" ".join(rest))]


def overrides_of(settings: str) -> list[str]:
    """The overrides that give the settings by which the name of a condition tells it from others."""
    pairs = [word.partition("=") for word in shlex.split(settings)]
    known = ("generator", "labels", "variations", "split")  # and not what follows from which images there are
    return [setting(key, _value(text)) for key, _, text in pairs if key.split(".")[0] in known]


def _value(text: str) -> object:
    """The inverse of `boxtwin.studies.condition_values.flatten` for one value."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if json.dumps(value) == text else text
