"""XML of annotation tools, read safely: without document types, which entities that expand without end need."""

from __future__ import annotations

import math
import re
from pathlib import Path
from xml.etree import ElementTree

from boxtwin.errors import InputError

_DECLARED = re.compile(r"<!(DOCTYPE|ENTITY)", re.IGNORECASE)


def read_xml(file: Path) -> ElementTree.Element:
    """The root of an XML file in UTF-8; `InputError` if it is none, or declares a document type."""
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"{file} is no text in UTF-8; save it as UTF-8") from None
    if _DECLARED.search(text):
        raise InputError(f"{file} declares a document type or entities, which annotation tools do not write")
    try:
        return ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError) as error:
        raise InputError(f"{file} is no valid XML: {error}") from None


def xml_bytes(root: ElementTree.Element) -> bytes:
    """The content of a file."""
    ElementTree.indent(root)
    return b'<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(root, encoding="utf-8") + b"\n"


def number(element: ElementTree.Element, name: str, file: Path) -> float:
    """A finite number in an attribute, or in the text of a part."""
    text = element.get(name) if name in element.attrib else element.findtext(name)
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{file}: <{element.tag}> needs a number as {name}, not {text!r}")
    return value
