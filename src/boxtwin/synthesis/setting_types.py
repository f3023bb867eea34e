"""Whether the values of settings are of the types that a class states for them.

Values of options without a schema come as they were typed: ``generator.mirror=off`` is the text "off", which Python
takes as true.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from functools import cache
from typing import Any

from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError

from boxtwin.errors import InputError

PLAIN = (bool, int, float, str, types.NoneType)
NAMES = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "a group of settings",
}
PLURALS = {int: "whole numbers", float: "numbers", str: "texts"}


def check_types(kind: type, values: Mapping[str, object], place: str) -> None:
    """Refuse values that are not of the types that the constructor of ``kind`` states.

    Nothing is converted. A whole number is a number, too; infinity and nan are none. Names that the constructor does
    not know are left to it.

    Raises:
        InputError: it names the setting, which lies below ``place``.
    """
    stated = _stated(kind)
    for name, value in values.items():
        if name in stated and not _fits(value, stated[name]):
            shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else value
            raise InputError(f"{place}.{name}={shown} must be {_in_words(stated[name])}")


@cache
def _stated(kind: type) -> Mapping[str, Any]:
    """The types of the constructor's parameters by name; of ``**others`` those that base classes take."""
    stated: dict[str, Any] = {}
    for base, constructor in _constructors(kind):
        try:
            found = typing.get_type_hints(base if is_dataclass(base) else constructor)
        except NameError:  # a type that is imported for type checkers alone
            found = {}
        stated = {name: found[name] for name in inspect.signature(constructor).parameters if name in found} | stated
    return stated


@cache
def settings_of(kind: type) -> tuple[str, ...] | None:
    """The names of all parameters of a constructor, in the same sense; None if it takes any name."""
    names: dict[str, None] = {}
    for _, constructor in _constructors(kind):
        parameters = [*inspect.signature(constructor).parameters.values()][1:]
        names |= dict.fromkeys(each.name for each in parameters if each.kind is not inspect.Parameter.VAR_KEYWORD)
        if not _takes_others(constructor):
            return tuple(names)
    return None


def _constructors(kind: type) -> Iterator[tuple[type, Callable[..., None]]]:
    """The constructors that get a class's arguments, each with its class: those of bases as far as ``**others`` go."""
    for base in kind.__mro__:
        constructor = vars(base).get("__init__")
        if constructor is not None and base is not object:
            yield base, constructor
            if not _takes_others(constructor):
                return


def _takes_others(constructor: Callable[..., None]) -> bool:
    parameters = inspect.signature(constructor).parameters.values()
    return any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters)


def _fits(value: object, hint: Any) -> bool:
    # A class may state a Path, an Enum or a tuple, for which there is text or a list in a file.
    config = ConfigDict(strict=_is_plain(hint), allow_inf_nan=False)
    try:
        TypeAdapter(hint, config=config).validate_python(value)
    except ValidationError:
        return False
    except (PydanticUserError, NameError):  # a class of its own, about which the constructor decides
        return True
    return True


def _is_plain(hint: Any) -> bool:
    """Whether a type consists of those that a configuration has."""
    kind, inner = typing.get_origin(hint), typing.get_args(hint)
    if kind in (typing.Union, types.UnionType, list, dict, Sequence, Mapping):
        return all(_is_plain(each) for each in inner)
    return hint in PLAIN or hint is Any


def _in_words(hint: Any) -> str:
    """A type as a person says it: ``float | None`` is "a number or null"."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(_in_words(each) for each in typing.get_args(hint))
    if hint is types.NoneType:
        return "null"
    kind, inner = typing.get_origin(hint) or hint, typing.get_args(hint)
    if len(inner) == 1 and inner[0] in PLURALS:
        return f"a list of {PLURALS[inner[0]]}"
    return NAMES.get(kind, str(getattr(hint, "__name__", hint)))
